"""How deeply an encoded value is nested, found out without recursion, so that every machine agrees.

Decoders recurse, and how deep they get depends on the stack of whoever calls them: the same record would be read by one
node and not by another. A bound that is checked before decoding makes the answer a property of the bytes alone.
"""

from __future__ import annotations

import re

CONTAINERS = bytes(range(0x80, 0xA0)) + b"\xdc\xdd\xde\xdf"
"""First bytes of msgpack's maps and arrays."""
_WIDTHS = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
}  # fmt: skip
"""Kinds with a length: the width of the length field, and bytes that follow it besides the data."""
_FIXED = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
"""Kinds of a fixed size: bytes after the first."""
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def deeper_than(value: bytes, limit: int) -> bool:
    """Say whether the msgpack, or the JSON text if it begins with `{`, has more than `limit` containers within another.

    Most values have no more than `limit` bytes that could open a container, which costs less than a microsecond to see.
    Bytes that are neither msgpack nor JSON get some answer, the same everywhere.
    """
    if value[:1] == b"{":
        return json_deeper_than(value, limit)
    return len(value) - len(value.translate(None, CONTAINERS)) > limit and _msgpack_depth(value, limit) > limit


def json_deeper_than(text: bytes, limit: int) -> bool:
    """As `deeper_than`, for any JSON text: an array, too."""
    return text.count(b"{") + text.count(b"[") > limit and _json_depth(text, limit) > limit


def _json_depth(value: bytes, limit: int) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(value):
        first = value[match.start()]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > limit:
                break
        elif first in b"]}":
            depth -= 1
    return deepest


def _msgpack_depth(value: bytes, limit: int) -> int:
    """Walk over the tokens of one value with a stack of how many items each open container still owes."""
    at, end, deepest = 0, len(value), 0
    owed: list[int] = []
    while at < end:
        size, items = _token(value, at)
        at += size
        if owed:
            owed[-1] -= 1
        if items:
            owed.append(items)
            deepest = max(deepest, len(owed))
            if deepest > limit:
                break
        while owed and not owed[-1]:
            owed.pop()
        if not owed:
            break
    return deepest


def _token(value: bytes, at: int) -> tuple[int, int]:
    """Return the bytes of the token at `at`, its data included, and how many items it contains."""
    kind = value[at]
    if kind < 0x80 or kind >= 0xE0:
        return 1, 0
    if kind < 0x90:
        return 1, 2 * (kind - 0x80)
    if kind < 0xA0:
        return 1, kind - 0x90
    if kind < 0xC0:
        return 1 + kind - 0xA0, 0
    if kind in _WIDTHS:
        width, more = _WIDTHS[kind]
        return 1 + width + more + int.from_bytes(value[at + 1 : at + 1 + width], "big"), 0
    if kind >= 0xDC:
        width = 2 if kind in (0xDC, 0xDE) else 4
        count = int.from_bytes(value[at + 1 : at + 1 + width], "big")
        return 1 + width, count * (2 if kind >= 0xDE else 1)
    return 1 + _FIXED.get(kind, 0), 0
