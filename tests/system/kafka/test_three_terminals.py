"""The tutorial's three terminals with the log on Kafka, and a runner that is killed in the middle of its work."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlightning.core.log.kafka import KafkaLog
from tests.openai_stub import Stub, openai_stub
from tests.test_first_algorithm import EXAMPLE, Terminal, free_port

from .fleet import audit


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with openai_stub() as server:
        yield server


@pytest.mark.parametrize("direct", [False, True], ids=["through the door", "on the topics"])
def test_three_terminals_on_kafka_outlive_a_runner(
    kafka_url: str, tmp_path: Path, stub: Stub, direct: bool
) -> None:
    """`direct`: the second runner folds the log itself, as a member of the consumer group."""
    port = free_port()
    env = {**os.environ, "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": stub.base_url, "PYTHONUNBUFFERED": "1"}
    env["PYTHONPATH"] = str(EXAMPLE.parent)
    door = f"http://127.0.0.1:{port}"
    terminals: list[Terminal] = []

    def terminal(*arguments: str) -> Terminal:
        terminals.append(Terminal(*arguments, cwd=tmp_path, env=env))
        return terminals[-1]

    try:
        store = terminal("-m", "agentlightning", "store", "--init", "--log", kafka_url, "--port", str(port))
        doomed = terminal(str(EXAMPLE), "--store", door, "runner")
        doomed.says("Started async rollouts")
        algo = terminal(str(EXAMPLE), "--store", door, "algo")
        doomed.says("[Rollout]")
        doomed.process.kill()
        if direct:
            other = terminal("-m", "agentlightning", "runner", "first_algorithm:simple_agent", "--store", kafka_url)
        else:
            other = terminal(str(EXAMPLE), "--store", door, "runner")
        try:
            assert algo.ends(60) == 0, algo.text
        except subprocess.TimeoutExpired:
            raise AssertionError("\n\n".join(["it hangs", *(one.text[-6000:] for one in terminals)])) from None
        assert len(re.findall(r"\[Algo\] Final reward: 0\.\d+", algo.text)) == 3
        assert "[Algo] Best prompt found: 'You are a " in algo.text
        assert other.interrupt() in (0, 130), other.text
        store.interrupt()
        for one in (other, store):
            assert "Traceback" not in one.text, one.text
    finally:
        for one in terminals:
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait()
    with KafkaLog(kafka_url) as log:
        found = audit(log)
    statuses = sorted(str(rollout.status) for rollout in found.state.rollouts.values())
    assert statuses == ["succeeded"] * 3
