"""Values of other classes become the plain values that they stand for, and a reward is a finite number."""

from __future__ import annotations

import datetime
import math
import re
from collections import UserDict
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.events import payload
from agentlightning.core.model.scalars import number, plain_data, plain_scalar
from agentlightning.core.spans.rewards import reward_number
from agentlightning.projections.store.memory_store import InMemoryLightningStore


class Text(str):
    def __str__(self) -> str:
        return "another text"


class Count(int):
    pass


class Share(float):
    pass


class Colour(str, Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Moment(datetime.datetime):
    """As pandas.Timestamp: msgspec takes no subclass of datetime."""


class Scalar:
    """As a scalar of numpy, or a tensor without dimensions."""

    shape = ()

    def __init__(self, value: Any) -> None:
        self.value = value

    def item(self) -> Any:
        return self.value


class Itself:
    """As numpy.longdouble, whose item is another object of the same class."""

    shape = ()

    def item(self) -> Itself:
        return Itself()


NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.timezone.utc)
MEANT: list[tuple[Any, Any]] = [
    (Text("a"), "a"),
    (Count(3), 3),
    (Share(0.5), 0.5),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (Scalar(True), True),
    (Scalar(2), 2),
    (Scalar("t"), "t"),
    (Moment(2026, 1, 2, 12, tzinfo=datetime.timezone.utc), NOON),
]


@pytest.mark.parametrize(("value", "meant"), MEANT, ids=[type(value).__name__ for value, _ in MEANT])
def test_a_scalar_of_another_class_is_the_plain_value(value: Any, meant: Any) -> None:
    plain = plain_scalar(value)
    assert (plain, type(plain)) == (meant, type(meant))


@pytest.mark.parametrize("value", [NOON, [1], {"a": 1}, Itself(), Decimal(1), None])
def test_what_is_no_such_scalar_stays_the_same_object(value: Any) -> None:
    assert plain_scalar(value) is value


def test_a_value_whose_item_is_itself_is_refused_by_its_type() -> None:
    with pytest.raises(TypeError, match="an? Itself cannot be stored"):
        plain_data(Itself())
    with pytest.raises(ValueError, match="Itself cannot be stored"):
        payload.encode({"x": Itself()})


async def test_inputs_metadata_and_resources_take_subclasses_wherever_their_base_is() -> None:
    store = InMemoryLightningStore()
    model = agl.LLM(endpoint=Text("http://x"), model="m", sampling_parameters={"t": Scalar(0.5)})
    await store.add_resources({Text("llm"): model})
    values = {str(place): value for place, (value, _) in enumerate(MEANT)}
    task = {Text("key"): Text("a"), "row": UserDict(values), "list": [value for value, _ in MEANT]}
    made = await store.enqueue_rollout(task, mode=Text("train"), metadata={"m": Share(1.5)})  # type: ignore[arg-type]
    [found] = await store.query_rollouts(rollout_id_in=[Text(made.rollout_id)])
    plain = [value for _, value in MEANT]
    assert found.input == {"key": "a", "row": {str(place): value for place, value in enumerate(plain)}, "list": plain}
    assert found.mode == "train" and found.metadata == {"m": 1.5}
    claimed = await store.dequeue_rollout(worker_id=Text("worker"))
    assert claimed is not None and claimed.attempt.worker_id == "worker"
    await store.update_attempt(Text(made.rollout_id), Text(claimed.attempt.attempt_id), status=Text("failed"))  # type: ignore[arg-type]
    latest = await store.get_latest_resources()
    assert latest is not None and latest.resources["llm"].sampling_parameters == {"t": 0.5}  # type: ignore[union-attr]
    store.close()


@pytest.mark.parametrize(("value", "meant"), MEANT[:-1], ids=[type(value).__name__ for value, _ in MEANT[:-1]])
def test_attributes_take_subclasses_wherever_their_base_is(value: Any, meant: Any) -> None:
    span = agl.Span.from_attributes(attributes={"one": value, "many": [value, value]})
    assert span.attributes == {"one": meant, "many": [meant, meant]}
    assert type(span.attributes["one"]) is type(meant) and {type(one) for one in span.attributes["many"]} == {type(meant)}  # type: ignore[union-attr]
    noted = agl.emit_annotation({"one": value, "deep": {"many": [value, value]}}, propagate=False)
    assert noted.attributes == {"one": meant, "deep.many": [meant, meant]}
    assert agl.get_object_value(agl.emit_object(value, propagate=False)) == meant
    assert agl.get_object_value(agl.emit_object({"in": value}, propagate=False)) == {"in": meant}


REWARDS: list[tuple[Any, float]] = [
    (True, 1.0),
    (3, 3.0),
    (Decimal("0.25"), 0.25),
    (Fraction(1, 4), 0.25),
    (Scalar(True), 1.0),
    (Scalar(0.5), 0.5),
    (Share(0.5), 0.5),
]
NO_FINITE = [math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Scalar(math.nan), 10**400]
NO_NUMBERS = ["0.5", "NaN", Text("1"), Scalar("1"), b"1", 1j, [1.0], Itself(), datetime.timedelta(1)]


def test_every_class_of_numbers_is_a_reward() -> None:
    for value, meant in REWARDS:
        found = reward_number(value)
        assert (found, type(found)) == (meant, float)
        assert agl.get_reward_value(agl.emit_reward(value, propagate=False)) == meant
        assert agl.Triplet(prompt="p", response="r", reward=value).reward == meant


@pytest.mark.parametrize("value", NO_FINITE, ids=lambda value: re.sub(" at 0x.*", ">", repr(value)))
def test_no_mean_is_made_of_what_is_not_finite(value: Any) -> None:
    with pytest.raises(agl.InvalidInput, match="a reward is a finite number"):
        reward_number(value)
    with pytest.raises(ValueError, match="a reward is a finite number"):
        agl.emit_reward(value, propagate=False)
    with pytest.raises(ValueError, match="for key b is .*; a reward is a finite number"):
        agl.emit_reward({"a": 1.0, "b": value}, primary_key="a", propagate=False)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: re.sub(" at 0x.*", ">", repr(value)))
def test_a_text_is_no_number_whatever_it_spells(value: Any) -> None:
    assert number(value) is None
    with pytest.raises(TypeError, match="must be a number"):
        agl.emit_reward(value, propagate=False)
    with pytest.raises(ValueError, match="must be a number"):
        agl.Triplet(prompt="p", response="r", reward=value)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("agentlightning.annotation", {"agentlightning.reward.0.value": math.nan}),
        ("mine", {"agentlightning.reward.0.value": 1.0, "agentlightning.reward.1.value": math.inf}),
        ("mine", {"agentlightning.reward.0.value": "0.5"}),
        ("agentlightning.annotation", {"reward": math.nan}),
        ("mine", {"agentops.task.output": '{"type": "reward", "value": NaN}'}),
    ],
)
async def test_a_store_takes_no_span_whose_reward_is_no_finite_number(name: str, attributes: dict[str, Any]) -> None:
    store = InMemoryLightningStore()
    attempted = await store.start_rollout("task")
    ids: dict[str, Any] = {"rollout_id": attempted.rollout_id, "attempt_id": attempted.attempt.attempt_id}
    bad = agl.Span.from_attributes(attributes=attributes, name=name, **ids)
    for add in (store.add_span(bad), store.add_many_spans([bad])):
        with pytest.raises(agl.InvalidInput, match=f"The reward of rollout {attempted.rollout_id} "):
            await add
    kept = agl.Span.from_attributes(attributes={"reward": "high", "loss": math.nan}, name="agentlightning.annotation", **ids)
    assert await store.add_span(kept) is not None and len(await store.query_spans(attempted.rollout_id)) == 1
    store.close()


def test_spans_of_older_releases_have_no_reward_that_is_not_finite() -> None:
    def old(value: Any) -> agl.Span:
        return agl.Span.from_attributes(attributes={"agentlightning.reward.0.value": value}, name="agentlightning.annotation")

    spans = [old(0.5), old(math.nan), old("1")]
    assert [agl.get_reward_value(span) for span in spans] == [0.5, None, None]
    assert agl.find_final_reward(spans) == 0.5 and agl.find_reward_spans(spans) == spans[:1]
    assert agl.get_rewards_from_span(spans[1]) == []


class Row:
    """As a pandas.Series with labels, which is what a row of a table is."""

    ndim, index, shape = 1, ("question", "answer"), (2,)

    def to_dict(self) -> dict[str, Any]:
        return {"question": "?", "answer": Scalar(2)}

    def tolist(self) -> list[Any]:
        return list(self.to_dict().values())


async def test_a_row_with_labels_keeps_them_and_numbers_of_a_query_may_be_of_any_class() -> None:
    store = InMemoryLightningStore(eviction_memory_threshold=Scalar(10**9))  # type: ignore[arg-type]
    made = await store.enqueue_rollout(Row())
    [found] = await store.query_rollouts(limit=Scalar(1), offset=Count(0))  # type: ignore[arg-type]
    assert (found.rollout_id, found.input) == (made.rollout_id, {"question": "?", "answer": 2})
    store.close()
