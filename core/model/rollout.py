"""The nouns of the public interface: rollouts, attempts, workers, pages and facts.

All of them are pydantic models whose JSON is the wire format. Instances are values: the store
hands out copies, and changing one changes nothing but itself. Times are Unix seconds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    TypedDict,
    TypeVar,
    overload,
)

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from ..events.fact import AnyFact, decode
from .hooks import Dataset, Hook, ParallelWorkerBase
from .scalars import number
from .span import ReadableSpan, Span, SpanCoreFields
from .status import AttemptStatus, RolloutMode, RolloutStatus, TaskInput, WorkerStatus

__all__ = [
    "Attempt",
    "AttemptStatus",
    "AttemptedRollout",
    "Dataset",
    "EnqueueRolloutRequest",
    "Fact",
    "FilterField",
    "FilterOptions",
    "Hook",
    "PaginatedResult",
    "ParallelWorkerBase",
    "Rollout",
    "RolloutConfig",
    "RolloutMode",
    "RolloutRawResult",
    "RolloutStatus",
    "SortOptions",
    "TaskInput",
    "Triplet",
    "Worker",
    "WorkerStatus",
]

T = TypeVar("T")


def _as_number(value: Any) -> float | None:
    """NaN passes, since results of older releases may hold it; what makes or stores a reward refuses it."""
    found = number(value)
    if value is not None and found is None:
        raise ValueError(f"a reward must be a number, not {type(value).__name__}")
    return found


RewardOrNone = Annotated[float | None, BeforeValidator(_as_number)]


class Triplet(BaseModel):
    """One step of an agent as a trainer sees it."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    prompt: Any
    response: Any
    reward: RewardOrNone = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class Attempt(BaseModel):
    """One try at a rollout.

    ``attempt_id`` is unique within its rollout only; ``sequence_id`` counts the tries from 1.
    ``end_time`` is set when the worker reports failed or succeeded, not by timeout or
    unresponsive. ``last_heartbeat_time`` is the last sign of life: a span, or an update.
    """

    rollout_id: str
    attempt_id: str
    sequence_id: int
    start_time: float
    end_time: float | None = None
    status: AttemptStatus = "preparing"
    worker_id: str | None = None
    last_heartbeat_time: float | None = None
    metadata: dict[str, Any] | None = None


class RolloutConfig(BaseModel):
    """When an attempt is given up, and whether another one follows.

    ``timeout_seconds``: longest life of one attempt, from its start. ``unresponsive_seconds``:
    longest silence of one attempt. ``max_attempts``: how many attempts there may be, with the
    first. ``retry_condition``: the attempt statuses after which another one follows. None and
    the empty list mean never. ``retry_backoff_seconds`` (ours): pause before another attempt may
    be claimed; left out of dumps while it is 0.
    """

    timeout_seconds: float | None = None
    unresponsive_seconds: float | None = None
    max_attempts: int = Field(default=1, ge=1)
    retry_condition: list[AttemptStatus] = Field(default_factory=lambda: list[AttemptStatus]())
    retry_backoff_seconds: float = Field(default=0.0, ge=0, exclude_if=lambda seconds: seconds == 0)


class Rollout(BaseModel):
    """One execution of an agent on one input, over all its attempts.

    ``start_time`` is the time of creation, for queued rollouts too. ``resources_id`` was bound
    when the rollout was created, to the latest resources then, unless the caller chose.
    """

    rollout_id: str
    input: TaskInput
    start_time: float
    end_time: float | None = None
    mode: RolloutMode | None = None
    resources_id: str | None = None
    status: RolloutStatus = "queuing"
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: dict[str, Any] | None = None


class AttemptedRollout(Rollout):
    """A rollout together with one of its attempts, most often the latest.

    On the wire the key ``attempt`` tells it from a plain rollout.
    """

    attempt: Attempt

    @model_validator(mode="after")
    def _attempt_belongs_to_rollout(self) -> "AttemptedRollout":
        if self.attempt.rollout_id != self.rollout_id:
            raise ValueError("Inconsistent rollout_id between Rollout and Attempt")
        return self


class EnqueueRolloutRequest(BaseModel):
    """One rollout to put into the queue; fields as in :meth:`LightningStore.enqueue_rollout`."""

    input: TaskInput
    mode: RolloutMode | None = None
    resources_id: str | None = None
    config: RolloutConfig | None = None
    metadata: dict[str, Any] | None = None


class Worker(BaseModel):
    """What the store knows of one worker: its last heartbeat and what it works on."""

    worker_id: str
    status: WorkerStatus = "unknown"
    heartbeat_stats: dict[str, Any] | None = None
    last_heartbeat_time: float | None = None
    last_dequeue_time: float | None = None
    last_busy_time: float | None = None
    last_idle_time: float | None = None
    current_rollout_id: str | None = None
    current_attempt_id: str | None = None


class Fact(BaseModel):
    """Something the store accepted, as subscribers receive it.

    ``id`` is the same however often the fact is delivered. ``type`` is a past-tense tag such as
    ``"rollout.completed"``. ``position`` is where to resume: facts of one command share it.
    ``log_id`` names the log that the position belongs to.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    type: str
    position: int
    log_id: str
    time: float
    rollout_id: str | None = None
    attempt_id: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)

    @property
    def content(self) -> AnyFact:
        """The fact as the struct of its type, which has the ids and everything in ``data`` as named fields.

        Raises ``msgspec.ValidationError`` for a type that this release does not know.
        """
        return decode(vars(self))

    def __hash__(self) -> int:
        return hash(self.id)


RolloutRawResult = None | float | list[ReadableSpan] | list[Span] | list[SpanCoreFields]


class FilterField(TypedDict, total=False):
    """The conditions on one field; None means no condition.

    ``exact``: equal. ``within``: one of. ``contains``: has this part.
    """

    exact: Any
    within: Sequence[Any]
    contains: str


FilterOptions = Mapping[str, Any]
"""Field name -> :class:`FilterField`.

Two keys are reserved. ``_aggregate``: ``"and"`` (default) or ``"or"``, how the conditions are
combined. ``_must``: such a mapping, or a sequence of them, that has to match in any case.
"""


class SortOptions(TypedDict):
    """A field to sort by, and the direction."""

    name: str
    order: Literal["asc", "desc"]


class PaginatedResult(BaseModel, Sequence[T], Generic[T]):
    """A page of results that reads like the sequence of its items.

    ``total`` counts all matches, on every page. ``limit`` -1 means no limit.
    """

    # An item of a page of rollouts may be an AttemptedRollout: dump what it is, not what T says.
    items: Sequence[SerializeAsAny[T]]
    limit: int
    offset: int
    total: int

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(self.items)

    def __repr__(self) -> str:
        if not self.items:
            shown = "empty"
        elif len(self.items) == 1:
            shown = repr(self.items[0])
        else:
            shown = f"[{self.items[0]!r}, ...]"
        end = "" if self.limit == -1 else self.offset + self.limit
        return f"<PaginatedResult ({self.offset}:{end} of {self.total}) {shown}>"

    __str__ = __repr__
