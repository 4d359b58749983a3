"""A seeded world of nodes, runners and timekeepers around one log, where everything that may go wrong does.

Appends arrive late, twice, or without an answer; nodes lag, freeze, crash and come back from a snapshot; runners freeze
past their time-out; two timekeepers run. Time is virtual, there is no event loop, and one seed gives one history.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import msgspec

from agentlightning.core.events.codec import decode, encode
from agentlightning.core.events.schema import AnyEvent, Claim, Config, NewRollout, Proposal
from agentlightning.core.fold import commands as decide
from agentlightning.core.fold.apply import Outcome, apply
from agentlightning.core.fold.state import State, dump, load

from ...core.fold.faults import is_on
from ...core.fold.strategies import Watch

STEP_MS = 250
WINDOW = 60
CONFIG = Config(timeout_ms=8000, max_attempts=3, retry_condition=("failed", "timeout"), backoff_ms=1500)
BASE_US = 1_700_000_000_000_000


@dataclass(eq=False)
class Node:
    """A replica: what it folded so far and until when it stands still."""

    state: State = field(default_factory=State)
    frozen_until: int = 0
    last_tick: int = 0


@dataclass
class Command:
    """One call of a client, with all its retries. `turn` counts lost races: the id goes on as `.1`, `.2`, ..."""

    base: str
    runner: str
    event: AnyEvent | None = None
    turn: int = 0
    basis: tuple[int, bytes] | None = None
    sent_at: int = -1
    node: int = 0
    answered: str | None = None

    @property
    def id(self) -> str:
        return self.base if not self.turn else f"{self.base}.{self.turn}"


class Simulation:
    """`run` plays `steps` steps and then lets everything arrive; `check` says what must be true of the end."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 0
        self.log: list[bytes] = []
        self.nodes = [Node() for _ in range(3)]
        self.under_way: list[tuple[int, bytes]] = []
        self.commands: list[Command] = []
        self.told: dict[str, list[str]] = {}
        self.told_refused: set[str] = set()
        self.work: list[tuple[int, str, str]] = []
        self.count = 0
        self.acknowledged: set[str] = set()
        opening = self.proposal(self.nodes[0], self.fresh_id(), decide.open_log(WINDOW, 80, 1))
        self.log.append(encode(opening))

    def truncate(self, lost: int) -> None:
        """A power cut takes the last records; who has read past the end is told so, and folds again from the start.

        What is under way still arrives, with a basis in the lost suffix. Answers from that suffix are void.
        """
        del self.log[max(1, len(self.log) - lost) :]
        for node in self.nodes:
            if node.state.position > len(self.log):
                node.state = State()
        state = State()
        accepted: dict[str, str] = {}
        for outcome in [apply(state, value) for value in self.log]:
            if outcome.accepted and outcome.proposal is not None and outcome.verdict is not None:
                accepted[outcome.proposal.id] = outcome.verdict.subject
        owners = {(subject, command_id.partition(".")[0]) for command_id, subject in accepted.items()}
        self.acknowledged &= set(accepted)
        self.told = {subject: [base for base in told if (subject, base) in owners] for subject, told in self.told.items()}
        self.told = {subject: told for subject, told in self.told.items() if told}
        self.told_refused.clear()

    def fresh_id(self) -> str:
        self.count += 1
        return f"{self.count:032x}"

    def proposal(self, node: Node, command_id: str, event: AnyEvent, basis: tuple[int, bytes] | None = None) -> Proposal:
        position, printed = basis or (node.state.position - 1, node.state.fingerprint)
        time_us = BASE_US + self.now * 1000 + self.rng.randrange(-3_600_000_000, 3_600_000_000)
        return Proposal(
            id=command_id, time_us=time_us, writer="n", basis=position, basis_print=printed, event=event
        )

    def append(self, proposal: Proposal) -> None:
        """Send a record: soon, late, twice, or (from the caller's view) into nothing."""
        value = encode(proposal)
        delay = self.rng.choice((0, 0, 200, 600, 3000, 20_000))
        if self.rng.random() < 0.1:
            return  # never arrives
        self.under_way.append((self.now + delay, value))
        if self.rng.random() < 0.15:
            self.under_way.append((self.now + delay + self.rng.randrange(25_000), value))

    def run(self, steps: int) -> Simulation:
        for _ in range(steps):
            self.step(quiet=False)
        for _ in range(160):
            self.step(quiet=True)
        for node in self.nodes:
            self.fold(node, len(self.log))
        return self

    def step(self, quiet: bool) -> None:
        self.now += STEP_MS
        due = [item for item in self.under_way if item[0] <= self.now]
        self.under_way = [item for item in self.under_way if item[0] > self.now]
        for _, value in due:
            self.log.append(value)
            if is_on("trust_the_acknowledgement"):
                self._trust(value)
        for node in self.nodes:
            self._live(node, quiet)
        for command in self.commands:
            if command.answered is None:
                self._pursue(command, quiet)
        if not quiet:
            self._act()
        for node in self.nodes[:2]:
            if node.frozen_until <= self.now and self.now - node.last_tick >= 1000:
                self._keep_time(node)

    def _live(self, node: Node, quiet: bool) -> None:
        if node.frozen_until > self.now:
            return
        chance = 1.0 if quiet else self.rng.random()
        if chance < 0.01:
            node.frozen_until = self.now + self.rng.randrange(15_000)
        elif chance < 0.03:
            node.state = load(dump(node.state))
        self.fold(node, len(self.log) if quiet or chance > 0.5 else self.rng.randrange(4))

    def fold(self, node: Node, count: int) -> None:
        """Let a node apply the next records and answer who waited for exactly them."""
        for value in self.log[node.state.position : node.state.position + count]:
            self._answer(self.nodes.index(node), apply(node.state, value))

    def _answer(self, number: int, outcome: Outcome) -> None:
        """Only the node that was asked answers, and one answer in four is lost on its way."""
        if outcome.proposal is None or outcome.verdict is None:
            return
        for command in self.commands:
            mine = command.answered is None and command.id == outcome.proposal.id and command.node == number
            if mine and self.rng.random() < 0.75:
                self._settle(command, outcome.verdict.reason, outcome.verdict.subject)

    def _settle(self, command: Command, reason: str, subject: str) -> None:
        if not reason:
            command.answered = subject or "done"
            self.acknowledged.add(command.id)
            if subject:
                self.told.setdefault(subject, []).append(command.base)
                slow = self.rng.random() < 0.15
                self.work.append((self.now + (30_000 if slow else self.rng.randrange(4000)), subject, command.runner))
        elif reason == "expired":
            command.answered = "unknown"
        elif command.runner:
            command.turn, command.basis, command.sent_at, command.event = command.turn + 1, None, -1, None
        else:
            command.answered = "refused"
            self.told_refused.add(command.id)

    def _trust(self, value: bytes) -> None:
        proposal = decode(value)
        for command in self.commands:
            if command.answered is None and command.id == proposal.id and command.runner:
                self._settle(command, "", f"{proposal.event.rollout_id}#{proposal.event.sequence_id}")  # type: ignore[union-attr]

    def _pursue(self, command: Command, quiet: bool) -> None:
        """Send a command for the first time, or again at any node under the same id and the same basis."""
        if command.sent_at >= 0 and self.now - command.sent_at < 1500:
            return
        command.node = self.rng.randrange(3)
        node = self.nodes[command.node]
        known = node.state.verdicts.get(command.id)
        if known is not None:
            self._settle(command, known.reason, known.subject)
            return
        if command.runner and (command.event is None or self.rng.random() < 0.5):
            head = next(iter(node.state.queue), None)
            made = None
            if head is not None:
                claim = Claim(decide.attempt_id_of(command.id), command.runner, command.runner)
                made = decide.claim(node.state, head, claim)
            command.event = made or command.event
        if command.event is None:
            if quiet or self.rng.random() < 0.2:
                command.answered = "nothing"
            return
        if command.basis is None or is_on("fresh_basis_on_retry"):
            command.basis = (node.state.position - 1, node.state.fingerprint)
        command.sent_at = self.now + (25_000 if self.rng.random() < 0.1 else 0)  # a caller that freezes, too
        self.append(self.proposal(node, command.id, command.event, command.basis))

    def _act(self) -> None:
        """Clients enqueue, runners ask for work and report, somebody restarts a rollout now and then."""
        rng, node = self.rng, self.rng.choice(self.nodes)
        if rng.random() < 0.3:
            base = self.fresh_id()
            new = NewRollout(decide.rollout_id_of(base), msgspec.Raw(b"1"), config=CONFIG)
            self.commands.append(Command(base, "", decide.enqueue([new])))
        if rng.random() < 0.4:
            self.commands.append(Command(self.fresh_id(), f"w{rng.randrange(5)}"))
        if rng.random() < 0.03 and node.state.rollouts:
            target = rng.choice(list(node.state.rollouts))
            event = decide.update_rollout(node.state, target, ("status",), status="queuing")
            self.commands.append(Command(self.fresh_id(), "", event))
        due = [item for item in self.work if item[0] <= self.now]
        self.work = [item for item in self.work if item[0] > self.now]
        for _, subject, _runner in due:
            rollout_id, _, number = subject.partition("#")
            rollout = node.state.rollouts.get(rollout_id)
            if rollout is None or len(rollout.attempts) < int(number):
                continue
            attempt = rollout.attempts[int(number) - 1]
            event = decide.update_attempt(
                rollout, attempt, status=rng.choice(("succeeded", "succeeded", "failed")), worker_id=None, metadata=None,
                beat_us=None, watermark=None, lag_ms=0,
            )  # fmt: skip
            self.commands.append(Command(self.fresh_id(), "", event))

    def _keep_time(self, node: Node) -> None:
        """One turn of a timekeeper: at most two ticks, however long it was frozen."""
        state, elapsed = node.state, min(self.now - node.last_tick, 10_000)
        node.last_tick = self.now
        self.append(self.proposal(node, self.fresh_id(), decide.pass_time(state, elapsed)))
        for rollout in list(state.rollouts.values()):
            if rollout.due_ms is not None and state.time_ms >= rollout.due_ms:
                self.append(self.proposal(node, self.fresh_id(), decide.requeue(rollout)))
            attempt = rollout.attempts[-1] if rollout.attempts else None
            if attempt is None or attempt.status not in ("preparing", "running"):
                continue
            if state.time_ms - attempt.started_ms >= 8000:
                event = decide.expire(rollout, attempt, "timeout", beat_us=None, watermark=None, lost_retries=0)
                self.append(self.proposal(node, self.fresh_id(), event))

    def check(self) -> None:
        """The promises, by the log alone and by what callers were told."""
        state, watch = State(), Watch()
        accepted: set[str] = set()
        claims: dict[str, int] = {}
        for value in self.log:
            outcome = apply(state, value)
            watch.see(state, outcome)
            if outcome.accepted and outcome.proposal is not None and outcome.verdict is not None:
                assert outcome.proposal.id not in accepted, "nothing takes effect twice"
                accepted.add(outcome.proposal.id)
                if outcome.verdict.subject:
                    base = outcome.proposal.id.partition(".")[0]
                    claims[base] = claims.get(base, 0) + 1
        for subject, owners in self.told.items():
            assert len(owners) == 1, f"one-owner: {subject} was given to {owners}"
        assert max(claims.values(), default=0) <= 1, "one dequeue claimed two rollouts"
        assert not self.told_refused & accepted, "told refused, yet it took effect"
        assert self.acknowledged <= accepted, "durable: told accepted, yet the log refused it"
        for node in self.nodes:
            assert dump(node.state) == dump(state), "same-log-same-state"
