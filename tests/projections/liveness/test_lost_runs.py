"""A run whose owner is gone is closed as lost: by the next writer of the file, or by silence where the owner is a client."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithms.execution import client_server as closing
from agentlightning.algorithms.execution.client_server import open_run, until_run_closes
from agentlightning.algorithms.runs.recorder import RunEnd, RunStart, recorder_for
from agentlightning.core.clock import ManualClock
from agentlightning.core.errors import InvalidInput
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.open_log import open_log
from agentlightning.projections.history.run_index import RunBook
from agentlightning.projections.liveness.expiry import RUN_LOST_SECONDS
from agentlightning.projections.replica.command_context import Call, serve

from ..store.tools import pass_time, store_on


def no_blob(reference: Any) -> bytes:
    raise AssertionError(reference)


async def begin(store: Any, name: str) -> str:
    recorder = recorder_for(store)
    run_id = await recorder.opened(RunStart(name=name))
    await recorder.alive(run_id)
    return run_id


async def outcomes(store: Any) -> dict[str, str | None]:
    return {run["name"]: run["outcome"] for run in await store.query_runs(brief=True)}


async def until(wanted: dict[str, str | None], store: Any) -> None:
    for _ in range(200):
        if await outcomes(store) == wanted:
            return
        await asyncio.sleep(0.02)
    assert await outcomes(store) == wanted


async def test_a_run_of_an_earlier_life_of_the_file_is_lost_at_the_next_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    first: Any = agl.open_store(url)
    await begin(first, "killed")
    recorder = recorder_for(first)
    await recorder.closed(await begin(first, "done"), RunEnd("succeeded"))
    await recorder.opened(RunStart(name="by hand"))  # nobody promised signs of life: it stays open, as a subscriber's does
    with contextlib.closing(open_log(url, readonly=True)) as looked:
        assert {run.name: run.outcome for run in RunBook(looked, no_blob).advance().values()}["killed"] is None
    first.close()
    with contextlib.closing(open_log(url, readonly=True)) as looked:  # nobody has written it down yet
        runs = {run.name: run for run in RunBook(looked, no_blob).advance().values()}
        assert {name: run.outcome for name, run in runs.items()} == {"killed": "lost", "done": "succeeded", "by hand": None}
        assert runs["killed"].closed_at is None and runs["killed"].closed_time is not None
    second: Any = agl.open_store(url)
    mine = await begin(second, "mine")
    await until({"killed": "lost", "done": "succeeded", "by hand": None, "mine": None}, second)
    await recorder_for(second).closed(mine, RunEnd("succeeded"))
    second.close()
    third: Any = agl.open_store(url)
    await asyncio.sleep(0.05)
    await until({"killed": "lost", "done": "succeeded", "by hand": None, "mine": "succeeded"}, third)
    third.close()


async def test_a_run_of_a_client_is_lost_after_its_silence_and_its_own_closing_still_counts() -> None:
    clock = ManualClock()
    with MemoryLog() as log, store_on(log, clock=clock) as store:
        recorder = recorder_for(store)
        here = await begin(store, "here")

        async def beat(run_id: str) -> None:
            serve(Call("a-call", remote=True))
            await recorder.alive(run_id)

        away = await recorder.opened(RunStart(name="away"))
        await asyncio.create_task(beat(away))  # in a context of its own, as a server's calls are
        await pass_time(store.engine, clock, RUN_LOST_SECONDS - 2)
        await asyncio.create_task(beat(away))
        await pass_time(store.engine, clock, RUN_LOST_SECONDS - 2)
        assert await outcomes(store) == {"here": None, "away": None}
        await pass_time(store.engine, clock, 4)
        await until({"here": None, "away": "lost"}, store)
        await recorder.closed(away, RunEnd("succeeded"))
        await recorder.closed(away, RunEnd("lost"))
        await recorder.closed(here, RunEnd("failed"))
        assert await outcomes(store) == {"here": "failed", "away": "succeeded"}


async def test_a_sign_of_life_that_comes_after_the_closing_opens_nothing(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    with MemoryLog() as log, store_on(log, clock=clock) as store:
        recorder = recorder_for(store)
        run_id = await begin(store, "done")
        await recorder.closed(run_id, RunEnd("succeeded"))

        async def late() -> None:
            serve(Call("a-call", remote=True))
            await recorder.alive(run_id)

        position = store.position()
        await asyncio.create_task(late())
        await pass_time(store.engine, clock, RUN_LOST_SECONDS + 5)
        assert store.position() == position and "is lost" not in caplog.text


@pytest.mark.parametrize("run_id", [None, "", 7, ["run"], "\ud800", "x" * 2_000])
async def test_a_sign_of_life_names_a_run(run_id: Any) -> None:
    with agl.InMemoryLightningStore() as store:
        with pytest.raises(InvalidInput, match="run_id"):
            await store.record_run_event("run.beat", run_id)
        assert not store.engine.heartbeats.runs


async def test_runners_by_role_stop_with_their_run_and_go_on_with_the_next_where_it_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closing, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(closing, "NEXT_SECONDS", 0.2)
    store: Any = agl.InMemoryLightningStore()
    recorder, event = recorder_for(store), agl.ThreadingEvent()
    waiting = asyncio.ensure_future(open_run(store, event))
    await asyncio.sleep(0.1)
    killed = await recorder.opened(RunStart(name="killed"))
    assert await waiting == killed
    watching = asyncio.ensure_future(until_run_closes(store, killed, event))
    await asyncio.sleep(0.1)
    assert not watching.done()
    await recorder.closed(killed, RunEnd("lost"))
    assert await watching is False  # nobody began another one
    watching = asyncio.ensure_future(until_run_closes(store, killed, event))
    again = await recorder.opened(RunStart(name="again"))
    assert await watching is True
    assert await open_run(store, event) == again
    await recorder.closed(again, RunEnd("succeeded"))
    assert await until_run_closes(store, again, event) is False
    assert await until_run_closes(store, killed, event) is False  # what came after it is over, too
    store.close()


async def test_runners_by_role_wait_for_a_run_that_has_no_runners_of_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(closing, "POLL_SECONDS", 0.02)
    store: Any = agl.InMemoryLightningStore()
    recorder, event = recorder_for(store), agl.ThreadingEvent()
    own = await recorder.opened(RunStart(own_runners=True))
    waiting = asyncio.ensure_future(open_run(store, event))
    await asyncio.sleep(0.1)
    assert not waiting.done() and caplog.text.count(f"Run {own} has runners of its own") == 1
    shared = await recorder.opened(RunStart())
    assert await waiting == shared
    store.close()
