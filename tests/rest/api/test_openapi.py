"""The description of the API holds: requests made from it, right and wrong, get answers that it describes, and no 5xx.

Bounded: a few generated requests for each operation, the same in every run. AGL_FUZZ_EXAMPLES=200 makes more of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from agentlightning.rest.api.openapi import describe
from agentlightning.rest.api.routes import CALLS_PATH, EVENTS_PATH
from agentlightning.rest.open_store import open_store
from agentlightning.rest.server.server import LightningStoreServer

schemathesis: Any = pytest.importorskip("schemathesis")

EXAMPLES = int(os.environ.get("AGL_FUZZ_EXAMPLES", "3"))
OPERATIONS = [
    (path, verb)
    for path, operations in describe()["paths"].items()
    for verb in operations
    if path not in (EVENTS_PATH, CALLS_PATH)  # the answer of the one never ends, the other is no JSON
]


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    """The description, as a running server gives it."""
    store: Any = open_store("memory://")
    server = LightningStoreServer(store, port=0)
    asyncio.run(server.start())
    yield schemathesis.openapi.from_url(server.endpoint + "/v1/agl/openapi.json")
    asyncio.run(server.stop())
    store.close()


@pytest.mark.parametrize(("path", "verb"), OPERATIONS)
def test_requests_from_the_description_get_what_it_describes(schema: Any, path: str, verb: str) -> None:
    operation = schema[path][verb.upper()]
    checks = schemathesis.checks
    wanted = [
        checks.not_a_server_error, checks.CHECKS.get_one("status_code_conformance"),
        checks.CHECKS.get_one("content_type_conformance"), checks.CHECKS.get_one("response_schema_conformance"),
    ]  # fmt: skip

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        for part in (case.query, case.body):
            for name in ("timeout", "wait_seconds"):
                if isinstance(part, dict) and name in part:
                    part[name] = 0
        if "wait" in path and isinstance(case.body, dict):
            case.body["timeout"] = 0
        case.call_and_validate(timeout=30, checks=wanted)

    check()
