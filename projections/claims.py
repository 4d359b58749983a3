"""The store's dequeue methods: claim the oldest claimable rollout, wait for one, and answer a retry with the same one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from ..core import decide, model
from ..core.contract import LightningStore
from ..core.errors import AgentLightningError, LogClosed
from ..core.events import Claim
from ..core.fold import Outcome
from ..core.ids import uuid7_hex
from ..core.verdicts import Verdict
from . import arguments
from .answers import attempted_out
from .call import Call, CommandIds, current_call
from .engine import Engine

logger = logging.getLogger(__name__)


class ClaimMethods(LightningStore):
    """Part of `EventLogStore` (store.py)."""

    engine: Engine

    async def dequeue_rollout(
        self,
        worker_id: str | None = None,
        *,
        wait_seconds: float = 0.0,
        incarnation: str | None = None,
        command_id: str | None = None,
    ) -> model.AttemptedRollout | None:
        claimed = await self.dequeue_many_rollouts(
            limit=1, worker_id=worker_id, wait_seconds=wait_seconds, incarnation=incarnation, command_id=command_id
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
    ) -> Sequence[model.AttemptedRollout]:
        limit = arguments.whole(limit, "limit")
        worker_id = arguments.text_or_none(worker_id, "worker_id")
        incarnation = arguments.text_or_none(incarnation, "incarnation")
        call = current_call(arguments.text_or_none(command_id, "command_id"))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + arguments.number(wait_seconds, "wait_seconds")
        claimed: list[model.AttemptedRollout] = []
        for index in range(max(limit, 0)):
            # Each claim of a batch has a chain of its own, so a repeated batch finds the same rollouts again.
            base = call.command_id if index == 0 else f"{call.command_id}/{index}"
            try:
                one = await self._claim(base, call, worker_id, incarnation, None if claimed else deadline)
            except asyncio.CancelledError:
                if _gone_for_good(call):
                    for lost in claimed:
                        self._abandon(lost)
                raise
            except AgentLightningError as error:
                if not claimed:
                    raise
                logger.warning("A batch of claims ends early, after %d: %s", len(claimed), error)
                break  # what was claimed has an owner only if the caller hears of it
            if one is None:
                break
            claimed.append(one)
        if not claimed and limit > 0 and worker_id:
            self._found_nothing(worker_id)
        return claimed

    async def _claim(
        self, base: str, call: Call, worker_id: str | None, incarnation: str | None, deadline: float | None
    ) -> model.AttemptedRollout | None:
        """Walk the chain base, base.1, base.2, ... to the first claim that is accepted; None when nothing is claimable."""
        engine, node = self.engine, self.engine.node
        loop = asyncio.get_running_loop()
        ids = CommandIds(base, most=None)  # a claim that waits may lose any number of races
        while True:
            command_id = ids.current
            turn: asyncio.Future[None] | None = None
            opens_in: float | None = None
            future: asyncio.Future[tuple[Outcome, model.AttemptedRollout | None]] | None = None
            with node.lock:
                if engine.closed:
                    raise LogClosed("the store was closed")
                verdict = node.state.verdicts.get(command_id)
                if verdict is not None:
                    if not verdict.accepted:
                        ids.refused(verdict.reason)
                        continue
                    found = self._claimed_before(verdict)
                    if found is not None:
                        return found
                    ids.advance()
                    continue
                patient = deadline is not None and loop.time() < deadline
                rollout_id = engine.dispatch.take(node.state, patient=patient)
                event = None
                if rollout_id is not None:
                    claimer = Claim(
                        attempt_id=decide.attempt_id_of(command_id),
                        worker_id=worker_id,
                        incarnation=incarnation,
                        confirm=call.remote,
                        lag_ms=engine.timekeeper.lag_ms(),
                    )
                    event = decide.claim(node.state, rollout_id, claimer)
                if event is not None:
                    future = loop.create_future()
                    node.propose(event, command_id, node.settle(future, self._answer), call.basis)
                elif not patient:
                    engine.dispatch.pass_on()
                    node.delivery.flush()
                    return None
                else:
                    turn = engine.dispatch.wait(loop)
                    opens_in = engine.dispatch.opens_in(node.state)
            if future is not None and rollout_id is not None:
                answered = await self._outcome(future, rollout_id, ids, _gone_for_good(call))
                if answered is not None:
                    return answered
            elif turn is not None and deadline is not None:
                left = deadline - loop.time()
                await self._await_turn(turn, left if opens_in is None else min(left, opens_in))

    async def _outcome(
        self,
        future: asyncio.Future[tuple[Outcome, model.AttemptedRollout | None]],
        rollout_id: str,
        ids: CommandIds,
        for_good: bool,
    ) -> model.AttemptedRollout | None:
        """The claim's answer; None where another was first, and the next id is due. Whatever keeps it out of the log gives it back."""
        try:
            outcome, answered = await asyncio.shield(future)
        except BaseException:
            future.add_done_callback(partial(self._retrieve, for_good))
            with self.engine.node.lock:
                self.engine.dispatch.give_back(self.engine.node.state, rollout_id)
                self.engine.node.delivery.flush()
            raise
        reason = outcome.verdict.reason if outcome.verdict is not None else "malformed"
        if answered is None:
            with self.engine.node.lock:
                self.engine.dispatch.give_back(self.engine.node.state, rollout_id)
                self.engine.node.delivery.flush()
            if reason:
                ids.refused(reason)
            else:
                ids.advance()
        return answered

    async def _await_turn(self, turn: asyncio.Future[None], seconds: float) -> None:
        """Wait to be woken, at most so long. Who is woken and leaves passes the turn on."""
        loop = asyncio.get_running_loop()
        handle = loop.call_later(seconds, _end, turn) if seconds < 1e9 else None
        try:
            await turn
        except asyncio.CancelledError:
            with self.engine.node.lock:
                self.engine.dispatch.pass_on()
                self.engine.node.delivery.flush()
            raise
        finally:
            if handle is not None:
                handle.cancel()

    def _retrieve(
        self, for_good: bool, future: asyncio.Future[tuple[Outcome, model.AttemptedRollout | None]]
    ) -> None:
        """The caller of this claim left before its answer: nobody runs it, so it goes back to the queue."""
        if future.cancelled() or future.exception() is not None:
            return
        answered = future.result()[1]
        if answered is not None and for_good:
            self._abandon(answered)

    def _abandon(self, claimed: model.AttemptedRollout) -> None:
        engine = self.engine
        with engine.node.lock:
            rollout = engine.node.state.rollouts.get(claimed.rollout_id)
            if rollout is None or engine.closed or engine.node.broken is not None:
                return
            attempt = rollout.attempts[claimed.attempt.sequence_id - 1]
            event = decide.expire(
                rollout, attempt, "worker_lost", beat_us=None, watermark=None, lost_retries=rollout.lost + 1
            )
            engine.node.propose(event, uuid7_hex(), lambda _: None)

    def _answer(self, outcome: Outcome) -> model.AttemptedRollout | None:
        """What the fold made of exactly this claim."""
        return None if outcome.verdict is None else self._claimed_before(outcome.verdict)

    def _claimed_before(self, verdict: Verdict) -> model.AttemptedRollout | None:
        """The claim that a verdict accepted; under the node's lock."""
        if not verdict.accepted:
            return None
        rollout_id, _, number = verdict.subject.partition("#")
        rollout = self.engine.rollout(rollout_id)
        if rollout is None:
            return None
        attempt = rollout.attempts[int(number) - 1]
        return attempted_out(rollout, attempt, self.engine.beat_us(rollout, attempt), self.engine.fetch)

    def _found_nothing(self, worker_id: str) -> None:
        """The worker is idle: an overlay, since an empty queue changes nothing in the log."""
        engine = self.engine
        with engine.node.lock:
            now = engine.time_us()
            beat = engine.liveness.worker(worker_id)
            beat.dequeue_us = now
            known = engine.node.state.workers.get(worker_id)
            idle = beat.idle_at > (known.changed_at if known is not None else -1) and beat.idle_us is not None
            if not idle and (known is None or known.status != "idle"):
                beat.idle_us = now
                beat.idle_at = engine.node.state.position
                engine.liveness.keep(beat)

    async def confirm_claim(self, rollout_id: str, attempt_id: str) -> bool:
        """A remote claimer got its answer: the claim is not taken back. Idempotent; False for what is not known."""
        return await self.engine.observe(rollout_id, attempt_id, "confirmed")


def _end(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


def _gone_for_good(call: Call) -> bool:
    """Whether a cancelled call cannot come back for its claim: it was made in this process, under an id of its own."""
    return not call.remote and not call.repeatable
