"""The control events: what may be proposed to a log, and the envelope that carries it.

Every event is a proposal until the fold has judged it. Fields have defaults where they may be absent; a field is never
renamed, retyped or reused, a new one gets a default, and a new type is written only after the log activated it. Times
are microseconds since 1970 by the writer's clock, durations whole milliseconds, user data JSON that the fold
carries without decoding it (payload.py).

The fence of an attempt is (rollout_id, generation, sequence_id): `generation` counts the explicit restarts of a rollout
from 0, `sequence_id` its attempts from 1.
"""

from __future__ import annotations

from typing import Annotated, Literal, Union

import msgspec

from ..model.status import AttemptStatus as AttemptStatus
from ..model.status import RolloutMode as Mode
from ..model.status import RolloutStatus as RolloutStatus
from .payload import ABSENT

Int = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
"""Every number of an event fits into 64 bits with room for sums, so no record can make a snapshot fail."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]

ExpiryKind = Literal["timeout", "unresponsive", "worker_lost"]
Edge = Literal["running", "confirmed"]


class Config(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A `RolloutConfig` in whole milliseconds. `backoff_ms`: pause before a retry may be claimed."""

    timeout_ms: Int | None = None
    unresponsive_ms: Int | None = None
    max_attempts: Count = 1
    retry_condition: tuple[AttemptStatus, ...] = ()
    backoff_ms: Count = 0


class NewRollout(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rollout to be created.

    `resources_id` None: the fold binds the latest resources at its position. "": none, also where there are some by
    then (later parts of a batch whose first part found none).
    """

    rollout_id: str
    input: msgspec.Raw
    mode: Mode | None = None
    resources_id: str | None = None
    config: Config = Config()
    metadata: msgspec.Raw = ABSENT


class Claim(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who takes an attempt. `confirm`: the claimer will show a sign of life; until then the claim may be returned.

    `lag_ms`: time since the log's clock was last moved, by the writer's monotonic clock: the attempt starts that much
    after the clock of the log.
    """

    attempt_id: str
    worker_id: str | None = None
    incarnation: str | None = None
    confirm: bool = False
    lag_ms: Count = 0


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t"):
    """Base of all control events; the tag is the stable name of the type in the log."""

class LogOpened(Event, frozen=True, tag="log.opened"):
    """The first record of a log: settings that the fold needs, fixed for the life of the log.

    `window`: how many records the verdict table remembers. `archive_after`: how many records after its outcome a
    finished rollout leaves hot state. `fold_version`: the semantics in force until a `FoldActivated`.
    """

    fold_version: Count
    window: Count
    archive_after: Count


class FoldActivated(Event, frozen=True, tag="fold.activated"):
    """From the next record on the fold uses these semantics; a node that does not know them stops."""

    version: Count


class RolloutsEnqueued(Event, frozen=True, tag="rollouts.enqueued"):
    """Rollouts joined the queue's tail, in this order, bound to the same resources where they name none."""

    rollouts: tuple[NewRollout, ...]


class RolloutStarted(Event, frozen=True, tag="rollout.started"):
    """A rollout was created and claimed in one step, past the queue."""

    rollout: NewRollout
    claim: Claim


class AttemptClaimed(Event, frozen=True, tag="attempt.claimed"):
    """A worker took a queued rollout; accepted only if it is claimable and has `sequence_id` - 1 attempts."""

    rollout_id: str
    generation: Count
    sequence_id: Count
    claim: Claim


class AttemptStarted(Event, frozen=True, tag="attempt.started"):
    """Somebody asked for an attempt outright, whatever the rollout's state; a busy or finished one is reopened."""

    rollout_id: str
    generation: Count
    sequence_id: Count
    claim: Claim


class ClaimReturned(Event, frozen=True, tag="claim.returned"):
    """Nobody ever confirmed this claim: the rollout goes back to the queue and the attempt costs nothing."""

    rollout_id: str
    generation: Count
    sequence_id: Count


class AttemptObserved(Event, frozen=True, tag="attempt.observed"):
    """A first sign of life (`confirmed`: a beat; `running`: a span), also of an attempt that was given up for silent."""

    rollout_id: str
    generation: Count
    sequence_id: Count
    edge: Edge
    beat_us: Int | None = None


class AttemptUpdated(Event, frozen=True, tag="attempt.updated"):
    """A caller changed fields of an attempt; a terminal `status` ends it.

    `watermark`: end offset of the rollout's span partition when this was proposed. `reward`: the final one among the spans
    of the attempt that lie before it, where it ends; None: none. `beat_us`: last sign of life known.
    `worker_id` and `metadata` are left alone when None. `lag_ms` as in `Claim`: a back-off starts that much later.
    """

    rollout_id: str
    generation: Count
    sequence_id: Count
    status: AttemptStatus | None = None
    worker_id: str | None = None
    metadata: msgspec.Raw = ABSENT
    beat_us: Int | None = None
    watermark: Int | None = None
    reward: float | None = None
    lag_ms: Count = 0


class AttemptExpired(Event, frozen=True, tag="attempt.expired"):
    """The timekeeper found an attempt too long, too silent, or its worker gone.

    It names what it assumed: the number of `revivals` and the `config_version` that it saw. `lost_retries`: how often a
    lost worker's rollout is queued again whatever its config says.
    """

    rollout_id: str
    generation: Count
    sequence_id: Count
    kind: ExpiryKind
    revivals: Count
    config_version: Count
    beat_us: Int | None = None
    watermark: Int | None = None
    reward: float | None = None
    lost_retries: Count = 0


class RolloutRequeued(Event, frozen=True, tag="rollout.requeued"):
    """A back-off is over: the rollout is claimable again."""

    rollout_id: str
    generation: Count
    sequence_id: Count


class RolloutUpdated(Event, frozen=True, tag="rollout.updated"):
    """A caller replaced fields of a rollout, those named in `fields`; a status may end, requeue or reopen it.

    `watermark`, `reward`: as in `AttemptUpdated`, of the latest attempt.
    """

    rollout_id: str
    generation: Count
    fields: tuple[str, ...]
    input: msgspec.Raw = ABSENT
    mode: Mode | None = None
    resources_id: str | None = None
    status: RolloutStatus | None = None
    config: Config = Config()
    metadata: msgspec.Raw = ABSENT
    watermark: Int | None = None
    reward: float | None = None


class RolloutRestored(Event, frozen=True, tag="rollout.restored"):
    """A finished rollout came back from the cold index, because somebody is about to change it."""

    rollout_id: str
    body: bytes


class ResourcesPublished(Event, frozen=True, tag="resources.published"):
    """New content under an id; the fold numbers the versions. `expected_version` None: whatever is there."""

    resources_id: str
    resources: msgspec.Raw
    expected_version: Int | None = None


class TimePassed(Event, frozen=True, tag="time.passed"):
    """The log's clock moves; accepted only if `from_ms` is its present value, so two timekeepers do not double it."""

    from_ms: Int
    to_ms: Int


AnyEvent = Union[  # noqa: UP007 (a union of fifteen reads best as a list)
    LogOpened,
    FoldActivated,
    RolloutsEnqueued,
    RolloutStarted,
    AttemptClaimed,
    AttemptStarted,
    ClaimReturned,
    AttemptObserved,
    AttemptUpdated,
    AttemptExpired,
    RolloutRequeued,
    RolloutUpdated,
    RolloutRestored,
    ResourcesPublished,
    TimePassed,
]


class Proposal(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of a control record.

    `id`: command id, 32 hex digits of a UUIDv7, with `.1`, `.2`, ... where a lost race went on. `basis` and `basis_print`:
    the position that the caller knew at its first try and the fingerprint there (-1 and empty before any record).
    `writer`: incarnation of the node. `time_us`: its wall clock.
    """

    id: str
    time_us: Int
    writer: str
    basis: Int
    basis_print: bytes
    event: AnyEvent
    v: int = 1
    noncritical: bool = False
