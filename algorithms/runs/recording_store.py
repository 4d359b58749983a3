"""The stores of a run: the algorithm's marks and records what it decides, a runner's claims rollouts of that run only.

What a decision consists of is defined here once, for the recording and for the replay that compares with it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, Protocol

from ...core.events.run_events import OWN_RUNNERS, RUN_ID, digest_of
from ...core.model.resources import ResourcesUpdate, validate_resources
from ...core.model.rollout import EnqueueRolloutRequest, Fact, Rollout, RolloutConfig
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


def arguments_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the store's method `name`, by name: what was not given is not in it."""
    given = inspect.signature(getattr(LightningStore, name)).bind(None, *args, **kwargs).arguments
    return {parameter: value for parameter, value in given.items() if parameter != "self"}


def request_of(given: Mapping[str, Any]) -> EnqueueRolloutRequest:
    """What `enqueue_rollout` or `start_rollout` was asked to create."""
    return EnqueueRolloutRequest(**{name: value for name, value in given.items() if name != "worker_id"})


class StoreWrapper(DelegatingStore):
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
        """What the store has beyond the contract, such as ``position``; also of a store that this one wraps or serves."""
        wrapped: Any = None if name.startswith("_") or name == "store" else self.store
        while wrapped is not None:
            if hasattr(wrapped, name):
                return getattr(wrapped, name)
            wrapped = getattr(wrapped, "store", None)
        raise AttributeError(name)

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self.store, name)(*args, **kwargs)


class RecordingStore(StoreWrapper):
    """The store that the algorithm of a run works with.

    Rollouts get ``config`` where the algorithm gives none, and the mark of the run. Each decision is passed to ``decided``
    once it is durable; where that is None, nothing is marked or recorded. ``own_runners``: no other runners than those
    that claim for this run get its rollouts. ``rollout_ids`` are in the order in which the rollouts were created.
    """

    def __init__(
        self,
        store: Any,
        run_id: str,
        decided: Decided | None,
        own_runners: bool = False,
        config: RolloutConfig | None = None,
    ) -> None:
        super().__init__(store)
        self.run_id = run_id
        self.rollout_ids: list[str] = []
        self._decided = decided
        self._config = config
        self._mark = {} if decided is None else {RUN_ID: run_id, **({OWN_RUNNERS: True} if own_runners else {})}

    async def decided(self, kind: str, content: Any = None) -> None:
        """Record something that the algorithm decided and that no other call shows; a replay compares it."""
        await self._record(kind, content)

    async def _record(self, kind: str, content: Any, based_on: int | None = None) -> None:
        if self._decided is not None:
            await self._decided(self.run_id, kind, content, based_on=based_on)

    def _marked(self, metadata: Mapping[str, Any] | None) -> Any:
        return {**(metadata or {}), **self._mark} if self._mark else metadata

    def _completed(self, request: EnqueueRolloutRequest) -> dict[str, Any]:
        return {"config": request.config or self._config, "metadata": self._marked(request.metadata)}

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        given = arguments_of(name, args, kwargs)
        if name in ("enqueue_rollout", "start_rollout"):
            request, known = request_of(given), position_of(self.store)
            rollout = await super()._pass_on(name, **{**given, **self._completed(request)})
            await self._created(ENQUEUED if name == "enqueue_rollout" else STARTED, [rollout], [request], known)
            return rollout
        if name == "enqueue_many_rollouts":
            requests, known = validation.requests(given["rollouts"]), position_of(self.store)  # once: it may be a generator
            sent = [one.model_copy(update=self._completed(one)) for one in requests]
            made = await self.store.enqueue_many_rollouts(sent)
            if requests:
                await self._created(ENQUEUED, made, requests, known)
            return made
        if name in ("add_resources", "update_resources"):
            known = position_of(self.store)
            update = await super()._pass_on(name, **given)
            content = resources_content(update, given["resources"], new=name == "add_resources")
            await self._record(PUBLISHED, content, known)
            return update
        if name == "update_rollout" and self._mark and given.get("metadata", UNSET) is not UNSET:
            # A rollout of the run keeps its mark when its metadata are replaced.
            before = await self.store.get_rollout_by_id(given["rollout_id"])
            if before is not None and (before.metadata or {}).get(RUN_ID) == self.run_id:
                given["metadata"] = self._marked(given["metadata"])
        return await super()._pass_on(name, **given)

    async def _created(
        self, kind: str, made: Sequence[Rollout], requests: Sequence[EnqueueRolloutRequest], known: int
    ) -> None:
        self.rollout_ids += [rollout.rollout_id for rollout in made]
        await self._record(kind, rollouts_content(made, requests), known)


class RunClaimStore(StoreWrapper):
    """The store of a runner that knows nothing of runs: its claims are for rollouts of the run."""

    def __init__(self, store: LightningStore, run_id: str) -> None:
        super().__init__(store)
        self._run_id = run_id

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if name in ("dequeue_rollout", "dequeue_many_rollouts"):
            kwargs.setdefault("run_id", self._run_id)
        return await super()._pass_on(name, *args, **kwargs)
