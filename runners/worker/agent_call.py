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
from ...core.model.resources import NamedResources
from ...core.model.rollout import AttemptedRollout
from ..agent.litagent import LitAgent, call_for

__all__ = [
    "CANCEL_SECONDS",
    "AgentPlace",
    "Call",
    "GivenUp",
    "call_agent",
    "contained",
    "error_text",
    "lend_thread",
    "say_failure",
]

R = TypeVar("R")

_log = logging.getLogger(__name__)
CANCEL_SECONDS = 5.0
"""How long a cancelled agent may take to end, and a cancelled attempt to tell the store."""
STUCK_SECONDS = 5.0
"""How long after its time limit an attempt may still hold the event loop before that is said, or ends the process."""
_CHECK_SECONDS = 1.0
SHOWN_FRAMES = 8
"""Innermost frames that are shown of an event loop that does not turn."""
LONGEST_LINE = 300
"""Characters of an error in a line of the log."""
_ROOMS = tuple(
    str(Path(__file__).parents[2] / room)
    for room in ("algorithms", "cli", "compat", "core", "projections", "rest", "runners")
)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


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


class GivenUp:
    """Counts the agents that did not end when they were asked to, and runs on in spite of them.

    Nothing can end a thread, or a coroutine that swallows its cancellation: it goes on beside the runner, and
    what it records and prints belongs to no attempt any more. ``on_change`` is called for each. ``on_stuck`` is
    called, in a thread of its own, when an attempt is past its time limit and the event loop does not turn.
    """

    def __init__(self, on_change: Callable[[], None], on_stuck: Callable[[str], None]) -> None:
        self.count = 0
        self._on_change = on_change
        self._on_stuck = on_stuck
        self._deadlines: dict[object, tuple[float, str, int]] = {}
        self._lock = threading.Lock()
        self._watching = False

    def add(self, prefix: str, *, expected: bool = False) -> None:
        """One more; ``expected`` where the runner itself is ended, which is said by others."""
        self.count += 1
        level = logging.DEBUG if expected else logging.ERROR
        _log.log(level, "%s The agent does not end and is left behind; %d so far in this process.", prefix, self.count)
        self._on_change()

    @contextmanager
    def watched(self, limit_seconds: float | None, prefix: str) -> Generator[None, None, None]:
        """Notice when the block takes longer than this without letting the loop turn."""
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
                _log.error("%s The event loop stands here:\n%s", prefix, "".join(lines))
                self._on_stuck(prefix)


async def call_agent(
    agent: LitAgent[Any],
    rollout: AttemptedRollout,
    resources: NamedResources,
    place: AgentPlace,
    given_up: GivenUp,
    prefix: str,
    cancelled: Callable[[], Coroutine[Any, Any, None]],
) -> Any:
    """What the agent returns, or its exception; AttemptTimedOut after ``timeout_seconds`` of the rollout.

    A cancellation of the caller, and the time limit, cancel an asynchronous agent. One that does not end within
    CANCEL_SECONDS, or a synchronous one, is given up. ``cancelled()`` returns when the rollout was cancelled
    elsewhere: an asynchronous agent is cancelled then (RolloutCancelled); a synchronous one may end by itself.
    """
    call = call_for(agent, rollout.mode, rollout.input, rollout.rollout_id, resources, rollout)
    asynchronous = agent.is_async()
    agent_call = place.run_coroutine(call) if asynchronous else place.run_function(call)
    work = agent_call.future
    looking = {asyncio.ensure_future(cancelled())} if asynchronous else set[asyncio.Future[None]]()
    limit = rollout.config.timeout_seconds
    try:
        with given_up.watched(limit, prefix):
            await asyncio.wait({work, *looking}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _end(agent_call, place, asynchronous, given_up, prefix, expected=True)
        raise
    finally:
        for look in looking:
            look.cancel()
    if not work.done():
        hung_at = _traceback(agent_call.stack())
        await _end(agent_call, place, asynchronous, given_up, prefix)
        if any(look.done() and not look.cancelled() and look.exception() is None for look in looking):
            raise RolloutCancelled("The rollout was cancelled while its agent ran")
        late = AttemptTimedOut(f"The attempt ran longer than the {limit or 0:g} s of its rollout")
        raise late.with_traceback(hung_at)  # which ends at the line where the agent's code stands
    if work.cancelled():
        raise RuntimeError("The agent was cancelled from inside")
    return work.result()


def _traceback(frames: Sequence[FrameType]) -> TracebackType | None:
    """What an exception would have that was raised where these frames stand, the outermost first."""
    found: TracebackType | None = None
    for frame in reversed(frames):
        found = TracebackType(found, frame, max(frame.f_lasti, 0), frame.f_lineno)
    return found


async def _end(
    call: Call, place: AgentPlace, asynchronous: bool, given_up: GivenUp, prefix: str, *, expected: bool = False
) -> None:
    """Cancel, and give up what does not end; its result or exception is not wanted any more."""
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
    place.leave()
    given_up.add(prefix, expected=expected)


def error_text(error: BaseException) -> str:
    """Type and message; the type alone where there is no message."""
    message = message_of(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def say_failure(error: BaseException, prefix: str, where: str) -> None:
    """One line at ERROR, with the line of the agent's code that failed; the traceback at DEBUG.

    A run has hundreds of attempts, and many fail. ``where`` says how to see the whole traceback of this one.
    """
    place = _place(error) or (_place(error.__cause__) if error.__cause__ is not None else "")
    _log.error("%s Exception during rollout. %s%s. %s", prefix, _line(error_text(error)), place, where)
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
