"""What an agent may look like and return: methods get their arguments by name, numbers of any kind are rewards."""

from __future__ import annotations

import functools
import gc
import warnings
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.model.rollout import AttemptedRollout
from agentlightning.projections.store.memory_store import InMemoryLightningStore

from ..support import PROMPT, run_two, told

RESOURCES: Any = {"prompt_template": "Say {x}", **PROMPT}


def _right(resources: Any, rollout: Any) -> float:
    return float(isinstance(resources, dict) and isinstance(rollout, AttemptedRollout))


class Swapped(agl.LitAgent[str]):
    """Names them in another order."""

    def rollout(self, task: str, rollout: Any, resources: Any) -> float:  # type: ignore[override]
        return _right(resources, rollout)


class ByNameOnly(agl.LitAgent[str]):
    """Takes them by name only."""

    def training_rollout(self, task: str, *, resources: Any, rollout: Any) -> float:
        return _right(resources, rollout)

    def validation_rollout(self, task: str, *, rollout: Any, resources: Any) -> float:
        return _right(resources, rollout)


class Anything(agl.LitAgent[str]):
    """Takes whatever comes."""

    async def rollout_async(self, task: str, **kwargs: Any) -> float:  # type: ignore[override]
        return _right(kwargs["resources"], kwargs["rollout"])


class OtherNames(agl.LitAgent[str]):
    """Calls them otherwise, in the usual order."""

    def rollout(self, task: str, given: Any, claimed: Any) -> float:  # type: ignore[override]
        return _right(given, claimed)


class First(agl.LitAgent[str]):
    """Has the parameters of the first generation on the method that both modes share."""

    def rollout(self, task: str, rollout_id: str, resources: Any) -> float:  # type: ignore[override]
        return float(rollout_id.startswith("ro-") and isinstance(resources, dict))


async def reward_of(store: InMemoryLightningStore, agent: Any, mode: Any = None) -> float | None:
    """What the agent's one attempt was worth."""
    runner = agl.LitAgentRunner[Any](tracer=agl.OtelTracer())
    with runner.run_context(agent=agent, store=store):
        rollout = await runner.step("task", resources=RESOURCES, mode=mode)
    return agl.find_final_reward(await store.query_spans(rollout.rollout_id))


@pytest.mark.parametrize("mode", ["train", "val", None])
@pytest.mark.parametrize("kind", [Swapped, ByNameOnly, Anything, OtherNames, First])
async def test_a_method_gets_resources_and_rollout_under_its_own_names(
    store: InMemoryLightningStore, kind: type[agl.LitAgent[str]], mode: Any
) -> None:
    assert await reward_of(store, kind(), mode) == 1.0


async def test_what_a_partial_has_filled_in_stays(store: InMemoryLightningStore) -> None:
    def agent(task: str, prompt_template: Any, llm: Any = None) -> float:
        return float(prompt_template == "mine" and llm == "mine too")

    assert await reward_of(store, functools.partial(agent, prompt_template="mine", llm="mine too")) == 1.0


class Half:
    """A number of another library, such as numpy's float32: a Real that is no float."""

    def __float__(self) -> float:
        return 0.5


Real.register(Half)


@pytest.mark.parametrize("value", [Half(), Fraction(1, 2), Decimal("0.5")])
async def test_a_number_of_any_kind_is_a_reward_as_for_emit_reward(store: InMemoryLightningStore, value: Any) -> None:
    assert await reward_of(store, lambda task: value) == 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "The reward that the agent returned for rollout {} is nan; a reward is a finite number"),
        (Decimal("Infinity"), "The reward that the agent returned for rollout {} is inf; a reward is a finite number"),
        ("1.0", "Invalid raw result type"),
    ],
)
@pytest.mark.parametrize("how", ["returned", "emitted", "decorated"])
async def test_what_is_no_finite_number_fails_the_attempt_and_names_the_rollout(
    store: InMemoryLightningStore, value: Any, reason: str, how: str
) -> None:
    def agent(task: str) -> Any:
        if task == "bad" and how == "emitted":
            agl.emit_reward(value)
        if task == "bad" and how == "decorated":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                agl.reward(lambda: value)()
        return value if task == "bad" and how == "returned" else 1.0

    attempt, spans, _ = await run_two(store, agent)
    if how == "decorated" and isinstance(value, str):
        assert attempt.status == "succeeded"  # passed on: the decorator is for functions that may compute no reward
        return
    assert attempt.status == "failed" and agl.find_final_reward(spans) is None
    expected = reason if how == "returned" else reason.replace(" that the agent returned for rollout", " of rollout")
    expected = "The reward of rollout {} must be a number" if how == "emitted" and isinstance(value, str) else expected
    assert expected.format(attempt.rollout_id) in told(spans)["message"]


async def test_a_coroutine_as_result_fails_with_a_hint_and_leaves_no_warning(store: InMemoryLightningStore) -> None:
    class Mistaken(agl.LitAgent[str]):
        async def rollout(self, task: str, resources: Any, rollout: Any) -> float:  # type: ignore[override]
            return 1.0

    agent = Mistaken()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        attempt, spans, _ = await run_two(
            store, lambda task: agent.rollout(task, None, None) if task == "bad" else 1.0  # type: ignore[arg-type]
        )
        gc.collect()
    assert attempt.status == "failed" and "but got: coroutine (an asynchronous agent is" in told(spans)["message"]
    assert not [str(each.message) for each in warned if "never awaited" in str(each.message)]
