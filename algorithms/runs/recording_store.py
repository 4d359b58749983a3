"""The store that the algorithm of a run is given: what it enqueues and publishes is marked and recorded as a decision.

What a decision consists of is defined here once, for the recording and for the replay that compares with it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, Protocol

from ...core.events.run_events import OWN_RUNNERS, RUN_ID, digest_of
from ...core.model.resources import ResourcesUpdate, validate_resources
from ...core.model.rollout import (
    AttemptedRollout,
    EnqueueRolloutRequest,
    Fact,
    Rollout,
    RolloutConfig,
    RolloutMode,
    TaskInput,
)
from ...core.model.scalars import model_data
from ...core.model.store_interface import UNSET, LightningStore, LightningStoreCapabilities
from ...projections.replica import validation as arguments
from ...projections.replica.positions import number_of
from ...rest.server.delegating_store import Delegating

ENQUEUED, STARTED, PUBLISHED = "rollouts.enqueued", "rollout.started", "resources.published"
BEST = "best.chosen"

class Decided(Protocol):
    """`RunRecorder.decided`."""

    def __call__(self, run_id: str, kind: str, content: Any = None, *, based_on: int | None = None) -> Awaitable[None]: ...

def position_of(store: Any) -> int:
    """How many control records a store, or a client of one, has seen applied; -1 where it does not say."""
    own = getattr(store, "position", None)
    token = own() if callable(own) else None
    return number_of(token) if isinstance(token, str) else -1


def rollouts_content(rollouts: Sequence[Rollout], requests: Sequence[EnqueueRolloutRequest]) -> dict[str, Any]:
    """What was decided by creating rollouts: their ids, and a digest of what was asked for, one by one."""
    return {
        "rollout_ids": [rollout.rollout_id for rollout in rollouts],
        "digests": [request_digest(request) for request in requests],
    }


def request_digest(request: EnqueueRolloutRequest) -> str:
    """The digest of one request: input, mode, resources and config as the algorithm gave them, its metadata too."""
    metadata = {key: value for key, value in (request.metadata or {}).items() if key not in (RUN_ID, OWN_RUNNERS)}
    config = model_data(request.config) if request.config is not None else None
    return digest_of([request.input, request.mode, request.resources_id, config, metadata])


def resources_content(update: ResourcesUpdate, asked: Mapping[str, Any], new: bool) -> dict[str, Any]:
    """What was decided by publishing resources; `new`: under an id that the store made."""
    return {
        "resources_id": update.resources_id,
        "version": update.version,
        "new": new,
        "names": sorted(asked),
        "digest": resources_digest(asked),
    }


def resources_digest(asked: Mapping[str, Any]) -> str:
    """The digest of named resources, whatever form they were given in. Raises `InvalidInput` for what are none."""
    found = validate_resources(asked)
    return digest_of({name: model_data(resource) for name, resource in found.items()})


def best_content(best: Mapping[str, Any] | ResourcesUpdate | str | None) -> dict[str, Any] | None:
    """What was decided by naming the best resources, in any of the forms that an algorithm names them in."""
    if best is None:
        return None
    if isinstance(best, str):
        return {"resources_id": best}
    if isinstance(best, ResourcesUpdate):
        return {"resources_id": best.resources_id, "version": best.version}
    return {"names": sorted(best), "digest": resources_digest(best)}


class RecordedStore(Delegating):
    """Passes everything on to `store`; what belongs to the run is marked, and told to `decided` once it is durable.

    `own_runners`: no other runners than those that claim for this run get its rollouts.
    """

    def __init__(self, store: Any, run_id: str, decided: Decided, own_runners: bool = False) -> None:
        self._store = store
        self._decided = decided
        self._mark: dict[str, Any] = {RUN_ID: run_id, **({OWN_RUNNERS: True} if own_runners else {})}
        self.run_id = run_id

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self._store, name)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the store offers beyond the contract."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._store, name)

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return self._store.capabilities

    def otlp_traces_endpoint(self) -> str:
        return self._store.otlp_traces_endpoint()

    def subscribe(self, types: Sequence[str] | None = None, *, since: int | None = None) -> AsyncIterator[Fact]:
        return self._store.subscribe(types, since=since)

    async def decided(self, kind: str, content: Any = None) -> None:
        """Record something that the algorithm decided and that no other call shows; a replay compares it."""
        await self._decided(self.run_id, kind, content)

    def _marked(self, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**(metadata or {}), **self._mark}

    async def enqueue_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Rollout:
        request = EnqueueRolloutRequest(
            input=input, mode=mode, resources_id=resources_id, config=config, metadata=metadata
        )
        known = position_of(self._store)
        rollout = await self._store.enqueue_rollout(input, mode, resources_id, config, self._marked(metadata))
        await self._decided(self.run_id, ENQUEUED, rollouts_content([rollout], [request]), based_on=known)
        return rollout

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        requests = arguments.requests(rollouts)  # once: it may be a generator
        if not requests:
            return await self._store.enqueue_many_rollouts(requests)
        marked = [one.model_copy(update={"metadata": self._marked(one.metadata)}) for one in requests]
        known = position_of(self._store)
        made = await self._store.enqueue_many_rollouts(marked)
        await self._decided(self.run_id, ENQUEUED, rollouts_content(made, requests), based_on=known)
        return made

    async def start_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> AttemptedRollout:
        request = EnqueueRolloutRequest(
            input=input, mode=mode, resources_id=resources_id, config=config, metadata=metadata
        )
        known = position_of(self._store)
        rollout = await self._store.start_rollout(
            input, mode, resources_id, config, self._marked(metadata), worker_id
        )
        await self._decided(self.run_id, STARTED, rollouts_content([rollout], [request]), based_on=known)
        return rollout

    async def update_rollout(self, rollout_id: str, *args: Any, **kwargs: Any) -> Rollout:
        """As the store does; a rollout that belongs to the run keeps its mark when its metadata are replaced."""
        bound = inspect.signature(LightningStore.update_rollout).bind(self, rollout_id, *args, **kwargs)
        given: dict[str, Any] = {name: value for name, value in bound.arguments.items() if name != "self"}
        if given.get("metadata", UNSET) is not UNSET:
            before: Rollout | None = await self._store.get_rollout_by_id(rollout_id)
            if before is not None and (before.metadata or {}).get(RUN_ID) == self.run_id:
                given["metadata"] = self._marked(given["metadata"])
        return await self._store.update_rollout(**given)

    async def add_resources(self, resources: Mapping[str, Any]) -> ResourcesUpdate:
        known = position_of(self._store)
        made = await self._store.add_resources(resources)
        await self._decided(self.run_id, PUBLISHED, resources_content(made, resources, new=True), based_on=known)
        return made

    async def update_resources(self, resources_id: str, resources: Mapping[str, Any]) -> ResourcesUpdate:
        known = position_of(self._store)
        made = await self._store.update_resources(resources_id, resources)
        await self._decided(self.run_id, PUBLISHED, resources_content(made, resources, new=False), based_on=known)
        return made


def unwrapped(store: LightningStore) -> Any:
    """The store behind a recorded one, or the store itself."""
    return store._store if isinstance(store, RecordedStore) else store  # pyright: ignore[reportPrivateUsage]
