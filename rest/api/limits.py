"""What one request may hold: its parts are counted before an object is made of any of them.

A body within the limit of bytes can still be dense: 15 MB of empty lists are five million objects. The counts are upper
bounds first, which take milliseconds, and exact only for a body that is above the bound.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, cast

from ...core.errors import InvalidInput, PayloadTooLarge

MAX_CONTAINERS = 500_000
"""Lists and objects of a body; each takes 60 to 230 bytes of memory."""
MAX_ITEMS = 5_000_000
"""Members of all of them together: numbers and texts."""
MAX_RECORDS = 50_000
"""Spans, their events and their links in one request; each becomes an object of 1 to 2 kB."""
MAX_MEMBERS = 4_096
"""Of a gzip body; each costs a new machine."""
_CHUNK = 65_536
LARGE_BODY = 1_000_000
"""Bodies above this many bytes are read in a thread, so that other requests do not wait for them."""


def gunzip(data: bytes, limit: int) -> bytes:
    """Decompress, but never beyond `limit` bytes, in time linear in both. Raises `InvalidInput` and `PayloadTooLarge`."""
    parts: list[bytes] = []
    size = at = members = 0
    view = memoryview(data)
    # A gzip file may have several members, one after the other; all of them are the content.
    while at < len(data):
        members += 1
        if members > MAX_MEMBERS:
            raise InvalidInput(f"the gzip body has more than {MAX_MEMBERS} members; compress it as one")
        machine = zlib.decompressobj(31)
        while not machine.eof:
            if at >= len(data):
                raise InvalidInput("the gzip body is cut off")
            # In chunks: what is left over after a member is copied by zlib.
            chunk = view[at : at + _CHUNK]
            at += len(chunk)
            try:
                part = machine.decompress(chunk, limit + 1 - size)
            except zlib.error as error:
                raise InvalidInput(f"the body is not gzip: {error}") from None
            size += len(part)
            if size > limit:
                raise PayloadTooLarge(f"The unpacked request is larger than the limit of {limit} bytes", limit=limit)
            parts.append(part)
        at -= len(machine.unused_data)
    return b"".join(parts)


def _too_many(what: str, most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request has more than {most:,} {what}; send it in several requests", limit=most)


def _check(containers: int, items: int) -> None:
    if containers > MAX_CONTAINERS:
        raise _too_many("lists and objects", MAX_CONTAINERS)
    if items > MAX_ITEMS:
        raise _too_many("values", MAX_ITEMS)


_JSON_PARTS = re.compile(rb'"[^"]*"?|[\[{,]')


def count_json(*texts: bytes) -> None:
    """Raises `PayloadTooLarge` for JSON texts with more lists, objects or values together than a request may hold."""
    if sum(map(len, texts)) <= MAX_CONTAINERS:
        return
    if (
        sum(text.count(b"[") + text.count(b"{") for text in texts) <= MAX_CONTAINERS
        and sum(text.count(b",") for text in texts) <= MAX_ITEMS
    ):
        return
    containers = items = 0
    for text in texts:
        more_containers, more_items = _counts_of(text)
        containers, items = containers + more_containers, items + more_items
        _check(containers, items)


def _counts_of(body: bytes) -> tuple[int, int]:
    """(lists and objects, commas) of a JSON text; of what is no JSON, those before the parser stops."""
    containers = items = texts = 0
    # Without escapes a text ends at the next quote.
    for found in _JSON_PARTS.finditer(body.replace(b"\\\\", b"").replace(b'\\"', b"")):
        first = found.group()[0]
        if first == 0x22:
            texts += 1
            if texts > 2 * (containers + items) + 2:
                break  # no JSON: the parser says where
        elif first == 0x2C:
            items += 1
        else:
            containers += 1
        if containers > MAX_CONTAINERS or items > MAX_ITEMS:
            _check(containers, items)
    return containers, items


_MSGPACK_CONTAINERS = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))
_FIXED = {
    0xC0: 1, 0xC1: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3,
    0xD2: 5, 0xD3: 9, 0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18, 0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5,
}  # fmt: skip
_COUNTED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Kinds whose length follows in so many bytes."""


def count_msgpack(body: bytes) -> None:
    """As `count_json`, for msgpack."""
    size = len(body)
    if size <= MAX_CONTAINERS:
        return
    if size <= MAX_ITEMS and size - len(body.translate(None, _MSGPACK_CONTAINERS)) <= MAX_CONTAINERS:
        return
    containers = items = at = 0
    while at < size:
        kind = body[at]
        items += 1
        if kind < 0x80 or kind >= 0xE0:
            at += 1
        elif kind < 0xA0:
            containers += 1
            at += 1
        elif kind < 0xC0:
            at += 1 + (kind & 31)
        elif kind in _FIXED:
            containers += 0xDC <= kind <= 0xDF
            at += _FIXED[kind]
        else:
            width = _COUNTED[kind]
            extra = 1 if 0xC7 <= kind <= 0xC9 else 0
            at += 1 + width + extra + int.from_bytes(body[at + 1 : at + 1 + width], "big")
        if containers > MAX_CONTAINERS or items > MAX_ITEMS:
            _check(containers, items)


_KEY_VALUE: dict[int, Any] = {}
_VALUE: dict[int, Any] = {5: {1: {}}, 6: {1: _KEY_VALUE}}
_VALUE[5][1] = _VALUE
_KEY_VALUE[2] = _VALUE
_SPAN: dict[int, Any] = {9: _KEY_VALUE, 11: {3: _KEY_VALUE}, 13: {4: _KEY_VALUE}, 15: {}}
_SCOPE_SPANS: dict[int, Any] = {1: {3: _KEY_VALUE}, 2: _SPAN}
_EXPORT: dict[int, Any] = {1: {1: {1: _KEY_VALUE}, 2: _SCOPE_SPANS}}
"""The messages inside of OTLP's messages, by field number; everything else has no parts."""


def count_otlp(body: bytes) -> None:
    """As `count_json`, for an OTLP export in protobuf. What is no protobuf is left to the parser."""
    if len(body) <= 2 * MAX_RECORDS:
        return
    messages = records = fields = 0
    pending: list[tuple[int, int, dict[int, Any]]] = [(0, len(body), _EXPORT)]
    while pending:
        at, end, inside = pending.pop()
        while at < end:
            tag, at = _varint(body, at, end)
            kind = tag & 7
            fields += 1
            if fields > MAX_ITEMS:
                raise _too_many("fields", MAX_ITEMS)
            if kind == 2:
                length, at = _varint(body, at, end)
                parts = inside.get(tag >> 3)
                if parts is not None:
                    messages += 1
                    records += inside is _SCOPE_SPANS or inside is _SPAN and tag >> 3 in (11, 13)
                    if records > MAX_RECORDS:
                        raise _too_many("spans, events and links", MAX_RECORDS)
                    if messages > 2 * MAX_CONTAINERS:
                        raise _too_many("attributes", MAX_CONTAINERS)
                    if length:
                        pending.append((at, min(at + length, end), parts))
                at += length
            elif kind == 0:
                _, at = _varint(body, at, end)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise InvalidInput("The export request cannot be read: OTLP has no groups")


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = body[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            break
    raise InvalidInput("The export request cannot be read: a number in it does not end")


def count_records(export: Any) -> None:
    """Raises `PayloadTooLarge` for a parsed OTLP export with more spans, events and links than a request may hold."""
    spans = [span for group in export.resource_spans for scope in group.scope_spans for span in scope.spans]
    if sum(1 + len(span.events) + len(span.links) for span in spans) > MAX_RECORDS:
        raise _too_many("spans, events and links", MAX_RECORDS)


def count_spans(args: dict[str, Any]) -> None:
    """Raises `PayloadTooLarge` for arguments with more spans, events and links than one request may hold."""
    several: Any = args.get("spans")
    spans: list[Any] = [args.get("span"), *(several if isinstance(several, list) else ())]
    count = len(spans)
    for span in spans:
        if isinstance(span, dict):
            fields = cast("dict[str, Any]", span)
            count += sum(len(fields.get(name) or ()) for name in ("events", "links") if isinstance(fields.get(name), list))
    if count > MAX_RECORDS:
        raise _too_many("spans, events and links", MAX_RECORDS)
