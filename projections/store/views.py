"""Rollouts as calls read them: copied under the node's lock, and only after it fetched, unpacked, decoded and shown.

Nothing under that lock waits for a disk or a network, and nothing there costs more than a copy: every other call of the
node waits meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any, TypeVar

from ...core.events import payload
from ...core.fold.state import Attempt, Rollout

T = TypeVar("T")

Peeked = Rollout | bytes | None
"""A rollout as it was at one moment: a copy of a hot one, the hash of an archived one, None for an unknown one."""
SLICE = 256
"""So many rollouts are copied under the lock at a time."""


class Views:
    """The part of an engine that gives rollouts to those who read them."""

    node: Any
    cold: Any

    def beat_us(self, rollout: Rollout, attempt: Attempt) -> int | None:
        """The last sign of life of an attempt that is known beside the log; under the node's lock."""
        raise NotImplementedError

    def check_index(self, rollout_id: str) -> None:
        """Raise where an archived rollout is not in the index because that is still being made."""

    def copied(self, rollout: Rollout) -> Rollout:
        """A copy with its attempts, whose last signs of life are those of the overlay; under the node's lock."""
        made = copy(rollout)
        made.attempts = []
        for attempt in rollout.attempts:
            beat_us = self.beat_us(rollout, attempt)
            attempt = copy(attempt)
            if beat_us is not None and (attempt.beat_us is None or beat_us > attempt.beat_us):
                attempt.beat_us = beat_us
            made.attempts.append(attempt)
        return made

    def peek(self, rollout_id: str) -> Peeked:
        """What is known of a rollout at this moment; under the node's lock."""
        rollout = self.node.state.rollouts.get(rollout_id)
        return self.node.state.archived.get(rollout_id) if rollout is None else self.copied(rollout)

    def load(self, rollout_id: str) -> Rollout | None:
        """A copy of the rollout, hot or archived. Blocks for the I/O, so never under the node's lock.

        Raises `Rebuilding` while the index of finished rollouts is being made.
        """
        while True:
            with self.node.lock:
                peeked = self.peek(rollout_id)
            if not isinstance(peeked, bytes):
                return peeked
            rollout = self.cold.get(rollout_id, peeked)
            with self.node.lock:
                if rollout is not None:
                    return self.copied(rollout)
                if self.node.state.archived.get(rollout_id) == peeked:
                    self.check_index(rollout_id)
                    return None

    async def resolve(self, rollout_id: str, peeked: Peeked) -> Rollout | None:
        """The rollout that was seen under the lock; an archived one is read from the index."""
        return await asyncio.to_thread(self.load, rollout_id) if isinstance(peeked, bytes) else peeked

    async def read(self, rollout_id: str) -> Rollout | None:
        """As `load`, without blocking the event loop."""
        with self.node.lock:
            peeked = self.peek(rollout_id)
        return await self.resolve(rollout_id, peeked)

    async def read_many(self, rollout_ids: Sequence[str]) -> list[Rollout]:
        """Copies of those that there are, in this order."""
        found: dict[str, Peeked] = {}
        for start in range(0, len(rollout_ids), SLICE):
            with self.node.lock:
                found.update((one, self.peek(one)) for one in rollout_ids[start : start + SLICE])
        loaded = {one.rollout_id: one for one in await self.resolve_all(found)}
        return [loaded[one] for one in rollout_ids if one in loaded]

    async def resolve_all(self, found: dict[str, Peeked]) -> list[Rollout]:
        """Those that there are of what was seen under the lock, in order."""
        archived = [one for one, peeked in found.items() if isinstance(peeked, bytes)]
        if archived:
            loaded = await asyncio.to_thread(lambda: [self.load(one) for one in archived])
            found = {**found, **dict(zip(archived, loaded))}
        return [one for one in found.values() if isinstance(one, Rollout)]


async def shown(make: Callable[[], T], rollouts: Iterable[Rollout]) -> T:
    """What `make` makes of these rollouts; in a thread where it has to fetch a payload."""
    return await asyncio.to_thread(make) if any(map(_refers, rollouts)) else make()


def _refers(rollout: Rollout) -> bool:
    """Whether a payload of the rollout lies in blobs."""
    parts = [rollout.input, rollout.metadata, *(attempt.metadata for attempt in rollout.attempts)]
    return any(part is not None and payload.is_reference(part) for part in parts)
