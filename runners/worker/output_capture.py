"""What an attempt prints and logs: kept beside its spans, head and tail, however many attempts share the process."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from ...core.model.semconv import AGL_OUTPUT
from ...core.model.span import Attributes

__all__ = ["OutputCapture", "capture"]

HEAD_BYTES = 512 * 1024
TAIL_BYTES = 512 * 1024
"""Together the most that is kept of one attempt, in UTF-8; the rest is counted."""
_FORMAT = logging.Formatter("%(levelname)s %(name)s: %(message)s")


class OutputCapture:
    """The first and the last bytes of everything that an attempt wrote, in the order of writing, from any thread."""

    def __init__(self, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self._limits = (head_bytes, tail_bytes)
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._lock = threading.Lock()
        self.counts = {"stdout": 0, "stderr": 0, "log": 0}
        """Bytes by source; all of them, kept or not."""
        self.closed = False

    def add(self, source: str, text: str | bytes) -> None:
        """Keep what there is room for, and count it all."""
        data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        with self._lock:
            self.counts[source] += len(data)
            room = self._limits[0] - len(self._head)
            if room > 0:
                self._head += data[:room]
                data = data[room:]
            if data:
                self._add_to_tail(data)

    def _add_to_tail(self, data: bytes) -> None:
        limit = self._limits[1]
        data = data[-limit:]
        # Pieces of a page or more: a print of one byte must not cost an entry of its own.
        if self._tail and len(self._tail[-1]) < 4096:
            self._tail[-1] += data
        else:
            self._tail.append(data)
        self._tail_size += len(data)
        while self._tail_size - len(self._tail[0]) >= limit:
            self._tail_size -= len(self._tail.popleft())

    def attributes(self) -> Attributes | None:
        """The attributes of the span that keeps it; None where nothing was written."""
        with self._lock:
            total = sum(self.counts.values())
            if total == 0:
                return None
            tail = b"".join(self._tail)[-self._limits[1] :]
            kept = len(self._head) + len(tail)
            texts = [bytes(self._head), tail] if kept < total else [bytes(self._head) + tail, b""]
        head_text, tail_text = (part.decode("utf-8", "replace") for part in texts)
        fields: Attributes = {f"{AGL_OUTPUT}.head": head_text, f"{AGL_OUTPUT}.total_bytes": total}
        if kept < total:
            fields[f"{AGL_OUTPUT}.tail"] = tail_text
            fields[f"{AGL_OUTPUT}.dropped_bytes"] = total - kept
        return {**fields, **{f"{AGL_OUTPUT}.{source}_bytes": count for source, count in self.counts.items()}}


_OUTPUT: ContextVar[OutputCapture | None] = ContextVar("agentlightning_output", default=None)
"""Where this task or thread writes to, beside the real streams."""
_LOGGING: ContextVar[bool] = ContextVar("agentlightning_logging", default=False)
"""Set while handlers write a record that is kept already."""
_LOCK = threading.Lock()
_OPEN: list[OutputCapture] = []
"""What is captured now; the streams are wrapped while there is any."""


def _current() -> OutputCapture | None:
    """The output of this context. A thread without one belongs to the only attempt of the process, if there is one."""
    output = _OUTPUT.get()
    if output is not None:
        # A thread or task that outlived its attempt writes to the real streams only.
        return None if output.closed else output
    thread = threading.current_thread()
    # Our own threads log, and log records do not come here; whatever else prints was started by an agent.
    if thread is threading.main_thread() or _LOGGING.get():
        return None
    open_now = list(_OPEN)
    return open_now[0] if len(open_now) == 1 else None


class _TeeStream:
    """A standard stream that keeps a copy for the attempt that writes; in all else the stream that it wraps."""

    def __init__(self, stream: Any, source: str) -> None:
        self._stream = stream
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def write(self, text: Any) -> Any:
        """Write through, after the copy: a stream that is closed or broken must not lose the text."""
        output = None if _LOGGING.get() else _current()
        if output is not None:
            output.add(self._source, text if isinstance(text, str) else bytes(text))
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        """As the stream's own, line by line."""
        for line in lines:
            self.write(line)

    @property
    def buffer(self) -> Any:
        """The stream of bytes below, which is copied as well."""
        return _TeeStream(self._stream.buffer, self._source)


@contextmanager
def capture(output: OutputCapture) -> Generator[None, None, None]:
    """Everything that this context prints and logs goes to ``output`` too while the block runs.

    Tasks and threads that carry a copy of the context are included; other processes are not, and neither is
    what native code writes past Python. Log records are kept as far as the levels of their loggers let them
    through, once, whatever handlers there are.
    """
    _open(output)
    token = _OUTPUT.set(output)
    try:
        yield
    finally:
        _OUTPUT.reset(token)
        _close(output)


def _open(output: OutputCapture) -> None:
    with _LOCK:
        _OPEN.append(output)
        if len(_OPEN) == 1:
            for name in ("stdout", "stderr"):
                stream: TextIO | None = getattr(sys, name)
                # None in a process without a console; ours where a program restored it after its attempt.
                if stream is not None and not isinstance(stream, _TeeStream):
                    setattr(sys, name, _TeeStream(stream, name))
            logging.Logger.callHandlers = _call_handlers


def _close(output: OutputCapture) -> None:
    with _LOCK:
        output.closed = True
        _OPEN.remove(output)
        if _OPEN:
            return
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            # A stream that the program put there meanwhile stays, and may still write to ours.
            if isinstance(stream, _TeeStream):
                setattr(sys, name, stream._stream)  # pyright: ignore[reportPrivateUsage]
        if logging.Logger.callHandlers is _call_handlers:
            logging.Logger.callHandlers = _ORIGINAL


_ORIGINAL = logging.Logger.callHandlers


def _call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
    """Stands in for ``Logger.callHandlers``: a handler of our own would change what ``basicConfig`` and others do."""
    output = _OUTPUT.get()
    if output is not None and not output.closed:
        try:
            output.add("log", _FORMAT.format(record) + "\n")
        except (TypeError, ValueError) as error:
            # Arguments that do not fit the message: the handlers report it as always.
            output.add("log", f"{record.levelname} {record.name}: {record.msg!r} ({error})\n")
    token = _LOGGING.set(True)
    try:
        _ORIGINAL(self, record)
    finally:
        _LOGGING.reset(token)
