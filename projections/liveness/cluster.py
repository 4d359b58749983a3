"""What a node does for and with the other nodes of its log: signs of life, leadership, publication.

A log with one writer has none of this. The timekeeper asks here whether it may count silence, whether it may act, and how
long it leaves a deadline to the node that leads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ...core.errors import AgentLightningError, LogClosed, LogError
from ...core.fold.apply import Outcome
from ...core.log.interface import Log, Membership
from ...core.log.topics import CONTROL, LEADER_GROUP
from ..facts.feed import FactFeed
from ..facts.publisher import Publisher, PublishingLog
from ..replica.node import Node
from .heartbeats import Heartbeats
from .node_gossip import LogContact, NodeGossip

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class Leadership:
    """One node's membership. `step` is called again and again by one thread; `leads` may be read by any."""

    def __init__(self, log: Log, member_id: str) -> None:
        self._log = log
        self._place = (CONTROL, 0)
        self._member_id = member_id
        self._member: Membership | None = None
        self._failing = False
        self._closed = threading.Event()
        self.leads = False
        self.joined = threading.Event()
        """Set once the group has assigned the leader for the first time."""

    def step(self, wait_seconds: float) -> None:
        """Stay a member for so long and look who leads. Outages are ridden out: meanwhile this node does not lead."""
        try:
            member = self._member if self._member is not None else self._join()
            member.poll(1, wait_seconds)
            self._led(self._place in member.assignment())
            self._failing = False
        except AgentLightningError as error:
            self._led(False)
            if not self._failing and not self._closed.is_set():
                logger.warning("The group %r does not answer (%s); this node acts after the others.", LEADER_GROUP, error)
            self._failing = True
            self._leave()
            self._closed.wait(RETRY_SECONDS)

    def _join(self) -> Membership:
        member = self._member = self._log.join(LEADER_GROUP, [CONTROL], self._member_id)
        if self._closed.is_set():
            self._leave()
            raise LogClosed("this node is leaving")
        member.pause()
        self._led(self._place in member.assignment())
        self.joined.set()
        return member

    def _led(self, leads: bool) -> None:
        if leads != self.leads:
            self.leads = leads
            logger.info("This node %s.", "keeps the time" if leads else "does not keep the time any more")

    def _leave(self) -> None:
        member, self._member = self._member, None
        if member is not None:
            try:
                member.close()
            except LogError as error:
                logger.debug("Leaving group %s: %s", LEADER_GROUP, error)

    def close(self) -> None:
        """Leave the group, so that another leads at once. Idempotent; a call of `step` that is under way returns."""
        self._closed.set()
        self.leads = False
        self._leave()


logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""How long after a deadline those that do not lead do what the leader has not done."""
STEP_SECONDS = 0.5
CLOSE_SECONDS = 5.0


class Cluster:
    """One node among others. `start` when the node is open, `close` before its log is."""

    def __init__(self, log: Log, node: Node, liveness: Heartbeats, facts: FactFeed, contact: LogContact) -> None:
        self.gossip = NodeGossip(log, node, liveness, contact)
        self.leadership = Leadership(log, node.writer)
        publishes = isinstance(log, PublishingLog)
        self.publisher = Publisher(log, node, facts, lambda: self.leadership.leads) if publishes else None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agl-peers", daemon=True)

    def start(self, now: Callable[[], float]) -> None:
        """Follow and join the others. `now`: the time on which silence is measured; not under the node's lock."""
        self.gossip.start(now)
        self._thread.start()
        if self.publisher is not None:
            self.publisher.start()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self.gossip.mend()
                self.leadership.step(STEP_SECONDS)
            except AgentLightningError as error:
                logger.warning("This node cannot hear the others yet: %s", error)
                self._closed.wait(STEP_SECONDS)
            except Exception:  # without the others a node still serves; what is wrong is recorded, and tried again
                logger.exception("This node has lost touch with the others; it tries again.")
                self._closed.wait(STEP_SECONDS)

    def folded(self, outcome: Outcome) -> None:
        """A record was folded; under the node's lock."""
        if self.publisher is not None:
            self.publisher.folded(outcome)

    def grace_seconds(self, now: float) -> float | None:
        """How long this node leaves a deadline to others; None: it must not act at all. `now` is monotonic."""
        if not self.gossip.current(now):
            return None
        return 0.0 if self.leadership.leads else GRACE_SECONDS

    def close(self, finish: bool = True) -> None:
        """Leave the others; `finish`: publish first what is accepted. Takes seconds at most; not under the node's lock."""
        if self.publisher is not None:
            self.publisher.close(finish)
        self._closed.set()
        self.leadership.close()
        self.gossip.close()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
