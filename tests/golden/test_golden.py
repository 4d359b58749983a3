"""Logs of every release fold to the state that they folded to when they were written, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from agentlightning.core.events.run_events import decode_run
from agentlightning.core.fold.apply import fold
from agentlightning.core.fold.state import dump

from .make import runs_print

FOLDER = Path(__file__).resolve().parent
LOGS = sorted(FOLDER.glob("*.log"))


def values_of(path: Path) -> list[bytes]:
    data, at, values = path.read_bytes(), 0, list[bytes]()
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        values.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return values


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_same_log_same_state_for_every_golden_log(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text(encoding="ascii"))
    values = values_of(path)
    state = fold(values)
    assert len(values) == expected["records"] >= 300
    assert state.position == expected["position"] and (state.halted is not None) == expected["halted"]
    assert state.fingerprint.hex() == expected["fingerprint"]
    assert sha256(dump(state)).hexdigest() == expected["state_sha256"]


def test_runs_of_a_golden_log_are_what_they_were() -> None:
    expected = json.loads((FOLDER / "0.1-runs.json").read_text(encoding="ascii"))
    values = values_of(FOLDER / "0.1-runs.log")
    assert runs_print(values) == expected["runs_sha256"]
    others = [value for value in values if decode_run(value) is None and b"run.cloned" not in value]
    assert len(values) - len(others) > 50
    # Bases name positions, so the log without them is another one; what no fold may do is notice what they say.
    changed = [value.replace(b"fit run-", b"FIT RUN-") for value in values]
    assert changed != values and fold(changed).fingerprint == fold(values).fingerprint
    assert dump(fold(changed)) == dump(fold(values)) and runs_print(changed) != expected["runs_sha256"]


def test_there_are_golden_logs_and_a_changed_one_is_seen() -> None:
    assert len(LOGS) >= 3
    values = values_of(LOGS[0])
    values[200] = values[200][:-1] + bytes([values[200][-1] ^ 1])
    expected = json.loads(LOGS[0].with_suffix(".json").read_text(encoding="ascii"))
    assert fold(values).fingerprint.hex() != expected["fingerprint"]


def test_golden_logs_are_never_written_again() -> None:
    before = [path.read_bytes() for path in LOGS]
    done = subprocess.run([sys.executable, str(FOLDER / "make.py"), "0.1"], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "never written again" in done.stderr
    assert [path.read_bytes() for path in LOGS] == before
