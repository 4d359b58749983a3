"""The client without its methods: connections by event loop, retries under one command id, claims confirmed."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast
from urllib.parse import urlsplit

from ...core.credentials import mask_text
from ...core.errors import AgentLightningError, Expired, ForeignPosition, InvalidInput, StoreUnreachable
from ...core.ids import uuid7_hex
from ...core.retry import CALL_BACKOFF, Retry
from ..api import encoding
from ..api.routes import METHODS, Method
from .batcher import RETRY_STATUSES, Seen, Transient, Transport, answered_error

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
        raise InvalidInput(f"the address of a store is a text such as http://localhost:4747, not {type(address).__name__}")
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
        transport = Transport(self.server_address_root, self._seen, self._token, self.request_timeout, self.connection_timeout)
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
        """Nothing was heard from this attempt yet, so tell the store that its claim arrived."""
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
    connector = transport.session.connector
    transport.session.detach()
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
