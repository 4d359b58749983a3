"""The tutorial's three terminals, each a process of its own, whichever of them is started first."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .openai_stub import ANSWER, Stub, openai_stub
from .sources import ROOT

EXAMPLE = ROOT / "examples" / "first_algorithm.py"
PRINTED = {
    "async def find_best_prompt": "2f32cf6137e4fe665c7d1911e3389bd161f6dbd2c67833b2dbe0002395f0eef7",
    "def simple_agent": "e8fced80ccd597f90a15ecb7a641ed5972fedddae00692fb5ab9f968d2bd3c2d",
}
"""First words of the two functions, and SHA-256 of their text as the tutorial prints it."""


class Terminal:
    """A process whose output is collected while it runs."""

    def __init__(self, *arguments: str, cwd: Path, env: dict[str, str]) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        """Everything said so far."""
        return "\n".join(self.lines)

    def says(self, words: str, seconds: float = 60.0) -> None:
        """Return once `words` were said."""
        deadline = time.monotonic() + seconds
        while words not in self.text:
            assert self.process.poll() is None and time.monotonic() < deadline, f"no {words!r} in:\n{self.text}"
            time.sleep(0.02)

    def ends(self, seconds: float = 60.0) -> int:
        """The exit code."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def interrupt(self) -> int:
        """Ctrl+C, and the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.ends(20)


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with openai_stub() as server:
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_two_functions_are_the_tutorials_to_the_letter() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    for start, digest in PRINTED.items():
        body = re.search(rf"^{start}.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
        assert body is not None
        assert hashlib.sha256(body.group().strip().encode()).hexdigest() == digest


@pytest.mark.parametrize("order", ["store runner algo", "runner store algo", "runner algo store"])
def test_three_terminals_find_the_best_prompt(order: str, tmp_path: Path, stub: Stub) -> None:
    port = free_port()
    env = {**os.environ, "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": stub.base_url, "PYTHONUNBUFFERED": "1"}
    example = [str(EXAMPLE), "--store", f"http://127.0.0.1:{port}"]
    commands = {
        "store": ["-m", "agentlightning", "store", "--port", str(port), "--log-level", "info"],
        "runner": [*example, "runner"],
        "algo": [*example, "algo"],
    }
    terminals: dict[str, Terminal] = {}
    try:
        for role in order.split():
            terminals[role] = Terminal(*commands[role], cwd=tmp_path, env=env)
            if order.endswith("store") and role == "algo":
                terminals["algo"].says("waiting for the store at")
            elif role == "runner":
                terminals["runner"].says("[Worker 0] Started async rollouts (max: unlimited).")
        algo, runner, store = terminals["algo"], terminals["runner"], terminals["store"]
        assert algo.ends() == 0, algo.text
        check_algorithm(algo.text)
        check_runner(runner.text)
        assert runner.interrupt() == 0
        assert runner.lines[-1] == "[Runner] Stopped."
        store.interrupt()
        for terminal in (runner, store):
            assert "Traceback" not in terminal.text, terminal.text
        routes = ("POST /enqueue_rollout", "GET /dequeue_rollout", "POST /update_attempt", "POST /wait_for_rollouts")
        assert [route for route in routes if f'"{route} HTTP/1.1" 200' not in store.text] == []
    finally:
        for terminal in terminals.values():
            if terminal.process.poll() is None:
                terminal.process.kill()
                terminal.process.wait()


def check_algorithm(text: str) -> None:
    assert text.count("[Algo] Updating prompt template to: 'You are a ") == 3
    assert len(re.findall(r"\[Algo\] Task 'ro-[0-9a-f]{12}' is now available for clients\.", text)) == 3
    assert text.count('"status":"succeeded"') >= 3
    spans = re.findall(r"  - Span\(name='openai.chat.completion', attributes=\{.*\}\)", text)
    assert len(spans) == 3 and all(ANSWER in span for span in spans)
    assert "'gen_ai.prompt.0.content': 'You are a helpful assistant. Why is the sky blue?'" in text
    rewards = [float(value) for value in re.findall(r"\[Algo\] Final reward: (\S+)", text)]
    best = re.search(r"\[Algo\] Best prompt found: 'You are a .*' with reward (\S+)", text)
    assert len(rewards) == 3 and best is not None and float(best.group(1)) == max(rewards)


def check_runner(text: str) -> None:
    assert "[Worker 0] Setting up tracer..." in text
    assert "[Worker 0] Instrumentation applied." in text
    assert text.count(f"[Rollout] LLM returned: {ANSWER}") == 3
    completed = re.findall(
        r"\[Worker 0 \| Rollout ro-[0-9a-f]{12}\] Completed in \d+\.\d\ds\. "
        r"Collected 3 span\(s\)\. Final reward: 0\.\d+",
        text,
    )
    assert len(completed) == 3, text
