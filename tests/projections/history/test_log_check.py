"""What a log refers to and does not have is named, also where the reference itself is damaged."""

from __future__ import annotations

import msgspec

from agentlightning.core.events.codec import record_of
from agentlightning.core.events.schema import NewRollout, Proposal
from agentlightning.core.fold import commands
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.history.log_check import broken_references
from tests.core.log.log_contract import try_append


def test_missing_blobs_and_damaged_references_are_findings() -> None:
    missing = b'{"$blob":{"sha256":"' + b"ab" * 32 + b'","bytes":7}}'
    with MemoryLog() as log:
        for number, field in enumerate((b'{"$blob":5}', missing)):
            event = commands.enqueue([NewRollout(f"ro-{number}", msgspec.Raw(field))])
            made = Proposal(id=f"{number:032x}", time_us=1, writer="w", basis=-1, basis_print=b"", event=event)
            try_append(log, CONTROL, record_of(made))
        damaged, absent = broken_references(log)
    assert "'ro-0'" not in absent and "cannot be read" in damaged
    assert "abababababab is missing" in absent
