"""What `agl log check` examines: the file as SQLite and our check sums see it, then whether its control log folds."""

from __future__ import annotations

from typing import Any

from ..core.errors import AgentLightningError, InvalidInput
from ..core.open_log import open_log, path_of
from ..projections.replay import replay


def examine(url: str) -> dict[str, Any]:
    """path, log_id, sound, findings (sentences), records by topic, position and hex fingerprint of the control log.

    A file that is missing or damaged is a finding, never an exception. Nothing is changed.
    """
    from ..core.sqlite_log import check_file

    address = url if "://" in url else f"sqlite:///{url}"
    path = path_of(address)
    if not path.is_file():
        raise InvalidInput(f"there is no log at {path}")
    report = check_file(path)
    findings = list(report.findings)
    position, fingerprint = 0, ""
    if not findings:
        try:
            with open_log(address, readonly=True) as log:
                state, met = replay(log)
            position, fingerprint = met.position, met.fingerprint
            if state.halted is not None:
                findings.append(f"control: {state.halted}")
            if met.refused.get("malformed"):
                findings.append(f"control: {met.refused['malformed']} records are no events; readers pass over them")
            if met.refused.get("foreign_history"):
                findings.append(
                    f"control: {met.refused['foreign_history']} records continue another history: they were changed, "
                    "removed or copied from elsewhere, or the releases that wrote and read them disagree"
                )
        except AgentLightningError as error:
            findings.append(error.message or str(error))
    return {
        "path": str(path),
        "log_id": report.log_id,
        "sound": not findings,
        "findings": findings,
        "records": report.records,
        "position": position,
        "fingerprint": fingerprint,
    }
