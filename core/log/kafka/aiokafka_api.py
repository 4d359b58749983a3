"""Everything of aiokafka that this room uses, in one place: the library has no type information of its own."""

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
    """A consumer that finds brokers again whose addresses all changed."""

    def __init__(self, *topics: str, **options: Any) -> None:
        super().__init__(*topics, **options)  # pyright: ignore[reportUnknownMemberType]
        _ask_bootstrap_again(self._client)

    def update_metadata(self) -> None:
        """Ask the brokers now who leads which partition; does not wait for the answer."""
        self._client.force_metadata_update()


class AIOKafkaProducer(_Producer):
    """A producer that finds brokers again whose addresses all changed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]
        _ask_bootstrap_again(self.client)


METADATA_SECONDS = 2.0
METADATA_TRIES = 3


def _ask_bootstrap_again(client: Any) -> None:
    """The library asks the brokers that it knows, one after the other in any order, and no other ones.

    A broker that does not answer delays that by a few seconds at most here. Where none of them answers, the servers of the
    address are asked again, as other clients do.
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
    "UnsupportedSaslMechanismError",
    "create_conn",
    "for_code",
    "get_ip_port_afi",
]
