"""AgentLightningClient: asks a server of the first protocol for tasks and posts what became of them."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from typing import Any, cast

from pydantic import ValidationError

from ..core.credentials import mask_text
from ..core.errors import InvalidInput
from ..core.model.resources import ResourcesUpdate
from ..runners.stop_events import StopSignal
from .task_protocol import RolloutLegacy, Task, TaskIfAny

__all__ = ["INCARNATION_HEADER", "WORKER_HEADER", "AgentLightningClient"]

_log = logging.getLogger(__name__)
WORKER_HEADER = "x-agentlightning-worker"
"""The worker that asks for a task, as the store knows it."""
INCARNATION_HEADER = "x-agentlightning-incarnation"
"""Its process: who sends it sends heartbeats too, and loses its task when they stop."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LONGEST_WAIT_SECONDS = 2.0
"""How long one request may wait for a task; a worker that is asked to stop notices it after that time."""
_PIECE_SECONDS = 0.2


class AgentLightningClient:
    """Talks to `AgentLightningServer`, or to any server of the first protocol, at `endpoint` (http or https).

    Every method has a twin `..._async`. What goes wrong on the way is logged at DEBUG and answered with None: a client
    outlives its server. `poll_interval`: seconds between two questions where nothing is to do; `timeout`: seconds that
    one request may take; `token`: what a server that serves other machines asks for. `task_count` counts tasks received.
    """

    def __init__(
        self, endpoint: str, poll_interval: float = 5.0, timeout: float = 10.0, *, token: str | None = None
    ) -> None:
        if not _is_address(endpoint):
            raise InvalidInput(f"{mask_text(endpoint)!r} is no address of a server: it looks like http://127.0.0.1:9997")
        self.endpoint = endpoint.rstrip("/")
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.task_count = 0
        self.refused = False
        self._token = token
        self._worker: tuple[str, str] | None = None
        self._resources: dict[str, ResourcesUpdate] = {}
        self._waiting = False

    def as_worker(self, worker_id: str) -> None:
        """Ask for tasks under this name from now on, in a life of its own; :meth:`beat` has to follow every few seconds.

        A task whose worker is silent for 10 seconds is given to another one.
        """
        self._worker = (worker_id, uuid.uuid4().hex)

    # Tasks

    def poll_next_task(self, stop: StopSignal | None = None) -> Task | None:
        """Wait for a task, as long as it takes; None only once `stop` is set."""
        while stop is None or not stop.is_set():
            began = time.monotonic()
            task = self._next_task()
            if task is not None:
                return task
            while self._pauses(began, stop):
                time.sleep(_PIECE_SECONDS)
        return None

    async def poll_next_task_async(self, stop: StopSignal | None = None) -> Task | None:
        """As :meth:`poll_next_task`."""
        while stop is None or not stop.is_set():
            began = time.monotonic()
            task = await asyncio.to_thread(self._next_task)
            if task is not None:
                return task
            while self._pauses(began, stop):
                await asyncio.sleep(_PIECE_SECONDS)
        return None

    def _pauses(self, began: float, stop: StopSignal | None) -> bool:
        # A server that held the question open (ours does) has used up the pause already.
        return time.monotonic() - began < self.poll_interval and not (stop is not None and stop.is_set())

    def _next_task(self) -> Task | None:
        wait = min(self.poll_interval, _LONGEST_WAIT_SECONDS, self.timeout / 2)
        answer = self._request("GET", f"/task?wait_seconds={wait:g}")
        self._note_waiting(answer is None)
        if answer is None:
            return None
        try:
            offered = TaskIfAny.model_validate(answer)
        except ValidationError as error:
            _log.debug("%s answered with no task: %s", mask_text(self.endpoint), error)
            return None
        if not offered.is_available or offered.task is None:
            return None
        self.task_count += 1
        _log.info("[Task %d Received] ID: %s", self.task_count, offered.task.rollout_id)
        return offered.task

    def _note_waiting(self, waiting: bool) -> None:
        """Say it, once: whoever starts the client first wants to know what it waits for."""
        if waiting and not self._waiting:
            _log.info("No server answers at %s; waiting for it.", mask_text(self.endpoint))
        elif self._waiting and not waiting:
            _log.info("The server at %s answers.", mask_text(self.endpoint))
        self._waiting = waiting

    # Resources

    def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Resources under their id; asked for once, then remembered. None where the server has none."""
        known = self._resources.get(resources_id)
        return known or self._remembered(self._request("GET", f"/resources/{urllib.parse.quote(resources_id, safe='')}"))

    def get_latest_resources(self) -> ResourcesUpdate | None:
        """The newest resources; None where there are none yet."""
        return self._remembered(self._request("GET", "/resources/latest"))

    async def get_resources_by_id_async(self, resources_id: str) -> ResourcesUpdate | None:
        """As :meth:`get_resources_by_id`."""
        return await asyncio.to_thread(self.get_resources_by_id, resources_id)

    async def get_latest_resources_async(self) -> ResourcesUpdate | None:
        """As :meth:`get_latest_resources`."""
        return await asyncio.to_thread(self.get_latest_resources)

    def _remembered(self, answer: Any) -> ResourcesUpdate | None:
        if answer is None:
            return None
        try:
            # Servers of the first release (v0.1) send the id and the resources only.
            update = ResourcesUpdate.model_validate({"create_time": 0.0, "update_time": 0.0, "version": 1, **answer})
        except (ValidationError, TypeError) as error:
            _log.debug("%s answered with no resources: %s", mask_text(self.endpoint), error)
            return None
        self._resources[update.resources_id] = update
        return update

    # Results

    def post_rollout(self, rollout: RolloutLegacy) -> dict[str, Any] | None:
        """Send what became of a task; the server's answer, or None where it did not arrive or was refused.

        :attr:`refused` says whether it was refused: then trying again is no use.
        """
        status, answer = self._exchange("POST", "/rollout", rollout.model_dump_json().encode())
        self.refused = 400 <= status < 500
        return answer

    async def post_rollout_async(self, rollout: RolloutLegacy) -> dict[str, Any] | None:
        """As :meth:`post_rollout`."""
        return await asyncio.to_thread(self.post_rollout, rollout)

    # Signs of life: routes that servers of the first generation do not have

    def beat(self, running: Sequence[tuple[str, str]]) -> bool:
        """Say that this worker lives and what it runs, (rollout id, attempt id); False where nobody took it."""
        return self._worker is not None and self._request("POST", "/heartbeat", json.dumps(list(running)).encode()) is not None

    def give_back(self, rollout_id: str, attempt_id: str) -> bool:
        """Put a task that will not be finished here back into the queue; False where it could not be."""
        path = f"/v1/agl/rollouts/{rollout_id}/attempts/{attempt_id}"
        return self._request("POST", path, b'{"status":"unresponsive"}') is not None

    def give_back_of(self, worker_id: str) -> str | None:
        """Put the task of a worker that is known to be dead back into the queue; its rollout id, None without one."""
        worker = self._request("GET", f"/v1/agl/workers/{urllib.parse.quote(worker_id, safe='')}")
        known = cast("dict[str, Any]", worker) if isinstance(worker, dict) else {}
        rollout_id, attempt_id = known.get("current_rollout_id"), known.get("current_attempt_id")
        if not rollout_id or not attempt_id or not self.give_back(rollout_id, attempt_id):
            return None
        return str(rollout_id)

    def _request(self, method: str, path: str, body: bytes | None = None) -> Any:
        return self._exchange(method, path, body)[1]

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
        """HTTP status, 0 without one, and the answer, None where it is an error."""
        headers = {"X-AgentLightning-Client": "true", "Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        if self._worker is not None:
            headers[WORKER_HEADER], headers[INCARNATION_HEADER] = self._worker
        request = urllib.request.Request(self.endpoint + path, body, headers, method=method)
        try:
            with _opener(self.endpoint).open(request, timeout=self.timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                _log.debug("%s %s: %d %s", method, path, error.code, error.read(500))
            return error.code, None
        except (OSError, ValueError, http.client.HTTPException) as error:
            _log.debug("%s %s: %s", method, path, error)
            return 0, None


def _is_address(endpoint: str) -> bool:
    """Whether a server may be there. A port that is no port would be waited for without end."""
    try:
        parts = urllib.parse.urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _opener(endpoint: str) -> urllib.request.OpenerDirector:
    # A proxy that the environment names is for other machines.
    if urllib.parse.urlsplit(endpoint).hostname in _LOOPBACK:
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener()
