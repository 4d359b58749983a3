"""Our records as Kafka's and back: text keys, text headers, and the writer's microseconds in a header of its own."""

from __future__ import annotations

from typing import Any

from ..interface import NewRecord, Record

MICROS = "us"
"""Header with the writer's clock in microseconds: Kafka's own time stamp has milliseconds, from 1970 on."""

KafkaHeaders = list[tuple[str, bytes]]


def headers_out(record: NewRecord) -> KafkaHeaders:
    """The headers of the Kafka record; readable in any tool."""
    headers = [(name, text.encode()) for name, text in record.headers]
    headers.append((MICROS, b"%d" % record.timestamp_us))
    return headers


def millis(record: NewRecord) -> int:
    """Kafka's time stamp: milliseconds since 1970, never negative."""
    return min(max(record.timestamp_us // 1000, 0), 1 << 42)


def record_in(topic: str, message: Any) -> Record:
    """A consumed message as a record. Foreign records, which any Kafka tool may write, are read as far as they go."""
    stamp = message.timestamp * 1000
    headers: list[tuple[str, str]] = []
    for name, raw in message.headers:
        text = raw.decode("utf-8", "replace") if raw is not None else ""
        if name == MICROS:
            stamp = _number(text, stamp)
        else:
            headers.append((name, text))
    key = message.key
    return Record(
        topic,
        message.partition,
        message.offset,
        key.decode("utf-8", "replace") if key is not None else "",
        message.value if message.value is not None else b"",
        stamp,
        tuple(headers),
    )


def _number(text: str, otherwise: int) -> int:
    try:
        return int(text)
    except ValueError:
        return otherwise
