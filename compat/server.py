"""AgentLightningServer: the first generation's server, which queues tasks and returns their results."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ..algorithms.adapters.triplets import TracerTraceToTriplet
from ..core.errors import InvalidInput
from ..core.events import payload, schema
from ..core.fold import commands
from ..core.model.resources import NamedResources
from ..core.model.rollout import (
    Attempt,
    AttemptedRollout,
    Rollout,
    RolloutConfig,
    RolloutMode,
    Triplet,
)
from ..core.model.span import Span
from ..core.model.status import ATTEMPT_EXPIRED, FINISHED, MODES
from ..core.model.store_interface import LightningStore
from ..core.spans.rewards import attempt_spans, find_final_reward
from ..projections.replica import validation
from ..projections.store.memory_store import InMemoryLightningStore
from ..projections.store.store import EventLogStore
from ..projections.store.views import config_in, rollout_out
from ..rest.client.client import LightningStoreClient
from ..rest.open_store import open_store
from ..rest.server.uvicorn_runner import Serving, access_host, check_bind
from .results import as_trace, posted_in
from .server_app import LegacyApp
from .task_protocol import RolloutLegacy, Task

__all__ = ["AgentLightningServer"]

log = logging.getLogger("agentlightning.server")

MAX_ATTEMPTS = 10
"""How often a task that no client finishes is handed out; then it has failed."""
_TAKEN = "agentlightning.taken"


class AgentLightningServer:
    """Serves tasks to `AgentLightningClient` and to agents run by ``Trainer.fit(agent, backend=URL)``.

    What is queued, published and received are events of a log: in memory, which is gone with the server, or at
    `store`, an address such as ``sqlite:///runs.db`` or ``http://host:4747``, or an open store. A server that is started
    again on its log goes on with it. The routes of a store of today are served too, so today's clients reach it.

    A task is handed to another client when its worker falls silent, or after `task_timeout_seconds`, and `MAX_ATTEMPTS`
    times at most; the first result that arrives counts. Binding to more than this machine needs a `token`, `UnsafeBind`
    otherwise; bound to this machine, the server answers under the names of loopback and `allow_hosts`. Methods raise
    RuntimeError before :meth:`start` and after :meth:`stop`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        task_timeout_seconds: float = 300.0,
        *,
        store: str | LightningStore | None = None,
        token: str | None = None,
        allow_hosts: Sequence[str] = (),
    ) -> None:
        if not task_timeout_seconds > 0:
            raise InvalidInput(f"task_timeout_seconds is {task_timeout_seconds!r}; it takes a number above 0")
        check_bind(host, token)
        self.host, self.port = host, port
        self.loop: asyncio.AbstractEventLoop | None = None
        self.startup_event = threading.Event()
        self._timeout = task_timeout_seconds
        self._given = store
        self._token = token
        self._allow_hosts = allow_hosts
        self._store: LightningStore | None = None
        self._door: LegacyApp | None = None
        self._serving: Serving | None = None

    @property
    def endpoint(self) -> str:
        """``http://host:port`` for clients; with port 0 it is known after :meth:`start`."""
        return f"http://{access_host(self.host)}:{self.port}"

    @property
    def store(self) -> LightningStore:
        """The store of the server."""
        if self._store is None:
            raise RuntimeError("Store not initialized. The server may not be running.")
        return self._store

    async def start(self) -> None:
        """Returns once clients are answered. Raises RuntimeError where the port is taken."""
        if self._serving is not None:
            raise RuntimeError(f"The server is running already, at {self.endpoint}")
        self.loop = asyncio.get_running_loop()
        store = await asyncio.to_thread(_opened, self._given)
        door = LegacyApp(store, token=self._token, host=self.host, allow_hosts=self._allow_hosts)
        serving = Serving(door, self.host, self.port)
        try:
            # In a thread: an algorithm that computes for long between two awaits keeps no worker waiting.
            await serving.start(in_thread=True)
        except BaseException:
            await self._close(store)
            raise
        self._store, self._door, self._serving = store, door, serving
        self.port = serving.port
        self.startup_event.set()
        log.info("Serving on %s.", self.endpoint)

    async def stop(self) -> None:
        """Answer what is under way and close the port; a log that the server opened is closed. Idempotent."""
        serving, self._serving = self._serving, None
        store, self._store = self._store, None
        if serving is None or store is None:
            return
        self.startup_event.clear()
        if self._door is not None:
            self._door.stop()
        await serving.stop()
        await self._close(store)
        log.info("Stopped serving on %s.", self.endpoint)

    async def run_forever(self) -> None:
        """Serve until :meth:`stop` or cancellation."""
        await self.start()
        try:
            if self._serving is not None:
                await self._serving.wait()
        finally:
            await self.stop()

    async def _close(self, store: LightningStore) -> None:
        """Close what was opened here."""
        if store is self._given:
            return
        if isinstance(store, EventLogStore):
            await asyncio.to_thread(store.close)
        elif isinstance(store, LightningStoreClient):
            await store.close()

    async def queue_task(
        self,
        sample: Any,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Queue `sample` for a client; the id of its rollout: ``rollout-`` and a UUID, or what a store elsewhere gives.

        It is bound to `resources_id`, or to the newest resources of this moment: later ones do not reach it.
        """
        config = RolloutConfig(
            timeout_seconds=self._timeout,
            max_attempts=MAX_ATTEMPTS,
            retry_condition=sorted(ATTEMPT_EXPIRED),
        )
        store = self.store
        if isinstance(store, EventLogStore):
            rollout = await _enqueue(store, sample, mode, resources_id, config, metadata)
        else:
            rollout = await store.enqueue_rollout(sample, mode, resources_id, config, metadata)
        log.info("Task queued: %s (mode: %s, resources_id: %s)", rollout.rollout_id, mode, rollout.resources_id)
        return rollout.rollout_id

    async def update_resources(self, resources: NamedResources | Mapping[str, Any]) -> str:
        """Publish resources as the newest; their id. A text stands for a prompt template."""
        update = await self.store.add_resources(dict(resources))
        log.info("Resources updated. New version '%s' is now latest.", update.resources_id)
        return update.resources_id

    async def get_completed_rollout(self, rollout_id: str) -> RolloutLegacy | None:
        """What became of a task, once: None where it is not finished, or was handed out before.

        A task that failed is finished too: without a reward, and with ``metadata["error"]``.
        """
        rollout = await self.store.get_rollout_by_id(rollout_id)
        if rollout is None or rollout.end_time is None or (rollout.metadata or {}).get(_TAKEN):
            return None
        result = await self._result(rollout)
        # In the log, so that a server that is started again does not hand it out a second time.
        await self.store.update_rollout(rollout_id, metadata={**(rollout.metadata or {}), _TAKEN: True})
        return result

    async def poll_completed_rollout(self, rollout_id: str, timeout: float | None = None) -> RolloutLegacy | None:
        """Wait for :meth:`get_completed_rollout`, `timeout` seconds at most; None after that, or for an unknown id.

        With None it waits as long as it takes, with 0 it looks once.
        """
        await self.store.wait_for_rollouts([rollout_id], timeout)
        return await self.get_completed_rollout(rollout_id)

    async def retrieve_completed_rollouts(self) -> list[RolloutLegacy]:
        """What became of all tasks that are finished and were not handed out yet, in the order of their creation."""
        finished = await self.store.query_rollouts(status_in=sorted(FINISHED))
        results = [await self.get_completed_rollout(rollout.rollout_id) for rollout in finished]
        return [result for result in results if result is not None]

    async def _result(self, rollout: Rollout) -> RolloutLegacy:
        attempt = rollout.attempt if isinstance(rollout, AttemptedRollout) else None
        task = _task_of(rollout, attempt)
        spans = list(await self.store.query_spans(rollout.rollout_id))
        posted = None if attempt is None else posted_in(attempt, spans)
        if posted is not None:
            result, with_it = posted
            result.task = task
            if with_it:
                result.trace = [*as_trace(with_it), *(result.trace or [])]
            return result
        if attempt is not None:
            spans = attempt_spans(spans, attempt.attempt_id)
        metadata: dict[str, Any] = {"status": rollout.status}
        if rollout.status != "succeeded":
            kept = attempt.metadata if attempt is not None else None
            reason = attempt.status if attempt is not None else "it never ran"
            metadata["error"] = (kept or {}).get("error") or f"{rollout.status}: {reason}"
        return RolloutLegacy(
            rollout_id=rollout.rollout_id,
            task=task,
            final_reward=find_final_reward(spans) if rollout.status == "succeeded" else None,
            triplets=_triplets(spans),
            trace=as_trace(spans) or None,
            metadata=metadata,
        )


def _opened(given: str | LightningStore | None) -> LightningStore:
    if given is None:
        return InMemoryLightningStore(thread_safe=True)
    return open_store(given) if isinstance(given, str) else given


async def _enqueue(
    store: EventLogStore,
    sample: Any,
    mode: RolloutMode | None,
    resources_id: str | None,
    config: RolloutConfig,
    metadata: dict[str, Any] | None,
) -> Rollout:
    """Queue under an id of the first generation; the store's own method gives those of today."""
    rollout_id = f"rollout-{uuid.uuid4()}"
    blobs = store.engine.blobs
    notes = validation.mapping_or_none(metadata, "metadata")
    new = schema.NewRollout(
        rollout_id,
        payload.inline(await blobs.settle(blobs.encode(sample, "the sample"))),
        validation.one_of(mode, MODES, "mode"),
        validation.id_or_none(resources_id, "resources_id"),
        config_in(config),
        payload.inline(await blobs.settle(blobs.encode(notes, "the metadata")) if notes else None),
    )

    def answer(_: str) -> Rollout:
        return rollout_out(commands.find(store.engine.node.state, rollout_id), store.engine.fetch)

    return await store.engine.command(lambda state, command_id: commands.enqueue([new]), answer)


def _task_of(rollout: Rollout, attempt: Attempt | None) -> Task:
    return Task(
        rollout_id=rollout.rollout_id,
        input=rollout.input,
        mode=rollout.mode,
        resources_id=rollout.resources_id,
        create_time=rollout.start_time,
        last_claim_time=None if attempt is None else attempt.start_time,
        num_claims=0 if attempt is None else attempt.sequence_id,
        metadata={key: value for key, value in (rollout.metadata or {}).items() if key != _TAKEN},
    )


def _triplets(spans: list[Span]) -> list[Triplet] | None:
    """What a runner of today recorded, as triplets; None without model calls."""
    return (TracerTraceToTriplet().adapt(spans) or None) if spans else None
