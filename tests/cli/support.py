"""A log with a rollout that needed two attempts, and `agl` as a real process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any, cast

import click
from click.testing import CliRunner, Result

from agentlightning.cli.app import run
from agentlightning.core.model.rollout import RolloutConfig
from agentlightning.core.model.span import Span
from agentlightning.rest.open_store import open_store

PATIENCE_SECONDS = 30.0
"""How long a test waits for another process before it fails."""


def invoke(*args: str) -> tuple[int, str]:
    """Run `agl` in this process; its exit code and everything that it printed."""
    result: Result = CliRunner().invoke(cast("click.Command", _Entry()), list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


class _Entry:
    """What CliRunner calls instead of a click command: our own entry point, so that its error handling is tested too."""

    name = "agl"

    def main(self, args: Sequence[str], prog_name: str, **_: Any) -> None:
        raise SystemExit(run(args))


def document(*args: str) -> Any:
    """The one JSON document that `agl ... --json` prints."""
    code, out = invoke(*args, "--json")
    assert code == 0, out
    return json.loads(out)


def documents(*args: str) -> list[Any]:
    """The JSON lines that `agl ... --json` prints; none where it prints that there is none."""
    code, out = invoke(*args, "--json")
    assert code == 0, out
    found = [json.loads(line) for line in out.splitlines()]
    assert found, "JSON lines are never empty"
    return [] if found == [{"records": 0}] else found


def span(rollout_id: str, attempt_id: str, name: str, parent: str | None = None, **attributes: Any) -> Span:
    """A span of 250 ms with these attributes; `__` in their names stands for a dot."""
    return Span.from_attributes(
        attributes={key.replace("__", "."): value for key, value in attributes.items()},
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        name=name,
        parent_id=parent,
        start_time=1000.0,
        end_time=1000.25,
    )


async def fill(store: Any) -> dict[str, Any]:
    """Two attempts at one rollout, the first of which reports again when it is too late; another rollout in the queue."""
    rollout = await store.enqueue_rollout(
        {"question": "wie geht's?"}, mode="train", config=RolloutConfig(max_attempts=2, retry_condition=["failed"])
    )
    attempts: list[str] = []
    middle: tuple[int, str] = (0, "")
    for number, status in enumerate(("failed", "succeeded")):
        claimed = await store.dequeue_rollout(f"worker-{number}")
        attempts.append(claimed.attempt.attempt_id)
        call = span(
            claimed.rollout_id, attempts[-1], "openai.chat",
            gen_ai__prompt__0__role="user", gen_ai__prompt__0__content=f"Say hi, try {number}",
            gen_ai__completion__0__content="hello \x1b[31m" + "x" * 500,
        )  # fmt: skip
        await store.add_span(call)
        reward = {"agentlightning__reward__0__name": "primary", "agentlightning__reward__0__value": 0.5 + number / 4}
        await store.add_span(span(claimed.rollout_id, attempts[-1], "agentlightning.annotation", call.span_id, **reward))
        await store.update_attempt(claimed.rollout_id, attempts[-1], status=status)
        if number == 0:
            middle = store.fingerprint()
    await store.update_attempt(rollout.rollout_id, attempts[0], status="succeeded")
    waiting = await store.enqueue_rollout("second")
    position, fingerprint = store.fingerprint()
    return {
        "rollout_id": rollout.rollout_id,
        "waiting_id": waiting.rollout_id,
        "attempts": attempts,
        "middle": middle,
        "position": position,
        "fingerprint": fingerprint,
    }


def make_log(path: Path) -> dict[str, Any]:
    """A log file with what `fill` does, closed."""
    store: Any = open_store(f"sqlite:///{path}")
    try:
        return asyncio.run(fill(store))
    finally:
        store.close()


class Process:
    """A running `agl`; its lines are read as they come. `out` has standard output, `err` standard error."""

    def __init__(self, args: Sequence[str], cwd: Path, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentlightning", *args],
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out: Queue[str] = Queue()
        self.err: Queue[str] = Queue()
        for stream, queue in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            threading.Thread(target=self._read, args=(stream, queue), daemon=True).start()

    @staticmethod
    def _read(stream: Any, queue: Queue[str]) -> None:
        for line in stream:
            queue.put(line.rstrip("\n"))

    @staticmethod
    def wait_for(queue: Queue[str], text: str) -> str:
        """The next line that holds `text`; those before it are dropped."""
        seen: list[str] = []
        while True:
            try:
                line = queue.get(timeout=PATIENCE_SECONDS)
            except Empty:
                raise AssertionError(f"no line with {text!r} after {seen}") from None
            if text in line:
                return line
            seen.append(line)

    def end(self, number: int = signal.SIGINT) -> int:
        """Send the signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def running(*args: str, cwd: Path, env: dict[str, str] | None = None) -> Iterator[Process]:
    """`agl` as a process, killed at the end of the block if it still runs."""
    process = Process(args, cwd, env)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()


__all__ = ["Process", "document", "documents", "fill", "invoke", "make_log", "running", "span"]
