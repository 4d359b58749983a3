"""Model calls: which spans of a trace are one and the same call of a model, seen by several instrumentations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..model.span import Span
from .conventions import Role, call_role, completion_of, listed, prompt_of, response_id_of

__all__ = ["Candidate", "candidates_of", "distinct_calls", "source_of"]

_TOKENS = ("response_token_ids", "prompt_token_ids")


@dataclass(frozen=True)
class Candidate:
    """A span that may be a model call. ``enclosing``: the place of the nearest candidate around it, None without one.

    ``around``: it lasts around calls, as an agent's run does, and is one itself only where there is none below it.
    """

    span: Span
    enclosing: int | None = None
    around: bool = False


@dataclass(eq=False)
class _Group:
    """Candidates that are one call, by their places, and the id of its answer where one of them has it."""

    members: list[int]
    answer: str | None = None


def candidates_of(spans: Sequence[Span], also: Callable[[Span], Role | None] | None = None) -> list[Candidate]:
    """The spans that say of themselves to be calls, or around calls, in their order; parents are found by their ids.

    ``also`` says it of further spans. One that is stored twice counts once.
    """
    roles: dict[int, Role] = {}
    places: dict[tuple[str, str, str], int] = {}
    for place, span in enumerate(spans):
        first = places.setdefault((span.rollout_id, span.attempt_id, span.span_id), place)
        role = call_role(span) or (also(span) if also is not None else None)
        if role is not None and (first == place or not span.span_id.strip("0")):
            roles[place] = role
    order = {place: number for number, place in enumerate(roles)}
    found: list[Candidate] = []
    for place, role in roles.items():
        above = _above(spans, places, place, roles)
        found.append(Candidate(spans[place], None if above is None else order[above], role == "around"))
    return found


def _above(
    spans: Sequence[Span], places: Mapping[tuple[str, str, str], int], place: int, wanted: Mapping[int, Any]
) -> int | None:
    """The place of the nearest wanted span above the one at ``place``; a circle of parents ends the search."""
    seen = {place}
    current = spans[place]
    while current.parent_id is not None:
        above = places.get((current.rollout_id, current.attempt_id, current.parent_id))
        if above is None or above in seen:
            return None
        if above in wanted:
            return above
        seen.add(above)
        current = spans[above]
    return None


def distinct_calls(candidates: Sequence[Candidate], odd: Counter[str] | None = None) -> list[int]:
    """The places of one span of each call, in order: the one with token ids, or else the outermost.

    One call are a span and those below it that have the id of its answer, or no id; a span without an id around
    several calls is none itself. One call, too, are spans that share the id of the answer unless one had ended before
    the other began and their messages differ (some servers draw ids from few), and spans of two instrumentations
    that lie within each other in time and hold the same messages.
    """
    groups = _nested(candidates)
    groups = _with_one_id(groups, candidates, Counter() if odd is None else odd)
    groups = _of_two_sources(groups, candidates)
    return sorted(max(group.members, key=lambda place: _rank(candidates, place)) for group in groups)


def _rank(candidates: Sequence[Candidate], place: int) -> tuple[Any, ...]:
    candidate = candidates[place]
    tokens = [bool(candidate.span.attributes.get(key)) for key in _TOKENS]
    return *tokens, not candidate.around, bool(completion_of(candidate.span)), -place


def _nested(candidates: Sequence[Candidate]) -> list[_Group]:
    """Merge along the lines of parents, from the innermost outwards."""
    children: dict[int | None, list[int]] = defaultdict(list)
    for place, candidate in enumerate(candidates):
        children[candidate.enclosing].append(place)
    outwards: list[int] = []
    visited: set[int] = set()
    tops: list[int] = []
    # Those of a circle of parents are below none of the first; the one that came first is a top then.
    for top in [*children[None], *range(len(candidates))]:
        if top in visited:
            continue
        tops.append(top)
        pending = [top]
        while pending:
            place = pending.pop()
            if place not in visited:
                visited.add(place)
                outwards.append(place)
                pending.extend(children[place])
    below: dict[int, list[_Group]] = {}
    for place in reversed(outwards):
        inner = [group for child in children[place] for group in below.pop(child, ())]
        below[place] = _around(place, candidates[place], inner)
    return [group for place in tops for group in below.pop(place, ())]


def _around(place: int, candidate: Candidate, inner: list[_Group]) -> list[_Group]:
    """The calls at a candidate and below it."""
    answer = None if candidate.around else response_id_of(candidate.span)
    if answer is None:
        if len(inner) > 1:
            return inner
        if inner:
            inner[0].members.append(place)
            return inner
        return [_Group([place])]
    mine = [group for group in inner if group.answer in (None, answer)]
    others = [group for group in inner if group.answer not in (None, answer)]
    return [_Group([place, *(member for group in mine for member in group.members)], answer), *others]


def _with_one_id(groups: list[_Group], candidates: Sequence[Candidate], odd: Counter[str]) -> list[_Group]:
    found: list[_Group] = []
    first: dict[str, _Group] = {}
    for group in sorted(groups, key=lambda group: min(group.members)):
        known = first.setdefault(group.answer, group) if group.answer is not None else group
        if known is not group:
            one, other = candidates[min(known.members)].span, candidates[min(group.members)].span
            if not _apart(one, other) or _messages(one) == _messages(other):
                known.members += group.members
                continue
            odd["answer id that two different model calls share"] += 1
        found.append(group)
    return found


def _apart(one: Span, other: Span) -> bool:
    """Whether one had ended when the other began."""
    a, b, c, d = one.start_time, one.end_time, other.start_time, other.end_time
    return a is not None and b is not None and c is not None and d is not None and (max(a, b) <= c or max(c, d) <= a)


def _messages(span: Span) -> tuple[Any, Any]:
    return prompt_of(span), completion_of(span)


def _of_two_sources(groups: list[_Group], candidates: Sequence[Candidate]) -> list[_Group]:
    """Merge calls that two instrumentations recorded beside each other."""
    if len({source_of(candidates[group.members[0]].span) for group in groups}) < 2:
        return groups
    found: list[_Group] = []
    alike: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        span = candidates[group.members[0]].span
        text = _answer_text(span)
        twin = next((one for one in alike[text] if _is_twin(one, group, candidates)), None) if text else None
        if twin is None:
            found.append(group)
            alike[text].append(group)
        else:
            twin.members += group.members
            twin.answer = twin.answer or group.answer
    return found


def _is_twin(one: _Group, other: _Group, candidates: Sequence[Candidate]) -> bool:
    a, b = candidates[one.members[0]].span, candidates[other.members[0]].span
    if None not in (one.answer, other.answer) or source_of(a) == source_of(b):
        return False
    times = (a.start_time, a.end_time, b.start_time, b.end_time)
    if any(moment is None for moment in times):
        return False
    start, end, begin, finish = cast("tuple[float, float, float, float]", times)
    return (start <= begin and finish <= end) or (begin <= start and end <= finish)


def source_of(span: Span) -> str:
    """The instrumentation that made the span."""
    scope = getattr(span, "instrumentation_scope", None)
    return str(cast("dict[str, Any]", scope).get("name", "")) if isinstance(scope, dict) else ""


def _answer_text(span: Span) -> str:
    """The first answer's text, in whatever convention; empty without one."""
    answers = listed(completion_of(span))
    first = answers[0] if answers else None
    content = cast("dict[str, Any]", first).get("content") if isinstance(first, dict) else None
    return content if isinstance(content, str) else ""
