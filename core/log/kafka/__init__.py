"""The log on Apache Kafka: the only rooms of this package that import aiokafka."""

from .address import KafkaAddress as KafkaAddress
from .log import KafkaLog as KafkaLog
from .log import ReadOnlyKafkaLog as ReadOnlyKafkaLog

__all__ = ["KafkaAddress", "KafkaLog", "ReadOnlyKafkaLog"]
