"""One signature for each store method: every store and every request schema agrees with LightningStore."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from agentlightning.algorithms.runs.recording_store import RecordingStore
from agentlightning.core.model.store_interface import UNSET, LightningStore
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.api.routes import METHODS
from agentlightning.rest.client.client import LightningStoreClient
from agentlightning.rest.server.delegating_store import LightningStoreThreaded
from agentlightning.rest.server.server import LightningStoreServer

INTERFACE = {name: one for name, one in vars(LightningStore).items() if inspect.isfunction(one) and name[0] != "_"}
NOT_SENT = {"command_id"}  # it travels with the call itself


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize(
    "store",  # a replay's store is none of them: it answers what the record holds, and refuses other methods by name
    [EventLogStore, LightningStoreClient, LightningStoreServer, LightningStoreThreaded, RecordingStore],
)
def test_the_methods_of_a_store_are_those_of_the_interface(store: type[LightningStore]) -> None:
    different = [name for name, one in INTERFACE.items() if parameters(getattr(store, name)) != parameters(one)]
    assert different == []


@pytest.mark.parametrize("name", [name for name in METHODS if name in INTERFACE])
def test_a_request_has_the_parameters_of_its_method(name: str) -> None:
    expected = {one: value for one, _, value in parameters(INTERFACE[name]) if one != "self" and one not in NOT_SENT}
    fields = METHODS[name].body.model_fields
    assert set(fields) == set(expected)
    for one, value in expected.items():
        if value is inspect.Parameter.empty:
            assert fields[one].is_required(), one
        elif value is not UNSET:  # a field that is not given is not passed on
            assert fields[one].default == value, one
