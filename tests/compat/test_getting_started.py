"""The programs of the tutorial "Getting Started", each a process, against a stub of OpenAI's API."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..openai_stub import ANSWER, Stub, openai_stub
from ..sources import ROOT
from ..test_first_algorithm import Terminal, free_port

EXAMPLE = ROOT / "examples" / "getting_started"
PRINTED = {
    "client": {
        "from agentlightning.litagent import LitAgent": (1, "e5031dae415688b1"),
        "class SimpleAgent(LitAgent):": (3, "67470d0505689054"),
        "# Extract the system prompt being tested": (2, "76acf7fe1aab999e"),
        "# Call OpenAI with this prompt": (8, "8d84663bbb7cf379"),
        "# In real scenarios, calculate based on response quality": (2, "665b5a57248dc3f7"),
        "from agentlightning.trainer import Trainer": (1, "56a94b4d1e06ab54"),
        "agent = SimpleAgent()": (3, "a26d4510c7140cd4"),
    },
    "server": {
        "async def prompt_optimization():": (3, "1a65c88f1b4df6e4"),
        "prompt_candidates = [": (5, "c4f8e49d91e05c95"),
        "for prompt in prompt_candidates:": (6, "5b8ab79c306b1632"),
        "# Queue a task for clients to process": (5, "709f7d4a4f881c5d"),
        "# Wait for a client to complete it (30 second timeout)": (2, "9c2d94c164c93bf6"),
        "# Extract and store the reward (this comes from the return value of the client side)": (2, "a39beea5098c60c4"),
        "best_prompt = max(prompt_and_rewards, key=lambda x: x[1])": (2, "e1ca2807255e3fc7"),
    },
}
"""First line of each paragraph that the tutorial prints, its number of lines, and the start of its SHA-256 without indents."""


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with openai_stub() as server:
        yield server


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def on_port(name: str, port: int, folder: Path) -> str:
    """The example, as it is but for the port, which belongs to one test at a time."""
    text = (EXAMPLE / f"{name}.py").read_text(encoding="utf-8")
    assert text.count("9997") == 1
    (folder / f"{name}.py").write_text(text.replace("9997", str(port)), encoding="utf-8")
    return f"{name}.py"


@pytest.mark.parametrize("name", ["client", "server"])
def test_the_programs_are_the_tutorials_to_the_letter(name: str) -> None:
    lines = [line.strip() for line in (EXAMPLE / f"{name}.py").read_text(encoding="utf-8").splitlines()]
    for first, (count, digest) in PRINTED[name].items():
        start = lines.index(first)
        text = "\n".join(lines[start : start + count])
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest, text


def write_env(folder: Path, stub: Stub) -> None:
    text = f"OPENAI_API_KEY=none\nOPENAI_API_BASE={stub.base_url}  # Optional\n"
    (folder / ".env").write_text(text, encoding="utf-8")


def workers_of(client: Terminal) -> list[int]:
    """Processes of the client's workers that live."""
    found: list[int] = []
    for task in Path("/proc").glob("[0-9]*"):
        try:
            fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
            words = (task / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == client.process.pid and "resource_tracker" not in words and fields[0] != "Z":
            found.append(int(task.name))
    return found


def end(*terminals: Terminal) -> None:
    for terminal in terminals:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait()


@pytest.mark.parametrize("first", ["server", "client"])
def test_server_and_two_workers_find_the_best_prompt(first: str, stub: Stub, tmp_path: Path) -> None:
    write_env(tmp_path, stub)
    env, port = environment(), free_port()
    started: dict[str, Terminal] = {}
    try:
        for role in sorted(("server", "client"), key=lambda role: role != first):
            started[role] = Terminal(on_port(role, port, tmp_path), cwd=tmp_path, env=env)
            if first == "client" and role == "client":
                started[role].says("No server answers at")
        server, client = started["server"], started["client"]
        assert server.ends() == 0, server.text + client.text
        check_server(server.text)
        assert client.interrupt() == 0, client.text
        check_client(client.text)  # after its end: the server may have a result before the client has written its line
        assert "Stopping: no more work is taken" in client.text
        assert "Traceback" not in server.text + client.text, client.text
        assert workers_of(client) == []
    finally:
        end(*started.values())


def check_server(text: str) -> None:
    assert len(re.findall(r"\[Algo\] Testing prompt: 'You are a \w+", text)) == 3
    assert len(re.findall(r"\[Algo\] Task 'rollout-[0-9a-f-]{36}' is now available for clients\.", text)) == 3
    rewards = [float(value) for value in re.findall(r"\[Algo\] Received reward: (\d\.\d{3})", text)]
    best = re.search(r"\[Algo\] Best prompt: 'You are a .*\.' \(reward: (\S+)\)", text)
    assert len(rewards) == 3 and best is not None and float(best.group(1)) == max(rewards), text
    # Each result came with its model call, as a triplet and as a span.
    assert text.count("[Algo] Triplets: 1, spans: 2") == 3, text


def check_client(text: str) -> None:
    assert "[INFO]" in text and "Initializing Trainer..." in text
    for worker in (0, 1):
        assert f"Starting worker process {worker}..." in text
        assert f"[Worker {worker}] Sync worker process started." in text
    assert "Running with n_workers=2 (synchronous multiprocessing)." in text
    # Nothing claims a server that nobody started.
    assert "AgentOps local server" not in text and "no AgentOps server runs" in text
    received = re.findall(r"\[Task \d Received\] ID: (rollout-\S+)", text)
    done = re.findall(r"\[Worker [01] \| Rollout (rollout-\S+)\] Completed in \d+\.\d\ds\. .*Reward: 0\.\d{3}", text)
    assert len(received) == 3 and sorted(done) == sorted(received)
    assert text.count("Resources: {'system_prompt': PromptTemplate(") == 3
    assert text.count(f"Result: {ANSWER}") == 3


SLOW_CLIENT = """
import os, time
from agentlightning import setup_logging
from agentlightning.compat.worker_pool import LegacyJob
from agentlightning.litagent import LitAgent
from agentlightning.tracer import OtelTracer
from agentlightning.trainer import Trainer

class SlowAgent(LitAgent):
    def training_rollout(self, task, rollout_id, resources):
        print("Working on", rollout_id, flush=True)
        if not os.path.exists("worked"):
            open("worked", "w").close()
            time.sleep({seconds})
        return 0.5

setup_logging()
LegacyJob.orphan_seconds = 1.0
agent = SlowAgent()
trainer = Trainer(n_workers=2, tracer=OtelTracer(instrument_managed=False))
trainer.fit(agent, backend="http://127.0.0.1:{port}")
print("After fit", flush=True)
"""
"""As the tutorial prints it: no ``if __name__ == "__main__"`` around the call that starts processes. The first task is slow;
no worker loads the model client."""


def slow_client(folder: Path, port: int, seconds: float) -> Path:
    path = folder / "slow_client.py"
    (folder / "worked").unlink(missing_ok=True)
    path.write_text(SLOW_CLIENT.format(seconds=seconds, port=port), encoding="utf-8")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="looks for worker processes in /proc")
@pytest.mark.parametrize("victim", ["running", "idle"])
def test_a_killed_worker_is_replaced_and_the_run_finishes(victim: str, tmp_path: Path) -> None:
    port = free_port()
    env = environment()
    server = Terminal(on_port("server", port, tmp_path), cwd=tmp_path, env=env)
    client = Terminal(str(slow_client(tmp_path, port, 2.0)), cwd=tmp_path, env=env)
    try:
        client.says("Working on")
        client.says("[Worker 0] Sync worker process started.")
        client.says("[Worker 1] Sync worker process started.")
        busy = re.search(r"\(Process-(\d+) \S+\)\s+\[Task 1 Received\]", client.text)
        assert busy is not None, client.text
        workers = workers_of(client)
        assert len(workers) == 2
        busy_pid = int(busy.group(1))
        pid = busy_pid if victim == "running" else next(one for one in workers if one != busy_pid)
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        client.says("exit code -9")
        client.says(" again...")
        assert server.ends() == 0, server.text + client.text
        # Known at once from the process that ended, not after the 10 s of a silence or the 300 s of a task.
        assert time.monotonic() - began < 20
        assert len(re.findall(r"\[Algo\] Received reward: 0\.500", server.text)) == 3, server.text
        assert "[Algo] Best prompt: 'You are a helpful assistant.' (reward: 0.500)" in server.text
        assert ("is handed out again" in client.text) == (victim == "running")
        client.says("[Worker", 5)
        assert client.interrupt() == 0, client.text
        # Nothing of the script runs a second time in a worker.
        assert client.text.count("After fit") == 1 and client.lines[-1] == "After fit"
        assert "so the worker processes are forked" in client.text
        assert "Traceback" not in server.text + client.text, client.text
        assert workers_of(client) == []
    finally:
        end(server, client)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for worker processes in /proc")
def test_ctrl_c_waits_for_the_task_a_second_one_does_not_and_no_process_stays(tmp_path: Path) -> None:
    port = free_port()
    env = environment()
    server = Terminal(on_port("server", port, tmp_path), cwd=tmp_path, env=env)
    try:
        client = Terminal(str(slow_client(tmp_path, port, 2.0)), cwd=tmp_path, env=env)
        client.says("Working on")
        assert client.interrupt() == 0, client.text
        assert "Completed in 2." in client.text and "Traceback" not in client.text, client.text
        client = Terminal(str(slow_client(tmp_path, port, 60.0)), cwd=tmp_path, env=env)
        client.says("Working on")
        workers = workers_of(client)
        client.process.send_signal(signal.SIGINT)
        client.says("Stopping: no more work")
        began = time.monotonic()
        client.process.send_signal(signal.SIGINT)
        assert client.ends(10) == 0 and time.monotonic() - began < 3, client.text
        assert "is ended in the middle of its task" in client.text and "Traceback" not in client.text, client.text
        assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
        client = Terminal(str(slow_client(tmp_path, port, 60.0)), cwd=tmp_path, env=env)
        client.says("Sync worker process started.")
        client.says("[Worker 1] Sync worker process started.")
        workers = workers_of(client)
        client.process.kill()
        deadline = time.monotonic() + 15
        while [pid for pid in workers if Path(f"/proc/{pid}").exists()] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    finally:
        end(server)
