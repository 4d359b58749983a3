"""How deeply JSON is nested, found out without recursion, so that every machine agrees.

Decoders recurse, and how deep they get depends on the stack of whoever calls them: the same record would be read by one
node and not by another. A bound that is checked before decoding makes the answer a property of the bytes alone.
"""

from __future__ import annotations

import re
from itertools import accumulate

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEP = [0] * 256
for _byte in b"[{":
    _STEP[_byte] = 1
for _byte in b"]}":
    _STEP[_byte] = -1


def deeper_than(text: bytes, limit: int) -> bool:
    """Say whether JSON text has more than `limit` arrays and objects within another.

    Most texts have no more than `limit` opening brackets, which costs less than a microsecond to see. Bytes that are no
    JSON get some answer, the same everywhere.
    """
    if text.count(b"{") + text.count(b"[") <= limit:
        return False
    brackets = _STRINGS.sub(b"", text).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > limit
