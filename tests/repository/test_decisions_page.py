"""The page of decisions and tests is true: every test it names exists, and nothing that has to be there is missing."""

from __future__ import annotations

import ast
import re

from ..core.fold.faults import FAULTS, WRITER
from ..sources import ROOT

EXPLANATION = ROOT / "docs" / "explanation"
PAGE = (EXPLANATION / "decisions-and-tests.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows(heading: str) -> dict[str, str]:
    """The first cell of each row of one table -> the rest of the row."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = [line.strip("|").split("|", 1) for line in part.splitlines() if line.startswith("| ")]
    return {first.strip(" `"): rest for first, rest in found[1:]}


def functions_of(path: str) -> dict[str, ast.AST]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in ast.walk(tree) if isinstance(node, kinds) and node.name.startswith("test_")}


def test_every_named_test_exists() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 50 and PAGE.count("::") == len(named)
    assert [(path, name) for path, name in named if name not in functions_of(path)] == []


def test_every_decision_promise_and_fault_has_its_row() -> None:
    decisions = rows("The answers to hard questions")
    assert list(decisions) == [str(number) for number in range(1, 34)]
    assert all(NAMED.search(rest) or "later" in rest for rest in decisions.values())
    promises = re.findall(r"^\| ([a-z-]+) \| [A-Z]", (EXPLANATION / "promises.md").read_text(encoding="utf-8"), re.M)
    assert list(rows("The promises")) == promises and len(promises) == 9
    assert set(rows("The deliberate faults")) == {*FAULTS, *WRITER} and len(FAULTS) >= 10


def test_the_test_beside_a_fault_switches_it_on() -> None:
    for fault, rest in rows("The deliberate faults").items():
        ((path, name),) = NAMED.findall(rest)
        test = functions_of(path)[name]
        assert isinstance(test, ast.FunctionDef)
        marks = [node.value for mark in test.decorator_list for node in ast.walk(mark) if isinstance(node, ast.Constant)]
        assert fault in marks, f"{name} is not run with {fault}"
