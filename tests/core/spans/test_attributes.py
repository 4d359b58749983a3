"""Attributes, tags and links: what goes in comes out, and no value makes a span fail."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentlightning as agl
from agentlightning.core.model.span import Span
from agentlightning.core.spans.attributes import (
    check_attributes_sanity,
    flatten_attributes,
    format_exception_attributes,
    sanitize_attribute_value,
    sanitize_list_attribute_sanity,
    unflatten_attributes,
)
from agentlightning.core.spans.links import (
    extract_links_from_attributes,
    extract_tags_from_attributes,
    make_link_attributes,
    make_tag_attributes,
    query_linked_spans,
)

KEYS = st.text("ab", min_size=1, max_size=2)
LEAVES = st.one_of(st.text(max_size=3), st.integers(), st.booleans())
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, min_size=1, max_size=3),
        st.lists(st.dictionaries(KEYS, inner, min_size=1, max_size=2), min_size=1, max_size=2),
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(KEYS, NESTED, max_size=3))
def test_nested_values_come_back(nested: dict[str, Any]) -> None:
    assert unflatten_attributes(flatten_attributes(nested, expand_leaf_lists=True)) == nested


@settings(deadline=None)
@given(st.dictionaries(st.text("a0.", max_size=12), st.integers()))
def test_no_set_of_keys_makes_unflatten_fail(flat: dict[str, int]) -> None:
    unflatten_attributes(flat)


def test_keys_win_over_a_value_at_the_same_place_in_any_order() -> None:
    assert unflatten_attributes({"a": 1, "a.b": 2}) == {"a": {"b": 2}} == unflatten_attributes({"a.b": 2, "a": 1})


def test_depth_has_a_bound_and_no_recursion_error() -> None:
    unflatten_attributes({"a" + ".a" * 100_000: 1})
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(ValueError, match="64 levels"):
        flatten_attributes(endless)


def test_an_operation_takes_any_argument() -> None:
    class Silent:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    endless: list[Any] = []
    endless.append(endless)
    with agl.operation(propagate=False) as block:
        block.set_input(Silent(), {(1, 2): {3}}, endless=endless)
        block.set_output(Silent())
    assert "Silent that cannot be written" in str(block.span().attributes["agentlightning.operation.output"])


def test_an_exception_without_words_is_recorded() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    attributes = format_exception_attributes(Silent())
    assert attributes["exception.type"] == "Silent" and "cannot be written" in str(attributes["exception.message"])
    agl.emit_exception(Silent(), propagate=False)


def test_lists_become_lists_of_one_type() -> None:
    assert sanitize_list_attribute_sanity([1, 2.5]) == [1.0, 2.5]
    assert sanitize_list_attribute_sanity([True, False]) == [True, False]
    assert sanitize_list_attribute_sanity(["a"]) == ["a"]
    for mixed in ([1, "a"], [True, 1.5], [None]):
        with pytest.raises(ValueError):
            sanitize_list_attribute_sanity(mixed)
    assert sanitize_attribute_value([1, "a"]) == '[1, "a"]'
    with pytest.raises(ValueError, match="'k'"):
        check_attributes_sanity({"k": {"a": 1}})


def test_a_list_of_mixed_types_is_expanded_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert flatten_attributes({"a": [1, 2.5]}) == {"a.0": 1, "a.1": 2.5}
    assert "'a'" in caplog.text


def test_tags_come_back_in_order() -> None:
    tags = [f"tag {number}" for number in range(12)]
    assert extract_tags_from_attributes(make_tag_attributes(tags)) == tags
    assert extract_tags_from_attributes({"agentlightning.tag.3": "b", "agentlightning.tag.1": "a", "x": "c"}) == [
        "a",
        "b",
    ]
    assert extract_tags_from_attributes({"agentlightning.tag": "whole", "agentlightning.tag.0": 7}) == []


def test_links_find_the_spans_that_match_all_of_them() -> None:
    one = Span.from_attributes(attributes={"gen_ai.response.id": "r-1", "n": "1"})
    two = Span.from_attributes(attributes={"gen_ai.response.id": "r-1", "n": "2"})
    attributes = make_link_attributes({"gen_ai.response.id": "r-1", "n": "2"})
    links = extract_links_from_attributes(attributes)
    assert query_linked_spans([one, two], links) == [two]
    assert query_linked_spans([one, two], []) == [one, two]
    by_id = extract_links_from_attributes(make_link_attributes({"span_id": one.span_id, "trace_id": one.trace_id}))
    assert query_linked_spans([one, two], by_id) == [one]
    assert extract_links_from_attributes({"agentlightning.link.0.key_match": "lonely"}) == []
    wrong: Any = {"a": 1}
    with pytest.raises(ValueError):
        make_link_attributes(wrong)
