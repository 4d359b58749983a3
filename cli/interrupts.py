"""Ctrl+C and SIGTERM as a flag, on every platform: the first asks to stop, a second Ctrl+C ends the process at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..runners.stop_events import ThreadingEvent


class StopFlag:
    """Set by SIGINT and SIGTERM, and by `set`. Install it in the main thread, within a running event loop.

    It has `is_set`, so a runner takes it as its event. `by` is the number of the signal that asked, None so far.
    """

    def __init__(self) -> None:
        self.by: int | None = None
        self._set = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def install(self) -> None:
        """Take over both signals. signal.signal is there on every platform; a loop's own handlers are not."""
        self.attach()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._caught)

    def attach(self) -> None:
        """Be set from outside of the running event loop, without any signal."""
        self._loop = asyncio.get_running_loop()

    def follow(self, event: ThreadingEvent) -> None:
        """Be set when the event is."""
        self.attach()

        def wait() -> None:
            event.wait()
            self.set()

        threading.Thread(target=wait, name="agl-stop", daemon=True).start()

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._set

    def set(self) -> None:
        """Ask to stop, from any thread."""
        self._set = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Return once it is set."""
        await self._event.wait()

    def _caught(self, number: int, _: FrameType | None) -> None:
        if self.by is not None and number == signal.SIGINT:
            # Whoever presses it twice does not want to wait; the log is written to survive this.
            os._exit(130)
        self.by = number
        self.set()

    def exit_code(self) -> int:
        """130 after Ctrl+C, else 0."""
        return 130 if self.by == signal.SIGINT else 0


def announce(line: str) -> None:
    """One line on standard error: standard output belongs to results."""
    click.echo(line, err=True)
