"""Agent code beside the runner: synchronous code in a thread that nobody waits for, and ends that would end the runner."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

from .failures import error_text

__all__ = ["contained", "run_in_thread"]

R = TypeVar("R")


def run_in_thread(func: Callable[[], R], name: str) -> asyncio.Future[R]:
    """Start ``func`` in a daemon thread that sees a copy of the caller's context variables.

    A pool would be joined when the process ends: an agent that hangs could then not be left
    behind by Ctrl+C. Cancelling the future leaves the thread running and drops its result.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()
    context = contextvars.copy_context()
    process = os.getpid()

    def report(action: Callable[[], None]) -> None:
        def apply() -> None:
            if not future.done():
                action()

        _leave_fork(process)
        try:
            loop.call_soon_threadsafe(apply)
        except RuntimeError as error:
            # The loop was closed meanwhile: there is nobody left to tell.
            del error

    def body() -> None:
        try:
            result = context.run(func)
        except BaseException as error:
            failure = _as_exception(error)
            report(lambda: future.set_exception(failure))
        else:
            report(lambda: future.set_result(result))

    threading.Thread(target=body, name=name, daemon=True).start()
    return future


async def contained(call: Callable[[], Awaitable[R]]) -> R:
    """Await ``call()`` so that it cannot end the event loop: neither by an exception nor by ``loop.stop()``.

    A cancellation goes on; every other exception that is no Exception becomes a RuntimeError.
    """
    _guard(asyncio.get_running_loop())
    _INSIDE.set(True)
    process = os.getpid()
    try:
        return await call()
    except (Exception, asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _as_exception(error) from error
    finally:
        _leave_fork(process)


def _as_exception(error: BaseException) -> Exception:
    """What can travel through a future: SystemExit and its like would end the loop, or pass for a cancellation of ours."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = RuntimeError(error_text(error))
    failure.__cause__ = error
    return failure


def _leave_fork(process: int) -> None:
    """End a copy of this process that an agent forked and let run on: it must not go on as a second runner."""
    if os.getpid() != process:
        os._exit(0)


_INSIDE: ContextVar[bool] = ContextVar("agentlightning_inside_agent", default=False)
"""Set in the context of asynchronous agents, which share the loop of their runner."""
_GUARDED: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def _guard(loop: asyncio.AbstractEventLoop) -> None:
    """Refuse ``loop.stop()`` to agents: it would end the runner and all attempts beside theirs."""
    if loop in _GUARDED:
        return
    stop = loop.stop

    def refused() -> None:
        if _INSIDE.get():
            raise RuntimeError("An agent must not stop the event loop of its runner")
        stop()

    try:
        setattr(loop, "stop", refused)  # noqa: B010 (a method of an instance)
        _GUARDED.add(loop)
    except (AttributeError, TypeError) as error:
        # A loop written in C takes no attributes: it stays as it is.
        del error

