"""Filtering, sorting and paging against a naive reading of the same rules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from agentlightning.core.errors import InvalidInput
from agentlightning.core.model.query import compile_filter, page, sort_items
from agentlightning.core.model.rollout import Attempt, AttemptedRollout, Rollout, RolloutConfig, Worker

WORDS = ("", "a", "ab", "b", "ba")


class Thing(BaseModel):
    name: str | None = None
    kind: Literal["x", "y"] = "x"
    size: int | None = None
    weight: float | None = None
    end_time: float | None = None
    nested: dict[str, int] = {}
    tags: list[str] | None = None


@dataclass
class PlainThing:
    name: str | None
    end_time: float | None


things = st.lists(
    st.builds(
        Thing,
        name=st.none() | st.sampled_from(WORDS),
        kind=st.sampled_from(("x", "y")),
        size=st.none() | st.integers(-2, 2),
        end_time=st.none() | st.sampled_from((1.0, 2.0, 3.0)),
    ),
    max_size=12,
)
conditions = st.fixed_dictionaries(
    {},
    optional={
        "name": st.fixed_dictionaries(
            {},
            optional={
                "exact": st.none() | st.sampled_from(WORDS),
                "within": st.none() | st.lists(st.sampled_from(WORDS), max_size=3),
                "contains": st.none() | st.sampled_from(WORDS),
            },
        ),
        "size": st.fixed_dictionaries(
            {}, optional={"exact": st.integers(-2, 2), "within": st.lists(st.integers(-2, 2))}
        ),
    },
)


def verdicts(item: Thing, group: dict[str, dict[str, Any]]) -> list[bool]:
    """Each condition of the group, applied the slow and obvious way."""
    found: list[bool] = []
    for name, operations in group.items():
        value = getattr(item, name)
        for operation, operand in operations.items():
            if operand is None:
                continue
            if operation == "exact":
                found.append(value == operand)
            elif operation == "within":
                found.append(value in operand)
            else:
                found.append(value is not None and operand in value)
    return found


@given(
    items=things,
    optional=conditions,
    must=conditions,
    aggregate=st.sampled_from(("and", "or")),
    sort_by=st.sampled_from((None, "name", "kind", "size", "end_time")),
    sort_order=st.sampled_from(("asc", "desc")),
    limit=st.integers(-1, 5),
    offset=st.integers(0, 15),
)
def test_a_page_is_what_a_naive_reading_of_the_rules_gives(
    items: list[Thing],
    optional: dict[str, Any],
    must: dict[str, Any],
    aggregate: str,
    sort_by: str | None,
    sort_order: str,
    limit: int,
    offset: int,
) -> None:
    combine = all if aggregate == "and" else any
    expected = [
        item
        for item in items
        if all(verdicts(item, must)) and (not verdicts(item, optional) or combine(verdicts(item, optional)))
    ]
    total = len(expected)
    if sort_by is not None:
        # Insertion sort keeps equal items in place, whatever the direction.
        ordered: list[Thing] = []
        for item in expected:
            at = len(ordered)
            while at > 0 and comes_before(item, ordered[at - 1], sort_by, sort_order):
                at -= 1
            ordered.insert(at, item)
        expected = ordered
    expected = expected[offset:] if limit == -1 else expected[offset : offset + limit]

    result = page(
        items,
        filters={**optional, "_must": must, "_aggregate": aggregate},
        sort_by=sort_by,
        sort_order=sort_order,
        limit=limit,
        offset=offset,
        model=Thing,
    )

    assert [id(item) for item in result] == [id(item) for item in expected]
    assert (result.total, result.limit, result.offset) == (total, limit, offset)


def comes_before(one: Thing, other: Thing, field: str, order: str) -> bool:
    a: Any
    b: Any
    if field == "end_time":
        last = math.inf if order == "asc" else -math.inf
        a, b = (last if thing.end_time is None else thing.end_time for thing in (one, other))
    else:
        a, b = (getattr(thing, field) or ("" if field in ("name", "kind") else 0) for thing in (one, other))
    return a < b if order == "asc" else a > b


@pytest.mark.parametrize("aggregate", ["and", "or"])
@pytest.mark.parametrize("empty", [{}, {"name": {}}, {"name": {"exact": None, "within": None}}, {"_must": []}])
def test_no_condition_matches_everything(aggregate: str, empty: dict[str, Any]) -> None:
    items = [Thing(name="a"), Thing()]
    assert list(page(items, filters={**empty, "_aggregate": aggregate}, model=Thing)) == items
    assert compile_filter({**empty, "_aggregate": aggregate}, model=Thing) is None


def test_an_empty_whitelist_matches_nothing() -> None:
    assert len(page([Thing(name="a")], filters={"name": {"within": []}}, model=Thing)) == 0


def test_a_whitelist_may_hold_values_without_a_hash() -> None:
    items = [Thing(nested={"a": 1}), Thing()]
    assert list(page(items, filters={"nested": {"within": [{"a": 1}]}}, model=Thing)) == items[:1]


def test_contains_looks_into_lists_and_never_matches_an_unset_value() -> None:
    items = [Thing(tags=["red"]), Thing(tags=["blue"]), Thing()]
    assert list(page(items, filters={"tags": {"contains": "red"}}, model=Thing)) == items[:1]


def test_must_groups_hold_beside_an_or() -> None:
    items = [Thing(name="a", size=1), Thing(name="b", size=1), Thing(name="a", size=2), Thing(name="ba", size=1)]
    filters: dict[str, Any] = {
        "_aggregate": "or",
        "_must": [{"size": {"exact": 1}}, {"kind": {"exact": "x"}}],
        "name": {"exact": "a", "contains": "ba"},
    }
    assert list(page(items, filters=filters, model=Thing)) == [items[0], items[3]]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_an_unset_time_comes_last_in_both_directions(order: str) -> None:
    items = [
        Thing(end_time=None, name="first"),
        Thing(end_time=2.0),
        Thing(end_time=None, name="second"),
        Thing(end_time=1.0),
    ]
    result = sort_items(items, sort_by="end_time", sort_order=order, model=Thing)
    assert [item.name for item in result[2:]] == ["first", "second"]
    assert [item.end_time for item in result[:2]] == ([1.0, 2.0] if order == "asc" else [2.0, 1.0])


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_equal_items_keep_their_stored_order_in_both_directions(order: str) -> None:
    items = [Thing(size=1, name=name) for name in "abc"]
    assert sort_items(items, sort_by="size", sort_order=order, model=Thing) == items


def test_limit_zero_counts_and_an_offset_beyond_the_end_is_empty() -> None:
    items = [Thing(), Thing()]
    assert (len(page(items, limit=0, model=Thing)), page(items, limit=0, model=Thing).total) == (0, 2)
    assert (len(page(items, offset=9, model=Thing)), page(items, offset=9, model=Thing).total) == (0, 2)


def test_plain_objects_are_paged_like_models() -> None:
    items = [PlainThing("b", None), PlainThing("a", 1.0)]
    assert list(page(items, sort_by="name", model=PlainThing)) == items[::-1]
    assert list(page(items, filters={"name": {"exact": "a"}}, model=PlainThing)) == items[1:]
    with pytest.raises(ValueError, match="field does not exist on PlainThing"):
        page(items, sort_by="size", model=PlainThing)


def test_a_page_of_rollouts_may_mix_both_kinds() -> None:
    plain = Rollout(rollout_id="r1", input=None, start_time=2.0)
    attempt = Attempt(rollout_id="r2", attempt_id="a", sequence_id=1, start_time=1.0)
    attempted = AttemptedRollout(rollout_id="r2", input=None, start_time=1.0, attempt=attempt)
    result = page([plain, attempted], sort_by="start_time", model=Rollout)
    assert list(result) == [attempted, plain]
    assert '"attempt":{' in result.model_dump_json()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"sort_by": "f"}, "Failed to sort items by 'f': field does not exist on Thing"),
        ({"sort_by": "nested"}, "Failed to sort items by 'nested'"),
        ({"sort_by": "tags"}, "Failed to sort items by 'tags'"),
        ({"sort_order": "up"}, "'asc' or 'desc'"),
        ({"sort_by": "name", "sort_order": "up"}, "'asc' or 'desc'"),
        ({"limit": -2}, "limit"),
        ({"offset": -1}, "offset"),
        ({"filters": {"f": {"exact": 1}}}, "Failed to filter items by 'f'"),
        ({"filters": {"name": {"starts": "a"}}}, "starts"),
        ({"filters": {"_aggregate": "xor"}}, "xor"),
        ({"filters": {"_must": [{"name": {"exact": "a"}}, {"name": {"exact": "b"}}]}}, "two conditions"),
        ({"filters": {"size": {"contains": "a"}}}, "no parts"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        page([Thing(size=1)], model=Thing, **arguments)


@pytest.mark.parametrize("filters", [{"_must": 3}, {"_must": "name"}, {"_must": [3]}, {"name": "a"}])
def test_a_filter_of_the_wrong_shape_is_a_type_error(filters: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        page([Thing()], filters=filters, model=Thing)


def test_sorting_is_refused_by_type_and_not_by_what_is_there() -> None:
    with pytest.raises(ValueError, match="config"):
        page([], sort_by="config", model=Rollout)


@pytest.mark.parametrize("model", [Rollout, Attempt, Worker, RolloutConfig])
def test_every_time_and_id_of_the_public_models_can_be_sorted_by(model: type[BaseModel]) -> None:
    names = [n for n in model.model_fields if n.endswith(("_time", "_id", "_seconds")) or n == "status"]
    assert names
    for name in names:
        assert sort_items([], sort_by=name, model=model) == []
