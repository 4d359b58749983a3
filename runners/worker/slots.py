"""Slots: the attempts that one runner process works on side by side, each under a worker id of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager

from ...core.model.rollout import AttemptedRollout
from ..stop_events import StopSignal
from .agent_thread import AgentPlace
from .heartbeat import Life

__all__ = ["Slot", "StopToo", "side_by_side", "slots_of"]


class Slot:
    """One worker of the store: it runs one attempt at a time. A new object is a new life, with a new incarnation."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.incarnation = uuid.uuid4().hex
        self.place = AgentPlace()
        self.running: dict[tuple[str, str], None] = {}

    @property
    def life(self) -> Life:
        """What its heartbeats say."""
        return Life(self.worker_id, self.incarnation, lambda: list(self.running))

    @contextmanager
    def marked(self, rollout: AttemptedRollout) -> Generator[None, None, None]:
        """Heartbeats name this attempt while the block runs."""
        key = (rollout.rollout_id, rollout.attempt.attempt_id)
        self.running[key] = None
        try:
            yield
        finally:
            self.running.pop(key, None)


def slots_of(worker_id: str, count: int) -> list[Slot]:
    """One slot has the worker's own id; several have ``<id>-0``, ``<id>-1``, ..."""
    return [Slot(worker_id if count == 1 else f"{worker_id}-{index}") for index in range(count)]


class StopToo:
    """Set when ``event`` is, or by ``set``."""

    def __init__(self, event: StopSignal | None) -> None:
        self._event = event
        self._set = False

    def set(self) -> None:
        """Ask to stop, without touching the event."""
        self._set = True

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._set or (self._event is not None and self._event.is_set())


async def side_by_side(
    slots: Sequence[Slot], serve: Callable[[Slot, StopSignal | None], Awaitable[None]], event: StopSignal | None
) -> None:
    """Serve all slots until each has ended; a cancellation cancels them all.

    After the first that fails nothing is begun any more: what runs may end, then the error is raised.
    """
    if len(slots) == 1:
        await serve(slots[0], event)
        return
    stop = StopToo(event)
    tasks = {asyncio.ensure_future(serve(slot, stop)): slot for slot in slots}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if any(not task.cancelled() and task.exception() is not None for task in done):
            stop.set()
            for task, slot in tasks.items():
                if not slot.running:
                    task.cancel()
            await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    if errors:
        raise errors[0]
