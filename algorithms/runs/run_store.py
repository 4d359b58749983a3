"""The stores of a run: behind the algorithm, where rollouts are counted, and of a runner, whose claims are for the run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from ...core.model.rollout import (
    AttemptedRollout,
    EnqueueRolloutRequest,
    Fact,
    Rollout,
    RolloutConfig,
    RolloutMode,
    TaskInput,
)
from ...core.model.store_interface import LightningStore, LightningStoreCapabilities
from ...projections.replica import validation as arguments
from ...rest.server.delegating_store import Delegating

__all__ = ["ClaimsForRun", "RunStore"]


class _Around(Delegating):
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


class ClaimsForRun(_Around):
    """The store of a runner that knows nothing of runs: its claims are for rollouts of the run."""

    def __init__(self, store: LightningStore, run_id: str) -> None:
        super().__init__(store)
        self._run_id = run_id

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if name in ("dequeue_rollout", "dequeue_many_rollouts"):
            kwargs.setdefault("run_id", self._run_id)
        return await super()._pass_on(name, *args, **kwargs)


class RunStore(_Around):
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
        given = arguments.requests(rollouts)
        requests = [request.model_copy(update={"config": request.config or self._config}) for request in given]
        made = await self.store.enqueue_many_rollouts(requests)
        self.rollout_ids += [rollout.rollout_id for rollout in made]
        return made
