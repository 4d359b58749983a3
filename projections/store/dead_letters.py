"""Dead letters as a list: what was given up and is still open, from whatever log, and how a letter is put there.

On Kafka the leader writes a letter for each rollout that was given up, so that Kafka tools see it. On a log of one process
these letters are derived: every rollout that failed has one, with the error of its last attempt as the reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import msgspec

from ...core.errors import InvalidInput, InvalidPayload
from ...core.events.fact import RolloutRestored
from ...core.fold.state import Rollout, unpack
from ...core.fold.state_machine import completed
from ...core.log.dead_letter import (
    RECORD,
    ROLLOUT,
    DeadLetter,
    decode_letter,
    encode_letter,
    record_letter_id,
)
from ...core.log.interface import Log, Record
from ...core.log.topics import DEAD
from ...core.model.status import ATTEMPT_EXPIRED, FINISHED
from ..archive.index import Where
from ..facts.publisher import MOST_MB, rollout_letter
from ..replica.command_context import append_and_wait
from ..replica.fold_cursor import FoldCursor
from ..spans.blobs import Blobs
from .engine import Engine

READ_RECORDS = 1024
LATEST_SECONDS = 2**42
REQUEUED, HANDLED = "requeued", "handled"
REQUEUED_AT_ONCE = 500


class DeadEntry(msgspec.Struct, frozen=True):
    """One letter as people see it.

    `letter` is the newest under its id; its `settled` says what a retry led to. `times`: how often it was given up, the
    same giving-up reported twice counted once. `first_time`, `last_time`: Unix seconds of the first and the newest giving-up.
    """

    letter: DeadLetter
    times: int
    first_time: float
    last_time: float


def dead_letters(log: Log, failed: Sequence[DeadLetter] | None = None) -> list[DeadEntry]:
    """Every letter of the log, the oldest first. Blocks; raises what reading raises. What is no letter is shown as one.

    `failed`: the letters of failed rollouts, from who knows them; where they are derived, the log is folded otherwise.
    """
    if failed is None:
        failed = [] if _written(log) else _derived(log)
    found: dict[str, DeadEntry] = {}
    for partition in range(log.partitions(DEAD)):
        offset = log.ends(DEAD, partition)[0]
        while records := log.read(DEAD, partition, offset, READ_RECORDS):
            offset = records[-1].offset + 1
            for record in records:
                letter = _letter(record)
                found[letter.id] = _after(found.get(letter.id), letter)
    for letter in failed:
        found.setdefault(letter.id, _after(None, letter))
    return sorted(found.values(), key=lambda entry: (entry.last_time, entry.letter.id))


def _written(log: Log) -> bool:
    """Whether the log has the letters of failed rollouts, because others than its store read it."""
    return log.url.startswith("kafka:")


def _derived(log: Log) -> list[DeadLetter]:
    """The letters of every failed rollout of a log that this process only reads."""
    cursor, failed = FoldCursor(log), dict[str, Rollout]()
    for _, outcome in cursor.fold():
        for gone, _ in outcome.archived:
            if gone.status == "failed":
                failed[gone.rollout_id] = gone
        for one in outcome.facts:
            if isinstance(one, RolloutRestored) and one.rollout_id is not None:
                failed.pop(one.rollout_id, None)
    blobs = Blobs(log, MOST_MB)
    return [
        letter for one in [*failed.values(), *cursor.state.rollouts.values()] for letter in _letters_of(one, blobs)
    ]


def _letters_of(rollout: Rollout, blobs: Blobs) -> list[DeadLetter]:
    """The letter of a rollout whose last attempt was the last one, as the leader on Kafka writes it; of others none."""
    last = rollout.attempts[-1] if rollout.attempts else None
    if rollout.status != "failed" or last is None or last.status not in {"failed", *ATTEMPT_EXPIRED}:
        return []
    return [rollout_letter(completed(rollout), last.status, rollout.ended_us or 0, rollout.finished_at, last, blobs)]


def _short(rollout: Rollout) -> Rollout:
    """A copy with the last attempt only, for use outside of the node's lock."""
    short = copy(rollout)
    short.attempts = [copy(one) for one in rollout.attempts[-1:]]
    return short


def _letter(record: Record) -> DeadLetter:
    try:
        return decode_letter(record)
    except InvalidPayload as error:
        where = f"{DEAD}/{record.partition}"
        return DeadLetter(
            id=record_letter_id(DEAD, record.partition, record.offset),
            kind=RECORD,
            source=record.key or where,
            reason=error.message or str(error),
            time=record.timestamp_us / 1_000_000,
            data={"topic": DEAD, "offset": record.offset, "value": record.value.hex()},
        )


def _after(entry: DeadEntry | None, letter: DeadLetter) -> DeadEntry:
    if entry is None:
        return DeadEntry(letter, 1, letter.time, letter.time)
    if letter.settled:
        return msgspec.structs.replace(entry, letter=letter)
    if letter.time <= entry.last_time:
        return entry  # reported again, by a node that took over
    return DeadEntry(letter, entry.times + 1, entry.first_time, letter.time)


async def write_letter(log: Log, letter: DeadLetter) -> None:
    """Append a letter; returns when it is durable.

    Raises `InvalidInput` for one that would not read back, `LogError` where it is not durable or not known to be.
    """
    if not abs(letter.time) <= LATEST_SECONDS:
        raise InvalidInput(f"the time of a dead letter is {letter.time}; it takes Unix seconds")
    try:
        record = encode_letter(letter)
        decode_letter(record)
    except (InvalidPayload, ValueError, OverflowError, TypeError, RecursionError) as error:
        raise InvalidInput(f"this dead letter cannot be stored: {error}") from None
    await append_and_wait(log, DEAD, [record])


class DeadLetterMethods:
    """What a store offers beyond the public interface: its dead letters."""

    engine: Engine

    async def add_dead_letter(self, letter: DeadLetter | Mapping[str, Any]) -> None:
        """Put a letter, or its fields, into the topic `dead`. Raises `InvalidInput` for fields that are none."""
        await write_letter(self.engine.log, letter if isinstance(letter, DeadLetter) else letter_from(letter))

    async def query_dead_letters(self) -> list[dict[str, Any]]:
        """Every letter, as `DeadEntry` in plain data, the oldest first. Raises `Rebuilding` as `query_rollouts` does."""
        log, failed = self.engine.log, list[DeadLetter]()
        if not _written(log):
            await self.engine.indexed()
            failed = await asyncio.to_thread(self._failed)
        return msgspec.to_builtins(await asyncio.to_thread(dead_letters, log, failed))

    def _failed(self) -> list[DeadLetter]:
        """The letters of the failed rollouts of this store, in memory and in the index. Blocks for the I/O."""
        engine = self.engine
        found: dict[str, Rollout] = {}
        with engine.archive_index.reading() as table:
            numbers = [number for _, number in table.ordered(Where(frozenset({"failed"})), None, False, 0, -1)]
            archived = [unpack(body) for body in table.bodies(numbers).values()]
        found.update((one.rollout_id, one) for one in archived if one is not None)
        with engine.node.lock:
            hot = engine.node.state.rollouts
            moved = [*engine.archive_index.pending()[1], *(one for one in hot.values() if one.status == "failed")]
            found = {name: one for name, one in found.items() if name not in hot}
            found.update((one.rollout_id, _short(one)) for one in moved)
        return [letter for one in found.values() for letter in _letters_of(one, engine.blobs)]


def letter_from(fields: Mapping[str, Any]) -> DeadLetter:
    """A letter from plain data. Raises `InvalidInput`."""
    try:
        return msgspec.convert(dict(fields), DeadLetter)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"this is no dead letter: {error}") from error


def entries_from(rows: Sequence[Mapping[str, Any]]) -> list[DeadEntry]:
    """What `query_dead_letters` gave, typed. Raises `InvalidInput`."""
    try:
        return msgspec.convert(list(rows), list[DeadEntry])
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the store's dead letters cannot be read: {error}") from error


def find_letter(entries: Sequence[DeadEntry], name: str) -> DeadEntry:
    """The letter of this id, of this rollout, or whose id begins so. Raises `InvalidInput` for none and for several."""
    whole = [one for one in entries if one.letter.id == name or one.letter.rollout_id == name and one.letter.kind == ROLLOUT]
    found = whole[-1:] or [
        one for one in entries if one.letter.id.startswith(name) or (one.letter.rollout_id or "").startswith(name)
    ]
    if not found:
        raise InvalidInput(f"there is no dead letter {name!r}; `agl dead ls --all` lists them")
    if len(found) > 1:
        ids = ", ".join(one.letter.id for one in found[:5]) + (", ..." if len(found) > 5 else "")
        raise InvalidInput(f"{name!r} may be any of {len(found)} dead letters: {ids}")
    return found[0]


async def requeue(store: Any, letter: DeadLetter) -> None:
    """Put a rollout that was given up back into the queue: a new generation of it, which has its attempts before it.

    Raises `NotFound` for a rollout that the store does not have, `InvalidInput` where it is not over any more.
    """
    if letter.rollout_id is None:
        raise InvalidInput(f"{letter.id} names no rollout")
    rollout = await store.get_rollout_by_id(letter.rollout_id)
    if rollout is not None and rollout.status not in FINISHED:
        raise InvalidInput(f"{letter.rollout_id} is {rollout.status}: somebody has started it again already")
    await store.update_rollout(letter.rollout_id, status="queuing")
    await settle(store, letter, REQUEUED)


async def requeue_run(store: Any, name: str) -> dict[str, Any]:
    """Put every rollout of a run that was given up back into the queue; `{"run_id", "rollout_ids"}`.

    `name`: the id of the run, the beginning of it, or its name. Raises `NotFound`, `InvalidInput` for several.
    """
    [run] = await store.query_runs(name)
    mine = set(run["rollout_ids"])
    letters = {
        entry.letter.rollout_id: entry.letter
        for entry in entries_from(await store.query_dead_letters())
        if entry.letter.kind == ROLLOUT and not entry.letter.settled and entry.letter.rollout_id in mine
    }
    queued: list[str] = []
    names = [one for one in letters if one is not None]
    for first in range(0, len(names), REQUEUED_AT_ONCE):
        some = names[first : first + REQUEUED_AT_ONCE]
        # One that was queued again in another way may have succeeded since, and its letter is open still.
        for rollout in await store.query_rollouts(rollout_id_in=some, status_in=["failed"]):
            await requeue(store, letters[rollout.rollout_id])
            queued.append(rollout.rollout_id)
    return {"run_id": run["run_id"], "rollout_ids": queued}


async def settle(store: Any, letter: DeadLetter, what: str) -> None:
    """Note what became of a letter."""
    await store.add_dead_letter(msgspec.structs.replace(letter, settled=what, time=time.time()))
