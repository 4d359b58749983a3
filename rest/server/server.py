"""LightningStoreServer: serves a store over HTTP, and is that store for its own process."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ...core.errors import InvalidInput
from ...core.model.rollout import Fact
from ...core.model.store_interface import DelegatingStore, LightningStore, LightningStoreCapabilities
from ..api.routes import DEFAULT_PORT, OTLP_TRACES_PATH
from ..client.client import LightningStoreClient
from .app import DEFAULT_PAYLOAD_MB, StoreApp
from .delegating_store import LightningStoreThreaded
from .uvicorn_runner import Serving, access_host, check_bind

log = logging.getLogger("agentlightning.store.server")

LaunchMode = Literal["asyncio", "thread", "mp"]


@dataclass
class PythonServerLauncherArgs:
    """How to serve. `port` None or 0 is a free one, `host` None this machine only.

    `access_host`: the name under which clients reach it. What belongs to other servers than ours is taken and unused.
    """

    port: int | None = None
    host: str | None = None
    access_host: str | None = None
    launch_mode: LaunchMode = "asyncio"
    n_workers: int = 1
    healthcheck_url: str | None = None
    log_level: int = logging.INFO
    access_log: bool = False
    startup_timeout: float = 60.0
    kill_unhealthy_server: bool = True
    thread_join_timeout: float = 10.0
    process_join_timeout: float = 10.0
    timeout_keep_alive: int = 30


class LightningStoreServer(DelegatingStore):
    """A store that others reach over HTTP. In the process that made it, calls go straight to `store`.

    A pickled copy, and a forked child, act as a client of :attr:`endpoint`. Binding to more than this machine needs a
    `token` (`UnsafeBind`); with one, every route asks for it. Bound to this machine, it answers under the names of loopback
    and `allow_hosts`, and no page of another site than `cors_allow_origins` may call it (`AccessPolicy`). `launch_mode`:
    "thread" serves in a thread of its own, "asyncio" in the caller's event loop; several processes cannot write one event
    log, so "mp" is refused.
    """

    def __init__(
        self,
        store: LightningStore,
        host: str | None = None,
        port: int | None = None,
        cors_allow_origins: Sequence[str] | str | None = None,
        launch_mode: LaunchMode = "thread",
        launcher_args: PythonServerLauncherArgs | None = None,
        n_workers: int = 1,
        tracker: Any = None,
        token: str | None = None,
        max_payload_mb: float = DEFAULT_PAYLOAD_MB,
        allow_hosts: Sequence[str] = (),
    ) -> None:
        if launcher_args is not None and (host is not None or port is not None or launch_mode != "thread"):
            raise InvalidInput("Give launcher_args, or host, port and launch_mode, not both")
        if launcher_args is None:
            if port is None:
                port = DEFAULT_PORT
                log.warning("No port provided, using default port %d.", port)
            launcher_args = PythonServerLauncherArgs(port, host, launch_mode=launch_mode, n_workers=n_workers)
        _check(store, launcher_args)
        self.launcher_args = launcher_args
        self.tracker = tracker
        self._token = token
        host = launcher_args.host or "127.0.0.1"
        check_bind(host, token)
        self._owner_pid = os.getpid()
        self.store: LightningStore | None = store
        self._direct: LightningStore | None = store
        if not store.capabilities.get("thread_safe", False):
            self._direct = LightningStoreThreaded(store)
        self._app: StoreApp | None = StoreApp(
            store,
            token=token,
            cors_allow_origins=cors_allow_origins,
            max_payload_mb=max_payload_mb,
            host=host,
            allow_hosts=allow_hosts,
            access_host=launcher_args.access_host,
        )
        self._serving: Serving | None = Serving(self._app, host, launcher_args.port or 0)
        self._host, self._port = launcher_args.access_host or access_host(host), launcher_args.port or 0
        self._client: LightningStoreClient | None = None

    @property
    def app(self) -> Any:
        """The ASGI application; None in a copy that acts as a client."""
        return self._app

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        own = self.store.capabilities if self.store is not None else LightningStoreCapabilities()
        remote = self.store is None
        return LightningStoreCapabilities(
            thread_safe=True,
            async_safe=True,
            zero_copy=True,
            otlp_traces=True,
            push_dequeue=remote or own.get("push_dequeue", False),
            liveness=remote or own.get("liveness", False),
            run_claims=remote or own.get("run_claims", False),
            subscribe=remote or own.get("subscribe", False),
        )

    @property
    def endpoint(self) -> str:
        """``http://host:port`` for clients; with port 0 it is known after :meth:`start`."""
        return f"http://{self._host}:{self._port}"

    def otlp_traces_endpoint(self) -> str:
        return self.endpoint + OTLP_TRACES_PATH

    async def start(self) -> None:
        """Returns once the server answers. Raises RuntimeError where the port is taken."""
        serving = self._own_serving()
        await serving.start(in_thread=self.launcher_args.launch_mode != "asyncio")
        self._port = serving.port

    async def run_forever(self) -> None:
        """Serve until :meth:`stop` or cancellation."""
        serving = self._own_serving()
        await self.start()
        try:
            await serving.wait()
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Answer what is under way and close the port; the store stays open. Idempotent."""
        serving = self._own_serving()
        if self._app is not None:
            self._app.stop()
        await serving.stop()

    def _own_serving(self) -> Serving:
        if self._serving is None or os.getpid() != self._owner_pid:
            raise RuntimeError("Only the process that made a server starts and stops it")
        return self._serving

    def _target(self) -> LightningStore:
        if self._direct is not None and os.getpid() == self._owner_pid:
            return self._direct
        if self._client is None:
            self._client = LightningStoreClient(self.endpoint, token=self._token)
        return self._client

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self._target(), name)(*args, **kwargs)

    def subscribe(self, types: Sequence[str] | None = None, *, since: int | None = None) -> AsyncIterator[Fact]:
        return self._target().subscribe(types, since=since)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("launcher_args", "_token", "_owner_pid", "_host", "_port")
        return {key: self.__dict__[key] for key in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.store = self._direct = self._serving = self._client = self._app = self.tracker = None  # pyright: ignore[reportAttributeAccessIssue]


def _check(store: LightningStore, args: PythonServerLauncherArgs) -> None:
    if isinstance(store, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"A server takes a store and not its address; open it first: open_store({store!r})")
    if not store.capabilities.get("async_safe", False):
        raise InvalidInput("This store does not serve several tasks at once (async_safe), so it cannot be served")
    modes = get_args(LaunchMode)
    if args.launch_mode not in modes:
        raise InvalidInput(f"launch_mode is one of {', '.join(modes)}, not {args.launch_mode!r}")
    if args.launch_mode == "mp" or args.n_workers > 1:
        raise InvalidInput(
            'One process writes an event log, so launch_mode "mp" and several workers are refused: use "thread"'
        )
    if args.launch_mode == "thread" and not store.capabilities.get("thread_safe", False):
        log.warning("The store does not say that it is thread-safe, and is served in a thread.")
