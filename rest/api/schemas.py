"""The arguments of every store method in a request: checked once, when the server receives them."""

from typing import Any, Literal

from pydantic import BaseModel

from ...core.model.rollout import (
    AttemptStatus,
    EnqueueRolloutRequest,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    WorkerStatus,
)
from ...core.model.span import ReceivedSpan

Order = Literal["asc", "desc"]
Logic = Literal["and", "or"]


class Body(BaseModel):
    """Arguments by name; one that is left out keeps the method's own default."""

    def given(self) -> dict[str, Any]:
        """What the caller sent, and nothing else: a missing field is not the same as null."""
        fields = self.__dict__
        return {name: fields[name] for name in self.model_fields_set}


class Nothing(Body):
    """A method without arguments."""


class EnqueueRollout(Body):
    """See LightningStore.enqueue_rollout."""

    input: Any
    mode: RolloutMode | None = None
    resources_id: str | None = None
    config: RolloutConfig | None = None
    metadata: dict[str, Any] | None = None


class StartRollout(EnqueueRollout):
    """See LightningStore.start_rollout."""

    worker_id: str | None = None


class EnqueueMany(Body):
    """See LightningStore.enqueue_many_rollouts."""

    rollouts: list[EnqueueRolloutRequest]


class Dequeue(Body):
    """See LightningStore.dequeue_rollout; the command id travels with the call itself."""

    worker_id: str | None = None
    wait_seconds: float = 0.0
    incarnation: str | None = None
    run_id: str | None = None


class DequeueMany(Dequeue):
    """See LightningStore.dequeue_many_rollouts."""

    limit: int = 1


class StartAttempt(Body):
    """See LightningStore.start_attempt."""

    rollout_id: str
    worker_id: str | None = None


class UpdateRollout(Body):
    """See LightningStore.update_rollout; a missing field stays as it is."""

    rollout_id: str
    input: Any = None
    mode: RolloutMode | None = None
    resources_id: str | None = None
    status: RolloutStatus | None = None
    config: RolloutConfig | None = None
    metadata: dict[str, Any] | None = None


class UpdateAttempt(Body):
    """See LightningStore.update_attempt; a missing field stays as it is."""

    rollout_id: str
    attempt_id: str
    status: AttemptStatus | None = None
    worker_id: str | None = None
    last_heartbeat_time: float | None = None
    metadata: dict[str, Any] | None = None


class AddSpan(Body):
    """See LightningStore.add_span."""

    span: ReceivedSpan


class AddManySpans(Body):
    """See LightningStore.add_many_spans."""

    spans: list[ReceivedSpan]


class AttemptKey(Body):
    """A rollout and one of its attempts."""

    rollout_id: str
    attempt_id: str


class AttemptKeys(Body):
    """See LightningStore.get_many_span_sequence_ids."""

    rollout_attempt_ids: list[tuple[str, str]]


class Page(Body):
    """What every query takes; a limit of -1 is no limit."""

    sort_by: str | None = None
    sort_order: Order = "asc"
    limit: int = -1
    offset: int = 0


class QuerySpans(Page):
    """See LightningStore.query_spans."""

    rollout_id: str
    attempt_id: str | None = None
    trace_id: str | None = None
    trace_id_contains: str | None = None
    span_id: str | None = None
    span_id_contains: str | None = None
    parent_id: str | None = None
    parent_id_contains: str | None = None
    name: str | None = None
    name_contains: str | None = None
    filter_logic: Logic = "and"
    sort_by: str | None = "sequence_id"


class QueryRollouts(Page):
    """See LightningStore.query_rollouts; `status` and `rollout_ids` are older names."""

    rollout_ids: list[str] | None = None
    status_in: list[RolloutStatus] | None = None
    rollout_id_in: list[str] | None = None
    rollout_id_contains: str | None = None
    filter_logic: Logic = "and"
    status: list[RolloutStatus] | None = None

    def given(self) -> dict[str, Any]:
        """The older names become the newer ones, which win when both are there."""
        found = super().given()
        for old, new in (("status", "status_in"), ("rollout_ids", "rollout_id_in")):
            value = found.pop(old, None)
            if value is not None and found.get(new) is None:
                found[new] = value
        return found


class QueryAttempts(Page):
    """See LightningStore.query_attempts."""

    rollout_id: str
    sort_by: str | None = "sequence_id"


class RolloutKey(Body):
    """One rollout."""

    rollout_id: str


class WaitForRollouts(Body):
    """See LightningStore.wait_for_rollouts."""

    rollout_ids: list[str]
    timeout: float | None = None


class AddResources(Body):
    """See LightningStore.add_resources."""

    resources: dict[str, Any]


class UpdateResources(AddResources):
    """See LightningStore.update_resources."""

    resources_id: str


class ResourcesKey(Body):
    """An id of resources, and which version of them; None is the newest."""

    resources_id: str
    version: int | None = None


class VersionsKey(Body):
    """An id of resources."""

    resources_id: str


class QueryResources(Page):
    """See LightningStore.query_resources."""

    resources_id: str | None = None
    resources_id_contains: str | None = None


class QueryWorkers(Page):
    """See LightningStore.query_workers."""

    status_in: list[WorkerStatus] | None = None
    worker_id_contains: str | None = None
    filter_logic: Logic = "and"


class AddDeadLetter(Body):
    """See EventLogStore.add_dead_letter."""

    letter: dict[str, Any]


class RecordRunEvent(Body):
    """See EventLogStore.record_run_event."""

    type: Literal["run.opened", "run.closed", "algorithm.decided", "run.beat"]
    run_id: str | None = None
    fields: dict[str, Any] | None = None


class QueryRuns(Body):
    """See EventLogStore.query_runs."""

    run_id: str | None = None
    brief: bool = False


class WorkerKey(Body):
    """One worker."""

    worker_id: str


class UpdateWorker(Body):
    """See LightningStore.update_worker."""

    worker_id: str
    heartbeat_stats: dict[str, Any] | None = None
    incarnation: str | None = None
    attempts: list[tuple[str, str]] | None = None
