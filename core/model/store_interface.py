"""LightningStore: the one interface between algorithms, runners and whatever keeps their data."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
)

from .resources import ResourcesUpdate
from .rollout import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    EnqueueRolloutRequest,
    Fact,
    PaginatedResult,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    TaskInput,
    Worker,
    WorkerStatus,
)
from .span import Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
from typing import TypedDict

from .status import FINISHED, QUEUING, RUNNING

__all__ = [
    "DelegatingStore",
    "FilterLogic",
    "LightningStore",
    "LightningStoreCapabilities",
    "LightningStoreStatistics",
    "SortOrder",
    "UNSET",
    "Unset",
    "is_finished",
    "is_queuing",
    "is_running",
]

SortOrder = Literal["asc", "desc"]
FilterLogic = Literal["and", "or"]


class _UnsetType:
    """The type of :data:`UNSET`, of which there is one instance, also after pickling."""

    _instance: _UnsetType | None = None

    def __new__(cls) -> _UnsetType:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "UNSET"

    def __reduce__(self) -> str:
        return "UNSET"


UNSET = _UnsetType()
"""Default of a parameter that leaves its field unchanged; None would set the field to null."""

Unset = _UnsetType


class LightningStoreCapabilities(TypedDict, total=False):
    """What a store can do beyond the methods; a missing key means no."""

    thread_safe: bool
    """Methods may be called from several threads."""
    async_safe: bool
    """Methods may be called from several tasks of one event loop."""
    zero_copy: bool
    """Handed to another thread or process, it still refers to the same data."""
    otlp_traces: bool
    """Takes spans over OTLP/HTTP at :meth:`LightningStore.otlp_traces_endpoint`."""
    push_dequeue: bool
    """``dequeue_rollout(wait_seconds=...)`` waits for work instead of returning at once."""
    liveness: bool
    """``update_worker(attempts=...)`` counts as a sign of life of those attempts."""
    run_claims: bool
    """``dequeue_rollout(run_id=...)`` claims rollouts of that run only."""
    subscribe: bool
    """:meth:`LightningStore.subscribe` works."""


class LightningStoreStatistics(TypedDict, total=False):
    """Counts of what a store holds; ``uptime`` is seconds since it was opened."""

    name: str
    total_rollouts: int
    total_attempts: int
    total_spans: int
    total_resources: int
    total_workers: int
    uptime: float
    total_span_bytes: int
    eviction_threshold_bytes: int
    safe_threshold_bytes: int
    memory_capacity_bytes: int


def is_queuing(rollout: Rollout) -> bool:
    """In the queue: queuing or requeuing."""
    return rollout.status in QUEUING


def is_running(rollout: Rollout) -> bool:
    """Claimed by a worker: preparing or running."""
    return rollout.status in RUNNING


def is_finished(rollout: Rollout) -> bool:
    """Over: failed, succeeded or cancelled."""
    return rollout.status in FINISHED


class LightningStore:
    """Rollouts, their attempts and spans, the resources they use and the workers that run them.

    This class is the contract: it says what each method does and implements none of them. A
    store overrides all; what a store leaves out raises NotImplementedError, and
    ``capabilities`` tells beforehand about the optional ones.

    Every method is atomic, returns values that share nothing with the store, and returns after
    its change is kept. Ids that the store does not know raise ``NotFound`` (a ValueError) in
    methods that change something, and give None or an empty page in those that read. Values
    that are refused raise a ValueError, and nothing has changed then.
    """

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return LightningStoreCapabilities(
            thread_safe=False,
            async_safe=False,
            zero_copy=False,
            otlp_traces=False,
            push_dequeue=False,
            liveness=False,
            run_claims=False,
            subscribe=False,
        )

    async def statistics(self) -> LightningStoreStatistics:
        """Counts; the class name alone where a store does not count."""
        return LightningStoreStatistics(name=type(self).__name__)

    def otlp_traces_endpoint(self) -> str:
        """The URL that takes OTLP/HTTP trace exports."""
        raise NotImplementedError

    # Queue and attempts

    async def start_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> AttemptedRollout:
        """Create a rollout past the queue, with its first attempt, both ``preparing``.

        ``resources_id`` None binds the latest resources of this moment. ``config`` and
        ``metadata`` are copied. With ``worker_id`` that worker becomes busy.
        """
        raise NotImplementedError

    async def enqueue_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Rollout:
        """Create a rollout at the tail of the queue, without an attempt; binds like start."""
        raise NotImplementedError

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        """In the order given; those that name no resources are all bound to the same.

        Up to about 800 kB of them are one record, all or none. A larger batch is several
        records: a crash may come between them, and a retry of the call adds what is missing.
        """
        raise NotImplementedError

    async def dequeue_rollout(
        self,
        worker_id: str | None = None,
        *,
        wait_seconds: float = 0.0,
        incarnation: str | None = None,
        command_id: str | None = None,
        run_id: str | None = None,
    ) -> AttemptedRollout | None:
        """Claim the head of the queue: its next attempt, ``preparing``; None when empty.

        Args:
            worker_id: who claims; its worker record becomes busy, or idle when empty.
            wait_seconds: how long to wait for work to appear; 0 returns at once.
            incarnation: unique id of one life of the runner process. Worker ids repeat from
                machine to machine; whose heartbeats keep which attempt alive follows from this.
            command_id: makes the claim idempotent: the same id gives the same claim again.
            run_id: claims rollouts of that run only (capability ``run_claims``). Without it the rollouts of runs that
                have runners of their own are left out.
        """
        raise NotImplementedError

    async def dequeue_many_rollouts(
        self,
        *,
        limit: int = 1,
        worker_id: str | None = None,
        wait_seconds: float = 0.0,
        incarnation: str | None = None,
        command_id: str | None = None,
        run_id: str | None = None,
    ) -> Sequence[AttemptedRollout]:
        """Claim up to ``limit``, first in first out; none for limit <= 0.

        Waits for the first one only. The worker record shows the last of them.
        """
        raise NotImplementedError

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        """Add an attempt whatever the rollout's status and ``max_attempts`` say.

        The rollout becomes ``preparing``, also when it was over. NotFound for an unknown id.
        """
        raise NotImplementedError

    async def update_rollout(
        self,
        rollout_id: str,
        input: TaskInput | Unset = UNSET,
        mode: RolloutMode | None | Unset = UNSET,
        resources_id: str | None | Unset = UNSET,
        status: RolloutStatus | Unset = UNSET,
        config: RolloutConfig | Unset = UNSET,
        metadata: dict[str, Any] | None | Unset = UNSET,
    ) -> Rollout:
        """Replace the given fields, each as a whole.

        A terminal ``status`` stamps ``end_time``; a queuing one puts the rollout at the tail of
        the queue unless it is in it. Attempts and workers are not touched. NotFound.
        """
        raise NotImplementedError

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | Unset = UNSET,
        last_heartbeat_time: float | Unset = UNSET,
        metadata: dict[str, Any] | Unset = UNSET,
    ) -> Attempt:
        """Replace the given fields of an attempt.

        A changed status of the latest attempt carries over to the rollout (retries included),
        but never brings back a rollout that is over. NotFound.
        """
        raise NotImplementedError

    # Spans

    async def add_span(self, span: Span) -> Span | None:
        """Store a span; None when its identity (rollout, attempt, span id) is there already.

        A stored span is a sign of life of its attempt. NotFound for an unknown rollout or attempt.
        """
        raise NotImplementedError

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """As :meth:`add_span`; returns the spans that were not there before."""
        raise NotImplementedError

    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        """Convert and store an OpenTelemetry span; None for ``sequence_id`` takes the next one."""
        raise NotImplementedError

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """The next number of the rollout's counter, which starts at 1 and is shared by attempts."""
        raise NotImplementedError

    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        """One number for each pair, in order: [(A, x), (B, x), (A, y)] -> [1, 1, 2]."""
        raise NotImplementedError

    async def query_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        trace_id: str | None = None,
        trace_id_contains: str | None = None,
        span_id: str | None = None,
        span_id_contains: str | None = None,
        parent_id: str | None = None,
        parent_id_contains: str | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        limit: int = -1,
        offset: int = 0,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
    ) -> PaginatedResult[Span]:
        """Spans of a rollout, of one attempt (``"latest"`` too) or of all.

        The two ids always have to match; ``filter_logic`` combines the other conditions. Spans
        that sort equal keep the order in which they were stored.
        """
        raise NotImplementedError

    # Reading rollouts and attempts

    async def query_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        rollout_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
        status: Sequence[RolloutStatus] | None = None,
    ) -> PaginatedResult[Rollout | AttemptedRollout]:
        """Rollouts with their latest attempt where there is one, by default in order of creation.

        ``rollout_ids`` is the older name of ``rollout_id_in``, which wins when both are given;
        ``status`` that of ``status_in``, with a DeprecationWarning.
        """
        raise NotImplementedError

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Attempt]:
        """All attempts of a rollout; empty for an unknown one."""
        raise NotImplementedError

    async def get_rollout_by_id(self, rollout_id: str) -> AttemptedRollout | Rollout | None:
        """A rollout with its latest attempt, where there is one; None for an unknown id."""
        raise NotImplementedError

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """The attempt with the highest sequence id; None without one."""
        raise NotImplementedError

    async def wait_for_rollouts(self, rollout_ids: Sequence[str], timeout: float | None = None) -> list[Rollout]:
        """Wait until all are over, or ``timeout`` seconds have passed (None: no limit).

        Returns those that are over, in the order given. Unknown ids are left out and not waited
        for. A timeout of 0 or less looks once.
        """
        raise NotImplementedError

    def subscribe(self, types: Sequence[str] | None = None, *, since: int | None = None) -> AsyncIterator[Fact]:
        """Facts as they are accepted, without end: ``async for fact in store.subscribe()``.

        Args:
            types: fact types such as ``"rollout.completed"``; None for all.
            since: a fact's position: everything behind it is delivered first. None: from now.
        """
        raise NotImplementedError

    # Resources

    async def add_resources(self, resources: Mapping[str, Any]) -> ResourcesUpdate:
        """Store resources under a new id, in version 1; they become the latest.

        A bare string becomes an f-string prompt template.
        """
        raise NotImplementedError

    async def update_resources(self, resources_id: str, resources: Mapping[str, Any]) -> ResourcesUpdate:
        """Replace the resources of an id by a next version, or create it; they become the latest."""
        raise NotImplementedError

    async def get_resources_by_id(self, resources_id: str, version: int | None = None) -> ResourcesUpdate | None:
        """The newest version of an id, or the one asked for; None when there is none."""
        raise NotImplementedError

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """What was added or updated last; None when nothing ever was."""
        raise NotImplementedError

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
        """The newest version of every id, by default in order of creation."""
        raise NotImplementedError

    async def query_resource_versions(self, resources_id: str) -> PaginatedResult[ResourcesUpdate]:
        """Every version of an id, oldest first; empty for an unknown one."""
        raise NotImplementedError

    # Runs

    async def query_runs(self, run_id: str | None = None, brief: bool = False) -> list[dict[str, Any]]:
        """The runs of the log as plain data, in order of their opening; only those of this id or name, if one is given.

        Args:
            brief: without the ids of their rollouts.
        """
        raise NotImplementedError

    async def decided(self, kind: str, content: Any = None) -> None:
        """Record in a run what its algorithm decided and no other call shows, such as ``"best.chosen"``.

        The store that a fit gives to its algorithm records it, and a replay compares it. Any other store belongs to no run
        and records nothing.
        """

    # Workers

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
        """Workers: by default those that ever claimed something, then those that only sent heartbeats.

        Each group is in the order of its first appearance.
        """
        raise NotImplementedError

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        """One worker; None when it was never seen."""
        raise NotImplementedError

    async def update_worker(
        self,
        worker_id: str,
        heartbeat_stats: dict[str, Any] | Unset = UNSET,
        *,
        incarnation: str | None = None,
        attempts: Sequence[tuple[str, str]] | None = None,
    ) -> Worker:
        """A heartbeat: stamp ``last_heartbeat_time``, replace the stats when given.

        Args:
            incarnation: as in :meth:`dequeue_rollout`.
            attempts: (rollout_id, attempt_id) of what the worker runs right now: the heartbeat
                counts as their sign of life.
        """
        raise NotImplementedError


class DelegatingStore(LightningStore):
    """Every asynchronous method of the interface calls :meth:`_pass_on`, unless a subclass defines it itself.

    The methods are made from those of `LightningStore`, so that each signature is written once.
    """

    async def _pass_on(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call method `name` of the store behind this one."""
        raise NotImplementedError(f"{type(self).__name__} does not say where {name} goes")


def _passing(original: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    @functools.wraps(original)
    async def method(self: DelegatingStore, *args: Any, **kwargs: Any) -> Any:
        return await self._pass_on(original.__name__, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]

    return method


for _name, _method in list(vars(LightningStore).items()):
    if inspect.iscoroutinefunction(_method):
        setattr(DelegatingStore, _name, _passing(_method))
