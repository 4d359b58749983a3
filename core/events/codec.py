"""How a proposal becomes the value and headers of a record, and back, for every version ever written.

Values are msgpack, or JSON where people inspect topics with a plain Kafka tool; the reader tells them apart by the
first byte, so one log may hold both. Headers are text and repeat what any tool wants to filter by; the fold never
reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any, Literal

import msgspec

from ..errors import AgentLightningError
from ..log.interface import Headers, NewRecord
from .depth_limit import CONTAINERS, deeper_than
from .run_events import RunEvent, RunRecord
from .schema import AnyEvent, LogOpened, Proposal, RolloutsEnqueued, RolloutStarted

SCHEMA_VERSION = 1
"""Version of the events in this file's terms; written as header `v` and as `v` of the value where it is not 1."""

MAX_NESTING = 64
"""Containers within each other that a value may have; events need 5, fields of other releases may need some more."""

Format = Literal["msgpack", "json"]

_encode_msgpack = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode
_decode_msgpack = msgspec.msgpack.Decoder(Proposal).decode
_decode_json = msgspec.json.Decoder(Proposal).decode


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


Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
UPCASTERS: dict[int, Upcaster] = {}
"""From schema version n to n + 1: pure functions on the decoded map, applied in a chain before the typed decode."""


def encode(proposal: Proposal | RunRecord, form: Format = "msgpack") -> bytes:
    """Return the value of the record."""
    return _encode_msgpack(proposal) if form == "msgpack" else _encode_json(proposal)


def check(part: msgspec.Struct) -> None:
    """Raise `Undecodable` where a part of an event would not read back: a number out of range, text without bytes."""
    try:
        msgspec.msgpack.decode(_encode_msgpack(part), type=type(part))
    except (msgspec.MsgspecError, ValueError, OverflowError, TypeError) as error:
        raise Undecodable(str(error)) from None


def decode(value: bytes) -> Proposal:
    """Read a value of any version. Raises `UnknownEvent` and `Undecodable`, nothing else."""
    # The first half of the condition is the quick half of `deeper_than`, without a call: every record comes through here.
    if len(value) - len(value.translate(None, CONTAINERS)) > MAX_NESTING or value[:1] == b"{":
        _refuse_deep(value)
    try:
        proposal = _decode_json(value) if value[:1] == b"{" else _decode_msgpack(value)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        return _decode_otherwise(value, str(error))
    except RecursionError:
        return _decode_on_a_fresh_stack(value)
    if proposal.v == SCHEMA_VERSION:
        return proposal
    return _decode_otherwise(value, "its schema version does not fit its fields")


def _refuse_deep(value: bytes) -> None:
    if deeper_than(value, MAX_NESTING):
        raise Undecodable(f"not a proposal: nested deeper than {MAX_NESTING} levels")


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
    """The slow path: an older version, an unknown type, or rubbish."""
    module = msgspec.json if value[:1] == b"{" else msgspec.msgpack
    try:
        slim = module.decode(value, type=_Slim)
    except (msgspec.MsgspecError, ValueError, TypeError):
        raise Undecodable(f"not a proposal: {error}") from None
    if slim.noncritical and slim.event.t:
        # Skipped whatever its body: a release that does not know the type cannot tell a good body from a bad one.
        raise UnknownEvent(slim.event.t, slim.v, False)
    if slim.v > SCHEMA_VERSION or (slim.event.t and slim.event.t not in TYPES):
        raise UnknownEvent(slim.event.t, slim.v, True)
    if slim.v < SCHEMA_VERSION:
        try:
            tree = module.decode(value)
            for version in range(slim.v, SCHEMA_VERSION):
                tree = UPCASTERS[version](tree)
            return _from_tree(tree, value[:1] == b"{")
        except Exception as failure:  # an upcaster meets whatever map somebody wrote
            raise Undecodable(f"not a proposal of schema {slim.v}: {failure}") from None
    raise Undecodable(f"not a proposal: {error}") from None


def _from_tree(tree: dict[str, Any], text: bool) -> Proposal:
    """The typed decode of a map; JSON carries bytes as base64."""
    builtin = () if text else (bytes,)
    return msgspec.convert({**tree, "v": SCHEMA_VERSION}, Proposal, builtin_types=builtin)


def type_of(event: AnyEvent | RunEvent) -> str:
    """The stable name of the event's type in the log."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


TYPES: frozenset[str] = frozenset(
    str(cls.__struct_config__.tag) for cls in AnyEvent.__args__  # type: ignore[attr-defined]
)


def rollout_of(event: AnyEvent | RunEvent) -> str | None:
    """The rollout that an event is about, the first one of several; None for events about none."""
    if isinstance(event, RolloutsEnqueued):
        return event.rollouts[0].rollout_id if event.rollouts else None
    if isinstance(event, RolloutStarted):
        return event.rollout.rollout_id
    return getattr(event, "rollout_id", None)


def headers_of(proposal: Proposal | RunRecord, namespace: str, traceparent: str | None = None) -> Headers:
    """The headers: t (type), v (schema version), id (command id), ns (namespace), r (rollout), tp (W3C traceparent)."""
    headers = [("t", type_of(proposal.event)), ("v", str(SCHEMA_VERSION)), ("id", proposal.id), ("ns", namespace)]
    rollout = rollout_of(proposal.event)
    if rollout is not None:
        headers.append(("r", rollout))
    if traceparent is not None:
        headers.append(("tp", traceparent))
    return tuple(headers)


def record_of(
    proposal: Proposal, namespace: str, form: Format = "msgpack", traceparent: str | None = None
) -> NewRecord:
    """The record to append for a proposal; its key is the namespace."""
    return NewRecord(
        key=namespace,
        value=encode(proposal, form),
        timestamp_us=proposal.time_us,
        headers=headers_of(proposal, namespace, traceparent),
    )


def opens_log(proposal: Proposal) -> bool:
    """Say whether this is the record that a namespace begins with."""
    return isinstance(proposal.event, LogOpened)
