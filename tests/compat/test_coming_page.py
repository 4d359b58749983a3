"""The page for users of the reference is true: its examples run as printed, its tables are those of the code."""

from __future__ import annotations

import doctest
import importlib
import re

import agentlightning as agl
from agentlightning.compat.gone_names import GONE_MODULES, GONE_NAMES

from ..sources import ROOT

PAGE = ROOT / "docs" / "how-to" / "upgrade-from-0.1-to-0.3.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_examples_of_the_page_run_as_printed() -> None:
    # Fences end a block of code; doctest would take them for expected output.
    test = doctest.DocTestParser().get_doctest(TEXT.replace("```", ""), {}, PAGE.name, str(PAGE), 0)
    assert len(test.examples) > 12
    said: list[str] = []
    result = doctest.DocTestRunner().run(test, out=said.append)
    assert result.failed == 0, "".join(said)


def test_every_old_path_of_the_page_is_the_name_of_today() -> None:
    rows = re.findall(r"^\| `agentlightning\.([\w.]+)\.(\w+)` \| `agl\.(\w+)` \|$", TEXT, re.MULTILINE)
    assert len(rows) > 20
    for module, name, today in rows:
        old = getattr(importlib.import_module(f"agentlightning.{module}"), name)
        assert old is getattr(agl, today), f"{module}.{name}"


def test_what_is_gone_is_what_the_table_of_the_code_says() -> None:
    for name, instead in (*GONE_NAMES.items(), *((f"agentlightning.{path}", how) for path, how in GONE_MODULES.items())):
        assert f"| `{name}` | {instead} |" in TEXT
    gone = TEXT[TEXT.index("| gone | use |") :]
    assert len(re.findall(r"^\| `", gone, re.MULTILINE)) == len(GONE_NAMES) + len(GONE_MODULES)
