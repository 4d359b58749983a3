"""`agl log check`: everything about a file that can be wrong, found without changing it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ..errors import AgentLightningError, LogCorrupt
from ..topics import STORED, TOPICS
from .reader import Reader
from .schema import read_meta

PAGE = 4096
MAX_FINDINGS = 100


@dataclass
class Report:
    """What a check found: records by topic, and one sentence for each thing that is wrong."""

    path: str
    log_id: str = ""
    records: dict[str, int] = field(default_factory=lambda: dict[str, int]())
    findings: list[str] = field(default_factory=lambda: list[str]())

    @property
    def sound(self) -> bool:
        """True where nothing was found."""
        return not self.findings


def check_file(path: str | Path) -> Report:
    """Check structure, check sums and gaps of every topic. Works on the file of a running store and on a copy."""
    file = Path(path)
    report = Report(str(file))
    if not file.is_file():
        report.findings.append(f"there is no file {file}")
        return report
    try:
        db = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)
        try:
            report.log_id = read_meta(db, file)["log_id"]
            problems = [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
            report.findings.extend(f"SQLite: {problem}" for problem in problems)
        finally:
            db.close()
    except (sqlite3.Error, AgentLightningError) as error:
        report.findings.append(str(error))
    reader = Reader(file)
    try:
        for topic in STORED:
            _check_topic(reader, topic, report)
    finally:
        reader.close()
    return report


def _check_topic(reader: Reader, topic: str, report: Report) -> None:
    offset = good = 0
    compacted = TOPICS[topic].compacted
    try:
        end = reader.end(topic)
        while offset < end and len(report.findings) < MAX_FINDINGS:
            try:
                found = reader.read(topic, offset, PAGE, True)
            except LogCorrupt as error:
                if error.position is None:
                    raise
                report.findings.append(f"{topic}: {error.message}")
                good += max(error.position - offset, 0) if not compacted else 0
                offset = error.position + 1
                continue
            if not found:
                break
            good += len(found)
            offset = found[-1].offset + 1
    except AgentLightningError as error:
        report.findings.append(f"{topic}: {error}")
    report.records[topic] = good
