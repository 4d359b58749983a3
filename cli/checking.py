"""What `agl log check` examines: a file by SQLite and our check sums, a Kafka or a store by its offsets, and the fold."""

from __future__ import annotations

from typing import Any

from ..core.errors import AgentLightningError
from ..core.log.interface import Log
from ..core.log.open_log import open_log, path_of
from ..core.log.topics import BLOBS, STORED, TOPICS
from ..projections.history.references import broken_references
from ..projections.history.replay import replay
from .reading import address_of, open_reading

CHECK_RECORDS = 2048
CHECK_BLOBS = 8
"""Blobs have up to 64 MB each."""


def examine(url: str, token: str | None = None) -> dict[str, Any]:
    """path, log_id, sound, findings (sentences), records by topic, position and hex fingerprint of the control log.

    A file that is missing or damaged is a finding, never an exception. Nothing is changed.
    """
    if url.startswith(("kafka://", "http://", "https://")):
        return _examine_topics(url, token)
    from ..core.log.sqlite import check_file, check_there

    address = address_of(url)
    path = path_of(address)
    check_there(path)
    report = check_file(path)
    findings = list(report.findings)
    position, fingerprint = 0, ""
    if not findings:
        try:
            with open_log(address, readonly=True) as log:
                position, fingerprint = _fold(log, findings)
                findings += broken_references(log)
        except AgentLightningError as error:
            findings.append(error.message or str(error))
    return _report(str(path), report.log_id, findings, report.records, position, fingerprint)


def _examine_topics(url: str, token: str | None) -> dict[str, Any]:
    """Topics that are missing or set wrongly end the opening, which says so; everything else is a finding."""
    with open_reading(url, token) as log:
        findings: list[str] = list(getattr(log, "findings", ()))
        records = dict.fromkeys(STORED, 0)
        position, fingerprint = 0, ""
        try:
            for topic in STORED:
                for partition in range(log.partitions(topic)):
                    records[topic] += _walk(log, topic, partition, findings)
            if not findings:
                position, fingerprint = _fold(log, findings)
                findings += broken_references(log)
        except AgentLightningError as error:
            findings.append(error.message or str(error))
        return _report(log.url, log.log_id, findings, records, position, fingerprint)


def _walk(log: Log, topic: str, partition: int, findings: list[str]) -> int:
    """Read a partition to its end as it is now, which checks the batches' check sums; return its number of records."""
    first, end = log.ends(topic, partition)
    if topic == "control" and first > 0:
        findings.append(f"{topic}[{partition}]: the records below offset {first} were removed")
    count, offset = 0, first
    while offset < end:
        records = log.read(topic, partition, offset, CHECK_BLOBS if topic == BLOBS else CHECK_RECORDS)
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


def _fold(log: Log, findings: list[str]) -> tuple[int, str]:
    state, met = replay(log)
    if state.halted is not None:
        findings.append(f"control: {state.halted}")
    if met.refused.get("malformed"):
        findings.append(f"control: {met.refused['malformed']} records are no events; readers pass over them")
    departed = sorted(position for positions in met.departed.values() for position in positions)
    if departed:
        findings.append(
            f"control: {len(departed)} records continue another history, the first at position {departed[0]}: records were "
            "changed, removed or copied from elsewhere, or the releases that wrote and read them disagree"
        )
    return met.position, met.fingerprint


def _report(
    path: str, log_id: str, findings: list[str], records: dict[str, int], position: int, fingerprint: str
) -> dict[str, Any]:
    return {
        "path": path,
        "log_id": log_id,
        "sound": not findings,
        "findings": findings,
        "records": records,
        "position": position,
        "fingerprint": fingerprint,
    }
