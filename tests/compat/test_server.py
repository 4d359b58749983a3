"""The first generation's server and clients on the event log."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.compat.client import AgentLightningClient
from agentlightning.compat.server import AgentLightningServer
from agentlightning.compat.task_protocol import RolloutLegacy
from agentlightning.core.errors import InvalidInput, UnsafeBind
from agentlightning.core.model.resources import PromptTemplate
from agentlightning.core.model.rollout import Triplet
from agentlightning.projections.replica.settings import StoreSettings
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.rest.client.client import LightningStoreClient

PROMPT = {"system_prompt": PromptTemplate(template="You are {who}.", engine="f-string")}
OTEL_SPAN: dict[str, Any] = {
    "name": "openai.chat.completion",
    "context": {"trace_id": "0x0af7651916cd43dd8448eb211c80319c", "span_id": "0xb7ad6b7169203331", "trace_state": "[]"},
    "kind": "SpanKind.CLIENT",
    "parent_id": None,
    "start_time": "2025-08-10T12:59:38.000000Z",
    "end_time": "2025-08-10T12:59:39.500000Z",
    "status": {"status_code": "OK"},
    "attributes": {"gen_ai.request.model": "gpt"},
    "events": [],
    "links": [],
    "resource": {"attributes": {"service.name": "agentops"}, "schema_url": ""},
}


@pytest.fixture
async def server() -> AsyncIterator[AgentLightningServer]:
    made = AgentLightningServer(port=0)
    await made.start()
    yield made
    await made.stop()


def client_of(server: AgentLightningServer) -> AgentLightningClient:
    return AgentLightningClient(server.endpoint, poll_interval=0.5)


async def test_a_task_goes_out_and_its_result_comes_back_once(
    server: AgentLightningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentlightning")
    client = client_of(server)
    resources_id = await server.update_resources(PROMPT)
    rollout_id = await server.queue_task({"prompt": "Capital?"}, mode="train", metadata={"split": "a"})
    assert rollout_id.startswith("rollout-") and len(rollout_id) == len("rollout-") + 36
    task = await client.poll_next_task_async()
    assert task is not None and (task.rollout_id, task.mode, task.num_claims) == (rollout_id, "train", 1)
    assert task.input == {"prompt": "Capital?"} and task.metadata["split"] == "a" and task.resources_id == resources_id
    update = await client.get_resources_by_id_async(resources_id)
    assert update is not None and update.resources == PROMPT
    assert await server.get_completed_rollout(rollout_id) is None
    assert await server.poll_completed_rollout(rollout_id, timeout=0) is None
    triplet = Triplet(prompt={"token_ids": [1]}, response={"token_ids": [2]}, reward=0.5)
    posted = RolloutLegacy(
        rollout_id=rollout_id, task=task, final_reward=0.5, triplets=[triplet], trace=[OTEL_SPAN], logs=["one"]
    )
    for refused in ({"final_reward": math.nan}, {"triplets": [triplet.model_copy(update={"reward": math.inf})]}):
        assert await client.post_rollout_async(posted.model_copy(update=refused)) is None and client.refused
    assert (await client.post_rollout_async(posted) or {})["status"] == "ok"
    result = await server.poll_completed_rollout(rollout_id, timeout=5)
    assert result is not None and result.final_reward == 0.5 and result.triplets == [triplet] and result.logs == ["one"]
    assert result.task is not None and result.task.metadata["split"] == "a"
    assert result.traces is not None and [span["name"] for span in result.traces] == ["openai.chat.completion"]
    assert result.traces[0]["end_time"] - result.traces[0]["start_time"] == 1.5
    # Reading takes it away, as it always did.
    assert await server.get_completed_rollout(rollout_id) is None
    assert await server.retrieve_completed_rollouts() == []
    said = caplog.text
    assert f"Task queued: {rollout_id} (mode: train, resources_id: {resources_id})" in said
    assert f"Resources updated. New version '{resources_id}' is now latest." in said
    assert f"[Task 1 Received] ID: {rollout_id}" in said and f"Rollout received and stored: {rollout_id}" in said


async def test_the_result_is_in_the_log_for_tools_of_today(server: AgentLightningServer) -> None:
    client = client_of(server)
    rollout_id = await server.queue_task("x")
    task = await client.poll_next_task_async()
    await client.post_rollout_async(RolloutLegacy(rollout_id=rollout_id, task=task, final_reward=0.75, trace=[OTEL_SPAN]))
    store = LightningStoreClient(server.endpoint)
    try:
        rollout = await store.get_rollout_by_id(rollout_id)
        assert rollout is not None and rollout.status == "succeeded"
        from agentlightning import find_final_reward

        assert find_final_reward(list(await store.query_spans(rollout_id))) == 0.75
    finally:
        await store.close()


async def test_without_tasks_or_resources_the_answers_are_those_of_the_protocol(server: AgentLightningServer) -> None:
    def get(path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(server.endpoint + path) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    assert await asyncio.to_thread(get, "/task") == (200, {"is_available": False, "task": None})
    assert await asyncio.to_thread(get, "/resources/latest") == (
        404,
        {"detail": "No resources have been set on the server."},
    )
    assert await asyncio.to_thread(get, "/resources/nope") == (404, {"detail": "Resource ID 'nope' not found."})
    client = client_of(server)
    assert await client.post_rollout_async(RolloutLegacy(rollout_id="rollout-unknown")) is None
    assert await client.get_latest_resources_async() is None


async def test_the_first_result_counts_even_after_the_task_was_given_away() -> None:
    server = AgentLightningServer(port=0, task_timeout_seconds=0.3)
    await server.start()
    try:
        client = client_of(server)
        rollout_id = await server.queue_task("slow")
        first = await client.poll_next_task_async()
        again = await client.poll_next_task_async()
        assert first is not None and again is not None and again.rollout_id == rollout_id and again.num_claims == 2
        await client.post_rollout_async(RolloutLegacy(rollout_id=rollout_id, task=first, final_reward=0.1))
        await client.post_rollout_async(RolloutLegacy(rollout_id=rollout_id, task=again, final_reward=0.9))
        result = await server.poll_completed_rollout(rollout_id, timeout=5)
        assert result is not None and result.final_reward == 0.1
    finally:
        await server.stop()


async def test_an_agent_that_failed_is_finished_without_a_reward(server: AgentLightningServer) -> None:
    client = client_of(server)
    rollout_id = await server.queue_task("x")
    task = await client.poll_next_task_async()
    await client.post_rollout_async(RolloutLegacy(rollout_id=rollout_id, task=task, metadata={"error": "KeyError: 'a'"}))
    (result,) = await server.retrieve_completed_rollouts()
    assert result.final_reward is None and result.metadata["error"] == "KeyError: 'a'"


async def test_a_server_goes_on_with_its_log(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'first.db'}"
    server = AgentLightningServer(port=0, store=url)
    await server.start()
    await server.update_resources({"system_prompt": "You are."})
    done, taken, open_ = [await server.queue_task(n) for n in range(3)]
    client = client_of(server)
    for reward in (0.0, 1.0):
        task = await client.poll_next_task_async()
        assert task is not None
        await client.post_rollout_async(RolloutLegacy(rollout_id=task.rollout_id, task=task, final_reward=reward))
    assert await server.get_completed_rollout(taken) is not None
    await server.stop()
    with pytest.raises(RuntimeError, match="Store not initialized"):
        await server.get_completed_rollout(done)
    again = AgentLightningServer(port=0, store=url)
    await again.start()
    try:
        assert [(r.rollout_id, r.final_reward) for r in await again.retrieve_completed_rollouts()] == [(done, 0.0)]
        task = await client_of(again).poll_next_task_async()
        assert task is not None and task.rollout_id == open_
        assert await client_of(again).get_latest_resources_async() is not None
    finally:
        await again.stop()


async def test_the_store_may_be_elsewhere_and_its_runners_may_be_those_of_today() -> None:
    with InMemoryLightningStore(thread_safe=True) as store:
        far = agl.LightningStoreServer(store, port=0)
        await far.start()
        server = AgentLightningServer(port=0, store=far.endpoint)
        await server.start()
        runner = agl.LitAgentRunner[str](tracer=agl.OtelTracer(), max_rollouts=1)
        today = LightningStoreClient(server.endpoint)
        try:
            await server.update_resources(PROMPT)
            rollout_id = await server.queue_task("you")
            assert rollout_id.startswith("ro-")
            with runner.run_context(agent=lambda task, prompt_template: len(prompt_template.format(who=task)), store=today):
                await runner.iter()
            result = await server.poll_completed_rollout(rollout_id, timeout=5)
            assert result is not None and result.final_reward == len("You are you.")
            assert result.traces and result.metadata == {"status": "succeeded"}
        finally:
            await today.close()
            await server.stop()
            await far.stop()


async def test_a_silent_worker_loses_its_task_and_a_beating_one_keeps_it() -> None:
    settings = StoreSettings(worker_lost_seconds=1.0, claim_confirm_seconds=1.0)
    with InMemoryLightningStore(thread_safe=True, settings=settings) as store:
        server = AgentLightningServer(port=0, store=store)
        await server.start()
        try:
            beating, silent = client_of(server), client_of(server)
            beating.as_worker("Worker-0-test")
            silent.as_worker("Worker-1-test")
            kept, lost = [await server.queue_task(name) for name in ("kept", "lost")]
            for client in (beating, silent):
                task = await client.poll_next_task_async()
                assert task is not None
                running = [(task.rollout_id, task.metadata["agentlightning.attempt_id"])]
                assert await asyncio.to_thread(client.beat, running)
            running = [(kept, (await attempt_of(server, kept)).attempt_id)]
            for _ in range(10):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(beating.beat, running)
            assert (await attempt_of(server, kept)).status in ("preparing", "running")
            assert (await attempt_of(server, lost)).status == "unresponsive"
            task = await client_of(server).poll_next_task_async()
            assert task is not None and task.rollout_id == lost and task.num_claims == 2
        finally:
            await server.stop()


async def attempt_of(server: AgentLightningServer, rollout_id: str) -> agl.Attempt:
    attempt = await server.store.get_latest_attempt(rollout_id)
    assert attempt is not None
    return attempt


async def test_the_task_of_a_dead_worker_is_given_back_at_once(server: AgentLightningServer) -> None:
    client = client_of(server)
    client.as_worker("Worker-0-test")
    rollout_id = await server.queue_task("x")
    assert await client.poll_next_task_async() is not None
    # What a pool does for a worker whose process it saw end.
    assert await asyncio.to_thread(client_of(server).give_back_of, "Worker-0-test") == rollout_id
    task = await client_of(server).poll_next_task_async()
    assert task is not None and task.rollout_id == rollout_id and task.num_claims == 2


async def test_other_machines_need_a_token() -> None:
    with pytest.raises(UnsafeBind):
        AgentLightningServer(host="0.0.0.0")
    server = AgentLightningServer(port=0, token="secret")
    await server.start()
    try:
        await server.update_resources(PROMPT)
        assert await client_of(server).get_latest_resources_async() is None
        assert await AgentLightningClient(server.endpoint, token="secret").get_latest_resources_async() is not None
    finally:
        await server.stop()


async def test_wrong_use_is_one_sentence() -> None:
    with pytest.raises(RuntimeError, match="may not be running"):
        await AgentLightningServer().queue_task("x")
    with pytest.raises(InvalidInput):
        AgentLightningServer(task_timeout_seconds=0)
    with pytest.raises(InvalidInput, match="http://"):
        AgentLightningClient("127.0.0.1:9997")
    first = AgentLightningServer(port=0)
    await first.start()
    try:
        with pytest.raises(RuntimeError, match=f"Port {first.port} .* is in use"):
            await AgentLightningServer(port=first.port).start()
    finally:
        await first.stop()
        await first.stop()
