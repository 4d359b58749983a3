"""The contract suites of the log and of its groups, unchanged, on a real broker."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agentlightning.core.log.interface import Log
from agentlightning.core.log.kafka import KafkaLog
from agentlightning.core.log.kafka.address import KafkaAddress
from agentlightning.core.log.kafka.topic_setup import META, SETUPS, create
from tests.core.log.group_contract import GroupContract
from tests.core.log.log_contract import LogContract


def make_topics(url: str, partitions: int | None = None) -> KafkaAddress:
    """The topics of a new log; `partitions` for each of them, or as many as they have by default."""
    address = KafkaAddress.parse(url)
    asyncio.run(create(address, None if partitions is None else {name: partitions for name in SETUPS if name != META}))
    return address


class OnKafka:
    """Gives `make_log`: each log has a prefix of its own on the shared broker."""

    partitions = 1

    @pytest.fixture(autouse=True)
    def _broker(self, kafka_url: str) -> None:
        self.url = kafka_url

    def make_log(self, folder: Path) -> Log:
        return KafkaLog(make_topics(f"{self.url}-{os.urandom(3).hex()}", self.partitions))


class TestKafkaLog(OnKafka, LogContract):
    pass


class TestKafkaLogWithPartitions(OnKafka, LogContract):
    partitions = 3


class TestKafkaGroups(OnKafka, GroupContract):
    pass


class TestKafkaGroupsWithPartitions(OnKafka, GroupContract):
    partitions = 5
