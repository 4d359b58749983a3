"""The HTTP routes of the first protocol: /task, /resources and /rollout, in front of the routes of today."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..core.errors import InvalidInput, printable
from ..core.ids import uuid7_hex
from ..core.model.resources import ResourcesUpdate
from ..core.model.rollout import AttemptedRollout
from ..core.model.store_interface import LightningStore
from ..projections.replica.command_context import Call
from ..rest.api import encoding
from ..rest.api.encoding import count_json
from ..rest.api.routes import METHODS
from ..rest.server.app import StoreApp
from ..rest.server.invoke import CallerGone, Disconnected, read_body, until_gone
from .client import INCARNATION_HEADER, WORKER_HEADER
from .results import ATTEMPT_KEY, LIMIT_KEY, keep_result
from .task_protocol import RolloutLegacy, Task, TaskIfAny

__all__ = ["LegacyApp"]

log = logging.getLogger("agentlightning.server")


class LegacyApp:
    """Serves `store` to clients of the first protocol, and to those of today under their own routes."""

    def __init__(
        self,
        store: LightningStore,
        *,
        token: str | None = None,
        host: str = "127.0.0.1",
        allow_hosts: Sequence[str] = (),
        cors_allow_origins: Sequence[str] | str | None = None,
    ) -> None:
        self.store_app = StoreApp(store, token=token, host=host, allow_hosts=allow_hosts, cors_allow_origins=cors_allow_origins)
        self._store = store
        self._app = Starlette(
            routes=[
                Route("/task", self._guarded(self._task), methods=["GET"]),
                Route("/resources/latest", self._guarded(self._latest), methods=["GET"]),
                Route("/resources/{resources_id}", self._guarded(self._resources), methods=["GET"]),
                Route("/rollout", self._guarded(self._rollout), methods=["POST"]),
                Route("/heartbeat", self._guarded(self._heartbeat), methods=["POST"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: by path, to the first protocol or to that of today."""
        if scope["type"] == "http" and _is_legacy(scope["path"]):
            try:
                await self.store_app.enter(self._app, scope, receive, send)
            except (CallerGone, Disconnected) as gone:
                log.debug("a client went away: %r", gone)
            return
        await self.store_app(scope, receive, send)

    def stop(self) -> None:
        """End held calls."""
        self.store_app.stop()

    def _guarded(self, handler: Any) -> Any:
        async def endpoint(request: Request) -> Response:
            try:
                await self.store_app.calls.catch_up(None)
                return await handler(request)
            except (CallerGone, Disconnected):
                raise
            except Exception as error:
                status = encoding.status_of(error)
                if status >= 500:
                    encoding.note_failure(f"{request.method} {request.url.path}", status, error)
                return Response(encoding.to_json(encoding.error_body(error)), status, media_type="application/json")

        return endpoint

    async def _task(self, request: Request) -> Response:
        """The next task; with `wait_seconds` (ours) the answer waits that long for one."""
        worker, incarnation = request.headers.get(WORKER_HEADER), request.headers.get(INCARNATION_HEADER)
        try:
            seconds = max(0.0, float(request.query_params.get("wait_seconds", 0)))
        except ValueError:
            raise InvalidInput("wait_seconds is a number of seconds") from None
        args: dict[str, Any] = {"worker_id": worker, "incarnation": incarnation, "wait_seconds": seconds}
        calls = self.store_app.calls
        # Only a client that sends heartbeats can confirm that the answer arrived.
        work = calls.run(METHODS["dequeue_rollout"], args, Call(uuid7_hex(), remote=incarnation is not None))
        receive = request.receive
        claimed = await (calls.held(work, lambda: until_gone(receive)) if seconds else work)
        answer = (
            TaskIfAny(is_available=False) if claimed is None else TaskIfAny(is_available=True, task=_task_of(claimed))
        )
        return _json(answer)

    async def _latest(self, _: Request) -> Response:
        return _found(await self._store.get_latest_resources(), "No resources have been set on the server.")

    async def _resources(self, request: Request) -> Response:
        wanted = str(request.path_params["resources_id"])
        return _found(await self._store.get_resources_by_id(wanted), f"Resource ID '{wanted}' not found.")

    async def _heartbeat(self, request: Request) -> Response:
        """A heartbeat, an addition to the protocol. It has no access line: each worker sends one every two seconds."""
        worker = {"worker_id": request.headers.get(WORKER_HEADER), "incarnation": request.headers.get(INCARNATION_HEADER)}
        body = await read_body(request.scope, request.receive, self.store_app.body_limit)
        args = {**worker, "attempts": encoding.as_list(encoding.from_json(body))}
        await self.store_app.calls.run(METHODS["update_worker"], args, None)
        return Response(encoding.to_json({"status": "ok"}), media_type="application/json")

    async def _rollout(self, request: Request) -> Response:
        body = await read_body(request.scope, request.receive, self.store_app.body_limit)
        count_json(body)
        posted = RolloutLegacy.model_validate_json(body)
        if await keep_result(self._store, posted):
            log.info("Rollout received and stored: %s", printable(posted.rollout_id))
        else:
            log.warning("Rollout %s was finished before: a later result is kept beside it", printable(posted.rollout_id))
        message = f"Rollout {posted.rollout_id} received and stored."
        return Response(encoding.to_json({"status": "ok", "message": message}), media_type="application/json")


def _is_legacy(path: str) -> bool:
    return path in ("/task", "/rollout", "/heartbeat") or path.startswith("/resources/")


def _task_of(claimed: AttemptedRollout) -> Task:
    notes = {ATTEMPT_KEY: claimed.attempt.attempt_id, LIMIT_KEY: claimed.config.timeout_seconds}
    return Task(
        rollout_id=claimed.rollout_id,
        input=claimed.input,
        mode=claimed.mode,
        resources_id=claimed.resources_id,
        create_time=claimed.start_time,
        last_claim_time=claimed.attempt.start_time,
        num_claims=claimed.attempt.sequence_id,
        metadata={**(claimed.metadata or {}), **notes},
    )


def _json(value: Task | TaskIfAny | ResourcesUpdate) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")


def _found(update: ResourcesUpdate | None, otherwise: str) -> Response:
    if update is None:
        return Response(encoding.to_json({"detail": otherwise}), 404, media_type="application/json")
    return _json(update)
