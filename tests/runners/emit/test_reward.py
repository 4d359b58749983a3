"""agl.reward, the decorator of the first releases: it records numbers, and hides the calls of a judge."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.projections.store.memory_store import InMemoryLightningStore


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
