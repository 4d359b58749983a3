"""The page on agents is true: its examples run as printed, one after the other, on the stub."""

from __future__ import annotations

import re
import subprocess
import sys

from ...openai_stub import Stub
from ...sources import ROOT

PAGE = ROOT / "docs" / "how-to" / "agents.md"


def test_the_examples_of_the_page_run_as_printed(stub: Stub) -> None:
    """In a process of its own, since they use asyncio.run, as a reader does."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    program = "\n".join([f"MODEL_URL = {stub.base_url!r}", *blocks, "print('all of it')"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all of it"
