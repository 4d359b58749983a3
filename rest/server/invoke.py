"""A request becomes one call of a store method: body, arguments, idempotency key, how long it may wait, its answer."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeVar, get_args, get_origin

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...core.errors import (
    ForeignPosition,
    InvalidInput,
    NotFound,
    PayloadTooLarge,
    Refused,
    StoreUnreachable,
    printable,
)
from ...core.ids import uuid7_hex
from ...core.model.resources import masked
from ...core.model.store_interface import LightningStore
from ...projections.replica.command_context import Call, serve
from ..api import encoding
from ..api.encoding import LARGE_BODY, as_dict, count_spans
from ..api.routes import (
    BASIS_HEADER,
    COMMAND_HEADER,
    LONGEST_HOLD_SECONDS,
    METHODS,
    PRINT_HEADER,
    READING,
    Method,
    Route,
)
from ..api.schemas import Page

ACCESS_LOGGER = "agentlightning.store.server.access"
access_log = logging.getLogger(ACCESS_LOGGER)
_beat_log = logging.getLogger("agentlightning.store.server.heartbeats")
"""Apart, so that the calls can be shown without what every worker sends every few seconds."""
_BEATS = ("POST /update_worker", "POST /v1/agl/workers/", "GET /health", "GET /v1/agl/health", "POST /heartbeat")


class Disconnected(Exception):
    """The caller went away before its request was complete."""


def header(scope: Scope, name: bytes) -> str | None:
    """A request header by its lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises `PayloadTooLarge` beyond `limit` bytes, after reading on so that the answer arrives."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected()
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > 4 * limit:
            break
        if not message.get("more_body", False):
            break
    if size > limit:
        raise PayloadTooLarge(
            f"The request is larger than the limit of {limit} bytes (max_payload_mb)", limit=limit, size=size
        )
    return b"".join(chunks) if len(chunks) != 1 else chunks[0]


async def until_gone(receive: Receive) -> None:
    """Returns when the connection is lost."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(
    send: Send, status: int, body: bytes, content_type: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send a whole answer."""
    fields = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    if headers:
        fields.extend(headers)
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


_PATH_ARGUMENTS = ("rollout_id", "attempt_id", "resources_id", "worker_id")


def shown_path(method: Method | None, args: dict[str, Any] | None) -> str:
    """The verb and path under which the access log names a call; of what is no call they are not known."""
    if method is None or args is None:
        return "POST /?"
    if "{" not in method.shown:
        return method.shown
    return method.shown.format_map({key: args.get(key, "-") for key in _PATH_ARGUMENTS})


def notes_access() -> bool:
    """Whether access lines are written at all; where they are not, a call is not named for one either."""
    return access_log.isEnabledFor(logging.DEBUG) or _beat_log.isEnabledFor(logging.DEBUG)


def note_access(scope: Scope, shown: str, status: int, seconds: float) -> None:
    """One access line at DEBUG, in the form of the tutorial's log."""
    log = _beat_log if shown.startswith(_BEATS) else access_log
    if log.isEnabledFor(logging.DEBUG):
        client = scope.get("client") or ("-", 0)
        version = scope.get("http_version", "1.1")
        log.debug(
            '%s:%s - "%s HTTP/%s" %d in %.2f ms', client[0], client[1], printable(shown), version, status, seconds * 1e3
        )


T = TypeVar("T")

CATCH_UP_SECONDS = 5.0
"""How long a caller is held back until this store has seen what the caller has."""
MAX_KEY_LENGTH = 200
KEPT_KEYS = 20_000
"""Idempotency keys of which this process remembers the call."""
_KEPT = {
    "add_dead_letter": "dead letters",
    "query_dead_letters": "dead letters",
    "record_run_event": "runs",
    "query_runs": "runs",
}
"""Methods beyond the contract, and what a store that lacks them does not keep."""
_LISTS_OF_RESOURCES = ("query_resources", "query_resource_versions")


class CallerGone(Exception):
    """The connection of a held call was lost: nobody reads the answer."""


class Calls:
    """Runs calls on a store. Held calls are remembered, so that a server that stops can end them."""

    def __init__(self, store: LightningStore) -> None:
        self.store = store
        self._keys = _Keys()
        self._held: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def run(self, method: Method, args: dict[str, Any], command: Call | None) -> Any:
        """Check the arguments and call the store. Raises pydantic's ValidationError and what the store raises."""
        name = method.name
        if name in ("add_span", "add_many_spans"):
            count_spans(args)
        given = method.body.model_validate(args).given()
        for field in method.not_null:
            if field in given and given[field] is None:
                raise InvalidInput(f"{field} is invalid; it cannot be a null value.")
        if method.may_wait:
            _bound_the_wait(given)
        if name in ("fingerprint", "confirm_claim"):
            return await self._beyond_the_contract(name, given)
        if name in _KEPT:
            own = getattr(type(self.store), name, None) or getattr(self.store, name, None)
            if own in (None, getattr(LightningStore, name, None)):
                raise InvalidInput(f"this store keeps no {_KEPT[name]}")
        # Set in every case: the connection's context may be shared by requests that follow each other.
        serve(command or Call(uuid7_hex()))
        if command is not None and name not in READING:
            self._keys.use(command, method, args)
            try:
                return await getattr(self.store, name)(**given)
            except (ForeignPosition, InvalidInput, NotFound):
                self._keys.free(command)  # nothing happened: it is free for the call as it was meant
                raise
        answer = await getattr(self.store, name)(**given)
        if name in _LISTS_OF_RESOURCES:  # people list them; a runner asks for those that it needs
            shown = [one.model_copy(update={"resources": masked(one.resources)}) for one in answer.items]
            return answer.model_copy(update={"items": shown})
        return answer

    async def _beyond_the_contract(self, name: str, given: dict[str, Any]) -> Any:
        own = getattr(self.store, name, None)
        if name == "confirm_claim":
            if own is not None:
                await own(given["rollout_id"], given["attempt_id"])
            return None
        if own is None:
            raise InvalidInput("this store keeps no fingerprint")
        position, digest = own()
        return {"position": position, "fingerprint": digest}

    async def held(self, work: Coroutine[Any, Any, T], gone: Callable[[], Coroutine[Any, Any, None]]) -> T:
        """Run a call that may wait long, until the caller is `gone` or the server stops.

        Raises `CallerGone` in the first case and `StoreUnreachable` in the second.
        """
        if self._closing:
            work.close()
            raise StoreUnreachable("the store is shutting down")
        task = self.hold(work)
        watch = asyncio.ensure_future(gone())
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not task.cancelled():
                return task.result()
            raise StoreUnreachable("the store is shutting down") if self._closing else CallerGone()
        finally:
            watch.cancel()
            task.cancel()

    def hold(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that :meth:`stop` cancels."""
        task = asyncio.ensure_future(work)
        self._held.add(task)
        task.add_done_callback(self._held.discard)
        if self._closing:
            task.cancel()
        return task

    @property
    def closing(self) -> bool:
        """Whether the server stops."""
        return self._closing

    def stop(self) -> None:
        """End every held call."""
        self._closing = True
        for task in tuple(self._held):
            task.cancel()

    def position(self) -> str | None:
        """The store's position token; None for a store that has none."""
        own: Any = getattr(self.store, "position", None)
        return None if own is None else own()

    def basis(self) -> str | None:
        """What a client's next command can be based on: "position:fingerprint"."""
        own: Any = getattr(self.store, "fingerprint", None)
        if own is None:
            return None
        position, digest = own()
        return f"{position}:{digest}"

    async def catch_up(self, token: str | None) -> None:
        """Wait until the store is current with its log, and has what the caller has seen.

        Raises `ForeignPosition` for a token of another log or history and for one ahead of the log, and `StoreUnreachable`
        when it takes too long.
        """
        current = getattr(self.store, "wait_current", None)
        if current is not None:
            await current()
        if not token:
            return
        wait = getattr(self.store, "wait_position", None)
        if wait is None or token == self.position():
            return
        if token.count(":") < 2:
            raise ForeignPosition(f"{token[:100]!r} is not a position of this store")
        reached = getattr(self.store, "reached", None)
        if reached is not None and reached(token):
            return
        try:
            await asyncio.wait_for(wait(token), CATCH_UP_SECONDS)
        except asyncio.TimeoutError:
            raise StoreUnreachable(f"the store has not reached position {token} yet") from None


class _Keys:
    """Which call each idempotency key was used for, of the newest ones: a key names one call, and its repetitions."""

    def __init__(self) -> None:
        self._calls: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def use(self, command: Call, method: Method, args: dict[str, Any]) -> None:
        """A call comes under its key. Raises `Refused` where the key stands for another one."""
        # Our own client makes a key for each call; its arguments are not looked at a second time.
        this = (method.name, b"" if command.remote else _digest(args))
        known = self._calls.setdefault(command.command_id, this)
        if known[0] != this[0] or (known[1] and this[1] and known[1] != this[1]):
            what = known[0] if known[0] != this[0] else f"{known[0]} with other arguments"
            raise Refused(
                f"the idempotency key {command.command_id[:100]} was used for {what}; a call needs a key of its own",
                reason="key_reused",
            )
        self._calls.move_to_end(command.command_id)
        if len(self._calls) > KEPT_KEYS:
            self._calls.popitem(last=False)

    def free(self, command: Call) -> None:
        """Forget what the key was used for."""
        self._calls.pop(command.command_id, None)


def _digest(args: dict[str, Any]) -> bytes:
    """Of the arguments, but for how long the caller waits, which a repetition may change."""
    kept = {name: value for name, value in args.items() if name not in ("wait_seconds", "timeout")}
    return sha256(json.dumps(kept, sort_keys=True, default=str).encode()).digest()


def command_of(command_id: str | None, basis: str | None, remote: bool) -> Call | None:
    """The idempotency key of a request, and what its caller knew. Raises `InvalidInput` for what is none."""
    if command_id is None:
        return None
    if not 0 < len(command_id) <= MAX_KEY_LENGTH or not command_id.isprintable():
        raise InvalidInput(f"an idempotency key has 1 to {MAX_KEY_LENGTH} printable characters")
    return Call(command_id, _basis_of(basis) if basis else None, remote, repeatable=True)


_BASIS = re.compile(r"([0-9]{1,18}):((?:[0-9a-f]{16})?)")


@lru_cache(1024)
def _basis_of(text: str) -> tuple[int, bytes]:
    """(position, fingerprint) of the last record that a caller knew; positions in headers count records."""
    found = _BASIS.fullmatch(text)
    if found is None:
        raise InvalidInput(f"{text[:100]!r} is not a basis: it looks like POSITION:FINGERPRINT, as {PRINT_HEADER} says it")
    return int(found[1]) - 1, bytes.fromhex(found[2])


def _bound_the_wait(given: dict[str, Any]) -> None:
    for name in ("wait_seconds", "timeout"):
        value = given.get(name, 0.0)
        if value is None or value > LONGEST_HOLD_SECONDS:
            given[name] = LONGEST_HOLD_SECONDS
        elif value != value:
            raise InvalidInput(f"{name} is not a number")


def waits(method: Method, args: Any) -> bool:
    """Say whether a call can be held for a while."""
    given = as_dict(args)
    if not method.may_wait or given is None:
        return False
    if method.name == "wait_for_rollouts":
        return given.get("timeout") is None or _positive(given["timeout"])
    return _positive(given.get("wait_seconds", 0.0))


def _positive(value: Any) -> bool:
    try:
        return float(value) > 0
    except (TypeError, ValueError):
        return False


def guard_page(method: Method, given: Any) -> None:
    """What the HTTP routes refuse of a page: unknown sort fields, a limit of 0, a negative offset."""
    if method.page_of is None or not isinstance(given, Page):
        return
    allowed = method.page_of.model_fields
    if given.sort_by is not None and given.sort_by not in allowed:
        raise InvalidInput(f"Invalid sort_by: {given.sort_by}, allowed fields are: {', '.join(allowed)}")
    if given.limit == 0 or given.limit < -1:
        raise InvalidInput("Limit must be greater than 0 or -1 for no limit")
    if given.offset < 0:
        raise InvalidInput("Offset must be greater than or equal to 0")


log = logging.getLogger("agentlightning.store.server")


class RouteHandler:
    """Serves one row of the table."""

    def __init__(self, route: Route, calls: Calls, body_limit: int) -> None:
        self.route = route
        self.method = METHODS[route.method]
        self._calls = calls
        self._limit = body_limit
        self._lists = frozenset(
            name for name, field in self.method.body.model_fields.items() if _is_list(field.annotation)
        )

    async def serve(self, request: Request) -> Response:
        """Answer one request; every refusal is JSON with a sentence."""
        try:
            result = await self._call(request)
            return Response(
                encoding.to_json(self._shape(request, result)), self.route.status, media_type="application/json"
            )
        except (CallerGone, Disconnected):
            raise
        except Exception as error:
            status = encoding.status_of(error)
            if status >= 500:
                encoding.note_failure(f"{request.method} {request.url.path}", status, error)
            headers = {"Retry-After": "1"} if status == 503 else None
            return Response(encoding.to_json(encoding.error_body(error)), status, headers, media_type="application/json")

    async def _call(self, request: Request) -> Any:
        args = await self._arguments(request)
        given = self.method.body.model_validate(args)
        guard_page(self.method, given)
        headers = request.headers
        command = command_of(headers.get(COMMAND_HEADER), headers.get(BASIS_HEADER), remote=False)
        work = self._calls.run(self.method, args, command)
        if waits(self.method, args):
            receive = request.receive
            return await self._calls.held(work, lambda: until_gone(receive))
        return await work

    async def _arguments(self, request: Request) -> dict[str, Any]:
        route = self.route
        args: dict[str, Any] = {}
        if route.source == "query":
            for name in request.query_params:
                values = request.query_params.getlist(name)
                args[name] = values if name in self._lists else values[-1]
        else:
            body = await read_body(request.scope, request.receive, self._limit)
            if body or not route.optional:
                if len(body) > LARGE_BODY:
                    value = await asyncio.to_thread(encoding.from_json, body)
                else:
                    value = encoding.from_json(body) if body else None
                args = self._from_body(value)
        args.update(request.path_params)
        return args

    def _from_body(self, value: Any) -> dict[str, Any]:
        if self.route.whole is not None:
            return {self.route.whole: value}
        if value is None and self.route.optional:
            return {}
        fields = encoding.as_dict(value)
        if fields is None:
            # Pydantic says what is missing, in the form of every other refusal of this kind.
            self.method.body.model_validate(value)
            raise InvalidInput("the body is a JSON object")
        return fields

    def _shape(self, request: Request, result: Any) -> Any:
        kind = self.route.answer
        if kind == "items":
            return result.items
        if kind == "sequence_id":
            return {"sequence_id": result}
        if kind == "must_exist" and result is None:
            raise NotFound.rollout(str(request.path_params.get("rollout_id")))
        return result


def _is_list(annotation: Any) -> bool:
    options = (annotation, *get_args(annotation))
    return any(get_origin(option) is list for option in options)
