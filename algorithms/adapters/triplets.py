"""Triplets from traces: the model calls of a trace, each as prompt, response and the reward that belongs to it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel

from ...core.errors import InvalidInput
from ...core.model.rollout import Triplet
from ...core.model.span import Span
from ...core.spans.conventions import call_role, exchange_of
from ...core.spans.model_calls import Candidate, distinct_calls, source_of
from ...core.spans.rewards import get_reward_value
from . import span_fields
from .base import TraceAdapter, as_spans
from .span_tree import SpanTree

__all__ = [
    "LLM_CALL_MATCH",
    "RewardMatchPolicy",
    "TraceToTripletBase",
    "TraceTree",
    "TraceTripletAdapter",
    "TracerTraceToTriplet",
    "Transition",
    "TripletExporter",
]

LLM_CALL_MATCH = r"openai\.chat\.completion"
"""Pattern of the names of spans that are model calls, unless another is given."""


class RewardMatchPolicy(str, Enum):
    """Which model call a reward belongs to.

    FIRST_OCCURRENCE: the latest call that had ended when the reward was given and has none yet.
    FIRST_SIBLING: the same, among the calls that share the reward's parent.
    """

    FIRST_OCCURRENCE = "first_occurrence"
    FIRST_SIBLING = "first_sibling"


class Transition(BaseModel):
    """A step in token ids: ``state`` is the prompt, ``action`` the answer."""

    state: list[int]
    action: list[int]
    response_id: str | None
    agent_name: str
    reward: float | None


@dataclass(frozen=True)
class _Walk:
    """What is known above a node: the label of its agent, and what it is inside of (of a call: its place)."""

    label: str | None
    in_reward: bool = False
    in_call: int | None = None


@dataclass(frozen=True)
class _Moment:
    """A node with its effective times: those of the spans before it where it has none."""

    node: TraceTree
    start: float
    end: float


class TraceTree(SpanTree):
    """A tree of spans that knows which of them are model calls and which are rewards."""

    def agent_name(self) -> str | None:
        """The agent whose work this span is; None where it does not say."""
        return span_fields.agent_name(self.span)

    def is_reward_span(self) -> bool:
        """Whether the span is a reward, or the work of a function that computes one."""
        return span_fields.is_reward(self.span)

    def find_llm_calls(
        self,
        *,
        llm_call_match: str = LLM_CALL_MATCH,
        agent_match: str | None = None,
        within_matching_subtree: str | None = None,
        within_reward: bool | None = False,
        within_llm_call: bool | None = False,
        existing_llm_call_response_ids: set[str] | None = None,
        exclude_llm_call_in_reward: bool = True,
        dedup_llm_call: bool = True,
        oddities: Counter[str] | None = None,
    ) -> list[tuple[TraceTree, str]]:
        """The model calls in pre-order, each with the label of its agent (``*`` outside of any).

        Unless a pattern of the caller's own says which names count, a span that says of itself to be a model call in
        one of the known conventions is one whatever its name. ``agent_match`` leaves only calls below an agent whose
        name matches; an agent's name holds for what is below it. ``dedup_llm_call``: of several spans of one call one
        counts (see ``distinct_calls`` in model_calls.py).

        What older releases called it: ``within_matching_subtree`` is the label of calls outside of any agent,
        ``within_reward`` None means not ``exclude_llm_call_in_reward`` and True that no call counts,
        ``within_llm_call`` None means not ``dedup_llm_call``, and calls whose answer's id is among
        ``existing_llm_call_response_ids`` are left out; the ids found are added to it.
        """
        label = within_matching_subtree or ("*" if agent_match is None else None)
        start = _Walk(label, within_reward is True)
        excluding = exclude_llm_call_in_reward and within_reward is not None
        places, candidates, labels = self._candidates(start, llm_call_match, agent_match, excluding)
        kept = range(len(candidates))
        if dedup_llm_call and within_llm_call is not None:
            kept = distinct_calls(candidates, oddities)
        known = existing_llm_call_response_ids
        found: list[tuple[TraceTree, str]] = []
        for place in kept:
            if not self._counts(candidates[place], llm_call_match, oddities):
                continue
            answer = span_fields.response_id(candidates[place].span)
            if known is not None and answer is not None:
                if answer in known:
                    continue
                known.add(answer)
            found.append((places[place], labels[place]))
        return found

    def _counts(self, candidate: Candidate, llm_call_match: str, odd: Counter[str] | None) -> bool:
        """Whether a triplet can be made of it: one whose name was not asked for has to hold messages."""
        span = candidate.span
        if re.search(llm_call_match, span.name) or span_fields.prompt_of(span) or span_fields.completion_of(span):
            return True
        if odd is not None and not candidate.around:
            odd["model call of which no message could be read"] += 1
            odd.update(exchange_of(span).unread)
        return False

    def _candidates(
        self, start: _Walk, llm_call_match: str, agent_match: str | None, exclude_llm_call_in_reward: bool
    ) -> tuple[list[TraceTree], list[Candidate], list[str]]:
        """The nodes that may be model calls, in pre-order, and their labels."""
        nodes: list[TraceTree] = []
        candidates: list[Candidate] = []
        labels: list[str] = []
        pending: list[tuple[TraceTree, _Walk]] = [(self, start)]
        while pending:
            node, walk = pending.pop()
            enclosing = walk.in_call
            named = re.search(llm_call_match, node.span.name) is not None
            role = call_role(node.span) if not named and llm_call_match == LLM_CALL_MATCH else None
            if walk.label is not None and not walk.in_reward and (named or role is not None):
                enclosing = len(candidates)
                nodes.append(node)
                candidates.append(Candidate(node.span, walk.in_call, role == "around"))
                labels.append(walk.label)
            label, name = walk.label, node.agent_name()
            if name is not None:
                label = name if agent_match is None or re.search(agent_match, name) else None
            in_reward = walk.in_reward or (exclude_llm_call_in_reward and node.is_reward_span())
            pending.extend((child, _Walk(label, in_reward, enclosing)) for child in reversed(node.children))
        return nodes, candidates, labels

    def match_rewards(
        self,
        reward_match: str | RewardMatchPolicy,
        llm_calls: Sequence[TraceTree],
        oddities: Counter[str] | None = None,
    ) -> dict[str, float | None]:
        """Id of a call -> the reward that counts; calls without one are absent."""
        return {node: rewards[-1] for node, rewards in self._rewards(reward_match, llm_calls, oddities).items()}

    def _rewards(
        self,
        reward_match: str | RewardMatchPolicy,
        llm_calls: Sequence[TraceTree],
        oddities: Counter[str] | None = None,
    ) -> dict[str, list[float]]:
        """Id of a call -> its rewards, the one that counts last.

        There are two only where the final reward of a trace, the one that ``find_final_reward`` reports, found no call
        that had ended before it and had none (FIRST_OCCURRENCE): it is then the latest earlier call's.
        """
        odd: Counter[str] = Counter() if oddities is None else oddities
        nodes = self.traverse()
        moments = _moments(nodes)
        calls = {id(node) for node in llm_calls}
        if RewardMatchPolicy(reward_match) is RewardMatchPolicy.FIRST_OCCURRENCE:
            ordered = sorted(moments.values(), key=lambda moment: (moment.start, moment.node.place))
            found, without = _matched(ordered, calls, odd)
            _place_final(found, without, ordered, calls, odd)
            return found
        siblings: dict[str, list[float]] = {}
        for group in [[self], *(node.children for node in nodes)]:
            siblings.update(_matched([moments[id(child)] for child in group], calls, odd)[0])
        return siblings

    def may_hold(self, child: SpanTree) -> bool:
        """As for any span; and two calls that one instrumentation recorded are none within the other."""
        return super().may_hold(child) and not (
            _is_call(self.span) and _is_call(child.span) and source_of(self.span) == source_of(child.span)
        )

    def maybe_reward_dict(self) -> dict[str, Any]:
        """``{"type": "reward", "value": ...}`` of a reward span, ``{}`` of any other, as older releases had it."""
        value = get_reward_value(self.span)
        return {} if value is None else {"type": "reward", "value": value}

    def span_to_triplet(self, span: Span, agent_name: str) -> Triplet:
        """The triplet of a model call, without its reward; a subclass may override it."""
        return _triplet(span, agent_name, Counter())

    def extract_prompt_image_urls(self, prompt: Any) -> list[str]:
        """The URLs of the images in messages, in order."""
        return span_fields.image_urls(prompt)

    def to_trajectory(
        self,
        agent_match: str | None = None,
        llm_call_match: str = LLM_CALL_MATCH,
        exclude_llm_call_in_reward: bool = True,
        dedup_llm_call: bool = True,
        reward_match: str | RewardMatchPolicy = RewardMatchPolicy.FIRST_OCCURRENCE,
        final_reward: float | None = None,
        _skip_empty_token_spans: bool = False,
        *,
        oddities: Counter[str] | None = None,
    ) -> list[Triplet]:
        """One triplet a model call, in pre-order; ``final_reward`` is the last one's, whatever it had."""
        odd: Counter[str] = Counter() if oddities is None else oddities
        calls = self.find_llm_calls(
            llm_call_match=llm_call_match,
            agent_match=agent_match,
            exclude_llm_call_in_reward=exclude_llm_call_in_reward,
            dedup_llm_call=dedup_llm_call,
            oddities=odd,
        )
        if not calls:
            self._say_unmatched(odd)
        made: list[tuple[TraceTree, Triplet]] = []
        for node, label in calls:
            triplet = _triplet(node.span, label, odd)
            if _skip_empty_token_spans and not (triplet.prompt["token_ids"] and triplet.response["token_ids"]):
                odd["model call without token ids"] += 1
                continue
            made.append((node, triplet))
        # A call that is left out takes no reward away from those that are kept.
        rewards = self._rewards(reward_match, [node for node, _ in made], odd)
        for node, triplet in made:
            own = rewards.get(node.id, [])
            triplet.reward = own[-1] if own else None
            if len(own) > 1:
                triplet.metadata["intermediate_rewards"] = own[:-1]
        if made and final_reward is not None:
            made[-1][1].reward = final_reward
        return [triplet for _, triplet in made]

    def _say_unmatched(self, odd: Counter[str]) -> None:
        for node in self.traverse():
            if span_fields.looks_like_model_call(node.span):
                odd[f"answer of a model in a span named {node.span.name[:80]!r}, which was not asked for"] += 1


def _is_call(span: Span) -> bool:
    return call_role(span) == "call" or re.search(LLM_CALL_MATCH, span.name) is not None


def _moments(nodes: Sequence[TraceTree]) -> dict[int, _Moment]:
    """Effective times. A span without times stands where the input has it: right after the one before."""
    moments: dict[int, _Moment] = {}
    last = float("-inf")
    for node in sorted(nodes, key=lambda node: node.place):
        start, end = node.start_time, node.end_time
        start = end if start is None else start
        start = last if start is None else start
        end = start if end is None else max(start, end)
        if node.place >= 0:
            last = end
        moments[id(node)] = _Moment(node, start, end)
    return moments


def _matched(
    ordered: Sequence[_Moment], calls: set[int], odd: Counter[str]
) -> tuple[dict[str, list[float]], dict[int, float]]:
    """Rewards by the ids of calls, and by the places of spans where no call was free for one."""
    found: dict[str, list[float]] = {}
    without: dict[int, float] = {}
    waiting: list[_Moment] = []
    for moment in ordered:
        reward = span_fields.reward_of(moment.node.span, odd)
        if reward is not None:
            place = _latest(waiting, moment.start)
            if place is None:
                odd["reward without a model call of its own"] += 1
                without[moment.node.place] = reward
            else:
                found[waiting.pop(place).node.id] = [reward]
        if id(moment.node) in calls:
            waiting.append(moment)
    return found, without


def _place_final(
    found: dict[str, list[float]],
    without: Mapping[int, float],
    ordered: Sequence[_Moment],
    calls: set[int],
    odd: Counter[str],
) -> None:
    """The last reward in the order of the input, where no call was free for it, is the latest call's before it.

    The order is the store's, by which `find_final_reward` goes too: the clocks of two hosts may disagree.
    """
    final = max((one.node.place for one in ordered if span_fields.reward_of(one.node.span, Counter()) is not None), default=-1)
    if final not in without:
        return
    earlier = [one for one in ordered if id(one.node) in calls and one.node.place < final]
    last = max(earlier, key=lambda one: one.node.place, default=None)
    if last is not None:
        odd["reward without a model call of its own"] -= 1
        found.setdefault(last.node.id, []).append(without[final])


def _latest(moments: Sequence[_Moment], start: float) -> int | None:
    """The place of the last one that had ended by then."""
    return next((i for i in range(len(moments) - 1, -1, -1) if moments[i].end <= start), None)


def _triplet(span: Span, label: str, odd: Counter[str]) -> Triplet:
    prompt = span_fields.prompt_of(span)
    response: dict[str, Any] = {
        "token_ids": span_fields.response_token_ids(span, odd),
        "raw_content": span_fields.completion_of(span),
    }
    logprobs = span_fields.logprobs_of(span, odd)
    if logprobs is not None:
        response["logprobs"] = logprobs
    metadata: dict[str, Any] = {
        "request": span_fields.nested(span.attributes, "gen_ai.request"),
        "response": span_fields.nested(span.attributes, "gen_ai.response"),
        "response_id": span_fields.response_id(span),
        "agent_name": label,
    }
    return Triplet(
        prompt={
            "token_ids": span_fields.prompt_token_ids(span, odd),
            "raw_content": prompt,
            "image_urls": span_fields.image_urls(prompt),
        },
        response=response,
        metadata=metadata,
    )


class TraceToTripletBase(TraceAdapter[list[Triplet]]):
    """An adapter that makes triplets."""


class TracerTraceToTriplet(TraceToTripletBase):
    """One triplet a model call of a trace, in the order of the tree (pre-order).

    ``prompt`` has ``token_ids``, ``raw_content`` and ``image_urls``, ``response`` has
    ``token_ids``, ``raw_content`` and, where the span has them, ``logprobs``; token ids are empty
    where the server gave none. ``reward`` is None where the trace has none for the call.
    ``metadata``: ``request``, ``response``, ``response_id``, ``agent_name``, and
    ``intermediate_rewards`` where the final reward took the place of earlier ones.

    Args:
        repair_hierarchy: put spans whose parent was lost below the span in whose time they happened.
        llm_call_match: pattern (``re.search``) of the names of spans that are model calls.
        agent_match: pattern of the agents whose calls count; None: all calls.
        exclude_llm_call_in_reward: leave out calls below a reward span, such as a judge's.
        reward_match: which call a reward belongs to.
        _skip_empty_token_spans: leave out calls without token ids of prompt or response.

    ValueError for a pattern that is none.
    """

    def __init__(
        self,
        repair_hierarchy: bool = True,
        llm_call_match: str = LLM_CALL_MATCH,
        agent_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        reward_match: RewardMatchPolicy | str = RewardMatchPolicy.FIRST_OCCURRENCE,
        _skip_empty_token_spans: bool = False,
    ) -> None:
        for name, pattern in (("llm_call_match", llm_call_match), ("agent_match", agent_match)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise InvalidInput(f"{name} is no regular expression: {error}") from None
        self.repair_hierarchy = repair_hierarchy
        self.llm_call_match = llm_call_match
        self.agent_match = agent_match
        self.exclude_llm_call_in_reward = exclude_llm_call_in_reward
        self.reward_match = RewardMatchPolicy(reward_match)
        self._skip_empty_token_spans = _skip_empty_token_spans

    def adapt(self, source: Sequence[Any], /) -> list[Triplet]:
        """The triplets of stored spans or of OpenTelemetry's. ValueError without any span."""
        odd: Counter[str] = Counter()
        try:
            return self._tree(source, odd).to_trajectory(
                agent_match=self.agent_match,
                llm_call_match=self.llm_call_match,
                exclude_llm_call_in_reward=self.exclude_llm_call_in_reward,
                reward_match=self.reward_match,
                _skip_empty_token_spans=self._skip_empty_token_spans,
                oddities=odd,
            )
        finally:
            self.report(+odd)

    def visualize(
        self, source: Sequence[Any], /, filename: str = "trace_tree", interested_span_match: str | None = None
    ) -> TraceTree:
        """Draw the trace to ``<filename>.png`` and return its tree; needs Graphviz."""
        odd: Counter[str] = Counter()
        tree = self._tree(source, odd)
        self.report(odd)
        tree.visualize(filename, interested_span_match)
        return tree

    def _tree(self, source: Sequence[Any], odd: Counter[str]) -> TraceTree:
        tree = TraceTree.from_spans(as_spans(source, odd), odd)
        if self.repair_hierarchy:
            tree.repair_hierarchy()
        return tree


class TripletExporter(TracerTraceToTriplet):
    """The adapter under its first name, whose triplets hold token ids and nothing else."""

    def export(self, spans: Sequence[Any]) -> list[Triplet]:
        """Triplets of ``{"token_ids": ...}``, with rewards."""
        return [
            Triplet(
                prompt={"token_ids": triplet.prompt["token_ids"]},
                response={"token_ids": triplet.response["token_ids"]},
                reward=triplet.reward,
                metadata={key: triplet.metadata[key] for key in ("response_id", "agent_name")},
            )
            for triplet in self.adapt(spans)
        ]


TraceTripletAdapter = TracerTraceToTriplet
"""The adapter under its second name."""
