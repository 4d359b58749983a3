"""A program that fits, run as a process of its own: what users write, with what a test needs to know printed as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 60.0

SEARCH = """
import asyncio, json, os, sys, time
import agentlightning as agl

@agl.rollout
def agent(task: str, prompt_template: agl.PromptTemplate) -> float:
    text = prompt_template.format(question=task)
    return 1.0 if text.startswith("Please") else 0.25

@agl.algo
async def search(store, train_dataset):
    best = None
    for prompt in ("Now {question}", "Please {question}"):
        update = await store.add_resources({"prompt": prompt})
        rollouts = [await store.enqueue_rollout(task, resources_id=update.resources_id) for task in train_dataset]
        ids = [rollout.rollout_id for rollout in rollouts]
        assert len(await store.wait_for_rollouts(ids)) == len(ids)
        rewards = [agl.find_final_reward(await store.query_spans(one)) for one in ids]
        if best is None or sum(rewards) > best[0]:
            best = (sum(rewards), update)
    return best[1]

def say(line):
    # In one piece: workers share the output.
    sys.stdout.write(line + chr(10))

def show(result):
    print(json.dumps({
        "run_id": result.run_id, "outcome": result.outcome, "rewards": list(result.rewards.values()),
        "statuses": list(result.statuses.values()), "ids": list(result.statuses),
        "best": result.best_resources and result.best_resources["prompt"].template,
    }), flush=True)
"""
"""The demo's kind of task, small: two prompts, of which one is better."""


class Program:
    """A running program; ``lines`` are what it said, on both outputs."""

    def __init__(self, text: str, folder: Path, *arguments: str, **env: str) -> None:
        path = folder / "program.py"
        if text:
            path.write_text(text, encoding="utf-8")
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def says(self, words: str, times: int = 1) -> None:
        """Return once it said these words so often."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self.text.count(words) < times:
            assert time.monotonic() < end and self.process.poll() is None, f"no {words!r} in:\n{self.text}"
            time.sleep(0.02)

    def ends(self, seconds: float = PATIENCE_SECONDS) -> int:
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def interrupt(self) -> None:
        """Ctrl+C reaches the whole group, as a terminal sends it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def result(self) -> dict[str, Any]:
        """What `show` printed, after the program ended well."""
        assert self.ends() == 0, self.text
        found = [json.loads(line) for line in self.lines if line.startswith('{"run_id"')]
        assert found, self.text
        return found[-1]

    def left_over(self) -> list[str]:
        """Commands of processes of this program that outlive it.

        The interpreter's own helper for spawned processes ends when it sees that its parent has, a moment later.
        """
        end = time.monotonic() + 2.0
        while self.group() and time.monotonic() < end:
            time.sleep(0.02)
        return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in self.group()]

    def group(self) -> list[int]:
        """Processes of this program that still live."""
        return group_of(self.process.pid)


def group_of(pgid: int) -> list[int]:
    """Living processes of a group, zombies left out."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pgid and fields[0] != "Z":
            found.append(int(entry.name))
    return found


@contextmanager
def program(text: str, folder: Path, *arguments: str, **env: str) -> Iterator[Program]:
    """Run it; whatever is left of it at the end of the block is killed."""
    running = Program(text, folder, *arguments, **env)
    try:
        yield running
    finally:
        for pid in running.group():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        running.process.wait()
