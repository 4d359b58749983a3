"""Rollouts over HTTP: one client process with 1, 16 and 64 runners, against the reference's server where that is given.

`REFERENCE_PYTHON` is an interpreter that has `agentlightning==0.3.0`: then its store in memory and ours on a file answer
the same client program (http_load.py) in turn, each side with its own client, and the ratio is of one run on one machine.
Processor time is printed beside wall time: on a machine that does other things it is the figure that stays.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from .measured import note
from .table import percentile, show

SECONDS = 5.0
RUNNERS = (1, 16, 64)
SPANS = 5
CALLS = 1 + 2 * SPANS + 1
"""Store methods a rollout: dequeue, five times (next sequence id, add_span), update_attempt."""
ROUNDS = 2
"""How often each side is measured with so many runners, in turn."""
ENQUEUED = 15_000
"""At 64 runners they have to last for six seconds."""
START_SECONDS = 180.0
_CLI = "import sys; from agentlightning.cli import main; sys.exit(main(sys.argv[1:]))"
_ENVIRONMENT = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""A library of the reference looks up prices on the network at its import, and waits where there is none."""
_LOAD = Path(__file__).with_name("http_load.py")


class Figures(NamedTuple):
    """What one client program measured; seconds of wall and processor time, and those of single calls."""

    rollouts: int
    seconds: float
    client_seconds: float
    server_seconds: float
    claims: list[float]
    spans: list[float]

    @property
    def rate(self) -> float:
        """Rollouts per second."""
        return self.rollouts / self.seconds

    @property
    def server_ms(self) -> float:
        """Processor time of the server per rollout."""
        return self.server_seconds / self.rollouts * 1e3

    @property
    def server_us(self) -> float:
        """Processor time of the server per store method."""
        return self.server_seconds / self.rollouts / CALLS * 1e6

    @property
    def client_ms(self) -> float:
        """Processor time of the client per rollout."""
        return self.client_seconds / self.rollouts * 1e3

    def joined(self, other: Figures) -> Figures:
        """Both runs as one."""
        both = [mine + its for mine, its in zip(cast("tuple[Any, ...]", self), other)]
        return Figures(*both)


@contextmanager
def a_server(python: str, options: list[str]) -> Generator[tuple[str, int], None, None]:
    """`agl store` of an interpreter, as a user would start it; (its address, its process)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [python, "-c", _CLI, "store", "--host", "127.0.0.1", "--port", str(port), "--log-level", "ERROR", *options]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, cwd=folder, env=_ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT) as server:
            try:
                until = time.perf_counter() + START_SECONDS
                while not _answers(port):
                    if server.poll() is not None or time.perf_counter() > until:
                        output.seek(0)
                        raise RuntimeError(f"the store of {python} did not start: {output.read()}")
                    time.sleep(0.05)
                yield f"http://127.0.0.1:{port}", server.pid
            finally:
                server.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def load(
    python: str, server: tuple[str, int], runners: int, spans: int = SPANS, seconds: float = SECONDS, enqueued: int = ENQUEUED
) -> Figures:
    """Run the client program of an interpreter against a server."""
    address, pid = server
    command = [python, str(_LOAD), address, *map(str, (pid, runners, spans, seconds, enqueued))]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=_ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def _ours(runners: int, spans: int = SPANS) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        with a_server(sys.executable, ["--log", f"sqlite:///{Path(folder) / 'log.db'}"]) as server:
            return load(sys.executable, server, runners, spans)


def _reference(python: str, runners: int) -> Figures:
    with a_server(python, []) as server:
        return load(python, server, runners)


def _in_turn(runners: int, python: str | None) -> tuple[Figures, Figures | None]:
    """(ours, the reference's) over all rounds."""
    ours: Figures | None = None
    theirs: Figures | None = None
    for _ in range(ROUNDS):
        if python:
            found = _reference(python, runners)
            theirs = found if theirs is None else theirs.joined(found)
        found = _ours(runners)
        ours = found if ours is None else ours.joined(found)
    assert ours is not None
    return ours, theirs


def run() -> None:
    """Print the tables."""
    python = os.environ.get("REFERENCE_PYTHON")
    rows: list[list[object]] = []
    kept: dict[str, float] = {}
    for runners in RUNNERS:
        ours, theirs = _in_turn(runners, python)
        rows += [_row(runners, "reference, in memory", theirs, None)] if theirs else []
        rows.append(_row(runners, "ours, on a file", ours, theirs))
        kept |= {f"rollouts_{runners}": ours.rate, f"server_ms_{runners}": ours.server_ms}
        if theirs:
            kept[f"ratio_{runners}"] = ours.rate / theirs.rate
    show(
        f"Rollouts of {SPANS} spans over HTTP, one client process",
        ("runners", "store", "rollouts/s", "ratio", "server ms/rollout", "server us/method", "client ms/rollout",
         "claim p50 / p99 ms", "add_span p50 / p99 ms"),
        rows,
    )  # fmt: skip
    if not python:
        print("\nThe ratio to the reference: make bench REFERENCE_PYTHON=/path/to/python, which has agentlightning==0.3.0.")
    _costs(kept)
    note("http", **kept)


def _row(runners: int, what: str, found: Figures, other: Figures | None) -> list[object]:
    ratio = f"{found.rate / other.rate:.1f}" if other else ""
    costs = (f"{found.server_ms:.2f}", f"{found.server_us:.0f}", f"{found.client_ms:.2f}")
    calls = ([percentile(times, share) * 1e3 for share in (0.5, 0.99)] for times in (found.claims, found.spans))
    return [runners, what, f"{found.rate:,.0f}", ratio, *costs, *(f"{p50:.2f} / {p99:.1f}" for p50, p99 in calls)]


def _costs(kept: dict[str, float]) -> None:
    """What a rollout costs without spans and what a span adds, from two lengths: the model of scale is computed from them."""
    few, many = 1, 20
    short, long = (_ours(RUNNERS[-1], spans) for spans in (few, many))
    span_ms = (long.server_ms - short.server_ms) / (many - few)
    kept |= {"server_span_ms": span_ms, "server_rollout_ms": short.server_ms - few * span_ms}
    rows: list[list[Any]] = [["a rollout without spans", f"{kept['server_rollout_ms']:.2f}"], ["a span", f"{span_ms:.3f}"]]
    show(f"Processor time of the server with {RUNNERS[-1]} runners", ("what", "ms"), rows)
