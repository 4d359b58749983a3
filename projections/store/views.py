"""Rollouts as calls read them: copied under the node's lock, and only after it fetched, unpacked, decoded and shown.

Nothing under that lock waits for a disk or a network, and nothing there costs more than a copy: every other call of the
node waits meanwhile.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from ...core.errors import InvalidInput, LogCorrupt
from ...core.events import payload, schema
from ...core.fold.state import Attempt, ResourcesVersion, Rollout
from ...core.model import rollout as model
from ...core.model.resources import ResourcesUpdate, validate_resources

Fetch = Callable[[payload.Reference], bytes]

INCOMPLETE = "agentlightning.incomplete"
"""In the metadata of a row: why its user data is not whole."""

NO_RESOURCES = ""
"""As the `resources_id` of a new rollout: bound to none, whatever is the latest by then. Nobody's id: it is empty."""


M = TypeVar("M", bound=BaseModel)


_new: Callable[[type[Any]], Any] = object.__new__
_set_fields, _set_names, _set_extra, _set_private = (
    vars(BaseModel)[name].__set__
    for name in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


def assemble(cls: type[M], fields: dict[str, Any]) -> M:
    """What `model_construct` gives when every field is named, at a tenth of its cost: these are made per command."""
    made = _new(cls)
    _set_fields(made, fields)
    _set_names(made, set(fields))
    _set_extra(made, None)
    _set_private(made, None)
    return made


def seconds(time_us: int | None) -> float | None:
    """Microseconds to Unix seconds."""
    return None if time_us is None else time_us / 1_000_000


def micros(time: float) -> int:
    """Unix seconds to microseconds. Raises `InvalidInput` for what is no time."""
    if not math.isfinite(time) or abs(time) > 2**42:
        raise InvalidInput(f"{time} is not a time in Unix seconds")
    return round(time * 1_000_000)


def _millis(duration_seconds: float | None, name: str) -> int | None:
    if duration_seconds is None:
        return None
    if not 0 <= duration_seconds <= 2_000_000:
        raise InvalidInput(f"{name} is {duration_seconds}; it takes 0 to 2,000,000 seconds")
    return math.ceil(duration_seconds * 1000)


def config_in(config: model.RolloutConfig | None) -> schema.Config:
    """The config as events carry it: whole milliseconds, rounded up."""
    if config is None:
        return schema.Config()
    return schema.Config(
        timeout_ms=_millis(config.timeout_seconds, "timeout_seconds"),
        unresponsive_ms=_millis(config.unresponsive_seconds, "unresponsive_seconds"),
        max_attempts=config.max_attempts,
        retry_condition=tuple(config.retry_condition),
        backoff_ms=_millis(config.retry_backoff_seconds, "retry_backoff_seconds") or 0,
    )


def config_out(config: schema.Config) -> model.RolloutConfig:
    """The config as callers know it."""
    fields: dict[str, Any] = {
        "timeout_seconds": None if config.timeout_ms is None else config.timeout_ms / 1000,
        "unresponsive_seconds": None if config.unresponsive_ms is None else config.unresponsive_ms / 1000,
        "max_attempts": config.max_attempts,
        "retry_condition": list(config.retry_condition),
        "retry_backoff_seconds": config.backoff_ms / 1000,
    }
    return assemble(model.RolloutConfig, fields)


def _user_data(data: bytes | None, fetch: Fetch, lost: list[str] | None) -> Any:
    """What a payload holds. Where the log lost its bytes: None, and the reason in `lost`; without `lost` it is raised.

    A list of rows is given with `lost`: one that cannot be read must not hide the others.
    """
    if data is None:
        return None
    try:
        return payload.decode(data, fetch)
    except LogCorrupt as error:
        if lost is None:
            raise
        lost.append(error.message)
        return None


def _marked(metadata: dict[str, Any] | None, lost: list[str] | None, known: int) -> dict[str, Any] | None:
    """The metadata, which name what was lost after the first `known` reasons."""
    if not lost or len(lost) == known:
        return metadata
    return {**(metadata or {}), INCOMPLETE: "; ".join(lost[known:])}


def attempt_out(rollout_id: str, attempt: Attempt, fetch: Fetch, lost: list[str] | None = None) -> model.Attempt:
    """An attempt. `lost` as for `rollout_out`."""
    return assemble(model.Attempt, _attempt_fields(rollout_id, attempt, fetch, lost))


def _attempt_fields(rollout_id: str, attempt: Attempt, fetch: Fetch, lost: list[str] | None) -> dict[str, Any]:
    known = len(lost) if lost else 0
    metadata = _user_data(attempt.metadata, fetch, lost)
    return {
        "rollout_id": rollout_id,
        "attempt_id": attempt.attempt_id,
        "sequence_id": attempt.sequence_id,
        "start_time": attempt.started_us / 1_000_000,
        "end_time": seconds(attempt.ended_us),
        "status": attempt.status,
        "worker_id": attempt.worker_id or None,
        "last_heartbeat_time": seconds(attempt.beat_us),
        "metadata": _marked(metadata, lost, known),
    }


def _rollout_fields(rollout: Rollout, fetch: Fetch, lost: list[str] | None) -> dict[str, Any]:
    known = len(lost) if lost else 0
    task = _user_data(rollout.input, fetch, lost)
    metadata = _user_data(rollout.metadata, fetch, lost)
    return {
        "rollout_id": rollout.rollout_id,
        "input": task,
        "start_time": rollout.created_us / 1_000_000,
        "end_time": seconds(rollout.ended_us),
        "mode": rollout.mode,
        "resources_id": rollout.resources_id or None,
        "status": rollout.status,
        "config": config_out(rollout.config),
        "metadata": _marked({} if rollout.metadata is None else metadata, lost, known),
    }


def rollout_out(rollout: Rollout, fetch: Fetch, lost: list[str] | None = None) -> model.Rollout:
    """A rollout without its attempts. User data that the log lost is left out and named in `lost`; without, it is raised."""
    return assemble(model.Rollout, _rollout_fields(rollout, fetch, lost))


def attempted_out(
    rollout: Rollout, attempt: Attempt, fetch: Fetch, lost: list[str] | None = None
) -> model.AttemptedRollout:
    """A rollout with one of its attempts. `lost` as for `rollout_out`."""
    inner = attempt_out(rollout.rollout_id, attempt, fetch, lost)
    return assemble(model.AttemptedRollout, {**_rollout_fields(rollout, fetch, lost), "attempt": inner})


def latest_out(rollout: Rollout, fetch: Fetch, lost: list[str] | None = None) -> model.Rollout:
    """A rollout with its latest attempt, where there is one. `lost` as for `rollout_out`."""
    if not rollout.attempts:
        return rollout_out(rollout, fetch, lost)
    return attempted_out(rollout, rollout.attempts[-1], fetch, lost)


def resources_out(entry: ResourcesVersion, fetch: Fetch, lost: list[str] | None = None) -> ResourcesUpdate:
    """One version of named resources. `lost` as for `rollout_out`."""
    content = cast("dict[str, Any]", _user_data(entry.resources, fetch, lost) or {})
    return ResourcesUpdate.model_construct(
        resources_id=entry.resources_id,
        create_time=entry.created_us / 1_000_000,
        update_time=entry.updated_us / 1_000_000,
        version=entry.version,
        resources=validate_resources(content),
    )


T = TypeVar("T")

Peeked = Rollout | bytes | None
"""A rollout as it was at one moment: a copy of a hot one, the hash of an archived one, None for an unknown one."""
SLICE = 256
"""So many rollouts are copied under the lock at a time."""


class Views:
    """The part of an engine that gives rollouts to those who read them."""

    node: Any
    archive_index: Any

    def beat_us(self, rollout: Rollout, attempt: Attempt) -> int | None:
        """The last sign of life of an attempt that is known beside the log; under the node's lock."""
        raise NotImplementedError

    def check_index(self, rollout_id: str) -> None:
        """Raise where an archived rollout is not in the index because that is still being made."""

    def copied(self, rollout: Rollout) -> Rollout:
        """A copy with its attempts, whose last signs of life are those of the overlay; under the node's lock."""
        made = copy(rollout)
        made.attempts = []
        for attempt in rollout.attempts:
            beat_us = self.beat_us(rollout, attempt)
            attempt = copy(attempt)
            if beat_us is not None and (attempt.beat_us is None or beat_us > attempt.beat_us):
                attempt.beat_us = beat_us
            made.attempts.append(attempt)
        return made

    def peek(self, rollout_id: str) -> Peeked:
        """What is known of a rollout at this moment; under the node's lock."""
        rollout = self.node.state.rollouts.get(rollout_id)
        return self.node.state.archived.get(rollout_id) if rollout is None else self.copied(rollout)

    def load(self, rollout_id: str) -> Rollout | None:
        """A copy of the rollout, hot or archived. Blocks for the I/O, so never under the node's lock.

        Raises `Rebuilding` while the index of finished rollouts is being made.
        """
        while True:
            with self.node.lock:
                peeked = self.peek(rollout_id)
            if not isinstance(peeked, bytes):
                return peeked
            rollout = self.archive_index.get(rollout_id, peeked)
            with self.node.lock:
                if rollout is not None:
                    return self.copied(rollout)
                if self.node.state.archived.get(rollout_id) == peeked:
                    self.check_index(rollout_id)
                    return None

    async def resolve(self, rollout_id: str, peeked: Peeked) -> Rollout | None:
        """The rollout that was seen under the lock; an archived one is read from the index."""
        return await asyncio.to_thread(self.load, rollout_id) if isinstance(peeked, bytes) else peeked

    async def read(self, rollout_id: str) -> Rollout | None:
        """As `load`, without blocking the event loop."""
        with self.node.lock:
            peeked = self.peek(rollout_id)
        return await self.resolve(rollout_id, peeked)

    async def read_many(self, rollout_ids: Sequence[str]) -> list[Rollout]:
        """Copies of those that there are, in this order."""
        found: dict[str, Peeked] = {}
        for start in range(0, len(rollout_ids), SLICE):
            with self.node.lock:
                found.update((one, self.peek(one)) for one in rollout_ids[start : start + SLICE])
        loaded = {one.rollout_id: one for one in await self.resolve_all(found)}
        return [loaded[one] for one in rollout_ids if one in loaded]

    async def resolve_all(self, found: dict[str, Peeked]) -> list[Rollout]:
        """Those that there are of what was seen under the lock, in order."""
        archived = [one for one, peeked in found.items() if isinstance(peeked, bytes)]
        if archived:
            loaded = await asyncio.to_thread(lambda: [self.load(one) for one in archived])
            found = {**found, **dict(zip(archived, loaded))}
        return [one for one in found.values() if isinstance(one, Rollout)]


async def shown(make: Callable[[], T], rollouts: Iterable[Rollout]) -> T:
    """What `make` makes of these rollouts; in a thread where it has to fetch a payload."""
    for rollout in rollouts:
        if _refers(rollout):
            return await asyncio.to_thread(make)
    return make()


def _refers(rollout: Rollout) -> bool:
    """Whether a payload of the rollout lies in blobs."""
    refers = payload.is_reference
    if refers(rollout.input) or (rollout.metadata is not None and refers(rollout.metadata)):
        return True
    return any(attempt.metadata is not None and refers(attempt.metadata) for attempt in rollout.attempts)
