"""What the commands print with: tables, durations, shortened values and JSON; colours on terminals only."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..core.errors import printable
from ..core.model.scalars import items, mapping

COLORS = {
    "succeeded": "green",
    "running": "cyan",
    "preparing": "cyan",
    "queuing": "yellow",
    "requeuing": "yellow",
    "failed": "red",
    "timeout": "red",
    "unresponsive": "red",
    "cancelled": "magenta",
}
SHORT = 160
NARROWEST = 8
"""Columns of a table are not made narrower than this many characters."""
_WHOLE = re.compile(r"(ro|at|rs|run|dl)-\S+|\d{4}-\d\d-\d\d .*|[\d.,%+± -]+")
"""Cells that are of no use when they are cut: ids, times and numbers."""
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def json_option(command: Any) -> Any:
    """`--json` as every command has it: one document."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")(command)


def json_lines_option(command: Any) -> Any:
    """`--json` of the commands that print records: a document in each line; where there is none, that of `no_records`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON lines, one a record, instead of text.")(command)


def no_records() -> None:
    """What the commands with JSON lines print instead of nothing, so that a program can tell it from a failure."""
    echo_json({"records": 0})


def examples(*lines: str) -> str:
    """The epilog of a command's help: lines that can be typed as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def own_command() -> str:
    """How this program was called, for lines that can be typed where they are printed: `agl`, `.venv/bin/agl`."""
    called = sys.argv[0]
    if Path(called).name == "__main__.py":
        return f"{_from_here(sys.executable)} -m agentlightning"
    found = shutil.which("agl")
    same = found is not None and os.path.exists(called) and os.path.samefile(found, called)
    return "agl" if same else _from_here(called)


def _from_here(path: str) -> str:
    """The path relative to the current folder where it lies in it."""
    here = os.path.relpath(path)
    return path if here.startswith(os.pardir) else here


def columns() -> int | None:
    """How many characters a line may have: COLUMNS, else those of the terminal; None where the output is no terminal."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fit(line: str, indent: int = 0) -> str:
    """The line, cut to the terminal's width less `indent`; a coloured one loses its colours with its end."""
    width = columns()
    bare = click.unstyle(line)
    if width is None or len(bare) <= width - indent:
        return line
    return bare[: max(width - indent, NARROWEST) - 1] + "…"


def log_level_option(command: Any) -> Any:
    """`--log-level` of the commands that go on running."""
    choice = click.Choice(LEVELS, case_sensitive=False)
    return click.option("--log-level", type=choice, default="INFO", show_default=True, help="What is worth a line.")(command)


def plain(value: Any) -> Any:
    """A value that json.dumps takes: bytes as hex, keys as texts, NaN and infinities as texts."""
    tree, several = mapping(value), items(value)
    if tree is not None:
        return {str(key): plain(item) for key, item in tree.items()}
    if several is not None:
        return [plain(item) for item in several]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def echo_json(value: Any) -> None:
    """One JSON document in one line, ASCII only, so that any terminal and any file takes it."""
    click.echo(json.dumps(plain(value)))


def announce(line: str) -> None:
    """One line on standard error: standard output belongs to results."""
    click.echo(line, err=True)


def short(value: Any, width: int | None = None) -> str:
    """A value in one line of at most `width` characters, the end replaced by its length where it is longer."""
    width = min(SHORT, max((columns() or SHORT) - 14, 20)) if width is None else width
    text = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    # A prompt may have megabytes: only what may be seen is looked at.
    line = printable(" ".join(text[: 8 * width].split()))
    if len(line) <= width and len(text) <= 8 * width:
        return line
    rest = f"… ({len(text):,} characters)"
    return line[: max(width - len(rest), 1)] + rest


def status(word: str) -> str:
    """A status, coloured."""
    return click.style(word, fg=COLORS.get(word))


def when(seconds: float | None) -> str:
    """Unix seconds as local date and time to the millisecond; a dash for None and for what is no date."""
    if seconds is None:
        return "-"
    try:
        return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "milliseconds")
    except (OverflowError, ValueError, OSError):
        return "-"


def duration(seconds: float | None) -> str:
    """Seconds as people write them: 12 ms, 3.4 s, 5 min 2 s, 3 h 10 min."""
    if seconds is None:
        return "-"
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def table(rows: Sequence[Sequence[str]], heads: Sequence[str], indent: str = "") -> list[str]:
    """Aligned lines that fit the terminal; columns are as wide as their widest cell, numbers stand to the right.

    Where a line is too long for the terminal, the widest texts are cut; ids, times and numbers never are.
    """
    cells = [list(heads), *[list(row) for row in rows]]
    widths = [max(len(click.unstyle(row[column])) for row in cells) for column in range(len(heads))]
    numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(heads))]
    _narrow(widths, rows, len(indent))
    lines: list[str] = []
    for row in cells:
        parts: list[str] = []
        for column, cell in enumerate(row):
            if len(click.unstyle(cell)) > widths[column]:
                cell = click.unstyle(cell)[: widths[column] - 1] + "…"
            space = " " * (widths[column] - len(click.unstyle(cell)))
            parts.append(space + cell if numeric[column] else cell + space)
        lines.append((indent + "  ".join(parts)).rstrip())
    return lines


def _narrow(widths: list[int], rows: Sequence[Sequence[str]], indent: int) -> None:
    """Reduce the widest columns of texts until the table fits the terminal, or none can be reduced."""
    room = columns()
    if room is None:
        return
    texts = [
        column for column in range(len(widths)) if not all(_WHOLE.fullmatch(click.unstyle(row[column])) for row in rows)
    ]
    spare = room - indent - 2 * (len(widths) - 1) - sum(widths)
    while spare < 0 and texts:
        widest = max(texts, key=lambda column: widths[column])
        if widths[widest] <= NARROWEST:
            return
        widths[widest] -= 1
        spare += 1


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "", 1).isdigit()


def counted(number: int, noun: str) -> str:
    """`1 event`, `2,000 events`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def by_status(counts: Mapping[str, int]) -> str:
    """`3 queuing, 2 succeeded`, or `none`."""
    return ", ".join(f"{count:,} {word}" for word, count in counts.items()) or "none"


def as_text(value: Any, indent: int = 13) -> str:
    """A value in full: the lines of a text below each other, everything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(plain(value), indent=2, ensure_ascii=False)
    return ("\n" + " " * indent).join(printable(line) for line in text.splitlines())
