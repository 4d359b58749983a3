"""How an attempt ended, for people: its error with the traceback, what its trace lacks, and what it printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import click

from ..core.model.semconv import AGL_EXCEPTION, AGL_OUTPUT
from ..core.model.span import Span
from .terminal import counted, printable

SHOWN_LINES = 12
"""Lines of a traceback, and of an output, that are shown without `--full`: the last ones."""


def ending_of(spans: Sequence[Span], metadata: Any) -> dict[str, Any]:
    """`error`, `exceptions`, `findings` and `output` of an attempt with these spans and this metadata.

    `output` is None where nothing was printed; else its `text`, with `dropped_bytes` left out after `head` bytes.
    """
    from ..runners.worker.agent_result import FINDINGS

    known = cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}
    codes: Any = known.get("trace_lint")
    lost: Any = known.get("lost_placeholders")
    findings = [FINDINGS.get(str(code), str(code)) for code in cast("list[Any]", codes)] if isinstance(codes, list) else []
    if isinstance(lost, list):
        findings.append("lost placeholders: " + ", ".join(str(name) for name in cast("list[Any]", lost)))
    return {
        "error": known.get("error"),
        "exceptions": [_exception(span) for span in spans if span.name == AGL_EXCEPTION],
        "findings": findings,
        "output": next((_output(span) for span in spans if span.name == AGL_OUTPUT), None),
    }


def _exception(span: Span) -> dict[str, Any]:
    return {part: span.attributes.get(f"exception.{part}") for part in ("type", "message", "stacktrace")}


def _output(span: Span) -> dict[str, Any]:
    sources = ("head", "tail", "total_bytes", "dropped_bytes", "stdout_bytes", "stderr_bytes", "log_bytes")
    return {part: span.attributes.get(f"{AGL_OUTPUT}.{part}") for part in sources}


def ending_lines(attempt: dict[str, Any], full: bool) -> list[str]:
    """What to print for one attempt of the document; nothing where nothing happened."""
    lines: list[str] = []
    number = attempt["sequence_id"]
    for finding in attempt["findings"]:
        lines.append(click.style(f"  attempt {number}: {printable(finding)}", fg="yellow"))
    if lines:
        lines.insert(0, "\nTrace lint")
    if attempt["error"] and not attempt["exceptions"]:
        lines += [f"\nError of attempt {number}", f"  {printable(str(attempt['error']))}"]
    for exception in attempt["exceptions"]:
        lines.append(f"\nException of attempt {number}")
        stack = str(exception["stacktrace"] or f"{exception['type']}: {exception['message']}")
        lines += _last(stack, full)
    output = attempt["output"]
    if output is not None:
        lines.append(f"\nOutput of attempt {number} ({counted(output['total_bytes'] or 0, 'byte')})")
        dropped = output["dropped_bytes"]
        lines += _last(str(output["head"] or ""), full)
        if dropped:
            lines.append(click.style(f"  ... {counted(dropped, 'byte')} left out ...", dim=True))
            lines += _last(str(output["tail"] or ""), full)
    return lines


def _last(text: str, full: bool) -> list[str]:
    """The lines of a text, indented; only the last few unless `full`."""
    lines = [f"  {printable(line)}" for line in text.splitlines()]
    if full or len(lines) <= SHOWN_LINES:
        return lines
    return [f"  ... {counted(len(lines) - SHOWN_LINES, 'line')} above, see --full ...", *lines[-SHOWN_LINES:]]
