"""Dead letters: what could not be done, with the reason, kept in the topic `dead` until somebody looks at it.

The record's key is the `source`, its value JSON, so that any Kafka tool can show it; the headers repeat what one filters
by: `t` (the kind), `id` and `reason`. Ids are deterministic: writing the same letter twice gives the same id, and
readers count it once. A letter that was retried gets one more record under its id, which says what became of it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..errors import InvalidPayload
from ..model.scalars import escaped
from .interface import NewRecord, Record

ROLLOUT, RECORD, SUBSCRIBER = "rollout", "record", "subscriber"
Kind = Literal["rollout", "record", "subscriber"]
MAX_REASON = 2000
_HEADER_CHARS = 200


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was given up.

    `source`: where it came from: a rollout id, "control/0" (topic/partition), a subscriber's group. `time`: Unix seconds of
    giving up. `tries`: how often it was tried. `settled`: empty, or what a retry led to ("requeued", "handled").
    `data` is the fact as JSON for subscribers, {"offset": n, "value": "hex"} for records, free for rollouts.
    """

    id: str
    kind: Kind
    source: str
    reason: str
    time: float
    tries: int = 1
    rollout_id: str | None = None
    attempt_id: str | None = None
    position: int | None = None
    settled: str = ""
    data: dict[str, object] = {}


def rollout_letter_id(rollout_id: str, generation: int) -> str:
    """The id of the letter about a generation of a rollout that was given up."""
    return f"{ROLLOUT}/{rollout_id}/{generation}"


def record_letter_id(topic: str, partition: int, offset: int) -> str:
    """The id of the letter about a record that nobody can read."""
    return f"{RECORD}/{topic}/{partition}/{offset}"


def subscriber_letter_id(group: str, fact_id: str) -> str:
    """The id of the letter about a fact that a subscriber's function did not take."""
    return f"{SUBSCRIBER}/{group}/{fact_id}"


def encode_letter(letter: DeadLetter) -> NewRecord:
    """The record for the topic `dead`; its partition is `partition_of(letter.source, ...)`."""
    reason = letter.reason[:MAX_REASON]
    letter = msgspec.structs.replace(letter, reason=reason, source=escaped(letter.source))
    header = " ".join(escaped(reason)[:_HEADER_CHARS].split())
    return NewRecord(
        key=letter.source,
        value=msgspec.json.encode(msgspec.structs.replace(letter, reason=escaped(reason))),
        timestamp_us=round(letter.time * 1_000_000),
        headers=(("t", letter.kind), ("id", escaped(letter.id)), ("reason", header)),
    )


def decode_letter(record: Record | NewRecord) -> DeadLetter:
    """The letter of a record. Raises `InvalidPayload` for anything else."""
    try:
        return msgspec.json.decode(record.value, type=DeadLetter)
    except msgspec.MsgspecError as error:
        raise InvalidPayload(f"the record of {record.key!r} is no dead letter: {error}") from error
