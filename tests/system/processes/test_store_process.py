"""`agl store` as a process: what it says, who may reach it, how it ends, and looking at its file while it runs."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from agentlightning.rest.client.client import LightningStoreClient

from ...cli.support import Process, document, invoke, make_log, running


def served(process: Process) -> str:
    """The address that a starting store tells."""
    return process.wait_for(process.err, "Serving http").split("Serving ")[1].split()[0]


async def through(endpoint: str, token: str | None = None) -> dict[str, Any]:
    """What `fill` does, over HTTP; positions are those that the file gives."""
    client = LightningStoreClient(endpoint, token=token)
    try:
        rollout = await client.enqueue_rollout("task")
        await client.enqueue_rollout("another")
        await client.dequeue_rollout("worker")
        return {"rollout_id": rollout.rollout_id}
    finally:
        await client.close()


def test_a_log_may_be_named_by_its_path_as_everywhere(tmp_path: Path) -> None:
    with running("store", "--port", "0", "--log", "here.db", cwd=tmp_path) as store:
        served(store)
        assert (tmp_path / "here.db").exists()
        assert store.end(signal.SIGTERM) == 0


def test_it_says_what_it_opened_and_closes_in_one_line(tmp_path: Path) -> None:
    made = make_log(tmp_path / ".agl" / "log.db")
    with running("store", "--port", "0", cwd=tmp_path) as store:
        opened = store.wait_for(store.err, "Opened")
        assert f"{made['position']} events, 2 rollouts (1 queuing, 1 succeeded)" in opened
        assert ".agl/log.db" in opened and "[INFO] (Process-" in opened
        assert " after " in store.wait_for(store.err, "Serving http://127.0.0.1:")
        assert store.end(signal.SIGTERM) == 0
        last = store.wait_for(store.err, "Stopped")
        assert made["fingerprint"] in last
        assert store.err.empty()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_everything_acknowledged_is_there_after_it_was_stopped(tmp_path: Path, number: int, code: int) -> None:
    import asyncio

    with running("store", "--port", "0", "--json", cwd=tmp_path) as store:
        begun = json.loads(store.wait_for(store.out, "serving"))
        assert begun["event"] == "serving" and begun["seconds_to_serve"] > 0
        asyncio.run(through(begun["endpoint"]))
        assert store.end(number) == code
        ended = json.loads(store.wait_for(store.out, "stopped"))
    report = document("replay", str(tmp_path / ".agl" / "log.db"))
    assert (report["position"], report["fingerprint"]) == (ended["position"], ended["fingerprint"])
    assert report["rollouts"] == {"preparing": 1, "queuing": 1}


def test_access_lines_are_shown_where_asked_for_and_the_address_always(tmp_path: Path) -> None:
    with running("store", "--port", "0", "--log-level", "info", cwd=tmp_path) as store:
        endpoint = served(store)
        for path in ("/v1/agl/health", "/dequeue_rollout"):
            urllib.request.urlopen(endpoint + path, timeout=10).read()
        assert '"GET /dequeue_rollout HTTP/1.1" 200' in store.wait_for(store.err, "HTTP/1.1")
        store.end()
    with running("store", "--port", "0", "--log-level", "warning", cwd=tmp_path) as store:
        endpoint = store.wait_for(store.err, "Serving http").split()[1]
        urllib.request.urlopen(endpoint + "/dequeue_rollout", timeout=10).read()
        store.end()
        assert store.err.empty()


def test_a_second_writer_is_told_process_and_address_in_one_line(tmp_path: Path) -> None:
    with running("store", "--port", "0", cwd=tmp_path) as store:
        endpoint = served(store)
        with running("store", "--port", "0", cwd=tmp_path) as second:
            assert second.process.wait(30) == 1
            line = second.wait_for(second.err, "agl: ")
            assert str(store.process.pid) in line and endpoint in line
            time.sleep(0.1)
            assert second.err.empty()
        assert store.process.poll() is None


def test_serving_other_machines_needs_a_token(tmp_path: Path) -> None:
    code, out = invoke("store", "--host", "0.0.0.0", "--log", f"sqlite:///{tmp_path / 'log.db'}")
    assert code == 1 and "--token" in out and len(out.splitlines()) == 1
    assert not (tmp_path / "log.db").exists()


def test_the_token_of_the_environment_is_asked_for(tmp_path: Path) -> None:
    import asyncio

    with running("store", "--port", "0", cwd=tmp_path, env={"AGL_TOKEN": "secret-of-the-test"}) as store:
        endpoint = served(store)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(endpoint + "/v1/agl/rollouts", timeout=10)
        assert refused.value.code == 401
        asyncio.run(through(endpoint, token="secret-of-the-test"))
        store.end()
        assert not [line for line in store.err.queue if "secret-of-the-test" in line]


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running("store", "--port", port, cwd=tmp_path) as store:
            assert store.process.wait(30) == 1
            assert port in store.wait_for(store.err, "agl: ")
    assert list(tmp_path.iterdir()) == [], "a log that cannot be served is not made"


def test_the_file_of_a_running_store_can_be_looked_at(tmp_path: Path) -> None:
    import asyncio

    file = str(tmp_path / ".agl" / "log.db")
    with running("store", "--port", "0", cwd=tmp_path) as store:
        endpoint = served(store)
        with running("log", "tail", "facts", "-n", "99", "-f", "--json", cwd=tmp_path) as tail:
            made = asyncio.run(through(endpoint))
            first = json.loads(tail.wait_for(tail.out, "rollout.enqueued"))
            assert first["key"] == made["rollout_id"]
            tail.wait_for(tail.out, "attempt.claimed")
            assert tail.end(signal.SIGINT) == 130
            assert tail.wait_for(tail.err, "Interrupted") == "Interrupted."
        assert document("log", "check", "--log", file)["sound"]
        live = document("replay", file)
        assert live["rollouts"] == {"preparing": 1, "queuing": 1}
        assert document("show", made["rollout_id"], "--log", file)["status"] == "preparing"
        copied = document("log", "copy", file, str(tmp_path / "backup.db"))
        assert copied["records"]["control"] == live["position"]
        store.end(signal.SIGTERM)
    assert document("replay", str(tmp_path / "backup.db"))["rollouts"] == {"preparing": 1, "queuing": 1}
    with running("store", "--port", "0", "--log", "sqlite:///backup.db", cwd=tmp_path) as restored:
        assert "2 rollouts" in restored.wait_for(restored.err, "Opened")
        restored.end()


