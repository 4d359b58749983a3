"""Spans where others write to the same log: a number follows from the record's place, by folding up to it.

The single writer of span_log.py knows its place before the log does. Here only the log knows it: a record is appended,
acknowledged, and then everything of its rollout that lies before it is folded, no matter which node wrote it. While no
other writer is seen at a partition, the acknowledgements name every record in it, and nothing is read.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from ...core.clock import Clock
from ...core.errors import UnknownOutcome
from ...core.events.fact import AttemptClaimed
from ...core.fold.apply import Outcome
from ...core.log.interface import EVERYWHERE, Ack, KeyRange, Log, Record
from ...core.log.topics import SPANS, partition_of
from ..replica.command_context import current_call
from .blobs import Blobs
from .span_log import (
    Alive,
    Counter,
    SequenceReserved,
    SpanAdded,
    SpanLog,
    SpanRecord,
    decode,
    id_of,
    record_ids,
    wait_for_all,
)

_UNPLACED = -1
MOST_BEGINS = 100_000


class SharedSpanLog(SpanLog):
    """A `SpanLog` among other writers. Numbers follow the order of acknowledgement; none is given twice.

    A duplicate is appended too and found out by the fold: two writers may send the same span at the same moment.
    """

    def __init__(self, log: Log, blobs: Blobs, clock: Clock | None = None) -> None:
        super().__init__(log, blobs, clock)
        self._asked: dict[str, int | None] = {}
        """Record id -> the number that its place gives it (None: a duplicate), for records under way."""
        self._own = [(end, end) for end in self._end_at_open]
        """For each partition the last offsets (first, end) without a gap that are all of records appended here."""
        self._unfolded: dict[str, int] = {}
        """Rollout -> an offset up to which it has to be read before records from here are folded as they come."""
        self._ends = list(self._end_at_open)
        """For each partition an end that it had before the record of the control log that is folded next."""
        self._begins: OrderedDict[str, int] = OrderedDict()
        """Rollout -> an offset below which it has no span, for rollouts whose first claim was folded here as it came."""
        self._counting = threading.RLock()
        self._counted: dict[int, int] = {}
        """Partition -> the offset up to which its spans were counted."""
        self._different: set[int] = set()
        self.where: Callable[[str], KeyRange | None] = lambda _: KeyRange()
        """Where the spans of a rollout can lie by what is known of it; None for one that is not known."""

    def notice(self, outcome: Outcome) -> None:
        """Follow the control log from the moment of opening on; under the node's lock.

        The watermark of an event was the end of the partition before any later event was written, and a rollout has no
        span before its first claim.
        """
        for one in outcome.facts:
            if isinstance(one, AttemptClaimed) and one.sequence_id == 1 and one.rollout_id is not None:
                with self._lock:
                    self._begins[one.rollout_id] = self._ends[self._partition(one.rollout_id)]
                    if len(self._begins) > MOST_BEGINS:
                        self._begins.popitem(last=False)
        event = outcome.proposal.event if outcome.proposal is not None else None
        watermark = getattr(event, "watermark", None)
        if watermark is not None:
            part = self._partition(getattr(event, "rollout_id", ""))
            self._ends[part] = watermark
            self._log.note_end(SPANS, part, watermark)

    def has_rewards(self, rollout_id: str, watermark: int) -> bool:
        """Where everything below the watermark was folded here, or the rollout's spans can only lie behind it."""
        with self._lock:
            return self._is_folded(rollout_id, watermark)

    def rewards(self, rollout_id: str, watermark: int) -> Mapping[str, float]:
        if not self.has_rewards(rollout_id, watermark):
            return self._fold_on(rollout_id, watermark).final_rewards()
        with self._lock:
            counter = self._counters.get(rollout_id)
            return counter.final_rewards() if counter is not None else {}

    def _partition(self, rollout_id: str) -> int:
        return partition_of(rollout_id, self._log.partitions(SPANS))

    def _range(self, rollout_id: str) -> KeyRange | None:
        known = self.where(rollout_id)
        with self._lock:
            floor = self._begins.get(rollout_id)
        if known is None or floor is None:
            return known
        return KeyRange(first=floor, end=known.end, until_us=known.until_us)

    def _records(self, rollout_id: str, within: KeyRange = EVERYWHERE) -> Sequence[Record]:
        known = self._range(rollout_id) if within is EVERYWHERE else within
        return [] if known is None else self._log.read_key(SPANS, rollout_id, within=known)

    async def _store(self, added: list[SpanAdded], ids: list[str], alive: Alive) -> list[int | None]:
        numbers: list[int | None] = [None] * len(added)
        with self._lock:  # what is known to be a duplicate is not appended
            left = [index for index, one in enumerate(added) if not self._is_stored(one)]
        placed = await self._place([(ids[index], added[index]) for index in left])
        for index, number in zip(left, placed):
            numbers[index] = number
        alive({(one.rollout_id, one.attempt_id) for one, number in zip(added, numbers) if number is not None})
        return numbers

    def _is_stored(self, added: SpanAdded) -> bool:
        counter = self._counters.get(added.rollout_id)
        return counter is not None and (added.attempt_id, added.span_id) in counter.seen

    async def reserve(self, rollout_ids: Sequence[str]) -> list[int]:
        ids = record_ids(current_call(), len(rollout_ids))
        named = [(name, SequenceReserved(rollout_id)) for name, rollout_id in zip(ids, rollout_ids)]
        return [number for number in await self._place(named) if number is not None]

    def count(self) -> int:
        """How many different spans the log holds. Blocks while those are read that it has more than at the last call."""
        with self._counting:
            for part in range(self._log.partitions(SPANS)):
                first, end = self._log.ends(SPANS, part)
                offset = self._counted.get(part, first)
                if offset > end:  # the topic was made anew
                    self._counted.clear()
                    self._different.clear()
                    return self.count()
                while offset < end and (records := self._log.read(SPANS, part, offset, headers=False)):
                    for record in records:
                        added = decode(record.value, record.offset)
                        if isinstance(added, SpanAdded):
                            self._different.add(hash((added.rollout_id, added.attempt_id, added.span_id)))
                    offset = self._counted[part] = records[-1].offset + 1
            return len(self._different)

    async def _place(self, named: Sequence[tuple[str, SpanRecord]]) -> list[int | None]:
        """Append records under their ids, in order for each rollout; the number of each once it is durable."""
        groups: dict[str, list[tuple[str, SpanRecord]]] = {}
        for name, record in named:
            groups.setdefault(record.rollout_id, []).append((name, record))
        ids = [name for name, _ in named]
        with self._lock:
            self._asked.update(dict.fromkeys(ids, _UNPLACED))
        try:
            acks = await wait_for_all([self._append_group(rollout_id, group) for rollout_id, group in groups.items()])
            with self._lock:
                numbers = [self._asked[one] for one in ids]
            if _UNPLACED not in numbers:
                return numbers
            ends = {
                rollout_id: ack.base_offset + ack.count if ack.base_offset >= 0 else None
                for rollout_id, ack in zip(groups, acks)
            }
            return await asyncio.to_thread(self._numbers, ends, ids)
        finally:
            with self._lock:
                for one in ids:
                    self._asked.pop(one, None)

    def _append_group(self, rollout_id: str, group: Sequence[tuple[str, SpanRecord]]) -> asyncio.Future[Ack]:
        records = [self._record(rollout_id, record, name) for name, record in group]
        return self._append(rollout_id, records, acknowledged=lambda ack: self._acknowledged(rollout_id, group, ack))

    def _acknowledged(self, rollout_id: str, group: Sequence[tuple[str, SpanRecord]], ack: Ack) -> None:
        """Fold records of this process where the log has put them, unless something before them has to be read first.

        Under the lock; answers of a partition come in the order of its offsets.
        """
        base, end = ack.base_offset, ack.base_offset + ack.count
        if base < 0:
            return
        part = self._partition(rollout_id)
        first, own_end = self._own[part]
        if base < own_end:  # the topic was made anew
            self._counters.clear()
            self._begins.clear()
            self.born.clear()
            self._hot = 0
        folded = self._upto(rollout_id) <= base and self._is_folded(rollout_id, base)
        self._own[part] = (first if base == own_end else base, end)
        if not folded:
            self._unfolded[rollout_id] = end
            return
        counter = self._counters.setdefault(rollout_id, Counter())
        self._fold_in(rollout_id, counter, ((base + at, *one) for at, one in enumerate(group)), end)

    def _upto(self, rollout_id: str) -> int:
        """The offset below which nothing of a rollout is left to fold, as far as it is known; under the lock."""
        counter = self._counters.get(rollout_id)
        return counter.upto if counter is not None else self._begins.get(rollout_id, -1)

    def _is_folded(self, rollout_id: str, offset: int) -> bool:
        """Whether everything of a rollout below an offset of its partition is folded. Under the lock."""
        upto = self._upto(rollout_id)
        if upto >= offset:
            return True
        if rollout_id not in self._counters and rollout_id not in self.born:
            return False  # what was folded of it may have been dropped
        first, end = self._own[self._partition(rollout_id)]
        return first <= upto and offset <= end and self._unfolded.get(rollout_id, 0) <= upto

    def _numbers(self, ends: dict[str, int | None], ids: list[str]) -> list[int | None]:
        """The numbers of records that were appended; `ends` says for each rollout where its last one ends."""
        for last_try in (False, True):
            for rollout_id, end in ends.items():
                self._fold_on(rollout_id, end)
            with self._lock:
                numbers = [self._asked[one] for one in ids]
                if _UNPLACED not in numbers:
                    return numbers
                if not last_try:  # nothing of it lies behind what was folded: the topic was made anew
                    for rollout_id in ends:
                        self._begins.pop(rollout_id, None)
                        self._forget_counter(rollout_id)
        raise UnknownOutcome("the log acknowledged a span and does not show it; its number cannot be known")

    def _forget_counter(self, rollout_id: str) -> None:
        counter = self._counters.pop(rollout_id, None)
        if counter is not None:
            self._hot -= len(counter.seen)

    def _fold_on(self, rollout_id: str, end: int | None) -> Counter:
        """Fold what was appended to a rollout since it was last looked at, up to `end` where that is known.

        Read without the lock: the log's thread takes it to answer an append, and a read may need that thread.
        """
        with self._lock:
            known = self._counters.get(rollout_id)
            after = known.upto - 1 if known is not None else -1
        within = KeyRange() if after >= 0 else self._range(rollout_id) or KeyRange()
        within = KeyRange(first=within.first, end=end, since_us=within.since_us)
        records = self._log.read_key(SPANS, rollout_id, after=after, within=within)
        with self._lock:
            counter = self._counters.get(rollout_id)
            if after >= 0 and (counter is None or counter.upto <= after):
                return self._fold_on(rollout_id, end)  # it was dropped meanwhile, and what lies before `after` with it
            if counter is None:
                counter = self._counters[rollout_id] = Counter()
                # One that was dropped may have had everything from here; what lies behind `end` of it is to be read too.
                own_end = self._own[self._partition(rollout_id)][1]
                self._unfolded[rollout_id] = max(self._unfolded.get(rollout_id, 0), own_end)
            placed = [
                (record.offset, id_of(record), decode(record.value, record.offset))
                for record in records
                if record.offset >= counter.upto and (end is None or record.offset < end)
            ]
            upto = end if end is not None else placed[-1][0] + 1 if placed else counter.upto
            self._fold_in(rollout_id, counter, placed, upto)
            return counter

    def _fold_in(
        self, rollout_id: str, counter: Counter, placed: Iterable[tuple[int, str, SpanRecord]], upto: int
    ) -> None:
        """Fold the (offset, id, record)s that follow on what is folded of a rollout, up to an offset. Under the lock."""
        before = len(counter.seen)
        for _, name, record in placed:
            number = counter.step(record, name)
            if self._asked.get(name) == _UNPLACED:  # the first record of an id decides, a second one is its duplicate
                self._asked[name] = number
        counter.upto = max(counter.upto, upto)
        self._hot += len(counter.seen) - before
        self.born.discard(rollout_id)
        if self._unfolded.get(rollout_id, counter.upto + 1) <= counter.upto:
            del self._unfolded[rollout_id]
        self._counters.move_to_end(rollout_id)
        self._evict()

    def _forget(self, rollout_id: str, spans: int) -> None:
        """A failed append was never counted here: counters hold what the log shows and nothing else."""
