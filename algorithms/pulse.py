"""Waking up when a store has news: its facts where it tells them, a look from time to time where it does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType

from ..core.errors import AgentLightningError
from ..core.model.store_interface import LightningStore

__all__ = ["Pulse"]

_log = logging.getLogger(__name__)
FIRST_SECONDS = 0.2
"""How long a wait takes at most before the first fact came: a subscription that just begins may have missed one."""
AGAIN_SECONDS = 1.0


class Pulse:
    """``async with Pulse(store, types, interval) as pulse``: waits that end with the next fact of these types.

    ``interval``: seconds after which a wait ends in any case. Mark first, then look, then wait: a fact that comes in
    between ends the wait at once.
    """

    def __init__(self, store: LightningStore, types: Sequence[str], interval: float) -> None:
        self._store = store
        self._types = list(types)
        self._interval = interval
        self._live = False
        self._any = asyncio.Event()
        self._of: dict[str, asyncio.Event] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Pulse:
        if self._store.capabilities.get("subscribe", False):
            self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def mark(self, rollout_id: str | None = None) -> asyncio.Event:
        """What the next :meth:`wait` is about: one rollout, or any; its news so far are seen."""
        event = self._any if rollout_id is None else self._of.setdefault(rollout_id, asyncio.Event())
        event.clear()
        return event

    def forget(self, rollout_id: str) -> None:
        """No more waits are about this rollout."""
        self._of.pop(rollout_id, None)

    async def wait(self, mark: asyncio.Event) -> None:
        """Return at the next news, or after the interval."""
        listening = self._task is not None and not self._task.done()
        seconds = min(self._interval, FIRST_SECONDS) if listening and not self._live else self._interval
        try:
            await asyncio.wait_for(mark.wait(), seconds)
        except asyncio.TimeoutError:
            return

    async def _listen(self) -> None:
        while True:
            try:
                async for fact in self._store.subscribe(self._types):
                    self._live = True
                    self._any.set()
                    if fact.rollout_id in self._of:
                        self._of[fact.rollout_id].set()
            except AgentLightningError as error:
                # The waits go on by their interval; facts that were missed meanwhile are seen that way.
                _log.debug("The store tells no facts for now: %s", error)
            self._live = False
            await asyncio.sleep(AGAIN_SECONDS)
