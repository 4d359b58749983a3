"""The pages are true: their snippets run and print what they say, their commands exist, and every page is listed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ..deploy.manifests import commands_of, parse
from ..openai_stub import Stub, openai_stub
from ..page_program import blocks, promised
from ..sources import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "examples" / "README.md", ROOT / "deploy" / "README.md", *DOCS.rglob("*.md")]
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


OWN_TEST = re.compile(r"executed by\s+`(tests/[\w/]+\.py)`")
"""How a page says which test runs its snippets, where they need more than a page holds."""
TESTED_ELSEWHERE = {
    page: found.group(1) for page in PAGES if (found := OWN_TEST.search(page.read_text(encoding="utf-8")))
}
WITH_SNIPPETS = [page for page in PAGES if blocks(page.read_text(encoding="utf-8")) and page not in TESTED_ELSEWHERE]


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with openai_stub() as server:
        yield server


def run(page: Path, folder: Path, stub: Stub) -> subprocess.CompletedProcess[str]:
    """A page without `await` at the top is a file like any other, which new processes can import."""
    text = page.read_text(encoding="utf-8")
    program = folder / "page.py"
    lines = [""] * (text.count("\n") + 1)
    for block in blocks(text):
        for number, line in enumerate(block.split("\n")):
            lines[number] = line or lines[number]
    program.write_text("\n".join(lines), encoding="utf-8")
    try:
        compile(program.read_text(encoding="utf-8"), str(page), "exec")
        arguments = [str(program)]
    except SyntaxError:
        arguments = [str(ROOT / "tests" / "page_program.py"), str(page)]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": stub.base_url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
def test_the_snippets_of_a_page_run_and_print_what_they_say(page: Path, tmp_path: Path, stub: Stub) -> None:
    done = run(page, tmp_path, stub)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout.splitlines()
    for line in promised(page.read_text(encoding="utf-8")):
        assert line in printed, f"{line!r} is not printed, or not in this order:\n{done.stdout}{done.stderr}"
        del printed[: printed.index(line) + 1]


def test_a_snippet_that_prints_something_else_is_seen() -> None:
    text = "```python\nprint(1)\n#> 2\n```\n\n```python notest\nbroken(\n```\n"
    assert promised(text) == ["2"] and [block.strip() for block in blocks(text)] == ["print(1)\n#> 2"]


@pytest.mark.parametrize(("page", "test"), TESTED_ELSEWHERE.items(), ids=str)
def test_a_page_that_names_a_test_is_run_by_it(page: Path, test: str) -> None:
    assert f'"{page.name}"' in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line, arguments in commands_of(page):
        try:
            parse([re.sub(r"^[A-Z]+$|^\.\.\.$", "1", argument.strip("[]")) for argument in arguments])
        except click.exceptions.Exit:
            continue  # --help
        except click.MissingParameter:
            # A command that a sentence mentions is named, not spelt out.
            assert f"`{line}`" in text, line
        except click.UsageError as error:
            pytest.fail(f"{name_of(page)}: {line}: {error.format_message()}")


PATH = re.compile(r"`((?:core|projections|rest|runners|algorithms|compat|cli|tests|deploy|examples|docs)/[\w./-]*)(?:::\w+)?`")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    """So that a page follows when files move."""
    text = page.read_text(encoding="utf-8")
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []
    bare = set(re.findall(r"`(\w+\.py)`", text)) - {path.name for path in page.parent.glob("*.py")}
    assert page.parent.name not in ("explanation", "decisions") or bare == set(), "name the path from the root"


def test_every_page_is_listed() -> None:
    """In the map of the documentation and in the navigation of the site, the decisions on a page of their own."""
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if "decisions" not in page.parts}
    listed = set(re.findall(r"\]\(([\w./-]+)\)", (DOCS / "README.md").read_text(encoding="utf-8")))
    assert pages - {"README.md"} - listed == set()
