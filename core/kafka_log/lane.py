"""Writing: one lane a partition, in which whatever waits goes out as one batch while nothing else is under way.

A batch is what Kafka writes whole or not at all, so the records of one append are never torn apart. A lane sends its next
batch when the one before has its answer: appends are answered in their order, and batches grow by themselves under load.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import LogError, StorageError, UnknownOutcome
from ..log import Ack
from ..log_records import PendingAppend
from .client import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError, TopicAuthorizationFailedError
from .records import headers_out, millis

logger = logging.getLogger(__name__)

BATCH_BYTES = 900_000
"""Appends that wait together go out together up to this size; a larger append goes alone."""

NOT_WRITTEN = (
    TopicAuthorizationFailedError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)
"""The broker's answers that mean: nothing of it is in the log. After every other error it may be."""


class Lane:
    """The appends to one partition, on the log's loop. `producer` gives the producer, `failed` is told what it failed with."""

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        wait_seconds: float,
        producer: Callable[[], Awaitable[Any]],
        failed: Callable[[Any, BaseException], None],
        before: Callable[[PendingAppend], Awaitable[None] | None],
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.task: asyncio.Task[None] | None = None
        self._wait_seconds = wait_seconds
        self._producer = producer
        self._failed = failed
        self._before = before
        self._waiting: deque[PendingAppend] = deque()

    def put(self, pending: PendingAppend) -> None:
        """Take an append; the loop's thread only."""
        self._waiting.append(pending)
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self._work())

    async def drained(self) -> None:
        """Wait until nothing is under way."""
        while self.task is not None:
            await asyncio.wait([self.task])

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
                offset = outcome if isinstance(outcome, int) else -1
                for pending in batch:
                    if isinstance(outcome, LogError):
                        answer(pending, outcome)
                    else:
                        answer(pending, Ack(offset, len(pending.records)))
                        offset += len(pending.records) if offset >= 0 else 0
                batch = []
        finally:  # with something left only where the log is closed under it
            left = UnknownOutcome(f"the log was closed before records for {self.topic} were acknowledged")
            for pending in [*batch, *self._waiting]:
                answer(pending, left)
            self._waiting.clear()
            self.task = None

    def _next(self) -> list[PendingAppend]:
        batch = [self._waiting.popleft()]
        size = batch[0].size
        while self._waiting and size + self._waiting[0].size <= BATCH_BYTES:
            size += self._waiting[0].size
            batch.append(self._waiting.popleft())
        return batch

    async def _send(self, batch: list[PendingAppend]) -> int | LogError:
        """The batch's base offset (-1 where the broker cannot tell), or why it has none."""
        waited = self._before(batch[0])
        if waited is not None:
            await waited
        using: list[Any] = []
        try:
            return await asyncio.wait_for(self._write(batch, using), self._wait_seconds)
        except NOT_WRITTEN as error:
            return StorageError(f"the broker refused records for {self.topic}: {error}; nothing was written")
        except (TimeoutError, asyncio.TimeoutError):
            return UnknownOutcome(
                f"the broker did not acknowledge records for {self.topic} within {self._wait_seconds:g} s; "
                "whether they took effect is not known"
            )
        except (KafkaError, OSError) as error:
            for producer in using:
                self._failed(producer, error)
            return UnknownOutcome(
                f"writing to {self.topic} failed ({type(error).__name__}: {error}); whether it took effect is not known"
            )


    async def _write(self, batch: list[PendingAppend], using: list[Any]) -> int | LogError:
        producer = await self._producer()
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


def answer(pending: PendingAppend, outcome: Ack | LogError) -> None:
    """Tell who appended; a callback that raises is its own problem."""
    try:
        pending.done(outcome)
    except Exception:
        logger.exception("The callback of an append raised; the log goes on.")
