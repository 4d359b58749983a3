"""One call of an agent: in a thread or task beside the runner, within its time limit, and how its failure is logged."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import sysconfig
import threading
import time
import traceback
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any, TypeVar

from ...core.errors import AttemptTimedOut, RolloutCancelled, message_of, printable

__all__ = [
    "CANCEL_SECONDS",
    "AgentCall",
    "AgentExecutor",
    "Watchdog",
    "call_agent",
    "contained",
    "error_text",
    "run_agents_here",
    "log_failure",
]

R = TypeVar("R")

_log = logging.getLogger(__name__)
CANCEL_SECONDS = 5.0
"""How long a cancelled agent may take to end, and a cancelled attempt to reach the store."""
STUCK_SECONDS = 5.0
"""How long after its time limit an attempt may block the event loop before that is logged, or ends the process."""
_CHECK_SECONDS = 1.0
SHOWN_FRAMES = 8
"""Innermost frames that are logged of a blocked event loop."""
LONGEST_LINE = 300
"""Characters of an error in a line of the log."""
_ROOMS = tuple(
    str(Path(__file__).parents[2] / room)
    for room in ("algorithms", "cli", "compat", "core", "projections", "rest", "runners")
)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class AgentCall:
    """A running agent: ``future`` has its result or exception, ``cancel`` asks it to end, ``stack`` gives its frames."""

    def __init__(
        self, future: asyncio.Future[Any], cancel: Callable[[], object], stack: Callable[[], list[FrameType]]
    ) -> None:
        self.future = future
        self.cancel = cancel
        self.stack = stack
        """The frames of its code as it stands now, the outermost first; none where that is not known."""


class AgentExecutor:
    """Runs the agents of one slot: functions in one thread, coroutines in one task, attempt after attempt.

    The same one each time, because libraries keep objects for a thread (connections of SQLite) or refuse another task
    (settings of DSPy). It is the main thread in :func:`run_agents_here`, since signals are handled there only.
    """

    def __init__(self) -> None:
        self._thread: _AgentThread | None = None
        self._task: _AgentTask | None = None

    def run_function(self, func: Callable[[], Any]) -> AgentCall:
        """Start ``func`` with a copy of the caller's context variables; cancelling it drops its result only."""
        if self._thread is None:
            shared = _SHARED_THREAD.get()
            self._thread = shared if shared is not None and shared.claim() else _AgentThread.started()
        future = self._thread.run(func)
        return AgentCall(future, future.cancel, self._thread.stack)

    def run_coroutine(self, call: Callable[[], Awaitable[Any]]) -> AgentCall:
        """Await ``call()`` with the caller's context variables."""
        if self._task is None or not self._task.usable():
            self._task = _AgentTask()
        return self._task.run(call)

    def give_up(self) -> None:
        """Use another thread or task from now on: an agent that does not end occupies these."""
        if self._thread is not None:
            self._thread.end()
        if self._task is not None:
            self._task.end()
        self._thread = self._task = None

    def close(self) -> None:
        """End the thread and the task, which run nothing; a shared thread may be used by another slot."""
        if self._thread is not None:
            self._thread.release()
        self.give_up()


class _AgentThread:
    """A thread that runs one function after the other; it has an event loop, for ``asyncio.get_event_loop()``."""

    def __init__(self, shared: bool = False) -> None:
        self.busy = False
        self._shared = shared
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._claimed = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number: int | None = None

    @classmethod
    def started(cls) -> _AgentThread:
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
        """End after what runs in it; a shared thread goes on."""
        if not self._shared:
            self.finish()

    def finish(self) -> None:
        """Return from ``serve`` after what was submitted."""
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
                # Of a signal handler: this may be the main thread, and the agent that set an alarm has ended.
                _log.warning("A signal handler of an earlier agent raised %s", error_text(error))

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


_SHARED_THREAD: ContextVar[_AgentThread | None] = ContextVar("agentlightning_shared_thread", default=None)
"""The thread that waits for functions of agents, seen by what :func:`run_agents_here` runs."""


def run_agents_here(work: Callable[[], R], stuck: Callable[[Future[R]], None]) -> R:
    """Run ``work`` in another thread, and synchronous agents that it runs in this one; what it returns or raises.

    An agent may never return from this thread. ``stuck`` is then called in the other one, with the outcome of ``work``,
    and has to end the process.
    """
    shared = _AgentThread(shared=True)
    outcome: Future[R] = Future()

    def body() -> None:
        _SHARED_THREAD.set(shared)
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)
        if shared.busy:
            stuck(outcome)
        shared.finish()

    context = contextvars.copy_context()
    threading.Thread(target=lambda: context.run(body), name="agl-runner", daemon=True).start()
    shared.serve()
    return outcome.result()


class _AgentTask:
    """A task that awaits one coroutine after the other, each with the context variables of its caller."""

    def __init__(self) -> None:
        self._calls: asyncio.Queue[_PendingCall | None] = asyncio.Queue()
        self._current: _PendingCall | None = None
        self._task = asyncio.create_task(self._serve(), name="agl-agent")

    def usable(self) -> bool:
        """Whether it takes calls: it ends with its event loop."""
        return not self._task.done() and self._task.get_loop() is asyncio.get_running_loop()

    def run(self, call: Callable[[], Awaitable[Any]]) -> AgentCall:
        """Have ``call()`` awaited."""
        pending = _PendingCall(call, contextvars.copy_context(), asyncio.get_running_loop().create_future())
        self._calls.put_nowait(pending)
        return AgentCall(pending.future, lambda: self._cancel(pending), self._stack)

    def end(self) -> None:
        """End after what was submitted."""
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

    def _cancel(self, pending: _PendingCall) -> None:
        if pending is not self._current:
            pending.future.cancel()
        elif not pending.cancelled:
            pending.cancelled = True
            self._task.cancel()

    async def _serve(self) -> None:
        while (pending := await self._calls.get()) is not None:
            if pending.future.done():
                continue
            self._current = pending
            for variable, value in pending.context.items():
                variable.set(value)
            try:
                result = await contained(pending.call)
            except asyncio.CancelledError:
                pending.future.cancel()
                if not self._survives(pending):
                    raise
            except Exception as error:
                if not pending.future.done():
                    pending.future.set_exception(error)
            else:
                if not pending.future.done():
                    pending.future.set_result(result)
            finally:
                self._current = None
                uncancel: Callable[[], int] | None = getattr(self._task, "uncancel", None)  # since Python 3.11
                if pending.cancelled and uncancel is not None:
                    uncancel()

    def _survives(self, pending: _PendingCall) -> bool:
        """Whether the cancellation was meant for the agent, or came from it, and not for this task."""
        cancelling = getattr(self._task, "cancelling", None)
        return pending.cancelled if cancelling is None else cancelling() == int(pending.cancelled)


class _PendingCall:
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
    """End a copy of this process that an agent forked: it must not go on as a second runner."""
    if os.getpid() != process:
        os._exit(0)


_INSIDE: ContextVar[bool] = ContextVar("agentlightning_inside_agent", default=False)
"""Set in the context of asynchronous agents, which share the loop of their runner."""
_GUARDED: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def _guard(loop: asyncio.AbstractEventLoop) -> None:
    """Refuse ``loop.stop()`` to agents: it would end the runner and all of its attempts."""
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


class Watchdog:
    """Counts the agents that are given up, and detects an event loop that an agent blocks past its time limit.

    Nothing can end a thread, or a coroutine that swallows its cancellation: it is given up, and what it records and
    prints belongs to no attempt any more. ``on_given_up`` is called for each unexpected one. ``on_stuck`` is called, in
    a thread of its own, when the event loop is blocked.
    """

    def __init__(self, on_given_up: Callable[[], None], on_stuck: Callable[[str], None]) -> None:
        self.count = 0
        self._on_given_up = on_given_up
        self._on_stuck = on_stuck
        self._deadlines: dict[object, tuple[float, str, int]] = {}
        self._lock = threading.Lock()
        self._watching = False

    def given_up(self, prefix: str, *, expected: bool = False) -> None:
        """Count one more; ``expected`` where the runner itself is cancelled: then it is no error."""
        self.count += 1
        level = logging.DEBUG if expected else logging.ERROR
        _log.log(level, "%s The agent does not end and is given up; %d so far in this process.", prefix, self.count)
        if not expected:
            self._on_given_up()

    @contextmanager
    def watched(self, limit_seconds: float | None, prefix: str) -> Generator[None, None, None]:
        """Detect that the block takes longer than this and blocks the event loop."""
        if limit_seconds is None:
            yield
            return
        key = object()  # the object and not its id, which the next object may have
        with self._lock:
            deadline = time.monotonic() + limit_seconds + CANCEL_SECONDS + STUCK_SECONDS
            self._deadlines[key] = (deadline, prefix, threading.get_ident())
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="agl-time-limits", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._deadlines.pop(key, None)

    def _watch(self) -> None:
        while True:
            time.sleep(_CHECK_SECONDS)
            with self._lock:
                if not self._deadlines:
                    self._watching = False
                    return
                now = time.monotonic()
                late = [key for key, (deadline, *_) in self._deadlines.items() if deadline < now]
                stuck = [self._deadlines.pop(key)[1:] for key in late]
            for prefix, thread in stuck:
                frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
                lines = [] if frame is None else traceback.format_stack(frame)[-SHOWN_FRAMES:]
                _log.error("%s The event loop is blocked here:\n%s", prefix, "".join(lines))
                self._on_stuck(prefix)


async def call_agent(
    call: Callable[[], Any],
    asynchronous: bool,
    limit: float | None,
    executor: AgentExecutor,
    watchdog: Watchdog,
    prefix: str,
    cancelled: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> Any:
    """What ``call()`` returns, or its exception; AttemptTimedOut after ``limit`` seconds.

    A cancellation of the caller, and the time limit, cancel an asynchronous agent. One that does not end within
    CANCEL_SECONDS, or a synchronous one, is given up. ``cancelled()`` returns when the rollout was cancelled
    elsewhere: an asynchronous agent is cancelled then (RolloutCancelled); a synchronous one may end by itself.
    """
    agent_call = executor.run_coroutine(call) if asynchronous else executor.run_function(call)
    work = agent_call.future
    looking = {asyncio.ensure_future(cancelled())} if asynchronous and cancelled is not None else set[asyncio.Future[None]]()
    try:
        with watchdog.watched(limit, prefix):
            await asyncio.wait({work, *looking}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _end(agent_call, executor, asynchronous, watchdog, prefix, expected=True)
        raise
    finally:
        for look in looking:
            look.cancel()
    if not work.done():
        hung_at = _traceback(agent_call.stack())
        await _end(agent_call, executor, asynchronous, watchdog, prefix)
        if any(look.done() and not look.cancelled() and look.exception() is None for look in looking):
            raise RolloutCancelled("The rollout was cancelled while its agent ran")
        late = AttemptTimedOut(f"The attempt ran longer than the {limit or 0:g} s of its rollout")
        raise late.with_traceback(hung_at)  # which ends at the line that the agent is executing
    if work.cancelled():
        raise RuntimeError("The agent was cancelled from inside")
    return work.result()


def _traceback(frames: Sequence[FrameType]) -> TracebackType | None:
    """The traceback of an exception that is raised in the last of these frames, the outermost first."""
    found: TracebackType | None = None
    for frame in reversed(frames):
        found = TracebackType(found, frame, max(frame.f_lasti, 0), frame.f_lineno)
    return found


async def _end(
    call: AgentCall, executor: AgentExecutor, asynchronous: bool, watchdog: Watchdog, prefix: str, *, expected: bool = False
) -> None:
    """Cancel, and give up what does not end; its result or exception is dropped."""
    work = call.future
    if work.done():
        return
    call.cancel()
    if asynchronous:
        await asyncio.wait({work}, timeout=CANCEL_SECONDS)
        if work.done():
            if not work.cancelled():
                work.exception()
            return
    executor.give_up()
    watchdog.given_up(prefix, expected=expected)


def error_text(error: BaseException) -> str:
    """Type and message; the type alone where there is no message."""
    message = message_of(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def log_failure(error: BaseException, prefix: str, where: str) -> None:
    """One line at ERROR, with the line of the agent's code that failed; the traceback at DEBUG.

    A run has hundreds of attempts, and many fail. ``where`` is the hint how to see the whole traceback.
    """
    executor = _place(error) or (_place(error.__cause__) if error.__cause__ is not None else "")
    _log.error("%s Exception during rollout. %s%s. %s", prefix, _line(error_text(error)), executor, where)
    _log.debug("%s The traceback:", prefix, exc_info=error)


def _line(text: str) -> str:
    """The first line of the text, without what a terminal would obey or could not show."""
    first, *more = text.strip().splitlines() or [""]
    shown = printable(first[:LONGEST_LINE])
    return f"{shown} ..." if more or len(first) > LONGEST_LINE else shown.removesuffix(".")


def _place(error: BaseException) -> str:
    """The last line of code on the way to the error that is neither ours nor a library's; empty without one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_ROOMS, *_LIBRARIES, "<frozen"))]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
