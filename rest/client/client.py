"""LightningStoreClient: the store interface over HTTP, for runners and algorithms in other processes."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from itertools import count
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from msgspec import to_builtins

from ...core.credentials import mask_text
from ...core.errors import AgentLightningError, Expired, ForeignPosition, InvalidInput, StoreUnreachable
from ...core.ids import uuid7_hex
from ...core.log.dead_letter import DeadLetter
from ...core.model.resources import ResourcesUpdate, validate_resources
from ...core.model.rollout import AttemptedRollout, EnqueueRolloutRequest, Fact, Rollout
from ...core.model.span import Span
from ...core.model.store_interface import UNSET, DelegatingStore, LightningStore, LightningStoreCapabilities
from ...core.retry import CALL_BACKOFF, Retry
from ..api import encoding
from ..api.routes import LONGEST_HOLD_SECONDS, METHODS, OTLP_TRACES_PATH, PREFIX, Method
from .transport import RETRY_STATUSES, Seen, Transient, Transport, answered_error

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = logging.getLogger("agentlightning.store.client")

CONFIRM_AFTER_SECONDS = 1.0
FRESH_TRIES = 3
FOREIGN_TRIES = 5
PATIENCE_SECONDS = 120.0
_SIGNS_OF_LIFE = frozenset(("add_span", "update_attempt"))

Arguments = dict[str, Any] | Callable[[], dict[str, Any]]


def checked_address(address: str) -> str:
    """`http://host:port` without a trailing slash. Raises `InvalidInput` for any other form."""
    if not isinstance(cast(object, address), str):
        raise InvalidInput(
            f"the address of a store is a text such as http://localhost:4747, not {type(address).__name__}"
        )
    parts = urlsplit(address.strip())
    try:
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine or parts.query:
        raise InvalidInput(f"{mask_text(address)!r} is not the address of a store: it looks like http://localhost:4747")
    return address.strip().rstrip("/")


class RetryingClient:
    """Calls the methods of a store by name. Any thread and any number of event loops may use one.

    It pickles as its address and settings; connections are made where it is used.
    """

    def __init__(
        self,
        server_address: str,
        *,
        retry_delays: Sequence[float] | None = None,
        health_retry_delays: Sequence[float] = (0.1, 0.2, 0.5),
        request_timeout: float = 30.0,
        connection_timeout: float = 5.0,
        token: str | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.server_address_root = checked_address(server_address)
        self.retry_delays = None if retry_delays is None else tuple(float(delay) for delay in retry_delays)
        self.health_retry_delays = tuple(float(delay) for delay in health_retry_delays)
        self.request_timeout = request_timeout
        self.connection_timeout = connection_timeout
        self.patience_seconds = patience_seconds
        self._token = token
        self._prepare()

    def _prepare(self) -> None:
        self._seen = Seen()
        self._transports: dict[int, tuple[weakref.ref[asyncio.AbstractEventLoop], Transport]] = {}
        self._lock = threading.Lock()
        self._claims: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._confirming: set[asyncio.Task[Any]] = set()
        store = f"the store at {mask_text(self.server_address_root)}"
        self._retry = Retry(store, CALL_BACKOFF, limit_seconds=self.patience_seconds, logger=log)
        if self.retry_delays is not None:
            self._health = Retry(store, self.health_retry_delays, logger=log)
            self._retry = Retry(store, self.retry_delays, healthy=self._healthy, logger=log)

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_seen", "_transports", "_lock", "_claims", "_confirming", "_retry", "_health")
        return {key: value for key, value in self.__dict__.items() if key not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def transport(self) -> Transport:
        """The connections of the running event loop."""
        loop = asyncio.get_running_loop()
        entry = self._transports.get(id(loop))
        # The id of a loop that is gone may be that of a new one.
        if entry is not None and entry[0]() is loop:
            return entry[1]
        transport = Transport(
            self.server_address_root, self._seen, self._token, self.request_timeout, self.connection_timeout
        )
        with self._lock:
            self._transports[id(loop)] = (weakref.ref(loop), transport)
        return transport

    async def _hello(self) -> None:
        await self.transport().hello()

    async def _healthy(self) -> bool:
        if self.health_retry_delays:
            try:
                await self._health.run(self._hello)
            except StoreUnreachable:
                return False
        return True

    async def call(
        self, name: str, args: Arguments, *, command_id: str | None = None, hold: Callable[[], float] | None = None
    ) -> Any:
        """Call a method; its result as the store returns it.

        The same command id and basis go with every repetition. `args` may be a function where a repetition needs
        other values (time that is left). With `hold` the call has a request of its own, which the server may hold
        for as long as it says. Raises what the store raised, and `StoreUnreachable`.
        """
        method = METHODS[name]
        for fresh in range(FRESH_TRIES):
            tries = _Tries(self, method, args, command_id or uuid7_hex(), hold)
            try:
                result = await self._retry.run(tries.once)
            except Expired:
                # Refused as too old at its only try, so nothing happened: what it was based on was old, as after an
                # idle hour. It goes out again as a new command. After a lost answer nobody could know that.
                if tries.count > 1 or command_id is not None or fresh == FRESH_TRIES - 1:
                    raise
                await self._retry.run(self._hello)
                continue
            break
        else:
            raise AgentLightningError(f"{name} was never answered")
        self._watch_claims(method, args, result)
        return result

    def _watch_claims(self, method: Method, args: Arguments, result: Any) -> None:
        if method.claims and result:
            for claimed in encoding.as_list(result) or (result,):
                key = (claimed.rollout_id, claimed.attempt.attempt_id)
                loop = asyncio.get_running_loop()
                self._claims[key] = loop.call_later(CONFIRM_AFTER_SECONDS, self._confirm, key)
        elif self._claims and not callable(args):
            for key in _lives(method.name, args):
                timer = self._claims.pop(key, None)
                if timer is not None:
                    timer.cancel()

    def _confirm(self, key: tuple[str, str]) -> None:
        """No call has shown this attempt to be alive yet: confirm to the store that the claim arrived."""
        if self._claims.pop(key, None) is None:
            return
        task = asyncio.ensure_future(self._confirm_now(*key))
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    async def _confirm_now(self, rollout_id: str, attempt_id: str) -> None:
        try:
            await self.call("confirm_claim", {"rollout_id": rollout_id, "attempt_id": attempt_id})
        except AgentLightningError as error:
            log.debug("the claim of rollout %s was not confirmed: %s", rollout_id, error)

    async def close(self) -> None:
        """Close the connections of every event loop. The client can be used again afterwards."""
        for timer in self._claims.values():
            timer.cancel()
        self._claims.clear()
        for task in tuple(self._confirming):
            task.cancel()
        with self._lock:
            transports, self._transports = list(self._transports.values()), {}
        here = asyncio.get_running_loop()
        for reference, transport in transports:
            loop = reference()
            if loop is here:
                await transport.close()
            elif loop is not None and loop.is_running():
                closing = asyncio.run_coroutine_threadsafe(transport.close(), loop)
                await asyncio.wait_for(asyncio.wrap_future(closing), 5.0)
            else:
                await _abandon(transport)

    def close_sync(self) -> None:
        """:meth:`close` for callers without an event loop."""
        asyncio.run(self.close())


class _Tries:
    """The tries of one call: one id and one basis, taken at the first of them."""

    def __init__(
        self, caller: RetryingClient, method: Method, args: Arguments, command_id: str, hold: Callable[[], float] | None
    ) -> None:
        self._caller = caller
        self._method = method
        self._args = args
        self._id = command_id
        self._hold = hold
        self._basis: str | None = None
        self._frame: bytes | None = None
        self.count = 0

    async def once(self) -> Any:
        """Send it; raises `Transient` where it may be sent again.

        Where the store has another history than this client had seen, what was seen is dropped and the call is sent again
        at once: under its id it happens once in that history too.
        """
        seen = self._caller._seen  # pyright: ignore[reportPrivateUsage]
        for tries in count(1):
            token = seen.token
            try:
                return await self._send()
            except ForeignPosition as error:
                if tries == FOREIGN_TRIES:
                    raise
                seen.forget(token, mask_text(self._caller.server_address_root), error)
                self._basis = self._frame = None

    async def _send(self) -> Any:
        transport = self._caller.transport()
        seen = self._caller._seen  # pyright: ignore[reportPrivateUsage]
        if not seen.greeted:
            await transport.hello()
        if self._frame is None or callable(self._args):
            self._basis = self._basis or seen.basis
            args = self._args() if callable(self._args) else self._args
            self._frame = encoding.pack_call(self._id, self._method.name, args, self._basis)
        self.count += 1
        if self._hold is not None or not self._method.shared:
            (answer,) = await transport.post([self._frame], None if self._hold is None else self._hold())
        else:
            answer = await transport.ask(self._frame)
        status, result = answer
        result = encoding.unwrap(result, counted=False)
        if status == 200:
            return encoding.read_result(self._method.result, result)
        error = answered_error(status, result, transport.base)
        if status in RETRY_STATUSES or error.retryable:
            raise Transient(str(error), status=status) from error
        raise error


def _lives(name: str, args: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """The attempts that a call is a sign of life of."""
    if name in _SIGNS_OF_LIFE:
        span = args.get("span")
        if span is None:
            return ((args["rollout_id"], args["attempt_id"]),)
        return ((span.rollout_id, span.attempt_id),)
    if name == "add_many_spans":
        return [(span.rollout_id, span.attempt_id) for span in args["spans"]]
    if name == "update_worker":
        return [(rollout_id, attempt_id) for rollout_id, attempt_id in args.get("attempts") or ()]
    return ()


async def _abandon(transport: Transport) -> None:
    """Close sockets whose event loop does not run any more: nobody else can."""
    session = transport.session
    connector = None if session is None else session.connector
    if session is not None:
        session.detach()
    if connector is not None:
        try:
            await connector.close()
        except RuntimeError as error:
            log.debug("connections of an ended event loop: %s", error)


def time_left(timeout: float | None) -> Callable[[], float]:
    """A function of no arguments: the seconds until `timeout` is over, from now; infinite for None."""
    if timeout is None:
        return lambda: math.inf
    deadline = time.monotonic() + timeout
    return lambda: deadline - time.monotonic()


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
        given = _SIGNATURES[name].bind(args, kwargs)
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
        from .sse import follow

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


class _Signature:
    """The parameters of a method. `inspect` binds them too, and takes ten times as long, for every call."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._full = inspect.signature(method)
        _, *parameters = self._full.parameters.values()
        self._positional = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
        self._known = frozenset(one.name for one in parameters)
        self._required = frozenset(one.name for one in parameters if one.default is one.empty)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name. Raises TypeError as the method would."""
        given = dict(zip(self._positional, args))
        named = kwargs.keys()
        fits = len(args) <= len(self._positional) and named <= self._known and named.isdisjoint(given)
        given.update(kwargs)
        if not fits or not self._required <= given.keys():
            self._full.bind(None, *args, **kwargs)
        return given


_SIGNATURES = {
    name: _Signature(method)
    for name, method in vars(LightningStore).items()
    if inspect.iscoroutinefunction(method)
}
