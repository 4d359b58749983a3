"""The store interface: its methods, their parameters, and the words that go with it."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
from typing import Any, get_args

import pytest

from agentlightning.core.model import store_interface as contract
from agentlightning.core.model.rollout import Rollout
from agentlightning.core.model.status import RolloutStatus
from agentlightning.core.model.store_interface import UNSET, LightningStore, Unset, is_finished, is_queuing, is_running

# Method -> parameters as a caller may write them: * separates what only goes by keyword.
SIGNATURES = {
    "start_rollout": "input, mode=None, resources_id=None, config=None, metadata=None, worker_id=None",
    "enqueue_rollout": "input, mode=None, resources_id=None, config=None, metadata=None",
    "enqueue_many_rollouts": "rollouts",
    "dequeue_rollout": "worker_id=None, *, wait_seconds=0.0, incarnation=None, command_id=None, run_id=None",
    "dequeue_many_rollouts": "*, limit=1, worker_id=None, wait_seconds=0.0, incarnation=None, command_id=None, run_id=None",
    "start_attempt": "rollout_id, worker_id=None",
    "add_span": "span",
    "add_many_spans": "spans",
    "add_otel_span": "rollout_id, attempt_id, readable_span, sequence_id=None",
    "get_next_span_sequence_id": "rollout_id, attempt_id",
    "get_many_span_sequence_ids": "rollout_attempt_ids",
    "query_rollouts": (
        "rollout_ids=None, *, status_in=None, rollout_id_in=None, rollout_id_contains=None, filter_logic='and', "
        "sort_by=None, sort_order='asc', limit=-1, offset=0, status=None"
    ),
    "query_attempts": "rollout_id, *, sort_by='sequence_id', sort_order='asc', limit=-1, offset=0",
    "get_rollout_by_id": "rollout_id",
    "get_latest_attempt": "rollout_id",
    "query_resources": (
        "*, resources_id=None, resources_id_contains=None, sort_by=None, sort_order='asc', limit=-1, offset=0"
    ),
    "query_resource_versions": "resources_id",
    "add_resources": "resources",
    "update_resources": "resources_id, resources",
    "get_resources_by_id": "resources_id, version=None",
    "get_latest_resources": "",
    "wait_for_rollouts": "rollout_ids, timeout=None",
    "query_spans": (
        "rollout_id, attempt_id=None, *, trace_id=None, trace_id_contains=None, span_id=None, span_id_contains=None, "
        "parent_id=None, parent_id_contains=None, name=None, name_contains=None, filter_logic='and', limit=-1, "
        "offset=0, sort_by='sequence_id', sort_order='asc'"
    ),
    "update_rollout": (
        "rollout_id, input=UNSET, mode=UNSET, resources_id=UNSET, status=UNSET, config=UNSET, metadata=UNSET"
    ),
    "update_attempt": (
        "rollout_id, attempt_id, status=UNSET, worker_id=UNSET, last_heartbeat_time=UNSET, metadata=UNSET"
    ),
    "query_runs": "run_id=None, brief=False",
    "query_workers": (
        "*, status_in=None, worker_id_contains=None, filter_logic='and', sort_by=None, sort_order='asc', limit=-1, "
        "offset=0"
    ),
    "get_worker_by_id": "worker_id",
    "update_worker": "worker_id, heartbeat_stats=UNSET, *, incarnation=None, attempts=None",
}


def written(method: Any) -> str:
    """The parameters without self and without types, as in SIGNATURES."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare))[1:-1]


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters_are_those_of_the_interface(name: str) -> None:
    assert written(getattr(LightningStore, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_method_is_a_coroutine_that_the_base_leaves_open(name: str) -> None:
    method = getattr(LightningStore, name)
    assert inspect.iscoroutinefunction(method)
    required = [p for p in list(inspect.signature(method).parameters.values())[1:] if p.default is p.empty]
    with pytest.raises(NotImplementedError):
        asyncio.run(method(LightningStore(), *["x"] * len(required)))


def test_the_interface_has_no_method_beyond_the_listed() -> None:
    public = {name for name in vars(LightningStore) if not name.startswith("_")}
    assert public == {*SIGNATURES, "decided", "capabilities", "statistics", "otlp_traces_endpoint", "subscribe"}


def test_subscriptions_and_the_otlp_address_are_left_open_too() -> None:
    with pytest.raises(NotImplementedError):
        LightningStore().subscribe(["rollout.completed"], since=3)
    with pytest.raises(NotImplementedError):
        LightningStore().otlp_traces_endpoint()


def test_the_base_can_do_nothing_and_says_its_name() -> None:
    class Mine(LightningStore):
        pass

    keys = {"thread_safe", "async_safe", "zero_copy", "otlp_traces", "push_dequeue", "liveness", "run_claims", "subscribe"}
    assert LightningStore().capabilities == dict.fromkeys(keys, False)
    assert asyncio.run(Mine().statistics()) == {"name": "Mine"}


def test_unset_is_one_object_wherever_it_travels() -> None:
    assert repr(UNSET) == "UNSET"
    assert isinstance(UNSET, Unset)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(UNSET, protocol)) is UNSET
    assert copy.copy(UNSET) is copy.deepcopy(UNSET) is Unset() is UNSET


def test_every_status_is_in_exactly_one_group() -> None:
    groups: dict[str, set[str]] = {"queuing": set(), "running": set(), "finished": set()}
    for status in get_args(RolloutStatus):
        rollout = Rollout(rollout_id="r", input=None, start_time=0.0, status=status)
        found = [is_queuing(rollout), is_running(rollout), is_finished(rollout)]
        assert found.count(True) == 1
        groups[list(groups)[found.index(True)]].add(status)
    assert groups == {
        "queuing": {"queuing", "requeuing"},
        "running": {"preparing", "running"},
        "finished": {"failed", "succeeded", "cancelled"},
    }


def test_every_public_name_is_exported() -> None:
    assert all(hasattr(contract, name) for name in contract.__all__)
