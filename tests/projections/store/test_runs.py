"""Runs are events of the log that no fold reads: they survive, repeat harmlessly, and tell several fits apart."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

import agentlightning as agl
from agentlightning.algorithms.runs.recorder import NoRecorder, RunEnd, RunStart, StoreRecorder, recorder_for
from agentlightning.core.events import codec
from agentlightning.core.events.run_events import RUN_ID, digest_of
from agentlightning.core.fold.apply import apply
from agentlightning.core.fold.state import State, dump
from agentlightning.core.ids import uuid7_hex
from agentlightning.core.log.interface import Log
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.history.run_index import Run, RunBook
from agentlightning.projections.replica.command_context import Call, serve
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.rest.open_store import open_store

from ...system.kafka.crew import make_log


@pytest.fixture(params=["memory", "sqlite", "http", pytest.param("kafka", marks=pytest.mark.kafka)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A store of every kind; over HTTP it is a client of one on a file."""
    kind: str = request.param
    if kind == "kafka":
        url = await asyncio.to_thread(make_log, request.getfixturevalue("kafka_url"))
    else:
        url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'log.db'}"
    inner = agl.open_store(url)
    try:
        if kind == "http":
            server = agl.LightningStoreServer(inner, host="127.0.0.1", port=0)
            await server.start()
            client = agl.LightningStoreClient(server.endpoint)
            try:
                yield client
            finally:
                await client.close()
                await server.stop()
        else:
            yield inner
    finally:
        inner.close()  # type: ignore[attr-defined]


async def runs_of(store: Any) -> list[Run]:
    return msgspec.convert(await store.query_runs(), list[Run])


async def test_a_run_is_listed_with_what_it_was_given_decided_and_ended_with(store: Any) -> None:
    recorder = recorder_for(store)
    start = RunStart("capitals", "app:search", "app:agent", {"beam": 3, "rate": float("inf")}, 7, "rs-0", 2, 10, 4)
    run_id = await recorder.opened(start)
    bound = recorder.bind(run_id)
    update = await bound.add_resources({"prompt": "Say {x}"})
    first = await bound.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(3)])
    second = await bound.enqueue_rollout({"a": 1}, mode="val", metadata={"mine": True})
    started = await bound.start_rollout("now", worker_id="w")
    await recorder.decided(run_id, "best.chosen", {"resources_id": update.resources_id})
    (run,) = await runs_of(store)
    assert run.run_id == run_id and run.closed_at is None and run.outcome is None
    assert (run.name, run.algorithm, run.agent, run.parameters, run.seed) == (
        "capitals", "app:search", "app:agent", {"beam": 3, "rate": float("inf")}, 7
    )  # fmt: skip
    assert (run.resources_id, run.resources_version, run.train_size, run.val_size) == ("rs-0", 2, 10, 4)
    assert run.rollout_ids == [*(one.rollout_id for one in first), second.rollout_id, started.rollout_id]
    assert second.metadata == {"mine": True, RUN_ID: run_id}
    kinds = [decision.kind for decision in run.decisions]
    assert kinds == ["resources.published", "rollouts.enqueued", "rollouts.enqueued", "rollout.started", "best.chosen"]
    positions = [decision.position for decision in run.decisions]
    assert positions == sorted(set(positions)) and run.opened_at < positions[0]
    assert all(decision.based_on <= decision.position for decision in run.decisions)
    await recorder.closed(run_id, RunEnd("succeeded", update.resources_id, 1, {"reward": 0.5}))
    await recorder.closed(run_id, RunEnd("failed"))
    (run,) = await runs_of(store)
    assert run.closed_at is not None and run.closed_at > positions[-1]
    assert (run.outcome, run.best_resources_id, run.best_resources_version) == ("succeeded", update.resources_id, 1)
    assert run.summary == {"reward": 0.5}
    (brief,) = msgspec.convert(await store.query_runs(brief=True), list[Run])
    assert brief.decided == 5 and brief.name == run.name and brief.decisions == brief.rollout_ids == []
    with pytest.raises(agl.NotFound, match="no run"):
        await store.query_runs("run-nobody")
    assert msgspec.convert(await store.query_runs("capitals"), list[Run])[0].run_id == run_id


async def test_two_runs_in_one_log_keep_their_rollouts_and_decisions_apart(store: Any) -> None:
    recorder = recorder_for(store)
    ids = [await recorder.opened(RunStart(name=name)) for name in ("one", "two")]
    stores = [recorder.bind(run_id) for run_id in ids]
    made: dict[str, list[str]] = {run_id: [] for run_id in ids}
    for number in range(6):
        which = number % 2
        made[ids[which]].append((await stores[which].enqueue_rollout(number)).rollout_id)
    nobodys = await store.enqueue_rollout("nobody's")
    runs = await runs_of(store)
    assert [run.run_id for run in runs] == ids
    for run in runs:
        assert run.rollout_ids == made[run.run_id] and nobodys.rollout_id not in run.rollout_ids
        assert [one.content["rollout_ids"] for one in run.decisions] == [[name] for name in made[run.run_id]]


async def test_large_parameters_go_by_reference_and_come_back(store: Any) -> None:
    recorder = recorder_for(store)
    large = {"prompt": "x" * 1_200_000}
    samples = ["y" * 80_000 for _ in range(10)]
    await recorder.opened(RunStart(name="large", parameters=large, train_dataset=samples))
    (run,) = await runs_of(store)
    assert run.parameters == large and run.train_size == 10
    half = {"prompt": "x" * 600_000}
    run_id = await recorder.opened(RunStart(name="two halves", parameters=half, train_dataset=samples))
    await recorder.decided(run_id, "large", large)
    run = (await runs_of(store))[1]
    assert run.parameters == half and run.decisions[0].content == large


async def test_a_wrong_event_is_refused_and_nothing_is_written(store: Any) -> None:
    for type_, run_id, fields in (
        ("run.opened", None, {"nonsense": 1}),
        ("run.opened", None, {"seed": "seven"}),
        ("run.closed", "run-1", {}),
        ("run.opened", None, {"name": "x" * 2_000}),
        ("algorithm.decided", None, {"kind": "x"}),
    ):
        with pytest.raises(agl.InvalidInput):
            await store.record_run_event(type_, run_id, fields)
    assert await runs_of(store) == []


def control_of(log: Log) -> list[bytes]:
    return [record.value for record in log.read(CONTROL, 0, 0)]


async def test_33_events_of_runs_touch_neither_state_nor_verdicts_nor_fingerprint() -> None:
    with agl.open_store("memory://") as store:  # type: ignore[attr-defined]
        recorder = StoreRecorder(store)
        await store.enqueue_rollout(1)
        before = store.fingerprint()
        run_id = await recorder.opened(RunStart(name="quiet"))
        await recorder.decided(run_id, "nothing", None)
        await recorder.closed(run_id, RunEnd("succeeded"))
        after = store.fingerprint()
        assert after == (before[0] + 3, before[1])
        await store.enqueue_rollout(2)
        values = control_of(store.engine.log)
        folded = State()
        verdicts = [apply(folded, value).verdict for value in values]
        assert [verdict is None for verdict in verdicts] == [False, False, True, True, True, False]
        assert folded.skipped == 3 and folded.refused == 0
        assert dump(folded) == dump(store.engine.node.state)
        for value in values[2:5]:
            with pytest.raises(codec.UnknownEvent) as unknown:
                codec.decode(value)
            assert not unknown.value.critical, "no release halts at it"


async def test_a_call_that_is_repeated_under_its_id_is_one_event() -> None:
    with agl.open_store("memory://") as store:  # type: ignore[attr-defined]
        serve(Call(uuid7_hex()))
        first = await store.record_run_event("run.opened", None, {"name": "once"})
        again = await store.record_run_event("run.opened", None, {"name": "once"})
        assert first["run_id"] == again["run_id"]
        serve(Call(uuid7_hex()))
        for _ in range(2):
            await store.record_run_event("algorithm.decided", first["run_id"], {"kind": "tried"})
        (run,) = await runs_of(store)
        assert [decision.kind for decision in run.decisions] == ["tried"]


async def test_runs_are_there_after_a_restart_from_a_snapshot(tmp_path: Path) -> None:
    url, settings = f"sqlite:///{tmp_path / 'log.db'}", StoreSettings(snapshot_every=20, archive_after=5)
    ids: list[str] = []
    with open_store(url, settings=settings) as store:  # type: ignore[attr-defined]
        recorder = StoreRecorder(store)
        run_id = await recorder.opened(RunStart(name="kept", seed=1))
        for number in range(20):
            rollout = await recorder.bind(run_id).start_rollout(number)
            await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
            ids.append(rollout.rollout_id)
    with open_store(url, settings=settings) as store:  # type: ignore[attr-defined]
        assert store.report()["from_snapshot"] > 10
        (run,) = await runs_of(store)
        assert (run.run_id, run.seed, run.rollout_ids) == (run_id, 1, ids), "finished long ago or not"
        book = RunBook(store.engine.log, store.engine.fetch)
        assert book.advance() == book.advance() and list(book.runs) == [run_id]


async def test_a_store_that_keeps_no_runs_loses_only_the_record() -> None:
    class Plain(agl.LightningStore):
        """A store of somebody else."""

    plain = Plain()
    recorder = recorder_for(plain)
    assert isinstance(recorder, NoRecorder)
    run_id = await recorder.opened(RunStart())
    assert recorder.bind(run_id).store is plain
    await recorder.decided(run_id, "x")
    await recorder.closed(run_id, RunEnd("succeeded"))


def test_digests_are_equal_for_equal_data_in_any_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": [2, 1]}) != digest_of({"a": [1, 2]})
    assert digest_of(2**70) != digest_of(2**71) and len(digest_of(None)) == 16


async def test_anybody_can_record_and_list_runs_over_the_routes(tmp_path: Path) -> None:
    with agl.open_store("memory://") as inner:  # type: ignore[attr-defined]
        server = agl.LightningStoreServer(inner, host="127.0.0.1", port=0)
        await server.start()
        try:
            async with aiohttp.ClientSession(f"{server.endpoint}") as http:
                body = {"type": "run.opened", "fields": {"name": "curl", "parameters": {"a": 1}}}
                async with http.post("/v1/agl/runs/events", json=body) as answer:
                    assert answer.status == 201
                    made = await answer.json()
                async with http.get("/v1/agl/runs", params={"run_id": "curl"}) as answer:
                    (found,) = await answer.json()
                assert found["run_id"] == made["run_id"] and found["parameters"] == {"a": 1}
                async with http.post("/v1/agl/runs/events", json={"type": "run.exploded"}) as answer:
                    assert answer.status == 422
                async with http.get("/v1/agl/runs", params={"run_id": "nobody"}) as answer:
                    assert answer.status == 404
        finally:
            await server.stop()


async def test_wrappers_of_a_store_keep_its_runs() -> None:
    with agl.open_store("memory://") as inner:  # type: ignore[attr-defined]
        for wrapped in (agl.LightningStoreThreaded(inner), agl.LightningStoreServer(inner, host="127.0.0.1", port=0)):
            recorder = recorder_for(wrapped)
            run_id = await recorder.opened(RunStart(name=type(wrapped).__name__))
            rollout = await recorder.bind(run_id).enqueue_rollout("task")
            (found,) = msgspec.convert(await inner.query_runs(run_id), list[Run])
            assert found.rollout_ids == [rollout.rollout_id] and len(found.decisions) == 1


VICTIM = """
import asyncio, os, signal, sys
import agentlightning as agl
from agentlightning.algorithms.runs.recorder import RunStart, recorder_for

async def main():
    recorder = recorder_for(agl.open_store(sys.argv[1]))
    run_id = await recorder.opened(RunStart(name="killed", seed=3))
    await recorder.bind(run_id).enqueue_rollout("task")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_durable_what_was_recorded_of_a_run_outlives_kill_9(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", VICTIM, url)
    assert await asyncio.wait_for(victim.wait(), 60) == -signal.SIGKILL
    with agl.open_store(url) as store:  # type: ignore[attr-defined]
        (run,) = await runs_of(store)
        assert (run.name, run.seed, run.outcome) == ("killed", 3, None)
        assert len(run.rollout_ids) == 1 and [one.kind for one in run.decisions] == ["rollouts.enqueued"]
