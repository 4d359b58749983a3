"""Gossip of the nodes of one log: each reports the signs of life it observed, and counts those that all of them report.

While something is open, a node writes one record a second to the liveness topic: its own beat, with the attempts that it
observed since the last one. It follows the topic, as all the others do. Only the moment counts at which a record comes in
here, on the keeper's own time; what another machine's clock says is shown and decides nothing.

The node's own beats come back through the same channel. While they do not, it is cut off: every worker would seem
silent, so no silence is counted then. With each beat it asks where the control log ends, since a node that lags must not act.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer

import msgspec

from ...core.errors import LogClosed, LogError, StoreUnreachable
from ...core.log.interface import Ack, Log, NewRecord, Record, Subscription
from ...core.log.topics import CONTROL, LIVENESS
from ..replica.node import Node
from .heartbeats import HEARTBEAT, NODE, RUN, AttemptKey, Heartbeats, decode_beat, headers_of, origin_of

FRESH_SECONDS = 1.0
"""So old the log's word may be of where it ends, when somebody asks."""
CUT_OFF_SECONDS = 2.0
"""After so long without contact a node says so instead of answering."""
LONGEST_LOOK_SECONDS = 0.02


class LogContact:
    """What the log reported last of where `control` ends. Thread-safe; times are the node's monotonic clock."""

    def __init__(self, log: Log, node: Node) -> None:
        self._log = log
        self._node = node
        self._lock = threading.Lock()
        self._asked: float | None = None
        """When the question was put that is not answered yet."""
        self._end: tuple[float, int] | None = None
        """(when it was asked, where the log ended), of the last question that was answered."""

    def ask(self, now: float) -> None:
        """Ask where the log ends; does not wait, and does nothing while a question is under way."""
        with self._lock:
            if self._asked is not None:
                return
            self._asked = now
        try:
            self._log.ask_end(CONTROL, 0, self._answered)
        except LogError as error:
            self._answered(error)

    def _answered(self, end: int | LogError) -> None:
        """From a thread of the log, which must not wait for the node's lock."""
        with self._lock:
            asked, self._asked = self._asked, None
            if asked is not None and not isinstance(end, LogError):
                self._end = (asked, end)

    def current(self, now: float, within: float) -> bool:
        """Whether everything is folded that was in the log at a moment not longer ago than `within` seconds."""
        end = self._end
        return end is not None and now - end[0] <= within and self._node.next_offset >= end[1]

    async def wait(self) -> None:
        """Return once this node is current. Raises `StoreUnreachable` after 2 s, or at once where it is known to be cut off."""
        clock = self._node.clock.monotonic
        began, look = time.monotonic(), 0.001
        while True:
            now = clock()
            if not self.current(now, FRESH_SECONDS / 2):
                self.ask(now)
            if self.current(now, FRESH_SECONDS):
                return
            asked = self._asked
            if time.monotonic() - began > CUT_OFF_SECONDS or (asked is not None and now - asked > CUT_OFF_SECONDS):
                raise StoreUnreachable(self._why(now))
            await asyncio.sleep(look)
            look = min(2 * look, LONGEST_LOOK_SECONDS)

    def _why(self, now: float) -> str:
        end = self._end
        if end is None or now - end[0] > FRESH_SECONDS:
            return f"this node is cut off from its log at {self._log.url}, which does not answer; its state may be old"
        lag = end[1] - self._node.next_offset
        return f"this node lags: {lag} of the records in its log at {self._log.url} are not applied yet; its state is old"

    def answers(self, seconds: float) -> bool:
        """Whether the log answers a question that is put now within so many seconds; blocks."""
        answered: Future[int | LogError] = Future()
        try:
            self._log.ask_end(CONTROL, 0, answered.set_result)
            return not isinstance(answered.result(seconds), LogError)
        except (LogError, NoAnswer):
            return False


logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
CUT_OFF_AFTER_SECONDS = 2 * BEAT_SECONDS
"""A node whose own beat has not come back for so long counts no silence."""
BEHIND_SECONDS = 2.5 * BEAT_SECONDS
"""So old the answer may be which says where the control log ends."""
AWAITED_BEATS = 16
REPORTED_AT_ONCE = 20_000
KEYS = 16
"""A node's beats go round so many keys: a late reader of the compacted topic still finds the last ones."""


class NodeBeat(msgspec.Struct, omit_defaults=True):
    """One beat of a node. `observed`: (rollout_id, sequence_id, wall clock in microseconds) of open attempts it observed."""

    node: str
    number: int
    observed: list[tuple[str, int, int | None]] = []


class NodeGossip:
    """Reports and follows. `connected`, `current` and `report` are called under the node's lock."""

    def __init__(self, log: Log, node: Node, liveness: Heartbeats, contact: LogContact) -> None:
        self._contact = contact
        self._log = log
        self._node = node
        self._heartbeats = liveness
        self._now: Callable[[], float] = node.clock.monotonic
        self._partitions = log.partitions(LIVENESS)
        self._number = 0
        self._reported_at = float("-inf")
        self._awaited: list[deque[tuple[int, float]]] = [deque() for _ in range(self._partitions)]
        """Of each partition the beats (number, when) that have not come back, the oldest first."""
        self._unreported: deque[Sequence[AttemptKey]] = deque(maxlen=AWAITED_BEATS)
        self._following: dict[int, Subscription] = {}
        self._lost: set[int] = set()
        self._closed = threading.Event()

    def start(self, now: Callable[[], float]) -> None:
        """Follow the topic from where `Heartbeats.load` stopped. `now`: the keeper's time, which silence is measured on."""
        self._now = now
        for partition in range(self._partitions):
            self._follow(partition, self._heartbeats.read_to.get(partition, 0))

    def _follow(self, partition: int, offset: int) -> None:
        self._following[partition] = self._log.follow(
            LIVENESS, partition, offset, self._take, lambda error: self._broke(partition, error)
        )

    def close(self) -> None:
        """Stop following; not under the node's lock."""
        self._closed.set()
        for subscription in self._following.values():
            subscription.close()

    def mend(self) -> None:
        """Follow anew what broke, from its present end on; blocks. Raises `LogError`."""
        for partition in sorted(self._lost):
            if not self._closed.is_set():
                self._follow(partition, self._log.ends(LIVENESS, partition)[1])
                self._lost.discard(partition)

    def _broke(self, partition: int, error: LogError) -> None:
        if not isinstance(error, LogClosed) and not self._closed.is_set():
            logger.warning("Signs of life of other nodes are not received (%s); no silence is counted meanwhile.", error)
            self._lost.add(partition)

    # What the timekeeper asks

    def connected(self, now: float) -> bool:
        """Whether this node's own beats come back. `now` is the machine's monotonic clock in seconds."""
        if self._lost:
            return False
        return not any(awaited and now - awaited[0][1] > CUT_OFF_AFTER_SECONDS for awaited in self._awaited)

    def current(self, now: float) -> bool:
        """Whether this node has folded what was in the control log a moment ago."""
        return self._contact.current(now, BEHIND_SECONDS)

    @property
    def settled(self) -> bool:
        """Whether every beat has come back."""
        return not any(self._awaited)

    def report(self, now: float) -> None:
        """Write this node's beat, once a second however often it is called."""
        if now - self._reported_at < 0.9 * BEAT_SECONDS:
            return
        self._reported_at = now
        self._number += 1
        for partition, awaited in enumerate(self._awaited):
            if len(awaited) < AWAITED_BEATS:
                awaited.append((self._number, now))
            self._write(partition, self._news() if partition == 0 else ())
        self._contact.ask(now)

    def _news(self) -> list[AttemptKey]:
        """The attempts that were observed and not reported yet; those of a beat that was lost go out again."""
        observed = self._heartbeats.observed_here
        if observed is None:
            return []
        while self._unreported:
            observed.update(dict.fromkeys(self._unreported.popleft()))
        keys = list(observed)[:REPORTED_AT_ONCE]
        for key in keys:
            del observed[key]
        return keys

    def _write(self, partition: int, keys: Sequence[AttemptKey]) -> None:
        def done(result: Ack | LogError) -> None:
            if isinstance(result, LogError):
                logger.debug("A beat was not written: %s", result)
                if keys and not isinstance(result, LogClosed):
                    self._unreported.append(keys)

        observed = [(*key, self._heartbeats.beat_us(*key)) for key in keys]
        writer = self._node.writer
        beat = NodeBeat(writer, self._number, observed)
        record = NewRecord(
            f"node/{writer}/{self._number % KEYS}",
            msgspec.json.encode(beat),
            int(self._node.clock.time() * 1_000_000),
            headers_of(NODE, writer),
        )
        self._log.append(LIVENESS, partition, [record], done)

    # What comes back

    def _take(self, records: Sequence[Record]) -> None:
        """From a thread of the log: what any node wrote, this one too."""
        node = self._node
        with node.lock:
            now = self._now()
            for record in records:
                kind, origin = origin_of(record)
                if kind == NODE:
                    self._take_node(record, now)
                elif kind == RUN:
                    if origin != node.writer:
                        self._heartbeats.observe_run(record, now)
                elif origin != node.writer:
                    self._take_worker(record, kind, now)

    def _take_node(self, record: Record, now: float) -> None:
        try:
            beat = msgspec.json.decode(record.value, type=NodeBeat)
        except msgspec.MsgspecError:
            logger.warning("A beat at offset %d cannot be read; it is left out", record.offset)
            return
        if beat.node == self._node.writer:
            awaited = self._awaited[record.partition]
            while awaited and awaited[0][0] <= beat.number:
                awaited.popleft()
            return
        for rollout_id, sequence_id, time_us in beat.observed:
            self._heartbeats.beat((rollout_id, sequence_id), now, time_us, late=True, elsewhere=True)

    def _take_worker(self, record: Record, kind: str, now: float) -> None:
        beat = decode_beat(record)
        if beat is None:
            return
        incarnation = beat.incarnation
        self._heartbeats.merge(beat)
        if incarnation is not None and kind == HEARTBEAT:
            self._heartbeats.incarnations[incarnation] = now
