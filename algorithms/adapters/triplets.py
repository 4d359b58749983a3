"""Triplets from traces: every model call as prompt, response and reward."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...core.errors import InvalidInput
from ...core.model.rollout import Triplet
from .base import TraceAdapter, as_spans
from .trajectory import LLM_CALL_MATCH, RewardMatchPolicy, TraceTree

__all__ = ["TraceToTripletBase", "TraceTripletAdapter", "TracerTraceToTriplet", "TripletExporter"]


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
