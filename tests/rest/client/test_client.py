"""What the client promises when answers are lost, the store is away, or wants something else."""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from agentlightning.core.errors import InvalidInput, NotFound, StoreUnreachable
from agentlightning.core.model.rollout import Fact, RolloutConfig
from agentlightning.core.model.span import Span
from agentlightning.core.model.store_interface import LightningStore
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.server.server import LightningStoreServer

from ..relay import Relay


@pytest.fixture
async def relay(server: LightningStoreServer) -> AsyncIterator[Relay]:
    made = await Relay(server.endpoint).start()
    yield made
    await made.stop()


@pytest.fixture
async def shaky(relay: Relay) -> AsyncIterator[LightningStoreClient]:
    made = LightningStoreClient(relay.url, patience_seconds=20)
    assert await made.health()
    yield made
    await made.close()


async def test_one_dequeue_never_claims_two_rollouts_however_often_its_answer_is_lost(
    shaky: LightningStoreClient, relay: Relay, store: LightningStore
) -> None:
    for number in range(5):
        await store.enqueue_rollout(number)
    for number in range(3):
        relay.swallow_answers = 2
        claimed = await shaky.dequeue_rollout("w")
        assert claimed is not None and claimed.input == number
    assert (await store.query_rollouts(status_in=["preparing"])).total == 3


async def test_nothing_happens_twice_when_answers_are_lost(
    shaky: LightningStoreClient, relay: Relay, store: LightningStore
) -> None:
    relay.swallow_answers = 1
    rollout = await shaky.enqueue_rollout(1)
    relay.swallow_answers = 1
    started = await shaky.start_rollout(2)
    relay.swallow_answers = 1
    assert (await shaky.start_attempt(started.rollout_id)).attempt.sequence_id == 2
    relay.swallow_answers = 1
    assert (await shaky.add_resources({"p": "hello"})).version == 1
    assert [item.rollout_id for item in await store.query_rollouts()] == [rollout.rollout_id, started.rollout_id]
    assert (await store.query_resources()).total == 1


async def test_retry_delays_given_by_the_caller_keep_the_same_promise(relay: Relay, store: LightningStore) -> None:
    client = LightningStoreClient(relay.url, retry_delays=(0.01, 0.01))
    await client.health()
    relay.swallow_answers = 1
    await client.enqueue_rollout(1)
    assert (await store.query_rollouts()).total == 1
    await relay.stop()
    began = time.monotonic()
    with pytest.raises(StoreUnreachable):
        await client.get_rollout_by_id("ro-x")
    assert await client.dequeue_rollout() is None
    assert time.monotonic() - began < 10
    await client.close()


async def test_an_absent_store_is_waited_for_with_one_line(
    server: LightningStoreServer, caplog: pytest.LogCaptureFixture
) -> None:
    relay = await Relay(server.endpoint).start()
    await relay.stop()
    client = LightningStoreClient(relay.url, patience_seconds=math.inf)
    calls = [asyncio.ensure_future(client.enqueue_rollout(n)) for n in range(5)]
    await asyncio.sleep(0.4)
    await relay.start()
    assert sorted(rollout.input for rollout in await asyncio.gather(*calls)) == [0, 1, 2, 3, 4]
    lines = [record.getMessage() for record in caplog.records if record.name == "agentlightning.store.client"]
    assert len(lines) == 2 and lines[0].startswith(f"waiting for the store at {relay.url} (no answer")
    assert lines[1] == f"the store at {relay.url} answers again"
    await client.close()
    await relay.stop()


async def test_patience_ends() -> None:
    client = LightningStoreClient("http://127.0.0.1:9", patience_seconds=0.2)
    for call in (client.dequeue_rollout(), client.get_latest_attempt("x"), client.get_latest_resources()):
        with pytest.raises(StoreUnreachable):
            await call
    await client.close()


async def test_no_message_has_the_credentials_of_an_address() -> None:
    client = LightningStoreClient("http://somebody:hidden@127.0.0.1:9", patience_seconds=0.1)
    facts = client.subscribe()
    for call in (client.dequeue_rollout(), client.get_latest_resources(), anext(facts)):
        with pytest.raises(StoreUnreachable, match=r"no answer from the store at http://\*\*\*@127") as caught:
            await call
        assert "hidden" not in str(caught.value)
    await client.close()


@pytest.mark.parametrize("address", ["", "localhost:4747", "ftp://x", "http://", "http://h:port", "http://h:99999"])
def test_an_address_of_another_form_fails_at_once(address: str) -> None:
    with pytest.raises(InvalidInput, match="address"):
        LightningStoreClient(address)


async def test_refusals_come_back_as_the_classes_they_left_as(client: LightningStoreClient) -> None:
    with pytest.raises(aiohttp.ClientResponseError, match="Rollout ro-none not found") as caught:
        await client.update_rollout("ro-none", status="succeeded")
    again = pickle.loads(pickle.dumps(caught.value))
    for error in (caught.value, again):
        assert isinstance(error, NotFound) and error.status == 404 and str(error) == "Rollout ro-none not found"  # pyright: ignore[reportAttributeAccessIssue]
        assert type(error).__name__ == "NotFound"
    with pytest.raises(NotFound, match="Rollout ro-none not found"):
        await client.update_attempt("ro-none", "latest", status="failed")
    with pytest.raises(ValueError, match="status"):
        await client.update_attempt("ro-none", "latest", status="bogus")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="color"):
        await client.query_rollouts(color="red")  # type: ignore[call-arg]
    assert await client.get_rollout_by_id("ro-none") is None
    assert await client.dequeue_many_rollouts(limit=0) == []
    assert await client.enqueue_many_rollouts([]) == []


async def test_values_cross_unchanged(client: LightningStoreClient) -> None:
    value = {"wide": 2**70, "lone": "\ud800", "nan": math.nan, "list": [1, None, True], "text": "é"}
    made = await client.enqueue_rollout(value, config=RolloutConfig(max_attempts=3, timeout_seconds=1.5))
    found = await client.get_rollout_by_id(made.rollout_id)
    assert found is not None and math.isnan(found.input.pop("nan"))
    del value["nan"]
    assert found.input == value and found.config.max_attempts == 3


class Text(str):
    """As LangChain's message.text, or numpy.str_."""


class Scalar:
    """As a number of numpy."""

    shape = ()

    def item(self) -> int:
        return 3


async def test_values_of_other_classes_cross_as_what_they_stand_for(client: LightningStoreClient) -> None:
    asked: Any = {Text("q"): Text("why?"), "n": [Scalar()]}
    made = await client.enqueue_rollout(asked, mode=Text("train"), metadata={"m": Scalar()})  # type: ignore[arg-type]
    assert (made.input, made.mode, made.metadata) == ({"q": "why?", "n": [3]}, "train", {"m": 3})
    [found] = await client.query_rollouts(rollout_id_in=[Text(made.rollout_id)], limit=Scalar())  # type: ignore[arg-type]
    assert found.rollout_id == made.rollout_id
    claimed = await client.dequeue_rollout(Text("worker"))
    assert claimed is not None and claimed.attempt.worker_id == "worker"
    ids: dict[str, Any] = {"rollout_id": made.rollout_id, "attempt_id": claimed.attempt.attempt_id}
    stored = await client.add_span(Span.from_attributes(attributes={"t": Text("x"), "n": Scalar()}, **ids))  # type: ignore[dict-item]
    assert stored is not None and stored.attributes == {"t": "x", "n": 3}
    for value in (math.nan, "0.5"):
        bad = Span.from_attributes(attributes={"agentlightning.reward.0.value": value}, **ids)
        with pytest.raises(InvalidInput, match=f"The reward of rollout {made.rollout_id} "):
            await client.add_span(bad)


async def test_spans_cross_unchanged_and_are_numbered_by_the_store(client: LightningStoreClient) -> None:
    started = await client.start_rollout(1)
    ids: dict[str, Any] = {"rollout_id": started.rollout_id, "attempt_id": started.attempt.attempt_id}
    spans = [Span.from_attributes(attributes={"r": math.nan, "n": n, "l": [1.5]}, **ids) for n in range(3)]
    first = await client.add_span(spans[0])
    assert first is not None and first.sequence_id == 1
    assert await client.add_span(spans[0]) is None
    stored = await client.add_many_spans(spans)
    assert [span.sequence_id for span in stored] == [2, 3]
    found = await client.query_spans(started.rollout_id, limit=1, offset=2, sort_order="asc")
    assert found.total == 3 and found[0].span_id == spans[2].span_id and found[0].attributes["n"] == 2
    assert await client.get_many_span_sequence_ids([(ids["rollout_id"], ids["attempt_id"])] * 2) == [4, 5]


async def test_a_wait_is_one_request_and_ends_with_the_outcome(
    client: LightningStoreClient, store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agentlightning.store.server")
    started = await client.start_rollout(1)
    wait = asyncio.ensure_future(client.wait_for_rollouts([started.rollout_id, "ro-unknown"]))
    await asyncio.sleep(0.3)
    await store.update_attempt(started.rollout_id, "latest", status="succeeded")
    (done,) = await asyncio.wait_for(wait, 5)
    assert done.status == "succeeded"
    assert sum("/wait_for_rollouts" in record.getMessage() for record in caplog.records) == 1
    assert await client.wait_for_rollouts(["ro-unknown"], timeout=0) == []


async def test_a_wait_and_a_long_poll_outlive_their_connection(
    shaky: LightningStoreClient, relay: Relay, store: LightningStore
) -> None:
    started = await store.start_rollout(1)
    wait = asyncio.ensure_future(shaky.wait_for_rollouts([started.rollout_id]))
    poll = asyncio.ensure_future(shaky.dequeue_rollout("w", wait_seconds=30))
    await asyncio.sleep(0.2)
    relay.cut()
    await asyncio.sleep(0.3)
    queued = await store.enqueue_rollout(2)
    await store.update_attempt(started.rollout_id, "latest", status="succeeded")
    assert [done.status for done in await asyncio.wait_for(wait, 10)] == ["succeeded"]
    claimed = await asyncio.wait_for(poll, 10)
    assert claimed is not None and claimed.rollout_id == queued.rollout_id


async def test_a_long_poll_whose_caller_left_claims_nothing(
    client: LightningStoreClient, store: LightningStore
) -> None:
    poll = asyncio.ensure_future(client.dequeue_rollout("gone", wait_seconds=30))
    await asyncio.sleep(0.2)
    poll.cancel()
    await asyncio.sleep(0.3)
    await store.enqueue_rollout(1)
    await asyncio.sleep(0.2)
    assert await client.dequeue_rollout("here") is not None


async def test_a_claim_is_confirmed_without_a_further_call(
    client: LightningStoreClient, store: LightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed: list[Any] = []

    async def confirm(rollout_id: str, attempt_id: str) -> bool:
        confirmed.append((rollout_id, attempt_id))
        return True

    monkeypatch.setattr(store, "confirm_claim", confirm)
    monkeypatch.setattr("agentlightning.rest.client.client.CONFIRM_AFTER_SECONDS", 0.1)
    await store.enqueue_rollout(1)
    await store.enqueue_rollout(2)
    silent, busy = await client.dequeue_rollout("w"), await client.dequeue_rollout("w")
    assert silent is not None and busy is not None
    await client.update_attempt(busy.rollout_id, busy.attempt.attempt_id, status="running")
    await asyncio.sleep(0.4)
    assert confirmed == [(silent.rollout_id, silent.attempt.attempt_id)]


async def test_a_subscription_goes_on_where_it_was_cut(
    shaky: LightningStoreClient, relay: Relay, store: LightningStore
) -> None:
    seen: list[Fact] = []

    async def listen() -> None:
        async for fact in shaky.subscribe():
            seen.append(fact)

    task = asyncio.ensure_future(listen())
    await asyncio.sleep(0.3)
    for number in range(6):
        await store.enqueue_rollout(number)
        if number in (1, 3):
            await asyncio.sleep(0.1)
            relay.cut()
    for _ in range(100):
        if sum(fact.type == "rollout.enqueued" for fact in seen) == 6:
            break
        await asyncio.sleep(0.05)
    task.cancel()
    assert [fact.type for fact in seen].count("rollout.enqueued") == 6
    assert len({fact.id for fact in seen}) == len(seen)
    positions = [fact.position for fact in seen]
    assert positions == sorted(positions)
    history = shaky.subscribe(["rollout.enqueued"], since=-1)
    replayed = [await anext(history) for _ in range(6)]
    assert [fact.id for fact in replayed] == [fact.id for fact in seen if fact.type == "rollout.enqueued"]


async def test_concurrent_small_calls_share_requests(
    client: LightningStoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.health()
    transport = client.transport()
    results, sizes = transport._results, list[int]()

    def counting(answer: Any, count: int) -> list[Any]:
        sizes.append(count)
        return results(answer, count)

    monkeypatch.setattr(transport, "_results", counting)
    made = await asyncio.gather(*(client.enqueue_rollout(number) for number in range(50)))
    assert sorted(rollout.input for rollout in made) == list(range(50))
    assert sum(sizes) == 50 and len(sizes) <= 5
    sizes.clear()
    await client.enqueue_rollout("alone")
    assert sizes == [1]


async def test_one_failure_in_a_shared_request_is_only_its_callers(client: LightningStoreClient) -> None:
    await client.health()
    results = await asyncio.gather(
        client.enqueue_rollout(1),
        client.update_attempt("ro-none", "latest", status="failed"),
        client.enqueue_rollout(2),
        return_exceptions=True,
    )
    assert isinstance(results[1], NotFound)
    assert [result.input for result in (results[0], results[2])] == [1, 2]  # type: ignore[union-attr]


def test_a_client_works_in_any_loop_and_through_pickle(tmp_path: Any) -> None:
    from agentlightning.rest.open_store import open_store

    store = open_store("memory://")
    server = LightningStoreServer(store, port=0)
    asyncio.run(server.start())
    client = LightningStoreClient(server.endpoint)
    assert asyncio.run(client.enqueue_rollout(1)).input == 1
    copy = pickle.loads(pickle.dumps(client))
    assert asyncio.run(copy.dequeue_rollout("w")).input == 1
    assert asyncio.run(client.dequeue_rollout("w")) is None
    client.close_sync()
    copy.close_sync()
    asyncio.run(server.stop())
    store.close()  # type: ignore[attr-defined]
