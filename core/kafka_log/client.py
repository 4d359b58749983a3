"""Everything of aiokafka that this room uses, in one place: the library has no type information of its own."""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, conn
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
_conn: Any = conn
create_conn = _conn.create_conn
get_ip_port_afi = _conn.get_ip_port_afi

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
