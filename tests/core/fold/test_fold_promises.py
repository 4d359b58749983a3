"""The promises of the fold, one by one: each test is a small log and carries the name of what it shows."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from agentlightning.core.events import schema as events
from agentlightning.core.events.codec import encode
from agentlightning.core.events.schema import AnyEvent, Claim, Config, NewRollout, Proposal
from agentlightning.core.fold import commands
from agentlightning.core.fold.apply import Outcome, apply, fold
from agentlightning.core.fold.state import State, dump

from .faults import switched_on

BASE_US = 1_700_000_000_000_000


class Desk:
    """A log with its state; `say` proposes, folds and returns what became of it."""

    def __init__(self, window: int = 1000, archive_after: int = 1000) -> None:
        self.state, self.values, self.count = State(), list[bytes](), 0
        self.say(commands.open_log(window, archive_after, 1))

    def make(self, event: AnyEvent, *, command: str = "", basis: tuple[int, bytes] | None = None, at: int = 0) -> bytes:
        self.count += 1
        position, printed = basis or (self.state.position - 1, self.state.fingerprint)
        return encode(
            Proposal(
                id=command or f"{self.count:032x}", time_us=BASE_US + at, writer="n", basis=position,
                basis_print=printed, event=event,
            )  # fmt: skip
        )

    def put(self, value: bytes) -> Outcome:
        self.values.append(value)
        return apply(self.state, value)

    def say(self, event: AnyEvent, **how: object) -> Outcome:
        return self.put(self.make(event, **how))  # type: ignore[arg-type]

    def reason(self, event: AnyEvent, **how: object) -> str:
        verdict = self.say(event, **how).verdict
        return verdict.reason if verdict is not None else "unjudged"

    def enqueue(self, name: str = "ro-a", **how: object) -> None:
        self.say(commands.enqueue([NewRollout(name, msgspec.Raw(b"1"), **how)]))  # type: ignore[arg-type]

    def claim(self, name: str = "ro-a", worker: str = "w1", **how: object) -> Outcome:
        made = commands.claim(self.state, name, Claim(f"at-{self.count}", worker, worker))
        assert made is not None
        return self.say(made, **how)

    def end(self, name: str = "ro-a", status: str = "succeeded", number: int = 0, **how: object) -> str:
        return self.reason(self.ending(name, status, number), **how)

    def ending(self, name: str = "ro-a", status: str = "succeeded", number: int = 0) -> AnyEvent:
        rollout = self.state.rollouts[name]
        attempt = rollout.attempts[number - 1]
        return events.AttemptUpdated(
            rollout_id=name, generation=attempt.generation, sequence_id=attempt.sequence_id, status=status  # type: ignore[arg-type]
        )

    def expiry(self, name: str = "ro-a", kind: str = "timeout") -> AnyEvent:
        rollout = self.state.rollouts[name]
        return commands.expire(
            rollout, rollout.attempts[-1], kind, beat_us=None, watermark=None, lost_retries=3  # type: ignore[arg-type]
        )

    def wait(self, milliseconds: int) -> None:
        while milliseconds > 0:
            self.say(commands.pass_time(self.state, min(milliseconds, 10_000)))
            milliseconds -= 10_000


def test_one_owner_the_first_claim_in_log_order_wins() -> None:
    desk = Desk()
    desk.enqueue()
    first, second = (commands.claim(desk.state, "ro-a", Claim(f"at-{w}", w)) for w in ("w1", "w2"))
    assert first is not None and second is not None
    assert [desk.reason(first), desk.reason(second)] == ["", "not_claimable"]
    assert [attempt.worker_id for attempt in desk.state.rollouts["ro-a"].attempts] == ["w1"]


def _stale_claim() -> None:
    desk = Desk()
    desk.enqueue(config=Config(max_attempts=3, retry_condition=("failed",)))
    stale = commands.claim(desk.state, "ro-a", Claim("at-s", "w9"))
    assert stale is not None
    desk.claim()
    desk.end(status="failed")
    assert desk.reason(stale) == "stale_attempt"


def test_one_owner_a_claim_of_an_attempt_that_was_taken_before_is_refused() -> None:
    _stale_claim()


def test_a_duplicate_gets_the_first_verdict_and_takes_no_effect() -> None:
    desk = Desk()
    desk.enqueue()
    desk.claim(command="c" * 32)
    other = events.ResourcesPublished(resources_id="rs", resources=msgspec.Raw(b"null"))
    again = desk.say(other, command="c" * 32)  # same id, other body: the first record decides
    assert again.duplicate and again.verdict is not None and again.verdict.subject == "ro-a#1"
    assert not desk.state.resources


def test_a_duplicate_after_its_verdict_was_forgotten_is_expired() -> None:
    desk = Desk(window=5)
    value = desk.make(commands.enqueue([NewRollout("ro-a", msgspec.Raw(b"1"))]))
    desk.put(value)
    desk.wait(60_000)
    again = desk.put(value)
    assert not again.duplicate and again.verdict is not None and again.verdict.reason == "expired"


def test_the_answer_is_what_the_fold_made_of_exactly_this_record() -> None:
    desk = Desk()
    desk.enqueue(config=Config(timeout_ms=1000, max_attempts=2, retry_condition=("timeout",)))
    first = desk.claim()
    desk.wait(2000)
    assert desk.reason(desk.expiry()) == ""
    second = desk.claim(worker="w2")
    assert first.verdict is not None and second.verdict is not None
    assert (first.verdict.subject, second.verdict.subject) == ("ro-a#1", "ro-a#2")


def _another_history() -> None:
    desk, other = Desk(), Desk()
    for name in ("ro-a", "ro-b"):
        desk.enqueue(name)
    other.enqueue("ro-x")
    other.enqueue("ro-y")
    value = other.make(events.ResourcesPublished(resources_id="rs", resources=msgspec.Raw(b"null")))
    verdict = desk.put(value).verdict
    assert verdict is not None and verdict.reason == "foreign_history" and not desk.state.resources


def test_a_proposal_from_a_lost_suffix_is_refused() -> None:
    _another_history()


def test_position_counts_records_and_a_copy_folds_alike() -> None:
    desk = Desk()
    desk.enqueue("ro-a")
    desk.claim("ro-a")
    copy = fold(desk.values)
    assert (copy.position, copy.fingerprint, dump(copy)) == (3, desk.state.fingerprint, dump(desk.state))


def test_the_fingerprint_sees_one_changed_byte() -> None:
    desk = Desk()
    desk.enqueue()
    changed = [desk.values[0], desk.values[1].replace(msgspec.Raw(b"1"), b"2")]
    assert changed[1] != desk.values[1]
    assert fold(changed).fingerprint != desk.state.fingerprint


def test_a_finished_rollout_leaves_at_a_position_and_comes_back_unaltered() -> None:
    desk = Desk(archive_after=3)
    desk.enqueue()
    desk.claim()
    desk.end()
    desk.wait(10_000)
    gone = desk.say(commands.pass_time(desk.state, 1)).archived
    assert [rollout.rollout_id for rollout, _ in gone] == ["ro-a"] and "ro-a" not in desk.state.rollouts
    late = events.AttemptUpdated(rollout_id="ro-a", generation=0, sequence_id=1, status="failed")
    assert desk.reason(late) == "archived"
    assert desk.reason(commands.enqueue([NewRollout("ro-a", msgspec.Raw(b"0"))])) == "exists"
    assert desk.reason(commands.restore("ro-a", gone[0][1] + b"\x00")) == "altered"
    assert desk.reason(commands.restore("ro-a", gone[0][1])) == ""
    assert desk.state.rollouts["ro-a"].status == "succeeded"
    assert desk.reason(commands.restore("ro-a", gone[0][1])) == "not_archived"


def _reset_while_running() -> None:
    desk = Desk()
    desk.enqueue()
    desk.claim()
    late = desk.ending()
    desk.say(commands.update_rollout(desk.state, "ro-a", ("status",), status="queuing"))
    desk.claim(worker="w2")
    desk.say(late)
    rollout = desk.state.rollouts["ro-a"]
    assert rollout.status == "preparing" and rollout.ended_us is None and rollout.generation == 1
    assert rollout.attempts[1].status == "preparing", "the success of the old input is not the new one's"


def test_one_outcome_a_reset_opens_a_generation_and_the_old_success_is_late() -> None:
    _reset_while_running()


def test_one_outcome_the_first_terminal_event_wins() -> None:
    desk = Desk()
    desk.enqueue()
    desk.claim()
    assert desk.end(status="failed") == ""
    assert desk.end(status="succeeded") == "late"
    assert desk.state.rollouts["ro-a"].status == "failed"


def _revived_before_expiry() -> None:
    desk = Desk()
    desk.enqueue(config=Config(unresponsive_ms=1000, max_attempts=2, retry_condition=("unresponsive",)))
    desk.claim()
    desk.wait(2000)
    expiry = desk.expiry(kind="unresponsive")
    desk.say(expiry)
    desk.say(events.AttemptObserved(rollout_id="ro-a", generation=0, sequence_id=1, edge="running"))
    assert desk.reason(expiry) == "changed"


def _config_changed_before_expiry() -> None:
    desk = Desk()
    desk.enqueue(config=Config(timeout_ms=1000))
    desk.claim()
    desk.wait(2000)
    expiry = desk.expiry()
    desk.say(commands.update_rollout(desk.state, "ro-a", ("config",), config=Config(timeout_ms=1500)))
    assert desk.reason(expiry) == "changed"


def test_an_expiry_is_refused_when_a_revival_or_another_config_came_first() -> None:
    _revived_before_expiry()
    _config_changed_before_expiry()


def test_nothing_is_claimable_during_a_back_off() -> None:
    desk = Desk()
    desk.enqueue(config=Config(max_attempts=2, retry_condition=("failed",), backoff_ms=3000))
    desk.claim()
    desk.end(status="failed")
    rollout = desk.state.rollouts["ro-a"]
    claimed = events.AttemptClaimed(rollout_id="ro-a", generation=0, sequence_id=2, claim=Claim("at-x"))
    assert rollout.status == "requeuing" and desk.reason(claimed) == "not_claimable"
    assert desk.reason(commands.requeue(rollout)) == "too_early"
    desk.wait(3000)
    assert desk.reason(commands.requeue(rollout)) == ""
    assert desk.reason(claimed) == ""


def test_a_failure_reported_after_the_worker_was_lost_waits_out_the_back_off_and_counts() -> None:
    desk = Desk()
    desk.enqueue(config=Config(max_attempts=2, retry_condition=("failed",), backoff_ms=3000))
    desk.claim()
    desk.say(desk.expiry(kind="worker_lost"))
    assert "ro-a" in desk.state.queue
    desk.end(status="failed")
    assert "ro-a" not in desk.state.queue and desk.state.rollouts["ro-a"].attempts[0].counted


def test_latest_resources_are_bound_at_the_position_of_the_enqueue() -> None:
    desk = Desk()
    desk.say(commands.publish_resources("rs-1", b"1"))
    value = desk.make(commands.enqueue([NewRollout("ro-a", msgspec.Raw(b"1"))]))
    desk.say(commands.publish_resources("rs-2", b"2"))
    desk.put(value)
    assert desk.state.rollouts["ro-a"].resources_id == "rs-2"


def test_nothing_ends_before_it_starts_whatever_the_writers_clocks_say() -> None:
    desk = Desk()
    desk.enqueue()
    desk.claim(at=3_600_000_000)
    desk.end(at=-3_600_000_000)
    rollout = desk.state.rollouts["ro-a"]
    assert rollout.ended_us is not None and rollout.ended_us >= rollout.attempts[0].started_us
    assert rollout.attempts[0].ended_us == rollout.attempts[0].started_us


def test_time_is_an_event_and_survives_restarts_of_the_timekeeper() -> None:
    desk = Desk()
    desk.enqueue(config=Config(timeout_ms=600_000))
    desk.claim()
    for _ in range(5):
        desk.wait(120_000)
        desk.state = fold(desk.values)
        done = desk.state.time_ms >= 600_000
        assert desk.reason(desk.expiry()) == ("" if done else "too_early")
    assert desk.state.rollouts["ro-a"].attempts[0].status == "timeout"


def test_a_frozen_timekeeper_cannot_jump() -> None:
    desk = Desk()
    assert desk.reason(commands.pass_time(desk.state, 10_001)) == "malformed"
    assert desk.reason(events.TimePassed(from_ms=5, to_ms=6)) == "clock_moved"
    assert desk.state.time_ms == 0


def test_attempts_within_max_attempts_and_a_restart_has_a_fresh_budget() -> None:
    desk = Desk()
    desk.enqueue(config=Config(max_attempts=2, retry_condition=("failed",)))
    for _ in range(2):
        for number in (1, 2):
            assert desk.state.rollouts["ro-a"].status in ("queuing", "requeuing"), number
            desk.claim()
            desk.end(status="failed")
        assert desk.state.rollouts["ro-a"].status == "failed"
        desk.say(commands.update_rollout(desk.state, "ro-a", ("status",), status="queuing"))
    assert len(desk.state.rollouts["ro-a"].attempts) == 4 and desk.state.rollouts["ro-a"].generation == 2


def test_attempts_of_lost_workers_and_unconfirmed_claims_cost_nothing() -> None:
    desk = Desk()
    desk.enqueue()
    for lost in range(3):
        desk.claim()
        assert desk.reason(desk.expiry(kind="worker_lost")) == "" and desk.state.rollouts["ro-a"].lost == lost + 1
    made = commands.claim(desk.state, "ro-a", Claim("at-u", "w1", "w1", confirm=True))
    assert made is not None and desk.reason(made) == ""
    rollout = desk.state.rollouts["ro-a"]
    assert desk.reason(commands.return_claim(rollout, rollout.attempts[-1])) == ""
    desk.claim()
    assert desk.end() == "" and rollout.status == "succeeded"
    assert [attempt.counted for attempt in rollout.attempts] == [False, False, False, False, True]


def test_a_worker_that_lost_its_attempt_to_another_is_not_busy_with_it() -> None:
    desk = Desk()
    desk.enqueue()
    desk.claim(worker="w1")
    desk.say(events.AttemptUpdated(rollout_id="ro-a", generation=0, sequence_id=1, worker_id="w2"))
    assert [(w.worker_id, w.status) for w in desk.state.workers.values()] == [("w1", "unknown"), ("w2", "busy")]


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("claims_without_sequence", _stale_claim),
        ("no_basis_fingerprint", _another_history),
        ("no_fence", _reset_while_running),
        ("expiry_without_revivals", _revived_before_expiry),
        ("expiry_without_config_version", _config_changed_before_expiry),
        ("requeue_without_backoff", test_nothing_is_claimable_during_a_back_off),
        ("time_step_unbounded", test_a_frozen_timekeeper_cannot_jump),
        ("time_without_from", test_a_frozen_timekeeper_cannot_jump),
    ],
)
def test_a_fault_breaks_its_promise(fault: str, promise: Callable[[], None]) -> None:
    with switched_on(fault), pytest.raises(AssertionError):
        promise()
