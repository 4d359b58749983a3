"""A TCP relay between a client and a store that can be cut: answers get lost, connections die."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit


class Relay:
    """Forwards bytes to `target` until told otherwise."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname, parts.port
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.swallow_answers = 0
        self.port = 0

    async def start(self) -> Relay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Every connection dies now."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there}
        try:
            await asyncio.gather(self._pump(reader, there, False), self._pump(there_reader, writer, True))
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()
            there.transport.abort()
        finally:
            self._writers -= {writer, there}

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        while data := await source.read(65536):
            if answers and self.swallow_answers > 0:
                # The request took effect, its answer never arrives.
                self.swallow_answers -= 1
                raise ConnectionResetError
            sink.write(data)
            await sink.drain()
        sink.transport.abort()
