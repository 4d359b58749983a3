"""What was said in a span: prompts and completions as the instrumentations write them into attributes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .terminal import items, mapping, plain, printable

_KEY = re.compile(r"gen_ai\.(prompt|completion)\.(\d+)\.(role|content)")
_WHOLE = (("gen_ai.input.messages", "prompt"), ("gen_ai.output.messages", "completion"))
"""The newer form: a JSON list of messages, each with a role and parts."""


def exchange(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of everything that was asked and answered, in order; empty for spans that carry no conversation."""
    turns: dict[tuple[int, int], dict[str, str]] = {}
    for key, value in attributes.items():
        match = _KEY.fullmatch(key)
        if match is not None:
            side, number, field = match.groups()
            turns.setdefault((("prompt", "completion").index(side), int(number)), {})[field] = _text(value)
    said = [
        (turn.get("role") or ("user", "assistant")[side], turn["content"])
        for (side, _), turn in sorted(turns.items())
        if turn.get("content")
    ]
    if said:
        return said
    for key, role in _WHOLE:
        if isinstance(attributes.get(key), str):
            said += _messages(attributes[key], role)
    return said


def _messages(text: str, role: str) -> list[tuple[str, str]]:
    try:
        messages = items(json.loads(text))
    except ValueError:
        messages = None
    if messages is None:
        return [(role, text)]
    found: list[tuple[str, str]] = []
    for message in map(mapping, messages):
        if message is not None:
            parts = message.get("parts", message.get("content", ""))
            found.append((str(message.get("role", role)), _text(parts)))
    return found


def _text(value: Any) -> str:
    """A text, or the texts of a message's parts; anything else as JSON."""
    if isinstance(value, str):
        return value
    parts = [mapping(part) for part in items(value) or ()]
    texts = [str(part.get("content") or part.get("text") or "") for part in parts if part is not None]
    if texts and len(texts) == len(parts):
        return "\n".join(text for text in texts if text)
    return json.dumps(plain(value))


def as_text(value: Any, indent: int = 13) -> str:
    """A value in full: the lines of a text below each other, everything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(plain(value), indent=2, ensure_ascii=False)
    return ("\n" + " " * indent).join(printable(line) for line in text.splitlines())
