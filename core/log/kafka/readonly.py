"""Looking at a log on Kafka: nothing is created or written, no group is joined, and no copy is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...errors import InvalidInput
from ..interface import Done, Membership, NewRecord, Record
from ..local.group_commit import check_offset
from ..topics import TOPICS
from .address import KafkaAddress
from .group_lag import GroupLag, lags
from .log import KafkaLog
from .log_identity import Verified, read_identity, verify
from .topic_setup import Survey

logger = logging.getLogger(__name__)

ASK_SECONDS = 60.0


class ReadOnlyKafkaLog(KafkaLog):
    """A log on Kafka that this process only looks at, also while others write it.

    It shows every topic as the broker has it: older records of a key until they are compacted away, and `tasks` and
    `facts` as they were published. `log_id` is empty before the log was opened for writing once.
    """

    def __init__(self, address: str | KafkaAddress) -> None:
        self.findings: tuple[str, ...] = ()
        parsed = address if isinstance(address, KafkaAddress) else KafkaAddress.parse(address)
        # Copies that a running node keeps in `state` are its own.
        super().__init__(replace(parsed, state=None))

    async def _insist(self) -> str:
        """Whoever only looks is told at once that the broker is away."""
        return await self._open()

    async def _identify(self, reader: Any, found: Survey) -> Verified:
        """What is not whole is told and shown as it is; `findings` has it for `agl log check`."""
        known = await read_identity(self.address, reader)
        if known is None:
            return Verified("", found.partitions, {})
        verified = await verify(self.address, reader, known, found.partitions, adopt=False)
        self.findings = verified.problems
        return verified

    def _tell(self) -> None:
        for finding in self.findings:
            logger.warning("The log is not whole: %s", finding)

    def partitions(self, topic: str) -> int:
        """See `Log.partitions`; `tasks` and `facts` too."""
        self._known(topic)
        return self._partitions[topic]

    def _known(self, topic: str) -> None:
        if topic not in TOPICS:
            raise InvalidInput(f"There is no topic {topic!r}; topics are {', '.join(TOPICS)}")

    def _check_place(self, topic: str, partition: int) -> None:
        self._known(topic)
        if not 0 <= partition < self._partitions[topic]:
            raise InvalidInput(f"there is no partition {partition}; {topic} has {self._partitions[topic]}")

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        self._check_place(topic, partition)
        check_offset(offset)
        self._check_open()
        return self._loop.call(self._reader(topic, partition).read(offset, max_records))

    async def _ends_of(self, topic: str, partition: int) -> tuple[int, int]:
        place = self._place(topic, partition)
        return await self._ends.first(place), await self._ends.end(place)

    def groups(self) -> list[GroupLag]:
        """Every consumer group that reads topics of this log, and how far behind it is; sorted by name."""
        self._check_open()
        return self._loop.call(lags(self.address), ASK_SECONDS)

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        """Raises `InvalidInput`, always: this log is only read."""
        raise InvalidInput(f"{self.url} is open for reading only")

    def publish(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        """Raises `InvalidInput`, always: this log is only read."""
        raise InvalidInput(f"{self.url} is open for reading only")

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        """Raises `InvalidInput`, always: who only looks moves nobody's partitions."""
        raise InvalidInput(f"{self.url} is open for reading only; members of a group open it for writing")
