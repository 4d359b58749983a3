"""A log that was put back to an earlier state: the store says which positions it does not know, and clients go on."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import agentlightning as agl
from agentlightning.core.errors import ForeignPosition, HistoryChanged, Rebuilding
from agentlightning.core.ids import uuid7_hex
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.api.routes import COMMAND_HEADER, POSITION_HEADER
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.open_store import open_store
from agentlightning.rest.server.server import LightningStoreServer
from tests.projections.store.tools import control_values, span


class Restorable:
    """A store on a file, served on one port for the whole test."""

    def __init__(self, folder: Path) -> None:
        self.path, self.backup = folder / "log.db", folder / "backup.db"
        self.port = 0

    async def start(self) -> None:
        opened = open_store(f"sqlite:///{self.path}")
        assert isinstance(opened, EventLogStore)
        self.store = opened
        self.server = LightningStoreServer(opened, port=self.port)
        await self.server.start()
        self.port = int(self.server.endpoint.rpartition(":")[2])

    async def stop(self) -> None:
        await self.server.stop()
        self.store.close()

    def back_up(self) -> None:
        """As docs/how-to/operations.md says it."""
        source = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
        source.backup(target := sqlite3.connect(self.backup))
        source.close()
        target.close()

    async def restore(self) -> None:
        """The store is stopped, the backup put into place, and the store started again."""
        await self.stop()
        for beside in ("-wal", "-shm", ".index", ".index-wal", ".index-shm"):
            Path(f"{self.path}{beside}").unlink(missing_ok=True)
        self.path.write_bytes(self.backup.read_bytes())
        await self.start()


@pytest.fixture
async def served(tmp_path: Path) -> Any:
    made = Restorable(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def test_a_backup_is_restored_under_live_runners_and_they_go_on(
    served: Restorable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    class Agent(agl.LitAgent[Any]):
        async def rollout_async(self, task: Any, resources: Any, rollout: Any) -> float:
            return 1.0

    trainer = LightningStoreClient(served.server.endpoint)
    crew = [LightningStoreClient(served.server.endpoint) for _ in range(2)]
    stop = asyncio.Event()

    async def work(client: LightningStoreClient, number: int) -> None:
        runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer(), poll_interval=0.05)
        with runner.run_context(agent=Agent(), store=client, worker_id=number):
            await runner.iter(event=stop)  # type: ignore[arg-type]

    async def done(tasks: range) -> set[str]:
        made = [(await trainer.enqueue_rollout(number)).rollout_id for number in tasks]
        over = await trainer.wait_for_rollouts(made, timeout=20)
        assert [one.status for one in over] == ["succeeded"] * len(made)
        return set(made)

    await trainer.add_resources({"prompt": agl.PromptTemplate(template="{x}", engine="f-string")})
    working = [asyncio.ensure_future(work(client, number)) for number, client in enumerate(crew)]
    kept = await done(range(4))
    served.back_up()
    await done(range(4, 10))
    await served.restore()
    new = await done(range(10, 16))
    there = {one.rollout_id for one in await trainer.query_rollouts()}
    assert kept | new <= there and len(there) <= 10 + 1, "a call under way at the restore may have made one"
    said = [record.getMessage() for record in caplog.records if "another history" in record.getMessage()]
    assert 1 <= len(said) <= 3 and all("ahead of the log" in one or "copy" in one for one in said), "one line of each client"
    stop.set()
    await asyncio.gather(*working)
    for client in (trainer, *crew):
        await client.close()
    reasons = [verdict.reason for verdict in served.store.engine.node.state.verdicts._verdicts.values()]  # pyright: ignore
    assert "foreign_history" not in reasons, "nothing was written for what was refused"


async def test_a_restored_log_that_has_grown_past_a_position_is_told_by_its_fingerprint(served: Restorable) -> None:
    client = LightningStoreClient(served.server.endpoint)
    await client.enqueue_rollout("kept")
    served.back_up()
    await client.enqueue_rollout("lost")
    token = client.position()
    assert token is not None
    await served.restore()
    for number in range(5):
        await served.store.enqueue_rollout(number)
    with pytest.raises(ForeignPosition, match="another history"):
        await served.store.wait_position(token)
    assert (await client.enqueue_rollout("goes on")).status == "queuing"
    inputs = [one.input for one in await client.query_rollouts()]
    assert inputs == ["kept", 0, 1, 2, 3, 4, "goes on"]
    await client.close()


async def test_a_position_ahead_of_the_log_is_answered_at_once(served: Restorable) -> None:
    parts = served.store.position().split(":")
    ahead = ":".join([*parts[:2], "99"])
    async with aiohttp.ClientSession(served.server.endpoint) as http:
        began = asyncio.get_running_loop().time()
        for path in ("/v1/agl/health", "/v1/agl/rollouts", "/v1/agl/events"):
            async with http.get(path, headers={POSITION_HEADER: ahead}) as answer:
                assert answer.status == 409, path
                assert (await answer.json())["code"] == "foreign_position"
        async with http.get("/v1/agl/events", headers={"Last-Event-ID": "98.0"}) as answer:
            assert answer.status == 409
        assert asyncio.get_running_loop().time() - began < 2


async def test_a_subscription_on_another_history_is_an_error_and_no_silence(served: Restorable) -> None:
    client = LightningStoreClient(served.server.endpoint)
    served.back_up()
    facts = client.subscribe(["rollout.enqueued"], since=-1)
    await client.enqueue_rollout(1)
    assert (await anext(facts)).type == "rollout.enqueued"
    waiting = asyncio.ensure_future(anext(facts))
    await asyncio.sleep(0)
    await served.restore()
    with pytest.raises(ForeignPosition):
        await asyncio.wait_for(waiting, 10)
    await client.close()


async def test_what_can_be_repeated_is_503_and_the_client_repeats_it(
    served: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = LightningStoreClient(served.server.endpoint)
    made = await client.enqueue_rollout("x")
    tries: list[int] = []
    listed = EventLogStore.query_rollouts

    async def rebuilding(self: EventLogStore, *args: Any, **kwargs: Any) -> Any:
        tries.append(1)
        if len(tries) < 5:
            raise Rebuilding("the index is being made")
        return await listed(self, *args, **kwargs)

    monkeypatch.setattr(EventLogStore, "query_rollouts", rebuilding)
    async with aiohttp.ClientSession(served.server.endpoint) as http, http.get("/v1/agl/rollouts") as answer:
        assert answer.status == 503 and answer.headers["Retry-After"] == "1"
        assert (await answer.json())["code"] == "rebuilding"
    assert [one.rollout_id for one in await client.query_rollouts()] == [made.rollout_id] and len(tries) == 5
    await client.close()


async def test_a_store_that_ended_answers_503_until_another_process_takes_its_place() -> None:
    log = MemoryLog()
    store = EventLogStore(log, foreign_writers=True)
    server = LightningStoreServer(store, port=0)
    await server.start()
    client = LightningStoreClient(server.endpoint, patience_seconds=0.2)
    await client.enqueue_rollout("x")
    ended: list[Exception] = []
    store.on_end(ended.append)
    with store.engine.node.lock:
        store.engine.node.history_changed("the test says so")
    assert len(ended) == 1 and isinstance(ended[0], HistoryChanged)
    async with aiohttp.ClientSession(server.endpoint) as http:
        for path in ("/v1/agl/health", "/v1/agl/rollouts", "/v1/agl/events", "/query_attempts/ro-1"):
            async with http.get(path) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1"), path
                assert (await answer.json())["code"] == "history_changed"
    with pytest.raises(agl.StoreUnreachable, match="restart it"):
        await client.enqueue_rollout("y")
    await client.close()
    await server.stop()
    store.close()
    log.close()


@pytest.mark.parametrize(
    ("basis", "status", "code"),
    [
        ("0", 400, "invalid_input"),
        ("-1:0011223344556677", 400, "invalid_input"),
        ("1:zz", 400, "invalid_input"),
        ("١:0011223344556677", 400, "invalid_input"),
        (f"{10**40}:0011223344556677", 400, "invalid_input"),
        (f"{2**63}:0011223344556677", 400, "invalid_input"),
        ("1:0011223344556677", 409, "foreign_position"),
        ("999999:0011223344556677", 409, "foreign_position"),
        (f"{10**17}:0011223344556677", 409, "foreign_position"),
    ],
)
async def test_a_basis_that_is_none_is_refused_before_anything_is_written(
    served: Restorable, basis: str, status: int, code: str
) -> None:
    made = await served.store.start_rollout("x")
    before = len(control_values(served.store.engine.log))
    bodies: dict[str, Any] = {
        "/enqueue_rollout": {"input": 1},
        "/start_rollout": {"input": 1},
        f"/v1/agl/rollouts/{made.rollout_id}": {"metadata": {"a": 1}},
        "/v1/agl/queues/rollouts/dequeue": {},
        "/v1/agl/resources": {},
        "/v1/agl/runs/events": {"type": "run.opened"},
    }
    async with aiohttp.ClientSession(served.server.endpoint) as http:
        for path, body in bodies.items():
            headers = {COMMAND_HEADER: uuid7_hex(), "X-AGL-Basis": basis}
            async with http.post(path, data=json.dumps(body), headers=headers) as answer:
                said = await answer.json()
                assert (answer.status, said.get("code")) == (status, code), (path, said)
    assert len(control_values(served.store.engine.log)) == before
    assert await served.store.add_span(span(made))
    assert served.store.engine.log.ends(CONTROL, 0)[1] == before + 1, "the sign of life"
