"""DevTaskLoader: a client of the first protocol that needs no server, for trying an agent out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import InvalidInput
from ..core.model.resources import NamedResources, ResourcesUpdate, validate_resources
from ..runners.stop_events import StopSignal
from .client import AgentLightningClient
from .task_protocol import RolloutLegacy, Task

__all__ = ["DevTaskLoader"]

_log = logging.getLogger(__name__)
_LOCAL = "local"


class DevTaskLoader(AgentLightningClient):
    """Hands out `tasks` over and over, and keeps what is posted in :attr:`rollouts`; use it with ``max_tasks``.

    `tasks`: inputs, or :class:`Task` objects; both together, an empty list and one text are a ValueError. Inputs get the
    ids ``local_task_001`` and so on, and no mode. A text among `resources` stands for a prompt template. Worker processes
    have copies: their rollouts stay with them.
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
        """Nobody listens."""
        return False

    def give_back(self, rollout_id: str, attempt_id: str) -> bool:
        """There is nowhere to give a task back to."""
        return False

    def give_back_of(self, worker_id: str) -> str | None:
        """There is nowhere to give a task back to."""
        return None
