"""The house rules that a machine can check: length of functions, captions, docstrings, and what must not be written."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

import pytest

from ..sources import ROOT, Source, everything, product

FUNCTION_LINES = 60
DOCSTRING_SHARE = 0.85
# Spelt in halves, so that this file does not break its own rule.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
REGISTRY = re.compile("--(extra-)?index" + r"-url|\bpypi\." + r"org|files\.python" + "hosted|_INDEX" + "_URL")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
"""In code of a page, `name[type](value)` is no link."""
TEXT = (".cfg", ".in", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", "")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[Source], Iterator[str]]


def function_length(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, Function) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"{source.name}:{node.lineno} {node.name}: {length} lines"


def caption(source: Source) -> Iterator[str]:
    """The first line of a module's docstring is one sentence."""
    first = (ast.get_docstring(source.tree) or "").split("\n")[0]
    if not first:
        yield f"{source.name}: no caption"
    elif not first.endswith((".", "?")) or " " not in first:
        yield f"{source.name}: the caption is no sentence: {first!r}"


def unfinished(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if UNFINISHED.search(line):
            yield f"{source.name}:{number} {line.strip()}"


def swallowed(source: Source) -> Iterator[str]:
    """A broad except must raise, or call something that records or attributes the error."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        if not any(k is None or getattr(k, "id", "") in ("Exception", "BaseException") for k in kinds):
            continue
        inside = [inner for statement in node.body for inner in ast.walk(statement)]
        named = any(isinstance(i, ast.Name) and i.id == node.name for i in inside)
        if not named and not any(isinstance(i, ast.Raise | ast.Call) for i in inside):
            yield f"{source.name}:{node.lineno} swallows every error"


def environment(source: Source) -> Iterator[str]:
    """Only programs read environment variables, the switch of a trainer's roles, and who resolves a secret that names one."""
    if source.room in ("cli", "deploy", "tests", "examples"):
        return
    if source.name in ("algorithms/execution/env_vars.py", "core/credentials.py"):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
            yield f"{source.name}:{node.lineno} reads the environment"


@pytest.mark.parametrize("rule", [function_length, caption, unfinished, swallowed, environment])
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    assert [offence for source in everything() for offence in rule(source)] == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (function_length, "def f():\n" + "    x = 1\n" * 60),
        (caption, "import os\n"),
        (caption, '"""Helpers."""'),
        (caption, '"""What this file does\n\nand more."""'),
        (unfinished, "# TO" + "DO: later\n"),
        (swallowed, "try:\n    f()\nexcept Exception:\n    pass\n"),
        (swallowed, "try:\n    f()\nexcept (OSError, BaseException):\n    x = 1\n"),
        (swallowed, "try:\n    f()\nexcept:\n    pass\n"),
        (environment, "import os\nx = os.environ['HOME']\n"),
    ],
)
def test_a_broken_rule_is_seen(rule: Rule, text: str) -> None:
    assert len(list(rule(Source("core/planted.py", text)))) == 1


@pytest.mark.parametrize(
    "text",
    ["try:\n    f()\nexcept Exception:\n    raise\n", "try:\n    f()\nexcept Exception as e:\n    failure = e\n"],
)
def test_an_error_that_is_passed_on_is_no_offence(text: str) -> None:
    assert list(swallowed(Source("core/planted.py", text))) == []


def documented(sources: list[Source]) -> tuple[list[str], int]:
    """Public definitions without a docstring, and how many public definitions there are.

    A method counts as documented where a base class in this repository documents it, since readers and
    `help()` inherit that text.
    """
    classes = {n.name: n for s in sources for n in ast.walk(s.tree) if isinstance(n, ast.ClassDef)}

    def inherits(owner: ast.ClassDef, method: str, depth: int = 0) -> bool:
        for base in owner.bases:
            core = base.value if isinstance(base, ast.Subscript) else base
            parent = classes.get(getattr(core, "id", getattr(core, "attr", "")))
            if parent is None or parent is owner or depth > 9:
                continue
            if any(isinstance(n, Function) and n.name == method and ast.get_docstring(n) for n in parent.body):
                return True
            if inherits(parent, method, depth + 1):
                return True
        return False

    bare: list[str] = []
    count = 0

    def visit(source: Source, body: list[ast.stmt], owner: ast.ClassDef | None) -> None:
        nonlocal count
        for node in body:
            if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
                continue
            marks = {getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list}
            if marks & {"overload", "setter"}:
                continue
            count += 1
            if not ast.get_docstring(node) and not (owner is not None and inherits(owner, node.name)):
                bare.append(f"{source.name}:{node.lineno} {node.name}")
            if isinstance(node, ast.ClassDef):
                visit(source, node.body, node)

    for source in sources:
        visit(source, source.tree.body, None)
    return bare, count


def test_public_definitions_are_documented() -> None:
    bare, count = documented(product())
    share = 1 - len(bare) / count
    assert share >= DOCSTRING_SHARE, f"{share:.0%} of {count}; without: " + ", ".join(bare)


def test_inherited_documentation_counts_and_missing_documentation_is_seen() -> None:
    base = 'class A:\n    """A."""\n    def f(self):\n        """F."""\n    def _p(self): ...\n'
    child = 'class B(A):\n    """B."""\n    def f(self): ...\n    def g(self): ...\n'
    assert documented([Source("core/a.py", base), Source("core/b.py", child)]) == (["core/b.py:4 g"], 5)


def test_no_file_names_a_package_registry() -> None:
    skipped = {".git", ".venv", ".cache", "typings", "__pycache__", "build", "dist"}
    found: list[str] = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if skipped & set(parts) or not path.is_file() or path.suffix not in TEXT:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{'/'.join(parts)}: {match.group()}" for match in REGISTRY.finditer(text)]
    assert found == []


def test_a_registry_address_is_seen() -> None:
    assert REGISTRY.search("--index" + "-url https://example.org/simple")
    assert REGISTRY.search("https://pypi." + "org/project/x")


def test_every_link_in_the_documentation_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(path for room in ("docs", "examples", "deploy") for path in (ROOT / room).rglob("*.md"))]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", CODE.sub("", page.read_text(encoding="utf-8")))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert pages and broken == []
