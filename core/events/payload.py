"""User data as JSON text: encoded once at the edge, carried inside events and spans as it is, never decoded by the fold.

Any tool reads it. What JSON lacks is an object with one key that begins with a dollar sign:

| value | stored as |
|---|---|
| NaN, infinities | `{"$float": "nan"}`, `"inf"`, `"-inf"` |
| an integer beyond 64 bits | `{"$int": "digits"}` |
| bytes | `{"$bytes": "base64"}` |
| a time with a zone | `{"$time": "ISO 8601, UTC"}` |
| text with a lone surrogate | `{"$text": "base64 of UTF-8 with surrogates"}` |
| a map with keys that are no text, or with one key that begins with `$` | `{"$map": [[key, value], ...]}` |
| a payload that lies in the topic `blobs` | `{"$blob": {"sha256": "hex", "bytes": n}}` |

The form depends on the value alone, so equal values, their keys in the same order, give equal bytes.
"""

from __future__ import annotations

import datetime
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from itertools import accumulate
from typing import Any, cast

import msgspec

from ..errors import InvalidPayload, PayloadTooLarge
from ..model.scalars import plain_data

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


INLINE_LIMIT_BYTES = 900_000
"""Payloads above this go to the blobs topic: a Kafka record may have about 1 MB (its default message.max.bytes)."""
MAX_PAYLOAD_MB = 64
MAX_DEPTH = 200
"""Deeper nesting is refused at the edge: decoders recurse, and how deep they can go depends on the caller's stack.

The objects that mark what JSON lacks count."""

NULL = b"null"
ABSENT = msgspec.Raw(b"")
"""The default of a field with user data that was not given; it is not written."""

_MARK = b'{"$'
_REFERENCE = b'{"$blob":'
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_MANY_DIGITS = b"0" * 19
"""Integers of fewer digits fit into 64 bits."""
_KEPT = (bytes, bytearray, memoryview, datetime.datetime)
_KEYS = (str, int, float, bytes, datetime.datetime, type(None))
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Reference(msgspec.Struct, frozen=True):
    """Where a large payload lies: the SHA-256 of its encoded bytes (hex) and their number."""

    digest: str = msgspec.field(name="sha256")
    size: int = msgspec.field(name="bytes")


class _Stored(msgspec.Struct, frozen=True):
    blob: Reference = msgspec.field(name="$blob")


def inline(data: bytes | None) -> msgspec.Raw:
    """A payload as the field of an event, which holds it as JSON; `ABSENT` for None and for no bytes."""
    return msgspec.Raw(data) if data else ABSENT


def outline(field: msgspec.Raw) -> bytes | None:
    """The payload in the field of an event; None where the field is absent."""
    return bytes(field) or None


def _too_deep(what: str) -> InvalidPayload:
    return InvalidPayload(f"{what} is nested deeper than {MAX_DEPTH} levels")


def encode(value: Any, what: str = "the payload", max_mb: float = MAX_PAYLOAD_MB) -> bytes:
    """Encode JSON-like user data (also dataclasses, pydantic models, numpy and pandas values, bytes, datetimes).

    Raises `InvalidPayload` (nesting beyond MAX_DEPTH, values of unknown types) and `PayloadTooLarge`.
    """
    if value is None:
        return NULL
    try:
        data = _encode_plain(value)
        if data is None:
            plain = _builtins(value)
            data = _encode_plain(plain) or _encode(_marked(plain))
    except RecursionError:  # a cycle, or far too deep; what the stack just allowed is counted below
        raise _too_deep(what) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidPayload(f"{what} cannot be stored: {error}") from None
    # Counted in the bytes: that costs next to nothing, and nothing (a model, an array, a cycle) hides from it.
    if deeper_than(data, MAX_DEPTH):
        raise _too_deep(what)
    if len(data) > max_mb * 1_000_000:
        raise PayloadTooLarge(
            f"{what} has {len(data):,} bytes; the limit is {max_mb:g} MB (max_payload_mb)",
            limit=int(max_mb * 1_000_000),
            size=len(data),
        )
    return data


def _builtins(value: Any) -> Any:
    """The value in Python's own types. Through msgpack, which keeps NaN, bytes, times and the kinds of keys, and is quick."""
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(value, enc_hook=plain_data))
    except (OverflowError, UnicodeEncodeError, msgspec.ValidationError):
        return msgspec.to_builtins(value, enc_hook=plain_data, builtin_types=_KEPT)


def _encode_plain(plain: Any) -> bytes | None:
    """JSON of what JSON can hold; None where something in it needs a mark, or is of a type that JSON does not give back.

    Reading it back finds that out without a walk.
    """
    try:
        data = _encode(plain)
        if _MARK not in data and _MANY_DIGITS not in data.translate(_DIGITS_AS_ZERO) and _decode(data) == plain:
            return data
    except (UnicodeEncodeError, OverflowError, TypeError, msgspec.MsgspecError):
        pass  # `_builtins` and `_marked` raise for what cannot be stored
    return None


def _marked(value: Any) -> Any:
    """The value with everything that JSON lacks in its documented form."""
    if isinstance(value, dict):
        return _marked_map(cast("dict[Any, Any]", value))
    if isinstance(value, list | tuple):
        return [_marked(item) for item in cast("list[Any]", value)]
    if isinstance(value, str):
        return value if _is_unicode(value) else {"$text": b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return {"$int": str(value)}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": b64encode(bytes(cast("bytes", value))).decode()}
    if isinstance(value, datetime.datetime):
        return {"$time": value.astimezone(datetime.timezone.utc).isoformat()} if value.tzinfo else value.isoformat()
    return value


def _marked_map(value: dict[Any, Any]) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, _KEYS):
            raise TypeError(f"a key of type {type(key).__name__}")
    names = [key for key in value if isinstance(key, str) and _is_unicode(key)]
    if len(names) == len(value) and not (len(names) == 1 and names[0].startswith("$")):
        return {key: _marked(item) for key, item in value.items()}
    return {"$map": [[_marked(key), _marked(item)] for key, item in value.items()]}


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def decode(data: bytes, fetch: Callable[[Reference], bytes] | None = None) -> Any:
    """Return a fresh copy of the value; `fetch` is asked for the bytes behind a reference.

    Raises `InvalidPayload` where the bytes are not ours, and whatever `fetch` raises.
    """
    if is_reference(data):
        if fetch is None:
            raise InvalidPayload("a stored payload lies in the topic blobs, which is not at hand here")
        return decode(fetch(reference(data)))
    try:
        value = _decode(data)
        return _restored(value) if _MARK in data else value
    except InvalidPayload:
        raise
    except (msgspec.MsgspecError, RecursionError, ValueError, TypeError) as error:
        raise InvalidPayload(f"a stored payload cannot be read: {error}") from None


def _restored(value: Any) -> Any:
    """What `_marked` was given."""
    if isinstance(value, list):
        return [_restored(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    items = cast("dict[str, Any]", value)
    name = next(iter(items)) if len(items) == 1 else ""
    if not name.startswith("$"):
        return {key: _restored(item) for key, item in items.items()}
    read = _READERS.get(name)
    if read is None:
        raise InvalidPayload(f"a stored payload has {name!r:.40}, which this release does not know")
    return read(items[name])


_READERS: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$int": int,
    "$bytes": lambda text: b64decode(text, validate=True),
    "$time": datetime.datetime.fromisoformat,
    "$text": lambda text: b64decode(text, validate=True).decode("utf-8", "surrogatepass"),
    "$map": lambda pairs: {_restored(key): _restored(item) for key, item in pairs},
}


def is_reference(data: bytes) -> bool:
    """Say whether these bytes only point at a blob."""
    return data.startswith(_REFERENCE)


def refer(data: bytes) -> bytes:
    """Return the bytes that stand for `data` in an event; `data` itself belongs into blobs under `digest_of(data)`."""
    return _encode(_Stored(Reference(digest_of(data), len(data))))


def digest_of(data: bytes) -> str:
    """The key of `data` in the blobs topic: SHA-256 in hex."""
    return sha256(data).hexdigest()


def reference(data: bytes) -> Reference:
    """Read what `refer` wrote. Raises `InvalidPayload`."""
    try:
        return msgspec.json.decode(data, type=_Stored).blob
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidPayload(f"a reference to a blob cannot be read: {error}") from None
