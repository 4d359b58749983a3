"""A fit and its run: which rollouts its runners execute, whose runners get them, and how the run ends."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import agentlightning as agl
from agentlightning.algorithms.execution import runner_pool
from agentlightning.algorithms.execution.runner_pool import RunnerPool, ending
from agentlightning.algorithms.runs.recorder import RunEnd, RunStart, recorder_for
from agentlightning.algorithms.trainer import algorithm_task, progress
from agentlightning.algorithms.trainer.algorithm_task import RunnerTask
from agentlightning.projections.store.runs import cancel_run
from agentlightning.runners.pool.supervisor import WorkerProcess


def test_a_fit_leaves_rollouts_of_before_alone_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def agent(task: Any) -> float:
        seen.append(task)
        return 1.0

    @agl.algo
    async def search(store: agl.LightningStore, train_dataset: list[str]) -> None:
        made = [await store.enqueue_rollout(task) for task in train_dataset]
        await store.update_rollout(made[0].rollout_id, metadata={"mine": 1})
        assert len(await store.wait_for_rollouts([one.rollout_id for one in made], timeout=20)) == len(made)

    async def before() -> tuple[list[str], str]:
        recorder = recorder_for(store)
        old = await recorder.opened(RunStart(name="killed"))
        bound = recorder.bind(old, own_runners=True)
        left = [await bound.enqueue_rollout("of the killed run"), await store.enqueue_rollout("of nobody")]
        await recorder.closed(old, RunEnd("lost"))
        return [one.rollout_id for one in left], old

    store: Any = agl.open_store(f"sqlite:///{tmp_path}/log.db")
    try:
        left, old = asyncio.run(before())
        trainer = agl.Trainer(algorithm=search, strategy="shm", store=store, max_rollouts=3)
        result = trainer.fit(agent, ["a", "b", "c"])
        assert sorted(seen) == ["a", "b", "c"] and list(result.rewards.values()) == [1.0] * 3
        [line] = [one.message for one in caplog.records if "before" in one.message]
        assert f"1 of {old}" in line and "1 without a run" in line and f"agl cancel {old}" in line
        statuses = asyncio.run(store.query_rollouts(rollout_id_in=left))
        assert [one.status for one in statuses] == ["queuing", "queuing"]
        assert asyncio.run(cancel_run(store, "killed")) == {"run_id": old, "rollout_ids": left[:1]}
        statuses = asyncio.run(store.query_rollouts(rollout_id_in=left))
        assert [one.status for one in statuses] == ["cancelled", "queuing"]
    finally:
        store.close()


async def test_a_foreign_runner_gets_nothing_of_a_fit_and_both_sides_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlightning.runners.worker.runner.IDLE_SECONDS", 0.1)
    store: Any = agl.open_store("memory://")
    recorder = recorder_for(store)
    run_id = await recorder.opened(RunStart(own_runners=True))
    mine = await recorder.bind(run_id, own_runners=True).enqueue_rollout("of the fit")
    stop = agl.ThreadingEvent()

    def agent(task: Any) -> float:
        raise AssertionError("a foreign runner executed it")

    async def foreign() -> None:
        runner: Any = agl.LitAgentRunner(agl.DummyTracer())
        with runner.run_context(agent=agent, store=store, worker_id=7):
            await runner.iter(event=stop)

    working = asyncio.ensure_future(foreign())
    for _ in range(200):
        if len([one for one in caplog.records if run_id in one.message]) >= 2:
            break
        await asyncio.sleep(0.05)
    stop.set()
    await working
    lines = [one.message for one in caplog.records if run_id in one.message]
    assert len(lines) == 2
    assert any("Worker-7 asked for work" in line and "its own runners" in line for line in lines)
    assert any("[Worker 7] No work" in line for line in lines)
    got = await store.get_rollout_by_id(mine.rollout_id)
    assert got.status == "queuing"
    store.close()


class OlderStore(agl.InMemoryLightningStore):
    """Knows of runs what releases before signs of life and runners of a run knew, as a client of this release sees it."""

    async def record_run_event(self, type: Any, run_id: Any = None, fields: Any = None) -> Any:
        if type == "run.beat" or "own_runners" in (fields or {}):
            raise agl.InvalidInput(f"{type!r} is no event of a run")
        return await super().record_run_event(type, run_id, fields)

    async def dequeue_rollout(self, *args: Any, run_id: Any = None, **kwargs: Any) -> Any:
        return await super().dequeue_rollout(*args, **kwargs)


def test_a_fit_works_on_a_store_of_an_older_release(caplog: pytest.LogCaptureFixture) -> None:
    trainer = agl.Trainer(strategy="shm", store=OlderStore(), max_rollouts=2)
    result = trainer.dev(lambda task: 1.0, ["a", "b"])
    assert list(result.rewards.values()) == [1.0, 1.0] and result.outcome == "succeeded"
    assert caplog.text.count("The store is of an older release") == 1


def test_a_run_that_cannot_be_closed_shows_no_more_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    async def unreachable(*_: Any) -> Any:
        raise agl.StoreUnreachable("gone")

    monkeypatch.setattr(algorithm_task, "_shown_alive", lambda *_: ended)
    monkeypatch.setattr(algorithm_task, "leftovers", unreachable)  # which only costs its line
    monkeypatch.setattr(algorithm_task, "collect", unreachable)
    trainer = agl.Trainer(strategy="shm", store=agl.InMemoryLightningStore())
    with pytest.raises(agl.StoreUnreachable):
        trainer.dev(lambda task: 1.0, ["a"])
    assert ended.is_set()


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_runners": 0},
        {"n_runners": -1},
        {"n_runners": True},
        {"n_runners": 1.5},
        {"n_workers": 0},
        {"max_rollouts": 0},
        {"max_rollouts": -3},
        {"max_tasks": 0},
    ],
)
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_numbers_out_of_range_are_refused_by_their_name(arguments: dict[str, Any]) -> None:
    [name] = arguments
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        agl.Trainer(**arguments)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (agl.ClientServerExecutionStrategy, {"n_runners": 0}),
        (agl.ClientServerExecutionStrategy, {"graceful_timeout": -1}),
        (agl.ClientServerExecutionStrategy, {"terminate_timeout": float("nan")}),
        (agl.SharedMemoryExecutionStrategy, {"n_runners": 0}),
        (agl.SharedMemoryExecutionStrategy, {"graceful_delay": -0.1}),
        (agl.SharedMemoryExecutionStrategy, {"poll_interval": 0}),
    ],
)
def test_settings_of_a_strategy_out_of_range_are_refused(kind: Any, arguments: dict[str, Any]) -> None:
    [name] = arguments
    with pytest.raises(ValueError, match=f"{name} must be"):
        kind(**arguments)
    with pytest.raises(ValueError, match="max_rollouts is -1"):
        agl.LitAgentRunner(agl.DummyTracer(), max_rollouts=-1)


def test_a_dataset_without_an_algorithm_and_a_plain_function_as_one_are_errors_that_name_the_remedy() -> None:
    trainer = agl.Trainer(store=agl.InMemoryLightningStore(), strategy="shm")
    for given in ({"train_dataset": ["a"]}, {"val_dataset": ["a"]}):
        with pytest.raises(ValueError, match=r"algorithm=.*dev\(\)"):
            trainer.fit(lambda task: 1.0, **given)

    async def search(store: Any, train_dataset: Any) -> None: ...

    def plain(store: Any) -> None: ...

    def made() -> agl.Algorithm:
        return agl.Baseline()

    for function in (search, plain):
        with pytest.raises(TypeError, match=rf"{function.__name__}\(\): mark it with @agl.algo"):
            agl.Trainer(algorithm=function)  # pyright: ignore[reportArgumentType]
    assert isinstance(agl.Trainer(algorithm=made).algorithm, agl.Baseline)


def test_a_fit_that_starts_its_runners_serves_on_a_free_port_unless_one_was_chosen() -> None:
    store = agl.InMemoryLightningStore()
    for strategy, port in (
        (agl.ClientServerExecutionStrategy(), 0),
        (agl.ClientServerExecutionStrategy(server_port=4848), 4848),
        (agl.ClientServerExecutionStrategy(role="algorithm"), 4747),
    ):
        assert strategy.serve(store).launcher_args.port == port


BUNDLE = RunnerTask(agent=None, hooks=(), make=cast(Any, SimpleNamespace(max_rollouts=2)), trainer=None)
"""What a pool sends to its processes."""


def test_a_process_that_replaces_another_goes_on_with_its_count_and_the_lost_rollout_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = RunnerPool(BUNDLE, 1, None, None, lambda: None)
    worker = WorkerProcess(0, "runner-0")
    assert pool.given(worker).left == 2
    for rollout_id in ("ro-1", "ro-2"):
        pool.on_message(worker, "begins", rollout_id)
        if rollout_id == "ro-1":
            pool.on_message(worker, "ends", rollout_id)
            assert pool.given(worker).left == 1 and not worker.done
    pool.on_end(worker, 7)
    assert worker.done  # both were begun: nothing is left for another process
    [line] = [one.message for one in caplog.records]
    assert "runner-0" in line and "exit code 7, as by os._exit()" in line and "rollout ro-2;" in line
    assert ending(-9) == "signal 9 (SIGKILL)"


class Output(io.StringIO):
    """Standard error as a terminal, or as a file."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_fit_shows_how_far_it_is(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LIVE_SECONDS", 0.05), ("PLAIN_SECONDS", 0.05), ("LOOK_SECONDS", 0.01)):
        monkeypatch.setattr(progress, name, seconds)
    store: Any = agl.InMemoryLightningStore()
    ids = [(await store.enqueue_rollout(number)).rollout_id for number in range(3)]
    foreign = (await store.enqueue_rollout("foreign")).rollout_id
    output = Output(terminal)

    async def until(words: str) -> None:
        for _ in range(300):
            if words in output.getvalue():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(output.getvalue())

    with progress.Progress(store, "run-1", ids, 2, output):
        await until("run-1: 0 of 3 rollouts are over; 2 workers start (")
        for rollout_id, status in zip([*ids[:2], foreign], ["succeeded", "failed", "failed"]):
            claimed = await store.dequeue_rollout("w")
            assert claimed is not None
            await store.update_rollout(rollout_id, status=status)
        await until("run-1: 2 of 3 rollouts are over, 1 did not succeed (")
    shown = output.getvalue()
    assert (shown.endswith("\x1b[2K") and "\n" not in shown) if terminal else "\x1b" not in shown
    store.close()


def test_a_run_in_which_everything_failed_ends_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def agent(task: Any) -> float:
        raise ValueError("no")

    trainer = agl.Trainer(strategy="shm", store=agl.InMemoryLightningStore())
    result = trainer.dev(agent, ["a", "b"])
    assert set(result.statuses.values()) == {"failed"}
    [line] = [one.message for one in caplog.records if "none of its 2 rollouts succeeded" in one.message]
    assert f"`agl show {result.run_id}`" in line


class Running:
    """A process that does nothing until it is killed."""

    exitcode: int | None = None

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.exitcode = -9

    terminate = kill

    def join(self) -> None: ...


def test_no_more_processes_load_at_once_than_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_pool, "_processors", lambda: 2)
    pool = RunnerPool(BUNDLE, 4, None, None, lambda: None)
    started: list[WorkerProcess] = []

    def start(worker: WorkerProcess) -> None:
        worker.process, worker.started, worker.loaded = Running(), time.monotonic(), False
        started.append(worker)

    def until(count: int) -> None:
        end = time.monotonic() + 10
        while len(started) < count and time.monotonic() < end:
            time.sleep(0.01)
        assert len(started) == count

    monkeypatch.setattr(pool, "_start", start)
    pool.start()
    try:
        until(2)
        time.sleep(0.2)
        until(2)
        started[1].loaded = True
        until(3)
        started[0].started -= 60.0  # one that never gets to work keeps nobody from starting
        until(4)
    finally:
        pool.stop(0.0, 0.0, threading.Event())
