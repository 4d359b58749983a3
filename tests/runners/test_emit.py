"""Emitters and readers: what one writes the other reads, and spans of older versions are read too."""

from __future__ import annotations

import asyncio
import logging
from fractions import Fraction
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.model.span import Span
from agentlightning.core.spans.attributes import (
    filter_and_unflatten_attributes,
    flatten_attributes,
    unflatten_attributes,
)
from agentlightning.projections.store.memory_store import InMemoryLightningStore


def emitted(attributes: dict[str, Any], name: str = "agentlightning.annotation") -> Span:
    return Span.from_attributes(attributes=attributes, name=name)


def test_a_scalar_reward_is_read_back() -> None:
    values: tuple[Any, ...] = (0.75, 1, True, Fraction(1, 4))
    for value in values:
        span = agl.emit_reward(value, propagate=False)
        assert span.attributes == {
            "agentlightning.reward.0.name": "primary",
            "agentlightning.reward.0.value": float(value),
        }
        assert agl.get_reward_value(span) == float(value)


def test_the_primary_dimension_comes_first() -> None:
    span = agl.emit_reward({"speed": 1, "score": 0.5}, primary_key="score", propagate=False)
    assert [(reward.name, reward.value) for reward in agl.get_rewards_from_span(span)] == [("score", 0.5), ("speed", 1)]
    assert agl.get_reward_value(span) == 0.5


@pytest.mark.parametrize(
    ("reward", "key", "error"),
    [
        ("high", None, TypeError),
        (None, None, TypeError),
        ({"a": 1}, None, ValueError),
        ({"a": 1}, "b", ValueError),
        ({"a": "1"}, "a", ValueError),
        ({"a": 1, 2: 3}, "b", ValueError),
        (10**400, None, ValueError),
    ],
)
def test_what_is_no_reward_is_refused(reward: Any, key: str | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        agl.emit_reward(reward, primary_key=key, propagate=False)


@pytest.mark.parametrize(
    ("span", "value"),
    [
        (emitted({"reward": 0.25}, "agentlightning.reward"), 0.25),
        (emitted({"reward": 1}), 1.0),
        (emitted({"agentlightning.reward.0.value": 0.5}), 0.5),
        (emitted({"agentops.task.output": '{"type": "reward", "value": 0.5}'}, "task"), 0.5),
        (emitted({"agentops.entity.output": '{"type": "reward", "value": null}'}, "task"), None),
        (emitted({"agentops.task.output": "no json"}, "task"), None),
        (emitted({"reward": 0.25}, "something.else"), None),
        (emitted({"agentlightning.reward.0.value": "much"}), None),
        (emitted({}), None),
    ],
)
def test_rewards_of_every_version_are_read(span: Span, value: float | None) -> None:
    assert agl.get_reward_value(span) == value
    assert agl.is_reward_span(span) == (value is not None)


def test_the_final_reward_is_the_last_one() -> None:
    spans = [agl.emit_reward(0.1, propagate=False), agl.emit_reward(0.9, propagate=False), emitted({"x": 1})]
    assert agl.find_final_reward(spans) == 0.9
    assert agl.find_reward_spans(spans) == spans[:2]
    assert agl.find_final_reward([]) is None


@pytest.mark.parametrize("value", ["text", 7, 0.5, True, False, b"\x00\xff", None, {"a": [1, None]}, [1, "x"]])
def test_objects_come_back_as_they_were(value: Any) -> None:
    back = agl.get_object_value(agl.emit_object(value, propagate=False))
    assert back == value and type(back) is type(value)


def test_objects_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(RuntimeError):
        agl.emit_object(object(), propagate=False)
    with pytest.raises(RuntimeError):
        agl.get_object_value(emitted({"agentlightning.object.json": "{"}))


def test_emitting_needs_a_trace_and_the_right_type() -> None:
    with pytest.raises(RuntimeError, match="No active tracer found. Cannot emit message span."):
        agl.emit_message("x")
    wrong: Any = 7
    with pytest.raises(TypeError):
        agl.emit_message(wrong, propagate=False)
    with pytest.raises(TypeError):
        agl.emit_exception(wrong, propagate=False)
    with pytest.raises(ValueError):
        agl.emit_annotation({"a": None}, propagate=False)
    assert agl.emit_annotation({"a": {"b": 1}, "c": []}, propagate=False).attributes == {"a.b": 1}


def test_an_operation_is_decorated_without_a_tracer_and_called_with_one() -> None:
    @agl.operation(kind="test")
    def double(x: int) -> int:
        return 2 * x

    with pytest.raises(RuntimeError, match="No active tracer"):
        double(2)
    with agl.operation(propagate=False, name="block") as block:
        block.set_input(1, city="Paris")
        block.set_output({"a": [1, 2]})
        with pytest.raises(RuntimeError):
            block.span()
    assert block.span().attributes == {
        "agentlightning.operation.name": "block",
        "agentlightning.operation.input.args.0": 1,
        "agentlightning.operation.input.city": "Paris",
        "agentlightning.operation.output.a.0": 1,
        "agentlightning.operation.output.a.1": 2,
    }


def test_attributes_are_flattened_and_nested_again() -> None:
    nested = {"a": {"b": [{"c": 1}, {"c": 2}]}, "d": [1, 2], "e": {}}
    flat = flatten_attributes(nested)
    assert flat == {"a.b.0.c": 1, "a.b.1.c": 2, "d": [1, 2]}
    assert unflatten_attributes(flat) == {"a": {"b": [{"c": 1}, {"c": 2}]}, "d": [1, 2]}
    assert unflatten_attributes({"a.0": 1, "a.2": 2}) == {"a": {"0": 1, "2": 2}}
    assert filter_and_unflatten_attributes(flat, "a") == {"b": [{"c": 1}, {"c": 2}]}
    with pytest.raises(ValueError):
        filter_and_unflatten_attributes({"a": 1}, "a")


def test_what_is_no_mapping_is_no_annotation_and_a_number_without_end_no_object() -> None:
    for odd in ([1, 2], "text", 7):
        with pytest.raises(ValueError, match="An annotation is a mapping"):
            agl.emit_annotation(odd, propagate=False)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="cannot be written as text"):
        agl.emit_object(10**5000, propagate=False)


def decorated(function: Any) -> Any:
    with pytest.warns(DeprecationWarning, match="emit_reward"):
        return agl.reward(function)


def test_it_is_the_callable_and_not_a_module() -> None:
    assert callable(agl.reward)


async def test_what_the_function_returns_is_the_reward(store: InMemoryLightningStore, tracer: agl.OtelTracer) -> None:
    @decorated
    def score(answer: str) -> float:
        """Scores."""
        return len(answer) / 10

    @decorated
    async def later(answer: str) -> int:
        await asyncio.sleep(0)
        return len(answer)

    assert (score.__name__, score.__doc__) == ("score", "Scores.")
    async with tracer.trace_context():
        assert score("hello") == 0.5
        assert await later("four") == 4
    spans = tracer.get_last_trace()
    assert [agl.get_reward_value(span) for span in agl.find_reward_spans(spans)] == [0.5, 4.0]
    named = [span.attributes.get("agentlightning.operation.name") for span in spans]
    assert named.count("agentlightning.reward") == 2


@pytest.mark.parametrize("result", [None, "high", {"a": 1}])
async def test_what_is_no_number_is_passed_on_and_stays_missing(
    tracer: agl.OtelTracer, result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    score = decorated(lambda: result)
    with caplog.at_level(logging.WARNING):
        async with tracer.trace_context():
            assert score() == result
    assert agl.find_final_reward(tracer.get_last_trace()) is None
    assert "no reward" in caplog.text


def test_outside_of_a_trace_the_function_still_works(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert decorated(lambda: 0.5)() == 0.5
    assert "outside of a trace" in caplog.text


async def test_its_error_is_the_callers(tracer: agl.OtelTracer) -> None:
    def fails() -> float:
        raise ZeroDivisionError

    async with tracer.trace_context():
        with pytest.raises(ZeroDivisionError):
            decorated(fails)()
    assert agl.find_final_reward(tracer.get_last_trace()) is None
