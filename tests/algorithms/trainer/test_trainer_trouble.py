"""Bad luck during a fit: Ctrl+C once and twice, killed workers and parents, agents that misbehave, a store that goes away."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl

from ...cli.support import document, running
from ..program import SEARCH, program

SLOW = (
    SEARCH
    + """
@agl.rollout
async def slow(task, prompt_template):
    say(f"begins {task} {os.getpid()}")
    try:
        await asyncio.sleep(float(task))
    except asyncio.CancelledError:
        say(f"cancelled {task}")
        raise
    say(f"ends {task}")
    return 1.0

@agl.rollout
def stuck(task, prompt_template):
    say(f"begins {task} {os.getpid()}")
    time.sleep(600)

if __name__ == "__main__":
    agent, tasks, arguments = eval(sys.argv[1]), eval(sys.argv[2]), eval("dict(" + sys.argv[3] + ")")
    show(agl.Trainer(algorithm=search, **arguments).fit(agent, tasks))
    print("and on", flush=True)
"""
)


def left_behind(folder: Path) -> Counter[str]:
    """Rollouts by status in the default log."""
    store: Any = agl.open_store(f"sqlite:///{folder}/.agl/log.db")
    try:
        return Counter(rollout.status for rollout in asyncio.run(store.query_rollouts()))
    finally:
        store.close()


@pytest.mark.parametrize("strategy", ["cs", "shm"])
def test_ctrl_c_takes_no_more_work_waits_for_what_runs_and_the_next_fit_leaves_the_rest_alone(
    tmp_path: Path, strategy: str
) -> None:
    with program(SLOW, tmp_path, "slow", "['1.5'] * 4", f"n_runners=2, strategy={strategy!r}") as fit:
        fit.says("begins", 2)
        fit.interrupt()
        result = fit.result()
        assert result["outcome"] == "interrupted"
        assert fit.text.count("begins") == 2 and fit.text.count("ends 1.5") == 2
        said = [line for line in fit.lines if "topp" in line or "Traceback" in line or "nterrupt" in line]
        assert len(said) == 2 and "no more work is taken" in said[0] and "interrupted" in said[1], fit.text
        assert fit.lines[-1] == "and on" and fit.left_over() == []
    assert left_behind(tmp_path) == {"succeeded": 2, "queuing": 2}
    with program("", tmp_path, "slow", "['0', '0']", f"n_runners=2, strategy={strategy!r}") as fit:
        assert fit.result()["outcome"] == "succeeded"
        [line] = [line for line in fit.lines if "agl cancel" in line]
        assert f"2 of {result['run_id']}" in line and f"`agl cancel {result['run_id']}`" in line
    assert left_behind(tmp_path) == {"succeeded": 6, "queuing": 2}
    log = f"sqlite:///{tmp_path}/.agl/log.db"
    done = document("cancel", result["run_id"], "--log", log)
    assert done["event"] == "cancelled" and len(done["rollout_ids"]) == 2
    assert left_behind(tmp_path) == {"succeeded": 6, "cancelled": 2}


@pytest.mark.parametrize("strategy", ["cs", "shm"])
def test_what_outlives_the_grace_time_is_cancelled_and_recorded_as_failed(tmp_path: Path, strategy: str) -> None:
    kind = {
        "cs": "agl.ClientServerExecutionStrategy(n_runners=1, graceful_timeout=1.0)",
        "shm": "agl.SharedMemoryExecutionStrategy(graceful_delay=1.0)",
    }[strategy]
    with program(SLOW, tmp_path, "slow", "['60']", f"strategy={kind}") as fit:
        fit.says("begins")
        fit.interrupt()
        began = time.monotonic()
        assert fit.result()["outcome"] == "interrupted"
        assert time.monotonic() - began < 6.0
        assert "cancelled 60" in fit.text
    assert left_behind(tmp_path) == {"failed": 1}


@pytest.mark.parametrize("strategy", ["cs", "shm"])
def test_sigterm_closes_the_run_and_ends_the_program(tmp_path: Path, strategy: str) -> None:
    with program(SLOW, tmp_path, "slow", "['1'] * 4", f"n_runners=1, strategy={strategy!r}, name='mine'") as fit:
        fit.says("begins")
        fit.process.terminate()
        assert fit.ends(20) == 143, fit.text
        assert "Traceback" not in fit.text and "and on" not in fit.text and fit.left_over() == []
    assert document("ps", "--log", f"{tmp_path}/.agl/log.db")[0]["state"] == "interrupted"


def test_a_killed_fit_is_shown_as_lost_and_closed_so_by_the_next_one(tmp_path: Path) -> None:
    log = f"{tmp_path}/.agl/log.db"
    with program(SLOW, tmp_path, "slow", "['60']", "n_runners=1, strategy='shm', name='first'") as fit:
        fit.says("begins")
        assert document("ps", "--log", log)[0]["state"] == "open"
        fit.process.kill()
        fit.ends(20)
    [killed] = document("ps", "--log", log)
    assert killed["state"] == "lost" and killed["closed_at"] is None
    with program("", tmp_path, "slow", "['0']", "n_runners=1, strategy='shm', name='second'") as fit:
        assert fit.result()["outcome"] == "succeeded"
        assert f"of {killed['run_id']}" in fit.text and f"`agl cancel {killed['run_id']}`" in fit.text
    closed, second = document("ps", "--log", log)
    assert closed["state"] == "lost" and closed["closed_at"] is not None and second["state"] == "succeeded"


@pytest.mark.parametrize("agent", ["slow", "stuck"])
@pytest.mark.parametrize("strategy", ["cs", "shm"])
def test_a_second_ctrl_c_ends_within_three_seconds(tmp_path: Path, strategy: str, agent: str) -> None:
    with program(SLOW, tmp_path, agent, "['60', '60']", f"n_runners=2, strategy={strategy!r}") as fit:
        fit.says("begins", 2)
        fit.interrupt()
        fit.says("no more work is taken")
        fit.interrupt()
        began = time.monotonic()
        fit.ends(10)
        assert time.monotonic() - began < 3.0, fit.text
        assert fit.text.count("Ending at once") == 1 and "Traceback" not in fit.text
        assert fit.left_over() == []
    if agent == "stuck":
        with program("", tmp_path, "slow", "['0']", f"n_runners=2, strategy={strategy!r}") as fit:
            assert fit.result()["outcome"] == "succeeded"


def test_a_worker_process_that_dies_is_replaced_and_its_attempt_runs_again(tmp_path: Path) -> None:
    with program(SLOW, tmp_path, "slow", "['2']", "n_runners=2") as fit:
        fit.says("begins 2")
        [pid] = re.findall(r"begins 2 (\d+)", fit.text)
        os.kill(int(pid), signal.SIGKILL)
        assert fit.result()["statuses"] == ["succeeded", "succeeded"]
        assert len([line for line in fit.lines if "another process takes its place" in line]) == 1
        assert fit.text.count("begins 2") == 3


def test_no_worker_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    with program(SLOW, tmp_path, "slow", "['60', '60']", "n_runners=2") as fit:
        fit.says("begins", 2)
        group = fit.group()
        assert len(group) >= 3
        fit.process.kill()
        end = time.monotonic() + 5
        while fit.group() and time.monotonic() < end:
            time.sleep(0.05)
        assert fit.left_over() == []


def test_agents_that_misbehave_cost_one_attempt_each(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
import threading
@agl.rollout
def odd(task, prompt_template):
    if task == "raise":
        raise ValueError("no")
    if task == "exit":
        sys.exit(3)
    if task == "thread":
        threading.Thread(target=time.sleep, args=(600,)).start()
    if task == "type":
        return {"not": "a reward"}
    return 1.0

@agl.algo
async def once(store, train_dataset):
    await store.add_resources({"prompt": "Please {question}"})
    rollouts = [await store.enqueue_rollout(task) for task in train_dataset]
    await store.wait_for_rollouts([one.rollout_id for one in rollouts])

if __name__ == "__main__":
    show(agl.Trainer(algorithm=once, n_runners=1).fit(odd, ["raise", "exit", "thread", "type", "fine"]))
"""
    )
    with program(text, tmp_path) as fit:
        result = fit.result()
        assert result["statuses"] == ["failed", "failed", "succeeded", "failed", "succeeded"]
        assert result["rewards"] == [None, None, 1.0, None, 1.0]
        assert fit.left_over() == []


def test_an_agent_that_takes_its_process_along_is_given_up_after_its_retries(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
@agl.rollout
def deadly(task, prompt_template):
    os._exit(7)

@agl.algo
async def once(store):
    await store.add_resources({"prompt": "Please {question}"})
    rollout = await store.enqueue_rollout("x")
    while not [one for one in await store.query_attempts(rollout.rollout_id) if one.sequence_id == 2]:
        await asyncio.sleep(0.1)
    print("again", flush=True)

if __name__ == "__main__":
    show(agl.Trainer(algorithm=once, n_runners=1).fit(deadly))
"""
    )
    with program(text, tmp_path) as fit:
        assert fit.ends() == 0, fit.text
        assert "again" in fit.text and "exit code 7" in fit.text


def test_an_agent_that_takes_its_process_along_while_the_run_closes_costs_the_fit_nothing(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
@agl.rollout
def late(task, prompt_template):
    open("begun", "w").close()
    time.sleep(1.5)
    os._exit(7)

@agl.algo
async def once(store):
    await store.add_resources({"prompt": "Please {question}"})
    await store.enqueue_rollout("x")
    while not os.path.exists("begun"):
        await asyncio.sleep(0.05)

if __name__ == "__main__":
    show(agl.Trainer(algorithm=once, n_runners=1).fit(late))
"""
    )
    with program(text, tmp_path) as fit:
        assert fit.result()["outcome"] == "succeeded"
        assert "runner-0 ended with exit code 7 while the run was closing." in fit.text
        assert fit.left_over() == []


# With runners in processes: test_fit_everywhere.py.
def test_a_store_that_goes_away_costs_a_fit_in_threads_the_time_that_it_is_away(tmp_path: Path) -> None:
    log = ["--log", "sqlite:///./served.db"]
    with running("store", "--port", "0", *log, cwd=tmp_path) as store:
        address = re.findall(r"http://\S+", store.wait_for(store.err, "Serving"))[0]
        port = address.rpartition(":")[2]
        arguments = f"n_runners=2, strategy='shm', store={address!r}"
        with program(SLOW, tmp_path, "slow", "['1'] * 4", arguments) as fit:
            fit.says("begins", 2)
            store.process.kill()
            store.process.wait()
            time.sleep(2.5)
            with running("store", "--port", port, *log, cwd=tmp_path) as again:
                again.wait_for(again.err, "Serving")
                result = fit.result()
    assert result["outcome"] == "succeeded" and result["statuses"] == ["succeeded"] * 8
    assert result["rewards"] == [1.0] * 8


def test_a_process_whose_agent_hangs_past_its_time_limit_is_replaced(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
@agl.rollout
def hangs(task, prompt_template):
    say(f"begins {task} {os.getpid()}")
    if task == "hang":
        time.sleep(600)
    return 1.0

@agl.algo
async def once(store, train_dataset):
    await store.add_resources({"prompt": "Please {question}"})
    rollouts = [await store.enqueue_rollout(task) for task in train_dataset]
    await store.wait_for_rollouts([one.rollout_id for one in rollouts])

if __name__ == "__main__":
    config = agl.RolloutConfig(timeout_seconds=1.0)
    show(agl.Trainer(algorithm=once, n_runners=1, rollout_config=config).fit(hangs, ["hang", "fine"]))
"""
    )
    with program(text, tmp_path) as fit:
        assert fit.result()["statuses"] == ["failed", "succeeded"]
        pids = re.findall(r"begins \w+ (\d+)", fit.text)
        assert len(set(pids)) == 2 and "another process takes its place" in fit.text


@pytest.mark.parametrize("strategy", ["cs", "shm"])
def test_runners_that_cannot_work_end_the_fit_with_their_reason_and_fail_the_run(tmp_path: Path, strategy: str) -> None:
    text = (
        SEARCH
        + """
class Broken(agl.OtelTracer):
    def init_worker(self, *args, **kwargs):
        raise LookupError("no tracing here")

if __name__ == "__main__":
    trainer = agl.Trainer(algorithm=search, tracer=Broken(), strategy=sys.argv[1])
    try:
        trainer.fit(agent, ["a"])
    except (RuntimeError, LookupError) as error:
        print("raised", error, flush=True)
    print("outcome", asyncio.run(trainer.store.query_runs())[0]["outcome"])
"""
    )
    with program(text, tmp_path, strategy) as fit:
        assert fit.ends() == 0, fit.text
        raised = [line for line in fit.lines if line.startswith("raised")]
        assert len(raised) == 1 and "no tracing here" in raised[0]
        assert "outcome failed" in fit.text


@pytest.mark.parametrize("strategy", ["cs", "shm"])
def test_fit_works_where_an_event_loop_runs_already_as_in_a_notebook(tmp_path: Path, strategy: str) -> None:
    text = (
        SEARCH
        + """
async def cell():
    show(agl.Trainer(algorithm=search, n_runners=2, strategy=sys.argv[1]).fit(agent, ["a", "b"]))

if __name__ == "__main__":
    asyncio.run(cell())
"""
    )
    with program(text, tmp_path, strategy) as fit:
        assert fit.result()["rewards"] == [0.25, 0.25, 1.0, 1.0]
