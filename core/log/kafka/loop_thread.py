"""An event loop in a thread of its own, on which every Kafka client of a log lives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from ...errors import LogClosed, StorageError

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for threads that block until they are done."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    @property
    def inside(self) -> bool:
        """Whether the caller is the loop's own thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def call(self, coroutine: Coroutine[Any, Any, T], timeout_seconds: float | None = None) -> T:
        """Run to the end and return the result. Raises `StorageError` when time is up, `LogClosed` after `stop`."""
        if self.inside:
            coroutine.close()
            raise RuntimeError("a blocking call of the log was made from the log's own thread")
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise LogClosed("the log was closed") from None
        try:
            return future.result(timeout_seconds)
        except CancelledError:
            raise LogClosed("the log was closed") from None
        except FutureTimeout:
            if future.done():
                raise
            future.cancel()
            raise StorageError(f"the broker did not answer within {timeout_seconds} s") from None

    def stop(self) -> None:
        """Stop the loop and wait for the thread. Idempotent."""
        if not self.loop.is_closed():
            try:
                asyncio.run_coroutine_threadsafe(self._end(), self.loop)
            except RuntimeError:
                return
            if not self.inside:
                self._thread.join(10)

    async def _end(self) -> None:
        """Cancel what still runs, so that threads which wait for it are told, and stop."""
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=2)
        self.loop.call_soon(self.loop.stop)
