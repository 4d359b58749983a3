"""LightningStoreClient: the store interface over HTTP, for runners and algorithms in other processes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from msgspec import to_builtins

from ...core.errors import InvalidInput, StoreUnreachable
from ...core.ids import uuid7_hex
from ...core.log.dead_letter import DeadLetter
from ...core.model.resources import ResourcesUpdate, validate_resources
from ...core.model.rollout import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    EnqueueRolloutRequest,
    Fact,
    PaginatedResult,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    TaskInput,
    Worker,
)
from ...core.model.span import Span
from ...core.model.store_interface import (
    UNSET,
    LightningStore,
    LightningStoreCapabilities,
    LightningStoreStatistics,
    Unset,
)
from ..api.routes import LONGEST_HOLD_SECONDS, METHODS, OTLP_TRACES_PATH, PREFIX
from .sse import follow
from .transport import RetryingClient, time_left

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = logging.getLogger("agentlightning.store.client")

LONGEST_POLL_SECONDS = 60.0
MOST_SPANS = 5_000
"""Of one request; a server takes ten times as many spans, events and links."""
_ANSWERED_EARLY_SECONDS = 0.5


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not UNSET}


class LightningStoreClient(RetryingClient, LightningStore):
    """A store that lives at `server_address` (``http://host:port``).

    By default a call waits until the store answers, for up to `patience_seconds` (math.inf: for ever), and says so in
    one line; every repetition carries the same idempotency key, so that nothing happens twice. With `retry_delays` a
    call is repeated after each of them, and dequeue calls, which are repeated by their callers anyway, not at all.
    What the store refuses is raised at once, as the class that the store raised: NotFound and InvalidInput (both
    ValueErrors), Unauthorized, Refused and others; StoreUnreachable when nothing answered.
    `request_timeout`, `connection_timeout`: seconds for one try.
    """

    _dequeued_before = False

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return LightningStoreCapabilities(
            thread_safe=True,
            async_safe=True,
            zero_copy=True,
            otlp_traces=True,
            push_dequeue=True,
            run_claims=True,
            liveness=True,
            subscribe=True,
        )

    @property
    def server_address(self) -> str:
        """The base of the routes."""
        return self.server_address_root + PREFIX

    def otlp_traces_endpoint(self) -> str:
        return self.server_address_root + OTLP_TRACES_PATH

    def position(self) -> str | None:
        """The newest position token that an answer carried; None before the first one."""
        return self._seen.token

    async def health(self) -> bool:
        """True once the store answers. Raises as every call does."""
        await self._retry.run(self._hello)
        return True

    async def remote_fingerprint(self) -> tuple[int, str]:
        """(position, hex fingerprint) of the store, as `EventLogStore.fingerprint` gives it."""
        found = await self.call("fingerprint", {})
        return found["position"], found["fingerprint"]

    async def statistics(self) -> LightningStoreStatistics:
        return await self.call("statistics", {})

    # Queue and attempts

    async def start_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> AttemptedRollout:
        args = _given(
            input=input, mode=mode, resources_id=resources_id, config=config, metadata=metadata, worker_id=worker_id
        )
        return await self.call("start_rollout", args)

    async def enqueue_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Rollout:
        args = _given(input=input, mode=mode, resources_id=resources_id, config=config, metadata=metadata)
        return await self.call("enqueue_rollout", args)

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        return await self.call("enqueue_many_rollouts", {"rollouts": list(rollouts)}) if rollouts else []

    async def dequeue_rollout(
        self,
        worker_id: str | None = None,
        *,
        wait_seconds: float = 0.0,
        incarnation: str | None = None,
        command_id: str | None = None,
        run_id: str | None = None,
    ) -> AttemptedRollout | None:
        args = _given(worker_id=worker_id, incarnation=incarnation, run_id=run_id)
        return await self._dequeue("dequeue_rollout", args, wait_seconds, command_id)

    async def dequeue_many_rollouts(
        self,
        *,
        limit: int = 1,
        worker_id: str | None = None,
        wait_seconds: float = 0.0,
        incarnation: str | None = None,
        command_id: str | None = None,
        run_id: str | None = None,
    ) -> Sequence[AttemptedRollout]:
        if limit <= 0:
            return []
        args = _given(worker_id=worker_id, incarnation=incarnation, limit=limit, run_id=run_id)
        return await self._dequeue("dequeue_many_rollouts", args, wait_seconds, command_id) or []

    async def _dequeue(self, name: str, args: dict[str, Any], wait_seconds: float, command_id: str | None) -> Any:
        """Long polls, one after the other; each is a command of its own unless the caller named one."""
        if wait_seconds != wait_seconds:
            raise InvalidInput("wait_seconds is not a number")
        left = time_left(wait_seconds if wait_seconds > 0 else 0.0)
        while True:
            poll = min(max(left(), 0.0), LONGEST_POLL_SECONDS)
            hold = None
            if poll > 0:
                args = {**args, "wait_seconds": poll}
                hold = _constant(poll)
            try:
                result = await self.call(name, args, command_id=command_id or uuid7_hex(), hold=hold)
            except StoreUnreachable:
                if self.retry_delays is None:
                    raise
                if self._dequeued_before:
                    self._dequeued_before = False
                    log.warning("the store at %s does not answer; nothing was dequeued", self.server_address_root)
                return None
            self._dequeued_before = True
            if result or left() <= 0:
                return result

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        return await self.call("start_attempt", {"rollout_id": rollout_id, "worker_id": worker_id})

    async def update_rollout(
        self,
        rollout_id: str,
        input: TaskInput | Unset = UNSET,
        mode: RolloutMode | None | Unset = UNSET,
        resources_id: str | None | Unset = UNSET,
        status: RolloutStatus | Unset = UNSET,
        config: RolloutConfig | Unset = UNSET,
        metadata: dict[str, Any] | None | Unset = UNSET,
    ) -> Rollout:
        args = _given(
            rollout_id=rollout_id,
            input=input,
            mode=mode,
            resources_id=resources_id,
            status=status,
            config=config,
            metadata=metadata,
        )
        return await self.call("update_rollout", args)

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str,
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | Unset = UNSET,
        last_heartbeat_time: float | Unset = UNSET,
        metadata: dict[str, Any] | Unset = UNSET,
    ) -> Attempt:
        args = _given(
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            status=status,
            worker_id=worker_id,
            last_heartbeat_time=last_heartbeat_time,
            metadata=metadata,
        )
        return await self.call("update_attempt", args)

    # Dead letters

    async def add_dead_letter(self, letter: DeadLetter | Mapping[str, Any]) -> None:
        """As `EventLogStore.add_dead_letter`."""
        await self.call("add_dead_letter", {"letter": to_builtins(letter)})

    async def query_dead_letters(self) -> list[dict[str, Any]]:
        """As `EventLogStore.query_dead_letters`."""
        return await self.call("query_dead_letters", {})

    # Runs

    async def record_run_event(
        self, type: str, run_id: str | None = None, fields: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """As `EventLogStore.record_run_event`."""
        return await self.call("record_run_event", {"type": type, "run_id": run_id, "fields": fields})

    async def query_runs(self, run_id: str | None = None, brief: bool = False) -> list[dict[str, Any]]:
        """As `EventLogStore.query_runs`."""
        return await self.call("query_runs", {"run_id": run_id, "brief": brief})

    # Spans

    async def add_span(self, span: Span) -> Span | None:
        number = await self.call("add_span", {"span": span})
        return None if number is None else _numbered(span, number)

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        if not spans:
            return []
        if len(spans) > MOST_SPANS:
            parts = [spans[start : start + MOST_SPANS] for start in range(0, len(spans), MOST_SPANS)]
            return [span for part in parts for span in await self.add_many_spans(part)]
        stored = await self.call("add_many_spans", {"spans": list(spans)})
        sent = {(span.rollout_id, span.attempt_id, span.span_id): span for span in reversed(spans)}
        return [_numbered(sent[(rollout, attempt, span)], number) for rollout, attempt, span, number in stored]

    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        # Sequence id 0 asks the store for the next one, without a call before this one.
        span = Span.from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id or 0)
        return await self.add_span(span)

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        args = {"rollout_id": rollout_id, "attempt_id": attempt_id}
        return await self.call("get_next_span_sequence_id", args)

    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        if not rollout_attempt_ids:
            return []
        return await self.call("get_many_span_sequence_ids", {"rollout_attempt_ids": list(rollout_attempt_ids)})

    async def query_spans(
        self, rollout_id: str, attempt_id: str | None = None, **conditions: Any
    ) -> PaginatedResult[Span]:
        args = {"rollout_id": rollout_id, "attempt_id": attempt_id, **_known("query_spans", conditions)}
        return await self.call("query_spans", args)

    # Reading rollouts and attempts

    async def query_rollouts(
        self, rollout_ids: Sequence[str] | None = None, **conditions: Any
    ) -> PaginatedResult[Rollout | AttemptedRollout]:
        if conditions.get("status") is not None:
            warnings.warn("query_rollouts(status=...) is now called status_in", DeprecationWarning, stacklevel=2)
        args = {"rollout_ids": _listed(rollout_ids), **_known("query_rollouts", conditions)}
        return await self.call("query_rollouts", args)

    async def query_attempts(self, rollout_id: str, **conditions: Any) -> PaginatedResult[Attempt]:
        return await self.call("query_attempts", {"rollout_id": rollout_id, **_known("query_attempts", conditions)})

    async def get_rollout_by_id(self, rollout_id: str) -> AttemptedRollout | Rollout | None:
        return await self.call("get_rollout_by_id", {"rollout_id": rollout_id})

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        return await self.call("get_latest_attempt", {"rollout_id": rollout_id})

    async def wait_for_rollouts(self, rollout_ids: Sequence[str], timeout: float | None = None) -> list[Rollout]:
        ids = list(rollout_ids)
        left = time_left(timeout)

        def hold() -> float:
            return min(max(left(), 0.0), LONGEST_HOLD_SECONDS)

        def args() -> dict[str, Any]:
            return {"rollout_ids": ids, "timeout": hold()}

        while True:
            asked = hold()
            answered = time_left(asked)
            found = await self.call("wait_for_rollouts", args, hold=hold)
            # The server answers early only when none of them runs any more; a full hold of the longest kind asks again.
            over = len(found) == len(ids) or asked < LONGEST_HOLD_SECONDS
            if over or answered() > _ANSWERED_EARLY_SECONDS:
                return found

    def subscribe(self, types: Sequence[str] | None = None, *, since: int | None = None) -> AsyncIterator[Fact]:
        wanted = [types] if isinstance(types, str) else None if types is None else list(types)
        return follow(self.transport, self._retry, wanted, since)

    # Resources and workers

    async def add_resources(self, resources: Mapping[str, Any]) -> ResourcesUpdate:
        return await self.call("add_resources", {"resources": validate_resources(resources)})

    async def update_resources(self, resources_id: str, resources: Mapping[str, Any]) -> ResourcesUpdate:
        args = {"resources_id": resources_id, "resources": validate_resources(resources)}
        return await self.call("update_resources", args)

    async def get_resources_by_id(self, resources_id: str, version: int | None = None) -> ResourcesUpdate | None:
        return await self.call("get_resources_by_id", {"resources_id": resources_id, "version": version})

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        return await self.call("get_latest_resources", {})

    async def query_resources(self, **conditions: Any) -> PaginatedResult[ResourcesUpdate]:
        return await self.call("query_resources", _known("query_resources", conditions))

    async def query_resource_versions(self, resources_id: str) -> PaginatedResult[ResourcesUpdate]:
        return await self.call("query_resource_versions", {"resources_id": resources_id})

    async def query_workers(self, **conditions: Any) -> PaginatedResult[Worker]:
        return await self.call("query_workers", _known("query_workers", conditions))

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        return await self.call("get_worker_by_id", {"worker_id": worker_id})

    async def update_worker(
        self,
        worker_id: str,
        heartbeat_stats: dict[str, Any] | Unset = UNSET,
        *,
        incarnation: str | None = None,
        attempts: Sequence[tuple[str, str]] | None = None,
    ) -> Worker:
        if heartbeat_stats is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise InvalidInput("heartbeat_stats is invalid; it cannot be a null value.")
        args = _given(
            worker_id=worker_id, heartbeat_stats=heartbeat_stats, incarnation=incarnation, attempts=_listed(attempts)
        )
        return await self.call("update_worker", args)


def _constant(value: float) -> Callable[[], float]:
    return lambda: value


def _numbered(span: Span, sequence_id: int) -> Span:
    return span.model_copy(update={"sequence_id": sequence_id})


def _known(name: str, conditions: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a query, which are the fields of its body. Raises TypeError for any other."""
    fields = METHODS[name].body.model_fields
    for key in conditions:
        if key not in fields:
            raise TypeError(f"{name}() got an unexpected keyword argument {key!r}")
    return {key: _plain_list(value) for key, value in conditions.items()}


def _plain_list(value: Any) -> Any:
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, (tuple, set, frozenset)) else value


def _listed(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)
