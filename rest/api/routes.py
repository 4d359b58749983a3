"""The one table of methods and routes: the server serves it, the client calls it, the API description prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ...core.model.resources import ResourcesUpdate
from ...core.model.rollout import Attempt, Rollout, Worker
from ...core.model.span import Span
from . import schemas

PREFIX = "/v1/agl"
CALLS_PATH = PREFIX + "/calls"
EVENTS_PATH = PREFIX + "/events"
HEALTH_PATH = PREFIX + "/health"
OPENAPI_PATH = PREFIX + "/openapi.json"
LOG_PATH = PREFIX + "/log"
OTLP_TRACES_PATH = "/v1/traces"
OTLP_UNSUPPORTED = ("/v1/metrics", "/v1/logs", "/v1/development/profiles")

COMMAND_HEADER = "Idempotency-Key"
BASIS_HEADER = "X-AGL-Basis"
POSITION_HEADER = "X-AGL-Position"
PRINT_HEADER = "X-AGL-Print"

DEFAULT_PORT = 4747
LONGEST_HOLD_SECONDS = 300.0
"""A held call is answered after this long in any case; the client asks again, and a dead connection is noticed."""

Result = Literal[
    "attempt", "attempted", "attempteds", "fingerprint", "none", "number", "numbers", "plain", "resources",
    "resources_page", "rollout", "rollouts", "rollout_page", "attempt_page", "span", "spans", "span_page",
    "worker", "worker_page",
]  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One store method in the API.

    `shown`: how the access log names a call of it (the paths of the older routes). `result`: what it returns.
    `shared`: calls are small and quick, so that concurrent ones of a client travel together. `claims`: returns work.
    `may_wait`: can be held by the server, and is given up when the caller is gone. `not_null`: arguments that may be
    left out and may not be null. `page_of`: the model whose fields a query can be sorted by.
    """

    name: str
    body: type[schemas.Body]
    shown: str
    result: Result
    shared: bool = False
    claims: bool = False
    may_wait: bool = False
    not_null: frozenset[str] = frozenset()
    page_of: type[Any] | None = None


def _methods(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


_ATTEMPT_FIELDS = frozenset(("status", "worker_id", "last_heartbeat_time", "metadata"))

METHODS = _methods(
    Method("start_rollout", schemas.StartRollout, "POST /start_rollout", "attempted", shared=True, claims=True),
    Method("enqueue_rollout", schemas.EnqueueRollout, "POST /enqueue_rollout", "rollout", shared=True),
    Method("enqueue_many_rollouts", schemas.EnqueueMany, "POST /enqueue_many_rollouts", "rollouts"),
    Method("dequeue_rollout", schemas.Dequeue, "GET /dequeue_rollout", "attempted", True, True, True),
    Method("dequeue_many_rollouts", schemas.DequeueMany, "GET /dequeue_many_rollouts", "attempteds", True, True, True),
    Method("start_attempt", schemas.StartAttempt, "POST /start_attempt", "attempted", shared=True, claims=True),
    Method(
        "update_rollout", schemas.UpdateRollout, "POST /update_rollout", "rollout", shared=True,
        not_null=frozenset(("status", "config")),
    ),
    Method(
        "update_attempt", schemas.UpdateAttempt, "POST /update_attempt", "attempt", shared=True,
        not_null=_ATTEMPT_FIELDS,
    ),
    Method("add_span", schemas.AddSpan, "POST /add_span", "span", shared=True),
    Method("add_many_spans", schemas.AddManySpans, "POST /add_many_spans", "spans", shared=True),
    Method(
        "get_next_span_sequence_id", schemas.AttemptKey,
        "GET /get_next_span_sequence_id/{rollout_id}/{attempt_id}", "number", shared=True,
    ),
    Method(
        "get_many_span_sequence_ids", schemas.AttemptKeys, "POST /get_many_span_sequence_ids", "numbers", shared=True
    ),
    Method("query_spans", schemas.QuerySpans, "GET /query_spans/{rollout_id}", "span_page", page_of=Span),
    Method("query_rollouts", schemas.QueryRollouts, "POST /query_rollouts", "rollout_page", page_of=Rollout),
    Method("query_attempts", schemas.QueryAttempts, "GET /query_attempts/{rollout_id}", "attempt_page", page_of=Attempt),
    Method("get_rollout_by_id", schemas.RolloutKey, "GET /get_rollout_by_id/{rollout_id}", "rollout", shared=True),
    Method("get_latest_attempt", schemas.RolloutKey, "GET /get_latest_attempt/{rollout_id}", "attempt", shared=True),
    Method("wait_for_rollouts", schemas.WaitForRollouts, "POST /wait_for_rollouts", "rollouts", may_wait=True),
    Method("add_resources", schemas.AddResources, "POST /add_resources", "resources"),
    Method("update_resources", schemas.UpdateResources, "POST /update_resources", "resources"),
    Method("get_resources_by_id", schemas.ResourcesKey, "GET /get_resources_by_id/{resources_id}", "resources"),
    Method("get_latest_resources", schemas.Nothing, "GET /get_latest_resources", "resources"),
    Method(
        "query_resources", schemas.QueryResources, "GET /query_resources", "resources_page", page_of=ResourcesUpdate
    ),
    Method("query_resource_versions", schemas.VersionsKey, "GET /query_resource_versions/{resources_id}",
           "resources_page"),
    Method("query_workers", schemas.QueryWorkers, "GET /query_workers", "worker_page", page_of=Worker),
    Method("get_worker_by_id", schemas.WorkerKey, "GET /get_worker_by_id/{worker_id}", "worker", shared=True),
    Method(
        "update_worker", schemas.UpdateWorker, "POST /update_worker", "worker", shared=True,
        not_null=frozenset(("heartbeat_stats",)),
    ),
    Method("confirm_claim", schemas.AttemptKey, "POST /confirm_claim", "none", shared=True),
    Method("add_dead_letter", schemas.AddDeadLetter, "POST /add_dead_letter", "none"),
    Method("query_dead_letters", schemas.Nothing, "GET /query_dead_letters", "plain"),
    Method("record_run_event", schemas.RecordRunEvent, "POST /record_run_event", "plain"),
    Method("query_runs", schemas.QueryRuns, "GET /query_runs", "plain"),
    Method("statistics", schemas.Nothing, "GET /statistics", "plain"),
    Method("fingerprint", schemas.Nothing, "GET /fingerprint", "fingerprint"),
)  # fmt: skip
"""Everything that a client can ask of a store, by name."""

READING = frozenset(
    name
    for name in METHODS
    if name in ("statistics", "fingerprint", "wait_for_rollouts", "confirm_claim")
    or name.startswith(("query_", "get_latest_", "get_rollout_", "get_resources_", "get_worker_"))
)
"""Methods that put nothing into the log, whose idempotency key says nothing."""

Source = Literal["body", "query"]
Answer = Literal["as_is", "items", "sequence_id", "must_exist"]


@dataclass(frozen=True)
class Route:
    """One HTTP route that stands for one call of a method.

    `source`: where arguments come from; those in the path are added in either case. `whole`: the argument that is
    the whole body. `optional`: the body may be missing. `answer`: the result as it is, the `items` of a page, an
    object with `sequence_id`, or 404 where there is none (`must_exist`). `old`: one of the routes before version 0.3.
    """

    verb: Literal["GET", "POST"]
    path: str
    method: str
    status: int = 200
    source: Source = "body"
    whole: str | None = None
    optional: bool = False
    answer: Answer = "as_is"
    old: bool = False


def _new(verb: Literal["GET", "POST"], path: str, method: str, status: int = 200, **options: Any) -> Route:
    return Route(verb, PREFIX + path, method, status, **({"source": "query"} if verb == "GET" else {}), **options)


def _old(verb: Literal["GET", "POST"], path: str, method: str, **options: Any) -> Route:
    return Route(verb, path, method, **({"source": "query"} if verb == "GET" else {}), old=True, **options)


ROUTES: tuple[Route, ...] = (
    _new("GET", "/statistics", "statistics"),
    _new("GET", "/fingerprint", "fingerprint"),
    _new("GET", "/runs", "query_runs"),
    _new("POST", "/runs/events", "record_run_event", 201),
    _new("POST", "/queues/rollouts/enqueue", "enqueue_many_rollouts", 201),
    _new("POST", "/queues/rollouts/dequeue", "dequeue_many_rollouts", optional=True),
    _new("POST", "/rollouts", "start_rollout", 201),
    _new("GET", "/rollouts", "query_rollouts"),
    _new("POST", "/rollouts/search", "query_rollouts", optional=True),
    _new("GET", "/rollouts/{rollout_id}", "get_rollout_by_id", answer="must_exist"),
    _new("POST", "/rollouts/{rollout_id}", "update_rollout"),
    _new("POST", "/rollouts/{rollout_id}/attempts", "start_attempt", 201, optional=True),
    _new("GET", "/rollouts/{rollout_id}/attempts", "query_attempts"),
    _new("POST", "/rollouts/{rollout_id}/attempts/search", "query_attempts", optional=True),
    _new("GET", "/rollouts/{rollout_id}/attempts/latest", "get_latest_attempt"),
    _new("POST", "/rollouts/{rollout_id}/attempts/{attempt_id}", "update_attempt"),
    _new("GET", "/resources", "query_resources"),
    _new("POST", "/resources", "add_resources", 201, whole="resources"),
    _new("GET", "/resources/latest", "get_latest_resources"),
    _new("GET", "/resources/{resources_id}", "get_resources_by_id"),
    _new("GET", "/resources/{resources_id}/versions", "query_resource_versions"),
    _new("POST", "/resources/{resources_id}", "update_resources", whole="resources"),
    _new("POST", "/spans", "add_span", 201, whole="span"),
    _new("GET", "/spans", "query_spans"),
    _new("POST", "/spans/search", "query_spans"),
    _new("POST", "/spans/next", "get_next_span_sequence_id", answer="sequence_id"),
    _new("POST", "/waits/rollouts", "wait_for_rollouts"),
    _new("GET", "/workers", "query_workers"),
    _new("POST", "/workers/search", "query_workers", optional=True),
    _new("GET", "/workers/{worker_id}", "get_worker_by_id"),
    _new("POST", "/workers/{worker_id}", "update_worker", optional=True),
    _old("POST", "/start_rollout", "start_rollout"),
    _old("POST", "/enqueue_rollout", "enqueue_rollout"),
    _old("GET", "/dequeue_rollout", "dequeue_rollout"),
    _old("POST", "/start_attempt", "start_attempt"),
    _old("POST", "/query_rollouts", "query_rollouts", optional=True, answer="items"),
    _old("GET", "/query_attempts/{rollout_id}", "query_attempts", answer="items"),
    _old("GET", "/get_latest_attempt/{rollout_id}", "get_latest_attempt"),
    _old("GET", "/get_rollout_by_id/{rollout_id}", "get_rollout_by_id"),
    _old("POST", "/add_resources", "add_resources"),
    _old("POST", "/update_resources", "update_resources"),
    _old("GET", "/get_resources_by_id/{resources_id}", "get_resources_by_id"),
    _old("GET", "/get_latest_resources", "get_latest_resources"),
    _old("POST", "/add_span", "add_span", whole="span"),
    _old("GET", "/get_next_span_sequence_id/{rollout_id}/{attempt_id}", "get_next_span_sequence_id"),
    _old("POST", "/wait_for_rollouts", "wait_for_rollouts"),
    _old("GET", "/query_spans/{rollout_id}", "query_spans", answer="items"),
    _old("POST", "/update_rollout", "update_rollout"),
    _old("POST", "/update_attempt", "update_attempt"),
)
"""Paths in order of precedence: a fixed segment stands before a parameter."""
