"""`agl runner` as a process: it waits for its store, replaces its dead, and lets running rollouts end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from agentlightning.core.model.resources import PromptTemplate
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.open_store import open_store

from ...cli.support import PATIENCE_SECONDS, document, invoke, running

AGENT = """
import os, time
import agentlightning as agl

class Good(agl.LitAgent):
    def rollout(self, task, resources, rollout):
        if task == "die" and not os.path.exists("died"):
            open("died", "w").close()
            os._exit(7)
        if task == "slow":
            time.sleep(1.5)
        return 1.0

good = Good()
"""


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return str(taken.getsockname()[1])


async def ask(endpoint: str, tasks: list[str], wait: bool = True, resources: bool = True) -> dict[str, str]:
    """Queue these tasks; their statuses, after they all ended where `wait` is set."""
    client = LightningStoreClient(endpoint)
    try:
        if resources:
            await client.add_resources({"prompt": PromptTemplate(template="{task}", engine="f-string")})
        ids = [(await client.enqueue_rollout(task)).rollout_id for task in tasks]
        if wait:
            await client.wait_for_rollouts(rollout_ids=ids, timeout=PATIENCE_SECONDS)
        return {str(one.input): one.status for one in await client.query_rollouts(rollout_id_in=ids)}
    finally:
        await client.close()


def test_several_processes_wait_for_the_store_and_work(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    with running("runner", "agents:good", "--store", endpoint, "-n", "2", cwd=tmp_path) as crew:
        crew.wait_for(crew.err, "waiting for the store")
        with running("store", "--port", port, cwd=tmp_path) as store:
            store.wait_for(store.err, "Serving")
            done = asyncio.run(ask(endpoint, [f"task {number}" for number in range(6)]))
            assert set(done.values()) == {"succeeded"}
            assert crew.end(signal.SIGINT) == 130
            store.end(signal.SIGTERM)
    workers = {worker["worker_id"] for worker in document("replay", str(tmp_path / ".agl" / "log.db"))["workers"]}
    assert 1 <= len(workers) <= 2


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    with running("store", "--port", "0", "--json", "--worker-lost-seconds", "2", cwd=tmp_path) as store:
        endpoint = json.loads(store.wait_for(store.out, "serving"))["endpoint"]
        args = ("runner", "agents.py:good", "--store", endpoint, "-n", "2", "--worker-id", "5")
        with running(*args, cwd=tmp_path) as crew:
            assert asyncio.run(ask(endpoint, ["die", "after"])) == {"die": "succeeded", "after": "succeeded"}
            assert "code 7" in crew.wait_for(crew.err, "another takes its place")
            assert crew.end(signal.SIGTERM) == 0
        store.end(signal.SIGTERM)
    workers = {worker["worker_id"] for worker in document("replay", str(tmp_path / ".agl" / "log.db"))["workers"]}
    assert workers <= {"Worker-5", "Worker-6"}


def test_the_first_ctrl_c_lets_the_running_rollout_end(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    with running("store", "--port", "0", "--json", cwd=tmp_path) as store:
        endpoint = json.loads(store.wait_for(store.out, "serving"))["endpoint"]
        with running("runner", "agents:good", "--store", endpoint, cwd=tmp_path) as one:
            asyncio.run(ask(endpoint, ["slow"], wait=False))
            time.sleep(0.1)
            one.wait_for(one.err, "Started async rollouts")
            deadline = time.monotonic() + PATIENCE_SECONDS
            while "running" not in _statuses(tmp_path) and "preparing" not in _statuses(tmp_path):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert one.end(signal.SIGINT) == 130
        assert _statuses(tmp_path) == {"succeeded": 1}
        store.end()


def _statuses(folder: Path) -> dict[str, Any]:
    return document("replay", str(folder / ".agl" / "log.db"))["rollouts"]


def test_an_idle_runner_ends_at_once_also_without_its_store(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    with running("runner", "agents:good", "--store", f"http://127.0.0.1:{free_port()}", cwd=tmp_path) as one:
        one.wait_for(one.err, "waiting for the store")
        assert one.end(signal.SIGINT) == 130


def test_an_agent_that_failed_before_it_began_does_not_keep_its_runner_alive(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    with running("store", "--port", "0", "--json", cwd=tmp_path) as store:
        endpoint = json.loads(store.wait_for(store.out, "serving"))["endpoint"]
        with running("runner", "agents:good", "--store", endpoint, cwd=tmp_path) as one:
            # Without any resources in the store an attempt fails before the hooks of its start are called.
            assert asyncio.run(ask(endpoint, ["no resources"], resources=False)) == {"no resources": "failed"}
            store.end()
            one.wait_for(one.err, "waiting for the store")
            assert one.end(signal.SIGINT) == 130


def test_max_rollouts_ends_it_with_success(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    with running("store", "--port", "0", "--json", cwd=tmp_path) as store:
        endpoint = json.loads(store.wait_for(store.out, "serving"))["endpoint"]
        asyncio.run(ask(endpoint, ["a", "b", "c"], wait=False))
        with running("runner", "agents:good", "--store", endpoint, "--max-rollouts", "2", cwd=tmp_path) as one:
            assert one.process.wait(PATIENCE_SECONDS) == 0
        assert _statuses(tmp_path) == {"queuing": 1, "succeeded": 2}
        store.end()


def test_a_second_ctrl_c_ends_all_processes_in_the_middle_of_their_work(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text("import time\ndef slow(task):\n    print('begins', flush=True)\n    time.sleep(60)\n")
    with running("store", "--port", "0", "--json", cwd=tmp_path) as store:
        endpoint = json.loads(store.wait_for(store.out, "serving"))["endpoint"]
        with running("runner", "agents:slow", "--store", endpoint, "-n", "2", cwd=tmp_path) as crew:
            pids = [_process_of(crew.wait_for(crew.err, "Started async rollouts")) for _ in range(2)]
            asyncio.run(ask(endpoint, ["one", "two"], wait=False))
            for _ in range(2):
                crew.wait_for(crew.out, "begins")
            crew.process.send_signal(signal.SIGINT)
            crew.wait_for(crew.err, "Stopping after the rollouts that run")
            crew.process.send_signal(signal.SIGINT)
            crew.process.wait(10)
            deadline = time.monotonic() + 5
            while any(_alive(pid) for pid in pids):
                assert time.monotonic() < deadline, "a runner goes on without its crew"
                time.sleep(0.05)
        store.end()


@pytest.mark.skipif(not hasattr(os, "kill"), reason="kills a process by its number")
def test_no_runner_outlives_a_killed_crew(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    with running("store", "--port", "0", "--json", cwd=tmp_path) as store:
        endpoint = json.loads(store.wait_for(store.out, "serving"))["endpoint"]
        with running("runner", "agents:good", "--store", endpoint, "-n", "2", cwd=tmp_path) as crew:
            first = _process_of(crew.wait_for(crew.err, "Started async rollouts"))
            second = _process_of(crew.wait_for(crew.err, "Started async rollouts"))
            crew.process.kill()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while _alive(first) or _alive(second):
            assert time.monotonic() < deadline, "a runner lives on without its crew"
            time.sleep(0.1)
        store.end()


def _process_of(line: str) -> int:
    return int(line.split("(Process-")[1].split()[0])


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def test_a_runner_of_a_file_works_in_slots_and_ends_after_all_that_run(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    store: Any = open_store(f"sqlite:///{tmp_path}/log.db")
    asyncio.run(_queue(store, ["slow", "slow", "slow"]))
    store.close()
    args = ("runner", "agents:good", "--store", f"sqlite:///{tmp_path}/log.db", "--slots", "2", "--worker-id", "3")
    with running(*args, cwd=tmp_path) as one:
        one.wait_for(one.err, "Started async rollouts")
        time.sleep(0.5)
        assert one.end(signal.SIGINT) == 130
    said = document("replay", str(tmp_path / "log.db"))
    assert said["rollouts"] == {"queuing": 1, "succeeded": 2}
    assert {worker["worker_id"] for worker in said["workers"]} == {"Worker-3-0", "Worker-3-1"}


async def _queue(store: Any, tasks: list[str]) -> None:
    await store.add_resources({"prompt": PromptTemplate(template="{task}", engine="f-string")})
    for task in tasks:
        await store.enqueue_rollout(task)


def test_several_processes_do_not_share_a_file(tmp_path: Path) -> None:
    code, out = invoke("runner", "json:dumps", "--store", f"sqlite:///{tmp_path}/log.db", "-n", "2")
    assert code == 1 and "--slots" in out and len(out.splitlines()) == 1


def test_a_wrong_agent_or_address_is_one_line(tmp_path: Path) -> None:
    for args in (["no_such_module:agent"], ["json:dumps", "--store", "memory://"], ["nonsense"]):
        for count in ("1", "2"):
            code, out = invoke("runner", *args, "-n", count)
            assert code == 1 and len(out.splitlines()) == 1, out
