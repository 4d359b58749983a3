"""Runner processes with agents that hang, block the loop, print and leak threads: replaced, and `agl show` says why."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

from agentlightning.core.model.resources import PromptTemplate
from agentlightning.core.model.rollout import RolloutConfig
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.open_store import open_store

from ...cli.support import PATIENCE_SECONDS, document, invoke, running

AGENT = """
import logging, os, sys, threading, time

def first_time(name):
    if os.path.exists(name):
        return False
    open(name, "w").close()
    return True

def hangs(task):
    if task == "bad" and first_time("hung"):
        time.sleep(3600)
    return 1.0

async def blocks(task):
    if task == "bad" and first_time("blocked"):
        time.sleep(3600)
    return 1.0

def leaks(task):
    threading.Thread(target=time.sleep, args=(3600,), name="leaked", daemon=False).start()
    return 1.0

def prints(task):
    print("on standard output")
    print("on standard error", file=sys.stderr)
    logging.getLogger("mine").warning("in a log")
    raise ValueError("and then it failed")
"""
TWICE = RolloutConfig(timeout_seconds=1.0, max_attempts=2, retry_condition=["timeout"])


async def ask(endpoint: str, tasks: list[str]) -> tuple[dict[str, str], list[Any]]:
    """Statuses of these tasks after all ended, and the attempts of the first."""
    client = LightningStoreClient(endpoint)
    try:
        await client.add_resources({"prompt": PromptTemplate(template="{task}", engine="f-string")})
        rollouts = [await client.enqueue_rollout(task, config=TWICE) for task in tasks]
        ids = [rollout.rollout_id for rollout in rollouts]
        await client.wait_for_rollouts(rollout_ids=ids, timeout=PATIENCE_SECONDS)
        statuses = {str(one.input): one.status for one in await client.query_rollouts(rollout_id_in=ids)}
        return statuses, list(await client.query_attempts(ids[0]))
    finally:
        await client.close()


def crew_with(agent: str, folder: Path) -> None:
    """Two processes of this agent: both tasks end well, the bad one at its second attempt, in another process."""
    (folder / "agents.py").write_text(AGENT)
    with running("store", "--port", "0", "--json", cwd=folder) as store:
        endpoint = json.loads(store.wait_for(store.out, "serving"))["endpoint"]
        with running("runner", f"agents:{agent}", "--store", endpoint, "-n", "2", cwd=folder) as crew:
            statuses, attempts = asyncio.run(ask(endpoint, ["bad", "good"]))
            assert statuses == {"bad": "succeeded", "good": "succeeded"}
            assert [attempt.status for attempt in attempts] == ["timeout", "succeeded"]
            workers = {attempt.worker_id for attempt in attempts}
            assert len(workers) == 2, "names are never shared, nor used again by the process that follows"
            assert "code 4" in crew.wait_for(crew.err, "another takes its place")
            assert crew.end(signal.SIGTERM) == 0
        store.end(signal.SIGTERM)


def test_a_process_whose_agent_hangs_in_a_thread_is_replaced(tmp_path: Path) -> None:
    crew_with("hangs", tmp_path)


def test_a_process_whose_agent_blocks_the_event_loop_is_replaced(tmp_path: Path) -> None:
    crew_with("blocks", tmp_path)


async def queue(path: Path) -> str:
    store: Any = open_store(f"sqlite:///{path}")
    try:
        await store.add_resources({"prompt": PromptTemplate(template="{task}", engine="f-string")})
        return (await store.enqueue_rollout("task")).rollout_id
    finally:
        store.close()


def test_leaked_threads_do_not_keep_the_process_alive(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    asyncio.run(queue(tmp_path / "log.db"))
    started = time.monotonic()
    args = ("runner", "agents:leaks", "--store", f"sqlite:///{tmp_path}/log.db", "--max-rollouts", "1")
    with running(*args, cwd=tmp_path) as one:
        assert one.process.wait(PATIENCE_SECONDS) == 0
        one.wait_for(one.err, "threads that do not end")
    assert time.monotonic() - started < PATIENCE_SECONDS
    assert document("replay", str(tmp_path / "log.db"))["rollouts"] == {"succeeded": 1}


def test_show_tells_the_traceback_and_what_was_printed(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    rollout_id = asyncio.run(queue(tmp_path / "log.db"))
    args = ("runner", "agents:prints", "--store", f"sqlite:///{tmp_path}/log.db", "--max-rollouts", "1")
    with running(*args, cwd=tmp_path) as one:
        assert one.process.wait(PATIENCE_SECONDS) == 0
        assert one.wait_for(one.out, "on standard output"), "what is kept is printed as well"
    code, text = invoke("show", rollout_id, "--log", str(tmp_path / "log.db"), "--full")
    assert code == 0
    for part in ("Exception of attempt 1", "agents.py", "ValueError: and then it failed", "Output of attempt 1"):
        assert part in text
    output = text[text.index("Output of attempt 1") :]
    assert [line.strip() for line in output.splitlines()[1:4]] == [
        "on standard output",
        "on standard error",
        "WARNING mine: in a log",
    ]
    (attempt,) = document("show", rollout_id, "--log", str(tmp_path / "log.db"))["attempts"]
    assert attempt["error"] == "ValueError: and then it failed" and attempt["output"]["stdout_bytes"] == 19
