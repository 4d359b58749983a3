"""The image of a node's state for a snapshot, made in slices while the node goes on folding."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ...core.events.codec import rollout_of
from ...core.events.schema import RolloutsEnqueued
from ...core.fold.apply import Outcome
from ...core.fold.state import dump, pack_rollout
from .node import Node

SLICE_ROLLOUTS = 128
"""So many rollouts are packed under the node's lock at a time: some tenths of a millisecond."""


class StateImage:
    """Makes one image.

    Each record names the rollout that it changes. What was packed before such a record is packed again, the last few at
    the moment that the image is of, when the other tables are copied too. They are encoded after the lock was released.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._packed: dict[str, bytes] = {}
        self._changed: set[str] = set()

    def make(self) -> tuple[bytes, tuple[int, int, bytes]]:
        """The image, and (position, next control offset, fingerprint) of its moment. Not under the node's lock."""
        node = self._node
        with node.lock:
            node.listeners.append(self._heard)
            left = list(node.state.rollouts)
        try:
            while True:
                for start in range(0, len(left), SLICE_ROLLOUTS):
                    with node.lock:
                        self._pack(left[start : start + SLICE_ROLLOUTS])
                    time.sleep(0)  # whoever waits for the lock goes first
                with node.lock:
                    before, left = len(left), list(self._changed)
                    if len(left) <= SLICE_ROLLOUTS or len(left) >= before:  # or more changes than this can keep up with
                        self._pack(left)
                        packed = [self._packed[rollout_id] for rollout_id in node.state.rollouts]
                        tables, offset = node.state.without_rollouts(), node.next_offset
                        break
        finally:
            with node.lock:
                node.listeners.remove(self._heard)
        return dump(tables, packed), (tables.position, offset, tables.fingerprint)

    def _heard(self, outcome: Outcome) -> None:
        """A record was folded: what it names counts as changed, whatever became of it. Under the lock."""
        if outcome.proposal is None:
            return
        event = outcome.proposal.event
        if isinstance(event, RolloutsEnqueued):
            self._changed.update(new.rollout_id for new in event.rollouts)
        elif (rollout_id := rollout_of(event)) is not None:
            self._changed.add(rollout_id)

    def _pack(self, rollout_ids: Iterable[str]) -> None:
        """Those that are hot still, as they are now. Under the lock."""
        rollouts = self._node.state.rollouts
        for rollout_id in rollout_ids:
            self._changed.discard(rollout_id)
            rollout = rollouts.get(rollout_id)
            if rollout is not None:
                self._packed[rollout_id] = pack_rollout(rollout)
