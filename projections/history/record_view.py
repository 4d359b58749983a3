"""Records decoded for people: what each topic carries, read with the same code as in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ...core.errors import AgentLightningError
from ...core.events import codec, payload
from ...core.events.run_events import decode_run
from ...core.log.dead_letter import decode_letter
from ...core.log.interface import Log, Record
from ...core.log.topics import BLOBS, CONTROL, DEAD, FACTS, LIVENESS, SNAPSHOTS, SPANS, TASKS
from ...core.model.resources import mask_models
from ...core.model.scalars import items, mapping
from ..facts.publisher import CURSOR_KEY, Cursor
from ..liveness.heartbeats import WorkerBeat
from ..replica.snapshots import Manifest
from ..spans import span_log
from ..spans.blobs import NO_LIMIT_MB, Blobs

_PAYLOADS = frozenset(
    {"input", "metadata", "resources", "stats", "body", "parameters", "datasets", "summary", "content"}
)
"""Fields of events that hold user data in the form of core/events/payload.py."""


@dataclass
class View:
    """A record, decoded. `position` is the control position for facts and tasks, else the offset in its topic."""

    topic: str
    partition: int
    offset: int
    position: int
    time: float | None
    key: str
    type: str
    rollout_ids: list[str] = field(default_factory=lambda: list[str]())
    attempt_ids: list[str] = field(default_factory=lambda: list[str]())
    size: int = 0
    body: Any = None
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The form of `--json`; the keys are stable."""
        return {name: value for name, value in vars(self).items() if name != "problem" or value}


class Decoder:
    """Decodes the records of one log; payloads that were stored as blobs are fetched where `fetch_blobs` is true."""

    def __init__(self, log: Log, fetch_blobs: bool = True) -> None:
        self._fetch: Callable[[payload.Reference], bytes] | None = None
        if fetch_blobs:
            self._fetch = Blobs(log, NO_LIMIT_MB).fetch
        self._readers: dict[str, Callable[[Record, View], None]] = {
            CONTROL: self._control,
            SPANS: self._span,
            LIVENESS: self._beat,
            BLOBS: self._blob,
            SNAPSHOTS: self._snapshot,
            DEAD: self._letter,
            FACTS: self._fact,
            TASKS: self._fact,
        }

    def view(self, record: Record) -> View:
        """Decode a record; one that cannot be decoded is shown with its `problem` and its bytes."""
        header = dict(record.headers)
        seen = View(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            position=int(header.get("position", record.offset)),
            time=_time(record, header),
            key=record.key,
            type=header.get("t", ""),
            size=len(record.value),
        )
        try:
            self._readers.get(record.topic, self._other)(record, seen)
        except (AgentLightningError, msgspec.MsgspecError) as error:
            seen.problem = str(error)
            seen.body = record.value
        return seen

    def payload(self, data: bytes | None) -> Any:
        """User data, decoded; one that is unreadable or not fetched is described in words."""
        if data is None or data == b"":
            return None
        if payload.is_reference(data) and self._fetch is None:
            reference = payload.reference(data)
            return f"<blob {reference.digest[:12]}, {reference.size:,} bytes>"
        try:
            return mask_models(payload.decode(data, self._fetch))
        except AgentLightningError as error:
            return f"<{error.message}>"

    def _control(self, record: Record, seen: View) -> None:
        proposal = decode_run(record.value) or codec.decode(record.value)
        seen.type = codec.type_of(proposal.event)
        tree: Any = msgspec.json.decode(record.value)
        seen.body = {**self._readable(tree), "basis_print": proposal.basis_print.hex()}
        _collect(tree, seen)

    def _readable(self, tree: Any) -> Any:
        fields, several = mapping(tree), items(tree)
        if fields is not None:
            return {
                key: self.payload(msgspec.json.encode(item)) if key in _PAYLOADS else self._readable(item)
                for key, item in fields.items()
            }
        return [self._readable(item) for item in several] if several is not None else tree

    def _span(self, record: Record, seen: View) -> None:
        decoded = span_log.decode(record.value, record.offset)
        seen.rollout_ids = [decoded.rollout_id]
        if isinstance(decoded, span_log.SequenceReserved):
            seen.type = "sequence"
            seen.body = {"count": decoded.count, "first": decoded.first, "back": decoded.back}
            return
        seen.type = "span"
        seen.attempt_ids = [decoded.attempt_id]
        content = self.payload(bytes(decoded.body))
        seen.body = {"span_id": decoded.span_id, "sequence_id": decoded.sequence_id, "span": content}
        fields = mapping(content)
        if seen.time is None and fields is not None:
            seen.time = fields.get("end_time") or fields.get("start_time")

    def _beat(self, record: Record, seen: View) -> None:
        seen.type = "heartbeat"
        msgspec.json.decode(record.value, type=WorkerBeat)
        seen.body = self._readable(msgspec.json.decode(record.value))

    def _blob(self, record: Record, seen: View) -> None:
        seen.type = "blob"
        seen.body = mask_models(payload.decode(record.value))

    def _snapshot(self, record: Record, seen: View) -> None:
        if record.key.startswith("manifest/"):
            seen.type = "manifest"
            seen.body = msgspec.to_builtins(
                msgspec.json.decode(record.value, type=Manifest), builtin_types=(bytes,)
            )
        elif record.key == CURSOR_KEY:
            seen.type = "cursor"  # up to where facts were published
            seen.body = msgspec.to_builtins(msgspec.json.decode(record.value, type=Cursor))
        else:
            seen.type = "chunk"
            seen.body = {"bytes": len(record.value)}

    def _fact(self, record: Record, seen: View) -> None:
        seen.body = msgspec.json.decode(record.value)
        _collect(seen.body, seen)

    def _letter(self, record: Record, seen: View) -> None:
        letter = decode_letter(record)
        seen.type = letter.kind
        seen.body = msgspec.to_builtins(letter)
        _collect(seen.body, seen)

    def _other(self, record: Record, seen: View) -> None:
        seen.body = record.value


def _time(record: Record, header: dict[str, str]) -> float | None:
    """Unix seconds: the record's own, else those in its command id, a UUIDv7; None where neither is there."""
    if record.timestamp_us:
        return record.timestamp_us / 1_000_000
    identity = header.get("id", "")
    if len(identity) >= 32 and identity[12] == "7":
        try:
            return int(identity[:12], 16) / 1000
        except ValueError:
            return None
    return None


def _collect(tree: Any, seen: View) -> None:
    """Every rollout and attempt that an event names, in order of appearance."""
    fields = mapping(tree)
    if fields is not None:
        for key, item in fields.items():
            found = {"rollout_id": seen.rollout_ids, "attempt_id": seen.attempt_ids}.get(key)
            if found is not None and isinstance(item, str) and item not in found:
                found.append(item)
            elif key not in _PAYLOADS:
                _collect(item, seen)
    for item in items(tree) or ():
        _collect(item, seen)

