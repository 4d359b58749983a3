"""What a trainer is made of: algorithms, components by description, helpers, and what is pickled for other processes."""

from __future__ import annotations

import asyncio
import logging
import pickle
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithms.algorithm import with_llm_proxy, with_store
from agentlightning.algorithms.datasets import batch_iter_over_dataset
from agentlightning.algorithms.runs.recording_store import RecordingStore
from agentlightning.algorithms.trainer.components import RunnerFactory, TracerFactory
from agentlightning.runners.pool.pickling import pickled, pickled_copy


class Learner(agl.Algorithm):
    """An algorithm that calls no constructor of its base."""

    def __init__(self, rounds: int = 1, **kwargs: Any) -> None:
        self.rounds = rounds

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None: ...


def test_an_algorithm_says_what_it_was_not_given_and_keeps_what_it_was() -> None:
    learner = Learner()
    assert learner.is_async() and learner.get_llm_proxy() is None and learner.get_initial_resources() is None
    for ask in (learner.get_trainer, learner.get_store, learner.get_adapter):
        with pytest.raises(ValueError, match="has not been set"):
            ask()
    with pytest.raises(NotImplementedError):
        learner.get_client()
    learner.set_adapter(agl.TraceToMessages())
    assert isinstance(learner.get_adapter(), agl.TraceToMessages)


async def test_algo_passes_what_is_asked_for_by_name() -> None:
    @agl.algo
    async def search(*, store: Any, val_dataset: Any, llm_proxy: Any, initial_resources: Any, **rest: Any) -> Any:
        assert rest == {}
        return {"prompt": f"{store is given} {val_dataset} {llm_proxy} {initial_resources}"}

    given = agl.InMemoryLightningStore()
    search.set_store(given)
    await search.run(val_dataset=[1])  # type: ignore[misc]
    best: Any = search.get_best_resources()
    assert best["prompt"].template == "True [1] None None"
    with pytest.raises(TypeError, match="train_dataset is provided but not supported"):
        search.run(train_dataset=[1])

    @agl.algo
    def plain(adapter: Any) -> None: ...

    assert not plain.is_async() and plain(adapter=1) is None
    with pytest.raises(ValueError, match="Adapter has not been set"):
        plain.run()
    given.close()


def test_what_an_algorithm_returns_is_taken_for_resources_only_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    returned: list[Any] = [{"loss": 0.5}, "all is well", 3, None, {"prompt": "Hi {x}"}]

    @agl.algo
    async def search(store: Any) -> Any:
        return returned.pop(0)

    store = agl.InMemoryLightningStore()
    trainer = agl.Trainer(algorithm=search, store=store, strategy="shm")
    for _ in range(4):
        result = trainer.fit(lambda task, resources: None)
        assert (result.outcome, result.best_resources) == ("succeeded", None)
    best: Any = trainer.fit(lambda task, resources: None).best_resources
    assert best["prompt"].template == "Hi {x}"
    with pytest.raises(ValueError):
        search.set_best_resources({"loss": 0.5})
    store.close()


async def test_helpers_inject_the_store_and_start_the_proxy_only_where_it_does_not_run() -> None:
    class Proxy:
        running, calls = False, ""

        def is_running(self) -> bool:
            return self.running

        async def start(self) -> None:
            self.calls += "start "

        async def stop(self) -> None:
            self.calls += "stop "

    class Helped(Learner):
        @with_llm_proxy()
        @with_store
        async def work(self, store: Any, proxy: Any, more: int) -> Any:
            return store, proxy, more

        @with_llm_proxy(required=True)
        async def strict(self, proxy: Any) -> Any:
            return proxy

    helped, store, proxy = Helped(), agl.InMemoryLightningStore(), Proxy()
    helped.set_store(store)
    assert await helped.work(3) == (store, None, 3)
    with pytest.raises(ValueError, match="required"):
        await helped.strict()
    helped.set_llm_proxy(proxy)
    assert await helped.strict() is proxy and proxy.calls == "start stop "
    proxy.running = True
    assert await helped.work(4) == (store, proxy, 4) and proxy.calls == "start stop "
    store.close()


def test_batches_take_every_sample_once_a_pass_and_none_twice() -> None:
    batches = batch_iter_over_dataset(list(range(7)), 3)
    taken = [next(batches) for _ in range(14)]
    assert all(len(set(batch)) == 3 for batch in taken)
    flat = [sample for batch in taken for sample in batch]
    assert all(flat.count(sample) == 6 for sample in range(7))
    whole = batch_iter_over_dataset([1, 2, 3], 5)
    assert sorted(next(whole)) == sorted(next(whole)) == [1, 2, 3]
    with pytest.raises(ValueError):
        next(batch_iter_over_dataset([], 2))


def test_components_are_built_from_every_description() -> None:
    def build(spec: Any, **more: Any) -> Any:
        return agl.build_component(
            spec, expected_type=agl.Algorithm, spec_name="algorithm", registry={"learner": Learner}, **more
        )

    made = Learner()
    path = f"{__name__}.Learner"
    assert build(made) is made and isinstance(build(Learner), Learner) and isinstance(build(lambda: made), Learner)
    assert isinstance(build("learner"), Learner) and type(build(path)).__name__ == "Learner"
    assert build({"type": path, "rounds": 3}).rounds == 3 and build({"name": "learner", "rounds": 4}).rounds == 4
    assert build({"rounds": 5}, dict_requires_type=False, dict_default_cls=Learner).rounds == 5
    assert build(Learner, optional_defaults={"rounds": lambda: 6, "unknown": 1}).rounds == 6
    assert build({"type": Learner, "rounds": 7}, optional_defaults={"rounds": 8}).rounds == 7
    assert build(None, allow_none=True) is None and build(None, default_factory=lambda: made) is made
    wrong: list[tuple[Any, str]] = [
        (None, "cannot be None"),
        ({"rounds": 1}, "'type' key"),
        (3, "Invalid"),
        ("no.such.Thing", "no algorithm"),
        ("odd", "learner"),
    ]
    for spec, words in wrong:
        with pytest.raises(ValueError, match=words):
            build(spec)
    with pytest.raises(TypeError, match="algorithm"):
        build(lambda: 3)


def test_every_worker_gets_a_runner_and_a_tracer_of_its_own() -> None:
    tracer = agl.OtelTracer()
    runner = agl.LitAgentRunner[Any](tracer, max_rollouts=7)
    make = RunnerFactory(runner, TracerFactory(tracer), None)
    made = [make() for _ in range(3)]
    assert made[0] is runner and len({id(one) for one in made}) == 3
    assert len({id(one.tracer) for one in made}) == 3  # type: ignore[attr-defined]
    assert [one._max_rollouts for one in made] == [7, 7, 7]  # type: ignore[attr-defined]
    default = RunnerFactory(None, TracerFactory(tracer), 5)
    assert len({id(default().tracer) for _ in range(2)}) == 2  # type: ignore[attr-defined]
    carried_maker = pickle.loads(pickled(make))
    assert carried_maker().tracer is not tracer


def test_what_cannot_be_carried_is_one_sentence() -> None:
    def local(task: str) -> None: ...

    with pytest.raises(ValueError, match="cannot be pickled for another process"):
        pickled(local)
    assert pickled_copy({"a": 1}) == {"a": 1}


async def test_the_store_of_a_run_fills_in_the_configuration_and_counts_rollouts() -> None:
    config = agl.RolloutConfig(max_attempts=3)
    own = agl.RolloutConfig(max_attempts=5)
    store = agl.InMemoryLightningStore()
    run = RecordingStore(store, "run-1", None, config=config)
    one = await run.enqueue_rollout("a")
    two = await run.enqueue_rollout("b", config=own)
    many = await run.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input="c")])
    started = await run.start_rollout("d")
    rollouts = [one, two, *many, started]
    assert [rollout.config.max_attempts for rollout in rollouts] == [3, 5, 3, 3]
    assert run.rollout_ids == [rollout.rollout_id for rollout in rollouts]
    assert run.position() == store.position() and run.capabilities == store.capabilities
    with pytest.raises(AttributeError):
        run.nothing_of_the_kind()
    store.close()


def test_older_names_are_taken_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning) as told:
        trainer = agl.Trainer(n_workers=3, max_tasks=4, store=agl.InMemoryLightningStore())
    assert len(told) == 2 and (trainer.n_runners, trainer.n_workers) == (3, 3)
    assert (trainer.max_rollouts, trainer.max_tasks) == (4, 4)


def test_arguments_of_a_trainer_reach_its_parts() -> None:
    memory = agl.InMemoryLightningStore()
    trainer = agl.Trainer(
        store=memory, strategy={"type": "shm", "n_runners": 3}, n_runners=2, adapter={"agent_match": "a"}
    )
    assert trainer.n_runners == 3 and isinstance(trainer.strategy, agl.SharedMemoryExecutionStrategy)
    assert (
        trainer.adapter.agent_match == "a" and trainer.triplet_exporter is trainer.adapter and trainer.store is memory
    )
    assert isinstance(trainer.tracer, agl.AgentOpsTracer) and isinstance(trainer.runner, agl.LitAgentRunner)
    hook = agl.Hook()
    cs: Any = agl.Trainer(store=memory, port=4999, hooks=hook, initial_resources={"prompt": "hi {x}"})  # type: ignore[dict-item]
    assert cs.strategy.server_port == 4999 and cs.hooks == (hook,)
    assert cs.initial_resources["prompt"].template == "hi {x}"
    passed: Any = agl.Trainer(store=memory, port=4998, strategy=agl.ClientServerExecutionStrategy(n_runners=2))
    assert passed.strategy.server_port == 4998 and passed.n_runners == 2
    with pytest.raises(ValueError, match="n_runners to be 1"):
        agl.SharedMemoryExecutionStrategy(n_runners=2, main_thread="runner")
    memory.close()


def test_dev_takes_quick_algorithms_only_and_baseline_by_default(caplog: pytest.LogCaptureFixture) -> None:
    def agent(task: str, prompt_template: agl.PromptTemplate) -> float:
        if task == "bad":
            raise ValueError("bad")
        return 0.5

    resources: Any = {"prompt": "say {x}"}
    store = agl.InMemoryLightningStore()
    with pytest.raises(TypeError, match="FastAlgorithm. Received Learner"):
        agl.Trainer(store=store, algorithm=Learner()).dev(agent, ["a"])
    trainer = agl.Trainer(store=store, strategy="shm", initial_resources=resources, max_rollouts=4)
    with caplog.at_level(logging.INFO, "agentlightning"):
        result = trainer.dev(agent, ["one", "bad"], val_dataset=["two", "three"])
    assert sorted(map(str, result.rewards.values())) == ["0.5", "0.5", "0.5", "None"] and result.mean_reward == 0.5
    assert sorted(result.statuses.values()) == ["failed", "succeeded", "succeeded", "succeeded"]
    text = caplog.text
    for words in (
        "Initial resources set:",
        "Proceeding epoch 1/1.",
        "in train mode with sample: one",
        "in val mode with sample: two",
        "Status is initialized to",
        "Finished with status succeeded in",
        "| Attempt 1] ID: at-",
        "Attribute keys: [",
        "Finished 4 rollouts.",
    ):
        assert words in text, words
    modes = [rollout.mode for rollout in asyncio.run(store.query_rollouts())]
    assert modes == ["train", "train", "val", "val"]
    store.close()


def test_baseline_survives_its_adapter_and_a_rollout_that_vanishes(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(agl.Adapter[Any, Any]):
        def adapt(self, source: Any, /) -> Any:
            raise RuntimeError("odd")

    store = agl.InMemoryLightningStore()
    trainer = agl.Trainer(store=store, strategy="shm", adapter=Odd(), algorithm=agl.Baseline(n_epochs=2))
    with caplog.at_level(logging.INFO, "agentlightning"):
        result = trainer.fit(lambda task, resources: 1.0, ["a"])
    assert "The adapter made nothing of" in caplog.text and "Finished 2 rollouts." in caplog.text
    assert "No initial resources are set" in caplog.text and result.outcome == "succeeded"
    with pytest.raises(ValueError, match="train_split"):
        agl.Baseline(train_split=1.0)
    store.close()


def test_baseline_keeps_the_queue_short() -> None:
    longest = 0

    async def agent(task: int, resources: Any) -> float:
        nonlocal longest
        waiting = await store.query_rollouts(status_in=["queuing", "requeuing"])
        longest = max(longest, waiting.total)
        await asyncio.sleep(0.01)
        return 1.0

    store = agl.InMemoryLightningStore()
    asyncio.run(store.add_resources({"prompt": "x"}))
    trainer = agl.Trainer(
        store=store, strategy="shm", algorithm=agl.Baseline(max_queue_length=1, polling_interval=30.0)
    )
    result = trainer.fit(agent, list(range(20)))
    assert len(result.rewards) == 20 and 1 <= longest <= 3
    store.close()
