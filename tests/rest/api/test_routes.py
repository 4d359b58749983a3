"""Every route of the table, as somebody without our client uses it."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from agentlightning.rest.api.routes import ROUTES

AGL = "/v1/agl"


async def ask(http: aiohttp.ClientSession, verb: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
    if body is not None:
        options["json"] = body
    async with http.request(verb, path, **options) as answer:
        return answer.status, await answer.json()


def span(rollout_id: str, attempt_id: str, span_id: str = "ab" * 8) -> dict[str, Any]:
    return {
        "rollout_id": rollout_id, "attempt_id": attempt_id, "sequence_id": 1, "trace_id": "cd" * 16,
        "span_id": span_id, "parent_id": None, "name": "work", "status": {"status_code": "OK"}, "attributes": {"a": 1},
        "events": [], "links": [], "start_time": 1.0, "end_time": 2.0, "context": None, "parent": None,
        "resource": {"attributes": {}, "schema_url": ""},
    }  # fmt: skip


async def test_a_rollout_lives_through_the_new_routes(http: aiohttp.ClientSession) -> None:
    status, made = await ask(http, "POST", AGL + "/queues/rollouts/enqueue", {"rollouts": [{"input": 1}, {"input": 2}]})
    assert status == 201 and [item["input"] for item in made] == [1, 2] and "attempt" not in made[0]
    status, claimed = await ask(http, "POST", AGL + "/queues/rollouts/dequeue", {"limit": 1, "worker_id": "w"})
    assert status == 200 and len(claimed) == 1
    rollout, attempt = claimed[0]["rollout_id"], claimed[0]["attempt"]["attempt_id"]
    assert await ask(http, "POST", AGL + "/spans/next", {"rollout_id": rollout, "attempt_id": attempt}) == (
        200,
        {"sequence_id": 1},
    )
    status, stored = await ask(http, "POST", AGL + "/spans", span(rollout, attempt))
    assert status == 201 and stored["span_id"] == "ab" * 8
    assert await ask(http, "POST", AGL + "/spans", span(rollout, attempt)) == (201, None)
    bad = {**span(rollout, attempt, "ef" * 8), "attributes": {"agentlightning.reward.0.value": "NaN"}}
    for path in (AGL + "/spans", "/add_span"):
        status, answer = await ask(http, "POST", path, bad)
        assert status == 400 and f"The reward of rollout {rollout} must be a number" in answer["detail"]
    for verb, path, body in (
        ("GET", f"/spans?rollout_id={rollout}", None),
        ("POST", "/spans/search", {"rollout_id": rollout}),
    ):
        status, page = await ask(http, verb, AGL + path, body)
        assert status == 200 and page["total"] == 1 and page["items"][0]["attributes"] == {"a": 1}
    path = f"{AGL}/rollouts/{rollout}"
    status, done = await ask(http, "POST", f"{path}/attempts/latest", {"status": "succeeded"})
    assert status == 200 and done["status"] == "succeeded"
    assert (await ask(http, "GET", path))[1]["status"] == "succeeded"
    assert (await ask(http, "GET", f"{path}/attempts/latest"))[1]["attempt_id"] == attempt
    assert (await ask(http, "GET", f"{path}/attempts"))[1]["total"] == 1
    assert (await ask(http, "POST", f"{path}/attempts/search", {}))[1]["total"] == 1
    assert (await ask(http, "GET", f"{AGL}/rollouts?status_in=succeeded&status_in=failed"))[1]["total"] == 1
    assert (await ask(http, "POST", f"{AGL}/rollouts/search", {"status_in": []}))[1]["total"] == 0
    status, waited = await ask(http, "POST", f"{AGL}/waits/rollouts", {"rollout_ids": [rollout], "timeout": 0})
    assert [item["rollout_id"] for item in waited] == [rollout]
    status, again = await ask(http, "POST", f"{path}/attempts")
    assert status == 201 and again["attempt"]["sequence_id"] == 2
    status, updated = await ask(http, "POST", path, {"mode": None, "metadata": {"k": 1}})
    assert status == 200 and updated["metadata"] == {"k": 1}
    assert (await ask(http, "POST", AGL + "/rollouts", {"input": {}}))[0] == 201
    assert (await ask(http, "GET", AGL + "/statistics"))[1]["total_rollouts"] == 3


async def test_resources_and_workers(http: aiohttp.ClientSession) -> None:
    assert await ask(http, "GET", AGL + "/resources/latest") == (200, None)
    prompt = {"resource_type": "prompt_template", "template": "hi {x}", "engine": "f-string"}
    status, made = await ask(http, "POST", AGL + "/resources", {"p": prompt})
    assert status == 201 and made["version"] == 1
    status, newer = await ask(http, "POST", f"{AGL}/resources/{made['resources_id']}", {"p": prompt})
    assert status == 200 and newer["version"] == 2
    assert (await ask(http, "GET", AGL + "/resources/latest"))[1]["version"] == 2
    assert await ask(http, "GET", AGL + "/resources/rs-none") == (200, None)
    assert (await ask(http, "GET", AGL + "/resources"))[1]["total"] == 1
    assert (await ask(http, "GET", f"{AGL}/resources/{made['resources_id']}/versions"))[1]["total"] == 2
    assert (await ask(http, "POST", AGL + "/resources", {"p": {"resource_type": "car"}}))[0] == 422
    assert await ask(http, "GET", AGL + "/workers/w") == (200, None)
    assert (await ask(http, "POST", AGL + "/workers/w", {"heartbeat_stats": {"cpu": 1}}))[0] == 200
    assert (await ask(http, "POST", AGL + "/workers/w"))[1]["heartbeat_stats"] == {"cpu": 1}
    assert (await ask(http, "GET", AGL + "/workers"))[1]["total"] == 1
    assert (await ask(http, "POST", AGL + "/workers/search", {"worker_id_contains": "z"}))[1]["total"] == 0


async def test_the_older_routes_answer_with_lists(http: aiohttp.ClientSession) -> None:
    assert await ask(http, "GET", "/health") == (200, {"status": "ok"})
    assert await ask(http, "GET", "/dequeue_rollout") == (200, None)
    status, made = await ask(http, "POST", "/enqueue_rollout", {"input": "q"})
    assert status == 200
    rollout = made["rollout_id"]
    _, claimed = await ask(http, "GET", "/dequeue_rollout")
    attempt = claimed["attempt"]["attempt_id"]
    assert await ask(http, "GET", f"/get_next_span_sequence_id/{rollout}/{attempt}") == (200, 1)
    assert (await ask(http, "POST", "/add_span", span(rollout, attempt)))[0] == 200
    assert len((await ask(http, "GET", f"/query_spans/{rollout}?attempt_id=latest"))[1]) == 1
    body = {"rollout_id": rollout, "attempt_id": attempt, "status": "succeeded"}
    assert (await ask(http, "POST", "/update_attempt", body))[1]["status"] == "succeeded"
    assert len((await ask(http, "POST", "/query_rollouts", {"status": ["succeeded"], "rollout_ids": None}))[1]) == 1
    assert len((await ask(http, "GET", f"/query_attempts/{rollout}"))[1]) == 1
    assert (await ask(http, "GET", f"/get_latest_attempt/{rollout}"))[1]["attempt_id"] == attempt
    assert (await ask(http, "GET", f"/get_rollout_by_id/{rollout}"))[1]["status"] == "succeeded"
    assert len((await ask(http, "POST", "/wait_for_rollouts", {"rollout_ids": [rollout], "timeout": 1}))[1]) == 1
    assert (await ask(http, "POST", "/start_attempt", {"rollout_id": rollout}))[1]["attempt"]["sequence_id"] == 2
    assert (await ask(http, "POST", "/update_rollout", {"rollout_id": rollout, "status": "failed"}))[0] == 200
    assert (await ask(http, "POST", "/start_rollout", {"input": 1}))[1]["attempt"]["sequence_id"] == 1
    prompt = {"p": {"resource_type": "prompt_template", "template": "x", "engine": "f-string"}}
    _, resources = await ask(http, "POST", "/add_resources", {"resources": prompt})
    assert (await ask(http, "POST", "/update_resources", resources))[1]["version"] == 2
    assert (await ask(http, "GET", f"/get_resources_by_id/{resources['resources_id']}"))[1]["version"] == 2
    assert (await ask(http, "GET", "/get_latest_resources"))[1]["version"] == 2


@pytest.mark.parametrize("store", ["memory"], indirect=True)
@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "words"),
    [
        ("GET", "/rollouts/ro-none", None, 404, "ro-none"),
        ("POST", "/rollouts/ro-none", {"mode": "val"}, 404, "not found"),
        ("POST", "/rollouts/ro-none/attempts", None, 404, "not found"),
        ("POST", "/rollouts/ro-none/attempts/latest", {"status": "failed"}, 404, "not found"),
        ("POST", "/rollouts/ro-none", {"status": None}, 400, "status is invalid; it cannot be a null value."),
        ("POST", "/rollouts/r/attempts/a", {"metadata": None}, 400, "metadata is invalid"),
        ("POST", "/workers/w", {"heartbeat_stats": None}, 400, "heartbeat_stats is invalid"),
        ("POST", "/rollouts/r", {"status": "bogus"}, 422, "status"),
        ("POST", "/queues/rollouts/enqueue", {}, 422, "rollouts"),
        ("POST", "/queues/rollouts/enqueue", [], 422, "Input should be a JSON object'"),
        ("POST", "/spans", 5, 422, "Input should be a JSON object'"),
        ("POST", "/resources", {"main": 5}, 422, "Input should be a JSON object'"),
        ("POST", "/spans", {"name": "x"}, 422, "trace_id"),
        ("GET", "/spans", None, 422, "rollout_id"),
        ("GET", "/rollouts?limit=0", None, 400, "Limit must be greater than 0 or -1 for no limit"),
        ("GET", "/rollouts?offset=-1", None, 400, "Offset must be greater than or equal to 0"),
        ("GET", "/rollouts?sort_by=color", None, 400, "Invalid sort_by: color, allowed fields are:"),
        ("GET", "/rollouts?sort_order=up", None, 422, "sort_order"),
        ("GET", "/workers?status_in=sleepy", None, 422, "status_in"),
        ("GET", "/nowhere", None, 404, "Not Found"),
        ("GET", "/events?since=yesterday", None, 400, "since"),
    ],
)
async def test_what_is_refused_gets_a_sentence(
    http: aiohttp.ClientSession, verb: str, path: str, body: Any, status: int, words: str
) -> None:
    found, answer = await ask(http, verb, AGL + path, body)
    assert (found, words in str(answer["detail"])) == (status, True), answer
    assert "Traceback" not in str(answer)


@pytest.mark.parametrize("store", ["memory"], indirect=True)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'{"input": NaN}', b"[" * 100_000, b'{"input": ' + b"[" * 500 + b"]" * 500 + b"}", b"\xff"],
)
async def test_hostile_json_is_the_callers_fault(http: aiohttp.ClientSession, body: bytes) -> None:
    status, answer = await ask(http, "POST", AGL + "/rollouts", data=body)
    assert status in (400, 422) and answer["detail"]
    assert (await ask(http, "GET", AGL + "/statistics"))[1]["total_rollouts"] == 0


async def test_the_description_lists_every_route(http: aiohttp.ClientSession) -> None:
    _, document = await ask(http, "GET", AGL + "/openapi.json")
    for route in ROUTES:
        assert route.verb.lower() in document["paths"][route.path]
    names = {name for name in document["components"]["schemas"]}
    assert {"StartRollout", "Span", "RolloutConfig"} <= names
    assert document["paths"][AGL + "/rollouts/{rollout_id}"]["get"]["parameters"][0]["in"] == "path"
