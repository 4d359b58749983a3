"""Agent code beside the runner: the thread and the task of a slot in which it runs, and ends that would end the runner."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import ContextVar
from queue import SimpleQueue
from types import FrameType
from typing import Any, TypeVar

from .failures import error_text

__all__ = ["AgentPlace", "Call", "contained", "lend_thread"]

R = TypeVar("R")

_log = logging.getLogger(__name__)


class Call:
    """An agent at work: ``future`` has its result or exception, ``cancel`` asks it to end, ``stack`` says where it is."""

    def __init__(
        self, future: asyncio.Future[Any], cancel: Callable[[], object], stack: Callable[[], list[FrameType]]
    ) -> None:
        self.future = future
        self.cancel = cancel
        self.stack = stack
        """The frames of its code as it stands now, the outermost first; none where that is not known."""


class AgentPlace:
    """Where the agents of one slot run: functions in one thread, coroutines in one task, attempt after attempt.

    The same one each time, because libraries keep objects for a thread (connections of SQLite) or refuse another task
    (settings of DSPy). It is the main thread where :func:`lend_thread` lent it, since signals are handled there only.
    """

    def __init__(self) -> None:
        self._thread: _CallThread | None = None
        self._task: _CallTask | None = None

    def run_function(self, func: Callable[[], Any]) -> Call:
        """Start ``func`` with a copy of the caller's context variables; cancelling it drops its result only."""
        if self._thread is None:
            lent = _LENT.get()
            self._thread = lent if lent is not None and lent.claim() else _CallThread.started()
        future = self._thread.run(func)
        return Call(future, future.cancel, self._thread.stack)

    def run_coroutine(self, call: Callable[[], Awaitable[Any]]) -> Call:
        """Await ``call()`` with the caller's context variables."""
        if self._task is None or not self._task.usable():
            self._task = _CallTask()
        return self._task.run(call)

    def leave(self) -> None:
        """Use another thread or task from now on: an agent holds these and does not end."""
        if self._thread is not None:
            self._thread.end()
        if self._task is not None:
            self._task.end()
        self._thread = self._task = None

    def close(self) -> None:
        """End the thread and the task, which run nothing; a lent thread may be used by another slot."""
        if self._thread is not None:
            self._thread.release()
        self.leave()


class _CallThread:
    """A thread that runs one function after the other; it has an event loop, for ``asyncio.get_event_loop()``."""

    def __init__(self, lent: bool = False) -> None:
        self.busy = False
        self._lent = lent
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._claimed = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number: int | None = None

    @classmethod
    def started(cls) -> _CallThread:
        """A new one, a daemon: a pool would be joined when the process ends, and an agent that hangs could not be left."""
        made = cls()
        made.claim()
        threading.Thread(target=made.serve, name="agl-agent", daemon=True).start()
        return made

    def claim(self) -> bool:
        """Whether the caller is its only user from now on."""
        return self._claimed.acquire(blocking=False)

    def release(self) -> None:
        """Let it be claimed again."""
        self._claimed.release()

    def end(self) -> None:
        """End after what runs in it; not so the thread that is lent, which has more to do."""
        if not self._lent:
            self.give_back()

    def give_back(self) -> None:
        """Return from ``serve`` after what was asked for."""
        self._calls.put(None)

    def serve(self) -> None:
        """Run what :meth:`run` is given, in this thread."""
        self._number = threading.get_ident()
        try:
            while (call := self._next()) is not None:
                self._provide_event_loop()
                self.busy = True
                try:
                    call()
                finally:
                    self.busy = False
                del call  # it holds the result of the agent
        finally:
            if self._loop is not None and not self._loop.is_running():
                self._loop.close()
                asyncio.set_event_loop(None)

    def _next(self) -> Callable[[], None] | None:
        while True:
            try:
                return self._calls.get()
            except Exception as error:
                # Of a signal handler: this may be the main thread, and the agent that set an alarm is over.
                _log.warning("A signal handler that an agent left behind raised %s", error_text(error))

    def stack(self) -> list[FrameType]:
        """The frames of the function that runs in it, the outermost first."""
        frames: list[FrameType] = []
        frame = sys._current_frames().get(self._number or 0)  # pyright: ignore[reportPrivateUsage]
        while frame is not None and frame.f_code.co_filename != __file__:
            frames.insert(0, frame)
            frame = frame.f_back
        return frames if self.busy else []

    def _provide_event_loop(self) -> None:
        """One that an agent made or set is kept; ``asyncio.run`` takes it away."""
        try:
            current = asyncio.get_event_loop()
        except (RuntimeError, DeprecationWarning):  # there is none; a warning, where warnings are errors
            current = None
        if current is None or current.is_closed():
            if self._loop is None or self._loop.is_closed():
                self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)

    def run(self, func: Callable[[], R]) -> asyncio.Future[R]:
        """Have ``func`` run with a copy of the caller's context variables."""
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
                _log.debug("The agent ended after its runner: %s", error)

        def body() -> None:
            try:
                result = context.run(func)
            except BaseException as error:
                failure = _as_exception(error)
                report(lambda: future.set_exception(failure))
            else:
                report(lambda: future.set_result(result))

        self._calls.put(body)
        return future


_LENT: ContextVar[_CallThread | None] = ContextVar("agentlightning_lent_thread", default=None)
"""The thread that waits for functions of agents, seen by what :func:`lend_thread` runs."""


def lend_thread(work: Callable[[], R], stuck: Callable[[Future[R]], None]) -> R:
    """Run ``work`` in another thread, and synchronous agents that it runs in this one; what it returns or raises.

    An agent may hold this thread for ever. ``stuck`` is called in the other one then, with the outcome of ``work``, and
    has to end the process.
    """
    lent = _CallThread(lent=True)
    outcome: Future[R] = Future()

    def body() -> None:
        _LENT.set(lent)
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)
        if lent.busy:
            stuck(outcome)
        lent.give_back()

    context = contextvars.copy_context()
    threading.Thread(target=lambda: context.run(body), name="agl-runner", daemon=True).start()
    lent.serve()
    return outcome.result()


class _CallTask:
    """A task that awaits one coroutine after the other, each with the context variables of its caller."""

    def __init__(self) -> None:
        self._calls: asyncio.Queue[_AwaitedCall | None] = asyncio.Queue()
        self._current: _AwaitedCall | None = None
        self._task = asyncio.create_task(self._serve(), name="agl-agent")

    def usable(self) -> bool:
        """Whether it takes calls: it ends with its event loop."""
        return not self._task.done() and self._task.get_loop() is asyncio.get_running_loop()

    def run(self, call: Callable[[], Awaitable[Any]]) -> Call:
        """Have ``call()`` awaited."""
        asked = _AwaitedCall(call, contextvars.copy_context(), asyncio.get_running_loop().create_future())
        self._calls.put_nowait(asked)
        return Call(asked.future, lambda: self._cancel(asked), self._stack)

    def end(self) -> None:
        """End after what was asked for."""
        if not self._task.done():
            self._calls.put_nowait(None)

    def _stack(self) -> list[FrameType]:
        """The frames of the coroutines that wait for one another, the outermost first."""
        frames: list[FrameType] = []
        waiting: Any = self._task.get_coro()
        while waiting is not None:
            frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
            if frame is not None and frame.f_code.co_filename != __file__:
                frames.append(frame)
            waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
        return frames

    def _cancel(self, asked: _AwaitedCall) -> None:
        if asked is not self._current:
            asked.future.cancel()
        elif not asked.cancelled:
            asked.cancelled = True
            self._task.cancel()

    async def _serve(self) -> None:
        while (asked := await self._calls.get()) is not None:
            if asked.future.done():
                continue
            self._current = asked
            for variable, value in asked.context.items():
                variable.set(value)
            try:
                result = await contained(asked.call)
            except asyncio.CancelledError:
                asked.future.cancel()
                if not self._survives(asked):
                    raise
            except Exception as error:
                if not asked.future.done():
                    asked.future.set_exception(error)
            else:
                if not asked.future.done():
                    asked.future.set_result(result)
            finally:
                self._current = None
                uncancel: Callable[[], int] | None = getattr(self._task, "uncancel", None)  # since Python 3.11
                if asked.cancelled and uncancel is not None:
                    uncancel()

    def _survives(self, asked: _AwaitedCall) -> bool:
        """Whether the cancellation was meant for the agent, or came from it, and not for this task."""
        cancelling = getattr(self._task, "cancelling", None)
        return asked.cancelled if cancelling is None else cancelling() == int(asked.cancelled)


class _AwaitedCall:
    def __init__(
        self, call: Callable[[], Awaitable[Any]], context: contextvars.Context, future: asyncio.Future[Any]
    ) -> None:
        self.call = call
        self.context = context
        self.future = future
        self.cancelled = False


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

