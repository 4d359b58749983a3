"""Signs of life: heartbeats of workers, last beats of attempts, and what the machines report of themselves.

An overlay beside the fold: nothing here is in the state or its fingerprint. Workers' newest heartbeats are kept in the
liveness topic so that they survive a restart; silence is measured on the keeper's time (timekeeper.py), which stands
still while the process is frozen. What other nodes of the same log observed comes through node_gossip.py.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

import msgspec

from ...core.errors import LogError
from ...core.events import payload
from ...core.events.run_events import BEAT
from ...core.log.interface import Ack, Headers, Log, NewRecord, Record
from ...core.log.topics import LIVENESS, partition_of

logger = logging.getLogger(__name__)

LATE_BEATS = 10_000
"""Attempts and runs that are over of which later signs of life may come."""

AttemptKey = tuple[str, int]
"""(rollout_id, sequence_id)"""

HEARTBEAT, IDLE, NODE, RUN = "worker.heartbeat", "worker.idle", "node.beat", BEAT
"""Kinds of records in the liveness topic, as their header `t` says; the first two carry a `WorkerBeat`, RUN a `RunBeat`."""


class WorkerBeat(msgspec.Struct, omit_defaults=True):
    """The newest of what a worker showed. `idle_at`: control position at which it last found the queue empty."""

    worker_id: str
    beat_us: int | None = None
    stats: msgspec.Raw = payload.ABSENT
    incarnation: str | None = None
    dequeue_us: int | None = None
    idle_us: int | None = None
    idle_at: int = -1


class RunBeat(msgspec.Struct, omit_defaults=True):
    """The newest sign of life of a run. `owner`: the node whose process runs its algorithm, empty where that is a client."""

    run_id: str
    owner: str = ""
    beat_us: int = 0
    closed: bool = False


class OpenRun:
    """A run that may still be lost; `seen_at` is the keeper's time in seconds."""

    __slots__ = ("acting", "beat_us", "owner", "seen_at")

    def __init__(self, owner: str, now: float) -> None:
        self.owner = owner
        self.seen_at = now
        self.beat_us = 0
        self.acting = False


class OpenAttempt:
    """An attempt that may still expire; times are the keeper's, in seconds.

    `look_at`: until then it cannot be due, whatever signs of life come. `timed`: its rollout has a limit of time.
    """

    __slots__ = ("acting", "beat_us", "incarnation", "last_beat", "look_at", "opened", "timed")

    def __init__(self, incarnation: str | None, now: float, timed: bool) -> None:
        self.incarnation = incarnation
        self.timed = timed
        self.opened = now
        self.last_beat = now
        self.beat_us: int | None = None
        self.acting = False
        self.look_at = 0.0


class Heartbeats:
    """Which workers, attempts and runs showed a sign of life, and when. Use under the node's lock."""

    def __init__(self, log: Log, writer: str | None = None) -> None:
        self._log = log
        self._writer = writer
        """Our name where other nodes count what we write; each life of a worker then has a key of its own."""
        self.observed_here: dict[AttemptKey, None] | None = None if writer is None else {}
        """Open attempts that this node observed and has not reported to the others yet; None where there are none."""
        self.read_to: dict[int, int] = {}
        """Partition of the topic -> offset up to which `load` read it."""
        self.workers: dict[str, WorkerBeat] = {}
        self.open: dict[AttemptKey, OpenAttempt] = {}
        self.runs: dict[str, OpenRun] = {}
        """Runs that are open, by what their owners showed."""
        self._runs_over: OrderedDict[str, None] = OrderedDict()
        """Runs that were closed: a sign of life that comes after that is late and opens nothing."""
        self._late: OrderedDict[AttemptKey, int] = OrderedDict()
        """Attempts that are over and showed a sign of life since, the latest last."""
        self.incarnations: dict[str, float] = {}
        """Incarnations that sent heartbeats -> keeper's time of the last."""

    def load(self) -> None:
        """Read the newest heartbeat of every worker back."""
        for partition in range(self._log.partitions(LIVENESS)):
            offset, end = self._log.ends(LIVENESS, partition)
            while offset < end:
                records = self._log.read(LIVENESS, partition, offset)
                if not records:
                    break
                for record in records:
                    kind, _ = origin_of(record)
                    if kind == RUN:
                        self.observe_run(record, 0.0)
                    elif kind != NODE and (beat := decode_beat(record)) is not None:
                        self.merge(beat)
                offset = records[-1].offset + 1
            self.read_to[partition] = max(offset, end)

    def run_beat(self, run_id: str, owner: str, now: float, time_us: int, *, closed: bool = False) -> None:
        """The owner of a run showed a sign of life, or the run was closed: kept, and written to the topic without waiting."""
        if run_id in self._runs_over and not closed:
            return
        beat = RunBeat(run_id, owner, time_us, closed)
        self._take_run(beat, now)
        key = f"run/{run_id}"
        record = NewRecord(
            key, msgspec.json.encode(beat), time_us, headers_of(RUN, self._writer or "")
        )
        self._log.append(LIVENESS, partition_of(key, self._log.partitions(LIVENESS)), [record], _ignore)

    def observe_run(self, record: Record, now: float) -> None:
        """A record of a run, of this life of the store or an earlier one, of this node or another one."""
        beat = run_beat_of(record)
        if beat is not None:
            self._take_run(beat, now)

    def _take_run(self, beat: RunBeat, now: float) -> None:
        if beat.closed:
            self.runs.pop(beat.run_id, None)
            self._runs_over[beat.run_id] = None
            if len(self._runs_over) > LATE_BEATS:
                self._runs_over.popitem(last=False)
        if beat.run_id in self._runs_over:
            return
        run = self.runs.setdefault(beat.run_id, OpenRun(beat.owner, now))
        run.owner, run.seen_at, run.beat_us = beat.owner, now, beat.beat_us

    def merge(self, beat: WorkerBeat) -> None:
        """Take over what somebody knows of a worker: of each thing the newest."""
        known = self.workers.get(beat.worker_id)
        if known is None:
            self.workers[beat.worker_id] = beat
            return
        if (beat.beat_us or 0) >= (known.beat_us or 0):
            known.beat_us = beat.beat_us
            known.stats = beat.stats if bytes(beat.stats) else known.stats
            known.incarnation = beat.incarnation if beat.incarnation is not None else known.incarnation
        known.dequeue_us = max(filter(None, (known.dequeue_us, beat.dequeue_us)), default=None)
        if beat.idle_at > known.idle_at:
            known.idle_at, known.idle_us = beat.idle_at, beat.idle_us

    def worker(self, worker_id: str) -> WorkerBeat:
        """The worker's overlay, made when it is first seen."""
        beat = self.workers.get(worker_id)
        if beat is None:
            beat = self.workers[worker_id] = WorkerBeat(worker_id)
        return beat

    def heartbeat(
        self, worker_id: str, stats: bytes | None, incarnation: str | None, now: float, time_us: int
    ) -> WorkerBeat:
        """A worker sent a heartbeat: stamp it, keep its stats, write it to the topic without waiting."""
        beat = self.worker(worker_id)
        beat.beat_us = time_us
        if stats is not None:
            beat.stats = payload.inline(stats)
        if incarnation is not None:
            beat.incarnation = incarnation
            self.incarnations[incarnation] = now
        self.keep(beat, HEARTBEAT)
        return beat

    def expect(self, worker_id: str | None, incarnation: str | None, now: float) -> None:
        """Count the silence of an incarnation from `now` on, if its worker sent heartbeats before the store restarted."""
        beat = self.workers.get(worker_id or "")
        if incarnation is not None and beat is not None and beat.incarnation is not None:
            self.incarnations.setdefault(incarnation, now)

    def keep(self, beat: WorkerBeat, kind: str = IDLE) -> None:
        """Write a worker's overlay to its topic; heartbeats are exempt from durability, so nobody waits."""
        key, headers = beat.worker_id, ()
        if self._writer is not None:
            key = key if beat.incarnation is None else f"{key}/{beat.incarnation}"
            headers = headers_of(kind, self._writer)
        record = NewRecord(key, msgspec.json.encode(beat), beat.beat_us or 0, headers)
        self._log.append(LIVENESS, partition_of(key, self._log.partitions(LIVENESS)), [record], _ignore)

    def beat(
        self, key: AttemptKey, now: float, time_us: int | None, *, late: bool = False, elsewhere: bool = False
    ) -> None:
        """An attempt showed a sign of life: a span, a heartbeat that names it, an update.

        `late`: a sign of life counts as one also where the attempt is over; it revives nothing, but it is shown.
        `elsewhere`: another node observed it, and has reported it to all.
        """
        attempt = self.open.get(key)
        if attempt is not None:
            attempt.last_beat = now
            attempt.beat_us = time_us
            if self.observed_here is not None and not elsewhere:
                self.observed_here[key] = None
        elif late and time_us is not None:
            self._late[key] = time_us
            self._late.move_to_end(key)
            if len(self._late) > LATE_BEATS:
                self._late.popitem(last=False)

    def reported(self, key: AttemptKey, beat_us: int) -> None:
        """A caller reported when the last sign of life was: that is shown, whatever was observed."""
        self._late.pop(key, None)
        attempt = self.open.get(key)
        if attempt is not None:
            attempt.beat_us = beat_us

    def beat_us(self, rollout_id: str, sequence_id: int) -> int | None:
        """The last sign of life of an attempt that this process observed, in microseconds since 1970."""
        attempt = self.open.get((rollout_id, sequence_id))
        return self._late.get((rollout_id, sequence_id)) if attempt is None else attempt.beat_us

    def forget_silent(self, now: float, after_seconds: float) -> None:
        """Drop incarnations that are silent for long and run nothing; workers restart, memory must not grow."""
        running = {attempt.incarnation for attempt in self.open.values()}
        for incarnation, last in list(self.incarnations.items()):
            if now - last > after_seconds and incarnation not in running:
                del self.incarnations[incarnation]

    def stats_of(self, beat: WorkerBeat) -> dict[str, Any] | None:
        """The decoded machine stats of a worker."""
        stats = payload.outline(beat.stats)
        return None if stats is None else payload.decode(stats)


def headers_of(kind: str, writer: str) -> Headers:
    """The headers of a record that other nodes count."""
    return (("t", kind), ("node", writer))


def origin_of(record: Record) -> tuple[str, str]:
    """(kind, node) of a record; heartbeats of logs with one writer have no headers."""
    headers = dict(record.headers)
    return headers.get("t", HEARTBEAT), headers.get("node", "")


def decode_beat(record: Record) -> WorkerBeat | None:
    """A worker's record; None, with a line in the log of this process, for bytes that are none."""
    try:
        return msgspec.json.decode(record.value, type=WorkerBeat)
    except msgspec.MsgspecError:
        logger.warning("A heartbeat at offset %d cannot be read; it is left out", record.offset)
        return None


def run_beat_of(record: Record) -> RunBeat | None:
    """A run's record; None, with a line in the log of this process, for bytes that are none."""
    try:
        return msgspec.json.decode(record.value, type=RunBeat)
    except msgspec.MsgspecError:
        logger.warning("A sign of life of a run at offset %d cannot be read; it is left out", record.offset)
        return None


def _ignore(result: Ack | LogError) -> None:
    if isinstance(result, LogError):
        logger.debug("A heartbeat was not written: %s", result)
