"""Position tokens: what a caller has seen of a log, as text that travels in a header.

`LOG:NAMESPACE:FINGERPRINT:POSITION` counts the control records that were folded. Where the log is on a broker, the ends of
span partitions follow as `~PARTITION=END,...`: a broker may say for a moment that a partition ends before records that it
has acknowledged, and a node that was given their end knows better.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.errors import InvalidInput

SPAN_ENDS = 64
"""Ends that a token carries at most, those that became known last: a header has its limits."""
_HEAD = re.compile(r"([^:]*):((?:[0-9a-f]{16})?):([0-9]{1,18})")
_ENDS = re.compile(r"[0-9]{1,5}=[0-9]{1,18}(?:,[0-9]{1,5}=[0-9]{1,18})*")


@dataclass(frozen=True)
class Position:
    """A token that was read. `fingerprint` is None where only the position matters; `spans`: partition -> end."""

    log_id: str
    fingerprint: bytes | None
    position: int
    spans: Mapping[int, int] = field(default_factory=dict[int, int])


def read_token(token: str) -> Position:
    """What a token says. Raises `InvalidInput`."""
    head, spans = split(token)
    found = _HEAD.fullmatch(head)
    if found is None:
        raise InvalidInput(f"{token[:100]!r} is not a position token")
    return Position(found[1], bytes.fromhex(found[2]) or None, int(found[3]), spans)


def number_of(token: str) -> int:
    """How many control records a token counts; -1 for what is no token."""
    number = token.partition("~")[0].rpartition(":")[2]
    return int(number) if number.isdigit() else -1


def split(token: str) -> tuple[str, dict[int, int]]:
    """(token without the ends of span partitions, those ends). Raises `InvalidInput` for ends that are none."""
    head, mark, text = token.partition("~")
    if not mark:
        return head, {}
    if _ENDS.fullmatch(text) is None:
        raise InvalidInput(f"{token[:100]!r} is not a position token")
    pairs = (one.partition("=") for one in text.split(","))
    return head, {int(part): int(end) for part, _, end in pairs}


def joined(head: str, spans: Mapping[int, int]) -> str:
    """A token of its parts; the last of `spans` are those that became known last."""
    if not spans:
        return head
    newest = list(spans.items())[-SPAN_ENDS:]
    return f"{head}~{','.join(f'{part}={end}' for part, end in newest)}"


def raised(known: Mapping[int, int], spans: Mapping[int, int]) -> Mapping[int, int]:
    """The higher end of each partition; what `spans` raised comes last, and no more is kept than a token carries."""
    if all(end <= known.get(part, 0) for part, end in spans.items()):
        return known
    made = dict(known)
    for part, end in spans.items():
        if end > made.get(part, 0):
            made.pop(part, None)
            made[part] = end
    return dict(list(made.items())[-SPAN_ENDS:])
