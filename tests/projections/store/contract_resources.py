"""What every store promises about resources and workers."""

from __future__ import annotations

import pytest

import agentlightning as agl

from .tools import begin, claim


class CatalogueContract:
    """Part of `StoreContract`."""

    async def test_resources_have_ids_versions_and_a_latest(self, store: agl.LightningStore) -> None:
        assert await store.get_latest_resources() is None
        assert await store.get_resources_by_id("rs-x") is None
        first = await store.add_resources({"prompt": agl.PromptTemplate(template="say {x}", engine="f-string")})
        assert first.resources_id.startswith("rs-") and len(first.resources_id) == 15 and first.version == 1
        assert first.create_time == first.update_time
        second = await store.add_resources({"prompt": "plain text", "llm": agl.LLM(endpoint="http://x", model="m")})
        assert await store.get_latest_resources() == second
        assert await store.get_resources_by_id(first.resources_id) == first
        template = second.resources["prompt"]
        assert isinstance(template, agl.PromptTemplate) and template.template == "plain text"
        assert [one.resources_id for one in await store.query_resources()] == [first.resources_id, second.resources_id]

    async def test_an_update_replaces_as_a_new_version_and_keeps_the_old(self, store: agl.LightningStore) -> None:
        made = await store.add_resources({"a": "1", "b": "2"})
        await store.add_resources({"c": "3"})
        changed = await store.update_resources(made.resources_id, {"a": "9"})
        assert (changed.version, set(changed.resources), changed.create_time) == (2, {"a"}, made.create_time)
        assert changed.update_time >= made.update_time
        assert await store.get_latest_resources() == changed
        assert await store.get_resources_by_id(made.resources_id, 1) == made
        assert await store.get_resources_by_id(made.resources_id, 2) == changed
        assert await store.get_resources_by_id(made.resources_id, 3) is None
        assert list(await store.query_resource_versions(made.resources_id)) == [made, changed]
        assert (await store.query_resource_versions("rs-x")).total == 0
        assert (await store.query_resources()).total == 2

    async def test_an_update_of_an_unknown_id_creates_it(self, store: agl.LightningStore) -> None:
        made = await store.update_resources("v0", {"p": "x"})
        assert (made.resources_id, made.version) == ("v0", 1)
        assert (await store.enqueue_rollout(1)).resources_id == "v0"

    async def test_resources_are_filtered_sorted_and_checked(self, store: agl.LightningStore) -> None:
        for name in ("b", "ab", "c"):
            await store.update_resources(name, {"p": name})
        async def found(**filters: object) -> list[str]:
            return [one.resources_id for one in await store.query_resources(**filters)]  # type: ignore[arg-type]

        assert await found(resources_id="b") == ["b"]
        assert await found(resources_id_contains="b") == ["b", "ab"]
        assert await found(sort_by="resources_id", sort_order="desc", limit=2) == ["c", "b"]
        with pytest.raises(ValueError):
            await store.add_resources({"p": 3.5})
        assert (await store.query_resources()).total == 3

    async def test_a_heartbeat_makes_and_stamps_a_worker(self, store: agl.LightningStore) -> None:
        assert await store.get_worker_by_id("w") is None
        worker = await store.update_worker("w", {"cpu": 0.5})
        assert (worker.worker_id, worker.status, worker.heartbeat_stats) == ("w", "unknown", {"cpu": 0.5})
        assert worker.last_heartbeat_time is not None
        again = await store.update_worker("w")
        assert again.heartbeat_stats == {"cpu": 0.5}
        assert again.last_heartbeat_time is not None and again.last_heartbeat_time >= worker.last_heartbeat_time
        assert await store.get_worker_by_id("w") == again
        with pytest.raises((TypeError, ValueError)):
            await store.update_worker("w", None)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("end", "status"),
        [("succeeded", "idle"), ("failed", "idle"), ("timeout", "unknown"), ("unresponsive", "unknown")],
    )
    async def test_a_worker_follows_its_attempt(self, store: agl.LightningStore, end: str, status: str) -> None:
        attempted = await begin(store, worker_id="w")
        busy = await store.get_worker_by_id("w")
        assert busy is not None and busy.status == "busy"
        assert (busy.current_rollout_id, busy.current_attempt_id) == (
            attempted.rollout_id, attempted.attempt.attempt_id,
        )  # fmt: skip
        assert busy.last_dequeue_time is not None and busy.last_busy_time is not None
        await store.update_worker("w", {"x": 1})
        await store.update_attempt(attempted.rollout_id, "latest", status=end)  # type: ignore[arg-type]
        worker = await store.get_worker_by_id("w")
        assert worker is not None and worker.status == status and worker.last_idle_time is not None
        assert worker.current_rollout_id is None and worker.current_attempt_id is None
        assert worker.heartbeat_stats == {"x": 1}

    async def test_an_empty_queue_makes_the_worker_idle(self, store: agl.LightningStore) -> None:
        assert await store.dequeue_rollout("w") is None
        idle = await store.get_worker_by_id("w")
        assert idle is not None and idle.status == "idle"
        assert idle.last_idle_time is not None and idle.last_idle_time == idle.last_dequeue_time
        await begin(store, worker_id="w")
        busy = await store.get_worker_by_id("w")
        assert busy is not None and busy.status == "busy"
        assert await store.dequeue_rollout("w") is None
        again = await store.get_worker_by_id("w")
        assert again is not None and again.status == "idle" and again.current_rollout_id is None
        await store.start_rollout("at the very position at which it was idle", worker_id="w")
        busy = await store.get_worker_by_id("w")
        assert busy is not None and busy.status == "busy"
        assert await store.dequeue_rollout("w") is None
        again = await store.get_worker_by_id("w")
        assert again is not None and again.status == "idle"

    async def test_an_attempt_can_be_given_to_a_worker(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        attempt = await store.update_attempt(attempted.rollout_id, "latest", worker_id="w")
        assert attempt.worker_id == "w"
        worker = await store.get_worker_by_id("w")
        assert worker is not None and worker.status == "busy"
        assert worker.current_attempt_id == attempted.attempt.attempt_id

    async def test_workers_that_claimed_are_listed_before_those_only_heard_of(self, store: agl.LightningStore) -> None:
        await store.enqueue_rollout(1)
        await claim(store, "c1")
        await store.update_worker("a1")
        await store.dequeue_rollout("b2")
        assert [one.worker_id for one in await store.query_workers()] == ["c1", "a1", "b2"]
        assert [one.worker_id for one in await store.query_workers(status_in=["busy"])] == ["c1"]
        assert [one.worker_id for one in await store.query_workers(worker_id_contains="b")] == ["b2"]
        either = await store.query_workers(
            status_in=["busy"], worker_id_contains="a", filter_logic="or", sort_by="worker_id"
        )
        assert [one.worker_id for one in either] == ["a1", "c1"]
        assert (await store.query_workers(filter_logic="or")).total == 3
        assert (await store.query_workers(limit=1, offset=1)).total == 3

    async def test_statistics_count_everything(self, store: agl.LightningStore) -> None:
        attempted = await begin(store, worker_id="w")
        await store.start_attempt(attempted.rollout_id)
        await store.add_resources({"p": "x"})
        await store.add_span(agl.Span.from_attributes(
            attributes={}, rollout_id=attempted.rollout_id, attempt_id=attempted.attempt.attempt_id
        ))  # fmt: skip
        counts = await store.statistics()
        assert (counts.get("total_rollouts"), counts.get("total_attempts"), counts.get("total_spans")) == (1, 2, 1)
        assert (counts.get("total_resources"), counts.get("total_workers")) == (1, 1)
        assert counts.get("uptime", -1) >= 0 and counts.get("name")
