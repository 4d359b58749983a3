"""One call of an agent: in a task or thread of its own, for no longer than its time limit, and given up if it hangs."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ...core.errors import AttemptTimedOut, RolloutCancelled
from ...core.model.resources import NamedResources
from ...core.model.rollout import AttemptedRollout
from ..agent.litagent import LitAgent, call_for
from .agent_thread import AgentPlace, Call

__all__ = ["CANCEL_SECONDS", "GivenUp", "call_agent"]

CANCEL_SECONDS = 5.0
"""How long a cancelled agent may take to end, and a cancelled attempt to tell the store."""
STUCK_SECONDS = 5.0
"""How long after its time limit an attempt may still hold the event loop before that is said, or ends the process."""
_CHECK_SECONDS = 1.0
SHOWN_FRAMES = 8
"""Innermost frames that are shown of an event loop that does not turn."""

_log = logging.getLogger(__name__)


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
