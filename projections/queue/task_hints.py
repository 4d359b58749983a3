"""Hints: a consumer group says which runner claims a fresh rollout first, so that many of them rarely claim the same.

A hint says "rollout X became claimable at position P of the control log". It is judged once this node has folded P:
what is still in the queue may then be claimed here at once (dispatch.py), anything else is of no use. Its offset is
committed as soon as the rollout has left the queue, that is when the fold has seen the claim and before its agent is
done; a hint that comes twice, or too late, changes nothing. The claim is the authority, and an idle node steals what
lies in the queue for 20 ms: so lost hints, a slow group or a rebalance that never ends leave nobody without work.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

import msgspec

from ...core.errors import AgentLightningError, InvalidInput, LogClosed, LogError
from ...core.fold.apply import Outcome
from ...core.log.interface import Membership, Record
from ...core.log.topics import CONTROL, TASKS
from ..store.engine import Engine
from ..store.store import EventLogStore

logger = logging.getLogger(__name__)

GROUP = "runners"
POLL_SECONDS = 2.0
FULL_SECONDS = 1.0
"""How often a member that takes nothing shows the group that it lives."""
RETRY_SECONDS = 1.0
STALE_RECORDS = 256
COMMIT_SECONDS = 0.5
"""How often offsets are committed at most: a request to the broker for many hints. A later member drops the stale ones."""
CLOSE_SECONDS = 5.0

Place = tuple[str, int]


@runtime_checkable
class TasksLog(Protocol):
    """A log that keeps `tasks` as a topic of its own; the others have nobody to share work with."""

    def partitions_published(self, topic: str) -> int:
        """The number of partitions of `tasks` or `facts`."""
        ...


class Hint(msgspec.Struct, frozen=True):
    """What is read of a record of `tasks`: the fact `rollout.claimable` as JSON."""

    rollout_id: str
    position: int


class Offsets:
    """Which hints of each partition are done: what may be committed is below the first that is not. Thread-safe."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._open: dict[Place, dict[int, None]] = {}
        self._read: dict[Place, int] = {}
        self._committed: dict[Place, int] = {}

    def opened(self, place: Place, offset: int) -> None:
        """A hint was taken. One at or below an earlier one means that the group dealt its partitions anew."""
        with self._gate:
            if offset < self._read.get(place, 0):
                self._forget(place)
            self._committed.setdefault(place, offset)
            self._open.setdefault(place, {})[offset] = None
            self._read[place] = offset + 1

    def done(self, place: Place, offset: int) -> None:
        """A hint is of no further use. Idempotent; unknown ones are left out."""
        with self._gate:
            self._open.get(place, {}).pop(offset, None)

    def due(self) -> list[tuple[Place, int]]:
        """Commit these (place, offset) now; each is named once."""
        found: list[tuple[Place, int]] = []
        with self._gate:
            for place, read in self._read.items():
                below = next(iter(self._open.get(place, ())), read)
                if below > self._committed.get(place, 0):
                    self._committed[place] = below
                    found.append((place, below))
        return found

    def forget(self, place: Place | None = None) -> None:
        """The partition is somebody else's, or begins again; None: all are."""
        with self._gate:
            for one in [place] if place is not None else list(self._read):
                self._forget(one)

    def _forget(self, place: Place) -> None:
        for kept in (self._open, self._read, self._committed):
            kept.pop(place, None)


class HintFeed:
    """One member of a group of runners, in threads of its own; a context manager. Nothing it meets stops the claims.

    `engine` gives the store's engine of the moment. It takes at most as many hints as claimers wait at the store, and
    pauses when none does.
    """

    def __init__(self, engine: Callable[[], Engine], group: str = GROUP, name: str = "runner") -> None:
        self.group = group
        self.member_id = f"{name}-{uuid.uuid4().hex[:8]}"
        self._find = engine
        self._engine: Engine | None = None
        self._member: Membership | None = None
        self._paused = False
        self._fresh = False
        self._failing = False
        self._closed = threading.Event()
        self._wanted = threading.Event()
        self._done = threading.Event()
        self._offsets = Offsets()
        self._early: list[tuple[Hint, Place, int]] = []
        self._held: dict[str, list[tuple[Place, int]]] = {}
        self._taker = threading.Thread(target=self._run, name="agl-hints", daemon=True)
        self._committer = threading.Thread(target=self._commit, name="agl-hints-done", daemon=True)

    def __enter__(self) -> HintFeed:
        self._attach()
        self._taker.start()
        self._committer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the group; the others take what was hinted here. Takes seconds at most, whatever the broker does."""
        self._closed.set()
        self._detach()
        self._wanted.set()
        self._done.set()
        self._committer.join(CLOSE_SECONDS)
        self._leave()
        self._taker.join(CLOSE_SECONDS)

    # The engine, which is another one after the log had to be folded anew

    def _attach(self) -> Engine:
        engine = self._find()
        if engine is not self._engine:
            self._detach()
            with engine.node.lock:
                engine.node.listeners.append(self._folded)
                engine.claim_queue.on_idle.append(self._wanted.set)
                engine.claim_queue.feeds += 1
                self._engine = engine
                for place, offset in [one for held in self._held.values() for one in held]:
                    self._offsets.done(place, offset)
                for _, place, offset in self._early:
                    self._offsets.done(place, offset)
                self._early.clear()
                self._held.clear()
        return engine

    def _detach(self) -> None:
        engine = self._engine
        if engine is None:
            return
        with engine.node.lock:
            self._engine = None
            engine.claim_queue.feeds -= 1
            engine.claim_queue.on_idle.remove(self._wanted.set)
            engine.node.listeners.remove(self._folded)

    # Taking hints: a thread that does nothing else

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._turn()
            except AgentLightningError as error:
                if not self._failing and not self._closed.is_set():
                    logger.warning("No hints from group %s (%s); work is found in the queue meanwhile.", self.group, error)
                self._failing = True
                self._leave()
                self._closed.wait(RETRY_SECONDS)
            except Exception:  # without hints the runner still works; what is wrong here is recorded
                logger.exception("Hints of group %s are not taken any more.", self.group)
                self._leave()
                self._detach()
                return

    def _turn(self) -> None:
        engine = self._attach()
        member = self._member if self._member is not None else self._join(engine)
        self._wanted.clear()
        with engine.node.lock:
            room = engine.claim_queue.waiting() - len(self._held) - len(self._early)
        if room > 0:
            if self._paused:
                member.resume()
                self._paused = False
            # Old hints are of no use and come in heaps; they are let go quicker than one for each claimer.
            self._take(engine, member.poll(room if self._fresh else STALE_RECORDS, POLL_SECONDS))
            self._failing = False
            return
        if not self._paused:
            member.pause()
            self._paused = True
        self._wanted.wait(FULL_SECONDS)
        member.poll(1, 0.0)  # a member that does not poll for minutes is put out of its group

    def _join(self, engine: Engine) -> Membership:
        """This may wait as long as a rebalance does; closing the feed does not wait for it."""
        self._offsets.forget()
        member = self._member = engine.log.join(self.group, [TASKS], self.member_id)
        self._paused = self._fresh = False
        if self._closed.is_set():
            self._leave()
            raise LogClosed("the feed was closed")
        return member

    def _leave(self) -> None:
        member, self._member = self._member, None
        if member is not None:
            try:
                member.close()
            except LogError as error:
                logger.debug("Leaving group %s: %s", self.group, error)

    def _take(self, engine: Engine, records: Sequence[Record]) -> None:
        if not records:
            return
        node, self._fresh = engine.node, False
        hints = [_read(record) for record in records]
        end = node.state.position
        if any(hint is not None and hint.position >= end for hint in hints):
            # A hint is written after its event. One from behind the end is not of this log, and would wait for ever.
            end = engine.log.ends(CONTROL, 0)[1]
        with node.lock:
            for record, hint in zip(records, hints, strict=True):
                place = (record.topic, record.partition)
                self._offsets.opened(place, record.offset)
                if hint is None or hint.position >= max(end, node.state.position):
                    self._offsets.done(place, record.offset)
                elif hint.position >= node.state.position:
                    self._early.append((hint, place, record.offset))
                    self._fresh = True
                else:
                    self._judge(engine, hint, place, record.offset)
            node.delivery.flush()
        self._done.set()

    # Judging, under the node's lock

    def _judge(self, engine: Engine, hint: Hint, place: Place, offset: int) -> None:
        if engine.claim_queue.hint(engine.node.state, hint.rollout_id):
            self._held.setdefault(hint.rollout_id, []).append((place, offset))
            self._fresh = True
        else:
            self._offsets.done(place, offset)

    def _folded(self, outcome: Outcome) -> None:
        """A record was folded: rollouts may have left the queue, and hints that came before it can be judged."""
        engine = self._engine
        if engine is None or not (self._held or self._early):
            return
        state = engine.node.state
        for one in outcome.facts if self._held else ():
            rollout_id = one.rollout_id
            if rollout_id in self._held and rollout_id not in state.queue:
                for place, offset in self._held.pop(rollout_id):
                    self._offsets.done(place, offset)
                self._done.set()
        if self._early and min(hint.position for hint, _, _ in self._early) < state.position:
            early, self._early = self._early, []
            for hint, place, offset in early:
                if hint.position < state.position:
                    self._judge(engine, hint, place, offset)
                else:
                    self._early.append((hint, place, offset))
            self._done.set()

    # Committing: another thread, since a poll may wait for long

    def _commit(self) -> None:
        while not self._closed.is_set():
            self._done.wait()
            self._done.clear()
            self._commit_due()
            self._closed.wait(COMMIT_SECONDS)
        self._commit_due()

    def _commit_due(self) -> None:
        member = self._member
        if member is None:
            return
        for (topic, partition), offset in self._offsets.due():
            try:
                member.commit(topic, partition, offset)
            except (LogError, InvalidInput) as error:
                logger.debug("Group %s has dealt %s[%d] anew: %s", self.group, topic, partition, error)
                self._offsets.forget((topic, partition))


def feed_of(store: object, group: str = GROUP, name: str = "runner") -> HintFeed | None:
    """The feed for claimers of `store` in this process, not begun yet; None where its log has no group to share work with."""
    if not isinstance(store, EventLogStore) or not isinstance(store.engine.log, TasksLog):
        return None
    return HintFeed(lambda: store.engine, group, name)


def _read(record: Record) -> Hint | None:
    """The hint of a record; None for what anybody may have written into the topic."""
    try:
        return msgspec.json.decode(record.value, type=Hint)
    except (msgspec.MsgspecError, RecursionError) as error:
        logger.debug("%s[%d] holds at offset %d what is no hint: %s", record.topic, record.partition, record.offset, error)
        return None

