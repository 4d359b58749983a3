"""The store's dequeue methods: claim the oldest claimable rollout, wait for one, and answer a retry with the same one."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from ...core.errors import AgentLightningError, LogCorrupt, NotFound, Refused
from ...core.events import payload
from ...core.events.schema import AnyEvent, Claim
from ...core.fold import commands
from ...core.fold.state import State
from ...core.ids import uuid7_hex
from ...core.model import rollout as model
from ...core.model.status import ATTEMPT_EXPIRED
from ...core.model.store_interface import LightningStore
from ..replica import validation
from ..replica.command_context import Call, CommandIds, current_call
from .engine import Engine
from .views import Peeked, attempted_out, shown

logger = logging.getLogger(__name__)


class Claimed(NamedTuple):
    """A claim that the log accepted, with the rollout as it was at that record."""

    rollout_id: str
    sequence_id: int
    peeked: Peeked


Unclaim = Callable[[Claimed], None]
"""What is called with a claim whose caller left before its answer."""


MOST_ANSWERED = 10_000


class Returns:
    """What becomes of a claim whose caller left before its answer: nobody runs it, so it goes back to the queue.

    A caller that can repeat its call gets `seconds` to do so: it is given the same claim, which then stays its own. A
    remote claim is confirmed by its claimer and taken back by the timekeeper, so nothing is done about it here. One event
    loop may serve a first try and another one its repetition.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._answered: OrderedDict[str, None] = OrderedDict()
        """Ids of the calls that were given a claim lately."""

    def answered(self, call: Call) -> None:
        """A try of this call was given its claims."""
        if call.repeatable and not call.remote:
            with self._lock:
                self._answered[call.command_id] = None
                if len(self._answered) > MOST_ANSWERED:
                    self._answered.popitem(last=False)

    def unclaim(self, call: Call, abandon: Unclaim, claimed: Claimed) -> None:
        """A try of this call ended without the claim that it made."""
        if call.remote:
            return
        if not call.repeatable:
            abandon(claimed)
            return

        def end() -> None:
            with self._lock:
                answered = call.command_id in self._answered
            if not answered:
                abandon(claimed)

        asyncio.get_running_loop().call_later(self._seconds, end)


class _Claimer(NamedTuple):
    """Who claims; `run_id`: rollouts of that run only."""

    worker_id: str | None
    incarnation: str | None
    run_id: str | None


class _NothingClaimable(Exception):
    """Nothing is claimable now. `turn`: what to wait for, at most `opens_in` seconds; None for a caller that does not wait."""

    def __init__(self, turn: asyncio.Future[None] | None, opens_in: float | None) -> None:
        self.turn = turn
        self.opens_in = opens_in


class _Trying:
    """One claim on its way through the log. `decided` and `answer` run under the node's lock."""

    def __init__(
        self, methods: ClaimMethods, call: Call, who: _Claimer, deadline: float | None, unclaim: Unclaim
    ) -> None:
        self._methods = methods
        self._call = call
        self._who = who
        self._deadline = deadline
        self._unclaim = unclaim
        self._loop = asyncio.get_running_loop()
        self._taken: str | None = None
        self._made: Claimed | None = None
        self._left = False

    def decided(self, state: State, command_id: str) -> AnyEvent:
        """The claim of the rollout that is this claimer's next. Raises `_NothingClaimable`."""
        engine, who = self._methods.engine, self._who
        self._give_back()
        self._made = None
        patient = self._deadline is not None and self._loop.time() < self._deadline
        rollout_id = engine.claim_queue.take(state, patient=patient, run_id=who.run_id)
        if rollout_id is not None:
            claimer = Claim(
                attempt_id=commands.attempt_id_of(command_id),
                worker_id=who.worker_id,
                incarnation=who.incarnation,
                confirm=self._call.remote,
                lag_ms=engine.expiry.lag_ms(),
            )
            event = commands.claim(state, rollout_id, claimer)
            if event is not None:
                self._taken = rollout_id
                return event
        if patient:
            turn = engine.claim_queue.wait(self._loop, who.run_id)
            raise _NothingClaimable(turn, engine.claim_queue.opens_in(state, who.run_id))
        engine.claim_queue.pass_on(who.run_id)
        engine.node.delivery.flush()
        raise _NothingClaimable(None, None)

    def answer(self, command_id: str) -> Claimed:
        """What the fold made of exactly this claim."""
        self._taken, self._made = None, self._methods.claimed_by(command_id)
        if self._left:
            self._loop.call_soon_threadsafe(self._unclaim, self._made)
        return self._made

    def leave(self) -> None:
        """The caller left, or the claim was kept out of the log: what it was for is offered to others."""
        with self._methods.engine.node.lock:
            self._left = True
            self._give_back()
            made = self._made
        if made is not None:
            self._unclaim(made)

    def _give_back(self) -> None:
        """Offer what another was first to claim, or what was not claimed in the end, if it is claimable still."""
        if self._taken is not None:
            engine = self._methods.engine
            engine.claim_queue.give_back(engine.node.state, self._taken)
            engine.node.delivery.flush()
            self._taken = None


class ClaimMethods(LightningStore):
    """Part of `EventLogStore` (store.py)."""

    engine: Engine
    _returns: Returns

    async def dequeue_rollout(
        self,
        worker_id: str | None = None,
        *,
        wait_seconds: float = 0.0,
        incarnation: str | None = None,
        command_id: str | None = None,
        run_id: str | None = None,
    ) -> model.AttemptedRollout | None:
        claimed = await self.dequeue_many_rollouts(
            limit=1,
            worker_id=worker_id,
            wait_seconds=wait_seconds,
            incarnation=incarnation,
            command_id=command_id,
            run_id=run_id,
        )
        return claimed[0] if claimed else None

    async def dequeue_many_rollouts(
        self,
        *,
        limit: int = 1,
        worker_id: str | None = None,
        wait_seconds: float = 0.0,
        incarnation: str | None = None,
        command_id: str | None = None,
        run_id: str | None = None,
    ) -> Sequence[model.AttemptedRollout]:
        limit = validation.whole(limit, "limit")
        who = _Claimer(
            validation.text_or_none(worker_id, "worker_id"),
            validation.text_or_none(incarnation, "incarnation"),
            validation.text_or_none(run_id, "run_id"),
        )
        call = current_call(validation.text_or_none(command_id, "command_id"))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + validation.number(wait_seconds, "wait_seconds")
        unclaim = partial(self._returns.unclaim, call, self._abandon)
        claimed = await self._claim_many(max(limit, 0), call, who, deadline, unclaim)
        try:
            answers = await self._runnable(claimed, call)
        except BaseException:
            for one in claimed:
                unclaim(one)
            raise
        if answers:
            self._returns.answered(call)
        if not claimed and limit > 0:
            if who.worker_id:
                self._found_nothing(who.worker_id)
            if who.run_id is None:
                self._say_who_gets_it(who.worker_id)
        return answers

    async def _claim_many(
        self, limit: int, call: Call, who: _Claimer, deadline: float, unclaim: Unclaim
    ) -> list[Claimed]:
        claimed: list[Claimed] = []
        for index in range(limit):
            # Each claim of a batch has a chain of its own, so a repeated batch finds the same rollouts again.
            base = call.command_id if index == 0 else f"{call.command_id}/{index}"
            try:
                one = await self._claim(base, call, who, None if claimed else deadline, unclaim)
            except asyncio.CancelledError:
                for lost in claimed:
                    unclaim(lost)
                raise
            except AgentLightningError as error:
                if not claimed:
                    raise
                logger.warning("A batch of claims ends early, after %d: %s", len(claimed), error)
                break  # what was claimed has an owner only if the caller gets the answer
            if one is None:
                break
            claimed.append(one)
        return claimed

    async def _claim(
        self, base: str, call: Call, who: _Claimer, deadline: float | None, unclaim: Unclaim
    ) -> Claimed | None:
        """The first claim of the chain base, base.1, base.2, ... that is accepted; None when nothing is claimable.

        A claim that was taken back since is none: nobody may run it any more.
        """
        engine, loop = self.engine, asyncio.get_running_loop()
        ids = CommandIds(base, most=None)  # a claim that waits may lose any number of races
        trying = _Trying(self, call, who, deadline, unclaim)
        while True:
            try:
                claimed = await engine.judge(call, ids, trying.decided, trying.answer)
            except _NothingClaimable as nothing:
                if nothing.turn is None or deadline is None:
                    return None
                left = deadline - loop.time()
                await self._await_turn(
                    nothing.turn, left if nothing.opens_in is None else min(left, nothing.opens_in), who.run_id
                )
                continue
            except BaseException:
                trying.leave()
                raise
            rollout = await engine.resolve(claimed.rollout_id, claimed.peeked)
            if rollout is not None and rollout.attempts[claimed.sequence_id - 1].status not in ATTEMPT_EXPIRED:
                return claimed._replace(peeked=rollout)
            ids.advance()

    async def _await_turn(self, turn: asyncio.Future[None], seconds: float, run_id: str | None) -> None:
        """Wait to be woken, at most so long. Who is woken and leaves passes the turn on."""
        loop = asyncio.get_running_loop()
        handle = loop.call_later(seconds, _end, turn) if seconds < 1e9 else None
        try:
            await turn
        except asyncio.CancelledError:
            with self.engine.node.lock:
                self.engine.claim_queue.pass_on(run_id)
                self.engine.node.delivery.flush()
            raise
        finally:
            if handle is not None:
                handle.cancel()

    def _abandon(self, claimed: Claimed) -> None:
        engine = self.engine
        with engine.node.lock:
            rollout = engine.node.state.rollouts.get(claimed.rollout_id)
            if rollout is None or engine.closed or engine.node.broken is not None:
                return
            attempt = rollout.attempts[claimed.sequence_id - 1]
            event = commands.expire(
                rollout, attempt, "worker_lost", beat_us=None, watermark=None, lost_retries=rollout.lost + 1
            )
            engine.node.propose(event, uuid7_hex(), lambda _: None)

    def claimed_by(self, command_id: str) -> Claimed:
        """The claim that this command made; under the node's lock."""
        verdict = self.engine.node.state.verdicts.get(command_id)
        assert verdict is not None
        rollout_id, _, number = verdict.subject.partition("#")
        return Claimed(rollout_id, int(number), self.engine.peek(rollout_id))

    async def _runnable(self, claimed: Sequence[Claimed], call: Call) -> list[model.AttemptedRollout]:
        """The claims as their caller gets them, without those that nobody can run: the log lost what they are to do."""
        answers: list[model.AttemptedRollout] = []
        for one in claimed:
            try:
                answers.append(await self._show(one))
            except LogCorrupt as error:
                await self._end_lost(one, call, error)
        return answers

    async def _end_lost(self, claimed: Claimed, call: Call, error: LogCorrupt) -> None:
        """End an attempt for its lost payload: given back to the queue, it would stop one runner after the other."""
        engine = self.engine
        logger.error("Rollout %s cannot be run: %s", claimed.rollout_id, error)
        end = await engine.spans.end(claimed.rollout_id)
        reason = payload.encode({"error": error.message}, "the metadata")

        def decided(state: State, _: str) -> AnyEvent:
            rollout = commands.find(state, claimed.rollout_id)
            attempt = rollout.attempts[claimed.sequence_id - 1]
            return commands.update_attempt(
                rollout, attempt, status="failed", worker_id=None, metadata=reason, beat_us=None, watermark=end.watermark,
                reward=end.rewards.get(attempt.attempt_id), lag_ms=engine.expiry.lag_ms(),
            )  # fmt: skip

        part = f"{call.command_id}/lost/{claimed.rollout_id}#{claimed.sequence_id}"
        try:
            await engine.command(decided, lambda _: None, part)
        except Refused as refused:
            if refused.reason != "late":  # it has ended in another way
                raise

    async def _show(self, claimed: Claimed) -> model.AttemptedRollout:
        rollout = await self.engine.resolve(claimed.rollout_id, claimed.peeked)
        if rollout is None:
            raise NotFound.rollout(claimed.rollout_id)
        attempt = rollout.attempts[claimed.sequence_id - 1]
        return await shown(lambda: attempted_out(rollout, attempt, self.engine.fetch), [rollout])

    def _found_nothing(self, worker_id: str) -> None:
        """The worker is idle: an overlay, since an empty queue changes nothing in the log."""
        engine = self.engine
        with engine.node.lock:
            now = engine.time_us()
            beat = engine.heartbeats.worker(worker_id)
            beat.dequeue_us = now
            known = engine.node.state.workers.get(worker_id)
            idle = beat.idle_at > (known.changed_at if known is not None else -1) and beat.idle_us is not None
            if not idle and (known is None or known.status != "idle"):
                beat.idle_us = now
                beat.idle_at = engine.node.state.position
                engine.heartbeats.keep(beat)

    def _say_who_gets_it(self, worker_id: str | None) -> None:
        """One line for each run whose rollouts a worker from elsewhere did not get."""
        with self.engine.node.lock:
            run_id = self.engine.claim_queue.refused_run()
        if run_id is not None:
            logger.warning(
                "Worker %s asked for work and got none of run %s, whose rollouts are for its own runners only; those "
                "of a run whose program has ended are cancelled by `agl cancel %s`.",
                worker_id or "(without a name)",
                run_id,
                run_id,
            )

    async def confirm_claim(self, rollout_id: str, attempt_id: str) -> bool:
        """A remote claimer got its answer: the claim is not taken back. Idempotent; False for what is not known."""
        return await self.engine.observe(rollout_id, attempt_id, "confirmed")


def _end(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
