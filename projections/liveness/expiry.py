"""The timekeeper: turns elapsed time and silence into events. It decides nothing: the fold judges every one again.

One thread a store. It sleeps without a timer while no attempt is open and nothing backs off. While something is pending
it turns at least once a tick; one turn counts as two ticks at most, so a process that was frozen or a machine that slept
expires nobody. The keeper's time is the sum of what its turns counted; the log's clock follows it through `TimePassed`.

Among other nodes (cluster.py) silence counts only while this node receives what the others report, the node that leads
acts at once, and the others after a grace.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial

from ...core.errors import LogError
from ...core.events.run_events import LOST
from ...core.events.schema import AnyEvent, ExpiryKind
from ...core.fold import commands
from ...core.fold.apply import Outcome
from ...core.fold.state import Attempt, Rollout
from ...core.fold.state_machine import governs
from ...core.ids import uuid7_hex
from ...core.model.status import RUNNING
from ..replica.node import Done, Node
from ..spans.span_log import SpanLog
from .cluster import Cluster
from .heartbeats import AttemptKey, Heartbeats, OpenAttempt

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
CLOCK_STEP_SECONDS = 5.0
"""How far the log's clock may lag behind while a deadline is pending and none is due."""
MIN_SLEEP_SECONDS = 0.005
RUN_BEAT_SECONDS = 5.0
"""How often the owner of a run shows that it is there."""
RUN_LOST_SECONDS = 20.0
"""A run whose owner is silent for so long is lost."""
SILENT_FOR_GOOD_SECONDS = 3600.0

Act = Callable[[], None]


def _nothing() -> None:
    """What is done about an attempt that has no deadline."""


def _is_timed(rollout: Rollout) -> bool:
    return rollout.config.timeout_ms is not None or rollout.config.unresponsive_ms is not None


class Expiry:
    """Watches open attempts and back-offs of one node. `turn` may be called by tests instead of `start`."""

    def __init__(self, node: Node, liveness: Heartbeats, spans: SpanLog, peers: Cluster | None = None) -> None:
        self._node = node
        self._peers = peers
        self._heartbeats = liveness
        self._spans = spans
        self._wake = threading.Condition(node.lock)
        self._time = 0.0
        self._cut_off = 0.0
        """The part of it in which no silence is counted, because nothing could be received."""
        self._last = node.clock.monotonic()
        self._stepped = 0.0
        self._wakes_at: float | None = None
        self._closed = False
        self._moving = False
        self._thread: threading.Thread | None = None
        self.backoffs: dict[str, bool] = {}
        """Rollouts in a back-off -> whether their requeue is under way."""

    def start(self) -> None:
        """Run in a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._run, name="agl-timekeeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread. Idempotent."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def load(self) -> None:
        """Watch what the log left open; silence counts from now on."""
        for rollout in self._node.state.rollouts.values():
            self.watch(rollout)
            if rollout.due_ms is not None:
                self.backoffs[rollout.rollout_id] = False

    def watch(self, rollout: Rollout) -> None:
        """Watch what is open of a rollout that was read back: superseded attempts too, as before; under the lock."""
        for attempt in rollout.attempts:
            key = (rollout.rollout_id, attempt.sequence_id)
            if attempt.status in RUNNING and key not in self._heartbeats.open:
                self._heartbeats.expect(attempt.worker_id, attempt.incarnation, self.now())
                self.opened(rollout, attempt)

    # What others ask, under the node's lock

    def now(self) -> float:
        """The time in seconds on which silence is measured."""
        return self._now() - self._cut_off

    def _now(self) -> float:
        """The keeper's time in seconds."""
        return self._time + min(max(self._node.clock.monotonic() - self._last, 0.0), 2 * TICK_SECONDS)

    def lag_ms(self) -> int:
        """How far the log's clock is behind, for an event that starts a clock."""
        return max(0, int((self._now() - self._stepped) * 1000))

    def opened(self, rollout: Rollout, attempt: Attempt) -> None:
        """An attempt began, or came back: watch it."""
        key = (rollout.rollout_id, attempt.sequence_id)
        watched = self._heartbeats.open[key] = OpenAttempt(attempt.incarnation, self.now(), _is_timed(rollout))
        if self._wakes_at is None or self._deadline(watched, rollout, attempt)[0] < self._wakes_at:
            self._wake.notify_all()  # else the next turn is early enough

    def changed(self, rollout: Rollout) -> None:
        """A rollout was changed, its limits perhaps: the next turn looks at its attempts."""
        for attempt in rollout.attempts:
            watched = self._heartbeats.open.get((rollout.rollout_id, attempt.sequence_id))
            if watched is not None:
                watched.look_at, watched.timed = 0.0, _is_timed(rollout)

    def clock_moved(self, elapsed_ms: int) -> None:
        """The log's clock moved, on this node or another: what this keeper counted meanwhile is in the log already."""
        now, stepped = self._now(), self._stepped + elapsed_ms / 1000
        self._stepped = min(stepped, now)
        if stepped > now:  # ahead of this keeper: everything is due earlier
            for watched in self._heartbeats.open.values():
                watched.look_at = 0.0

    def backing_off(self, rollout_id: str) -> None:
        """A back-off began: watch it."""
        self.backoffs[rollout_id] = False
        self._wake.notify_all()

    # The loop

    def _run(self) -> None:
        with self._wake:
            while not self._closed:
                try:
                    pause = self.turn()
                except Exception:  # one bad turn must not end all timeouts; it is recorded and the next one comes
                    logger.exception("The timekeeper failed to look after its attempts; it tries again.")
                    pause = TICK_SECONDS
                self._wakes_at = None if pause is None else self._now() + pause
                self._wake.wait(pause)

    def turn(self) -> float | None:
        """Count the time since the last turn, propose what is due, return the seconds to sleep (None: until woken)."""
        now = self._node.clock.monotonic()
        counted = min(max(now - self._last, 0.0), 2 * TICK_SECONDS)
        self._time += counted
        self._last = now
        if self._peers is not None and not self._peers.gossip.connected(now):
            self._cut_off += counted
        if not self._heartbeats.open and not self.backoffs:
            self._stepped = self._time
            self._heartbeats.forget_silent(self._time - self._cut_off, SILENT_FOR_GOOD_SECONDS)
            if not self._heartbeats.runs:
                return None
        if self._node.broken is not None or self._node.state.halted is not None:
            return TICK_SECONDS
        runs = self._gone_runs()
        if not self._heartbeats.open and not self.backoffs and not runs:
            return 2 * TICK_SECONDS  # as long as a turn counts
        if not self._timed():
            self._stepped = self._time  # nobody waits for the log's clock: it must not run after a time nobody counted
        grace = 0.0
        if self._peers is not None:
            self._peers.gossip.report(now)
            left = self._peers.grace_seconds(now)
            if left is None:
                return TICK_SECONDS
            grace = left
        for run_id, since in runs.items():
            if since >= grace:
                self._lose_run(run_id)
        due = [(when + grace, timed, act) for when, timed, act in self._due()]
        next_due = min((when for when, _, _ in due), default=None)
        self._move_clock(any(timed and when <= self._time for when, timed, _ in due), CLOCK_STEP_SECONDS + grace)
        for when, _, act in due:
            if when <= self._time:
                act()
        if next_due is None:
            return TICK_SECONDS
        return min(TICK_SECONDS, max(next_due - self._time, MIN_SLEEP_SECONDS))

    def _gone_runs(self) -> dict[str, float]:
        """Open runs whose owner is gone -> seconds since that was known. The owner of a run shows that it is there."""
        gone: dict[str, float] = {}
        now = self.now()
        for run_id, run in self._heartbeats.runs.items():
            if run.owner == self._node.writer:
                if self._peers is not None and now - run.seen_at >= RUN_BEAT_SECONDS:
                    self._heartbeats.run_beat(run_id, run.owner, now, int(self._node.clock.time() * 1_000_000))
                continue
            # The only writer of a log needs not wait: an owner that was another life of it has ended.
            silent = 0.0 if run.owner and self._peers is None else now - run.seen_at - RUN_LOST_SECONDS
            if silent >= 0 and not run.acting:
                gone[run_id] = silent
        return gone

    def _lose_run(self, run_id: str) -> None:
        run = self._heartbeats.runs[run_id]
        run.acting = True

        def done(outcome: Outcome | Exception) -> None:
            run.acting = False
            if not isinstance(outcome, Exception):
                time_us = int(self._node.clock.time() * 1_000_000)
                self._heartbeats.run_beat(run_id, run.owner, self.now(), time_us, closed=True)
                logger.warning("Run %s is lost: the process of its algorithm is gone.", run_id)

        self._node.propose(commands.close_run(run_id, outcome=LOST), uuid7_hex(), done)

    def run_alive(self, run_id: str, here: bool) -> None:
        """The owner of a run showed a sign of life; `here`: it runs in this process. Under the node's lock."""
        owner = self._node.writer if here else ""
        self._heartbeats.run_beat(run_id, owner, self.now(), int(self._node.clock.time() * 1_000_000))
        self._wake.notify_all()

    def run_closed(self, run_id: str) -> None:
        """The owner has closed the run. Under the node's lock."""
        self._heartbeats.run_beat(run_id, "", self.now(), int(self._node.clock.time() * 1_000_000), closed=True)

    def _move_clock(self, something_due: bool, step_seconds: float) -> None:
        """Append `TimePassed` when a deadline is due or the log's clock lags; one at a time."""
        lag = self._time - self._stepped
        if self._moving or lag < 0.001 or not (something_due or lag >= step_seconds) or not self._timed():
            return
        elapsed_ms = min(int(lag * 1000), 10_000)
        self._moving = True

        def done(outcome: Outcome | Exception) -> None:
            self._moving = False

        self._propose(commands.pass_time(self._node.state, elapsed_ms), done)

    def _timed(self) -> bool:
        """Whether anything waits for the log's clock at all."""
        if self.backoffs:
            return True
        return any(watched.timed for watched in self._heartbeats.open.values())

    def _log_now_ms(self) -> float:
        return self._node.state.time_ms + (self._time - self._stepped) * 1000

    def _due(self) -> list[tuple[float, bool, Act]]:
        """(keeper's time at which it is due, whether the log's clock has to be there, what to do) of all that is pending."""
        due: list[tuple[float, bool, Act]] = []
        later = float("inf")
        for key, watched in list(self._heartbeats.open.items()):
            if watched.look_at > self._time:
                later = min(later, watched.look_at)
                continue
            found = self._find(key)
            if found is None:
                del self._heartbeats.open[key]
            elif not watched.acting:
                due.append(self._deadline(watched, *found))
        due.append((later, False, _nothing))
        for rollout_id, acting in list(self.backoffs.items()):
            rollout = self._node.state.rollouts.get(rollout_id)
            if rollout is None or rollout.due_ms is None:
                del self.backoffs[rollout_id]
            elif not acting:
                when = self._time + (rollout.due_ms - self._log_now_ms()) / 1000
                due.append((when, True, partial(self._requeue, rollout)))
        return due

    def _find(self, key: AttemptKey) -> tuple[Rollout, Attempt] | None:
        rollout = self._node.state.rollouts.get(key[0])
        if rollout is None or key[1] > len(rollout.attempts):
            return None
        attempt = rollout.attempts[key[1] - 1]
        return (rollout, attempt) if attempt.status in RUNNING else None

    def _deadline(
        self, watched: OpenAttempt, rollout: Rollout, attempt: Attempt
    ) -> tuple[float, bool, Act]:
        """The first of: too long, too silent, worker lost, claim never confirmed. Signs of life only put it off."""
        config, settings = rollout.config, self._node.settings
        options: list[tuple[float, bool, ExpiryKind | None]] = []
        if config.timeout_ms is not None:
            left = attempt.started_ms + config.timeout_ms - self._log_now_ms()
            options.append((self._time + left / 1000, True, "timeout"))
        if config.unresponsive_ms is not None:
            quiet = self._cut_off + watched.last_beat + config.unresponsive_ms / 1000
            least = self._time + (attempt.started_ms + config.unresponsive_ms - self._log_now_ms()) / 1000
            options.append((max(quiet, least), True, "unresponsive"))
        beat = self._heartbeats.incarnations.get(attempt.incarnation or "")
        first = float("inf")
        if beat is not None:
            quiet = self._cut_off + max(beat, watched.opened)
            options.append((quiet + settings.worker_lost_seconds, False, "worker_lost"))
        elif attempt.incarnation is not None:  # it may send its first heartbeat yet
            first = self._time + settings.worker_lost_seconds
        if not attempt.confirmed and governs(rollout, attempt):  # else there is no queue that it could go back to
            options.append((self._cut_off + watched.last_beat + settings.claim_confirm_seconds, False, None))
        if not options:
            watched.look_at = first
            return (float("inf"), False, _nothing)
        when, timed, kind = min(options, key=lambda option: option[0])
        watched.look_at = min(when, first)
        return (when, timed, partial(self._expire, watched, rollout, attempt, kind))

    def _expire(
        self, watched: OpenAttempt, rollout: Rollout, attempt: Attempt, kind: ExpiryKind | None
    ) -> None:
        watched.acting = True

        def done(outcome: Outcome | Exception) -> None:
            watched.acting = False

        if kind is None:
            self._propose(commands.return_claim(rollout, attempt), done)
            return
        revivals, config_version = attempt.revivals, rollout.config_version

        def expire(watermark: int | LogError) -> None:
            """The log answered where the rollout's spans end, perhaps a while later: what was assumed has to hold still."""
            rewards: Mapping[str, float] = {}
            try:
                if not isinstance(watermark, LogError):
                    rewards = self._spans.rewards(rollout.rollout_id, watermark)
            except LogError as error:
                watermark = error
            with self._node.lock:
                unchanged = attempt.revivals == revivals and rollout.config_version == config_version
                if isinstance(watermark, LogError) or not unchanged or self._node.broken is not None:
                    watched.acting = False
                    return
                event = commands.expire(
                    rollout,
                    attempt,
                    kind,
                    beat_us=watched.beat_us,
                    watermark=watermark,
                    reward=rewards.get(attempt.attempt_id),
                    lost_retries=self._node.settings.lost_worker_retries,
                )
                logger.info("Attempt %s of rollout %s is %s.", attempt.attempt_id, rollout.rollout_id, kind)
                self._propose(event, done)

        asking = threading.get_ident()

        def known(watermark: int | LogError) -> None:
            own = threading.get_ident() == asking
            if own and not isinstance(watermark, LogError) and self._spans.has_rewards(rollout.rollout_id, watermark):
                expire(watermark)
            else:  # spans are read, or this is a thread of the log; the node's lock is held by who waits for either
                threading.Thread(target=expire, args=(watermark,), name="agl-expire", daemon=True).start()

        self._spans.ask_watermark(rollout.rollout_id, known)

    def _requeue(self, rollout: Rollout) -> None:
        self.backoffs[rollout.rollout_id] = True

        def done(outcome: Outcome | Exception) -> None:
            if rollout.rollout_id in self.backoffs:
                self.backoffs[rollout.rollout_id] = False

        self._propose(commands.requeue(rollout), done)

    def _propose(self, event: AnyEvent, done: Done) -> None:
        self._node.propose(event, uuid7_hex(), done)
