"""What a node does for and with the other nodes of its log: signs of life, leadership, publication.

A log with one writer has none of this. The timekeeper asks here whether it may count silence, whether it may act, and how
long it leaves a deadline to the node that leads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ...core.errors import AgentLightningError
from ...core.fold.apply import Outcome
from ...core.log.interface import Log
from ..facts.feed import FactFeed
from ..facts.publisher import Publisher, PublishingLog
from ..replica.node import Node
from .contact import Contact
from .heartbeats import Liveness
from .leader_election import Leadership
from .node_gossip import Signs

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""How long after a deadline those that do not lead do what the leader has not done."""
STEP_SECONDS = 0.5
CLOSE_SECONDS = 5.0


class Peers:
    """One node among others. `start` when the node is open, `close` before its log is."""

    def __init__(self, log: Log, node: Node, liveness: Liveness, facts: FactFeed, contact: Contact) -> None:
        self.signs = Signs(log, node, liveness, contact)
        self.leadership = Leadership(log, node.partition, node.writer)
        publishes = isinstance(log, PublishingLog)
        self.publisher = Publisher(log, node, facts, lambda: self.leadership.leads) if publishes else None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agl-peers", daemon=True)

    def start(self, now: Callable[[], float]) -> None:
        """Follow and join the others. `now`: the time on which silence is measured; not under the node's lock."""
        self.signs.start(now)
        self._thread.start()
        if self.publisher is not None:
            self.publisher.start()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self.signs.mend()
                self.leadership.step(STEP_SECONDS)
            except AgentLightningError as error:
                logger.warning("This node cannot hear the others yet: %s", error)
                self._closed.wait(STEP_SECONDS)
            except Exception:  # without the others a node still serves; what is wrong is recorded, and tried again
                logger.exception("This node has lost touch with the others; it tries again.")
                self._closed.wait(STEP_SECONDS)

    def heard(self, outcome: Outcome) -> None:
        """A record was folded; under the node's lock."""
        if self.publisher is not None:
            self.publisher.heard(outcome)

    def grace_seconds(self, now: float) -> float | None:
        """How long this node leaves a deadline to others; None: it must not act at all. `now` is monotonic."""
        if not self.signs.current(now):
            return None
        return 0.0 if self.leadership.leads else GRACE_SECONDS

    def close(self, finish: bool = True) -> None:
        """Leave the others; `finish`: publish first what is accepted. Takes seconds at most; not under the node's lock."""
        if self.publisher is not None:
            self.publisher.close(finish)
        self._closed.set()
        self.leadership.close()
        self.signs.close()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
