"""Store nodes and runners as real processes on one log, and an audit of what the log says they did."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from agentlightning.core.fold.apply import apply
from agentlightning.core.fold.state import State
from agentlightning.core.log.interface import Log
from agentlightning.core.log.topics import CONTROL
from agentlightning.core.model.status import FINISHED

AGENT = """
import asyncio
import agentlightning as agl

@agl.rollout
async def quick(task, resources=None, rollout=None):
    await asyncio.sleep(float(task.get("seconds", 0.0)))
    return 1.0
"""
START_SECONDS = 60.0


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@dataclass
class Worker:
    """One process that can be started again; `said` is what it wrote, over all its lives."""

    name: str
    command: list[str]
    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    lives: int = 0

    @property
    def said(self) -> Path:
        """Its output."""
        return self.folder / f"{self.name}.out"

    def start(self) -> None:
        """Begin a life."""
        self.lives += 1
        out: IO[bytes] = self.said.open("ab")
        with out:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL to it and all it started."""
        self.end(signal.SIGKILL)

    def end(self, how: int = signal.SIGTERM) -> None:
        """Send a signal and wait; what does not end in 40 s is killed, which is a failure to the caller's checks."""
        if self.process is None:
            return
        try:
            if how == signal.SIGKILL:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.send_signal(how)
            self.process.wait(40)
        except ProcessLookupError:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5)
        self.process = None


@dataclass
class Fleet:
    """`url` is the log; nodes serve it over HTTP, runners work for nodes or on the log itself."""

    url: str
    folder: Path
    nodes: list[Worker] = field(default_factory=list["Worker"])
    runners: list[Worker] = field(default_factory=list["Worker"])
    endpoints: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "fleet_agent.py").write_text(AGENT)
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", "AGL_TOKEN": ""}

    def add_node(self, *options: str) -> Worker:
        """A store node on a port of its own, which it keeps over its lives."""
        port = free_port()
        command = [sys.executable, "-m", "agentlightning", "store", "--log", self.url, "--port", str(port), "--json"]
        node = Worker(f"node{len(self.nodes)}", [*command, *options], self.folder, self._environment)
        self.nodes.append(node)
        self.endpoints.append(f"http://127.0.0.1:{port}")
        node.start()
        return node

    def add_runner(self, store: str, *options: str) -> Worker:
        """A runner of the quick agent."""
        command = [sys.executable, "-m", "agentlightning", "runner", "fleet_agent:quick", "--store", store]
        runner = Worker(f"runner{len(self.runners)}", [*command, *options], self.folder, self._environment)
        self.runners.append(runner)
        runner.start()
        return runner

    def await_nodes(self) -> None:
        """Return when every node accepts connections; raises what a dead one said."""
        deadline = time.monotonic() + START_SECONDS
        for node, endpoint in zip(self.nodes, self.endpoints):
            port = int(endpoint.rpartition(":")[2])
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline or (node.process is not None and node.process.poll() is not None):
                        raise AssertionError(f"{node.name} does not serve: {node.said.read_text()[-3000:]}") from None
                    time.sleep(0.1)

    def stop(self) -> dict[str, tuple[int, str]]:
        """End everything in order; (position, fingerprint) that each node stopped with."""
        for runner in self.runners:
            runner.end(signal.SIGINT)
        stopped: dict[str, tuple[int, str]] = {}
        for node in self.nodes:
            node.end()
            for line in node.said.read_text().splitlines():
                if line.startswith("{") and '"stopped"' in line:
                    said = json.loads(line)
                    stopped[node.name] = (said["position"], said["fingerprint"])
        return stopped

    def kill(self) -> None:
        """End everything at once."""
        for worker in [*self.runners, *self.nodes]:
            worker.kill()


@dataclass
class Audit:
    """What a log says: made by folding it from its first record, as `agl replay` does."""

    state: State = field(default_factory=State)
    prints: dict[int, str] = field(default_factory=dict[int, str])
    claims: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    outcomes: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    proposed_claims: int = 0
    lost_claims: int = 0

    def finished(self, rollout_id: str) -> bool:
        """Whether a rollout has its outcome."""
        rollout = self.state.rollouts.get(rollout_id)
        if rollout is None:
            return self.state.archived.get(rollout_id) is not None
        return rollout.status in FINISHED


def audit(log: Log) -> Audit:
    """Fold a log and count; asserts that each attempt was claimed once and each generation ended at most once."""
    made, offset = Audit(), 0
    while records := log.read(CONTROL, 0, offset, 4096, headers=False):
        for record in records:
            offset = record.offset + 1
            outcome = apply(made.state, record.value)
            made.prints[made.state.position] = made.state.fingerprint.hex()
            event = outcome.proposal.event if outcome.proposal is not None else None
            if type(event).__name__ == "AttemptClaimed" and not outcome.duplicate:
                made.proposed_claims += 1
                made.lost_claims += not outcome.accepted
            for one in outcome.facts:
                kind, rollout_id, sequence_id = one.type, one.rollout_id, one.sequence_id
                if rollout_id is None:
                    continue
                rollout = made.state.rollouts.get(rollout_id)
                generation = rollout.generation if rollout is not None else -1
                made.claims[rollout_id, sequence_id] += kind == "attempt.claimed"
                made.outcomes[rollout_id, generation] += kind == "rollout.completed"
    twice = [key for key, count in made.claims.items() if count > 1]
    assert not twice, f"attempts with two owners: {twice[:5]}"
    double = [key for key, count in made.outcomes.items() if count > 1]
    assert not double, f"generations with two outcomes: {double[:5]}"
    return made
