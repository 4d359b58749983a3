"""The public nouns: defaults, refusals and JSON, exactly as the interface promises them."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import agentlightning.types
from agentlightning.compat.task_protocol import GenericResponse, RolloutLegacy, Task, TaskIfAny
from agentlightning.core.model import rollout as model
from agentlightning.core.model.rollout import (
    Attempt,
    AttemptedRollout,
    EnqueueRolloutRequest,
    Fact,
    Hook,
    PaginatedResult,
    ParallelWorkerBase,
    Rollout,
    RolloutConfig,
    Triplet,
    Worker,
)

PUBLIC = """Triplet RolloutLegacy Task TaskInput TaskIfAny RolloutRawResultLegacy RolloutRawResult RolloutMode
GenericResponse ParallelWorkerBase Dataset AttemptStatus RolloutStatus RolloutConfig Rollout Attempt AttemptedRollout
EnqueueRolloutRequest Hook Worker WorkerStatus PaginatedResult FilterOptions SortOptions FilterField""".split()

CONFIG = {"timeout_seconds": None, "unresponsive_seconds": None, "max_attempts": 1, "retry_condition": []}
ATTEMPT = {
    "rollout_id": "r",
    "attempt_id": "a",
    "sequence_id": 1,
    "start_time": 1.0,
    "end_time": None,
    "status": "preparing",
    "worker_id": None,
    "last_heartbeat_time": None,
    "metadata": None,
}
ROLLOUT = {
    "rollout_id": "r",
    "input": None,
    "start_time": 1.0,
    "end_time": None,
    "mode": None,
    "resources_id": None,
    "status": "queuing",
    "config": CONFIG,
    "metadata": None,
}
DEFAULTS: list[tuple[BaseModel, dict[str, Any]]] = [
    (Attempt(rollout_id="r", attempt_id="a", sequence_id=1, start_time=1.0), ATTEMPT),
    (RolloutConfig(), CONFIG),
    (Rollout(rollout_id="r", input=None, start_time=1.0), ROLLOUT),
    (Rollout.model_construct(rollout_id="r", input=None, start_time=1.0), ROLLOUT),
    (
        AttemptedRollout.model_construct(
            rollout_id="r", input=None, start_time=1.0, attempt=Attempt.model_construct(**ATTEMPT)
        ),
        {**ROLLOUT, "attempt": ATTEMPT},
    ),
    (
        EnqueueRolloutRequest(input=1),
        {"input": 1, "mode": None, "resources_id": None, "config": None, "metadata": None},
    ),
    (
        Worker(worker_id="w"),
        {
            "worker_id": "w",
            "status": "unknown",
            "heartbeat_stats": None,
            "last_heartbeat_time": None,
            "last_dequeue_time": None,
            "last_busy_time": None,
            "last_idle_time": None,
            "current_rollout_id": None,
            "current_attempt_id": None,
        },
    ),
    (Triplet(prompt=1, response=2), {"prompt": 1, "response": 2, "reward": None, "metadata": {}}),
    (
        Task(rollout_id="r", input=1),
        {
            "rollout_id": "r",
            "input": 1,
            "mode": None,
            "resources_id": None,
            "create_time": None,
            "last_claim_time": None,
            "num_claims": None,
            "metadata": {},
        },
    ),
    (TaskIfAny(is_available=False), {"is_available": False, "task": None}),
    (
        RolloutLegacy(rollout_id="r"),
        {
            "rollout_id": "r",
            "task": None,
            "final_reward": None,
            "triplets": None,
            "trace": None,
            "logs": None,
            "metadata": {},
        },
    ),
    (GenericResponse(), {"status": "success", "message": None, "data": None}),
    (
        Fact(id="i", type="rollout.completed", position=3, log_id="l", time=1.0),
        {
            "id": "i",
            "type": "rollout.completed",
            "position": 3,
            "log_id": "l",
            "time": 1.0,
            "rollout_id": None,
            "attempt_id": None,
            "data": {},
        },
    ),
]


@pytest.mark.parametrize(("built", "expected"), DEFAULTS, ids=lambda value: type(value).__name__)
def test_defaults_and_json_are_exactly_those_of_the_interface(built: BaseModel, expected: dict[str, Any]) -> None:
    assert built.model_dump(mode="json") == expected
    text = built.model_dump_json()
    assert list(json.loads(text)) == list(expected)
    assert type(built).model_validate_json(text) == built


def test_every_public_name_is_exported() -> None:
    assert [name for name in PUBLIC if not hasattr(agentlightning.types, name)] == []
    assert all(hasattr(model, name) for name in model.__all__)


def test_default_containers_are_fresh_for_each_instance() -> None:
    one, other = (Rollout(rollout_id="r", input=None, start_time=1.0) for _ in range(2))
    one.config.retry_condition.append("failed")
    assert other.config.retry_condition == []
    Triplet(prompt=1, response=1).metadata["a"] = 1
    assert Triplet(prompt=1, response=1).metadata == {}


@pytest.mark.parametrize(
    ("cls", "change"),
    [
        (Rollout, {"status": "queueing"}),
        (Rollout, {"mode": "validation"}),
        (Rollout, {"config": None}),
        (Rollout, {"config": {"max_attempts": 0}}),
        (Rollout, {"config": {"retry_condition": ["cancelled"]}}),
        (Attempt, {"status": "cancelled"}),
        (Attempt, {"status": "queuing"}),
        (Attempt, {"status": None}),
        (Attempt, {"sequence_id": "first"}),
    ],
)
def test_a_word_outside_the_vocabulary_is_a_value_error(cls: type[BaseModel], change: dict[str, Any]) -> None:
    base = ROLLOUT if cls is Rollout else ATTEMPT
    cls.model_validate(base)
    with pytest.raises(ValueError) as caught:
        cls.model_validate({**base, **change})
    assert isinstance(caught.value, ValidationError)


def test_an_input_may_be_none_but_not_missing() -> None:
    with pytest.raises(ValidationError, match="input"):
        Rollout.model_validate({"rollout_id": "r", "start_time": 1.0})
    with pytest.raises(ValidationError, match="input"):
        EnqueueRolloutRequest.model_validate({})


def test_an_attempt_of_another_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match="Inconsistent rollout_id between Rollout and Attempt"):
        AttemptedRollout.model_validate({**ROLLOUT, "rollout_id": "other", "attempt": ATTEMPT})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(input=json_values, metadata=st.none() | st.dictionaries(st.text(), json_values, max_size=3))
def test_any_json_input_comes_back_unchanged(input: Any, metadata: dict[str, Any] | None) -> None:
    rollout = Rollout(rollout_id="r", input=input, start_time=1.5, metadata=metadata)
    assert Rollout.model_validate_json(rollout.model_dump_json()) == rollout


def test_a_reward_that_is_no_number_survives_json() -> None:
    triplet = Triplet.model_validate_json(Triplet(prompt=1, response=1, reward=math.nan).model_dump_json())
    assert triplet.reward is not None and math.isnan(triplet.reward)


def test_the_first_tutorials_name_reads_the_trace() -> None:
    assert RolloutLegacy(rollout_id="r", trace=[{"name": "s"}]).traces == [{"name": "s"}]


def test_facts_are_values() -> None:
    fact = Fact(id="i", type="t", position=1, log_id="l", time=1.0, data={"a": [1]})
    assert fact == fact.model_copy(deep=True)
    assert len({fact, fact.model_copy()}) == 1
    with pytest.raises(ValidationError, match="frozen"):
        fact.position = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_a_backoff_shows_only_where_it_is_set() -> None:
    assert "retry_backoff_seconds" not in RolloutConfig().model_dump_json()
    config = RolloutConfig(retry_backoff_seconds=1.5)
    assert RolloutConfig.model_validate_json(config.model_dump_json()) == config


class TestPaginatedResult:
    def make(self, items: list[Any], limit: int = -1, offset: int = 0) -> PaginatedResult[Any]:
        return PaginatedResult(items=items, limit=limit, offset=offset, total=7)

    def test_it_reads_like_the_sequence_of_its_items(self) -> None:
        page = self.make(["a", "b", "c"])
        assert (len(page), list(page), page[0], page[-1], page[1:], "b" in page) == (
            3,
            ["a", "b", "c"],
            "a",
            "c",
            ["b", "c"],
            True,
        )
        assert list(reversed(page)) == ["c", "b", "a"]
        assert (page.index("b"), page.count("c")) == (1, 1)
        with pytest.raises(IndexError):
            page[3]

    @pytest.mark.parametrize(
        ("items", "limit", "offset", "shown"),
        [
            ([], -1, 0, "<PaginatedResult (0: of 7) empty>"),
            (["a"], 10, 2, "<PaginatedResult (2:12 of 7) 'a'>"),
            (["a", "b"], 2, 4, "<PaginatedResult (4:6 of 7) ['a', ...]>"),
        ],
    )
    def test_it_shows_its_place_and_its_first_item(self, items: list[str], limit: int, offset: int, shown: str) -> None:
        page = self.make(items, limit, offset)
        assert repr(page) == str(page) == shown

    def test_json_has_four_keys_and_items_keep_their_own_class(self) -> None:
        attempted = AttemptedRollout.model_validate({**ROLLOUT, "attempt": ATTEMPT})
        for cls in (PaginatedResult, PaginatedResult[Rollout]):
            page = cls(items=[attempted], limit=-1, offset=0, total=1)
            dumped = json.loads(page.model_dump_json())
            assert list(dumped) == ["items", "limit", "offset", "total"]
            assert dumped["items"] == [{**ROLLOUT, "attempt": ATTEMPT}]

    def test_it_reads_both_kinds_of_rollout_from_json(self) -> None:
        cls = PaginatedResult[AttemptedRollout | Rollout]
        text = json.dumps({"items": [ROLLOUT, {**ROLLOUT, "attempt": ATTEMPT}], "limit": -1, "offset": 0, "total": 2})
        assert [type(item) for item in cls.model_validate_json(text)] == [Rollout, AttemptedRollout]

    def test_it_pickles(self) -> None:
        page = self.make([Worker(worker_id="w")])
        assert pickle.loads(pickle.dumps(page)) == page


def test_a_worker_base_keeps_its_id_and_does_nothing_else() -> None:
    worker = ParallelWorkerBase()
    assert worker.worker_id is None
    worker.init("any", thing=1)
    worker.init_worker(3, "any", thing=1)
    assert worker.worker_id == 3
    assert worker.run() is None
    worker.teardown_worker(3)
    worker.teardown()


async def call_every_hook(hook: Hook) -> None:
    await hook.on_rollout_start(agent=1, runner=2, rollout=3)
    await hook.on_trace_start(agent=1, runner=2, tracer=4, rollout=3)
    await hook.on_trace_end(agent=1, runner=2, tracer=4, rollout=3)
    await hook.on_rollout_end(agent=1, runner=2, rollout=3, spans=[])


def test_hooks_do_nothing_until_overridden_and_take_keywords_only() -> None:
    import asyncio

    asyncio.run(call_every_hook(Hook()))
    with pytest.raises(TypeError):
        Hook().on_rollout_start(1, 2, 3)  # pyright: ignore[reportCallIssue]
