"""Writing: one appender a partition, in which whatever waits goes out as one batch while nothing else is under way.

A batch is what Kafka writes whole or not at all, so the records of one append are never torn apart. An appender sends its next
batch when the one before has its answer: appends are answered in their order, and batches grow by themselves under load.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

from ...errors import LogError, StorageError, UnknownOutcome
from ..append_checks import PendingAppend
from ..interface import Ack, Done, NewRecord
from .address import KafkaAddress
from .aiokafka_api import (
    AIOKafkaProducer,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from .partition_reader import MICROS, stop_quietly
from .topic_setup import MAX_BLOB_BYTES

logger = logging.getLogger(__name__)

BATCH_BYTES = 900_000
"""Appends that wait together go out together up to this size; a larger append goes alone."""

TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
"""With `TopicAuthorizationFailedError` the answers that mean: nothing of it is in the log. After every other it may be."""

BATCH_OVERHEAD_BYTES = 64 << 10
"""What a batch may have beside its values."""


def headers_out(record: NewRecord) -> list[tuple[str, bytes]]:
    """The headers of the Kafka record; readable in any tool."""
    headers = [(name, text.encode()) for name, text in record.headers]
    headers.append((MICROS, b"%d" % record.timestamp_us))
    return headers


def millis(record: NewRecord) -> int:
    """Kafka's time stamp: milliseconds since 1970, never negative."""
    return min(max(record.timestamp_us // 1000, 0), 1 << 42)


class Producer:
    """A client for writing, made at its first use and again after an error that it does not retry; on the log's loop."""

    def __init__(self, address: KafkaAddress, compression: Literal["zstd"] | None) -> None:
        self._address = address
        self._compression = compression
        self._client: Any = None
        self._lock = asyncio.Lock()
        self._stopping: asyncio.Task[None] | None = None

    async def get(self) -> Any:
        """The client, connected."""
        async with self._lock:
            if self._client is None:
                client = AIOKafkaProducer(
                    **self._address.client(),
                    acks="all",
                    enable_idempotence=True,
                    compression_type=self._compression,
                    max_batch_size=MAX_BLOB_BYTES,
                    max_request_size=MAX_BLOB_BYTES + BATCH_OVERHEAD_BYTES,
                )
                try:
                    await client.start()
                except BaseException:
                    await stop_quietly(client)
                    raise
                self._client = client
            return self._client

    def failed(self, client: Any, error: BaseException) -> None:
        """A client that met an error which it does not retry is not used again: its sequence numbers may have a hole."""
        if client is self._client:
            logger.warning("The producer failed (%s: %s); another one takes its place.", type(error).__name__, error)
            self._client = None
            self._stopping = asyncio.get_running_loop().create_task(stop_quietly(client))

    async def stop(self) -> None:
        """Close the client."""
        await stop_quietly(self._client)


class Appender:
    """The appends to one partition, on the log's loop. `written` is given each batch with its offset, before it is answered."""

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        wait_seconds: float,
        producer: Producer,
        written: Callable[[int, Sequence[PendingAppend]], None],
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.task: asyncio.Task[None] | None = None
        self._wait_seconds = wait_seconds
        self._producer = producer
        self._written = written
        self._batch_bytes = min(batch_bytes, BATCH_BYTES)
        self._waiting: deque[PendingAppend] = deque()
        self._answered = asyncio.Event()
        self.own = (0, 0)
        """The last offsets (first, end) without a gap that were all written here."""

    def put(self, pending: PendingAppend) -> None:
        """Take an append; the loop's thread only."""
        self._waiting.append(pending)
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self._work())

    async def owns(self, first: int, end: int, wait_seconds: float) -> bool:
        """Whether all these offsets were written here; the batch under way may need a moment to have its answer."""
        if self.task is not None and self.own[1] < end:
            self._answered.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._answered.wait(), wait_seconds)
        return self.own[0] <= first and end <= self.own[1]

    async def abandon(self, wait_seconds: float) -> None:
        """Finish what is under way within so many seconds; what is not finished then is answered with `UnknownOutcome`."""
        task = self.task
        if task is None:
            return
        await asyncio.wait([task], timeout=wait_seconds)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])

    async def _work(self) -> None:
        batch: list[PendingAppend] = []
        try:
            while self._waiting:
                batch = self._next()
                outcome = await self._send(batch)
                if outcome is None:  # too large together: each append for itself
                    self._waiting.extendleft(reversed(batch))
                    self._batch_bytes = 0
                    batch = []
                    continue
                self._answer(batch, outcome)
                batch = []
        finally:  # with something left only where the log is closed under it
            left = UnknownOutcome(f"the log was closed before records for {self.topic} were acknowledged")
            for pending in [*batch, *self._waiting]:
                answer(pending.done, left)
            self._waiting.clear()
            self.task = None

    def _answer(self, batch: list[PendingAppend], outcome: int | LogError) -> None:
        self._answered.set()
        if isinstance(outcome, LogError):
            for pending in batch:
                answer(pending.done, outcome)
            return
        if outcome >= 0:
            end = outcome + sum(len(pending.records) for pending in batch)
            self.own = (self.own[0] if outcome == self.own[1] else outcome, end)
            self._written(outcome, batch)
        offset = outcome
        for pending in batch:
            answer(pending.done, Ack(offset, len(pending.records)))
            offset += len(pending.records) if offset >= 0 else 0

    def _next(self) -> list[PendingAppend]:
        batch = [self._waiting.popleft()]
        size = batch[0].size
        while self._waiting and size + self._waiting[0].size <= self._batch_bytes:
            size += self._waiting[0].size
            batch.append(self._waiting.popleft())
        return batch

    async def _send(self, batch: list[PendingAppend]) -> int | LogError | None:
        """The batch's base offset (-1 where the broker cannot tell), or why it has none. None: it is too large together."""
        using: list[Any] = []
        try:
            return await asyncio.wait_for(self._write(batch, using), self._wait_seconds)
        except TOO_LARGE:
            if len(batch) > 1:
                return None
            return StorageError(
                f"{self.topic} takes no batch as large as this append ({batch[0].size:,} bytes before compression); set its "
                "max.message.bytes as `agl kafka init` says; nothing was written"
            )
        except TopicAuthorizationFailedError as error:
            return StorageError(f"the broker refused records for {self.topic}: {error}; nothing was written")
        except (TimeoutError, asyncio.TimeoutError):
            return UnknownOutcome(
                f"the broker did not acknowledge records for {self.topic} within {self._wait_seconds:g} s; "
                "whether they took effect is not known"
            )
        except (KafkaError, OSError) as error:
            for producer in using:
                self._producer.failed(producer, error)
            return UnknownOutcome(
                f"writing to {self.topic} failed ({type(error).__name__}: {error}); whether it took effect is not known"
            )


    async def _write(self, batch: list[PendingAppend], using: list[Any]) -> int | LogError:
        producer = await self._producer.get()
        using.append(producer)
        builder = producer.create_batch()
        for pending in batch:
            for record in pending.records:
                fits = builder.append(
                    key=record.key.encode(), value=record.value, timestamp=millis(record), headers=headers_out(record)
                )
                if fits is None:
                    return StorageError("an append is larger than a batch of Kafka may be; nothing was written")
        builder.close()
        sent = await producer.send_batch(builder, self.topic, partition=self.partition)
        done = await asyncio.shield(sent)
        return int(done.offset) if done.offset is not None else -1


def answer(done: Done, outcome: Ack | LogError) -> None:
    """Tell who appended; a callback that raises is its own problem."""
    try:
        done(outcome)
    except Exception:
        logger.exception("The callback of an append raised; the log goes on.")
