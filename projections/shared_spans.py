"""Spans where others write to the same log: a number is read from the record's place, by folding up to it.

The single writer of span_book.py knows its place before the log does. Here only the log knows it: a record is appended,
acknowledged, and then everything of its rollout that lies before it is folded, whoever wrote it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.clock import Clock
from ..core.errors import UnknownOutcome
from ..core.ids import uuid7_hex
from ..core.log import Log, NewRecord, Record
from ..core.spans import Span
from ..core.topics import SPANS
from .arguments import CheckedSpan
from .blobs import Blobs
from .span_book import SpanBook, numbered, record_ids, wait_for_all
from .span_records import Counter, SequenceReserved, decode

_UNPLACED = -1


class SharedSpanBook(SpanBook):
    """A `SpanBook` among other writers. Numbers follow the order of acknowledgement; none is given twice.

    A duplicate is appended too and found out by the fold: two writers may send the same span at the same moment.
    """

    def __init__(self, log: Log, blobs: Blobs, clock: Clock | None = None) -> None:
        super().__init__(log, blobs, clock)
        self._asked: dict[str, int | None] = {}
        """Record id -> the number that its place gives it (None: a duplicate), for records under way."""

    async def add(self, spans: Sequence[CheckedSpan]) -> list[Span | None]:
        ids = record_ids(uuid7_hex(), len(spans))
        added = await self._to_add(spans)
        numbers = await self._place(ids, [self._record(one.rollout_id, one, id) for one, id in zip(added, ids)])
        return [None if number is None else numbered(one.span, number) for one, number in zip(spans, numbers)]

    async def reserve(self, rollout_ids: Sequence[str]) -> list[int]:
        ids = record_ids(uuid7_hex(), len(rollout_ids))
        records = [self._record(one, SequenceReserved(one), id) for one, id in zip(rollout_ids, ids)]
        return [number for number in await self._place(ids, records) if number is not None]

    def count(self) -> int:
        """How many different spans the log holds. Blocks while all of them are read: others may have added some."""
        with self._lock:
            self._before, self._added = None, 0
            self._end_at_open = [self._log.ends(SPANS, part)[1] for part in range(self._log.partitions(SPANS))]
        return super().count()

    async def _place(self, ids: list[str], records: list[NewRecord]) -> list[int | None]:
        """Append, in order for each rollout, and return the number of the record of each id once it is durable."""
        groups: dict[str, list[NewRecord]] = {}
        for record in records:
            groups.setdefault(record.key, []).append(record)
        with self._lock:
            self._asked.update(dict.fromkeys(ids, _UNPLACED))
        try:
            await wait_for_all([self._append(rollout_id, group) for rollout_id, group in groups.items()])
            return await asyncio.to_thread(self._numbers, list(groups), ids)
        finally:
            with self._lock:
                for one in ids:
                    self._asked.pop(one, None)

    def _numbers(self, rollout_ids: list[str], ids: list[str]) -> list[int | None]:
        for rollout_id in rollout_ids:
            self._fold_on(rollout_id)
        with self._lock:
            numbers = [self._asked[one] for one in ids]
        if _UNPLACED in numbers:
            raise UnknownOutcome("the log acknowledged a span and does not show it; its number cannot be known")
        return numbers

    def _fold_on(self, rollout_id: str) -> None:
        """Fold what was appended to a rollout since it was last looked at.

        Read without the lock: the log's thread takes it to answer an append, and a read may need that thread.
        """
        with self._lock:
            known = self._counters.get(rollout_id)
            after = known.folded if known is not None else -1
        records = self._log.read_key(SPANS, rollout_id, after=after)
        with self._lock:
            counter = self._counters.get(rollout_id)
            if counter is None:
                if after >= 0:  # it was dropped meanwhile, and what lies before `after` with it
                    return self._fold_on(rollout_id)
                counter = self._counters[rollout_id] = Counter()
            self._counters.move_to_end(rollout_id)
            before = len(counter.seen)
            for record in records:
                if record.offset <= counter.folded:
                    continue  # somebody else was here in between
                number = counter.step(decode(record.value, record.offset))
                counter.folded = record.offset
                told = _id_of(record)
                if self._asked.get(told) == _UNPLACED:  # the first record of an id decides, a second one is its duplicate
                    self._asked[told] = number
            self._hot += len(counter.seen) - before
            self._evict()

    def _forget(self, rollout_id: str, spans: int) -> None:
        """A failed append was never counted here: counters hold what the log shows and nothing else."""


def _id_of(record: Record) -> str:
    return next((value for name, value in record.headers if name == "id"), "")
