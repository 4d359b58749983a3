"""What users plug into a run: workers with a life cycle, hooks around rollouts, datasets."""

from typing import Any, Generic, Protocol, SupportsIndex, TypeVar

from .span import ReadableSpan, Span

__all__ = ["Dataset", "Hook", "ParallelWorkerBase"]

T_co = TypeVar("T_co", covariant=True)


class ParallelWorkerBase:
    """Something that lives once in the main process and once in every worker.

    Order of the calls: ``init`` (main), ``init_worker`` (each worker), ``run``,
    ``teardown_worker`` (each worker), ``teardown`` (main). All of them do nothing here, except
    that ``init_worker`` keeps the worker's id.
    """

    worker_id: int | None = None

    def __init__(self) -> None:
        self.worker_id = None

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Set up in the main process, before any worker exists."""

    def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Set up in a worker."""
        self.worker_id = worker_id

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work; between ``init_worker`` and ``teardown_worker``."""

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Clean up in a worker."""

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Clean up in the main process, after all workers."""


class Hook(ParallelWorkerBase):
    """Callbacks around each attempt; override what you need, all are awaited."""

    async def on_rollout_start(self, *, agent: Any, runner: Any, rollout: Any) -> None:
        """After the rollout was claimed, before its trace starts."""

    async def on_trace_start(self, *, agent: Any, runner: Any, tracer: Any, rollout: Any) -> None:
        """Inside the trace, before the agent runs: spans recorded here belong to the attempt."""

    async def on_trace_end(self, *, agent: Any, runner: Any, tracer: Any, rollout: Any) -> None:
        """Inside the trace, after the agent returned or failed."""

    async def on_rollout_end(
        self, *, agent: Any, runner: Any, rollout: Any, spans: list[ReadableSpan] | list[Span]
    ) -> None:
        """After the trace closed; ``spans`` are those of this attempt."""


class Dataset(Protocol, Generic[T_co]):
    """Anything with a length and an index, such as a list."""

    def __getitem__(self, index: SupportsIndex, /) -> T_co: ...

    def __len__(self) -> int: ...
