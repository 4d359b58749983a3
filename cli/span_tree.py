"""The spans of one attempt as a tree of text: who called whom, how long it took, what failed."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ..core.model.span import Span
from .terminal import duration, printable, short, table

DEEPEST = 40
"""Deeper levels are not indented further: nobody reads them and lines must end somewhere."""


def lines_of(spans: Sequence[Span]) -> list[str]:
    """One line a span, in the order of sequence ids, children below their parent; every span is printed exactly once."""
    ordered = sorted(spans, key=lambda span: (span.sequence_id, span.start_time or 0.0))
    known = {span.span_id for span in ordered}
    children: dict[str | None, list[Span]] = {}
    for span in ordered:
        parent = span.parent_id if span.parent_id in known and span.parent_id != span.span_id else None
        children.setdefault(parent, []).append(span)
    rows: list[tuple[str, ...]] = []
    printed: set[int] = set()
    # A stack of our own: foreign spans may nest as deep as they like, or even in circles.
    stack = [(span, 0) for span in reversed(children.get(None, []))]
    left = iter(ordered)
    while True:
        if not stack:
            rest = next((span for span in left if id(span) not in printed), None)
            if rest is None:
                break
            stack.append((rest, 0))
        span, depth = stack.pop()
        if id(span) in printed:
            continue
        printed.add(id(span))
        rows.append(_row(span, depth))
        stack += [(child, depth + 1) for child in reversed(children.get(span.span_id, []))]
    return table(rows, ("no", "span", "took", ""))


def _row(span: Span, depth: int) -> tuple[str, ...]:
    from ..core.spans.readers import get_reward_value

    took = span.end_time - span.start_time if span.start_time is not None and span.end_time is not None else None
    notes: list[str] = []
    if span.status.status_code == "ERROR":
        why = f": {short(span.status.description, 80)}" if span.status.description else ""
        notes.append(click.style(f"error{why}", fg="red"))
    reward = get_reward_value(span)
    if reward is not None:
        notes.append(click.style(f"reward {reward:g}", fg="green"))
    model = span.attributes.get("gen_ai.response.model") or span.attributes.get("gen_ai.request.model")
    if isinstance(model, str):
        notes.append(printable(model))
    tokens = [span.attributes.get(f"gen_ai.usage.{side}_tokens") for side in ("input", "output")]
    if any(isinstance(count, int) for count in tokens):
        notes.append(f"{tokens[0] or 0}+{tokens[1] or 0} tokens")
    return str(span.sequence_id), "  " * min(depth, DEEPEST) + printable(span.name), duration(took), ", ".join(notes)
