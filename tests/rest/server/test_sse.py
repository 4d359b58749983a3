"""Server-sent events as any EventSource reads them, and waits that ask no more often than they have to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.client import client as client_module
from agentlightning.rest.client.client import LightningStoreClient

EVENTS = "/v1/agl/events"


async def read_events(http: aiohttp.ClientSession, count: int, **request: Any) -> list[tuple[str, str]]:
    """(id of the event, id of the fact) of the next `count` events, as a plain EventSource receives them."""
    found: list[tuple[str, str]] = []
    fields: dict[str, str] = {}
    async with http.get(EVENTS, **request) as answer:
        assert answer.status == 200
        async for line in answer.content:
            name, _, value = line.decode().strip().partition(": ")
            if name == "":
                if "data" in fields:
                    found.append((fields["id"], json.loads(fields["data"])["id"]))
                    if len(found) == count:
                        return found
                fields = {}
            else:
                fields[name] = value
    raise AssertionError("the stream ended")


async def test_an_event_source_that_resumes_anywhere_loses_nothing_and_repeats_nothing(
    store: EventLogStore, http: aiohttp.ClientSession
) -> None:
    for number in range(4):
        await store.start_rollout(number)  # several facts in one record
    everything = await asyncio.wait_for(read_events(http, 9, params={"since": "-1"}), 10)
    places = [fact_id.replace("/", ".") for _, fact_id in everything]
    assert [event_id for event_id, _ in everything] == places
    assert len(set(places)) == 9 and len({one.partition(".")[0] for one in places}) == 5, "positions are shared"
    for at in range(8):
        headers = {"Last-Event-ID": everything[at][0]}
        resumed = await asyncio.wait_for(read_events(http, 8 - at, headers=headers), 10)
        assert resumed == everything[at + 1 :]
        # An EventSource sends the address that it was opened with again.
        resumed = await asyncio.wait_for(read_events(http, 8 - at, headers=headers, params={"since": "-1"}), 10)
        assert resumed == everything[at + 1 :]
    position = places[3].partition(".")[0]
    resumed = await asyncio.wait_for(read_events(http, 3, headers={"Last-Event-ID": position}), 10)
    assert all(int(one.partition(".")[0]) > int(position) for one, _ in resumed), "as the first releases named events"


@pytest.mark.parametrize("text", ["x", "1.", ".1", "1.2.3", "1.-2", "²", "9" * 40])
async def test_what_is_no_id_of_an_event_is_refused(http: aiohttp.ClientSession, text: str) -> None:
    async with http.get(EVENTS, params={"since": text}) as answer:
        assert answer.status == 400 and (await answer.json())["code"] == "invalid_input"


@pytest.mark.parametrize("timeout", [0.0, 0.2, 0.6])
async def test_a_wait_for_unknown_rollouts_asks_once(
    store: EventLogStore, client: LightningStoreClient, monkeypatch: pytest.MonkeyPatch, timeout: float
) -> None:
    asked: list[Any] = []
    waited = EventLogStore.wait_for_rollouts

    async def counted(self: EventLogStore, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return await waited(self, *args, **kwargs)

    monkeypatch.setattr(EventLogStore, "wait_for_rollouts", counted)
    made = await client.enqueue_rollout("x")
    assert await client.wait_for_rollouts(["ro-unknown"], timeout=timeout) == [] and len(asked) == 1
    assert await client.wait_for_rollouts(["ro-unknown", made.rollout_id], timeout=timeout) == [] and len(asked) == 2


async def test_a_long_wait_is_asked_for_again_until_it_is_over(
    store: EventLogStore, client: LightningStoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "LONGEST_HOLD_SECONDS", 0.3)
    attempted = await store.start_rollout("x")
    waiting = asyncio.ensure_future(client.wait_for_rollouts([attempted.rollout_id], timeout=30))
    await asyncio.sleep(0.8)
    assert not waiting.done()
    await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
    assert [one.rollout_id for one in await asyncio.wait_for(waiting, 5)] == [attempted.rollout_id]
