"""Whether a log is sound: a file by SQLite and our check sums, a Kafka or a store by its offsets, the fold, and its references.

References are payloads in blobs, and spans up to the watermarks of ended attempts. A copy that ended early, or a log whose
parts were put together, folds without an error. What its events refer to shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from ...core.errors import AgentLightningError, InvalidPayload, LogCorrupt
from ...core.events import payload
from ...core.events.codec import Undecodable, UnknownEvent
from ...core.events.codec import decode as decode_proposal
from ...core.events.run_events import decode_run
from ...core.log.interface import Log
from ...core.log.log_copy import copy_mark
from ...core.log.open_log import open_log
from ...core.log.topics import BLOBS, CONTROL, SPANS, STORED, TOPICS, partition_of
from ..spans.span_log import SpanAdded
from ..spans.span_log import decode as decode_span
from .replay import replay

READ_RECORDS = 2048
READ_BLOBS = 8
"""Blobs have up to 64 MB each."""
MOST_NAMED = 10
"""Missing blobs that are named one by one; the others are counted."""


class LogCheck(msgspec.Struct):
    """The result of a check. `findings`: sentences; `records`: number by topic; `fingerprint`: hex, of the control log."""

    path: str
    log_id: str
    sound: bool = False
    findings: list[str] = []
    records: dict[str, int] = {}
    position: int = 0
    fingerprint: str = ""


def check_file(path: Path) -> LogCheck:
    """Check the log in a file. Damage is a finding, never an exception. Raises `InvalidInput` where there is no log."""
    from ...core.log import sqlite

    sqlite.check_there(path)
    report = sqlite.check_file(path)
    made = LogCheck(str(path), report.log_id, findings=list(report.findings), records=report.records)
    if not made.findings:
        try:
            with open_log(f"sqlite:///{path}", readonly=True) as log:
                _check_content(log, made)
        except AgentLightningError as error:
            made.findings.append(error.message or str(error))
    made.sound = not made.findings
    return made


def check_log(log: Log) -> LogCheck:
    """Check an open log, all topics to their ends as they are now. Blocks; changes nothing."""
    made = LogCheck(log.url, log.log_id, findings=list(getattr(log, "findings", ())), records=dict.fromkeys(STORED, 0))
    try:
        for topic in STORED:
            for partition in range(log.partitions(topic)):
                made.records[topic] += _walk(log, topic, partition, made.findings)
        if not made.findings:
            _check_content(log, made)
    except AgentLightningError as error:
        made.findings.append(error.message or str(error))
    made.sound = not made.findings
    return made


def _check_content(log: Log, made: LogCheck) -> None:
    """The fold and the references."""
    state, met = replay(log)
    made.position, made.fingerprint = met.position, met.fingerprint
    if state.halted is not None:
        made.findings.append(f"control: {state.halted}")
    if met.refused.get("malformed"):
        made.findings.append(f"control: {met.refused['malformed']} records are no events; readers pass over them")
    departed = sorted(position for positions in met.departed.values() for position in positions)
    if departed:
        made.findings.append(
            f"control: {len(departed)} records continue another history, the first at position {departed[0]}: records were "
            "changed, removed or copied from elsewhere, or the releases that wrote and read them disagree"
        )
    made.findings += broken_references(log)


def _walk(log: Log, topic: str, partition: int, findings: list[str]) -> int:
    """Read a partition to its end as it is now, which checks the batches' check sums; return its number of records."""
    first, end = log.ends(topic, partition)
    if topic == CONTROL and first > 0:
        findings.append(f"{topic}[{partition}]: the records below offset {first} were removed")
    count, offset = 0, first
    while offset < end:
        records = log.read(topic, partition, offset, READ_BLOBS if topic == BLOBS else READ_RECORDS)
        if not records:
            break
        count += len(records)
        if not TOPICS[topic].compacted and records[-1].offset + 1 - offset != len(records):
            hole = next(at for at, record in enumerate(records, offset) if record.offset != at)
            findings.append(f"{topic}[{partition}]: there is no record at offset {hole}")
        offset = records[-1].offset + 1
    if offset < end and not TOPICS[topic].compacted:
        findings.append(f"{topic}[{partition}]: there is no record at offset {offset}")
    return count


def broken_references(log: Log) -> list[str]:
    """One sentence for each thing that is referred to and not there. Reads control, spans and blobs; blocks for the I/O.

    Topics are read in the order in which a store writes the other way round, so a log that grows meanwhile is sound.
    """
    findings: list[str] = []
    mark = copy_mark(log)
    if mark is not None and mark.unfinished:
        findings.append(mark.sentence)
    wanted: dict[str, str] = {}
    watermarks: dict[int, tuple[int, str]] = {}
    partitions = log.partitions(SPANS)
    for value in _values(log, CONTROL, 0):
        event = _event(value)
        for data in _payloads(event):
            _refers(data, f"an event about {_subject(event)}", wanted, findings)
        watermark, rollout_id = getattr(event, "watermark", None), getattr(event, "rollout_id", "")
        if isinstance(watermark, int) and isinstance(rollout_id, str):
            of = partition_of(rollout_id, partitions)
            watermarks[of] = max(watermarks.get(of, (0, "")), (watermark, rollout_id))
    findings += _short_spans(log, watermarks, partitions if mark is None else mark.span_partitions)
    for part in range(partitions):
        for value in _values(log, SPANS, part):
            try:
                span = decode_span(value)
            except LogCorrupt as error:
                findings.append(error.message)
                return findings
            if isinstance(span, SpanAdded) and payload.is_reference(bytes(span.body)):
                _refers(bytes(span.body), f"a span of rollout {span.rollout_id}", wanted, findings)
    return findings + _missing_blobs(log, wanted)


def _refers(data: bytes, what: str, wanted: dict[str, str], findings: list[str]) -> None:
    try:
        wanted.setdefault(payload.reference(data).digest, what)
    except InvalidPayload as error:
        findings.append(f"{what}: {error.message}")


def _values(log: Log, topic: str, partition: int) -> Iterator[bytes]:
    offset, end = log.ends(topic, partition)
    while offset < end:
        records = log.read(topic, partition, offset, READ_BLOBS if topic == BLOBS else READ_RECORDS, headers=False)
        if not records:
            return
        for record in records:
            yield record.value
        offset = records[-1].offset + 1


def _event(value: bytes) -> Any:
    """The event of a control record; None for what no release of this age can read, which the fold reports."""
    try:
        return decode_proposal(value).event
    except UnknownEvent:
        run = decode_run(value)
        return None if run is None else run.event
    except Undecodable:
        return None


def _payloads(found: Any) -> Iterator[bytes]:
    """Every reference to a blob in an event, however deep."""
    if isinstance(found, msgspec.Raw):
        if payload.is_reference(bytes(found)):
            yield bytes(found)
    elif isinstance(found, msgspec.Struct):
        for field in found.__struct_fields__:
            yield from _payloads(getattr(found, field))
    elif isinstance(found, list | tuple):
        for one in cast("Sequence[Any]", found):
            yield from _payloads(one)


def _subject(event: Any) -> str:
    named = (getattr(event, field, None) for field in ("rollout_id", "resources_id", "run_id"))
    return next((repr(one) for one in named if isinstance(one, str) and one), type(event).__name__)


def _short_spans(log: Log, watermarks: dict[int, tuple[int, str]], written_for: int) -> list[str]:
    """A span partition that ends before the end of an attempt lost spans which were acknowledged.

    Watermarks are offsets of the log in which they were written: with another number of partitions only the sum counts.
    """
    ends = {part: log.ends(SPANS, part)[1] for part in range(log.partitions(SPANS))}
    if written_for != len(ends):
        highest = max((one for one, _ in watermarks.values()), default=0)
        missing = highest > sum(ends.values())
        return (
            [f"spans: at least {highest} records were acknowledged, {sum(ends.values())} are there"] if missing else []
        )
    return [
        f"spans[{part}]: ends at offset {ends[part]}, but rollout {rollout_id} ended when it was at {watermark}: "
        "spans that were acknowledged are missing"
        for part, (watermark, rollout_id) in sorted(watermarks.items())
        if ends[part] < watermark
    ]


def _missing_blobs(log: Log, wanted: dict[str, str]) -> list[str]:
    for part in range(log.partitions(BLOBS)):
        for value in _values(log, BLOBS, part):
            wanted.pop(payload.digest_of(value), None)
    named = [
        f"blobs: {digest[:12]} is missing, to which {what} refers" for digest, what in list(wanted.items())[:MOST_NAMED]
    ]
    if len(wanted) > MOST_NAMED:
        named.append(f"blobs: {len(wanted) - MOST_NAMED} more are missing")
    return named
