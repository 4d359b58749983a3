"""Spans: appended to their topic, numbered and made unique by their place in it, read back by rollout.

Memory stays flat: the log holds the spans, RAM only a counter and the span ids of rollouts that were written to lately.
A counter that was dropped is folded again from the rollout's records.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import msgspec

from ...core.clock import Clock, SystemClock
from ...core.errors import LogCorrupt, LogError
from ...core.events import payload
from ...core.events.payload import INLINE_LIMIT_BYTES
from ...core.fold.state import Rollout
from ...core.ids import uuid7_hex
from ...core.log.interface import EVERYWHERE, Ack, KeyRange, Log, NewRecord, Record
from ...core.log.topics import SPANS, partition_of
from ...core.model.span import Span
from ...core.model.status import FINISHED
from ..replica.command_context import Call, Delivery, answer_of, current_call
from ..replica.validation import CheckedSpan
from .blobs import Blobs

Number = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]


class SpanAdded(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="t", tag="span"):
    """A span of an attempt. `sequence_id` 0 or less: the rollout's counter gives the next number. `body`: user data.

    `reward`: the one that the body holds (core/spans/rewards.py), None where it holds none.
    """

    rollout_id: str
    attempt_id: str
    span_id: str
    body: msgspec.Raw
    sequence_id: Number = 0
    reward: float | None = None


class SequenceReserved(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="t", tag="sequence"):
    """A writer took `count` numbers of the rollout's counter. `first` 0 or less: those that come next.

    `back`: it returns them, the end of a block, and has given none of them out.
    """

    rollout_id: str
    count: Annotated[int, msgspec.Meta(ge=1, le=2**31)] = 1
    first: Number = 0
    back: bool = False


SpanRecord = SpanAdded | SequenceReserved
encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[SpanRecord] = msgspec.json.Decoder(SpanRecord)


def decode(value: bytes, offset: int = -1) -> SpanRecord:
    """Read the value of a record. Raises `LogCorrupt`."""
    try:
        return _decoder.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LogCorrupt(f"the span record at {offset} cannot be read: {error}", position=offset, topic="spans") from None


def id_of(record: Record) -> str:
    """The id that the record's writer gave it, which names the call it came from."""
    return next((value for name, value in record.headers if name == "id"), "")


def last_sign_us(rollout: Rollout) -> int:
    """When a finished rollout was last known to be worked on, by the writers' clocks."""
    times = [rollout.ended_us or 0, *(one.ended_us or 0 for one in rollout.attempts)]
    return max(*times, *(one.beat_us or 0 for one in rollout.attempts))


def key_range(rollout: Rollout) -> KeyRange:
    """Where the spans of a rollout lie: not before its first attempt, and of a finished one not after its last sign of life.

    A span that comes later has a sign of life of its own in the control log.
    """
    if not rollout.attempts:
        return KeyRange(end=0)
    since_us = rollout.attempts[0].started_us
    if rollout.status not in FINISHED:
        return KeyRange(since_us=since_us)
    end = max(one.watermark or 0 for one in rollout.attempts)
    return KeyRange(end=end, since_us=since_us, until_us=last_sign_us(rollout))


class Counter:
    """What the records of one rollout have used up: the last number given and the spans seen.

    A span's identity is (attempt_id, span_id). Explicit numbers raise the counter; a duplicate changes nothing.
    """

    __slots__ = ("last", "over", "reserved", "rewards", "seen", "spare", "total_bytes", "upto", "waiting")

    def __init__(self) -> None:
        self.upto = 0
        """Everything of the rollout below this offset is folded; kept only by who shares the log with other writers."""
        self.last = 0
        self.reserved: dict[str, int] = {}
        """Record id -> the first number that a reservation of this id took: a repeated one answers it again."""
        self.over = False
        """Whether its rollout has its outcome: few numbers are asked for after it, and what is left of a block is left out."""
        self.spare = 0
        """How many numbers up to `last` this process has reserved and not given out."""
        self.waiting: list[asyncio.Future[Ack]] | None = None
        """Those who wait for the newest block of reserved numbers; None once the log has it."""
        self.rewards: dict[str, tuple[int, float]] = {}
        """Attempt -> number and reward of its last reward span, in the order of the numbers."""
        self.seen: set[tuple[str, str]] = set()
        self.total_bytes = 0

    def step(self, record: SpanRecord, record_id: str = "") -> int | None:
        """Return the number of the span or the first reserved one; None for a duplicate span and for numbers that come back."""
        if isinstance(record, SequenceReserved):
            first = record.first if record.first > 0 else self.last + 1
            end = first + record.count - 1
            if record.back:
                self.last = first - 1 if self.last == end else self.last
                return None
            self.last = max(self.last, end)
            return self.reserved.setdefault(record_id, first) if record_id else first
        key = (record.attempt_id, record.span_id)
        if key in self.seen:
            return None
        self.seen.add(key)
        self.total_bytes += memoryview(record.body).nbytes
        number = record.sequence_id if record.sequence_id > 0 else self.last + 1
        self.last = max(self.last, number)
        if record.reward is not None and number >= self.rewards.get(record.attempt_id, (0, 0.0))[0]:
            self.rewards[record.attempt_id] = (number, record.reward)
        return number

    def next(self) -> int:
        """The number after the last one that was given, from the reserved block where there is one."""
        if not self.spare:
            return self.last + 1
        self.spare -= 1
        return self.last - self.spare

    def skip(self, number: int) -> None:
        """A caller chose a number itself: those up to it are not given any more."""
        self.spare = max(min(self.spare, self.last - number), 0)

    def final_rewards(self) -> dict[str, float]:
        """Attempt -> its final reward; what `find_final_reward` gives for its spans as they are read."""
        return {attempt_id: reward for attempt_id, (_, reward) in self.rewards.items()}


def fold_spans(records: Iterable[SpanRecord]) -> list[tuple[int, SpanAdded]]:
    """(sequence id, span) of one rollout's records in log order, without duplicates."""
    counter = Counter()
    spans: list[tuple[int, SpanAdded]] = []
    for record in records:
        number = counter.step(record)
        if number is not None and isinstance(record, SpanAdded):
            spans.append((number, record))
    return spans


logger = logging.getLogger(__name__)

HOT_SPANS = 200_000
"""Span ids kept in memory for the duplicate check, over all rollouts; some 30 MB."""
HOT_COUNTERS = 20_000
BLOCK_NUMBERS = 32
"""Numbers of a rollout that are reserved together: not each costs a commit then. A crash leaves out what is left of them."""

SpanKey = tuple[str, str]
"""(attempt_id, span_id): what distinguishes the spans of a rollout."""


Alive = Callable[[set[tuple[str, str]]], None]
"""Called with (rollout_id, attempt_id) of attempts that showed a sign of life."""


class SpansEnd(NamedTuple):
    """Where the spans of a rollout end at some moment, and the final reward of each attempt that has one up to there."""

    watermark: int
    rewards: Mapping[str, float]


class SpanLog:
    """The spans of one log. Thread-safe; the one writer gives each span its number before it appends it."""

    def __init__(self, log: Log, blobs: Blobs, clock: Clock | None = None) -> None:
        self._log = log
        self._clock = clock if clock is not None else SystemClock()
        self._blobs = blobs
        self._lock = threading.RLock()
        self._counters: OrderedDict[str, Counter] = OrderedDict()
        self._hot = 0
        self._added = 0
        self._before: int | None = None
        self._end_at_open = [log.ends(SPANS, part)[1] for part in range(log.partitions(SPANS))]
        self._under_way: dict[str, dict[SpanKey, list[asyncio.Future[bool]]]] = {}
        """Rollout -> its spans that the log has not answered for yet, each with those who sent the same one meanwhile."""
        self._appends: dict[str, int] = {}
        """Rollout -> how many of its appends are under way; exactly those of `_under_way`."""
        self._readings: dict[tuple[asyncio.AbstractEventLoop, str, int], asyncio.Future[Mapping[str, float]]] = {}
        self._floors: dict[str, int] = {}
        """Rollout -> the last number that was given out, where its counter was dropped while the log does not show that yet."""
        self._delivery = Delivery()
        """Used under the lock."""
        self.born: set[str] = set()

    def _counter(self, rollout_id: str) -> Counter:
        counter = self._counters.get(rollout_id)
        if counter is not None:
            self._counters.move_to_end(rollout_id)
            return counter
        counter = Counter()
        if rollout_id in self.born:  # created by this process and never written to: the log has nothing of it
            self.born.discard(rollout_id)
        else:
            for record in self._log.read_key(SPANS, rollout_id):
                counter.step(decode(record.value, record.offset), id_of(record))
        counter.last = max(counter.last, self._floors.pop(rollout_id, 0))
        self._counters[rollout_id] = counter
        self._hot += len(counter.seen)
        self._evict()
        return counter

    def _evict(self) -> None:
        """Drop the counters unused for longest. One whose records are under way stays: the log does not show it yet."""
        while len(self._counters) > 1 and (self._hot > HOT_SPANS or len(self._counters) > HOT_COUNTERS):
            oldest = next((one for one in self._counters if one not in self._under_way), None)
            if oldest is None or oldest == next(reversed(self._counters)):
                return
            self._drop(oldest)

    def _drop(self, rollout_id: str) -> None:
        """Drop a counter. What is left of its block goes back; without that record, for which nobody waits, it is left out."""
        counter = self._counters.pop(rollout_id)
        self._hot -= len(counter.seen)
        if counter.spare and not counter.over:
            back = SequenceReserved(rollout_id, counter.spare, counter.last - counter.spare + 1, back=True)
            record = self._record(rollout_id, back, uuid7_hex())
            self._log.append(SPANS, partition_of(rollout_id, self._log.partitions(SPANS)), [record], _left_out)

    def close(self) -> None:
        """Return the numbers that were reserved and not given out; the log is closed after this."""
        with self._lock:
            for rollout_id in [one for one in self._counters if one not in self._under_way]:
                self._drop(rollout_id)

    def completed(self, rollout_id: str) -> None:
        """A rollout has its outcome."""
        with self._lock:
            self.born.discard(rollout_id)
            if rollout_id in self._counters:
                self._counters[rollout_id].over = True

    def _forget(self, rollout_id: str, spans: int) -> None:
        """An append failed: its spans do not count, and the counter is what the log says."""
        with self._lock:
            self._added -= spans
            dropped = self._counters.pop(rollout_id, None)
            if dropped is not None:
                self._hot -= len(dropped.seen)
                if self._appends[rollout_id] > 1:  # what else is under way has numbers, and the log does not show them yet
                    self._floors[rollout_id] = dropped.last - dropped.spare

    def _records(self, rollout_id: str, within: KeyRange = EVERYWHERE) -> Sequence[Record]:
        """All records of a rollout, in order. Blocks for the I/O."""
        return self._log.read_key(SPANS, rollout_id, within=within)

    async def add(self, spans: Sequence[CheckedSpan], alive: Alive) -> list[Span | None]:
        """Append spans of known attempts, in order; None for each duplicate. Returns after they are durable.

        A duplicate of a span that is still under way waits for it, and takes its place where it did not get there. `alive` is
        called with the attempts of those that are stored, as soon as what it appends comes behind them in the log.
        """
        bodies = [self._blobs.encode(one.body, "a span") for one in spans]
        added: list[SpanAdded] = []
        for (span, _, reward), body in zip(spans, bodies):
            if len(body) > INLINE_LIMIT_BYTES:
                body = await self._blobs.settle(body)
            raw = payload.inline(body)
            added.append(SpanAdded(span.rollout_id, span.attempt_id, span.span_id, raw, span.sequence_id, reward))
        call = current_call()
        ids = record_ids(call, len(spans))
        numbers = await self._store(added, ids, alive)
        if call.repeatable and None in numbers:  # perhaps this very call stored them, and its answer was lost
            doubles = [(index, one) for index, one in enumerate(added) if numbers[index] is None]
            for index, one in doubles:
                numbers[index] = await asyncio.to_thread(self._stored_as, one, ids[index])
            alive({(one.rollout_id, one.attempt_id) for index, one in doubles if numbers[index] is not None})
        return [None if number is None else numbered(one.span, number) for one, number in zip(spans, numbers)]

    async def _store(self, added: list[SpanAdded], ids: list[str], alive: Alive) -> list[int | None]:
        """Append spans under these record ids and return their numbers, None for each duplicate."""
        numbers: list[int | None] = [None] * len(added)
        left = list(range(len(added)))
        while left:
            waits, doubles = self._add_once(added, ids, left, numbers)
            alive({(added[index].rollout_id, added[index].attempt_id) for index in left if numbers[index] is not None})
            await wait_for_all(waits)
            left = [index for index, first in doubles if not await first]
        return numbers

    def _stored_as(self, added: SpanAdded, record_id: str) -> int | None:
        """The number of a span if the record of this id is the one that stored it, else None. Blocks for the I/O."""
        counter = Counter()
        for record in self._records(added.rollout_id):
            seen = decode(record.value, record.offset)
            number = counter.step(seen)
            if isinstance(seen, SpanAdded) and (seen.attempt_id, seen.span_id) == (added.attempt_id, added.span_id):
                return number if id_of(record) == record_id else None
        return None

    def _add_once(
        self, added: list[SpanAdded], ids: list[str], which: list[int], numbers: list[int | None]
    ) -> tuple[list[asyncio.Future[Ack]], list[tuple[int, asyncio.Future[bool]]]]:
        """Append those of `added` and note their numbers; what to wait for.

        The second list has the duplicates of spans that are under way, each with whether the log got that span.
        """
        groups: dict[str, list[int]] = {}
        for index in which:
            rollout_id = added[index].rollout_id
            groups.setdefault(rollout_id, []).append(index)
        waits: list[asyncio.Future[Ack]] = []
        doubles: list[tuple[int, asyncio.Future[bool]]] = []
        loop = asyncio.get_running_loop()
        with self._lock:
            for rollout_id, group in groups.items():
                counter = self._counter(rollout_id)
                flying = self._under_way.get(rollout_id, {})
                mine: dict[SpanKey, list[asyncio.Future[bool]]] = {}
                records: list[NewRecord] = []
                for index in group:
                    one = added[index]
                    key = (one.attempt_id, one.span_id)
                    first = flying.get(key, mine.get(key))
                    if first is not None:
                        doubles.append((index, loop.create_future()))
                        first.append(doubles[-1][1])
                        continue
                    if key in counter.seen:
                        numbers[index] = None
                        continue
                    if one.sequence_id > 0:
                        counter.skip(one.sequence_id)
                    else:
                        one = msgspec.structs.replace(one, sequence_id=counter.next())
                    numbers[index] = counter.step(one)
                    mine[key] = []
                    records.append(self._record(rollout_id, one, ids[index]))
                if records:
                    self._hot += len(records)
                    self._added += len(records)
                    waits.append(self._append(rollout_id, records, mine))
        return waits, doubles

    async def reserve(self, rollout_ids: Sequence[str]) -> list[int]:
        """Take the next number of each rollout's counter, in order; nobody is given it again, also after a crash.

        A repeated call is answered with the numbers of its first try, as long as the counter is in memory; after that, where
        its first try reserved a block.
        """
        call = current_call()
        ids = record_ids(call, len(rollout_ids))
        wanted: dict[str, list[int]] = {}
        for index, rollout_id in enumerate(rollout_ids):
            wanted.setdefault(rollout_id, []).append(index)
        waits: list[asyncio.Future[Ack]] = []
        numbers = [0] * len(rollout_ids)
        with self._lock:
            for rollout_id, indexes in wanted.items():
                counter, name = self._counter(rollout_id), ids[indexes[0]]
                first = counter.reserved.get(name)
                if counter.waiting is not None:
                    waits.append(asyncio.get_running_loop().create_future())
                    counter.waiting.append(waits[-1])
                if first is None:
                    first = counter.last - counter.spare + 1
                    if counter.spare < len(indexes):
                        waits.append(self._reserve(rollout_id, counter, len(indexes), name))
                    counter.spare -= len(indexes)
                    if call.repeatable:
                        counter.reserved[name] = first
                for number, index in enumerate(indexes, first):
                    numbers[index] = number
        await wait_for_all(waits)
        return numbers

    def _reserve(self, rollout_id: str, counter: Counter, count: int, name: str) -> asyncio.Future[Ack]:
        """Append a block, so that `count` numbers are there. It has the call's id where all numbers of the call are in it."""
        block = SequenceReserved(rollout_id, max(count - counter.spare, BLOCK_NUMBERS), counter.last + 1)
        record = self._record(rollout_id, block, uuid7_hex() if counter.spare else name)
        counter.last += block.count
        counter.spare += block.count
        counter.waiting = []
        return self._append(rollout_id, [record], reserving=counter)

    def _record(self, rollout_id: str, record: SpanRecord, record_id: str) -> NewRecord:
        """The record to append; its header `id` says which call it came from."""
        kind = "span" if isinstance(record, SpanAdded) else "sequence"
        now_us = int(self._clock.time() * 1_000_000)
        return NewRecord(rollout_id, encode(record), now_us, (("t", kind), ("id", record_id)))

    def _append(
        self,
        rollout_id: str,
        records: list[NewRecord],
        keys: dict[SpanKey, list[asyncio.Future[bool]]] | None = None,
        reserving: Counter | None = None,
        acknowledged: Callable[[Ack], None] | None = None,
    ) -> asyncio.Future[Ack]:
        """`keys`: the spans among the records, each with those who wait for whether it got into the log.

        `reserving`: the counter for which this is the newest block of numbers. `acknowledged` is called under the lock, in the
        order of the offsets, before anybody learns that the records are durable.
        """
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        ours = keys if keys is not None else {}
        sharing = None if reserving is None else reserving.waiting

        def done(result: Ack | LogError) -> None:
            failed = isinstance(result, LogError)
            with self._lock:
                delivery = self._delivery
                delivery.put(future, result, failed)
                if failed:
                    self._forget(rollout_id, len(ours))
                elif acknowledged is not None:
                    acknowledged(result)
                self._landed(rollout_id, ours)
                for one in (one for waiting in ours.values() for one in waiting):
                    delivery.put(one, not failed)
                for waiting in sharing or ():
                    delivery.put(waiting, result, failed)
                if reserving is not None and reserving.waiting is sharing:
                    reserving.waiting = None
                delivery.flush()

        with self._lock:
            flying = self._under_way.setdefault(rollout_id, {})
            flying.update(ours)
            self._appends[rollout_id] = self._appends.get(rollout_id, 0) + 1
        self._log.append(SPANS, partition_of(rollout_id, self._log.partitions(SPANS)), records, done)
        return future

    def _landed(self, rollout_id: str, keys: Iterable[SpanKey]) -> None:
        """An append was answered: its spans are not under way any more."""
        flying = self._under_way[rollout_id]
        for key in keys:
            del flying[key]
        self._appends[rollout_id] -= 1
        if not self._appends[rollout_id]:
            del self._appends[rollout_id], self._under_way[rollout_id]

    def count(self) -> int:
        """How many different spans the log holds. Blocks while those of earlier runs are counted, once."""
        if self._before is None:
            counters: dict[str, Counter] = {}
            before = 0
            for part, end in enumerate(self._end_at_open):
                offset = self._log.ends(SPANS, part)[0]
                while offset < end:
                    records = self._log.read(SPANS, part, offset, headers=False)
                    if not records:
                        break
                    for record in records:
                        if record.offset < end:
                            added = decode(record.value, record.offset)
                            number = counters.setdefault(record.key, Counter()).step(added)
                            before += number is not None and isinstance(added, SpanAdded)
                    offset = records[-1].offset + 1
            self._before = before
        return self._before + self._added

    def ask_watermark(self, rollout_id: str, done: Callable[[int | LogError], None]) -> None:
        """Give `done` the end offset of the rollout's span partition: everything acknowledged so far lies before it."""
        self._log.ask_end(SPANS, partition_of(rollout_id, self._log.partitions(SPANS)), done)

    async def watermark(self, rollout_id: str) -> int:
        """As `ask_watermark`, for who can wait. Raises `LogError` where the log does not answer."""
        return await answer_of(partial(self.ask_watermark, rollout_id))

    def has_rewards(self, rollout_id: str, watermark: int) -> bool:
        """Whether `rewards` answers from memory."""
        with self._lock:
            return rollout_id in self._counters or rollout_id in self.born

    def rewards(self, rollout_id: str, watermark: int) -> Mapping[str, float]:
        """Attempt -> the final reward among its spans below `watermark`. Blocks where they are not in memory."""
        with self._lock:
            return {} if rollout_id in self.born else self._counter(rollout_id).final_rewards()

    async def end(self, rollout_id: str) -> SpansEnd:
        """What the event that ends an attempt says of its spans. Raises `LogError` where the log does not answer."""
        watermark = await self.watermark(rollout_id)
        # Calls for one rollout share a reading, so that they go on in the order in which they came.
        key = (asyncio.get_running_loop(), rollout_id, watermark)
        reading = self._readings.get(key)
        if reading is None:
            if self.has_rewards(rollout_id, watermark):
                return SpansEnd(watermark, self.rewards(rollout_id, watermark))
            reading = asyncio.ensure_future(asyncio.to_thread(self.rewards, rollout_id, watermark))
            self._readings[key] = reading
            reading.add_done_callback(lambda _: self._readings.pop(key, None))
        return SpansEnd(watermark, await asyncio.shield(reading))

    def lost(self, rollout_id: str, created_us: int, watermark: int) -> bool:
        """Whether acknowledged spans of a rollout are gone, or may be: a topic made anew, or pruned by its age.

        `watermark`: the highest that an end of the rollout carries, 0 for none. `created_us`: when it was made.
        """
        part = partition_of(rollout_id, self._log.partitions(SPANS))
        first, end = self._log.ends(SPANS, part)
        if end < watermark:
            return True
        if first == 0:
            return False
        oldest = self._log.read(SPANS, part, first, 1, headers=False)
        # A record without a time cannot say that it is older than the rollout: in doubt, something is missing.
        return not oldest or not 0 < oldest[0].timestamp_us < created_us

    def read(
        self, rollout_id: str, lost: list[str] | None = None, *, within: KeyRange = EVERYWHERE
    ) -> list[Span]:
        """All spans of a rollout in log order, numbered, without duplicates. Blocks for the I/O.

        One whose payload the log lost is left out, with the reason in `lost`. What lies outside of `within` may be left out.
        """
        found = fold_spans(decode(record.value, record.offset) for record in self._records(rollout_id, within))
        return spans_of(found, self._blobs, lost)


def _left_out(result: Ack | LogError) -> None:
    if isinstance(result, LogError):
        logger.debug("Numbers of spans are left out: %s", result)


async def wait_for_all(waits: list[asyncio.Future[Ack]]) -> list[Ack]:
    """Wait until every append is answered, and return the answers; raise the first error."""
    if len(waits) < 2:
        return [await one for one in waits]
    answers = await asyncio.gather(*waits, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if isinstance(answer, Ack)]


def record_ids(call: Call, count: int) -> list[str]:
    """Ids of the records of one call: a repeated call gives its records the same ones."""
    base = call.command_id if call.repeatable else uuid7_hex()
    return [f"{base}/{index}" for index in range(count)]


def numbered(span: Span, number: int) -> Span:
    """The span, which is the store's own copy, with the number that it was given."""
    span.sequence_id = number
    return span


def spans_of(found: Sequence[tuple[int, SpanAdded]], blobs: Blobs, lost: list[str] | None) -> list[Span]:
    """The spans of records, as `SpanLog.read` gives them."""
    spans: list[Span] = []
    for number, added in found:
        try:
            spans.append(_span_of(number, added, blobs))
        except LogCorrupt as error:
            logger.warning("Span %s of rollout %s cannot be shown: %s", added.span_id, added.rollout_id, error)
            if lost is not None:
                lost.append(error.message)
    return spans


def _span_of(number: int, added: SpanAdded, blobs: Blobs) -> Span:
    """The span of a record, under the number that its place gave it."""
    body = payload.decode(bytes(added.body), blobs.fetch)
    return Span.model_validate(
        {
            **body,
            "rollout_id": added.rollout_id,
            "attempt_id": added.attempt_id,
            "span_id": added.span_id,
            "sequence_id": number,
        }
    )
