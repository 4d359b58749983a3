"""Batches on their way to several partitions: sent in waves of bounded size, and waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from ...core.errors import LogError, UnknownOutcome
from ...core.log.interface import Ack, Log, NewRecord
from ...core.log.topics import FACTS, TASKS

CHUNK_BYTES = 500_000
ANSWER_SECONDS = 120.0
"""Far above the time after which a log answers that it does not know."""

Batch = dict[tuple[str, int], list[NewRecord]]
"""(topic, partition) -> records, in order."""


class Outbox:
    """`log` for what is stored, `publisher` for what is published."""

    def __init__(self, log: Log, publisher: Any) -> None:
        self._log = log
        self._publisher = publisher

    def send(self, batch: Batch, done: Callable[[Ack | LogError], None]) -> None:
        """Send without waiting; `done` is called once a partition. Raises what an append raises at once."""
        for (topic, partition), records in batch.items():
            put = self._publisher.publish if topic in (TASKS, FACTS) else self._log.append
            put(topic, partition, records, done)

    def waves(self, batch: Batch) -> Iterator[Batch]:
        """Pieces of bounded size; the next one of a partition must not go out before the one before was acknowledged."""
        pieces = {place: list(_pieces(records)) for place, records in batch.items()}
        for number in range(max(map(len, pieces.values()), default=0)):
            yield {place: split[number] for place, split in pieces.items() if number < len(split)}


def _pieces(records: list[NewRecord]) -> Iterator[list[NewRecord]]:
    piece: list[NewRecord] = []
    size = 0
    for record in records:
        size += len(record.value)
        if piece and size > CHUNK_BYTES:
            yield piece
            piece, size = [], len(record.value)
        piece.append(record)
    if piece:
        yield piece


def settle(outbox: Outbox, batch: Batch) -> None:
    """Send and wait until everything is acknowledged. Raises the first `LogError`; some of it may have been written then."""
    if not batch:
        return
    gate = threading.Condition()
    results: list[Ack | LogError] = []

    def done(result: Ack | LogError) -> None:
        with gate:
            results.append(result)
            gate.notify_all()

    outbox.send(batch, done)
    with gate:
        if not gate.wait_for(lambda: len(results) == len(batch), ANSWER_SECONDS):
            raise UnknownOutcome("the log does not say whether it has what was published")
    for result in results:
        if isinstance(result, LogError):
            raise result
