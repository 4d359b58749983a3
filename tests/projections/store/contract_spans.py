"""What every store promises about spans: identity, numbers, order, filters."""

from __future__ import annotations

import asyncio

import pytest

import agentlightning as agl

from .tools import attempt_of, begin, span


class SpanContract:
    """Part of `StoreContract`."""

    async def test_a_span_comes_back_whole(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        sent = span(
            attempted, name="call", attributes={"s": "é", "f": 1.5, "i": 3, "b": True, "l": ["a", "b"]},
            start_time=1.25, end_time=2.5, parent_id="ab" * 8, sequence_id=7,
        )  # fmt: skip
        stored = await store.add_span(sent)
        assert stored == sent
        (found,) = await store.query_spans(attempted.rollout_id)
        assert found == sent

    async def test_numbers_are_given_in_order_of_storing(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        stored = [await store.add_span(span(attempted)) for _ in range(3)]
        assert [one and one.sequence_id for one in stored] == [1, 2, 3]
        assert [one.sequence_id for one in await store.query_spans(attempted.rollout_id)] == [1, 2, 3]

    async def test_a_duplicate_is_none_and_stored_once(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        sent = span(attempted, span_id="1" * 16)
        assert await store.add_span(sent) is not None
        assert await store.add_span(sent) is None
        assert (await store.query_spans(attempted.rollout_id)).total == 1
        assert await store.get_next_span_sequence_id(attempted.rollout_id, attempted.attempt.attempt_id) == 2

    async def test_the_identity_of_a_span_includes_its_attempt(self, store: agl.LightningStore) -> None:
        first = await begin(store)
        second = await store.start_attempt(first.rollout_id)
        assert await store.add_span(span(first, span_id="1" * 16)) is not None
        assert await store.add_span(span(second, span_id="1" * 16)) is not None
        assert (await store.query_spans(first.rollout_id)).total == 2
        assert (await store.query_spans(first.rollout_id, "latest")).total == 1
        assert (await store.query_spans(first.rollout_id, first.attempt.attempt_id)).total == 1

    async def test_many_spans_at_once_with_duplicates_among_them(self, store: agl.LightningStore) -> None:
        one, two = await begin(store), await begin(store)
        known = span(one, span_id="1" * 16)
        await store.add_span(known)
        fresh = [span(two), span(one), span(two)]
        stored = await store.add_many_spans([known, fresh[0], fresh[1], fresh[1], fresh[2]])
        assert sorted(each.span_id for each in stored) == sorted(each.span_id for each in fresh)
        assert (await store.query_spans(one.rollout_id)).total == 2
        assert [each.span_id for each in await store.query_spans(two.rollout_id)] == [fresh[0].span_id, fresh[2].span_id]
        assert list(await store.add_many_spans([])) == []

    async def test_unknown_owners_are_refused_and_use_up_no_number(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        with pytest.raises(ValueError, match="Rollout ro-x not found"):
            await store.add_span(span(attempted, rollout_id="ro-x", sequence_id=50))
        with pytest.raises(ValueError, match=f"Attempt at-x not found for rollout {attempted.rollout_id}"):
            await store.add_span(span(attempted, attempt_id="at-x", sequence_id=50))
        with pytest.raises(ValueError):
            await store.add_many_spans([span(attempted), span(attempted, attempt_id="at-x")])
        assert (await store.query_spans(attempted.rollout_id)).total == 0
        assert await store.get_next_span_sequence_id(attempted.rollout_id, attempted.attempt.attempt_id) == 1
        with pytest.raises(ValueError):
            await store.get_next_span_sequence_id("ro-x", "at-x")
        with pytest.raises(ValueError):
            await store.get_many_span_sequence_ids([("ro-x", "at-x")])

    async def test_one_counter_a_rollout(self, store: agl.LightningStore) -> None:
        a, b = await begin(store), await begin(store)
        a2 = await store.start_attempt(a.rollout_id)
        pairs = [(one.rollout_id, one.attempt.attempt_id) for one in (a, b, a2, a)]
        assert list(await store.get_many_span_sequence_ids(pairs)) == [1, 1, 2, 3]
        assert list(await store.get_many_span_sequence_ids([])) == []
        await store.add_span(span(a, sequence_id=10))
        assert await store.get_next_span_sequence_id(*pairs[0]) == 11
        await store.add_span(span(a, sequence_id=4))
        assert await store.get_next_span_sequence_id(*pairs[0]) == 12

    async def test_numbers_are_unique_under_concurrency(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        pair = (attempted.rollout_id, attempted.attempt.attempt_id)
        results = await asyncio.gather(
            *(store.get_next_span_sequence_id(*pair) for _ in range(30)),
            *(store.add_span(span(attempted)) for _ in range(30)),
        )
        numbers = [one.sequence_id if isinstance(one, agl.Span) else one or 0 for one in results]
        assert sorted(numbers) == list(range(1, 61))

    async def test_queries_filter_sort_and_page(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        rollout_id = attempted.rollout_id
        for number, name in enumerate(("alpha", "beta", "alphabet", "gamma")):
            await store.add_span(
                span(attempted, name=name, span_id=f"{number}" * 16, trace_id="f" * 32, start_time=float(-number))
            )

        async def names(**filters: object) -> list[str]:
            return [one.name for one in await store.query_spans(rollout_id, **filters)]  # type: ignore[arg-type]

        assert await names() == ["alpha", "beta", "alphabet", "gamma"]
        assert await names(name="alpha") == ["alpha"]
        assert await names(name_contains="alpha") == ["alpha", "alphabet"]
        assert await names(name_contains="alpha", span_id="0" * 16) == ["alpha"]
        assert await names(name="beta", span_id="0" * 16, filter_logic="or") == ["alpha", "beta"]
        assert len(await names(filter_logic="or")) == 4, "no condition matches everything"
        assert await names(trace_id_contains="ff", parent_id=None, limit=2, offset=1) == ["beta", "alphabet"]
        assert await names(sort_by="start_time") == ["gamma", "alphabet", "beta", "alpha"]
        assert await names(sort_by="sequence_id", sort_order="desc", limit=1) == ["gamma"]
        page = await store.query_spans(rollout_id, limit=2)
        assert (page.total, page.limit, page.offset, len(page)) == (4, 2, 0, 2)
        with pytest.raises(ValueError):
            await names(sort_by="nonsense")

    async def test_unknown_ids_give_no_spans(self, store: agl.LightningStore) -> None:
        rollout = await store.enqueue_rollout(1)
        for asked in (("ro-x", None), (rollout.rollout_id, "latest"), (rollout.rollout_id, "at-x")):
            assert (await store.query_spans(*asked)).total == 0

    async def test_spans_after_the_end_are_kept(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")
        await store.add_span(span(attempted))
        assert (await store.query_spans(attempted.rollout_id)).total == 1
        assert (await attempt_of(store, attempted.rollout_id)).status == "succeeded"

    async def test_an_opentelemetry_span_is_converted(self, store: agl.LightningStore) -> None:
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

        with TracerProvider().get_tracer("tests").start_as_current_span("live") as live:
            live.set_attribute("answer", 42)
        attempted = await begin(store)
        assert isinstance(live, ReadableSpan)
        stored = await store.add_otel_span(attempted.rollout_id, attempted.attempt.attempt_id, live)
        assert stored is not None and stored.sequence_id == 1 and stored.attributes["answer"] == 42
        (found,) = await store.query_spans(attempted.rollout_id, name="live")
        assert found.span_id == stored.span_id
        assert await store.add_otel_span(attempted.rollout_id, attempted.attempt.attempt_id, live, 9) is None

    async def test_a_span_of_a_megabyte_comes_back(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        await store.add_span(span(attempted, attributes={"text": "x" * 1_000_000}))
        (found,) = await store.query_spans(attempted.rollout_id)
        assert found.attributes["text"] == "x" * 1_000_000

    async def test_read_spans_are_copies(self, store: agl.LightningStore) -> None:
        attempted = await begin(store)
        sent = span(attempted, attributes={"a": 1})
        stored = await store.add_span(sent)
        assert stored is not None
        stored.attributes["a"] = 2
        (found,) = await store.query_spans(attempted.rollout_id)
        assert found.attributes == {"a": 1}
