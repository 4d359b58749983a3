"""Publishes what the fold accepted: hints to `tasks`, facts to `facts`, what was given up to `dead`.

Only a log on a broker has these topics; elsewhere they are derived while they are read (derived_topic.py), with the same ids in
the same order of each key. A hint is written, without waiting, by the node that appended the event: a lost one is repaired
by stealing. Facts and dead letters are written by the node that leads, at least once: it waits for the acknowledgements,
and then writes down how far it got, so the next leader begins there or a little before. Within a partition no fact is
published before those of lower positions were, so a reader that drops what is not above the highest it has seen in the
partition, or what has an id that it knows, gets every fact once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import msgspec

from ...core.errors import AgentLightningError, LogError, UnknownOutcome
from ...core.events import payload
from ...core.events.codec import Undecodable, UnknownEvent, decode
from ...core.events.fact import ENDS, STATUS_OF, RolloutClaimable, RolloutCompleted
from ...core.fold.apply import Outcome
from ...core.fold.state import Attempt
from ...core.log.dead_letter import RECORD, ROLLOUT, DeadLetter, encode_letter, record_letter_id, rollout_letter_id
from ...core.log.interface import Ack, Done, Log, NewRecord, Record
from ...core.log.topics import CONTROL, DEAD, FACTS, SNAPSHOTS, TASKS, partition_of
from ..replica.fold_cursor import FoldCursor
from ..replica.node import Node
from ..replica.snapshots import read_snapshot
from ..spans.blobs import Blobs
from .derived_topic import READ_RECORDS, FactBatch, batch_of, plain_facts_of, record_of
from .feed import FactFeed

logger = logging.getLogger(__name__)

CURSOR_KEY = "facts"
"""Of the record in `snapshots` that says how far facts were published."""
CURSOR_SECONDS = 1.0
"""How often the leader writes down how far it got; so much is published again by the next one."""
LINGER_SECONDS = 0.005
ROUND_SECONDS = 0.1
"""Rounds of a busy log begin so far apart: each is a request to every partition, which costs more than the facts in it."""
IDLE_SECONDS = 0.5
RETRY_SECONDS = 1.0
CLOSE_SECONDS = 5.0
ODD_RECORDS = 1024
CHUNK_BYTES = 50_000
"""So much of a partition goes out at once: the log's thread, which commands need too, is busy with it for milliseconds."""
ROUND_RECORDS = 1024
MOST_MB = 1e9
"""What is read here was taken by a store with a limit of its own."""
SHOWN_BYTES = 65_536
"""So much of a record that nobody can read is in its letter; the record itself stays where it is."""
ANSWER_SECONDS = 120.0
"""Far above the time after which a log answers that it does not know."""

Batch = dict[tuple[str, int], list[NewRecord]]
"""(topic, partition) -> records, in order."""


@runtime_checkable
class PublishingLog(Protocol):
    """A log that keeps `tasks` and `facts` as topics of its own."""

    def partitions_published(self, topic: str) -> int: ...
    def publish(self, topic: str, partition: int, records: list[NewRecord], done: Done) -> None: ...


class Outbox:
    """Sends batches to several partitions. `log`: for what is stored, `publisher`: for what is published."""

    def __init__(self, log: Log, publisher: PublishingLog) -> None:
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

    def settle(self, batch: Batch) -> None:
        """Send and wait until everything is acknowledged. Raises the first `LogError`; a part may be written then."""
        if not batch:
            return
        gate = threading.Condition()
        results: list[Ack | LogError] = []

        def done(result: Ack | LogError) -> None:
            with gate:
                results.append(result)
                gate.notify_all()

        self.send(batch, done)
        with gate:
            if not gate.wait_for(lambda: len(results) == len(batch), ANSWER_SECONDS):
                raise UnknownOutcome("the log does not say whether it has what was published")
        for result in results:
            if isinstance(result, LogError):
                raise result


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


class Entry(NamedTuple):
    """One control record: what it led to, or what it is where nobody can read it."""

    batch: FactBatch | None
    position: int = -1
    poison: Record | None = None
    why: str = ""


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """How far facts were published: everything up to `position` was acknowledged. `fingerprint`: of the history there."""

    log_id: str
    position: int
    fingerprint: str
    writer: str


class Publisher:
    """One node's publisher, in a thread of its own; `leads` says whether facts are this node's to publish."""

    def __init__(self, log: Log, node: Node, facts: FactFeed, leads: Callable[[], bool]) -> None:
        assert isinstance(log, PublishingLog)
        self._log = log
        self._node = node
        self._leads = leads
        self._outbox = Outbox(log, log)
        self._blobs = Blobs(log, MOST_MB)
        self._facts = facts
        self._refold: FoldCursor | None = None
        self._task_partitions = log.partitions_published(TASKS)
        self._fact_partitions = log.partitions_published(FACTS)
        self._odd: deque[tuple[int, int]] = deque(maxlen=ODD_RECORDS)
        """(position, control offset) of records that nobody could read, or that this release does not know."""
        self._cursor: int | None = None
        self._saved = -1
        self._saved_at = 0.0
        self._hints_fail = False
        self._failing = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._finish = True
        self._thread = threading.Thread(target=self._run, name="agl-publisher", daemon=True)

    def start(self) -> None:
        """Publish from now on, while this node leads."""
        self._thread.start()

    def close(self, finish: bool = True) -> None:
        """Stop; `finish`: what is accepted goes out first, if that takes no longer than some seconds."""
        self._finish = finish
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2 * CLOSE_SECONDS)

    # Under the node's lock

    def folded(self, outcome: Outcome) -> None:
        """A record was folded."""
        if outcome.proposal is None and outcome.verdict is None:
            self._odd.append((outcome.position, self._node.next_offset - 1))
        elif outcome.accepted and outcome.proposal is not None and outcome.proposal.writer == self._node.writer:
            if any(isinstance(one, RolloutClaimable) for one in outcome.facts):
                self._hint(outcome)
        if not self._wake.is_set():
            self._wake.set()

    def _hint(self, outcome: Outcome) -> None:
        made: Batch = {}
        for fact in plain_facts_of(batch_of(outcome), self._log.log_id, RolloutClaimable):
            record = record_of(fact)
            made.setdefault((TASKS, partition_of(record.key, self._task_partitions)), []).append(record)
        try:
            self._outbox.send(made, self._hinted)
        except AgentLightningError as error:
            self._hinted(error)

    def _hinted(self, result: object) -> None:
        failed = isinstance(result, AgentLightningError)
        if failed and not self._hints_fail and not self._closed.is_set():
            logger.warning("Hints are not written (%s); runners find their work in the queue meanwhile.", result)
        self._hints_fail = failed

    # The leader's thread

    def _run(self) -> None:
        while not self._closed.is_set():
            if not self._leads():
                self._cursor = None
                self._closed.wait(IDLE_SECONDS)
                continue
            try:
                self._turn()
                self._failing = False
            except AgentLightningError as error:
                self._failed(error)
            except Exception:  # facts are no condition for serving; what is wrong is recorded, and tried again
                logger.exception("Facts could not be published; it is tried again.")
                self._closed.wait(RETRY_SECONDS)
        if self._finish and self._leads() and not self._failing:
            try:
                self._publish_rest()
            except AgentLightningError as error:
                logger.warning("Some facts were not published at the end (%s); the next leader does it.", error)

    def _failed(self, error: AgentLightningError) -> None:
        if not self._failing and not self._closed.is_set():
            logger.warning("Facts are not published (%s); it goes on as soon as the log takes them.", error)
        self._failing = True
        self._closed.wait(RETRY_SECONDS)

    def _turn(self) -> None:
        self._wake.clear()
        if self._cursor is None:
            self._cursor = self._resume()
            if self._cursor is None:
                self._closed.wait(IDLE_SECONDS)
                return
        began = time.monotonic()
        passed = self._round()
        if passed == 0:
            if self._cursor != self._saved and time.monotonic() - self._saved_at >= CURSOR_SECONDS:
                self._save()
            self._wake.wait(CURSOR_SECONDS if self._cursor == self._saved else CURSOR_SECONDS / 4)
            self._closed.wait(LINGER_SECONDS)
            return
        if time.monotonic() - self._saved_at >= CURSOR_SECONDS:
            self._save()
        if passed < ROUND_RECORDS:
            self._closed.wait(max(began + ROUND_SECONDS - time.monotonic(), 0.0))

    def _publish_rest(self) -> None:
        deadline = time.monotonic() + CLOSE_SECONDS
        if self._cursor is None:
            self._cursor = self._resume()
        while self._cursor is not None and time.monotonic() < deadline:
            if self._round() == 0:
                break
        if self._cursor is not None and self._cursor != self._saved:
            self._save()

    def _round(self) -> int:
        """Publish the next records' facts and letters, wait, and step on; returns how many positions that were."""
        assert self._cursor is not None
        entries, upto = self._after(self._cursor)
        batch = self._batch(entries)
        for wave in self._outbox.waves(batch):
            self._outbox.settle(wave)
        passed, self._cursor = upto - self._cursor, upto
        return passed

    def _after(self, cursor: int) -> tuple[list[Entry], int]:
        """(entries after position `cursor`, the position up to which these are all). Raises `LogError`."""
        with self._node.lock:
            kept = self._facts.kept_after(cursor, ROUND_RECORDS)
            folded = self._node.state.position - 1
            while self._odd and self._odd[0][0] <= cursor:
                self._odd.popleft()
            odd = list(self._odd)
        if kept is not None:
            self._refold = None
            upto = kept[-1].position if len(kept) == ROUND_RECORDS else max(folded, cursor)
            unread = [self._unread(*one) for one in odd if one[0] <= upto]
            return [*map(Entry, kept), *unread], upto
        if self._refold is None or self._refold.state.position > cursor + 1:
            restored = read_snapshot(self._log)
            behind = restored is not None and restored.state.position <= cursor + 1
            self._refold = restored if restored is not None and behind else FoldCursor(self._log)
        entries: list[Entry] = []
        for record, outcome in self._refold.advance(READ_RECORDS):
            if outcome.position > cursor and (batch := batch_of(outcome)) is not None:
                entries.append(Entry(batch))
            elif outcome.position > cursor and outcome.proposal is None and outcome.verdict is None:
                entries.append(_judged(record, outcome.position))
        return entries, max(cursor, self._refold.state.position - 1)

    def _unread(self, position: int, offset: int) -> Entry:
        records = self._log.read(CONTROL, 0, offset, 1, headers=False)
        return _judged(records[0], position) if records else Entry(None)

    def _batch(self, entries: list[Entry]) -> Batch:
        made: Batch = {}
        letters = self._log.partitions(DEAD)
        for entry in entries:
            for fact in plain_facts_of(entry.batch, self._log.log_id):
                record = record_of(fact)
                made.setdefault((FACTS, partition_of(record.key, self._fact_partitions)), []).append(record)
            for letter in map(encode_letter, self._letters_of(entry)):
                made.setdefault((DEAD, partition_of(letter.key, letters)), []).append(letter)
        return made

    def _letters_of(self, entry: Entry) -> Iterator[DeadLetter]:
        """A rollout whose last attempt failed, a record that nobody can read."""
        if entry.poison is not None:
            yield _poison(entry.poison, entry)
        facts = entry.batch.facts if entry.batch is not None else ()
        if not any(isinstance(one, RolloutCompleted) and one.status == "failed" for one in facts):
            return
        ended = {one.attempt_id: STATUS_OF[type(one)] for one in facts if type(one) in ENDS}
        for one in facts:
            if isinstance(one, RolloutCompleted) and one.status == "failed" and one.attempt_id in ended and entry.batch:
                with self._node.lock:  # it was completed lately, so its attempt is in memory as a rule
                    rollout = self._node.state.rollouts.get(str(one.rollout_id))
                    attempts = [] if rollout is None else rollout.attempts
                    last = next((copy(each) for each in attempts if each.attempt_id == one.attempt_id), None)
                time_us, position = entry.batch.time_us, entry.batch.position
                yield rollout_letter(one, ended[one.attempt_id], time_us, position, last, self._blobs)

    # Where it goes on

    def _resume(self) -> int | None:
        """The position up to which facts were published; None while this node has not folded that much."""
        records = self._log.read_key(SNAPSHOTS, CURSOR_KEY)
        try:
            cursor = msgspec.json.decode(records[-1].value, type=Cursor) if records else None
        except msgspec.MsgspecError as error:
            logger.warning("How far facts were published cannot be read (%s); they are published from the first on.", error)
            cursor = None
        if cursor is None or cursor.log_id != self._log.log_id:
            return -1
        with self._node.lock:
            folded = self._node.state.position
            known = self._node.state.verdicts.print_at(cursor.position)
        if cursor.position >= folded:
            if cursor.position < self._log.ends(CONTROL, 0)[1]:
                return None
        elif known is None or known.hex() == cursor.fingerprint:
            self._saved = cursor.position
            return cursor.position
        logger.warning("Facts were published of a history that is gone; they are published again from the first on.")
        return -1

    def _save(self) -> None:
        """Write down how far everything was acknowledged. Raises `LogError`."""
        assert self._cursor is not None
        with self._node.lock:
            known = self._node.state.verdicts.print_at(self._cursor)
        writer = self._node.writer
        made = Cursor(
            log_id=self._log.log_id,
            position=self._cursor,
            fingerprint=known.hex() if known is not None else "",
            writer=writer,
        )
        headers = (("t", "facts.cursor"), ("node", writer), ("position", str(self._cursor)))
        record = NewRecord(CURSOR_KEY, msgspec.json.encode(made), int(self._node.clock.time() * 1_000_000), headers)
        self._outbox.settle({(SNAPSHOTS, partition_of(CURSOR_KEY, self._log.partitions(SNAPSHOTS))): [record]})
        self._saved, self._saved_at = self._cursor, time.monotonic()


def _judged(record: Record, position: int) -> Entry:
    """A record that led to nothing, because nobody can read it or because only a newer release can."""
    try:
        decode(record.value)
    except UnknownEvent:
        return Entry(None)
    except Undecodable as undecodable:
        return Entry(None, position, record, str(undecodable) or type(undecodable).__name__)
    return Entry(None)


def rollout_letter(
    one: RolloutCompleted, ended: str, time_us: int, position: int, last: Attempt | None, blobs: Blobs
) -> DeadLetter:
    """The letter of a rollout that failed with its last attempt, which `ended` so; the reason is the error that `last` has.

    Blocks where the error is a blob.
    """
    try:
        metadata = None if last is None or last.metadata is None else payload.decode(last.metadata, blobs.fetch)
    except AgentLightningError:
        metadata = None  # it is lost or of another release; how the attempt ended is known anyway
    error = cast("dict[str, Any]", metadata).get("error") if isinstance(metadata, dict) else None
    how = f"attempt {one.sequence_id} was the last one and ended as {ended}"
    return DeadLetter(
        id=rollout_letter_id(str(one.rollout_id), one.generation),
        kind=ROLLOUT,
        source=str(one.rollout_id),
        reason=f"{error} ({how})" if error else how,
        time=time_us / 1_000_000,
        tries=one.sequence_id,
        rollout_id=one.rollout_id,
        attempt_id=one.attempt_id,
        position=position,
        data={"ended": ended},
    )


def _poison(record: Record, entry: Entry) -> DeadLetter:
    return DeadLetter(
        id=record_letter_id(CONTROL, 0, record.offset),
        kind=RECORD,
        source=f"{CONTROL}/0",
        reason=entry.why,
        time=record.timestamp_us / 1_000_000,
        position=entry.position,
        data={"topic": CONTROL, "offset": record.offset, "value": record.value[:SHOWN_BYTES].hex()},
    )
