"""How a proposal becomes the value and headers of a record, and back.

Values are JSON, user data inlined as JSON too (payload.py), so that any tool shows what a record says. Headers are text and
repeat what a tool wants to filter by; the fold never reads them. The header `h` is reserved for a chain of hashes.
"""

from __future__ import annotations

from threading import Thread
from typing import TypeVar

import msgspec

from ..errors import AgentLightningError
from ..log.interface import Headers, NewRecord
from .payload import MAX_DEPTH, deeper_than
from .run_events import RUN_EVENTS, RunEvent, RunRecord
from .schema import AnyEvent, Proposal, RolloutsEnqueued, RolloutStarted

SCHEMA_VERSION = 1
"""Version of the events in this file's terms; written as header `v` and as `v` of the value where it is not 1."""

MAX_NESTING = 64 + MAX_DEPTH
"""Containers within each other that a value may have: user data, and the event around them with room for other releases."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Proposal).decode


class _Tagged(msgspec.Struct, frozen=True):
    t: str = ""


class _Slim(msgspec.Struct):
    """What can be read of a value whose event this release does not know."""

    id: str = ""
    v: int = 1
    noncritical: bool = False
    event: _Tagged = _Tagged()


class UnknownEvent(AgentLightningError):
    """A record of a type or version that this release does not know; `critical` says whether it may be skipped."""

    retryable = False
    code = "unknown_event"

    def __init__(self, type_: str, version: int, critical: bool) -> None:
        super().__init__(
            f"the log holds an event {type_!r} (schema {version}) that this release does not know; "
            "upgrade the package on this machine"
        )
        self.type = type_
        self.critical = critical


class Undecodable(AgentLightningError):
    """A value that is not a proposal at all; the fold refuses it as malformed."""

    retryable = False
    code = "malformed"


def encode(proposal: Proposal | RunRecord) -> bytes:
    """Return the value of the record."""
    return _encode(proposal)


P = TypeVar("P", bound=msgspec.Struct)


def check(part: P) -> P:
    """A part of an event as it reads back. Raises `Undecodable` where a number is out of range or a text has no bytes."""
    try:
        return msgspec.json.decode(_encode(part), type=type(part))
    except (msgspec.MsgspecError, ValueError, OverflowError, TypeError) as error:
        raise Undecodable(str(error)) from None


def decode(value: bytes) -> Proposal:
    """Read a value of any release. Raises `UnknownEvent` and `Undecodable`, nothing else."""
    if len(value) > 2 * MAX_NESTING and deeper_than(value, MAX_NESTING):  # each level takes two bytes, or it is no JSON
        raise Undecodable(f"not a proposal: nested deeper than {MAX_NESTING} levels")
    try:
        proposal = _decode(value)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        return _decode_otherwise(value, str(error))
    except RecursionError:
        return _decode_on_a_fresh_stack(value)
    if proposal.v == SCHEMA_VERSION:
        return proposal
    return _decode_otherwise(value, "its schema version does not fit its fields")


def _decode_on_a_fresh_stack(value: bytes) -> Proposal:
    """The caller's stack is nearly used up; what a record means must not depend on that."""
    made: list[Proposal | UnknownEvent | Undecodable] = []

    def run() -> None:
        try:
            made.append(decode(value))
        except (UnknownEvent, Undecodable) as error:
            made.append(error)

    thread = Thread(target=run, name="decode")
    thread.start()
    thread.join()
    if isinstance(made[0], Proposal):
        return made[0]
    raise made[0]


def _decode_otherwise(value: bytes, error: str) -> Proposal:
    """The slow path: a later version, an unknown type, or rubbish."""
    try:
        slim = msgspec.json.decode(value, type=_Slim)
    except (msgspec.MsgspecError, ValueError, TypeError):
        raise Undecodable(f"not a proposal: {error}") from None
    if slim.noncritical and slim.event.t:
        # Skipped whatever its body: a release that does not know the type cannot tell a good body from a bad one.
        raise UnknownEvent(slim.event.t, slim.v, False)
    if slim.v > SCHEMA_VERSION or (slim.event.t and slim.event.t not in TYPES):
        raise UnknownEvent(slim.event.t, slim.v, True)
    raise Undecodable(f"not a proposal: {error}") from None


def needle(text: str) -> bytes:
    """The bytes by which a text stands in a value: a value without them does not name it and need not be decoded."""
    return _encode(text.encode("utf-8", "replace").decode())[1:-1]


def type_of(event: AnyEvent | RunEvent) -> str:
    """The stable name of the event's type in the log."""
    return _NAMES[type(event)]


_OF_STATE: tuple[type[AnyEvent], ...] = AnyEvent.__args__  # type: ignore[attr-defined]
_NAMES: dict[type[AnyEvent | RunEvent], str] = {
    cls: str(cls.__struct_config__.tag) for cls in (*_OF_STATE, *RUN_EVENTS)
}
TYPES: frozenset[str] = frozenset(_NAMES[cls] for cls in _OF_STATE)


def rollout_of(event: AnyEvent | RunEvent) -> str | None:
    """The rollout that an event is about, the first one of several; None for events about none."""
    if isinstance(event, RolloutsEnqueued):
        return event.rollouts[0].rollout_id if event.rollouts else None
    if isinstance(event, RolloutStarted):
        return event.rollout.rollout_id
    return getattr(event, "rollout_id", None)


_VERSION = ("v", str(SCHEMA_VERSION))


def headers_of(proposal: Proposal | RunRecord, traceparent: str | None = None) -> Headers:
    """The headers: t (type), v (schema version), id (command id), r (rollout), tp (W3C traceparent)."""
    headers = (("t", type_of(proposal.event)), _VERSION, ("id", proposal.id))
    rollout = rollout_of(proposal.event)
    if rollout is not None:
        headers = (*headers, ("r", rollout))
    return headers if traceparent is None else (*headers, ("tp", traceparent))


def record_of(proposal: Proposal, traceparent: str | None = None) -> NewRecord:
    """The record to append for a proposal. It has no key: the one partition of `control` orders all of them."""
    return NewRecord(
        key="",
        value=encode(proposal),
        timestamp_us=proposal.time_us,
        headers=headers_of(proposal, traceparent),
    )
