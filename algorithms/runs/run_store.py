"""The stores of a run: what its algorithm enqueues is counted, marked and recorded, and its runners claim only that.

What a decision consists of is defined here once, for the recording and for the replay that compares with it.
"""

from __future__ import annotations

import functools
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
from ...core.model.store_interface import UNSET, DelegatingStore, LightningStore, LightningStoreCapabilities
from ...projections.replica import validation
from ...projections.replica.command_context import number_of

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


class _Wrapper(DelegatingStore):
    """Passes every call on to ``store``, also what it has beyond the contract."""

    def __init__(self, store: LightningStore) -> None:
        self.store = store

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return self.store.capabilities

    def otlp_traces_endpoint(self) -> str:
        return self.store.otlp_traces_endpoint()

    def subscribe(self, types: Sequence[str] | None = None, *, since: int | None = None) -> AsyncIterator[Fact]:
        return self.store.subscribe(types, since=since)

    def __getattr__(self, name: str) -> Any:
        """What the store has beyond the contract, such as ``position``; also the one behind a server of it."""
        behind: Any = None if name.startswith("_") or name == "store" else self.store
        while behind is not None:
            if hasattr(behind, name):
                return getattr(behind, name)
            behind = getattr(behind, "store", None)
        raise AttributeError(name)

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self.store, name)(*args, **kwargs)


class RecordedStore(_Wrapper):
    """Marks what belongs to the run, and passes each decision to `decided` once it is durable.

    `own_runners`: no other runners than those that claim for this run get its rollouts.
    """

    def __init__(self, store: Any, run_id: str, decided: Decided, own_runners: bool = False) -> None:
        super().__init__(store)
        self._decided = decided
        self._mark: dict[str, Any] = {RUN_ID: run_id, **({OWN_RUNNERS: True} if own_runners else {})}
        self.run_id = run_id

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
        known = position_of(self.store)
        rollout = await self.store.enqueue_rollout(input, mode, resources_id, config, self._marked(metadata))
        await self._decided(self.run_id, ENQUEUED, rollouts_content([rollout], [request]), based_on=known)
        return rollout

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        requests = validation.requests(rollouts)  # once: it may be a generator
        if not requests:
            return await self.store.enqueue_many_rollouts(requests)
        marked = [one.model_copy(update={"metadata": self._marked(one.metadata)}) for one in requests]
        known = position_of(self.store)
        made = await self.store.enqueue_many_rollouts(marked)
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
        known = position_of(self.store)
        rollout = await self.store.start_rollout(
            input, mode, resources_id, config, self._marked(metadata), worker_id
        )
        await self._decided(self.run_id, STARTED, rollouts_content([rollout], [request]), based_on=known)
        return rollout

    @functools.wraps(LightningStore.update_rollout)
    async def update_rollout(  # pyright: ignore[reportIncompatibleMethodOverride]: it has the signature that it wraps
        self, rollout_id: str, *args: Any, **kwargs: Any
    ) -> Rollout:
        """As the store does; a rollout that belongs to the run keeps its mark when its metadata are replaced."""
        bound = inspect.signature(LightningStore.update_rollout).bind(self, rollout_id, *args, **kwargs)
        given: dict[str, Any] = {name: value for name, value in bound.arguments.items() if name != "self"}
        if given.get("metadata", UNSET) is not UNSET:
            before: Rollout | None = await self.store.get_rollout_by_id(rollout_id)
            if before is not None and (before.metadata or {}).get(RUN_ID) == self.run_id:
                given["metadata"] = self._marked(given["metadata"])
        return await self.store.update_rollout(**given)

    async def add_resources(self, resources: Mapping[str, Any]) -> ResourcesUpdate:
        known = position_of(self.store)
        made = await self.store.add_resources(resources)
        await self._decided(self.run_id, PUBLISHED, resources_content(made, resources, new=True), based_on=known)
        return made

    async def update_resources(self, resources_id: str, resources: Mapping[str, Any]) -> ResourcesUpdate:
        known = position_of(self.store)
        made = await self.store.update_resources(resources_id, resources)
        await self._decided(self.run_id, PUBLISHED, resources_content(made, resources, new=False), based_on=known)
        return made


class ClaimsForRun(_Wrapper):
    """The store of a runner that knows nothing of runs: its claims are for rollouts of the run."""

    def __init__(self, store: LightningStore, run_id: str) -> None:
        super().__init__(store)
        self._run_id = run_id

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if name in ("dequeue_rollout", "dequeue_many_rollouts"):
            kwargs.setdefault("run_id", self._run_id)
        return await super()._pass_on(name, *args, **kwargs)


class RunStore(_Wrapper):
    """The store behind the algorithm of a run.

    Rollouts get ``config`` where the algorithm gives none. ``rollout_ids`` has them in the order in which they were
    created.
    """

    def __init__(self, store: LightningStore, config: RolloutConfig | None) -> None:
        super().__init__(store)
        self.rollout_ids: list[str] = []
        self._config = config

    async def enqueue_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Rollout:
        rollout = await self.store.enqueue_rollout(input, mode, resources_id, config or self._config, metadata)
        self.rollout_ids.append(rollout.rollout_id)
        return rollout

    async def start_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> AttemptedRollout:
        rollout = await self.store.start_rollout(input, mode, resources_id, config or self._config, metadata, worker_id)
        self.rollout_ids.append(rollout.rollout_id)
        return rollout

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        given = validation.requests(rollouts)
        requests = [request.model_copy(update={"config": request.config or self._config}) for request in given]
        made = await self.store.enqueue_many_rollouts(requests)
        self.rollout_ids += [rollout.rollout_id for rollout in made]
        return made
