"""The state that the fold keeps of one log: rollouts, attempts, queue, resources, workers, clock, verdicts.

Only the fold changes it (rules.py, state_machine.py); others read it under the node's lock or takes copies. It
holds what follows from the control log and nothing else: no heartbeat times, no spans, no wall clock.

A finished rollout leaves it for the archive by log position alone (`archive_due`), so that replicas of any size agree about
every later event.
"""

from __future__ import annotations

from collections import deque
from copy import copy
from hashlib import blake2b
from typing import Any

import msgspec

from ..events.schema import AttemptStatus, Config, Mode, RolloutStatus
from ..model.status import FINISHED
from .archive import HASH_BYTES, ArchiveTable
from .deduplication import VerdictTable

FOLD_VERSION = 1
"""The newest semantics this release knows."""
DEFAULT_WINDOW = 100_000
DEFAULT_ARCHIVE_AFTER = 50_000


class Attempt(msgspec.Struct, gc=False, omit_defaults=True):
    """One execution of a rollout. `started_ms` is on the log's clock, times in `_us` are the writers' wall clocks.

    `counted`: costs one of `max_attempts`. `confirmed`: its claimer has shown a sign of life, or need not.
    `watermark`: end offset of the rollout's span partition when the attempt ended. A sixteenth field would change the packed
    bytes of every attempt, and so the hashes of what old logs have archived.
    """

    attempt_id: str
    sequence_id: int
    generation: int
    started_us: int
    started_ms: int
    status: AttemptStatus = "preparing"
    ended_us: int | None = None
    worker_id: str | None = None
    incarnation: str | None = None
    beat_us: int | None = None
    metadata: bytes | None = None
    revivals: int = 0
    counted: bool = True
    confirmed: bool = True
    watermark: int | None = None


class Rollout(msgspec.Struct, gc=False, omit_defaults=True):
    """A task and all its attempts. `number` orders rollouts by creation, from 1.

    `generation` counts explicit restarts. `finished_at` is the position of the outcome, -1 while there is none.
    `lost` counts requeues after lost workers in this generation. `due_ms`: end of a back-off on the log's clock.
    `config_version` counts changes of `config`, so that an expiry can say which it saw. `reward`: the final one of the latest
    attempt, once that has ended.
    """

    rollout_id: str
    number: int
    input: bytes
    created_us: int
    status: RolloutStatus = "queuing"
    mode: Mode | None = None
    resources_id: str | None = None
    resources_version: int | None = None
    config: Config = Config()
    metadata: bytes | None = None
    generation: int = 0
    config_version: int = 0
    ended_us: int | None = None
    finished_at: int = -1
    lost: int = 0
    due_ms: int | None = None
    attempts: list[Attempt] = []
    reward: float | None = None


class ResourcesVersion(msgspec.Struct, gc=False, omit_defaults=True):
    """One immutable version of named resources; `version` counts from 1."""

    resources_id: str
    version: int
    created_us: int
    updated_us: int
    resources: bytes


class Worker(msgspec.Struct, gc=False, omit_defaults=True):
    """What the control log says of a worker; heartbeats are an overlay elsewhere. `changed_at` is a position."""

    worker_id: str
    status: str = "unknown"
    changed_at: int = -1
    dequeue_us: int | None = None
    busy_us: int | None = None
    idle_us: int | None = None
    rollout_id: str | None = None
    attempt_id: str | None = None


class State:
    """Everything that follows from the first `position` records of a log.

    `fingerprint` chains over every record and what the fold made of it: 8 bytes, equal on every node that folded the
    same records. `queue` holds the claimable rollouts, oldest first. `leaving` holds (position of outcome, rollout_id)
    of finished rollouts that are still hot, in that order. `halted` says why this node cannot go on.
    """

    __slots__ = (
        "archive_after", "archived", "created", "fingerprint", "fold_version", "halted", "latest_resources", "leaving",
        "position", "queue", "refused", "resources", "rollouts", "skipped", "time_ms", "verdicts", "window", "workers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.position = 0
        self.fingerprint = b""
        self.fold_version = FOLD_VERSION
        self.window = DEFAULT_WINDOW
        self.archive_after = DEFAULT_ARCHIVE_AFTER
        self.time_ms = 0
        self.rollouts: dict[str, Rollout] = {}
        self.queue: dict[str, None] = {}
        self.resources: dict[str, list[ResourcesVersion]] = {}
        self.latest_resources: str | None = None
        self.workers: dict[str, Worker] = {}
        self.verdicts = VerdictTable()
        self.archived = ArchiveTable()
        self.leaving: deque[tuple[int, str]] = deque()
        self.created = 0
        self.refused = 0
        self.skipped = 0
        self.halted: str | None = None

    def without_rollouts(self) -> State:
        """A copy that later folds leave alone, without the rollouts and the verdicts, which cost more to copy than to take
        apart. It costs a copy of each other table."""
        made = State()
        for name in _SCALARS:
            setattr(made, name, getattr(self, name))
        made.queue, made.leaving = dict(self.queue), deque(self.leaving)
        made.resources = {resources_id: list(versions) for resources_id, versions in self.resources.items()}
        made.workers = {worker_id: copy(worker) for worker_id, worker in self.workers.items()}
        made.archived = self.archived.copied()
        return made


_SCALARS = (
    "archive_after", "created", "fingerprint", "fold_version", "halted", "latest_resources", "position", "refused",
    "skipped", "time_ms", "window",
)  # fmt: skip


class Image(msgspec.Struct, array_like=True):
    """A state as plain data, for snapshots; `dump` and `load` are inverse."""

    position: int
    fingerprint: bytes
    fold_version: int
    window: int
    archive_after: int
    time_ms: int
    rollouts: list[Rollout]
    queue: list[str]
    resources: list[list[ResourcesVersion]]
    latest_resources: str | None
    workers: list[Worker]
    verdicts: bytes
    archived: list[bytes]
    leaving: list[tuple[int, str]]
    created: int
    refused: int
    skipped: int


pack_rollout = msgspec.msgpack.Encoder().encode
_image_decoder = msgspec.msgpack.Decoder(Image)


def dump(state: State, packed: list[bytes] | None = None, verdicts: bytes | None = None) -> bytes:
    """Encode the whole state. Equal states of one history give equal bytes.

    `packed`: the rollouts in order, each encoded by `pack_rollout` before; `verdicts`: the joined pieces of their table. The
    state's own are not looked at then.
    """
    rollouts: Any = list(state.rollouts.values()) if packed is None else [msgspec.Raw(one) for one in packed]
    return msgspec.msgpack.encode(
        Image(
            position=state.position,
            fingerprint=state.fingerprint,
            fold_version=state.fold_version,
            window=state.window,
            archive_after=state.archive_after,
            time_ms=state.time_ms,
            rollouts=rollouts,
            queue=list(state.queue),
            resources=list(state.resources.values()),
            latest_resources=state.latest_resources,
            workers=list(state.workers.values()),
            verdicts=state.verdicts.dump() if verdicts is None else verdicts,
            archived=state.archived.dump(),
            leaving=list(state.leaving),
            created=state.created,
            refused=state.refused,
            skipped=state.skipped,
        )
    )


def load(data: bytes) -> State:
    """Rebuild a state from `dump`. Raises `msgspec.MsgspecError` where the bytes are not an image."""
    image = _image_decoder.decode(data)
    if not image.archived or not all(image.resources):
        raise msgspec.ValidationError("an image has a fresh archive run, and a version of every resource")
    state = State()
    for name in ("position", "fingerprint", "fold_version", "window", "archive_after", "time_ms", "latest_resources"):
        setattr(state, name, getattr(image, name))
    state.rollouts = {rollout.rollout_id: rollout for rollout in image.rollouts}
    state.queue = dict.fromkeys(image.queue)
    state.resources = {versions[0].resources_id: versions for versions in image.resources}
    state.workers = {worker.worker_id: worker for worker in image.workers}
    state.verdicts = VerdictTable.load(image.verdicts)
    state.archived = ArchiveTable.load(image.archived)
    state.leaving = deque(image.leaving)
    state.created, state.refused, state.skipped = image.created, image.refused, image.skipped
    return state


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Rollout).decode


def pack(rollout: Rollout) -> bytes:
    """The bytes of a rollout with its attempts; equal rollouts give equal bytes."""
    return _encode(rollout)


def unpack(body: bytes) -> Rollout | None:
    """What `pack` packed, or None where the bytes are something else."""
    try:
        return _decode(body)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return None


def hash_of(body: bytes) -> bytes:
    """The 8-byte hash that stays in the fold."""
    return blake2b(body, digest_size=HASH_BYTES).digest()


def archive_due(state: State) -> list[tuple[Rollout, bytes]]:
    """Take the rollouts out of hot state whose outcome lies `archive_after` records back; return them, packed.

    A rollout that was reopened or finished anew since then stays; its later outcome has an entry of its own.
    """
    leaving = state.leaving
    limit = state.position - state.archive_after
    if not leaving or leaving[0][0] > limit:
        return []
    gone: list[tuple[Rollout, bytes]] = []
    while leaving and leaving[0][0] <= limit:
        position, rollout_id = leaving.popleft()
        rollout = state.rollouts.get(rollout_id)
        if rollout is None or rollout.finished_at != position or rollout.status not in FINISHED:
            continue
        body = pack(rollout)
        state.archived.put(rollout_id, hash_of(body))
        del state.rollouts[rollout_id]
        gone.append((rollout, body))
    return gone
