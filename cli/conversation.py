"""What was said in a span: prompts and completions, in whatever convention an instrumentation wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..core.model.span import Span
from .terminal import items, mapping, plain, printable


def exchange(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of everything that was asked and answered, in order; empty for spans that carry no conversation.

    `fields` are those of a span, as `Span.model_dump` gives them.
    """
    from ..core.spans.conventions import completion_of, listed, prompt_of

    span = Span.model_validate(fields)
    said: list[tuple[str, str]] = []
    for messages, otherwise in ((prompt_of(span), "user"), (completion_of(span), "assistant")):
        for message in map(mapping, listed(messages)):
            if message is not None and (text := _text(message.get("content")) or _calls(message)):
                said.append((str(message.get("role") or otherwise), text))
    return said


def _calls(message: Mapping[str, Any]) -> str:
    """The tools that an answer without a text calls."""
    from ..core.spans.conventions import listed

    calls = [mapping(call) or {} for call in listed(message.get("tool_calls"))]
    functions = [mapping(call.get("function")) or call for call in calls]
    return "\n".join(f"{one.get('name', '')}({_text(one.get('arguments'))})" for one in functions)


def _text(value: Any) -> str:
    """A text, or the texts of a message's parts; anything else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    parts = [mapping(part) for part in items(value) or ()]
    texts = [str(part.get("content") or part.get("text") or "") for part in parts if part is not None]
    if texts and len(texts) == len(parts):
        return "\n".join(text for text in texts if text)
    return json.dumps(plain(value))


def as_text(value: Any, indent: int = 13) -> str:
    """A value in full: the lines of a text below each other, everything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(plain(value), indent=2, ensure_ascii=False)
    return ("\n" + " " * indent).join(printable(line) for line in text.splitlines())
