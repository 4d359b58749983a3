"""What the log says of runs: a fit that was opened and closed, and what its algorithm decided.

These events stand in the control log and are no proposals: they are marked as not critical, so every fold, of this
release and of any older one, skips them and leaves state, verdicts and fingerprint alone. They are read by a projection
of their own (projections/history/run_index.py). Their types are not in the codec's union on purpose: what the fold cannot
decode it cannot apply.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Union, cast

import msgspec

from ..errors import AgentLightningError
from . import payload
from .schema import Count, Event, Int

RUN_ID = "agl.run_id"
"""Key of a rollout's metadata that names the run it belongs to: written with the rollout, so neither is there alone."""
OWN_RUNNERS = "agl.own_runners"
"""Key of a rollout's metadata, true where the run has runners of its own and no other runner gets the rollout."""

_RUN_ID = RUN_ID.encode()

LOST = "lost"
"""Outcome of a run whose owner was gone: it counts until the owner closes the run itself, should it come back."""
BEAT = "run.beat"
"""Not an event: the owner of a run says that it is there (projections/liveness/heartbeats.py)."""

OPENED, CLOSED, DECIDED = "run.opened", "run.closed", "algorithm.decided"
MARKS: tuple[bytes, ...] = (OPENED.encode(), CLOSED.encode(), DECIDED.encode())


class RunOpened(Event, frozen=True, tag=OPENED):
    """A fit began. Sizes are numbers of samples, -1 where they are not known.

    `parameters` and `datasets` are user data (payload.py); the latter are what a replay needs from nowhere else then: a map
    of `train`, `val` and `initial_resources`. `own_runners`: no other runners get the rollouts of this run.
    """

    run_id: str
    name: str = ""
    algorithm: str = ""
    agent: str = ""
    parameters: msgspec.Raw = payload.ABSENT
    seed: Int | None = None
    resources_id: str | None = None
    resources_version: Count | None = None
    train_size: Int = -1
    val_size: Int = -1
    datasets: msgspec.Raw = payload.ABSENT
    own_runners: bool = False


class RunClosed(Event, frozen=True, tag=CLOSED):
    """A fit ended: `outcome` is a word such as `succeeded`, `failed` or `interrupted`; the resources are the best ones."""

    run_id: str
    outcome: str
    resources_id: str | None = None
    resources_version: Count | None = None
    summary: msgspec.Raw = payload.ABSENT


class AlgorithmDecided(Event, frozen=True, tag=DECIDED):
    """What an algorithm decided: `digest` stands for the whole of it, `content` (user data) is what people read.

    `based_on`: the number of control records that its store had applied when it decided; -1 where nobody knows.
    """

    run_id: str
    kind: str
    digest: str
    content: msgspec.Raw = payload.ABSENT
    based_on: Int = -1


RunEvent = Union[RunOpened, RunClosed, AlgorithmDecided]  # noqa: UP007 (a union that msgspec decodes)
RUN_EVENTS = (RunOpened, RunClosed, AlgorithmDecided)
"""The same for `isinstance`, which takes a microsecond longer for a union of `typing`."""


class RunRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of a control record of a run: the envelope of a proposal, with the mark that lets the fold skip it."""

    id: str
    time_us: Int
    writer: str
    basis: Int
    basis_print: bytes
    event: RunEvent
    noncritical: bool
    v: int = 1


_decode = msgspec.json.Decoder(RunRecord).decode
_sorted = msgspec.json.Encoder(order="sorted").encode


def decode_run(value: bytes) -> RunRecord | None:
    """A record of a run; None for every other one, also for those whose body this release cannot read."""
    if not any(mark in value for mark in MARKS):
        return None
    try:
        record = _decode(value)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return None
    return record if record.noncritical else None


def digest_of(value: Any) -> str:
    """16 hex digits that are equal for equal data, whatever the order of keys and whichever way it travelled.

    Raises `InvalidPayload` for what cannot be stored.
    """
    return sha256(_sorted(msgspec.json.decode(payload.encode(value)))).hexdigest()[:16]


def run_of(metadata: bytes | None) -> str | None:
    """The run that a rollout's metadata names; None where it names none or lies in blobs."""
    return None if metadata is None else runs_of(metadata)[0]


def runs_of(metadata: bytes) -> tuple[str | None, bool]:
    """The run that a rollout's metadata names, and whether only the runners of that run may have the rollout."""
    if _RUN_ID not in metadata or payload.is_reference(metadata):
        return None, False
    try:
        found = payload.decode(metadata)
    except AgentLightningError:
        return None, False
    entries = cast("dict[Any, Any]", found) if isinstance(found, dict) else {}
    run_id = entries.get(RUN_ID)
    return (run_id, entries.get(OWN_RUNNERS) is True) if isinstance(run_id, str) and run_id else (None, False)
