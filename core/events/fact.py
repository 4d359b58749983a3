"""Facts: what accepted events led to, one struct per type; the only definition of what subscribers, topics and pages show.

The fold makes them (core/fold/state_machine.py). `Fact.data` of a subscriber and the `data` of a record in `facts` are the
fields of these structs beside the ids; `decode` makes the struct of either again. Fields are never renamed or retyped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, ClassVar, Union

import msgspec

from .schema import AttemptStatus, RolloutStatus


class FactData(msgspec.Struct, frozen=True, omit_defaults=True, gc=False, tag_field="type"):
    """Base of all facts. `sequence_id` counts attempts from 1; 0 where no attempt is meant. What is absent is left out."""

    type: ClassVar[str]
    """The stable name, which is the tag too."""

    rollout_id: str | None = None
    sequence_id: int = 0
    attempt_id: str | None = None

    identity_of: ClassVar[Callable[[FactData], tuple[str, str | None, int]]] = attrgetter(
        "type", "rollout_id", "sequence_id"
    )
    """What of a fact enters the fingerprint of the log; other fields may be added without a change to it."""


class LogOpened(FactData, frozen=True, tag="log.opened"):
    """The log has its first record."""


class FoldActivated(FactData, frozen=True, kw_only=True, tag="fold.activated"):
    """Other semantics hold from here on."""

    version: int


class TimePassed(FactData, frozen=True, kw_only=True, tag="time.passed"):
    """The log's clock moved on to `to_ms`."""

    to_ms: int


class ResourcesPublished(FactData, frozen=True, kw_only=True, tag="resources.published"):
    """A new version of named resources, the latest from here on."""

    resources_id: str
    version: int

    identity_of = attrgetter("type", "rollout_id", "version")
    """The version stands for the attempt, and no rollout is meant."""


class RolloutEnqueued(FactData, frozen=True, tag="rollout.enqueued"):
    """A rollout was created."""


class RolloutClaimable(FactData, frozen=True, kw_only=True, tag="rollout.claimable"):
    """A rollout joined the queue, which is a record of `tasks` too; a claim would open the attempt `sequence_id`."""

    status: RolloutStatus


class RolloutPreparing(FactData, frozen=True, tag="rollout.preparing"):
    """A rollout's status became preparing without a claim."""


class RolloutRunning(FactData, frozen=True, tag="rollout.running"):
    """The latest attempt of a rollout is at work."""


class RolloutBackoff(FactData, frozen=True, kw_only=True, tag="rollout.backoff"):
    """A retry waits until the log's clock is at `due_ms`."""

    due_ms: int


class RolloutReopened(FactData, frozen=True, kw_only=True, tag="rollout.reopened"):
    """A finished or busy rollout was restarted; `generation` counts that."""

    generation: int


class RolloutUpdated(FactData, frozen=True, kw_only=True, tag="rollout.updated"):
    """A caller replaced these fields of a rollout."""

    fields: tuple[str, ...]


class RolloutRestored(FactData, frozen=True, tag="rollout.restored"):
    """A finished rollout came back from the archive, because it is about to be changed."""


class RolloutCompleted(FactData, frozen=True, kw_only=True, tag="rollout.completed"):
    """A rollout has its outcome, with what a subscriber or auditor needs without a second read.

    `task_digest`: BLAKE2b of the encoded input in hex, equal for equal inputs. `resources_*`: what the rollout was bound to.
    `worker_id`, `seconds`, `reward`: of the last attempt: who ran it, from its start to the end of the rollout, and the final
    reward among its spans at that moment. `generation` counts restarts.
    """

    status: RolloutStatus
    run_id: str | None = None
    task_digest: str
    resources_id: str | None = None
    resources_version: int | None = None
    reward: float | None = None
    worker_id: str | None = None
    seconds: float | None = None
    generation: int = 0


class AttemptClaimed(FactData, frozen=True, kw_only=True, tag="attempt.claimed"):
    """An attempt was opened, by a claim or outright."""

    worker_id: str | None = None


class AttemptConfirmed(FactData, frozen=True, tag="attempt.confirmed"):
    """The claimer of an attempt has shown a sign of life."""


class AttemptUpdated(FactData, frozen=True, tag="attempt.updated"):
    """A caller changed fields of an attempt, not its status."""


class AttemptLate(FactData, frozen=True, kw_only=True, tag="attempt.late"):
    """An attempt ended with this status after its rollout had gone on without it."""

    status: AttemptStatus


class AttemptPreparing(FactData, frozen=True, tag="attempt.preparing"):
    """An attempt's status was set to preparing."""


class AttemptRunning(FactData, frozen=True, tag="attempt.running"):
    """An attempt is at work, also one that was given up for silence and came back."""


class AttemptSucceeded(FactData, frozen=True, tag="attempt.succeeded"):
    """An attempt succeeded."""


class AttemptFailed(FactData, frozen=True, tag="attempt.failed"):
    """An attempt failed."""


class AttemptUnresponsive(FactData, frozen=True, tag="attempt.unresponsive"):
    """An attempt was given up for silence, or its claim was returned."""


class AttemptTimeout(FactData, frozen=True, tag="attempt.timeout"):
    """An attempt took too long."""


AnyFact = Union[  # noqa: UP007 (a union of many reads best as a list)
    LogOpened,
    FoldActivated,
    TimePassed,
    ResourcesPublished,
    RolloutEnqueued,
    RolloutClaimable,
    RolloutPreparing,
    RolloutRunning,
    RolloutBackoff,
    RolloutReopened,
    RolloutUpdated,
    RolloutRestored,
    RolloutCompleted,
    AttemptClaimed,
    AttemptConfirmed,
    AttemptUpdated,
    AttemptLate,
    AttemptPreparing,
    AttemptRunning,
    AttemptSucceeded,
    AttemptFailed,
    AttemptUnresponsive,
    AttemptTimeout,
]

TYPES: dict[str, type[FactData]] = {str(kind.__struct_config__.tag): kind for kind in AnyFact.__args__}
"""Name of a type -> its struct."""
for _name, _kind in TYPES.items():
    _kind.type = _name

OF_ATTEMPT: dict[AttemptStatus, type[FactData]] = {
    "preparing": AttemptPreparing,
    "running": AttemptRunning,
    "succeeded": AttemptSucceeded,
    "failed": AttemptFailed,
    "unresponsive": AttemptUnresponsive,
    "timeout": AttemptTimeout,
}
"""Status of an attempt -> the fact that it has it now."""
STATUS_OF = {kind: status for status, kind in OF_ATTEMPT.items()}
ENDS = (AttemptSucceeded, AttemptFailed, AttemptTimeout, AttemptUnresponsive)
"""What says that nobody is expected to work on an attempt any more."""


def decode(fact: Mapping[str, Any]) -> AnyFact:
    """The struct of a fact in its plain form, as in a record of `facts` or `Fact.model_dump()`.

    Raises `msgspec.ValidationError` for a type that this release does not know.
    """
    ids = {name: fact[name] for name in ("type", "rollout_id", "attempt_id")}
    return msgspec.convert({**ids, **fact["data"]}, AnyFact)  # pyright: ignore[reportArgumentType]
