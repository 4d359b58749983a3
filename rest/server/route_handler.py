"""One handler for every route of the table: reads the arguments, runs the call, shapes the answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, get_args, get_origin

from starlette.requests import Request
from starlette.responses import Response

from ...core.errors import InvalidInput, NotFound
from ..api import encoding as wire
from ..api.limits import LARGE_BODY
from ..api.routes import BASIS_HEADER, COMMAND_HEADER, METHODS, Route
from .asgi import Disconnected, read_body, until_gone
from .invoke import CallerGone, Calls, command_of, guard_page, waits

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
                wire.to_json(self._shape(request, result)), self.route.status, media_type="application/json"
            )
        except (CallerGone, Disconnected):
            raise
        except Exception as error:
            status = wire.status_of(error)
            if status >= 500:
                wire.note_failure(f"{request.method} {request.url.path}", status, error)
            headers = {"Retry-After": "1"} if status == 503 else None
            return Response(wire.to_json(wire.error_body(error)), status, headers, media_type="application/json")

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
                large = len(body) > LARGE_BODY
                value = await asyncio.to_thread(wire.from_json, body) if large else wire.from_json(body) if body else None
                args = self._from_body(value)
        args.update(request.path_params)
        return args

    def _from_body(self, value: Any) -> dict[str, Any]:
        if self.route.whole is not None:
            return {self.route.whole: value}
        if value is None and self.route.optional:
            return {}
        fields = wire.as_dict(value)
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
