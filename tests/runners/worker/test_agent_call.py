"""Where agents run: one thread and one task for a slot, the main thread of a worker process, each with what libraries need."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import sqlite3
import threading
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithms.execution.runner_pool import Given, RunnerJob
from agentlightning.algorithms.trainer.algorithm_task import RunnerTask
from agentlightning.compat.worker_pool import LegacyJob
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.runners.agent.decorators import as_agent
from agentlightning.runners.pool.process import WorkerContext
from agentlightning.runners.worker import agent_call
from agentlightning.runners.worker.agent_call import run_agents_here

from ..support import PROMPT, run_two, told

CONNECTION = sqlite3.connect(":memory:")
"""Made at import, in the main thread, as many agents do; SQLite refuses it to any other."""


def needs_the_main_thread(task: Any) -> float:
    """What Math-Verify does for its time limit, and what an agent with a connection of its own does."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.alarm(5)
        signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    asyncio.run(asyncio.sleep(0))  # it leaves the thread without a loop
    return float(CONNECTION.execute("select 1").fetchone()[0])


async def looped(task: Any) -> float:
    """Runs on the loop of the runner."""
    return 1.0


def with_a_loop(task: Any) -> float:
    """What agents wrote before asyncio.run."""
    return asyncio.get_event_loop().run_until_complete(looped(task))


async def serve(store: InMemoryLightningStore, agent: Any, tasks: int = 2, **options: Any) -> list[Any]:
    """The latest attempts of so many rollouts, done by one runner."""
    await store.add_resources({"prompt": "x"})
    limit = agl.RolloutConfig(timeout_seconds=options.pop("timeout_seconds", None))
    rollouts = [await store.enqueue_rollout(number, config=limit) for number in range(tasks)]
    runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=tasks, **options)
    with runner.run_context(agent=agent, store=store):
        await runner.iter()
    return [await store.get_latest_attempt(rollout.rollout_id) for rollout in rollouts]


def statuses(attempts: list[Any]) -> list[str]:
    return [attempt.status if attempt.status != "failed" else attempt.metadata["error"] for attempt in attempts]


async def test_a_function_finds_the_same_thread_and_an_open_event_loop_each_time(store: InMemoryLightningStore) -> None:
    seen: list[tuple[threading.Thread, Any]] = []

    def agent(task: int) -> float:
        seen.append((threading.current_thread(), asyncio.get_event_loop()))
        return with_a_loop(task)

    assert statuses(await serve(store, agent, 3)) == ["succeeded"] * 3
    ((thread, loop),) = set(seen)
    await asyncio.to_thread(thread.join, 10)
    assert loop.is_closed() and not thread.is_alive(), "they end with their runner"


async def test_coroutines_of_a_slot_run_in_one_task_each_in_its_own_attempt(store: InMemoryLightningStore) -> None:
    owner: list[Any] = []

    async def agent(task: int) -> float:
        owner.append(asyncio.current_task())
        assert owner[0] is asyncio.current_task(), "settings can only be changed by the task that set them first"
        agl.emit_message(str(task))
        await asyncio.sleep(0)
        return 1.0

    attempts = await serve(store, agent, 3)
    assert statuses(attempts) == ["succeeded"] * 3
    for number, attempt in enumerate(attempts):
        spans = await store.query_spans(attempt.rollout_id)
        assert [agl.get_message_value(span) for span in spans][0] == str(number)


@pytest.mark.parametrize("kind", ["time limit", "time limit, with a result", "its own cancellation"])
async def test_the_task_of_a_slot_survives_the_cancellation_of_an_agent(
    store: InMemoryLightningStore, kind: str
) -> None:
    tasks: set[Any] = set()

    async def agent(task: int) -> float:
        tasks.add(asyncio.current_task())
        if task == 0 and kind == "its own cancellation":
            raise asyncio.CancelledError
        if task == 0:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if kind == "time limit":
                    raise
        await asyncio.wait_for(asyncio.sleep(0), 5)
        return 1.0

    first, second = await serve(store, agent, 2, timeout_seconds=None if kind.startswith("its") else 0.05)
    assert first.status in ("failed", "timeout") and second.status == "succeeded"
    assert len(tasks) == 1 or not hasattr(asyncio.Task, "uncancel")


async def test_after_an_agent_that_hangs_the_next_one_has_another_thread(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, threads = threading.Event(), list[threading.Thread]()

    def agent(task: int) -> float:
        threads.append(threading.current_thread())
        if task == 0:
            release.wait(20)
        return 1.0

    attempts = await serve(store, agent, 2, timeout_seconds=0.3)
    assert [attempt.status for attempt in attempts] == ["timeout", "succeeded"]
    release.set()
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
    assert len(set(threads)) == 2 and not any(thread.is_alive() for thread in threads)


def in_a_worker(job: Any, given: Any) -> list[tuple[str, str]]:
    """What a job sends to its supervisor, run in this process and thread as in a worker's."""
    here, there = multiprocessing.Pipe()
    with here, there:
        assert job.work(WorkerContext(0, given, there)) == 0
        found: list[tuple[str, str]] = []
        while here.poll():
            found.append(here.recv())
    return found


@pytest.mark.parametrize("agent", [needs_the_main_thread, with_a_loop])
def test_synchronous_agents_of_a_worker_process_have_the_main_thread(store: InMemoryLightningStore, agent: Any) -> None:
    found: list[Any] = []

    async def bundle(store: Any, worker_id: int, event: Any) -> None:
        found.extend(await serve(store, agent))

    assert in_a_worker(RunnerJob(bundle), Given(store, None)) == [("loaded", ""), ("done", "")]
    assert statuses(found) == ["succeeded"] * 2


async def with_a_signal_handler(task: Any) -> float:
    """What asynchronous agents do for a time limit."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGALRM, lambda: None)
    loop.remove_signal_handler(signal.SIGALRM)
    return float(CONNECTION.execute("select 1").fetchone()[0])


def test_asynchronous_agents_of_a_worker_process_have_the_main_thread_too(store: InMemoryLightningStore) -> None:
    async def prepared() -> None:
        await store.enqueue_rollout(0)
        await store.enqueue_rollout(1)

    asyncio.run(prepared())
    side = RunnerTask(as_agent(with_a_signal_handler), (), lambda: agl.LitAgentRunner(agl.OtelTracer()), None)
    side.agent.set_trainer = lambda trainer: None
    assert in_a_worker(RunnerJob(side), Given(store, None, left=2))[-1] == ("done", "")
    rollouts = asyncio.run(store.query_rollouts())
    assert [rollout.status for rollout in rollouts] == ["succeeded"] * 2


def test_a_signal_handler_that_an_agent_left_behind_does_not_end_its_worker(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    rang = threading.Event()

    def agent(task: int) -> float:
        def ring(*_: object) -> None:
            rang.set()
            raise TimeoutError("too late")

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        return 1.0

    def work() -> list[Any]:
        first = asyncio.run(serve(store, agent, 1))
        assert rang.wait(10)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        return first + asyncio.run(serve(store, with_a_loop, 1))

    before = signal.getsignal(signal.SIGALRM)
    try:
        assert statuses(run_agents_here(work, lambda outcome: None)) == ["succeeded"] * 2
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "A signal handler of an earlier agent raised TimeoutError: too late" in caplog.text


async def test_agents_that_use_asyncio_run_find_one_event_loop_and_not_one_each(store: InMemoryLightningStore) -> None:
    seen: list[Any] = []

    def agent(task: int) -> float:
        seen.append(asyncio.get_event_loop())
        return asyncio.run(looped(task))

    assert statuses(await serve(store, agent, 3)) == ["succeeded"] * 3
    assert len(set(seen)) == 1


def test_workers_of_the_first_generation_have_the_main_thread_too() -> None:
    loader = agl.DevTaskLoader([1], {"p": agl.PromptTemplate(template="x", engine="f-string")})
    job = LegacyJob(as_agent(needs_the_main_thread), loader, agl.OtelTracer(), None)
    in_a_worker(job, 2)
    assert [result.final_reward for result in loader.rollouts] == [1.0, 1.0]


def test_a_lent_thread_that_an_agent_holds_does_not_keep_the_process(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_call, "CANCEL_SECONDS", 0.1)
    release, ended = threading.Event(), list[Any]()

    def agent(task: int) -> float:
        if task == 0:
            release.wait(20)
        return 1.0

    def stuck(outcome: Any) -> None:
        ended.append(statuses(outcome.result())[1])
        release.set()  # a process would end here

    run_agents_here(lambda: asyncio.run(serve(store, agent, 2, timeout_seconds=0.3)), stuck)
    assert ended == ["succeeded"]


def test_what_the_other_thread_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        run_agents_here(lambda: 1 / 0, lambda outcome: None)


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_each_of_two_runners_that_share_an_agent_is_that_of_its_own_attempts(
    store: InMemoryLightningStore, asynchronous: bool
) -> None:
    class Agent(agl.LitAgent[int]):
        seen: list[tuple[Any, Any]] = []

    class Function(Agent):
        def rollout(self, task: int, resources: Any, rollout: Any) -> float:
            self.seen.append((self.get_tracer(), self.get_runner()))
            return 1.0

    class Coroutine(Agent):
        async def rollout_async(self, task: int, resources: Any, rollout: Any) -> float:
            self.seen.append((self.get_tracer(), self.get_runner()))
            return 1.0

    agent = Coroutine() if asynchronous else Function()
    agent.seen = []
    await store.add_resources({"prompt": "x"})
    for number in range(2):
        await store.enqueue_rollout(number)
    runners = [agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), max_rollouts=1) for _ in range(2)]
    with (
        runners[0].run_context(agent=agent, store=store, worker_id=0),
        runners[1].run_context(agent=agent, store=store, worker_id=1),
    ):
        for runner in runners:
            await runner.iter()
        assert agent.get_runner() is runners[1], "outside of attempts: the one that was set last"
    assert agent.seen == [(runner.tracer, runner) for runner in runners]


class Mute(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError("no words")


class MuteToo(BaseException):
    """The same, and no Exception."""

    __str__ = Mute.__str__


def raiser(error: BaseException) -> Any:
    """An agent that raises it for the task "bad"."""

    def agent(task: str) -> float:
        if task == "bad":
            raise error
        return 1.0

    return agent


def awaited(agent: Any) -> Any:
    """The agent as a coroutine function."""

    async def coroutine(task: str) -> float:
        return agent(task)

    return coroutine


async def test_a_failing_attempt_is_one_line_that_says_where_its_traceback_is(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agentlightning")
    await store.add_resources(PROMPT)
    rollouts = [await store.enqueue_rollout("bad") for _ in range(3)]
    runner = agl.LitAgentRunner[str](tracer=agl.OtelTracer(), max_rollouts=3)
    with runner.run_context(agent=raiser(ValueError("no luck.\nand more")), store=store):
        await runner.iter()
    lines = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info for record in lines] == [None] * 3
    for rollout, record in zip(rollouts, lines, strict=True):
        text = record.getMessage()
        prefix = f"[Worker 0 | Rollout {rollout.rollout_id}] Exception during rollout. "
        assert text.startswith(f"{prefix}ValueError: no luck. ... (")
        assert "test_agent_call.py, line " in text and f"`agl show {rollout.rollout_id}`" in text and "\n" not in text
    assert sum(record.exc_info is not None for record in caplog.records) == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("\ud800 \x1b[31m \x00 é"), r"ValueError: \ud800 \x1b[31m \x00 é ("),
        (ValueError("x" * 10_000), "xxx ... ("),
        (ValueError(), "ValueError ("),
        (SystemExit("enough"), "RuntimeError: SystemExit: enough (test_agent_call.py, line "),
        (Mute(), "Mute: <message that cannot be written: ValueError> ("),
    ],
)
async def test_the_line_can_be_printed_whatever_the_error_says(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture, error: BaseException, said: str
) -> None:
    await run_two(store, raiser(error))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert said in line and line.isprintable() and len(line) < 500


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("error", [Mute(), MuteToo()])
async def test_an_exception_that_cannot_say_what_it_is_costs_its_attempt_and_not_the_runner(
    store: InMemoryLightningStore, error: BaseException, asynchronous: bool
) -> None:
    agent = raiser(error)
    attempt, spans, _ = await run_two(store, awaited(agent) if asynchronous else agent)
    assert attempt.status == "failed" and "message that cannot be written" in attempt.metadata["error"]
    assert type(error).__name__ in told(spans)["stacktrace"]


async def test_an_operation_passes_such_an_exception_on(store: InMemoryLightningStore) -> None:
    def agent(task: str) -> float:
        for propagate in (True, False):
            with pytest.raises(Mute), agl.operation(propagate=propagate):
                raise Mute
        return 1.0

    _, spans, _ = await run_two(store, agent)
    (operation,) = [span for span in spans if span.name == "agentlightning.operation"]
    assert operation.status.status_code == "ERROR" and [event.name for event in operation.events] == ["exception"]


async def test_what_cannot_be_stored_is_logged_whole(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no room")

    await store.add_resources(PROMPT)
    runner = agl.LitAgentRunner[str](tracer=agl.OtelTracer())
    with runner.run_context(agent=raiser(ValueError("no luck")), store=store):
        monkeypatch.setattr(store, "add_many_spans", refused)
        with pytest.raises(RuntimeError, match="no room"):
            await runner.step("bad")
    assert "no luck" in caplog.text and "in agent" in caplog.text
