"""The topic `dead` as a list: what was given up and is still open, from whatever log, and how a letter is put there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..core.dead import RECORD, DeadLetter, decode_letter, encode_letter, record_letter_id
from ..core.errors import InvalidInput, InvalidPayload, LogError
from ..core.log import Ack, Log, Record
from ..core.topics import DEAD, partition_of
from ..core.vocabulary import FINISHED
from .delivery import Delivery
from .engine import Engine

READ_RECORDS = 1024
LATEST_SECONDS = 2**42
REQUEUED, HANDLED = "requeued", "handled"


class DeadEntry(msgspec.Struct, frozen=True):
    """One letter as people see it.

    `letter` is the newest under its id; its `settled` says what a retry led to. `times`: how often it was given up, the
    same giving-up told twice counted once. `first_time`, `last_time`: Unix seconds of the first and the newest giving-up.
    """

    letter: DeadLetter
    times: int
    first_time: float
    last_time: float


def dead_letters(log: Log) -> list[DeadEntry]:
    """Every letter of the log, the oldest first. Blocks; raises what reading raises. What is no letter is shown as one."""
    found: dict[str, DeadEntry] = {}
    for partition in range(log.partitions(DEAD)):
        offset = log.ends(DEAD, partition)[0]
        while records := log.read(DEAD, partition, offset, READ_RECORDS):
            offset = records[-1].offset + 1
            for record in records:
                letter = _letter(record)
                found[letter.id] = _after(found.get(letter.id), letter)
    return sorted(found.values(), key=lambda entry: (entry.last_time, entry.letter.id))


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
        return entry  # told again, by somebody who took over
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
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(result: Ack | LogError) -> None:
        delivery = Delivery()
        delivery.put(future, result if isinstance(result, LogError) else None, isinstance(result, LogError))
        delivery.flush()

    log.append(DEAD, partition_of(record.key, log.partitions(DEAD)), [record], done)
    await future


class DeadLetterMethods:
    """What a store offers beyond the public interface: its dead letters."""

    engine: Engine

    async def add_dead_letter(self, letter: DeadLetter | Mapping[str, Any]) -> None:
        """Put a letter, or its fields, into the topic `dead`. Raises `InvalidInput` for fields that are none."""
        await write_letter(self.engine.log, letter if isinstance(letter, DeadLetter) else letter_from(letter))

    async def query_dead_letters(self) -> list[dict[str, Any]]:
        """Every letter, as `DeadEntry` in plain data, the oldest first."""
        return msgspec.to_builtins(await asyncio.to_thread(dead_letters, self.engine.log))


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


async def settle(store: Any, letter: DeadLetter, what: str) -> None:
    """Note what became of a letter."""
    await store.add_dead_letter(msgspec.structs.replace(letter, settled=what, time=time.time()))
