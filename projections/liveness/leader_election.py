"""Who keeps time first: the nodes of a log are members of one group, and whoever has their partition leads.

Leadership saves work and nothing depends on it: what two leaders write is fenced, and where there is none the others act
after a grace. The group reads nothing; it only deals the partitions of the control topic among the nodes that live.
"""

from __future__ import annotations

import logging
import threading

from ...core.errors import AgentLightningError, LogClosed, LogError
from ...core.log.interface import Log, Membership
from ...core.log.topics import CONTROL, LEADER_GROUP

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class Leadership:
    """One node's membership. `step` is called again and again by one thread; `leads` may be read by any."""

    def __init__(self, log: Log, partition: int, member_id: str) -> None:
        self._log = log
        self._place = (CONTROL, partition)
        self._member_id = member_id
        self._member: Membership | None = None
        self._failing = False
        self._closed = threading.Event()
        self.leads = False
        self.joined = threading.Event()
        """Set once the group has said for the first time who leads."""

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
        """Leave the group, so that another leads at once. Idempotent; whoever is in `step` comes back."""
        self._closed.set()
        self.leads = False
        self._leave()
