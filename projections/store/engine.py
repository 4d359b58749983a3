"""The engine of a store: the node and its projections wired together, and the one way a command goes through them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, TypeVar, cast

from ...core.clock import Clock, SystemClock
from ...core.errors import Archived, ForeignPosition, LogClosed, LogError, NotFound, Rebuilding
from ...core.events import fact, payload
from ...core.events.codec import decode, needle
from ...core.events.run_events import RunEvent
from ...core.events.schema import AnyEvent, AttemptClaimed, Edge, TimePassed
from ...core.fold import commands
from ...core.fold.apply import Outcome, check_basis
from ...core.fold.state import Attempt, Rollout, State
from ...core.ids import uuid7_hex
from ...core.log.interface import KeyRange, Log
from ...core.log.log_copy import refuse_unfinished
from ...core.log.topics import CONTROL, SPANS
from ...core.model.status import FINISHED
from ..archive.backfill import Backfill
from ..archive.index import ArchiveIndex, Mark
from ..archive.index_copy import IndexCopy
from ..facts.feed import FactFeed
from ..liveness.cluster import Cluster
from ..liveness.expiry import Expiry
from ..liveness.heartbeats import Heartbeats
from ..liveness.node_gossip import LogContact
from ..queue.claim_queue import ClaimQueue
from ..queue.completion_waiters import CompletionWaiters
from ..replica.command_context import Call, CommandIds, answer_of, current_call, joined, read_token, refusal
from ..replica.node import Node
from ..replica.settings import StoreSettings
from ..replica.snapshots import StateImage, read_snapshot, write_snapshot
from ..spans.blobs import Blobs
from ..spans.shared_span_log import SharedSpanLog
from ..spans.span_log import SpanLog, key_range
from .views import Views

logger = logging.getLogger(__name__)

T = TypeVar("T")

AHEAD_SECONDS = 1.0
"""How long a position may be ahead of this node before the log is asked whether it holds it at all."""
ANSWER_SECONDS = 1.0
"""How long a log may take to answer when the store is closed, before it counts as away."""
RECORDED_SLICE = 16
MAX_RESTORES = 64
"""How often a command brings its rollout back before it is given up: it leaves hot state again only after many records."""


class _Proof:
    """Listens to the fold until it passes the mark of an index: `proven` if its fingerprint there is the same."""

    def __init__(self, node: Node, mark: Mark) -> None:
        self._node = node
        self._mark = mark
        self.proven = False

    def __call__(self, outcome: Outcome) -> None:
        state = self._node.state
        if state.position == self._mark[0]:
            self.proven = state.fingerprint == self._mark[1]


class Engine(Views):
    """Everything a store consists of, except its public methods. Thread-safe; belongs to no event loop."""

    node: Node
    archive_index: ArchiveIndex

    def __init__(
        self,
        log: Log,
        *,
        settings: StoreSettings | None = None,
        clock: Clock | None = None,
        index_path: str | None = None,
        foreign_writers: bool = False,
    ) -> None:
        refuse_unfinished(log)
        began = time.perf_counter()
        self.log = log
        self.settings = settings if settings is not None else StoreSettings()
        self.clock = clock if clock is not None else SystemClock()
        self.opened_at = self.clock.monotonic()
        self.blobs = Blobs(log, self.settings.max_payload_mb, self.clock)
        self.spans = (SharedSpanLog if foreign_writers else SpanLog)(log, self.blobs, self.clock)
        self.node = Node(log, self.settings, clock=self.clock, foreign_writers=foreign_writers)
        self.archive_index = ArchiveIndex(index_path, log.log_id)
        self.index_copy = IndexCopy(log, self.archive_index)
        self.heartbeats = Heartbeats(log, self.node.writer if foreign_writers else None)
        self.waiters = CompletionWaiters(self.node.delivery)
        self.claim_queue = ClaimQueue(self.node.delivery, self.node.writer if foreign_writers else None, self.clock)
        self.facts = FactFeed(self.node)
        self.contact = LogContact(log, self.node) if foreign_writers else None
        self.cluster = (
            Cluster(log, self.node, self.heartbeats, self.facts, self.contact) if self.contact is not None else None
        )
        self.expiry = Expiry(self.node, self.heartbeats, self.spans, self.cluster)
        self._reactions = self._reactions_to_facts()
        self._snapshotting: threading.Thread | None = None
        self.shared = foreign_writers
        self.backfill: Backfill | None = None
        self.closed = False
        self._position_waiters: list[tuple[int, asyncio.Future[None]]] = []
        if isinstance(self.spans, SharedSpanLog):
            self.spans.where = self._where
        try:
            self._open()
        except BaseException:
            self.archive_index.close()
            raise
        self.seconds_to_open = time.perf_counter() - began

    def _open(self) -> None:
        node = self.node
        restored = read_snapshot(self.log)
        mark = self.archive_index.mark
        behind = restored is not None and mark[0] < restored.state.position
        if restored is None or behind:
            self.archive_index.clear()
            self.archive_index.whole = restored is None and not self.archive_index.broken
        self.restored_at = restored.state.position if restored is not None else 0
        self._snapshot_at = self.restored_at
        self.archive_index.on_broken = self._index_broken
        fits = _Proof(node, mark)  # before the index takes anything from the records that follow
        node.listeners += [self._archive] if restored is None else [fits, self._archive]
        if restored is not None and mark == (restored.state.position, restored.state.fingerprint):
            fits.proven = True
        node.open(restored)
        self.archive_index.flush(node.state.position, node.state.fingerprint)
        with node.lock:
            if restored is not None:
                node.listeners.remove(fits)
            if restored is not None and not behind and not (fits.proven and self._index_holds()):
                logger.warning(
                    "The index of finished rollouts is not of this log's history; it is made anew from the log."
                )
                self.archive_index.clear()
                self.archive_index.whole = False
            refill_to = self.restored_at if behind else node.state.position
            self.claim_queue.load(node.state)
            self.heartbeats.load()
            self.expiry.load()
            self.facts.start()
            node.listeners.append(self._folded)
        if self.archive_index.whole:
            self.archive_index.start()
        elif self.backfill is None:
            self.backfill = Backfill(
                self.log, node, self.archive_index, None if self.archive_index.broken else refill_to
            )
            self.backfill.start()
        self.expiry.start()
        if self.cluster is not None:
            self.cluster.start(self.expiry.now)

    # What follows from each folded record, under the node's lock

    def _archive(self, outcome: Outcome) -> None:
        if outcome.archived:
            self.archive_index.add(outcome.archived, outcome.position + 1, self.node.state.fingerprint)
        if outcome.facts and isinstance(outcome.facts[0], fact.RolloutRestored):
            rollout = self.node.state.rollouts[str(outcome.facts[0].rollout_id)]
            self.archive_index.remove(rollout, outcome.position + 1, self.node.state.fingerprint)

    def _index_holds(self) -> bool:
        """Whether the index has as many rollouts as the fold says have left hot state. Under the node's lock."""
        state = self.node.state
        return self.archive_index.holds(state.created - len(state.rollouts))

    def _index_broken(self) -> None:
        """The index cannot be read: another one is filled from the log, and questions wait for it."""
        if not self.closed:
            if self.backfill is not None:
                self.backfill.stop()  # it must not call the next table whole
            self.backfill = Backfill(self.log, self.node, self.archive_index, None)
            self.backfill.start()

    def _folded(self, outcome: Outcome) -> None:
        proposal = outcome.proposal
        if outcome.facts and proposal is not None:
            event = proposal.event
            if isinstance(event, AttemptClaimed):
                self.claim_queue.claimed(proposal.writer, event.rollout_id)
            if isinstance(event, TimePassed):
                self.expiry.clock_moved(event.to_ms - event.from_ms)
        for one in outcome.facts:
            react = self._reactions.get(type(one))
            if react is not None and one.rollout_id is not None:
                react(one.rollout_id, one.sequence_id)
        self.facts.folded(outcome)
        if isinstance(self.spans, SharedSpanLog):
            self.spans.notice(outcome)
        if self.cluster is not None:
            self.cluster.folded(outcome)
        if self._position_waiters:
            self._wake_positions()
        if self.node.state.position - self._snapshot_at >= self.settings.snapshot_every:
            self.snapshot()

    def _reactions_to_facts(self) -> dict[type[fact.FactData], Callable[[str, int], None]]:
        """Type of a fact -> what is done about it, given its rollout and the attempt's number. Most of it once a command."""

        def completed(rollout_id: str, _: int) -> None:
            self.waiters.completed(rollout_id)
            self.spans.completed(rollout_id)

        def running(rollout_id: str, sequence_id: int) -> None:
            if (rollout_id, sequence_id) not in self.heartbeats.open:
                self._opened(rollout_id, sequence_id)

        def updated(rollout_id: str, _: int) -> None:
            rollout = self.node.state.rollouts.get(rollout_id)
            if rollout is not None:
                self.expiry.changed(rollout)

        def ended(rollout_id: str, sequence_id: int) -> None:
            self.heartbeats.open.pop((rollout_id, sequence_id), None)

        ends: dict[type[fact.FactData], Callable[[str, int], None]] = dict.fromkeys(fact.ENDS, ended)
        return {
            fact.RolloutEnqueued: lambda rollout_id, _: self.spans.born.add(rollout_id),
            fact.RolloutClaimable: lambda rollout_id, _: self.claim_queue.offer(self.node.state, rollout_id),
            fact.AttemptClaimed: self._opened,
            fact.AttemptRunning: running,
            fact.RolloutCompleted: completed,
            fact.RolloutRestored: self._restored,
            fact.RolloutUpdated: updated,
            fact.RolloutBackoff: lambda rollout_id, _: self.expiry.backing_off(rollout_id),
            **ends,
        }

    def _opened(self, rollout_id: str, sequence_id: int) -> None:
        rollout = self.node.state.rollouts.get(rollout_id)
        if rollout is not None:
            self.expiry.opened(rollout, rollout.attempts[sequence_id - 1])

    def _restored(self, rollout_id: str, _: int) -> None:
        rollout = self.node.state.rollouts.get(rollout_id)
        if rollout is not None:
            self.expiry.watch(rollout)  # nobody did while it was archived

    def snapshot(self) -> None:
        """Have a thread write a snapshot of about now; nobody waits for it, and one at a time is written."""
        with self.node.lock:
            self._snapshot_at = self.node.state.position
            if self._snapshotting is not None and self._snapshotting.is_alive():
                return
            self._snapshotting = threading.Thread(target=self._write_snapshot, name="agl-snapshot", daemon=True)
            self._snapshotting.start()

    def _write_snapshot(self) -> None:
        image, at = StateImage(self.node).make()
        try:
            self.archive_index.flush(at[0], at[2])  # first: a snapshot that is ahead of the index would not be used
            if self.archive_index.whole:
                self.index_copy.write(self.node.state.created)
            write_snapshot(self.log, self.node.writer, image, at)
        except LogError as error:
            logger.warning("The snapshot at position %d was not written: %s", at[0], error)

    def close(self) -> None:
        """Stop the timekeeper, snapshot what has grown, close the log. Idempotent.

        Where the log does not answer it is closed first: nothing waits for it then, and what it did not acknowledge has an
        unknown outcome.
        """
        if self.closed:
            return
        self.closed = True
        answers = self.contact is None or self.contact.answers(ANSWER_SECONDS)
        if not answers:
            logger.warning("The log at %s does not answer; the store is closed without it.", self.log.url)
            self.log.close()
        self.expiry.close()
        whole = answers and self.node.broken is None
        if self.cluster is not None:
            self.cluster.close(finish=whole)
        if whole and self.node.state.position - self._snapshot_at >= self.settings.snapshot_every // 20:
            self.snapshot()
        self._end_threads()
        if whole:
            self.spans.close()
        self.log.close()  # finishes the appends under way, whose commands get their answers
        self.node.close()
        self.archive_index.flush(self.node.state.position, self.node.state.fingerprint)
        with self.node.lock:
            self._end_waits(LogClosed("the store was closed"))
        self.archive_index.close()

    def _end_threads(self) -> None:
        if self._snapshotting is not None:
            self._snapshotting.join()
        if self.backfill is not None:
            self.backfill.close()

    def abandon(self, error: Exception) -> None:
        """Stop without touching the log, which goes on under another engine; who waits gets `error`."""
        self.closed = True
        self.expiry.close()
        if self.cluster is not None:
            self.cluster.close(finish=False)
        self._end_threads()
        self.node.close()
        with self.node.lock:
            self._end_waits(error)
        self.archive_index.close()

    def _end_waits(self, error: Exception) -> None:
        """Everything that waits here gets the error."""
        for part in (self.waiters, self.claim_queue, self.facts):
            part.fail(error)
        for _, future in self._position_waiters:
            self.node.delivery.put(future, error, True)
        self._position_waiters.clear()
        self.node.delivery.flush()

    # Commands

    def check_open(self) -> None:
        """Raise what ended the store, or `LogClosed` where it was closed."""
        if self.closed:
            raise self.node.lost_by or LogClosed("the store was closed")

    async def command(self, decided: Callable[[State, str], AnyEvent], answer: Callable[[str], T], part: str = "") -> T:
        """Put one command through the log and return `answer(command_id)`, read at the command's own record.

        `part` stands for the call's id where one call makes several records.
        `decided` and `answer` run under the node's lock. A lost race is decided again under a derived id; an id whose
        verdict is known is answered from it. Raises what `decided` raises, `Refused`, and the log's errors.
        """
        call = current_call()
        return await self.judge(call, CommandIds(part or call.command_id), decided, answer)

    async def judge(
        self, call: Call, ids: CommandIds, decided: Callable[[State, str], AnyEvent], answer: Callable[[str], T]
    ) -> T:
        """As `command`, along a chain of ids that the caller keeps."""
        self.check_open()
        if call.basis is not None:
            await self.reach_basis(call.basis)
        restores = 0
        while True:
            command_id = ids.current
            try:
                tried = self._try(command_id, call, decided, answer)
            except Archived as archived:
                restores += 1
                if restores > MAX_RESTORES:
                    raise
                await self.restore(archived.rollout_id)
                continue
            if not isinstance(tried, asyncio.Future):
                reason, value = tried
            else:
                outcome, value = await tried
                reason = outcome.verdict.reason if outcome.verdict is not None else "malformed"
            if not reason:
                return cast(T, value)
            ids.refused(reason)

    def _try(
        self, command_id: str, call: Call, decided: Callable[[State, str], AnyEvent], answer: Callable[[str], T]
    ) -> asyncio.Future[tuple[Outcome, T | None]] | tuple[str, T | None]:
        """(reason, answer) where the verdict is known already, else the future of a proposal."""
        node = self.node
        with node.lock:
            verdict = node.state.verdicts.get(command_id)
            if verdict is not None:
                return (verdict.reason, answer(command_id) if verdict.accepted else None)
            self.check_basis(call)
            event = decided(node.state, command_id)
            return node.submit(event, command_id, answer, call.basis)

    async def reach_basis(self, basis: tuple[int, bytes] | None) -> None:
        """Among other nodes, wait until this one has what the caller's command is based on."""
        if self.shared and basis is not None:
            await self._reach(basis[0] + 1, None)

    def check_basis(self, call: Call) -> None:
        """Refuse what the fold would refuse for the basis of the call, so that nothing is written. Under the node's lock."""
        reason = "" if call.basis is None else check_basis(self.node.state, *call.basis)
        if reason == "expired":
            raise refusal(reason, call.command_id)
        if reason:
            raise ForeignPosition("the command is based on a history that is not the one of this log")

    async def restore(self, rollout_id: str) -> None:
        """Bring an archived rollout back into hot state."""
        expected = self.node.state.archived.get(rollout_id)
        body = await asyncio.to_thread(self.archive_index.body, rollout_id, expected)
        if body is None:
            self.check_index(rollout_id)
            raise NotFound.rollout(rollout_id)
        await self.settle(commands.restore(rollout_id, body))

    async def settle(self, event: AnyEvent) -> Outcome:
        """Propose an event of the store's own and return what became of it."""
        with self.node.lock:
            future = self.node.submit(event, uuid7_hex())
        return (await future)[0]

    async def note(self, event: RunEvent) -> int:
        """Put an event of a run into the log; its position, once it is durable and folded past. Repeating it is harmless."""
        self.check_open()
        call = current_call()
        await self.reach_basis(call.basis)
        with self.node.lock:
            self.check_basis(call)
            future = self.node.submit(event, call.command_id, basis=call.basis)
        return (await future)[0].position

    async def observe(self, rollout_id: str, attempt_id: str, edge: Edge) -> bool:
        """A sign of life of an attempt: stamp it, and put the edge into the log if it makes one. False if unknown."""
        known, made = self.observing(rollout_id, attempt_id, edge)
        if made is not None:
            await made
        return known

    def observing(self, rollout_id: str, attempt_id: str, edge: Edge) -> tuple[bool, asyncio.Future[Any] | None]:
        """As `observe`, for who waits later: whether the attempt is known, and the edge on its way, if it makes one."""
        node = self.node
        with node.lock:
            rollout = node.state.rollouts.get(rollout_id)
            if rollout is None:
                return False, None
            attempt = next((one for one in reversed(rollout.attempts) if one.attempt_id == attempt_id), None)
            if attempt is None:
                return False, None
            now_us = self.time_us()
            self.heartbeats.beat((rollout_id, attempt.sequence_id), self.expiry.now(), now_us, late=True)
            event = commands.observe(rollout, attempt, edge, now_us)
            if event is None:
                return True, None
            # Concurrent first spans share one edge: the id is the same while the state that asks for it is.
            command_id = (
                f"edge/{rollout_id}/{attempt_id}/{attempt.status}/{attempt.revivals}/{event.edge}/{node.writer}"
            )
            if node.state.verdicts.get(command_id) is not None:
                return True, None
            return True, node.submit(event, command_id)

    # Look-ups, under the node's lock or not at all in a hurry

    def _where(self, rollout_id: str) -> KeyRange | None:
        """Where in their partition the spans of a rollout lie; None for an unknown rollout. Blocks for the I/O."""
        rollout = self.load(rollout_id)
        return None if rollout is None else key_range(rollout)

    def check_index(self, rollout_id: str) -> None:
        """An archived rollout is not in the index: later, perhaps."""
        if self.backfill is not None:
            self.backfill.check()
        if not self.archive_index.whole:
            raise Rebuilding(
                f"rollout {rollout_id} is finished and the index of such is being made; try again in a moment"
            )

    def recorded(self, command_id: str) -> AnyEvent | None:
        """The event that a command put into the log; None where its verdict is forgotten. Blocks for the I/O."""
        with self.node.lock:
            verdict = self.node.state.verdicts.get(command_id)
        # Others share the partition at most, so a record lies at its position or behind it.
        offset = None if verdict is None else verdict.position
        named = needle(command_id)
        while offset is not None:
            records = self.log.read(CONTROL, 0, offset, RECORDED_SLICE, headers=False)
            for record in records:
                if named in record.value:
                    proposal = decode(record.value)
                    if proposal.id == command_id:
                        return proposal.event
            offset = records[-1].offset + 1 if records else None
        return None

    async def indexed(self) -> None:
        """Wait until what is finished can be listed. Raises `Rebuilding` where that takes longer than a call may."""
        if self.backfill is not None and not self.backfill.done.is_set():
            await self.backfill.wait()

    def fetch(self, reference: payload.Reference) -> bytes:
        """The bytes of a payload that lies in blobs."""
        return self.blobs.fetch(reference)

    def beat_us(self, rollout: Rollout, attempt: Attempt) -> int | None:
        """The overlay's last sign of life of an attempt; under the node's lock."""
        return self.heartbeats.beat_us(rollout.rollout_id, attempt.sequence_id)

    def time_us(self) -> int:
        """The wall clock in microseconds."""
        return int(self.clock.time() * 1_000_000)

    def is_finished(self, rollout_id: str) -> bool | None:
        """Whether a rollout has its outcome; None for an unknown one."""
        rollout = self.node.state.rollouts.get(rollout_id)
        if rollout is not None:
            return rollout.status in FINISHED
        return True if self.node.state.archived.get(rollout_id) is not None else None

    # Positions

    def position_token(self) -> str:
        """What is applied, as text: log id, fingerprint, and the number of records folded."""
        position, fingerprint = self.node.mark
        head = f"{self.log.log_id}:{fingerprint.hex()}:{position}"
        return joined(head, self.log.known_ends(SPANS)) if self.shared else head

    async def wait_position(self, token: str) -> None:
        """Wait until everything that `token` stands for is applied here.

        Raises `ForeignPosition` for a token of another log or history, and for one that is ahead of the log: nothing that
        was acknowledged is, unless the log lost it. Raises `InvalidInput` for what is no token.
        """
        if self.reached(token):
            return
        seen = read_token(token)
        await self._reach(seen.position, seen.fingerprint)
        known = self.log.known_ends(SPANS)
        ahead = [(part, end) for part, end in seen.spans.items() if end > known.get(part, 0)]
        if self.shared and ahead:
            await asyncio.gather(*(self._reach_spans(part, end) for part, end in ahead))

    def reached(self, token: str) -> bool:
        """Whether everything that `token` stands for is applied here. Raises as `wait_position`."""
        seen = read_token(token)
        if seen.log_id != self.log.log_id:
            raise ForeignPosition(f"the position comes from log {seen.log_id}, this store serves log {self.log.log_id}")
        with self.node.lock:
            self.check_open()
            if seen.position > self.node.state.position:
                return False
            self._check_print(seen.position, seen.fingerprint)
        if not self.shared or not seen.spans:
            return True
        known = self.log.known_ends(SPANS)
        return all(end <= known.get(part, 0) for part, end in seen.spans.items())

    async def _reach_spans(self, partition: int, end: int) -> None:
        """Find the log's end of a span partition at `end` or above; what is asked for later is not below it then."""
        if partition >= self.log.partitions(SPANS):
            raise ForeignPosition(f"this log has no partition {partition} of spans")
        found = await answer_of(partial(self.log.ask_end, SPANS, partition, at_least=end))
        if found < end:
            raise ForeignPosition(
                f"partition {partition} of spans ends at {found}, and the caller was given its end as {end}: the log was "
                "restored from a copy, or lost what it had acknowledged"
            )

    async def _reach(self, position: int, fingerprint: bytes | None) -> None:
        """Wait until so many records are folded here, and check the fingerprint after them (None: any)."""
        node = self.node
        for look in count():
            with node.lock:
                self.check_open()
                ahead, offset = position - node.state.position, node.next_offset
                if ahead <= 0:
                    self._check_print(position, fingerprint)
                    return
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._position_waiters = [one for one in self._position_waiters if not one[1].done()]
                if self.shared:
                    self._position_waiters.append((position, future))
            if self.shared:  # another node may have written it, and this one has not read it yet
                if (await asyncio.wait({future}, timeout=AHEAD_SECONDS))[0]:
                    future.result()
                    continue
                future.cancel()
                try:
                    ahead -= (await asyncio.to_thread(self.log.ends, CONTROL, 0))[1] - offset
                except LogError as error:
                    logger.debug("The log does not say where it ends: %s", error)
                    continue
            if ahead > 0 and (look or not self.shared):  # a broker may say for a moment that its log ends earlier
                raise ForeignPosition(
                    f"position {position} is ahead of the log, which holds {node.mark[0]} records: it was restored from a "
                    "copy, or lost what it had acknowledged"
                )

    def _check_print(self, position: int, fingerprint: bytes | None) -> None:
        """Raise `ForeignPosition` where the fingerprint after so many records is known to be another one."""
        known = self.node.state.verdicts.print_at(position - 1)
        if fingerprint is not None and known is not None and known != fingerprint:
            raise ForeignPosition(
                f"at position {position} the log has another history than the caller has seen: it was restored from a copy, "
                "or lost what it had acknowledged"
            )

    def _wake_positions(self) -> None:
        position = self.node.state.position
        for wanted, future in self._position_waiters:
            if wanted <= position:
                self.node.delivery.put(future, None)
        self._position_waiters = [one for one in self._position_waiters if one[0] > position]
