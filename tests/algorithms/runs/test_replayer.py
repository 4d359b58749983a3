"""A recorded run is played to an algorithm: the same one decides the same, a changed one is told where it departs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithms.algorithm import algo
from agentlightning.algorithms.runs.recorder import RunEnd, RunStart, recorder_for
from agentlightning.algorithms.runs.recording_store import BEST, best_content
from agentlightning.algorithms.runs.replayer import Replayer, ReplayReport
from agentlightning.core.errors import Departed, Refused
from agentlightning.core.model.rollout import Fact

from ...system.kafka.crew import make_log

TASKS = [{"question": f"{n} + {n}", "answer": str(2 * n)} for n in range(4)]
PROMPTS = ["Answer: {question}", "Think, then answer: {question}", "{question} = ?"]


def reward_of(prompt: str, task: Any) -> float:
    """What the agent of these tests gets: the longest prompt is the best."""
    return len(prompt) / 100 + int(task.get("answer", 0)) / 1000


class Runner:
    """Works on whatever is queued, out of order, until it is stopped."""

    def __init__(self, store: Any, seed: int = 0) -> None:
        self._store, self._chance = store, random.Random(seed)

    async def one(self, claimed: agl.AttemptedRollout) -> None:
        await asyncio.sleep(self._chance.random() / 200)
        name = claimed.rollout_id
        resources = await self._store.get_resources_by_id(claimed.resources_id) if claimed.resources_id else None
        prompt = resources.resources["prompt"].template if resources is not None else ""
        reward = reward_of(prompt, claimed.input)
        attributes: Any = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": reward}
        span = agl.Span.from_attributes(
            rollout_id=name, attempt_id=claimed.attempt.attempt_id, sequence_id=0, name="agentlightning.annotation",
            attributes=attributes,
        )  # fmt: skip
        await self._store.add_span(span)
        await self._store.update_attempt(name, claimed.attempt.attempt_id, status="succeeded")

    async def work(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        while True:
            claimed = await self._store.dequeue_rollout("w", wait_seconds=1.0)
            if claimed is not None:
                task = asyncio.ensure_future(self.one(claimed))
                tasks.add(task)
                task.add_done_callback(tasks.discard)


async def fit(
    store: Any, algorithm: Any, name: str = "fit", seed: int | None = None, outcome: str = "succeeded"
) -> str:
    """A trainer in small: opens a run, runs the algorithm beside a runner, closes the run."""
    recorder = recorder_for(store)
    initial: Any = {"prompt": agl.PromptTemplate(template="Begin: {question}", engine="f-string")}
    start = RunStart(name=name, seed=seed, train_dataset=TASKS, initial_resources=initial)
    run_id = await recorder.opened(start)
    algorithm.set_store(recorder.bind(run_id))
    algorithm.set_initial_resources(initial)
    algorithm.set_seed(seed)
    algorithm.set_adapter(agl.TracerTraceToTriplet())
    runner = asyncio.ensure_future(Runner(store).work())
    if seed is not None:
        random.seed(seed)
    try:
        await asyncio.wait_for(algorithm.run(TASKS, None), 20)
        best = algorithm.get_best_resources()
        if best is not None:
            await recorder.decided(run_id, BEST, best_content(best))
    finally:
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
        await recorder.closed(run_id, RunEnd(outcome))
    return run_id


async def mean_reward(store: Any, rollouts: Any) -> float:
    found = [agl.find_final_reward(list(await store.query_spans(one.rollout_id))) for one in rollouts]
    return sum(value for value in found if value is not None) / len(found)


def search(prompts: list[str] = PROMPTS, tasks: int = 4, timeout: float | None = None) -> Any:
    """Tries every prompt on the tasks and names the best one."""

    @algo
    async def searching(*, store: Any, train_dataset: Any) -> Any:
        best, best_score = None, -1.0
        for prompt in prompts:
            update = await store.add_resources({"prompt": agl.PromptTemplate(template=prompt, engine="f-string")})
            made = [await store.enqueue_rollout(task, "train", update.resources_id) for task in train_dataset[:tasks]]
            ids = [one.rollout_id for one in made]
            done = await store.wait_for_rollouts(ids, timeout)
            while len(done) < len(ids):
                await asyncio.sleep(0.001)
                done = await store.wait_for_rollouts(ids, timeout)
            score = await mean_reward(store, done)
            if score > best_score:
                best, best_score = update, score
        return best

    return searching


def shuffled(own: bool = True, seed_used: bool = True) -> Any:
    """Decides by chance: with a generator of its own, or with the one of the process, which a Kafka's client draws from."""

    @algo
    async def shuffling(*, store: Any, train_dataset: Any, seed: int | None) -> None:
        chance = random.SystemRandom() if not seed_used else random.Random(seed) if own else random
        for number in range(6):
            made = await store.enqueue_rollout({"number": number, "lot": chance.random()})
            await store.wait_for_rollouts([made.rollout_id])

    return shuffling


def polling() -> Any:
    """Asks for one rollout again and again, as the tutorials of older releases do."""

    @algo
    async def poller(*, store: Any, train_dataset: Any, initial_resources: Any) -> None:
        assert initial_resources["prompt"].template == "Begin: {question}"
        for task in train_dataset:
            made = await store.enqueue_rollout(task)
            while (await store.get_rollout_by_id(made.rollout_id)).status != "succeeded":
                await asyncio.sleep(0.001)
            while not len(await store.query_rollouts(status_in=["succeeded"], rollout_id_in=[made.rollout_id])):
                await asyncio.sleep(0.001)

    return poller


def side_by_side() -> Any:
    """Several chains at once: each enqueues its next task when its own last one is over."""

    @algo
    async def chains(*, store: Any, train_dataset: Any) -> None:
        async def chain(name: int) -> None:
            for link in range(4):
                made = await store.enqueue_rollout({"answer": str(link), "chain": name})
                await store.wait_for_rollouts([made.rollout_id])
                (done,) = await store.query_rollouts(rollout_ids=[made.rollout_id])
                assert done.status == "succeeded"

        await asyncio.gather(*(chain(name) for name in range(3)))

    return chains


def listening() -> Any:
    """Waits for facts instead of rollouts."""

    @algo
    async def listener(*, store: Any, train_dataset: Any) -> None:
        facts = store.subscribe(["rollout.completed"])
        made = await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=task) for task in train_dataset])
        open_ids = {one.rollout_id for one in made}
        async for fact in facts:
            open_ids.discard(fact.rollout_id)
            await store.decided("seen", {"left": len(open_ids)})
            if not open_ids:
                break

    return listener


def baseline() -> Any:
    """The one that ships."""
    return agl.Baseline(n_epochs=2, max_queue_length=2, polling_interval=0.05)


@pytest.fixture(params=["sqlite", "http", pytest.param("kafka", marks=pytest.mark.kafka)])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Any, str]]:
    """(store to fit on, address of its log)."""
    kind: str = request.param
    url = f"sqlite:///{tmp_path / 'log.db'}"
    if kind == "kafka":
        url = await asyncio.to_thread(make_log, request.getfixturevalue("kafka_url"))
    inner: Any = agl.open_store(url)
    try:
        if kind != "http":
            yield inner, url
            return
        server = agl.LightningStoreServer(inner, host="127.0.0.1", port=0)
        await server.start()
        client = agl.LightningStoreClient(server.endpoint)
        try:
            yield client, url
        finally:
            await client.close()
            await server.stop()
    finally:
        inner.close()


async def replayed(url: str, run: str, algorithm: Any) -> ReplayReport:
    with Replayer(url) as replayer:
        return await asyncio.wait_for(replayer.replay(run, algorithm), 60)


@pytest.mark.parametrize(
    "make",
    [search, lambda: search(timeout=0.002), lambda: search(timeout=0), polling, side_by_side, listening, baseline],
    ids=["waits", "short waits", "no wait", "polls", "chains", "facts", "baseline"],
)
async def test_the_same_algorithm_makes_the_same_decisions(place: tuple[Any, str], make: Callable[[], Any]) -> None:
    store, url = place
    run_id = await fit(store, make())
    report = await replayed(url, run_id, make())
    assert report.departed is None and report.ended is None and report.same
    assert report.decisions == report.recorded > 0
    report.raise_if_departed()


async def test_a_changed_algorithm_is_told_where_it_departs(place: tuple[Any, str]) -> None:
    store, url = place
    run_id = await fit(store, search())
    changed = await replayed(url, run_id, search([PROMPTS[0], "Shorter: {question}", PROMPTS[2]]))
    assert changed.departed is not None and changed.decisions == 5, "one prompt and its four tasks were the same"
    assert "Think, then answer" in changed.departed.expected and "Shorter" in changed.departed.got
    (recorded,) = [
        one for one in (await store.query_runs(run_id))[0]["decisions"] if one["position"] == changed.departed.position
    ]
    assert recorded["kind"] == "resources.published"
    with pytest.raises(Departed, match=f"position {changed.departed.position}"):
        changed.raise_if_departed()
    fewer = await replayed(url, run_id, search(tasks=3))
    assert (
        fewer.departed is not None and "'6'" in fewer.departed.expected and "resources.published" in fewer.departed.got
    )
    less = await replayed(url, run_id, search(PROMPTS[:2]))
    assert less.departed is not None and less.departed.got == "nothing more" and "= ?" in less.departed.expected
    more = await replayed(url, run_id, search([*PROMPTS, "One more: {question}"]))
    assert more.departed is not None and more.departed.position == -1 and more.departed.expected == "nothing more"


async def test_another_choice_of_the_best_is_a_departure(place: tuple[Any, str]) -> None:
    store, url = place
    run_id = await fit(store, search())

    @algo
    async def worst(*, store: Any, train_dataset: Any) -> Any:
        inner = search()
        inner.set_store(store)
        await inner.run(train_dataset, None)
        return await store.get_latest_resources()

    report = await replayed(url, run_id, worst)
    assert report.departed is not None and report.decisions == report.recorded
    assert "best resources" in report.departed.expected and report.departed.position > 0


async def test_chance_is_seeded_with_the_seed_of_the_run(place: tuple[Any, str]) -> None:
    store, url = place
    own = url.startswith("kafka:")
    run_id = await fit(store, shuffled(own), seed=11)
    random.seed(99)
    before = random.getstate()
    report = await replayed(url, run_id, shuffled(own))
    assert report.same and report.decisions == 6
    assert own or random.getstate() == before, "the caller's generator is left as it was"
    report = await replayed(url, run_id, shuffled(seed_used=False))
    assert report.departed is not None and report.decisions == 0


async def test_two_runs_interleaved_in_one_log_replay_each_for_itself(place: tuple[Any, str]) -> None:
    store, url = place
    first, second = await asyncio.gather(
        fit(store, search(), "one"), fit(store, search([PROMPTS[2], PROMPTS[0]]), "two")
    )
    assert (await replayed(url, first, search())).same
    assert (await replayed(url, "two", search([PROMPTS[2], PROMPTS[0]]))).same
    crossed = await replayed(url, second, search())
    assert crossed.departed is not None and crossed.decisions == 0


async def test_a_run_that_was_broken_off_is_replayed_as_far_as_it_went(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    with agl.open_store(url) as store:  # type: ignore[attr-defined]

        @algo
        async def interrupted(*, store: Any, train_dataset: Any) -> None:
            inner = search(PROMPTS[:1])
            inner.set_store(store)
            await inner.run(train_dataset, None)
            raise RuntimeError("Ctrl+C")

        with pytest.raises(RuntimeError):
            await fit(store, interrupted, outcome="interrupted")
    report = await replayed(url, "fit", search())
    assert report.same and report.decisions == report.recorded == 5
    assert report.ended is not None and "broken off" in str(report.ended)


async def test_a_synchronous_algorithm_is_replayed_in_its_thread(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"

    def plain(store: Any, train_dataset: Any) -> None:
        async def all_of_it() -> None:
            made = [await store.enqueue_rollout(task) for task in train_dataset]
            await store.wait_for_rollouts([one.rollout_id for one in made])

        asyncio.run(all_of_it())

    with agl.open_store(url) as store:  # type: ignore[attr-defined]

        @algo
        async def first(*, store: Any, train_dataset: Any) -> None:
            await asyncio.to_thread(plain, store, train_dataset)

        await fit(store, first)
    report = await replayed(url, "fit", algo(plain))
    assert report.same and report.decisions == 4


async def test_a_subscriber_is_handed_the_recorded_facts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"

    def follower(limit: float) -> Any:
        @agl.subscriber("rollout.completed")
        async def again(fact: Fact, store: Any) -> None:
            """Gives a second, harder task after every first one that went well."""
            rollout = await store.get_rollout_by_id(fact.rollout_id)
            reward = agl.find_final_reward(list(await store.query_spans(fact.rollout_id)))
            if reward is not None and reward < limit and "harder" not in rollout.input:
                await store.enqueue_rollout({**rollout.input, "harder": True})

        return again

    with agl.open_store(url) as store:  # type: ignore[attr-defined]
        recorder = recorder_for(store)
        run_id = await recorder.opened(RunStart(name="follow"))
        bound = recorder.bind(run_id)
        runner = asyncio.ensure_future(Runner(store).work())
        facts = store.subscribe(["rollout.completed"])
        await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=task) for task in TASKS])
        for _ in range(8):
            await follower(1.0).take(await anext(facts), bound)
        runner.cancel()
        await recorder.closed(run_id, RunEnd("succeeded"))
    report = await replayed(url, run_id, follower(1.0))
    assert report.same and report.decisions == 4
    report = await replayed(url, run_id, follower(0.005))
    assert report.departed is not None and "harder" in report.departed.expected


async def test_the_past_answers_and_cannot_be_changed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    with agl.open_store(url) as store:  # type: ignore[attr-defined]
        rollout = await store.enqueue_rollout("task")
        queued = store.fingerprint()[0]
        claimed = await store.dequeue_rollout("w")
        await store.update_attempt(rollout.rollout_id, claimed.attempt.attempt_id, status="succeeded")
        now = store.fingerprint()[0]
    with Replayer(url) as replayer:
        for position, status in ((queued, "queuing"), (queued + 1, "preparing"), (now, "succeeded")):
            past = replayer.store_at(position)
            found = await past.get_rollout_by_id(rollout.rollout_id)
            assert found is not None and found.status == status and past.at == position
            assert [one.status for one in await past.query_rollouts()] == [status]
        empty = replayer.store_at(1)
        assert await empty.get_rollout_by_id(rollout.rollout_id) is None and len(await empty.query_workers()) == 0
        with pytest.raises(Refused, match="position 1"):
            await empty.enqueue_rollout("x")
