"""Payloads that are too large for a record: written under their hash before the event that refers to them."""

from __future__ import annotations

import asyncio

from ...core.clock import Clock, SystemClock
from ...core.errors import LogCorrupt, LogError
from ...core.events import payload
from ...core.log.interface import Ack, Log, NewRecord
from ...core.log.topics import BLOBS, partition_of
from ..replica.command_context import Delivery

NO_LIMIT_MB = 1e9
"""For readers: the limit is one on what is written."""


class Blobs:
    """Stores and fetches payloads by content hash. Storing the same content twice is harmless."""

    def __init__(self, log: Log, max_payload_mb: float, clock: Clock | None = None) -> None:
        self._log = log
        self._clock = clock if clock is not None else SystemClock()
        self.max_mb = max_payload_mb

    def encode(self, value: object, what: str) -> bytes:
        """Encode user data within the limit. Raises `InvalidPayload`, `PayloadTooLarge`."""
        return payload.encode(value, what, self.max_mb)

    async def settle(self, data: bytes, limit_bytes: int = payload.INLINE_LIMIT_BYTES) -> bytes:
        """Return `data` itself, or, where it is too large for an event, a reference to the blob that is now durable."""
        if len(data) <= limit_bytes:
            return data
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(result: Ack | LogError) -> None:
            delivery = Delivery()
            delivery.put(future, result if isinstance(result, LogError) else None, isinstance(result, LogError))
            delivery.flush()

        key = payload.digest_of(data)
        record = NewRecord(key, data, int(self._clock.time() * 1_000_000))
        self._log.append(BLOBS, partition_of(key, self._log.partitions(BLOBS)), [record], done)
        await future
        return payload.refer(data)

    def fetch(self, reference: payload.Reference) -> bytes:
        """The bytes behind a reference. Raises `LogCorrupt` where they are missing or not those."""
        records = self._log.read_key(BLOBS, reference.digest)
        if not records or payload.digest_of(records[-1].value) != reference.digest:
            raise LogCorrupt(
                f"the blob {reference.digest[:12]} ({reference.size:,} bytes) is missing from the log; restore topic blobs",
                topic=BLOBS,
            )
        return records[-1].value
