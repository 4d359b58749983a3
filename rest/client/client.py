"""LightningStoreClient: the store interface over HTTP, for runners and algorithms in other processes."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, cast

from msgspec import to_builtins

from ...core.errors import InvalidInput, StoreUnreachable
from ...core.ids import uuid7_hex
from ...core.log.dead_letter import DeadLetter
from ...core.model.resources import ResourcesUpdate, validate_resources
from ...core.model.rollout import (
    AttemptedRollout,
    EnqueueRolloutRequest,
    Fact,
    Rollout,
)
from ...core.model.span import Span
from ...core.model.store_interface import (
    UNSET,
    DelegatingStore,
    LightningStore,
    LightningStoreCapabilities,
)
from ..api.routes import LONGEST_HOLD_SECONDS, OTLP_TRACES_PATH, PREFIX
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


class LightningStoreClient(RetryingClient, DelegatingStore):
    """A store that lives at `server_address` (``http://host:port``).

    By default a call waits until the store answers, for up to `patience_seconds` (math.inf: for ever), and says so in
    one line; every repetition carries the same idempotency key, so that nothing happens twice. With `retry_delays` a
    call is repeated after each of them, and dequeue calls, which are repeated by their callers anyway, not at all.
    What the store refuses is raised at once, as the class that the store raised: NotFound and InvalidInput (both
    ValueErrors), Unauthorized, Refused and others; StoreUnreachable when nothing answered.
    `request_timeout`, `connection_timeout`: seconds for one try.
    """

    _dequeued_before = False
    decided = LightningStore.decided

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if name == "query_rollouts" and kwargs.get("status") is not None:
            warnings.warn("query_rollouts(status=...) is now called status_in", DeprecationWarning, stacklevel=3)
        given = dict(_SIGNATURES[name].bind(self, *args, **kwargs).arguments)
        del given["self"]
        return await self.call(name, {key: _plain(key, value) for key, value in given.items() if value is not UNSET})

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

    # Queue and attempts

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

    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        if not rollout_attempt_ids:
            return []
        return await self.call("get_many_span_sequence_ids", {"rollout_attempt_ids": list(rollout_attempt_ids)})

    # Reading rollouts and attempts

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


def _constant(value: float) -> Callable[[], float]:
    return lambda: value


def _numbered(span: Span, sequence_id: int) -> Span:
    return span.model_copy(update={"sequence_id": sequence_id})


def _plain(name: str, value: Any) -> Any:
    """Any sequence or set as a list; the input of a rollout stays what the caller gave."""
    if name == "input" or isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, Set)):
        return value
    return list(cast("Sequence[Any]", value))


_SIGNATURES = {
    name: inspect.signature(method) for name, method in vars(LightningStore).items() if inspect.iscoroutinefunction(method)
}
