"""The node: one folded copy of a log, the only writer of its control records, and who waits for what became of them.

A command is decided against the local state, staged, appended together with everything else that is waiting, folded when
the log has it, and answered with what the fold made of exactly this record. Everything here happens under one lock,
which is held for microseconds; the log's I/O happens outside of it. A node belongs to no event loop and no thread.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from ...core.clock import Clock, SystemClock
from ...core.errors import (
    HistoryChanged,
    InvalidInput,
    LogClosed,
    LogError,
    OffsetLost,
    Refused,
    StorageError,
    UnknownOutcome,
)
from ...core.events.codec import Undecodable, check, decode, encode, headers_of
from ...core.events.run_events import RUN_EVENTS, RunEvent, RunRecord, decode_run
from ...core.events.schema import AnyEvent, Proposal, RolloutsEnqueued
from ...core.fold import commands
from ...core.fold.apply import Outcome, apply
from ...core.fold.state import FOLD_VERSION, State
from ...core.ids import uuid7_hex
from ...core.log.interface import Ack, Log, NewRecord, Record, Subscription
from ...core.log.topics import CONTROL
from .command_context import Delivery, refusal
from .fold_cursor import READ_RECORDS, FoldCursor
from .settings import StoreSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")
Done = Callable[["Outcome | Exception"], None]
"""Called under the lock, right after the fold step of the record, or with the error that kept it out of the log."""

Listener = Callable[[Outcome], None]
BATCH_RECORDS = 1024
BATCH_BYTES = 4_000_000
APPEND_TRIES = 3
SETTLE_SECONDS = 10.0
"""How long the tail may take to show what is in the log, before an unknown outcome is tried again anyway."""


class _Ticket:
    """A proposal on its way, what its record reads back as where that is known, and who waits for what becomes of it."""

    __slots__ = ("command_id", "proposal", "record", "tries", "waiting")

    def __init__(self, command_id: str, record: NewRecord, proposal: Proposal | None, done: Done) -> None:
        self.command_id = command_id
        self.record = record
        self.proposal = proposal
        self.tries = 0
        self.waiting = [done]


class Node:
    """Folds `log` and proposes to it. `foreign_writers`: others append to the same log, follow it."""

    def __init__(
        self,
        log: Log,
        settings: StoreSettings,
        *,
        clock: Clock | None = None,
        foreign_writers: bool = False,
    ) -> None:
        self.log = log
        self.settings = settings
        self.clock = clock if clock is not None else SystemClock()
        self.writer = uuid7_hex()[-12:]
        self.lock = threading.RLock()
        self.state = State()
        self.next_offset = 0
        self.delivery = Delivery()
        self.listeners: list[Listener] = []
        self.broken: Exception | None = None
        self._foreign = foreign_writers
        # Staging has a lock of its own, taken after `lock`: the log's thread sends the next batch without waiting for
        # the fold of the one before, which is the applier's work.
        self._staging = threading.RLock()
        self._staged: list[_Ticket] = []
        self._inflight = False
        self._batch_bytes = min(BATCH_BYTES, log.append_limit(CONTROL))
        self._acked: queue.SimpleQueue[tuple[list[_Ticket], Ack | LogError] | None] = queue.SimpleQueue()
        self._applier = threading.Thread(target=self._apply_acked, name="agl-fold", daemon=True)
        self._tickets: dict[str, _Ticket] = {}
        self._subscription: Subscription | None = None
        self.mark: tuple[int, bytes] = (0, b"")
        """(position, fingerprint) of what is folded, of one moment: it may be read without the lock."""
        self.lost_by: Exception | None = None
        """Why this state is not that of the log any more."""
        self.on_lost: Callable[[Exception], None] | None = None
        """Called under the lock, once, when nothing may be answered from this state any more."""
        self.on_doubt: Callable[[int], None] | None = None
        """Called under the lock with a position where another node's history differs from ours: one of us is wrong."""

    # Start and stop

    def open(self, restored: FoldCursor | None = None) -> None:
        """Rebuild the state from a snapshot, if one is given, and the records after it; begin an empty log."""
        cursor = restored if restored is not None else FoldCursor(self.log)
        self.state, listeners = cursor.state, self.listeners
        collecting = gc.isenabled()
        gc.disable()  # a million small objects are built and none of them is garbage
        try:
            for _, outcome in cursor.fold():
                for listener in listeners:
                    listener(outcome)
        finally:
            if collecting:
                gc.enable()
        self.next_offset = cursor.next_offset
        self.mark = (self.state.position, self.state.fingerprint)
        self._check_halted()
        self._applier.start()
        if self._foreign:
            self._subscription = self.log.follow(
                CONTROL, 0, self.next_offset, self._on_tail, self._on_problem
            )
        if self.state.position == 0:
            opening = commands.open_log(self.settings.window, self.settings.archive_after, FOLD_VERSION)
            try:
                self.run(opening)
            except Refused as refused:
                if refused.reason != "already_open":  # another node was quicker, and its word counts
                    raise

    def close(self) -> None:
        """Fold what the log has acknowledged, then stop; the log was closed before. Who still waits gets `LogClosed`."""
        if self._subscription is not None:
            self._subscription.close()
        self._acked.put(None)
        if self._applier.is_alive():
            self._applier.join()
        with self.lock:
            self._fail_all(LogClosed("the store was closed"))

    def _check_halted(self) -> None:
        if self.state.halted is not None:
            raise Refused(self.state.halted, reason="halted")

    @property
    def busy(self) -> bool:
        """Whether a proposal is under way; under the lock."""
        return bool(self._tickets)

    # Reading the log

    def _catch_up(self) -> None:
        """Fold everything from `next_offset` to the end of the partition."""
        while True:
            records = self.log.read(CONTROL, 0, self.next_offset, READ_RECORDS, headers=False)
            if not records:
                return
            with self.lock:
                self._fold_records(records)

    def _on_tail(self, records: Sequence[Record]) -> None:
        with self.lock:
            self._fold_records(records)
            self.delivery.flush()

    def _on_problem(self, error: LogError) -> None:
        with self.lock:
            if isinstance(error, LogClosed):
                self.broken = error
                self._fail_all(error)
            elif isinstance(error, OffsetLost):
                self.history_changed(str(error))
            else:
                self._lose(StorageError(f"the log cannot be followed any more ({error}); restart the store"))

    def history_changed(self, why: str) -> None:
        """The log is another one than what was folded. Under the lock."""
        self._lose(
            HistoryChanged(f"the log is not the one that this store has folded ({why}); restart it to fold the log anew")
        )

    def _lose(self, error: LogError) -> None:
        """Nothing may be answered from this state any more."""
        if self.broken is not None:
            return
        logger.error("%s", error)
        self.broken = self.lost_by = error
        self._fail_all(error)
        if self.on_lost is not None:
            self.on_lost(error)

    def _fold_records(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.offset < self.next_offset:
                continue
            if record.offset > self.next_offset and self._foreign:
                self.history_changed(f"the control log has a hole at offset {self.next_offset}")
                return
            self.next_offset = record.offset + 1
            self._fold_value(record.value)

    def _fold_value(self, value: bytes, proposal: Proposal | None = None) -> None:
        outcome = apply(self.state, value, proposal)
        self.mark = (self.state.position, self.state.fingerprint)
        for listener in self.listeners:
            listener(outcome)
        if outcome.proposal is not None:
            verdict = outcome.verdict
            if verdict is not None and verdict.reason == "foreign_history" and self.on_doubt is not None:
                if outcome.proposal.writer != self.writer:
                    self.on_doubt(outcome.position)
            self._answer(outcome.proposal.id, outcome)
        elif self._tickets and (run := decode_run(value)) is not None:
            self._answer(run.id, outcome)
        if self.state.halted is not None and self._tickets:
            self._fail_all(Refused(self.state.halted, reason="halted"))

    # Proposing

    def propose(
        self, event: AnyEvent | RunEvent, command_id: str, done: Done, basis: tuple[int, bytes] | None = None
    ) -> None:
        """Stage an event under the lock; the same id while it is under way only adds one more who waits.

        An event of a run is not judged: `done` gets an outcome without a verdict once the log has it.
        """
        if self.lost_by is not None:
            raise self.lost_by
        if self.broken is not None:
            raise StorageError(f"the store cannot write: {self.broken}")
        self._check_halted()
        waiting = self._tickets.get(command_id)
        if waiting is not None:
            waiting.waiting.append(done)
            return
        state = self.state
        position, fingerprint = basis if basis is not None else (state.position - 1, state.fingerprint)
        time_us = int(self.clock.time() * 1_000_000)
        if isinstance(event, RUN_EVENTS):
            proposal = RunRecord(command_id, time_us, self.writer, position, fingerprint, event, noncritical=True)
        else:
            proposal = Proposal(command_id, time_us, self.writer, position, fingerprint, event)
        value, read = self._encode(proposal)
        record = NewRecord("", value, time_us, headers_of(proposal))
        ticket = self._tickets[command_id] = _Ticket(command_id, record, read, done)
        with self._staging:
            self._staged.append(ticket)
            self._flush()

    def _encode(self, proposal: Proposal | RunRecord) -> tuple[bytes, Proposal | None]:
        """The value of a record, and what it reads back as; what no fold can decode is refused here and never written.

        The rollouts of a batch may be thousands and this is under the lock: who made them has read each back.
        """
        try:
            value = encode(proposal)
            if isinstance(proposal, RunRecord):
                check(proposal)
                return value, None
            return value, proposal if type(proposal.event) is RolloutsEnqueued else decode(value)
        except (Undecodable, ValueError, OverflowError, TypeError) as error:
            raise InvalidInput(f"a value of the call cannot be part of an event: {error}") from None

    def _flush(self) -> None:
        """Send the next batch if none is under way; under `_staging`."""
        if self._inflight or not self._staged:
            return
        self._inflight = True
        batch: list[_Ticket] = []
        self.log.append_staged(CONTROL, 0, lambda: self._take(batch), lambda ack: self._on_ack(batch, ack))

    def _take(self, batch: list[_Ticket]) -> list[NewRecord]:
        """Move what is staged by now, as far as it fits, into the batch, and return its records. At once, or from the log."""
        with self._staging:
            size = count = 0
            for staged in self._staged[:BATCH_RECORDS]:
                size += len(staged.record.value)
                if count and size > self._batch_bytes:
                    break
                count += 1
            batch += self._staged[:count]
            del self._staged[:count]
        return [staged.record for staged in batch]

    def _on_ack(self, batch: list[_Ticket], ack: Ack | LogError) -> None:
        """The log's thread says what became of a batch: the next one goes out, this one goes to the applier."""
        with self._staging:
            self._inflight = False
            if isinstance(ack, Ack):
                self._flush()
        self._acked.put((batch, ack))

    def _apply_acked(self) -> None:
        """The applier's thread: fold acknowledged batches in order and wake who waits for them."""
        while True:
            item = self._acked.get()
            if item is None:
                return
            batch, ack = item
            try:
                self._find_records(ack)
                with self.lock:
                    self._apply_batch(batch, ack)
                    self.delivery.flush()
            except Exception as error:  # a node that failed to fold must not answer from half a state
                logger.exception("The store failed to fold and stops serving.")
                with self.lock:
                    self._lose(StorageError(f"the store failed to fold ({error}); restart it to fold the log anew"))
                    self.delivery.flush()

    def _find_records(self, ack: Ack | LogError) -> None:
        """Fold what the log holds by now, where an answer does not say where its records are. Without the lock: it reads."""
        if isinstance(ack, UnknownOutcome) and self._foreign:
            self._await_end()
        elif isinstance(ack, UnknownOutcome) and self.broken is None:
            self._catch_up()
        elif isinstance(ack, Ack) and not self._foreign and not 0 <= ack.base_offset <= self.next_offset:
            self._catch_up()

    def _await_end(self) -> None:
        """Wait until the tail has brought everything that is in the log now. Without the lock: nobody else waits."""
        try:
            end = self.log.ends(CONTROL, 0)[1]
        except LogError as error:
            logger.warning("The log does not say where it ends: %s", error)
            return
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.next_offset < end and self.broken is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def _apply_batch(self, batch: list[_Ticket], ack: Ack | LogError) -> None:
        if isinstance(ack, Ack):
            if ack.base_offset == self.next_offset:
                for staged in batch:
                    self.next_offset += 1
                    self._fold_value(staged.record.value, staged.proposal)
                if self._subscription is not None:
                    self._subscription.passed(self.next_offset)
            elif 0 <= ack.base_offset < self.next_offset and any(one.command_id in self._tickets for one in batch):
                # Something else was folded at these offsets.
                self.history_changed(f"offset {ack.base_offset} of the control log was given twice")
            return  # what others wrote before it comes through the tail, and so does this
        again: list[_Ticket] = []
        if isinstance(ack, UnknownOutcome):
            again = self._settle_unknown(batch, ack)
        else:
            for staged in batch:
                self._answer(staged.command_id, ack)
        with self._staging:
            self._staged[:0] = again
            self._flush()

    def _settle_unknown(self, batch: list[_Ticket], error: LogError) -> list[_Ticket]:
        """Everything that is in the log is folded; return what is not there and goes out again under the same id."""
        again: list[_Ticket] = []
        for staged in batch:
            if staged.command_id not in self._tickets:
                continue
            staged.tries += 1
            if staged.tries < APPEND_TRIES:
                again.append(staged)
            else:
                self._answer(staged.command_id, error)
        return again

    def _answer(self, command_id: str, result: Outcome | Exception) -> None:
        ticket = self._tickets.pop(command_id, None)
        if ticket is not None:
            for done in ticket.waiting:
                done(result)

    def _fail_all(self, error: Exception) -> None:
        for command_id in list(self._tickets):
            self._answer(command_id, error)
        with self._staging:
            self._staged.clear()
        self.delivery.flush()

    # Waiting for outcomes

    def submit(
        self,
        event: AnyEvent | RunEvent,
        command_id: str,
        answer: Callable[[str], T] | None = None,
        basis: tuple[int, bytes] | None = None,
    ) -> asyncio.Future[tuple[Outcome, T | None]]:
        """Propose from an event loop, under the lock: (outcome, what `answer` reads from the state at this very record).

        `answer` is called with the command's id, where the record was accepted.
        """
        future: asyncio.Future[tuple[Outcome, T | None]] = asyncio.get_running_loop().create_future()

        def done(result: Outcome | Exception) -> None:
            if isinstance(result, Exception):
                self.delivery.put(future, result, True)
                return
            try:
                value = answer(command_id) if answer is not None and _accepted(result) else None
            except Exception as error:  # the caller's own answer failed: its error, nobody else's
                self.delivery.put(future, error, True)
                return
            self.delivery.put(future, (result, value))

        self.propose(event, command_id, done, basis)
        return future

    def run(self, event: AnyEvent) -> Outcome:
        """Propose and wait in this thread, which must not be a thread of the log. Raises what refused it."""
        answered: Future[Outcome | Exception] = Future()
        command_id = uuid7_hex()
        with self.lock:
            self.propose(event, command_id, answered.set_result)
        outcome = answered.result()
        if isinstance(outcome, Exception):
            raise outcome
        if not _accepted(outcome):
            raise refusal(outcome.verdict.reason if outcome.verdict is not None else "malformed", command_id)
        return outcome


def _accepted(outcome: Outcome) -> bool:
    return outcome.verdict is not None and outcome.verdict.accepted
