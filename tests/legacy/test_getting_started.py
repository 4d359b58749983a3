"""The programs of the tutorial "Getting Started", each a process, against a stub of OpenAI's API."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with openai_stub() as server:
        yield server


def environment(stub: Stub, port: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    address = f"http://127.0.0.1:{port}"
    return {**kept, "PYTHONUNBUFFERED": "1", "PORT": str(port), "AGENT_LIGHTNING_SERVER": address}


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
    env = environment(stub, free_port())
    started: dict[str, Terminal] = {}
    try:
        for role in sorted(("server", "client"), key=lambda role: role != first):
            started[role] = Terminal(str(EXAMPLE / f"{role}.py"), cwd=tmp_path, env=env)
            if first == "client" and role == "client":
                started[role].says("No server answers at")
        server, client = started["server"], started["client"]
        assert server.ends() == 0, server.text + client.text
        check_server(server.text)
        check_client(client.text)
        assert client.interrupt() == 0, client.text
        assert "Stopping: no more work is taken" in client.text
        assert "Traceback" not in server.text + client.text, client.text
        assert workers_of(client) == []
    finally:
        end(*started.values())


def check_server(text: str) -> None:
    assert len(re.findall(r"\[Algo\] Testing prompt: 'You are a \w+", text)) == 3
    assert len(re.findall(r"\[Algo\] Task 'rollout-[0-9a-f-]{36}' is now available for clients\.", text)) == 3
    rewards = [float(value) for value in re.findall(r"\[Algo\] Received reward: (\S+)", text)]
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
import time
from agentlightning import setup_logging
from agentlightning.litagent import LitAgent
from agentlightning.trainer import Trainer

class SlowAgent(LitAgent):
    def training_rollout(self, task, rollout_id, resources):
        print("Working on", rollout_id, flush=True)
        time.sleep({seconds})
        return 0.5

setup_logging()
agent = SlowAgent()
trainer = Trainer(n_workers=2)
trainer.fit(agent, backend="http://127.0.0.1:{port}")
print("After fit", flush=True)
"""
"""As the tutorial prints it: no ``if __name__ == "__main__"`` around the call that starts processes."""


def slow_client(folder: Path, port: int, seconds: float) -> Path:
    path = folder / "slow_client.py"
    path.write_text(SLOW_CLIENT.format(seconds=seconds, port=port), encoding="utf-8")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="looks for worker processes in /proc")
@pytest.mark.parametrize("victim", ["running", "idle"])
def test_a_killed_worker_is_replaced_and_the_run_finishes(victim: str, stub: Stub, tmp_path: Path) -> None:
    port = free_port()
    env = environment(stub, port)
    server = Terminal(str(EXAMPLE / "server.py"), cwd=tmp_path, env=env)
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
def test_ctrl_c_waits_for_the_task_a_second_one_does_not_and_no_process_stays(stub: Stub, tmp_path: Path) -> None:
    port = free_port()
    env = environment(stub, port)
    server = Terminal(str(EXAMPLE / "server.py"), cwd=tmp_path, env=env)
    try:
        client = Terminal(str(slow_client(tmp_path, port, 3.0)), cwd=tmp_path, env=env)
        client.says("Working on")
        assert client.interrupt() == 0, client.text
        assert "Completed in 3." in client.text and "Traceback" not in client.text, client.text
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
