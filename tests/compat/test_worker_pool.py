"""The pool of worker processes: what agents do to their worker costs that worker, and what is no accident ends the fit."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.compat.runner import LegacyAgentRunner
from agentlightning.compat.worker_pool import fit_v0
from agentlightning.core.errors import InvalidInput

from ..test_first_algorithm import free_port

PROGRAM = """
import logging, os, sys, threading, time
import agentlightning as agl

class Agent(agl.LitAgent):
    def training_rollout(self, task, rollout_id, resources):
        if task == "leave":
            # A thread that nobody joins must not keep the worker.
            threading.Thread(target=time.sleep, args=(600,)).start()
        if task == "die":
            os._exit(9)
        if task == "five":
            os._exit(5)
        return 0.5

if __name__ == "__main__":
    from agentlightning.core.retry import Backoff
    from agentlightning.runners.pool import supervisor
    supervisor.PROCESS_BACKOFF = Backoff(0.01, 0.01)
    agl.setup_logging(color=False)
    loader = agl.DevTaskLoader([{tasks}], {{"p": agl.PromptTemplate(template="x", engine="f-string")}})
    try:
        agl.Trainer(n_runners=2, max_rollouts=3, tracer=agl.OtelTracer(instrument_managed=False)).fit(Agent(), backend=loader)
    except agl.AgentLightningError as error:
        print("FAILED", error)
    print("After fit")
"""


def run(tasks: str, folder: Path) -> tuple[str, float]:
    program = folder / "program.py"
    program.write_text(PROGRAM.format(tasks=tasks), encoding="utf-8")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(program)], cwd=folder, capture_output=True, text=True, timeout=90, check=False
    )
    return done.stdout + done.stderr, time.monotonic() - began


def test_workers_end_after_their_tasks_in_spite_of_threads_left_behind(tmp_path: Path) -> None:
    said, seconds = run('"leave"', tmp_path)
    assert said.count("Processed 3 tasks.") == 2 and "All 2 worker processes have completed." in said, said
    assert "After fit" in said and "Traceback" not in said and seconds < 30


def test_a_worker_that_dies_again_and_again_ends_the_fit_with_one_sentence(tmp_path: Path) -> None:
    said, _ = run('"die"', tmp_path)
    assert "within 5 s of its start" in said and "exit code 9" in said, said
    assert "FAILED Worker process" in said and "After fit" in said and "Traceback" not in said


def test_a_death_in_between_is_made_up_for_and_tasks_are_counted_over_all_lives(tmp_path: Path) -> None:
    # Each life of a worker has a copy of the list: the second task ends it, so each life does one of the three.
    said, _ = run('"ok", "die"', tmp_path)
    assert said.count("exit code 9") == 4 and "All 2 worker processes have completed." in said, said
    assert "FAILED" not in said


def test_an_agents_exit_code_is_not_taken_for_a_program_without_a_guard(tmp_path: Path) -> None:
    said, _ = run('"ok", "five"', tmp_path)
    assert said.count("exit code 5") == 4 and "All 2 worker processes have completed." in said, said
    assert "forked" not in said


LOCAL = """
import agentlightning as agl

def main():
    class Agent(agl.LitAgent):
        def training_rollout(self, task, rollout_id, resources):
            return 0.5

    agl.setup_logging(color=False)
    loader = agl.DevTaskLoader(["ok"], {"p": agl.PromptTemplate(template="x", engine="f-string")})
    agl.Trainer(n_runners=2, max_rollouts=1, tracer=agl.OtelTracer(instrument_managed=False)).fit(Agent(), backend=loader)

if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="processes are not forked here")
def test_an_agent_that_no_other_process_finds_is_forked(tmp_path: Path) -> None:
    (tmp_path / "local.py").write_text(LOCAL, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "local.py"], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and said.count("so the worker processes are forked") == 1, said
    assert said.count("Processed 1 tasks.") == 2 and "All 2 worker processes have completed." in said, said


def test_wrong_backends_are_refused() -> None:
    for backend in ("127.0.0.1:9997", "sqlite:///x.db", 7):
        with pytest.raises(InvalidInput):
            fit_v0(lambda task: 1.0, backend)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput):
        fit_v0(lambda task: 1.0, "http://127.0.0.1:1", n_workers=0)


class _Agent(agl.LitAgent[Any]):
    def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> float:
        time.sleep(task)
        return 0.5


def _worker(endpoint: str, stop: threading.Event, hung: Any = None) -> threading.Thread:
    tracer = agl.OtelTracer(instrument_managed=False)
    tracer.init()
    tracer.init_worker(0)
    client = agl.AgentLightningClient(endpoint, poll_interval=0.2)
    runner = LegacyAgentRunner(_Agent(), client, tracer, None, 0, name="Worker-0-test", stop=stop, hung=hung)
    thread = threading.Thread(target=runner.iter, daemon=True)
    thread.start()
    return thread


async def claimed(server: agl.AgentLightningServer, rollout_id: str) -> None:
    for _ in range(200):
        rollout = await server.store.get_rollout_by_id(rollout_id)
        if rollout is not None and rollout.status != "queuing":
            return
        await asyncio.sleep(0.05)
    raise AssertionError("nobody took the task")


async def test_a_server_that_goes_away_in_the_middle_costs_that_time(tmp_path: Path) -> None:
    port, url = free_port(), f"sqlite:///{tmp_path / 'log.db'}"
    stop = threading.Event()
    server = agl.AgentLightningServer(port=port, store=url)
    await server.start()
    thread = _worker(server.endpoint, stop)
    try:
        await server.update_resources({"p": agl.PromptTemplate(template="x", engine="f-string")})
        rollout_id = await server.queue_task(1.0, mode="train")
        await claimed(server, rollout_id)
        await server.stop()
        await asyncio.sleep(1.5)  # the task takes 1 s: its result meets no server
        server = agl.AgentLightningServer(port=port, store=url)
        await server.start()
        result = await server.poll_completed_rollout(rollout_id, timeout=20)
        assert result is not None and result.final_reward == 0.5
        assert result.task is not None and result.task.num_claims == 1
    finally:
        stop.set()
        thread.join(10)
        await server.stop()


async def test_an_agent_that_hangs_is_given_up_and_its_task_goes_to_another(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agentlightning")
    stop, hung = threading.Event(), threading.Event()
    server = agl.AgentLightningServer(port=0, task_timeout_seconds=0.5)
    await server.start()
    thread = _worker(server.endpoint, stop, hung.set)
    try:
        await server.update_resources({"p": agl.PromptTemplate(template="x", engine="f-string")})
        rollout_id = await server.queue_task(30.0, mode="train")
        client = agl.AgentLightningClient(server.endpoint, poll_interval=0.2)
        await claimed(server, rollout_id)
        again = await client.poll_next_task_async()
        assert again is not None and again.num_claims == 2
        await client.post_rollout_async(agl.RolloutLegacy(rollout_id=rollout_id, task=again, final_reward=0.75))
        result = await server.poll_completed_rollout(rollout_id, timeout=5)
        assert result is not None and result.final_reward == 0.75
        assert hung.wait(5)
        assert "The agent does not end" in caplog.text
    finally:
        stop.set()
        thread.join(10)
        await server.stop()


@pytest.mark.parametrize("how", ["backend", "first argument", "dev_backend"])
def test_the_trainer_takes_a_backend_in_every_way_that_it_was_given(how: str) -> None:
    loader = agl.DevTaskLoader([0], {"p": agl.PromptTemplate(template="x", engine="f-string")})
    trainer = agl.Trainer(max_rollouts=1, tracer=agl.OtelTracer(instrument_managed=False))
    if how == "backend":
        trainer.fit(_Agent(), backend=loader)
    elif how == "first argument":
        trainer.fit(_Agent(), loader)
    else:
        with pytest.warns(DeprecationWarning):
            trainer = agl.Trainer(dev=True, max_rollouts=1, tracer=agl.OtelTracer(instrument_managed=False))
        trainer.fit(_Agent(), backend="http://127.0.0.1:1", dev_backend=loader)
    assert [rollout.final_reward for rollout in loader.rollouts] == [0.5]


class BareAgent(agl.LitAgent):
    """Does not call the constructor of its base class."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> float:
        self.tasks.append(task)
        return 1.0


@pytest.mark.parametrize(
    "form", ["fit_v0(dev_data=)", "fit(agent, url, loader)", "fit(endpoint=, dev_backend=)", "fit(agent, loader)"]
)
def test_the_calls_of_every_older_release_are_taken(form: str) -> None:
    loader = agl.DevTaskLoader(["a", "b"], {"p": agl.PromptTemplate(template="x", engine="f-string")})
    agent, url = BareAgent(), "http://127.0.0.1:9/"
    with pytest.warns(DeprecationWarning):
        trainer = agl.Trainer(n_workers=1, max_tasks=2, dev=form != "fit(agent, loader)", tracer=agl.OtelTracer())
    match form:
        case "fit_v0(dev_data=)":
            trainer.fit_v0(agent, url, dev_data=loader)
        case "fit(agent, url, loader)":
            trainer.fit(agent, url, loader)
        case "fit(endpoint=, dev_backend=)":
            trainer.fit(agent, endpoint=url, dev_backend=loader)
        case _:
            trainer.fit(agent, loader)
    assert agent.tasks == ["a", "b"]


def test_a_call_that_cannot_be_meant_is_an_error() -> None:
    loader = agl.DevTaskLoader(["a"], {"p": agl.PromptTemplate(template="x", engine="f-string")})
    with pytest.warns(DeprecationWarning):
        trainer = agl.Trainer(n_workers=1, max_tasks=1, dev=True)
    with pytest.raises(TypeError, match="dev_data"):
        trainer.fit(BareAgent(), "http://127.0.0.1:9/")
    with pytest.raises(TypeError, match="datasets"):
        trainer.fit(BareAgent(), ["a"], backend=loader, dev_backend=loader)
    with pytest.raises(TypeError, match="address of a server"):
        agl.Trainer(n_runners=1).fit_v0(BareAgent(), ["a"])
