"""Secrets are masked for people wherever they are shown, and a reference to one is resolved where the runner is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.credentials import mask_attributes, mask_text
from agentlightning.core.errors import InvalidInput
from agentlightning.core.model.resources import LLM, ProxyLLM, mask_models, masked, with_keys
from agentlightning.projections.replica import validation

KEY = "sk-do-not-show"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pw@host/v1", "https://***@host/v1"),
        ("https://sk-key@host/v1?api_key=k&x=1", "https://***@host/v1?api_key=***&x=1"),
        ("kafka://u:p@h:9092/x?sasl_password=pw", "kafka://***@h:9092/x?sasl_password=***"),
        ("error for url 'http://u:p@h/a' and http://h/b", "error for url 'http://***@h/a' and http://h/b"),
        ("mail me@host, see http://host/@user", "mail me@host, see http://host/@user"),
        ("nothing", "nothing"),
    ],
)
def test_credentials_in_addresses(text: str, shown: str) -> None:
    assert mask_text(text) == shown


def test_masking_takes_no_longer_for_a_text_or_a_name_that_looks_like_many_beginnings() -> None:
    attributes: dict[str, Any] = {"url": "a" * 30_000 + " ://", "headers." * 500 + "key" * 2_000 + "1": "kept"}
    began = time.perf_counter()
    mask_attributes(attributes)
    assert time.perf_counter() - began < 0.5
    assert list(attributes.values()) == ["a" * 30_000 + " ://", "kept"]


def test_the_description_of_a_status_repeats_no_credentials() -> None:
    made = agl.Span.from_attributes(
        attributes={},
        rollout_id="ro",
        attempt_id="at",
        status=agl.TraceStatus(status_code="ERROR", description=f"no answer from http://u:{KEY}@h/v1"),
    )
    assert validation.span(made).span.status.description == "no answer from http://***@h/v1"


def test_attributes_of_instrumentations() -> None:
    attributes: dict[str, Any] = {
        "gen_ai.headers": "{'Authorization': 'sk'}",
        "llm.request.headers": ["a", "sk"],
        "http.request.header.authorization": "Bearer sk",
        "gen_ai.openai.api_base": "https://u:sk@h/v1",
        "llm.invocation_parameters": '{"temperature": 1, "extra_headers": {"X-Key": "sk"}}',
        "url.full": "https://h/v1?api_key=sk",
        "exception.message": "no answer from https://u:sk@h/v1",
        "gen_ai.prompt.0.content": "what are headers of http://a:b@c?",
        "http.request.header.accept": "text/html",
    }
    kept = {key: attributes[key] for key in ("gen_ai.prompt.0.content", "http.request.header.accept")}
    mask_attributes(attributes)
    assert "sk" not in str(attributes) and {key: attributes[key] for key in kept} == kept
    assert attributes["llm.invocation_parameters"] == '{"temperature": 1, "extra_headers": {"X-Key": "***"}}'
    assert attributes["gen_ai.openai.api_base"] == "https://***@h/v1"


@pytest.mark.parametrize("kind", [LLM, ProxyLLM])
def test_a_model_shows_no_secret(kind: type[LLM]) -> None:
    model = kind(
        endpoint=f"http://u:{KEY}@h/v1",
        model="m",
        api_key=KEY,
        sampling_parameters={"extra_headers": {"A": KEY}, "n": 1},
    )
    plain = model.model_dump()
    for shown in (
        repr(model),
        str(model),
        repr(masked({"llm": model})["llm"].model_dump()),
        repr(mask_models([{"x": plain}])),
    ):
        assert KEY not in shown and "'m'" in shown and "1" in shown
    assert plain["api_key"] == KEY and KEY in plain["endpoint"], "what is stored and sent is whole"
    referring = kind(endpoint="http://h", model="m", api_key="env:NAME")
    assert "env:NAME" in repr(referring), "a reference is no secret"


def test_a_reference_is_resolved_where_the_runner_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    monkeypatch.setenv("SOME_KEY", KEY)
    for reference in ("env:SOME_KEY", f"file:{tmp_path / 'key'}", KEY):
        resources = {
            "llm": LLM(endpoint="http://h", model="m", api_key=reference),
            "p": agl.PromptTemplate(template="", engine="f-string"),
        }
        found: Any = with_keys(resources)["llm"]  # type: ignore[arg-type]
        assert found.api_key == KEY and resources["llm"].api_key == reference  # type: ignore[union-attr]
    for reference, why in (
        ("env:NOT_SET", "NOT_SET, which is not set where the runner is"),
        ("file:/no/such", "cannot be read"),
    ):
        with pytest.raises(InvalidInput, match=why):
            LLM(endpoint="http://h", model="m", api_key=reference).with_key()


async def test_agents_get_the_key_and_the_log_keeps_what_was_published(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    @agl.rollout
    def agent(task: Any, llm: agl.LLM) -> float:
        seen.append(llm.api_key)
        return 1.0

    monkeypatch.setenv("SOME_KEY", KEY)
    store = agl.InMemoryLightningStore()
    for given in (KEY, "env:SOME_KEY"):
        await store.add_resources({"llm": LLM(endpoint="http://h", model="m", api_key=given)})
        runner = agl.LitAgentRunner[Any](agl.OtelTracer())
        with runner.run_context(agent=agent, store=store):
            await runner.step("task")
        latest = await store.get_latest_resources()
        assert latest is not None and latest.resources["llm"].api_key == given  # type: ignore[union-attr]
    assert seen == [KEY, KEY]
    store.close()


async def test_lists_of_resources_over_http_are_masked_and_a_masked_key_is_not_published() -> None:
    store = agl.InMemoryLightningStore()
    server = agl.LightningStoreServer(store, "127.0.0.1", 0)
    await server.start()
    client = agl.LightningStoreClient(server.endpoint)
    try:
        made = await client.add_resources({"llm": LLM(endpoint=f"http://u:{KEY}@h", model="m", api_key=KEY)})
        listed = list(await client.query_resources()) + list(await client.query_resource_versions(made.resources_id))
        assert len(listed) == 2 and KEY not in str([one.model_dump() for one in listed])
        latest = await client.get_latest_resources()
        assert latest is not None and latest.resources["llm"].api_key == KEY, "who runs agents gets it"  # type: ignore[union-attr]
        with pytest.raises(InvalidInput, match="api_key of 'llm' is masked"):
            await client.add_resources(listed[0].resources)
    finally:
        await client.close()
        await server.stop()
        store.close()
