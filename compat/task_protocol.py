"""The nouns of the first protocol (v0.1): tasks that clients poll and rollouts that they post."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..core.model.rollout import RewardOrNone, Triplet
from ..core.model.span import ReadableSpan
from ..core.model.status import RolloutMode, TaskInput
from ..core.spans.rewards import reward_number

__all__ = [
    "GenericResponse",
    "RolloutLegacy",
    "RolloutRawResultLegacy",
    "Task",
    "TaskIfAny",
    "check_posted",
]


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


def check_posted(posted: RolloutLegacy) -> None:
    """`InvalidInput` where a result of the first protocol holds a reward that is no finite number."""
    what = f"reward of rollout {posted.rollout_id}"
    if posted.final_reward is not None:
        reward_number(posted.final_reward, f"The final {what}")
    for index, triplet in enumerate(posted.triplets or ()):
        if triplet.reward is not None:
            reward_number(triplet.reward, f"The {what} in triplet {index}")
