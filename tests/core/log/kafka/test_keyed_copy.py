"""Folders of copies go away with their process, also one that was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentlightning.core.log.kafka.keyed_copy import FOLDER_PREFIX, ScratchFolder, sweep

MAKE = """
import os, sys
from agentlightning.core.log.kafka.keyed_copy import ScratchFolder
made = ScratchFolder()
print(made.path, flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_what_a_killed_process_left_is_swept_and_what_lives_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = subprocess.Popen([sys.executable, "-c", MAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    mine = ScratchFolder()
    assert theirs.parent == mine.path.parent == tmp_path and theirs.is_dir()
    assert sweep(tmp_path) == 0
    other.kill()
    other.communicate()
    assert sweep(tmp_path) == 1
    assert not theirs.exists() and mine.path.is_dir()
    mine.remove()
    mine.remove()
    assert not list(tmp_path.glob(f"{FOLDER_PREFIX}*"))
