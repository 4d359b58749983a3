"""The model calls of a trace and the rewards that belong to them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel

from ...core.model import Triplet
from ...core.spans import Span
from . import facts
from .tree import SpanTree

__all__ = ["LLM_CALL_MATCH", "RewardMatchPolicy", "TraceTree", "Transition"]

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
    """What is known above a node: the label of its agent, and what it is inside of."""

    label: str | None
    in_reward: bool = False
    in_call: bool = False


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
        return facts.agent_name(self.span)

    def is_reward_span(self) -> bool:
        """Whether the span is a reward, or the work of a function that computes one."""
        return facts.is_reward(self.span)

    def find_llm_calls(
        self,
        *,
        llm_call_match: str = LLM_CALL_MATCH,
        agent_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        dedup_llm_call: bool = True,
        oddities: Counter[str] | None = None,
    ) -> list[tuple[TraceTree, str]]:
        """The model calls in pre-order, each with the label of its agent (``*`` outside of any).

        ``agent_match`` leaves only calls below an agent whose name matches; an agent's name
        holds for what is below it. ``dedup_llm_call``: of several spans of one call, which share
        the answer's id or are nested without one, the first counts. Two calls with one id, one
        after the other and with different messages, are two calls: some servers draw ids from few.
        """
        odd: Counter[str] = Counter() if oddities is None else oddities
        found: list[tuple[TraceTree, str]] = []
        seen: dict[str, TraceTree] = {}
        pending: list[tuple[TraceTree, _Walk]] = [(self, _Walk("*" if agent_match is None else None))]
        while pending:
            node, walk = pending.pop()
            in_call = walk.in_call
            if walk.label is not None and not walk.in_reward and re.search(llm_call_match, node.span.name):
                if not dedup_llm_call or _is_new(node, walk.in_call, seen, odd):
                    found.append((node, walk.label))
                in_call = True
            label, name = walk.label, node.agent_name()
            if name is not None:
                label = name if agent_match is None or re.search(agent_match, name) else None
            in_reward = walk.in_reward or (exclude_llm_call_in_reward and node.is_reward_span())
            pending.extend((child, _Walk(label, in_reward, in_call)) for child in reversed(node.children))
        return found

    def match_rewards(
        self,
        reward_match: str | RewardMatchPolicy,
        llm_calls: Sequence[TraceTree],
        oddities: Counter[str] | None = None,
    ) -> dict[str, list[float]]:
        """Id of a call -> its rewards, the one that counts last; calls without one are absent.

        There are two only where the final reward of a trace found every earlier call rewarded
        (FIRST_OCCURRENCE): it then takes the place of the latest call's, since it is the one
        that ``find_final_reward`` reports.
        """
        odd: Counter[str] = Counter() if oddities is None else oddities
        nodes = self.traverse()
        moments = _moments(nodes)
        calls = {id(node) for node in llm_calls}
        if RewardMatchPolicy(reward_match) is RewardMatchPolicy.FIRST_OCCURRENCE:
            ordered = sorted(moments.values(), key=lambda moment: (moment.start, moment.node.place))
            return _matched(ordered, calls, odd, final_counts=True)
        found: dict[str, list[float]] = {}
        for group in [[self], *(node.children for node in nodes)]:
            found.update(_matched([moments[id(child)] for child in group], calls, odd, final_counts=False))
        return found

    def extract_prompt_image_urls(self, prompt: Any) -> list[str]:
        """The URLs of the images in messages, in order."""
        return facts.image_urls(prompt)

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
        rewards = self.match_rewards(reward_match, [node for node, _ in calls], odd)
        triplets: list[Triplet] = []
        for node, label in calls:
            triplet = _triplet(node.span, label, rewards.get(node.id, []), odd)
            if _skip_empty_token_spans and not (triplet.prompt["token_ids"] and triplet.response["token_ids"]):
                odd["model call without token ids"] += 1
                continue
            triplets.append(triplet)
        if triplets and final_reward is not None:
            triplets[-1].reward = final_reward
        return triplets

    def _say_unmatched(self, odd: Counter[str]) -> None:
        for node in self.traverse():
            if facts.looks_like_model_call(node.span):
                odd[f"answer of a model in a span named {node.span.name[:80]!r}, which was not asked for"] += 1


def _is_new(node: TraceTree, in_call: bool, seen: dict[str, TraceTree], odd: Counter[str]) -> bool:
    answer = facts.response_id(node.span)
    if answer is None:
        return not in_call
    first = seen.setdefault(answer, node)
    if first is node:
        return True
    if in_call or not _apart(first, node) or _messages(first.span) == _messages(node.span):
        return False
    odd["answer id that two different model calls share"] += 1
    return True


def _apart(first: TraceTree, second: TraceTree) -> bool:
    """Whether one had ended when the other began."""
    a, b, c, d = first.start_time, first.end_time, second.start_time, second.end_time
    return a is not None and b is not None and c is not None and d is not None and (b <= c or d <= a)


def _messages(span: Span) -> tuple[Any, Any]:
    return facts.prompt_of(span), facts.completion_of(span)


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
    ordered: Sequence[_Moment], calls: set[int], odd: Counter[str], final_counts: bool
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    waiting: list[_Moment] = []
    started: list[_Moment] = []
    # The last reward, if no call was free for it, and how many calls had started by then.
    final: tuple[float, float, int] | None = None
    for moment in ordered:
        reward = facts.reward_of(moment.node.span, odd)
        if reward is not None:
            place = _latest(waiting, moment.start)
            final = (moment.start, reward, len(started)) if place is None else None
            if place is None:
                odd["reward without a model call of its own"] += 1
            else:
                found[waiting.pop(place).node.id] = [reward]
        if id(moment.node) in calls:
            waiting.append(moment)
            started.append(moment)
    if final_counts and final is not None:
        start, reward, number = final
        place = _latest(started[:number], start)
        if place is not None:
            odd["reward without a model call of its own"] -= 1
            # It has one: otherwise it would have been free.
            found[started[place].node.id].append(reward)
    return found


def _latest(moments: Sequence[_Moment], start: float) -> int | None:
    """The place of the last one that had ended by then."""
    return next((i for i in range(len(moments) - 1, -1, -1) if moments[i].end <= start), None)


def _triplet(span: Span, label: str, rewards: Sequence[float], odd: Counter[str]) -> Triplet:
    prompt = facts.prompt_of(span)
    response: dict[str, Any] = {
        "token_ids": facts.response_token_ids(span, odd),
        "raw_content": facts.completion_of(span),
    }
    logprobs = facts.logprobs_of(span, odd)
    if logprobs is not None:
        response["logprobs"] = logprobs
    metadata: dict[str, Any] = {
        "request": facts.nested(span.attributes, "gen_ai.request"),
        "response": facts.nested(span.attributes, "gen_ai.response"),
        "response_id": facts.response_id(span),
        "agent_name": label,
    }
    if len(rewards) > 1:
        metadata["intermediate_rewards"] = list(rewards[:-1])
    return Triplet(
        prompt={
            "token_ids": facts.prompt_token_ids(span, odd),
            "raw_content": prompt,
            "image_urls": facts.image_urls(prompt),
        },
        response=response,
        reward=rewards[-1] if rewards else None,
        metadata=metadata,
    )
