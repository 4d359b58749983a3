"""The nouns of the first protocol (v0.1): tasks that clients poll and rollouts that they post."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .scalars import number
from .span import ReadableSpan
from .status import RolloutMode, TaskInput

__all__ = [
    "GenericResponse",
    "RolloutLegacy",
    "RolloutRawResultLegacy",
    "Task",
    "TaskIfAny",
    "Triplet",
]


def _as_number(value: Any) -> float | None:
    """NaN passes, since results of older releases may hold it; whoever makes or stores a reward refuses it."""
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


class Task(BaseModel):
    """Work for one client. Times are Unix seconds; ``num_claims`` counts hand-outs."""

    rollout_id: str
    input: TaskInput
    mode: RolloutMode | None = None
    resources_id: str | None = None
    create_time: float | None = None
    last_claim_time: float | None = None
    num_claims: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class TaskIfAny(BaseModel):
    """The answer to a poll."""

    is_available: bool
    task: Task | None = None


class RolloutLegacy(BaseModel):
    """A finished rollout as a v0.1 client posts it; ``trace`` holds spans as OTel JSON dicts."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    rollout_id: str
    task: Task | None = None
    final_reward: RewardOrNone = None
    triplets: list[Triplet] | None = None
    trace: list[dict[str, Any]] | None = None
    logs: list[str] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def traces(self) -> list[dict[str, Any]] | None:
        """``trace``, under the name that the first tutorial used."""
        return self.trace


class GenericResponse(BaseModel):
    """The answer to a post."""

    status: str = "success"
    message: str | None = None
    data: dict[str, Any] | None = None


RolloutRawResultLegacy = None | float | list[Triplet] | list[dict[str, Any]] | list[ReadableSpan] | RolloutLegacy
