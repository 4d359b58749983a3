"""Runner processes on a log on Kafka, and what the log says of who worked when and who was idle."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentlightning.core.events.schema import AttemptClaimed
from agentlightning.core.fold.apply import Outcome
from agentlightning.core.log.kafka import KafkaAddress
from agentlightning.core.log.kafka.topic_setup import create
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store

AGENT = """
import asyncio

async def nap(task):
    await asyncio.sleep(float(task))
    return 1.0
"""
START_SECONDS = 60.0


def make_log(url: str, **counts: int) -> str:
    """Make the topics of an empty log; returns its address."""
    asyncio.run(create(KafkaAddress.parse(url), counts or None))
    return url


@dataclass
class Attempt:
    """One attempt as the log tells it; times in seconds. `queued`: since when its rollout could be claimed."""

    rollout_id: str
    writer: str
    worker: str
    queued: float
    claimed: float
    ended: float = float("inf")
    status: str = ""


@dataclass
class Watch:
    """Everything that happened on a store's log since this was made."""

    attempts: list[Attempt] = field(default_factory=list[Attempt])
    claims: int = 0
    lost: int = 0
    _queued: dict[str, float] = field(default_factory=dict[str, float])
    _open: dict[tuple[str, int], Attempt] = field(default_factory=dict[tuple[str, int], Attempt])

    def on(self, store: EventLogStore) -> Watch:
        """Begin to watch."""
        node = store.engine.node
        with node.lock:
            node.listeners.append(self._heard)
        return self

    def _heard(self, outcome: Outcome) -> None:
        proposal = outcome.proposal
        if proposal is None:
            return
        now, event = proposal.time_us / 1e6, proposal.event
        if isinstance(event, AttemptClaimed):
            self.claims += 1
            self.lost += outcome.verdict is None or not outcome.verdict.accepted
        for one in outcome.facts:
            kind, rollout_id, sequence_id = one.type, one.rollout_id, one.sequence_id
            if rollout_id is None:
                continue
            if kind == "rollout.claimable":
                self._queued[rollout_id] = now
            elif kind == "attempt.claimed" and isinstance(event, AttemptClaimed):
                queued = self._queued.pop(rollout_id, now)
                attempt = Attempt(rollout_id, proposal.writer, event.claim.worker_id or "", queued, now)
                self._open[rollout_id, sequence_id] = attempt
                self.attempts.append(attempt)
            elif kind in ("attempt.succeeded", "attempt.failed", "attempt.unresponsive", "attempt.timeout"):
                ended = self._open.pop((rollout_id, sequence_id), None)
                if ended is not None:
                    ended.ended, ended.status = now, kind

    def waits(self) -> list[float]:
        """Seconds in the queue, of each attempt."""
        return [max(one.claimed - one.queued, 0.0) for one in self.attempts]

    def idle(self) -> list[float]:
        """Seconds for which a worker that had worked, and would again, was idle without a break while work was queued."""
        changes = sorted([(one.queued, 1) for one in self.attempts] + [(one.claimed, -1) for one in self.attempts])
        stretches: list[tuple[float, float]] = []
        length, since = 0, 0.0
        for moment, change in changes:
            since = moment if length == 0 else since
            length += change
            if length == 0 and moment > since:
                stretches.append((since, moment))
        found: list[float] = []
        for worker in {one.worker for one in self.attempts}:
            mine = sorted((one for one in self.attempts if one.worker == worker), key=lambda one: one.claimed)
            for before, after in zip(mine, mine[1:], strict=False):
                for begin, end in stretches:
                    both = min(end, after.claimed) - max(begin, before.ended)
                    if both > 0:
                        found.append(both)
        return found


class Crew:
    """Runner processes of one group; each writes its log lines into a file of the folder."""

    def __init__(self, store: str, folder: Path, *options: str) -> None:
        self._store = store
        self._folder = folder
        self._options = options
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "crew_agent.py").write_text(AGENT)

    def said(self, number: int) -> str:
        """What one of them wrote."""
        return (self._folder / f"runner{number}.out").read_text()

    def start(self, count: int = 1) -> Sequence[subprocess.Popen[bytes]]:
        """Start so many more; returns once they take work."""
        first = len(self.processes)
        command = [sys.executable, "-m", "agentlightning", "runner", "crew_agent:nap", "--store", self._store]
        for number in range(first, first + count):
            with (self._folder / f"runner{number}.out").open("wb") as out:
                self.processes.append(
                    subprocess.Popen([*command, *self._options], cwd=self._folder, stdout=out, stderr=out)
                )
        deadline = time.monotonic() + START_SECONDS
        for number in range(first, first + count):
            while "Started async rollouts" not in self.said(number):
                if time.monotonic() > deadline or self.processes[number].poll() is not None:
                    raise AssertionError(f"runner {number} did not start: {self.said(number)}")
                time.sleep(0.05)
        return self.processes[first:]

    def end(self) -> None:
        """Ask all to stop, and kill whoever does not."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def crew_on(url: str, folder: Path, *options: str) -> Iterator[tuple[EventLogStore, Crew, Watch]]:
    """A store of this process on a new log, a crew that is still empty, and a watch."""
    store: Any = open_store(make_log(url), environment=os.environ)
    crew = Crew(url, folder, *options)
    try:
        yield store, crew, Watch().on(store)
    finally:
        crew.end()
        store.close()
