"""Everything of aiokafka that this room uses, in one place: the library has no type information of its own."""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

RebalanceListener: Any = aiokafka.ConsumerRebalanceListener

__all__ = [
    "AIOKafkaAdminClient",
    "AIOKafkaConsumer",
    "AIOKafkaProducer",
    "AbstractTokenProvider",
    "ConfigResource",
    "ConfigResourceType",
    "ConsumerProtocolMemberAssignment",
    "KafkaError",
    "MessageSizeTooLargeError",
    "NewTopic",
    "OffsetOutOfRangeError",
    "RebalanceListener",
    "RecordListTooLargeError",
    "StickyPartitionAssignor",
    "TopicAlreadyExistsError",
    "TopicAuthorizationFailedError",
    "TopicPartition",
    "for_code",
]
