"""Everything of aiokafka that this folder uses, in one place: the library has no type information of its own.

The private attributes `_client` of a consumer and `_metadata_update` of a client are used because aiokafka 0.12 to 0.14 has no
public way: a consumer gives out neither its client nor a request for new metadata, and no option makes a client ask the
bootstrap servers again (KIP-899) once the brokers that it knows are gone; tests/system/kafka/test_broker_moves.py shows it.
"""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiokafka
from aiokafka import TopicPartition, conn
from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    RecordListTooLargeError,
    SaslAuthenticationFailed,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest

RebalanceListener: Any = aiokafka.ConsumerRebalanceListener
_Consumer: Any = aiokafka.AIOKafkaConsumer
_Producer: Any = aiokafka.AIOKafkaProducer
_conn: Any = conn
create_conn = _conn.create_conn
get_ip_port_afi = _conn.get_ip_port_afi


class AIOKafkaConsumer(_Consumer):
    """A consumer that finds brokers again after all of their addresses changed."""

    def __init__(self, *topics: str, **options: Any) -> None:
        super().__init__(*topics, **options)  # pyright: ignore[reportUnknownMemberType]
        _rebootstrap(self._client)

    def leader(self, place: TopicPartition) -> int | None:
        """The broker that leads a partition, as far as this client knows."""
        leader = self._client.cluster.leader_for_partition(place)
        return None if leader is None or leader < 0 else int(leader)

    def update_metadata(self) -> None:
        """Request the leaders of the partitions from the brokers; does not wait for the answer."""
        self._client.force_metadata_update()


class AIOKafkaProducer(_Producer):
    """A producer that finds brokers again after all of their addresses changed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]
        _rebootstrap(self.client)


METADATA_SECONDS = 2.0
METADATA_TRIES = 3


def _rebootstrap(client: Any) -> None:
    """Where no known broker answers a metadata request, request it from the bootstrap servers, as other clients do.

    aiokafka requests metadata from known brokers only. A broker that does not answer delays it by a few seconds at most.
    """
    update: Callable[[Any, Any], Awaitable[bool]] = client._metadata_update

    async def known(cluster: Any, topics: Any) -> bool:
        for _ in range(METADATA_TRIES):
            try:
                return await asyncio.wait_for(update(cluster, topics), METADATA_SECONDS)
            except asyncio.TimeoutError:
                continue
        return False

    async def updated(cluster: Any, topics: Any) -> bool:
        if await known(cluster, topics):
            return True
        try:
            await client.bootstrap()
        except (KafkaError, OSError, asyncio.TimeoutError):
            return False
        return await known(cluster, topics)

    client._metadata_update = updated


__all__ = [
    "AIOKafkaAdminClient",
    "AIOKafkaConsumer",
    "AIOKafkaProducer",
    "AbstractTokenProvider",
    "ClusterAuthorizationFailedError",
    "ConfigResource",
    "ConfigResourceType",
    "ConsumerProtocolMemberAssignment",
    "GroupAuthorizationFailedError",
    "IllegalSaslStateError",
    "KafkaConnectionError",
    "KafkaError",
    "MessageSizeTooLargeError",
    "MetadataRequest",
    "NewTopic",
    "OffsetOutOfRangeError",
    "RebalanceListener",
    "RecordListTooLargeError",
    "SaslAuthenticationFailed",
    "StickyPartitionAssignor",
    "TopicAlreadyExistsError",
    "TopicAuthorizationFailedError",
    "TopicPartition",
    "UnknownTopicOrPartitionError",
    "UnsupportedSaslMechanismError",
    "create_conn",
    "for_code",
    "get_ip_port_afi",
]
