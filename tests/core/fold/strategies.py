"""Random worlds for the fold: commands decided against a state, wrapped into proposals, and what must hold after each.

One seed gives one world (`random.Random`), so a failure is its seed; hypothesis draws the seeds and small mutations.
"""

from __future__ import annotations

from random import Random

import msgspec

from agentlightning.core.events import schema as events
from agentlightning.core.events.codec import encode
from agentlightning.core.events.payload import ABSENT
from agentlightning.core.events.schema import AnyEvent, Claim, Config, NewRollout, Proposal
from agentlightning.core.fold import commands
from agentlightning.core.fold.apply import apply
from agentlightning.core.fold.state import State
from agentlightning.core.model.status import ATTEMPT_FINAL, FINISHED, QUEUING

WINDOW = 40
ARCHIVE_AFTER = 25
ROLLOUT_STATUSES = ("queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing")
ATTEMPT_STATUSES = ("preparing", "running", "failed", "succeeded", "unresponsive", "timeout")
BASE_US = 1_700_000_000_000_000


def config_of(rng: Random) -> Config:
    retried: tuple[events.AttemptStatus, ...] = ("failed", "timeout", "unresponsive")
    retry: tuple[events.AttemptStatus, ...] = tuple(status for status in retried if rng.random() < 0.6)
    return Config(
        timeout_ms=rng.choice((None, 4000, 20_000)),
        unresponsive_ms=rng.choice((None, 3000, 9000)),
        max_attempts=rng.choice((1, 1, 2, 3)),
        retry_condition=retry,
        backoff_ms=rng.choice((0, 0, 3000, 12_000)),
    )


def new_rollout(rng: Random, rollout_id: str) -> NewRollout:
    return NewRollout(
        rollout_id=rollout_id,
        input=msgspec.Raw(str(rng.randrange(128)).encode()),
        mode=rng.choice((None, "train", "val", "test")),
        resources_id=rng.choice((None, None, "rs-a", "rs-zz")),
        config=config_of(rng),
        metadata=rng.choice((ABSENT, msgspec.Raw(b"{}"))),
    )


def claim_of(rng: Random, command_id: str) -> Claim:
    worker = rng.choice((None, "w1", "w2", "w3"))
    return Claim(commands.attempt_id_of(command_id), worker, worker, rng.random() < 0.3, rng.randrange(3000))


def pick(rng: Random, state: State) -> tuple[str, int, int]:
    """A fence: mostly of something that exists, now and then of nothing."""
    if not state.rollouts or rng.random() < 0.05:
        return rng.choice(("ro-none", "ro-000000000000")), rng.randrange(3), rng.randrange(3)
    rollout = state.rollouts[rng.choice(list(state.rollouts))]
    if rollout.attempts and rng.random() < 0.9:
        attempt = rollout.attempts[-1] if rng.random() < 0.7 else rng.choice(rollout.attempts)
        return rollout.rollout_id, attempt.generation, attempt.sequence_id
    return rollout.rollout_id, rollout.generation, rng.randrange(4)


def _life(rng: Random, state: State, command_id: str) -> AnyEvent:
    """An event about an attempt, by its fence."""
    rollout_id, generation, number = pick(rng, state)
    fence = {"rollout_id": rollout_id, "generation": generation, "sequence_id": number}
    kind = rng.randrange(6)
    if kind == 0:
        return events.AttemptObserved(**fence, edge=rng.choice(("running", "confirmed")), beat_us=BASE_US)
    if kind == 1:
        return events.ClaimReturned(**fence)
    if kind == 2:
        return events.RolloutRequeued(**fence)
    rollout = state.rollouts.get(rollout_id)
    if kind == 3 and rollout is not None and 1 <= number <= len(rollout.attempts):
        expiry: events.ExpiryKind = rng.choice(("timeout", "unresponsive", "worker_lost"))
        attempt = rollout.attempts[number - 1]
        event = commands.expire(rollout, attempt, expiry, beat_us=None, watermark=7, lost_retries=3)
        return event if rng.random() < 0.8 else events.AttemptExpired(
            **fence, kind=expiry, revivals=rng.randrange(2), config_version=rng.randrange(2), lost_retries=3
        )
    return events.AttemptUpdated(
        **fence,
        status=rng.choice((None, *ATTEMPT_STATUSES, "succeeded", "failed", "failed")),
        worker_id=rng.choice((None, None, "w1", "w4")),
        metadata=rng.choice((ABSENT, msgspec.Raw(b"{}"))),
        watermark=3,
        lag_ms=rng.randrange(2000),
    )


def event_of(rng: Random, state: State, command_id: str, cold: dict[str, bytes]) -> AnyEvent:
    """Any event that somebody could propose now: mostly sensible, sometimes stale, sometimes nonsense."""
    kind = rng.randrange(14)
    if kind <= 1 or not state.rollouts:
        count = rng.choice((1, 1, 2, 3))
        fresh = [new_rollout(rng, commands.rollout_id_of(command_id, index)) for index in range(count)]
        if rng.random() < 0.1 and state.rollouts:
            fresh.append(new_rollout(rng, rng.choice(list(state.rollouts))))
        return commands.enqueue(fresh)
    if kind == 2:
        return commands.start(new_rollout(rng, commands.rollout_id_of(command_id)), claim_of(rng, command_id))
    if kind <= 5:
        target = next(iter(state.queue), None) if rng.random() < 0.8 else rng.choice(list(state.rollouts))
        made = commands.claim(state, target, claim_of(rng, command_id)) if target else None
        if made is not None:
            return made
        rollout_id, generation, number = pick(rng, state)
        return events.AttemptClaimed(
            rollout_id=rollout_id, generation=generation, sequence_id=number, claim=claim_of(rng, command_id)
        )
    if kind == 6:
        rollout_id, generation, number = pick(rng, state)
        rollout = state.rollouts.get(rollout_id)
        if rollout is not None and rng.random() < 0.8:
            return commands.start_attempt(state, rollout_id, claim_of(rng, command_id))
        return events.AttemptStarted(
            rollout_id=rollout_id, generation=generation, sequence_id=number, claim=claim_of(rng, command_id)
        )
    if kind == 7:
        rollout = state.rollouts[rng.choice(list(state.rollouts))]
        fields = tuple(name for name in ("input", "mode", "status", "config", "metadata") if rng.random() < 0.4)
        return commands.update_rollout(
            state, rollout.rollout_id, fields, input=b"1", status=rng.choice(ROLLOUT_STATUSES), config=config_of(rng)
        )
    if kind == 8:
        return events.ResourcesPublished(
            resources_id=rng.choice(("rs-a", "rs-b")),
            resources=msgspec.Raw(b"{}"),
            expected_version=rng.choice((None, 0, 1, 2)),
        )
    if kind == 9:
        return events.TimePassed(from_ms=state.time_ms, to_ms=state.time_ms + rng.choice((1000, 5000, 10_000, 10_001, -1)))
    if kind == 10 and cold:
        rollout_id = rng.choice(list(cold))
        return commands.restore(rollout_id, cold[rollout_id] if rng.random() < 0.9 else b"\x80")
    return _life(rng, state, command_id)


class World:
    """One node and its log, driven by a seed; zombie writes occur, and with `hostile` flipped bits, which may halt it."""

    def __init__(self, seed: int, window: int = WINDOW, archive_after: int = ARCHIVE_AFTER, hostile: bool = False):
        self.hostile = hostile
        self.rng = Random(seed)
        self.state = State()
        self.values: list[bytes] = []
        self.archive_index: dict[str, bytes] = {}
        self.count = 0
        self.watch = Watch()
        self.append(self.proposal(commands.open_log(window, archive_after, 1)))

    def proposal(self, event: AnyEvent, basis: tuple[int, bytes] | None = None) -> Proposal:
        self.count += 1
        position, printed = basis or (self.state.position - 1, self.state.fingerprint)
        wobble = self.rng.randrange(-3_600_000_000, 3_600_000_000)  # writers an hour apart
        return Proposal(
            id=f"{self.count:032x}", time_us=BASE_US + wobble, writer="n1", basis=position, basis_print=printed, event=event
        )

    def append(self, proposal: Proposal | bytes) -> None:
        value = proposal if isinstance(proposal, bytes) else encode(proposal)
        self.values.append(value)
        outcome = apply(self.state, value)
        for rollout, body in outcome.archived:
            self.archive_index[rollout.rollout_id] = body
        self.watch.see(self.state, outcome)

    def step(self) -> None:
        chance = self.rng.random()
        if chance < 0.08:
            self.append(self.rng.choice(self.values[-2 * WINDOW :]))  # a zombie write, perhaps beyond the window
        elif self.hostile and chance < 0.11:
            value = bytearray(self.rng.choice(self.values))
            value[self.rng.randrange(len(value))] ^= 1 << self.rng.randrange(8)
            self.append(bytes(value))
        else:
            self.append(self.proposal(event_of(self.rng, self.state, f"{self.count + 1:032x}", self.archive_index)))

    def run(self, steps: int) -> World:
        for _ in range(steps):
            self.step()
            if self.state.halted is not None:
                break
        return self


class Watch:
    """The invariants, checked after every record against the facts that were accepted so far."""

    def __init__(self) -> None:
        self.owners: dict[tuple[str, int], int] = {}
        self.outcomes: dict[str, str] = {}
        self.tries: dict[str, int] = {}
        self.position = 0

    def see(self, state: State, outcome: object) -> None:
        assert state.halted is not None or state.position == self.position + 1, "position advances"
        self.position = state.position
        self._facts(outcome)
        self._rollouts(state)
        self._workers(state)

    def _facts(self, outcome: object) -> None:
        for one in getattr(outcome, "facts"):  # noqa: B009
            kind, rollout_id, number = one.type, one.rollout_id, one.sequence_id
            if kind == "attempt.claimed":
                self.owners[rollout_id, number] = self.owners.get((rollout_id, number), 0) + 1
                assert self.owners[rollout_id, number] == 1, "one-owner"
            elif kind == "rollout.completed":
                assert rollout_id not in self.outcomes, "one-outcome"
                self.outcomes[rollout_id] = one.status
            elif kind == "rollout.reopened":
                self.outcomes.pop(rollout_id, None)
            elif rollout_id in self.outcomes and kind in ("rollout.running", "rollout.preparing", "rollout.claimable"):
                raise AssertionError("an outcome was left without a new generation")

    def _rollouts(self, state: State) -> None:
        claimable = {key for key, ro in state.rollouts.items() if ro.status in QUEUING and ro.due_ms is None}
        assert set(state.queue) == claimable, "queue"
        for rollout in state.rollouts.values():
            finished = rollout.status in FINISHED
            assert finished == (rollout.ended_us is not None) == (rollout.finished_at >= 0), "outcome and its time"
            assert finished == (rollout.rollout_id in self.outcomes), "outcome is a fact"
            assert not finished or self.outcomes[rollout.rollout_id] == rollout.status, "first outcome wins"
            assert rollout.ended_us is None or rollout.ended_us >= rollout.created_us, "end after start"
            assert rollout.due_ms is None or rollout.status == "requeuing", "back-off"
            for number, attempt in enumerate(rollout.attempts, 1):
                assert attempt.sequence_id == number and attempt.generation <= rollout.generation
                assert attempt.ended_us is None or attempt.ended_us >= attempt.started_us, "end after start"
                assert attempt.started_us >= rollout.created_us
                later = rollout.attempts[number : number + 1]
                if later and later[0].generation == attempt.generation:
                    assert attempt.status in (*ATTEMPT_FINAL, "unresponsive"), "one open attempt in a generation"
            if not finished and rollout.status not in QUEUING:
                self._budget(rollout)

    def _budget(self, rollout: object) -> None:
        """A claim of the queue never exceeds the largest budget that this generation had."""
        attempts = [a for a in rollout.attempts if a.generation == rollout.generation]  # type: ignore[attr-defined]
        counted = sum(1 for attempt in attempts if attempt.counted)
        assert counted <= 3, "attempts within max_attempts"  # the largest that config_of draws

    def _workers(self, state: State) -> None:
        for worker in state.workers.values():
            assert (worker.status == "busy") == (worker.attempt_id is not None) == (worker.rollout_id is not None)
