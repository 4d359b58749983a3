"""Payloads that are too large for a record: written under their hash before the event that refers to them."""

from __future__ import annotations

from ...core.clock import Clock, SystemClock
from ...core.errors import LogCorrupt
from ...core.events import payload
from ...core.log.interface import Log, NewRecord
from ...core.log.topics import BLOBS
from ..replica.command_context import append_and_wait

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
        record = NewRecord(payload.digest_of(data), data, int(self._clock.time() * 1_000_000))
        await append_and_wait(self._log, BLOBS, [record])
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
