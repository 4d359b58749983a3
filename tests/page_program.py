"""Runs the snippets of one page of Markdown as one program: `await` may stand at the top, as in a notebook."""

from __future__ import annotations

import ast
import asyncio
import inspect
import linecache
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
"""A block that says more, such as `python notest`, is not run."""


def blocks(text: str) -> list[str]:
    """The code of each block, below so many empty lines that its line numbers are those of the page."""
    return [
        "\n" * text.count("\n", 0, found.start(1)) + found.group(1)
        for found in BLOCK.finditer(text)
        if ">>>" not in found.group(1)
    ]


def promised(text: str) -> list[str]:
    """What the snippets say that they print, one for each line that begins with `#> `."""
    return [line[3:] for block in blocks(text) for line in block.splitlines() if line.startswith("#> ")]


def run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = {"__name__": "__main__"}
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # Functions whose source is asked for, and tracebacks, find the page.
    linecache.cache[str(page)] = (len(text), None, text.splitlines(True), str(page))
    for block in blocks(text):
        code = compile(block, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            loop.run_until_complete(eval(code, names))
        else:
            exec(code, names)
    loop.close()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
