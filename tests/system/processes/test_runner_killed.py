"""A runner that is killed or frozen: its rollout runs again elsewhere in time, and what it says late changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentlightning.core.model.resources import PromptTemplate
from agentlightning.core.model.rollout import AttemptedRollout, RolloutConfig
from agentlightning.rest.client.client import LightningStoreClient

from ...cli.support import PATIENCE_SECONDS, Process, running

UNRESPONSIVE_SECONDS = 4.0
CONFIG = RolloutConfig(unresponsive_seconds=UNRESPONSIVE_SECONDS, max_attempts=3, retry_condition=["unresponsive"])
AGENT = """
import asyncio, os

async def first_is_slow(task):
    seconds = 0.1 if os.path.exists(task) else 2.0
    open(task, "w").close()
    await asyncio.sleep(seconds)
    return 1.0 if seconds > 1 else 2.0
"""

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this platform cannot freeze a process")


@contextmanager
def two_runners(folder: Path) -> Iterator[tuple[str, dict[str, Process]]]:
    """A store's address, and two runners of it by the ids of their workers."""
    (folder / "agents.py").write_text(AGENT)
    with running("store", "--port", "0", "--json", cwd=folder) as store:
        endpoint = json.loads(store.wait_for(store.out, "serving"))["endpoint"]
        args = ("runner", "agents:first_is_slow", "--store", endpoint, "--worker-id")
        with running(*args, "1", cwd=folder) as one, running(*args, "2", cwd=folder) as two:
            for runner in (one, two):
                runner.wait_for(runner.err, "Started async rollouts")
            yield endpoint, {"Worker-1": one, "Worker-2": two}
            for runner in (one, two):
                if runner.process.poll() is None:
                    runner.end(signal.SIGTERM)
        store.end(signal.SIGTERM)


async def begun(client: LightningStoreClient, task: str) -> AttemptedRollout:
    """A rollout of this task, as soon as somebody runs it."""
    rollout = await client.enqueue_rollout(task, config=CONFIG)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not os.path.exists(task):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    found = await client.get_rollout_by_id(rollout.rollout_id)
    assert isinstance(found, AttemptedRollout)
    return found


def test_a_killed_runners_attempt_is_retried_elsewhere_within_a_second_of_its_limit(tmp_path: Path) -> None:
    async def scene(endpoint: str, runners: dict[str, Process]) -> None:
        client = LightningStoreClient(endpoint)
        try:
            await client.add_resources({"prompt": PromptTemplate(template="{task}", engine="f-string")})
            first = await begun(client, str(tmp_path / "task"))
            runners[first.attempt.worker_id or ""].process.kill()
            killed = time.time()
            await client.wait_for_rollouts([first.rollout_id], timeout=PATIENCE_SECONDS)
            before, after = await client.query_attempts(first.rollout_id)
            assert (before.status, after.status) == ("unresponsive", "succeeded")
            assert after.worker_id != before.worker_id
            assert after.start_time - killed <= UNRESPONSIVE_SECONDS + 1.0
        finally:
            await client.close()

    with two_runners(tmp_path) as (endpoint, runners):
        asyncio.run(scene(endpoint, runners))


def test_a_frozen_runner_reports_late_and_changes_nothing(tmp_path: Path) -> None:
    async def scene(endpoint: str, runners: dict[str, Process]) -> None:
        client = LightningStoreClient(endpoint)
        try:
            await client.add_resources({"prompt": PromptTemplate(template="{task}", engine="f-string")})
            first = await begun(client, str(tmp_path / "task"))
            frozen = runners[first.attempt.worker_id or ""]
            frozen.process.send_signal(signal.SIGSTOP)
            await client.wait_for_rollouts([first.rollout_id], timeout=PATIENCE_SECONDS)
            done = await client.get_rollout_by_id(first.rollout_id)
            frozen.process.send_signal(signal.SIGCONT)
            frozen.wait_for(frozen.err, "Completed in")
            # It goes on to work: what it reports late is behind it by the time that it has done another task.
            next_one = await client.enqueue_rollout(str(tmp_path / "task"))
            await client.wait_for_rollouts([next_one.rollout_id], timeout=PATIENCE_SECONDS)
            attempts = await client.query_attempts(first.rollout_id)
            assert len(attempts) == 2 and attempts[0].worker_id == first.attempt.worker_id
            assert done is not None and done.status == "succeeded"
            assert await client.get_rollout_by_id(first.rollout_id) == done
        finally:
            await client.close()

    with two_runners(tmp_path) as (endpoint, runners):
        asyncio.run(scene(endpoint, runners))
