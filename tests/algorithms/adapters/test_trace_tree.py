"""Trees of spans: every span has one place, whatever the spans say about each other."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentlightning as agl
from agentlightning.algorithms.adapters.span_tree import Interval, enclosing
from agentlightning.algorithms.adapters.triplets import TraceTree
from agentlightning.core.model.span import Span

from .traces import answers, call, reward, span

MOMENTS = st.one_of(st.none(), st.integers(0, 6), st.sampled_from([float("nan"), float("inf"), -1.5]))


def names(tree: TraceTree) -> list[str]:
    return [node.span.name for node in tree.traverse()]


def test_children_keep_the_order_of_the_input_below_their_parent() -> None:
    root = span("root", 0, 9)
    tree = TraceTree.from_spans([span("b", 5, 6, parent=root), span("a", 1, 2, parent=root), root])
    assert tree.names_tuple() == ("root", [("b", []), ("a", [])])
    assert tree.id == root.span_id and (tree.start_time, tree.end_time) == (0, 9)
    found = tree.find_id(tree.children[1].id)
    assert found is not None and found.span.name == "a" and tree.find_id("nobody") is None
    assert [child["span"]["name"] for child in tree.to_json()["children"]] == ["b", "a"]


def test_an_absent_parent_lasts_as_long_as_its_children() -> None:
    tree = TraceTree.from_spans([span("a", 3, 4, parent="feed"), span("b", 1, 2, parent="feed")])
    assert tree.names_tuple() == ("agentlightning.virtual", [("a", []), ("b", [])])
    assert (tree.id, tree.start_time, tree.end_time) == ("feed", 1, 4)


def test_several_roots_get_one_above_them() -> None:
    tree = TraceTree.from_spans([span("a", 1, 2), span("b", 3, 4), span("c", 5, 6, parent="feed")])
    assert names(tree) == ["virtual-root", "a", "b", "agentlightning.virtual", "c"]
    assert (tree.id, tree.start_time, tree.end_time) == ("virtual-root", 1, 6)


@pytest.mark.parametrize("parents", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "c", "b": "a", "c": "b"}])
def test_a_circle_of_parents_is_cut_at_its_first_span(parents: dict[str, str]) -> None:
    spans = [span(name, 1, 2, id=name * 16, parent=parent * 16) for name, parent in parents.items()]
    adapter = agl.TracerTraceToTriplet(llm_call_match="^[abc]$")
    assert len(adapter(spans)) == 1, "calls below a call without an id are its own"
    assert adapter.oddities == {"circle of parents": 1}
    assert names(TraceTree.from_spans(spans))[0] == "a"


def test_a_span_stored_twice_counts_once_and_spans_without_ids_all_count() -> None:
    one = call("a", 1, 2)
    adapter = agl.TracerTraceToTriplet()
    assert answers(adapter([one, one.model_copy(), reward(0.5, 3)])) == [("a", 0.5)]
    assert adapter.oddities == {"span that was there already": 1}
    assert len(adapter([call("a", 1, 2, id="0" * 16), call("b", 3, 4, id="0" * 16)])) == 2


def test_attempts_of_one_rollout_keep_their_spans_apart() -> None:
    first, child = span("root", 0, 5), call("a", 1, 2, parent="feed")
    second = child.model_copy(
        update={"attempt_id": "at-2", "attributes": {**child.attributes, "gen_ai.response.id": "b"}}
    )
    tree = TraceTree.from_spans([first, child, second])
    assert len({node.id for node in tree.traverse()}) == len(tree.traverse())
    assert len(tree.to_trajectory()) == 2


def test_a_lost_child_goes_below_the_shortest_span_that_lasts_around_it() -> None:
    root, long, short = span("root", 0, 100), span("long", 1, 50), span("short", 10, 20)
    spans = [
        root,
        *(item.model_copy(update={"parent_id": root.span_id}) for item in (long, short, span("lost", 12, 15))),
    ]
    tree = TraceTree.from_spans(spans)
    tree.repair_hierarchy()
    assert tree.names_tuple() == ("root", [("long", [("short", [("lost", [])])])])


def test_equal_spans_and_spans_without_times_stay_where_they_are() -> None:
    tree = TraceTree.from_spans([span("a", 1, 2), span("b", 1, 2), span("c"), span("d", 1.2, None)])
    before = names(tree)
    tree.repair_hierarchy()
    assert names(tree) == before


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12), st.integers(0, 8), st.integers(0, 8))
def test_the_tightest_enclosing_interval_is_found(pairs: list[tuple[int, int]], low: int, high: int) -> None:
    intervals = [Interval(start, start + length, number) for number, (start, length) in enumerate(pairs)]
    end = low + high
    found = enclosing(intervals)(low, end, lambda number: number % 3 != 0)
    fits = [i for i in intervals if i.start <= low and i.end >= end and i.end - i.start > high and i.of % 3 != 0]
    assert (found is None) == (not fits)
    if fits:
        assert found in [i.of for i in fits]
        assert intervals[found].end - intervals[found].start == min(i.end - i.start for i in fits)


@st.composite
def traces(draw: st.DrawFn) -> list[Span]:
    ids = ["", "0" * 16, *(letter * 16 for letter in "abcdef")]
    return [
        span(
            draw(st.sampled_from(["openai.chat.completion", "step", "agentlightning.annotation"])),
            draw(MOMENTS),
            draw(MOMENTS),
            id=draw(st.sampled_from(ids)) or "0",
            parent=draw(st.sampled_from([None, *ids])),
        )
        for _ in range(draw(st.integers(1, 8)))
    ]


@settings(deadline=None)
@given(traces())
def test_every_span_has_exactly_one_place_before_and_after_a_repair(spans: list[Span]) -> None:
    tree = TraceTree.from_spans(spans)
    places = sorted(node.place for node in tree.traverse() if node.place >= 0)
    kept = [
        i
        for i, item in enumerate(spans)
        if not item.span_id.strip("0") or item.span_id not in [s.span_id for s in spans[:i]]
    ]
    assert places == kept
    tree.repair_hierarchy()
    assert sorted(node.place for node in tree.traverse() if node.place >= 0) == kept
    assert len({node.id for node in tree.traverse()}) >= len(kept)


def test_a_trace_may_be_deeper_than_the_interpreters_stack() -> None:
    depth = sys.getrecursionlimit() * 10
    spans = [
        span("step", i, 2 * depth - i, id=f"{i + 1:016x}", parent=f"{i:016x}" if i else None) for i in range(depth)
    ]
    spans.append(call("deep", depth, depth, parent=spans[-1]))
    assert answers(agl.TracerTraceToTriplet()(spans)) == [("deep", None)]
    assert TraceTree.from_spans(spans).names_tuple()[0] == "step"


@pytest.mark.parametrize("around", [[], [span("around", -1, 1e9)]])
def test_ten_thousand_calls_take_seconds(around: list[Span]) -> None:
    calls = [item for i in range(5000) for item in (call(str(i), 2 * i, 2 * i + 1), reward(i, 2 * i + 1.5))]
    began = time.process_time()
    triplets = agl.TracerTraceToTriplet()([*around, *calls])
    assert [triplet.reward for triplet in triplets] == list(range(5000))
    assert time.process_time() - began < 20
    same = [call(str(i), 1, 2) for i in range(5000)]
    assert len(agl.TracerTraceToTriplet()([*around, *same])) == 5000


def test_a_trace_is_drawn_with_graphviz(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    class Digraph:
        def node(self, id: str, name: str, **style: str) -> None:
            drawn.append((name, style))

        def edge(self, above: str, below: str) -> None:
            drawn.append("edge")

        def render(self, filename: str, **options: Any) -> None:
            drawn.append((filename, options["format"]))

    monkeypatch.setitem(sys.modules, "graphviz", SimpleNamespace(Digraph=Digraph))
    root = span("root", 0, 9)
    tree = agl.TracerTraceToTriplet().visualize([root, call("a", 1, 2, parent=root)], "trace", "openai")
    assert isinstance(tree, TraceTree) and tree.span is root
    filled = {"style": "filled"}
    assert drawn == [("root", {}), "edge", ("openai.chat.completion", filled), ("trace", "png")]


def test_drawing_without_graphviz_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(agl.OptionalDependencyError, match="pip install graphviz"):
        agl.TracerTraceToTriplet().visualize([span("root", 0, 9)])
