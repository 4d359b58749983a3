"""What an append may carry: the checks that every embedded log makes before it queues a record."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..errors import InvalidInput, LogError, PayloadTooLarge
from .interface import Done, Headers, NewRecord
from .topics import TOPICS

MAX_APPEND_BYTES = 256 * 1024 * 1024
"""Values of one append together. Far above what the store sends (64 MB), far below SQLite's 1 GB per row."""

_ROW_BYTES = 64
_INT64 = 1 << 63
_NO_HEADERS = b"\x90"

_encode = msgspec.msgpack.encode
_decode_headers = msgspec.msgpack.Decoder(tuple[tuple[str, str], ...]).decode


class PendingAppend:
    """One append on its way: checked, its headers encoded, its answer still owed to `done`."""

    __slots__ = ("topic", "partition", "records", "headers", "size", "done", "refused")

    def __init__(
        self,
        topic: str,
        partition: int,
        records: Sequence[NewRecord],
        headers: Sequence[bytes],
        size: int,
        done: Done,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.records = records
        self.headers = headers
        self.size = size
        self.done = done
        self.refused: LogError | None = None


class PendingCommit(msgspec.Struct, frozen=True):
    """A consumer group's offset on its way: everything below `offset` is done."""

    group: str
    topic: str
    partition: int
    offset: int
    size: int = 0


def encode_headers(headers: Headers) -> bytes:
    """Return the headers as a msgpack array of pairs. Raises `InvalidInput` for anything but pairs of texts."""
    if not headers:
        return _NO_HEADERS
    try:
        blob = _encode(headers)
        _decode_headers(blob)  # quicker than looking at every pair from Python
        return blob
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidInput(f"Headers are pairs of texts, not {headers!r}: {error}") from error
    except UnicodeEncodeError as error:
        raise InvalidInput("A header holds a lone surrogate, which UTF-8 cannot carry") from error


def decode_headers(blob: bytes) -> Headers:
    """Return what `encode_headers` was given. Raises `msgspec.MsgspecError` for other bytes."""
    return () if blob == _NO_HEADERS else _decode_headers(blob)


def check_topic(topic: str) -> None:
    """Raise `InvalidInput` unless `topic` is one that an embedded log stores."""
    known = TOPICS.get(topic)
    if known is None:
        raise InvalidInput(f"There is no topic {topic!r}; topics are {', '.join(TOPICS)}")
    if known.derived:
        raise InvalidInput(f"Topic {topic!r} is derived from 'control' here; this log does not store it")


def check_append(topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> PendingAppend:
    """Return the append, checked, its records copied. Raises `InvalidInput` for what no log could store."""
    records = tuple(records)
    if not records:
        raise InvalidInput("An append needs at least one record")
    size = 0
    headers: list[bytes] = []
    for record in records:
        if type(record.value) is not bytes:
            raise InvalidInput(f"The value of a record is bytes, not {type(record.value).__name__}")
        key = record.key
        if type(key) is not str:
            raise InvalidInput(f"The key of a record is a str, not {type(key).__name__}")
        if not key.isascii():
            try:
                key.encode()
            except UnicodeEncodeError as error:
                raise InvalidInput("The key holds a lone surrogate, which UTF-8 cannot carry") from error
        if not -_INT64 <= record.timestamp_us < _INT64:
            raise InvalidInput(f"timestamp_us is a signed 64-bit number, not {record.timestamp_us}")
        blob = encode_headers(record.headers)
        headers.append(blob)
        size += len(record.value) + len(blob) + len(key) + _ROW_BYTES
    if size > MAX_APPEND_BYTES:
        raise PayloadTooLarge(limit=MAX_APPEND_BYTES, size=size)
    return PendingAppend(topic, partition, records, headers, size, done)
