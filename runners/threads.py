"""Synchronous code beside the event loop: in a thread that nobody has to wait for."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["run_in_thread"]

R = TypeVar("R")


def run_in_thread(func: Callable[[], R], name: str) -> asyncio.Future[R]:
    """Start ``func`` in a daemon thread that sees a copy of the caller's context variables.

    A pool would be joined when the process ends: an agent that hangs could then not be left
    behind by Ctrl+C. Cancelling the future leaves the thread running and drops its result.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()
    context = contextvars.copy_context()

    def report(action: Callable[[], None]) -> None:
        def apply() -> None:
            if not future.done():
                action()

        try:
            loop.call_soon_threadsafe(apply)
        except RuntimeError as error:
            # The loop was closed meanwhile: there is nobody left to tell.
            del error

    def body() -> None:
        try:
            result = context.run(func)
        except (SystemExit, KeyboardInterrupt, StopIteration, asyncio.CancelledError) as error:
            # None of these can travel through a future: they would end the loop, or pass for a cancellation of ours.
            failure = RuntimeError(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            report(lambda: future.set_exception(failure))
        except BaseException as error:
            caught = error
            report(lambda: future.set_exception(caught))
        else:
            report(lambda: future.set_result(result))

    threading.Thread(target=body, name=name, daemon=True).start()
    return future
