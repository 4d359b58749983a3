"""Clients of the first protocol: AgentLightningClient asks a server for tasks, DevTaskLoader has a list of them."""

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
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from ..core.credentials import mask_text
from ..core.errors import InvalidInput
from ..core.model.resources import NamedResources, ResourcesUpdate, validate_resources
from ..runners.stop_events import StopSignal
from .task_protocol import RolloutLegacy, Task, TaskIfAny

__all__ = ["AgentLightningClient", "DevTaskLoader", "INCARNATION_HEADER", "WORKER_HEADER"]

_log = logging.getLogger(__name__)
WORKER_HEADER = "x-agentlightning-worker"
"""The worker that asks for a task, as the store knows it."""
INCARNATION_HEADER = "x-agentlightning-incarnation"
"""The incarnation of that worker: a client that sends it sends heartbeats too, and loses its task when they stop."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LONGEST_WAIT_SECONDS = 2.0
"""How long one request may wait for a task; a worker that is asked to stop notices it after that time."""
_PIECE_SECONDS = 0.2
_LOCAL = "local"


class AgentLightningClient:
    """A client of `AgentLightningServer`, or of any server of the first protocol, at `endpoint` (http or https).

    Every method has a twin `..._async`. Errors of a request are logged at DEBUG, and the method returns None: a client
    outlives its server. `poll_interval`: seconds between two polls without a task; `timeout`: seconds that
    one request may take; `token`: required by a server that serves other machines. `task_count` counts tasks received.
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
        """Ask for tasks under this name from now on, as a new incarnation; :meth:`beat` has to follow every few seconds.

        A task whose worker sends no heartbeat for 10 seconds is handed to another one.
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
        # A server that holds the request open, as ours does, has waited already.
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
        """Log it once: a client may be started before its server."""
        if waiting and not self._waiting:
            _log.info("No server answers at %s; waiting for it.", mask_text(self.endpoint))
        elif self._waiting and not waiting:
            _log.info("The server at %s answers.", mask_text(self.endpoint))
        self._waiting = waiting

    # Resources

    def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Resources by their id, which are cached. None where the server has none."""
        known = self._resources.get(resources_id)
        return known or self._cached(self._request("GET", f"/resources/{urllib.parse.quote(resources_id, safe='')}"))

    def get_latest_resources(self) -> ResourcesUpdate | None:
        """The newest resources; None where there are none yet."""
        return self._cached(self._request("GET", "/resources/latest"))

    async def get_resources_by_id_async(self, resources_id: str) -> ResourcesUpdate | None:
        """As :meth:`get_resources_by_id`."""
        return await asyncio.to_thread(self.get_resources_by_id, resources_id)

    async def get_latest_resources_async(self) -> ResourcesUpdate | None:
        """As :meth:`get_latest_resources`."""
        return await asyncio.to_thread(self.get_latest_resources)

    def _cached(self, answer: Any) -> ResourcesUpdate | None:
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
        """Send the result of a task; the server's answer, or None where it did not arrive or was refused.

        :attr:`refused` is True where it was refused: another attempt would be too.
        """
        status, answer = self._exchange("POST", "/rollout", rollout.model_dump_json().encode())
        self.refused = 400 <= status < 500
        return answer

    async def post_rollout_async(self, rollout: RolloutLegacy) -> dict[str, Any] | None:
        """As :meth:`post_rollout`."""
        return await asyncio.to_thread(self.post_rollout, rollout)

    # Heartbeats: routes that servers of the first generation do not have

    def beat(self, running: Sequence[tuple[str, str]]) -> bool:
        """Report that this worker is alive and what it runs, (rollout id, attempt id); False where the server refused."""
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
    """Whether this is an address; the client would wait for ever at a port that is none."""
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


class DevTaskLoader(AgentLightningClient):
    """Hands out `tasks` over and over, and keeps what is posted in :attr:`rollouts`; use it with ``max_tasks``.

    `tasks`: inputs, or :class:`Task` objects; both together, an empty list and one text are a ValueError. Inputs get the
    ids ``local_task_001`` and so on, and no mode. A text among `resources` stands for a prompt template. Worker processes
    have copies, and keep their rollouts.
    """

    def __init__(
        self, tasks: Sequence[Any], resources: NamedResources | Mapping[str, Any] | ResourcesUpdate, **kwargs: Any
    ) -> None:
        super().__init__("http://local", **kwargs)
        self.endpoint = "local://"
        if isinstance(tasks, (str, bytes)):
            raise InvalidInput("DevTaskLoader takes a list of tasks, and a text would be one task for each character")
        if not tasks:
            raise InvalidInput("DevTaskLoader needs at least one task")
        if len({isinstance(task, Task) for task in tasks}) > 1:
            raise InvalidInput("The tasks are all Task objects or all inputs, not a mix")
        self._tasks = list(tasks)
        if not isinstance(resources, ResourcesUpdate):
            update: dict[str, Any] = {"create_time": 0.0, "update_time": 0.0, "version": 1}
            update["resources"] = validate_resources(resources)
            resources = ResourcesUpdate.model_validate({"resources_id": _LOCAL, **update})
        self._update = resources
        self.rollouts: list[RolloutLegacy] = []

    def poll_next_task(self, stop: StopSignal | None = None) -> Task | None:
        """The next task, at once."""
        if stop is not None and stop.is_set():
            return None
        task = self._tasks[self.task_count % len(self._tasks)]
        self.task_count += 1
        if not isinstance(task, Task):
            name = f"local_task_{self.task_count:03d}"
            task = Task(rollout_id=name, input=task, resources_id=self._update.resources_id)
        _log.info("[Task %d Received] ID: %s", self.task_count, task.rollout_id)
        return task

    async def poll_next_task_async(self, stop: StopSignal | None = None) -> Task | None:
        """As :meth:`poll_next_task`."""
        return self.poll_next_task(stop)

    def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """The resources; ValueError for another id than theirs."""
        if resources_id != self._update.resources_id:
            raise InvalidInput(f"There are no resources {resources_id!r} here, only {self._update.resources_id!r}")
        return self._update

    def get_latest_resources(self) -> ResourcesUpdate | None:
        """The resources."""
        return self._update

    def post_rollout(self, rollout: RolloutLegacy) -> dict[str, Any] | None:
        """Keep it."""
        self.rollouts.append(rollout)
        return {"status": "received", "rollout_id": rollout.rollout_id}

    def beat(self, running: Sequence[tuple[str, str]]) -> bool:
        """There is no server."""
        return False

    def give_back(self, rollout_id: str, attempt_id: str) -> bool:
        """There is no queue."""
        return False

    def give_back_of(self, worker_id: str) -> str | None:
        """There is no queue."""
        return None
