"""The spans of a trace as a tree, whatever is missing, doubled or turned in on itself."""

from __future__ import annotations

import importlib
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...core.errors import InvalidInput, OptionalDependencyError
from ...core.model.semconv import AGL_VIRTUAL
from ...core.model.span import Span

__all__ = ["VIRTUAL_ROOT", "Interval", "SpanTree", "enclosing", "finite"]

VIRTUAL_ROOT = "virtual-root"
"""Id and name of the node above several roots."""

Self = TypeVar("Self", bound="SpanTree")
Key = tuple[str, str, str]

# A covering interval is looked for among this many, those that began last first: enough for any
# nesting that people write, and a bound on what ten thousand spans with equal times can cost.
_MOST_CANDIDATES = 64


@dataclass(frozen=True)
class Interval:
    """From ``start`` to ``end``, and what it belongs to."""

    start: float
    end: float
    of: Any


def enclosing(intervals: Sequence[Interval]) -> Callable[[float, float, Callable[[Any], bool]], Any]:
    """A function ``(start, end, allowed)`` -> what the tightest interval strictly around it belongs to, or None.

    Strictly: it covers the given one and is longer. Of equals the one that began last.
    """
    ordered = sorted(intervals, key=lambda interval: interval.start)
    starts = [interval.start for interval in ordered]
    size = 1
    while size <= len(ordered):
        size *= 2
    # A tree of maxima: latest[1] is the latest end of all, latest[size + i] the end of the i-th.
    latest = [float("-inf")] * (2 * size)
    for index, interval in enumerate(ordered):
        latest[size + index] = interval.end
    for index in range(size - 1, 0, -1):
        latest[index] = max(latest[2 * index], latest[2 * index + 1])

    def before(limit: int, end: float) -> int:
        """The last index below ``limit`` whose interval ends at ``end`` or later; -1 without one."""
        index = size + limit
        while index > 1:
            if index % 2 and latest[index - 1] >= end:
                index -= 1
                while index < size:
                    index = 2 * index + (1 if latest[2 * index + 1] >= end else 0)
                return index - size
            index //= 2
        return -1

    def find(start: float, end: float, allowed: Callable[[Any], bool]) -> Any:
        best, best_slack = None, float("inf")
        index = bisect_right(starts, start)
        for _ in range(_MOST_CANDIDATES):
            # From here on every interval leaves at least this much room.
            index = before(index, end)
            if index < 0 or start - starts[index] >= best_slack:
                break
            candidate = ordered[index]
            slack = (start - candidate.start) + (candidate.end - end)
            if 0 < slack < best_slack and allowed(candidate.of):
                best, best_slack = candidate.of, slack
        return best

    return find


def finite(moment: float | None) -> float | None:
    """The time if it is one."""
    return moment if moment is not None and math.isfinite(moment) else None


class SpanTree:
    """A node: ``id`` (unique in its tree), ``span``, ``children`` in input order.

    ``place`` is the span's place in the input, -1 for a node that stands for an absent span.
    Nothing here recurses: a trace may be as deep as it likes.
    """

    def __init__(self, id: str, span: Span, children: Sequence[Any] | None = None, *, place: int = -1) -> None:
        self.id = id
        self.span = span
        self.children: list[Any] = list(children or ())
        self.place = place

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, name={self.span.name!r}, children={len(self.children)})"

    @property
    def start_time(self) -> float | None:
        """Unix seconds; None while unknown."""
        return finite(self.span.start_time)

    @property
    def end_time(self) -> float | None:
        """Unix seconds; None while unknown."""
        return finite(self.span.end_time)

    @classmethod
    def from_spans(cls: type[Self], spans: Sequence[Span], oddities: Counter[str] | None = None) -> Self:
        """The tree of the spans. ValueError without any span.

        A span stored twice counts once. The absent parent of a span becomes a node named
        ``agentlightning.virtual`` that lasts as long as its children; a circle is cut above the
        span that came first; several roots get one above them.
        """
        if not spans:
            raise InvalidInput("No spans provided to create TraceTree.")
        odd: Counter[str] = Counter() if oddities is None else oddities
        nodes, by_key = _nodes(cls, spans, odd)
        by_id: dict[str, Self] = {}
        for node in nodes:
            by_id.setdefault(node.span.span_id, node)
        parents: dict[int, Self] = {}
        absent: dict[str, Self] = {}
        for node in nodes:
            parent = node.span.parent_id
            if parent is None or not parent.strip("0"):
                continue
            found = by_key.get((*_owner(node.span), parent)) or by_id.get(parent) or absent.get(parent)
            if found is None:
                found = absent[parent] = cls(parent, _stand_in(node.span, parent))
            parents[node.place] = found
        _cut_circles(nodes, parents, odd)
        for node in nodes:
            if node.place in parents:
                parents[node.place].children.append(node)
        for node in absent.values():
            _span_children(node)
        roots = [node for node in nodes if node.place not in parents] + list(absent.values())
        if len(roots) == 1:
            return roots[0]
        top = cls(VIRTUAL_ROOT, _stand_in(roots[0].span, VIRTUAL_ROOT, VIRTUAL_ROOT), roots)
        _span_children(top)
        return top

    def add_child(self, child: Any) -> None:
        """Append a child."""
        self.children.append(child)

    def traverse(self: Self) -> list[Self]:
        """This node and all below it, parents before children, children in their order."""
        found: list[Self] = []
        pending = [self]
        while pending:
            node = pending.pop()
            found.append(node)
            pending.extend(reversed(node.children))
        return found

    def find_id(self: Self, id: str) -> Self | None:
        """The node with this id; None without one."""
        return next((node for node in self.traverse() if node.id == id), None)

    def names_tuple(self) -> tuple[str, list[Any]]:
        """The name, and the same of every child."""
        return self._folded(lambda node, below: (node.span.name, below))

    def to_json(self) -> dict[str, Any]:
        """``id``, ``span`` (dumped) and ``children`` of this node and all below it."""
        return self._folded(lambda node, below: {"id": node.id, "span": node.span.model_dump(), "children": below})

    def _folded(self, make: Callable[[SpanTree, list[Any]], Any]) -> Any:
        made: dict[int, Any] = {}
        for node in reversed(self.traverse()):
            made[id(node)] = make(node, [made[id(child)] for child in node.children])
        return made[id(self)]

    def may_hold(self, child: SpanTree) -> bool:
        """Whether a span whose parent was lost may be put below this one: the clock of another host proves nothing."""
        hosts = (_host(self.span), _host(child.span))
        return None in hosts or hosts[0] == hosts[1]

    def repair_hierarchy(self) -> None:
        """Put spans whose parent was lost below the span in whose time they happened.

        Works on the children of the first node that has several: each goes below the shortest
        other span that lasts strictly longer and covers it, unless that one is its own
        descendant, or may not hold it (:meth:`may_hold`); one child stays. Spans without times
        stay where they are.
        """
        top: SpanTree = self
        while len(top.children) == 1:
            top = top.children[0]
        if not top.children:
            return
        below = top.traverse()[1:]
        parents = {id(child): node for node in [top, *below] for child in node.children}
        known = [
            Interval(n.start_time, n.end_time, n) for n in below if n.start_time is not None and n.end_time is not None
        ]
        find = enclosing(known)
        staying = len(top.children)
        moved: set[int] = set()
        for child in list(top.children):
            if staying == 1:
                break
            start, end = child.start_time, child.end_time
            if start is None or end is None:
                continue
            parent = find(start, end, lambda node, child=child: node.may_hold(child) and not _is_below(node, child, parents))
            if parent is not None and parent is not top:
                parents[id(child)] = parent
                parent.children.append(child)
                moved.add(id(child))
                staying -= 1
        top.children = [child for child in top.children if id(child) not in moved]

    def visualize(self, filename: str, interested_span_match: str | None = None) -> None:
        """Draw the tree to ``<filename>.png``; spans whose name matches are filled.

        Needs Graphviz: its Python package (OptionalDependencyError without) and its program.
        """
        try:
            graphviz = importlib.import_module("graphviz")
        except ImportError as error:
            raise OptionalDependencyError("Drawing a trace", install="graphviz") from error
        graph = graphviz.Digraph()
        for node in self.traverse():
            filled = interested_span_match is not None and re.search(interested_span_match, node.span.name)
            graph.node(str(id(node)), node.span.name, **({"style": "filled"} if filled else {}))
            for child in node.children:
                graph.edge(str(id(node)), str(id(child)))
        graph.render(filename, format="png", cleanup=True)


def _owner(span: Span) -> tuple[str, str]:
    return span.rollout_id, span.attempt_id


def _nodes(cls: type[Self], spans: Sequence[Span], odd: Counter[str]) -> tuple[list[Self], dict[Key, Self]]:
    """One node a span. Ids of zeros are no ids: such spans are all different."""
    nodes: list[Self] = []
    by_key: dict[Key, Self] = {}
    taken: set[str] = set()
    for place, span in enumerate(spans):
        key = (*_owner(span), span.span_id)
        named = bool(span.span_id.strip("0"))
        if named and key in by_key:
            odd["span that was there already"] += 1
            continue
        # Attempts of one rollout, or spans without ids, must not share the id of a node.
        node_id = span.span_id if named and span.span_id not in taken else f"{span.span_id}#{place}"
        taken.add(node_id)
        node = cls(node_id, span, place=place)
        nodes.append(node)
        if named:
            by_key[key] = node
    return nodes, by_key


def _cut_circles(nodes: list[Self], parents: dict[int, Self], odd: Counter[str]) -> None:
    done: set[int] = set()
    for first in nodes:
        trail: list[int] = []
        seen: set[int] = set()
        node: SpanTree = first
        while node.place in parents and node.place not in done and node.place not in seen:
            seen.add(node.place)
            trail.append(node.place)
            node = parents[node.place]
        if node.place in seen:
            circle = trail[trail.index(node.place) :]
            del parents[min(circle)]
            odd["circle of parents"] += 1
        done.update(trail)


def _stand_in(child: Span, span_id: str, name: str = AGL_VIRTUAL) -> Span:
    return Span.from_attributes(
        attributes={},
        rollout_id=child.rollout_id,
        attempt_id=child.attempt_id,
        sequence_id=child.sequence_id,
        name=name,
        trace_id=child.trace_id,
        span_id=span_id,
    )


def _span_children(node: SpanTree) -> None:
    starts = [child.start_time for child in node.children if child.start_time is not None]
    ends = [child.end_time for child in node.children if child.end_time is not None]
    node.span.start_time = min(starts, default=None)
    node.span.end_time = max(ends, default=None)


def _host(span: Span) -> Any:
    attributes = span.resource.attributes
    return attributes.get("host.id") or attributes.get("host.name") or None


def _is_below(node: SpanTree, top: SpanTree, parents: dict[int, Any]) -> bool:
    """Whether ``node`` is ``top`` or below it."""
    current: SpanTree | None = node
    while current is not None:
        if current is top:
            return True
        current = parents.get(id(current))
    return False
