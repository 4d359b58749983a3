"""The store's methods about resources and workers: publish, heartbeat, read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, cast

from ...core.events import payload
from ...core.fold import commands
from ...core.fold.state import ResourcesVersion
from ...core.fold.state import Worker as KnownWorker
from ...core.model.query import page
from ...core.model.resources import ResourcesUpdate, refuse_masked, validate_resources
from ...core.model.rollout import PaginatedResult, Worker
from ...core.model.scalars import model_data
from ...core.model.status import WORKER_STATUSES, WorkerStatus
from ...core.model.store_interface import UNSET, FilterLogic, LightningStore, SortOrder, Unset
from ..liveness.heartbeats import WorkerBeat
from ..replica import validation
from .engine import Engine
from .views import resources_out, seconds


class ResourceMethods(LightningStore):
    """Part of `EventLogStore` (store.py)."""

    engine: Engine

    async def add_resources(self, resources: Mapping[str, Any]) -> ResourcesUpdate:
        return await self._publish(None, resources)

    async def update_resources(self, resources_id: str, resources: Mapping[str, Any]) -> ResourcesUpdate:
        return await self._publish(validation.named(resources_id, "resources_id"), resources)

    async def _publish(self, resources_id: str | None, resources: Mapping[str, Any]) -> ResourcesUpdate:
        checked = validate_resources(resources)
        refuse_masked(checked)
        plain = {name: model_data(one) for name, one in checked.items()}
        validate_resources(plain)  # fields of a model may have been assigned unchecked; what is stored has to read back
        blobs = self.engine.blobs
        body = await blobs.settle(blobs.encode(plain, "the resources"))

        def name_of(command_id: str) -> str:
            return resources_id if resources_id is not None else commands.resources_id_of(command_id)

        def answer(command_id: str) -> ResourcesVersion:
            versions = self.engine.node.state.resources[name_of(command_id)]
            mine = [entry for entry in versions if entry.resources == body]
            if resources_id is None:
                return versions[0]  # the command made the id
            return (mine or versions)[-1]

        entry = await self.engine.command(
            lambda state, command_id: commands.publish_resources(name_of(command_id), body), answer
        )
        return (await self._shown([entry]))[0]

    async def _shown(self, entries: Sequence[ResourcesVersion], lost: list[str] | None = None) -> list[ResourcesUpdate]:
        """As callers know them; in a thread where a payload has to be fetched. `lost` as for `resources_out`."""

        def make() -> list[ResourcesUpdate]:
            return [resources_out(entry, self.engine.fetch, lost) for entry in entries]

        fetches = any(payload.is_reference(entry.resources) for entry in entries)
        return await asyncio.to_thread(make) if fetches else make()

    async def get_resources_by_id(self, resources_id: str, version: int | None = None) -> ResourcesUpdate | None:
        resources_id = validation.text(resources_id, "resources_id")
        version = None if version is None else validation.whole(version, "version")
        with self.engine.node.lock:
            versions = self.engine.node.state.resources.get(resources_id)
            if not versions or (version is not None and not 1 <= version <= len(versions)):
                return None
            entry = versions[-1 if version is None else version - 1]
        return (await self._shown([entry]))[0]

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        with self.engine.node.lock:
            latest = self.engine.node.state.latest_resources
        return None if latest is None else await self.get_resources_by_id(latest)

    async def query_resources(
        self,
        *,
        resources_id: str | None = None,
        resources_id_contains: str | None = None,
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[ResourcesUpdate]:
        with self.engine.node.lock:
            newest = [versions[-1] for versions in self.engine.node.state.resources.values()]
        filters: Any = {"resources_id": {"exact": resources_id, "contains": resources_id_contains}}
        lost: list[str] = []
        found = await self._shown(newest, lost)
        return page(
            found,
            incomplete=bool(lost),
            filters=filters,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
            model=ResourcesUpdate,
        )

    async def query_resource_versions(self, resources_id: str) -> PaginatedResult[ResourcesUpdate]:
        resources_id = validation.text(resources_id, "resources_id")
        with self.engine.node.lock:
            versions = list(self.engine.node.state.resources.get(resources_id, ()))
        lost: list[str] = []
        return page(await self._shown(versions, lost), model=ResourcesUpdate, incomplete=bool(lost))


class WorkerMethods(LightningStore):
    """Part of `EventLogStore` (store.py)."""

    engine: Engine

    async def update_worker(
        self,
        worker_id: str,
        heartbeat_stats: dict[str, Any] | Unset = UNSET,
        *,
        incarnation: str | None = None,
        attempts: Sequence[tuple[str, str]] | None = None,
    ) -> Worker:
        worker_id = validation.named(worker_id, "worker_id")
        incarnation = validation.text_or_none(incarnation, "incarnation")
        alive = [] if attempts is None else validation.pairs(attempts, "attempts")
        stats: bytes | None = None
        if not isinstance(heartbeat_stats, Unset):
            if not isinstance(cast(object, heartbeat_stats), Mapping):
                raise TypeError(f"heartbeat_stats must be a dict, not {type(heartbeat_stats).__name__}")
            stats = payload.encode(dict(heartbeat_stats), "heartbeat_stats", 0.5)
        engine = self.engine
        with engine.node.lock:
            engine.heartbeats.heartbeat(worker_id, stats, incarnation, engine.expiry.now(), engine.time_us())
        for rollout_id, attempt_id in alive:
            await engine.observe(rollout_id, attempt_id, "confirmed")
        with engine.node.lock:
            seen = self._seen(worker_id)
        return self._worker(worker_id, *seen)

    def _seen(self, worker_id: str) -> tuple[KnownWorker | None, WorkerBeat | None]:
        """Copies of what the fold and the overlay know of a worker; under the node's lock."""
        known = self.engine.node.state.workers.get(worker_id)
        beat = self.engine.heartbeats.workers.get(worker_id)
        return copy(known), copy(beat)

    def _worker(self, worker_id: str, known: KnownWorker | None, beat: WorkerBeat | None) -> Worker:
        status: str = known.status if known is not None else "unknown"
        idle = beat is not None and beat.idle_us is not None and (known is None or beat.idle_at > known.changed_at)
        idle_us = max(filter(None, (known and known.idle_us, beat and beat.idle_us)), default=None)
        dequeue_us = max(filter(None, (known and known.dequeue_us, beat and beat.dequeue_us)), default=None)
        return Worker.model_construct(
            worker_id=worker_id,
            status="idle" if idle else status,
            heartbeat_stats=None if beat is None else self.engine.heartbeats.stats_of(beat),
            last_heartbeat_time=None if beat is None else seconds(beat.beat_us),
            last_dequeue_time=seconds(dequeue_us),
            last_busy_time=None if known is None else seconds(known.busy_us),
            last_idle_time=seconds(idle_us),
            current_rollout_id=None if known is None or idle else known.rollout_id,
            current_attempt_id=None if known is None or idle else known.attempt_id,
        )

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        worker_id = validation.text(worker_id, "worker_id")
        with self.engine.node.lock:
            if worker_id not in self.engine.node.state.workers and worker_id not in self.engine.heartbeats.workers:
                return None
            seen = self._seen(worker_id)
        return self._worker(worker_id, *seen)

    async def query_workers(
        self,
        *,
        status_in: Sequence[WorkerStatus] | None = None,
        worker_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Worker]:
        checked = validation.some_of(status_in, WORKER_STATUSES, "status_in")
        status_in = cast("Sequence[WorkerStatus] | None", checked)
        with self.engine.node.lock:
            known = dict.fromkeys([*self.engine.node.state.workers, *self.engine.heartbeats.workers])
            seen = {worker_id: self._seen(worker_id) for worker_id in known}
        workers = [self._worker(worker_id, *both) for worker_id, both in seen.items()]
        filters: Any = {
            "status": {"within": status_in},
            "worker_id": {"contains": worker_id_contains},
            "_aggregate": filter_logic,
        }
        return page(
            workers, filters=filters, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset, model=Worker
        )
