"""`agl log check`: everything about a file that can be wrong, found without changing it."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import AgentLightningError, LogCorrupt
from ..topics import STORED, TOPICS
from .read_pool import Reader
from .schema import triggers_of

PAGE = 4096
MAX_FINDINGS = 100


@dataclass
class Report:
    """What a check found: records by topic, and one sentence for each thing that is wrong (at most 100)."""

    path: str
    log_id: str = ""
    records: dict[str, int] = field(default_factory=lambda: dict[str, int]())
    """Records that are whole, by topic."""
    findings: list[str] = field(default_factory=lambda: list[str]())

    @property
    def sound(self) -> bool:
        """True where nothing was found."""
        return not self.findings


def check_file(path: str | Path) -> Report:
    """Check structure, check sums and gaps of every topic. Works on the file of a running store and on a copy.

    Reads everything: about two seconds for a million records. Raises nothing for a file that is wrong.
    """
    file = Path(os.path.realpath(path))
    report = Report(str(path))
    if not file.is_file():
        report.findings.append(f"there is no file {path}")
        return report
    reader = Reader(file, owned=False)
    try:
        report.log_id = reader.meta()["log_id"]
        report.findings.extend(f"SQLite: {problem}" for problem in reader.ask("checking the file", _integrity))
        triggers = reader.ask("looking for triggers", triggers_of)
        report.findings.extend(f"there is a trigger {name}, which no log has" for name in triggers)
    except AgentLightningError as error:
        report.findings.append(error.message)
    try:
        if report.log_id:
            for topic in STORED:
                _check_topic(reader, topic, report)
    finally:
        reader.close()
    return report


def _integrity(db: sqlite3.Connection) -> list[str]:
    return [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]


def _check_topic(reader: Reader, topic: str, report: Report) -> None:
    """Count what is whole, one finding for each altered record and each gap."""
    offset = good = 0
    size = PAGE
    try:
        reader.ends(topic)
    except AgentLightningError as error:
        report.findings.append(f"{topic}: {error.message}")
    while len(report.findings) < MAX_FINDINGS:
        try:
            found = reader.read(topic, offset, size, True)
        except LogCorrupt as error:
            at = error.position if error.topic == topic else None
            if at is not None and at > offset and not TOPICS[topic].compacted:
                size = at - offset  # what lies before it is whole, and read next
                continue
            if size > 1 and TOPICS[topic].compacted:
                size = max(size // 2, 1)
                continue
            offset = _after(reader, topic, report, error, offset)
            size = PAGE
            if offset < 0:
                break
            continue
        except AgentLightningError as error:
            report.findings.append(f"{topic}: {error.message}")
            break
        if not found:
            break
        good += len(found)
        offset = found[-1].offset + 1
        size = PAGE
    report.records[topic] = good


def _after(reader: Reader, topic: str, report: Report, error: LogCorrupt, offset: int) -> int:
    """Report what is wrong at `offset`; return where reading can go on, -1 for nowhere."""
    report.findings.append(f"{topic}: {error.message}")
    if isinstance(error.__cause__, sqlite3.Error) or error.position is None:
        return -1
    try:
        there = reader.next_offset(topic, error.position)
    except AgentLightningError as worse:
        report.findings.append(f"{topic}: {worse.message}")
        return -1
    if there is None:
        return -1
    if there > error.position and not TOPICS[topic].compacted:
        report.findings[-1] = f"{topic}: the records at offsets {error.position} to {there - 1} are missing"
        return there
    return error.position + 1
