"""Rewards in spans of every release and in spans that nobody should have written."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentlightning as agl
from agentlightning.core.model.span import Span
from agentlightning.core.spans import rewards
from agentlightning.core.spans.rewards import get_rewards_from_span

ODD_TEXTS = ["", "{", "[" * 100_000, '{"type": "reward", "value": "x"}', '"reward"', "[1]", "null", "\ud800"]
REWARD_KEYS = [
    "agentlightning.reward",
    "agentlightning.reward.",
    "agentlightning.reward.0.value",
    "agentlightning.reward.0.name",
    "agentlightning.reward.1.value",
    "agentlightning.reward.².value",
    "agentlightning.reward." + "9" * 5000 + ".value",
    "agentops.task.output",
    "agentops.entity.output",
    "agentlightning.message.body",
    "agentlightning.object.json",
    "agentlightning.object.literal",
    "agentlightning.object.type",
    "message",
    "object",
    "reward",
]
VALUES = st.one_of(
    st.sampled_from([*ODD_TEXTS, "int", "float", "bytes", "bool", "str", "None", '{"type": "reward", "value": 0.5}']),
    st.floats(),
    st.integers(),
    st.booleans(),
    st.just(10**400),
    st.lists(st.integers(), max_size=2),
    st.text(max_size=5),
)
NAMES = st.sampled_from(["agentlightning.reward", "agentlightning.annotation", "agentlightning.object", "task"])


def span(attributes: dict[str, Any], name: str = "agentlightning.annotation") -> Span:
    return Span.from_attributes(attributes=attributes, name=name)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(REWARD_KEYS), VALUES), NAMES)
def test_no_attribute_makes_a_reward_reader_fail(attributes: dict[str, Any], name: str) -> None:
    one = span(attributes, name)
    value = agl.get_reward_value(one)
    assert value is None or isinstance(value, float)
    assert agl.is_reward_span(one) == (value is not None) == bool(agl.find_reward_spans([one]))
    assert all(isinstance(reward.value, float) for reward in get_rewards_from_span(one))
    for read, error in ((agl.get_message_value, TypeError), (agl.get_object_value, RuntimeError)):
        try:
            read(one)
        except error:
            pass  # the one error that the reader promises


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_texts_that_are_no_reward_are_none(text: str) -> None:
    assert agl.get_reward_value(span({"agentops.task.output": text})) is None


def test_the_primary_reward_is_never_another_dimension() -> None:
    other = {"agentlightning.reward.1.name": "speed", "agentlightning.reward.1.value": 0.9}
    assert agl.get_reward_value(span(other)) is None
    lost = span({**other, "agentlightning.reward.0.value": "n/a"})
    assert agl.get_reward_value(lost) is None and not agl.is_reward_span(lost)
    assert [reward.name for reward in get_rewards_from_span(lost)] == ["speed"]


def test_dimensions_are_in_numeric_order() -> None:
    one = span({f"agentlightning.reward.{index}.value": float(index) for index in (10, 2, 0)})
    assert [reward.value for reward in get_rewards_from_span(one)] == [0, 2, 10]


@pytest.mark.parametrize(
    "older",
    [
        span({"reward": 0.25}, "agentlightning.reward"),
        span({"reward": 0.25}),
        span({"agentops.entity.output": '{"type": "reward", "value": 0.25}'}, "reward"),
    ],
)
def test_a_reward_of_an_older_release_is_read_with_one_warning(older: Span, caplog: pytest.LogCaptureFixture) -> None:
    rewards._say_deprecated.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [agl.get_reward_value(older) for _ in range(3)] == [0.25] * 3
    assert [record.getMessage().count("deprecated") for record in caplog.records] == [1]


def test_the_final_reward_of_a_rollout_is_the_last_one_of_the_attempt_that_counts() -> None:
    def rewarded(attempt_id: str, sequence_id: int, value: float) -> Span:
        attributes = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value}
        return Span.from_attributes(attributes=attributes, name="r", attempt_id=attempt_id, sequence_id=sequence_id)

    spans = [rewarded("a2", 2, 0.2), rewarded("a1", 9, 0.9), rewarded("a2", 1, 0.1)]
    assert rewards.final_reward(spans, "a2") == 0.2
    assert [one.sequence_id for one in rewards.attempt_spans(spans, "a2")] == [1, 2]
    assert rewards.final_reward(spans, "a3") is None and rewards.final_reward(spans, None) is None
