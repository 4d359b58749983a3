"""User data as opaque bytes: encoded once at the edge, carried untouched, never decoded by the fold.

The first byte says how the rest is to be read: `m` msgpack, `j` JSON text, `r` a reference to a blob. Two codecs, because
neither takes everything that users pass: msgpack is small and quick and keeps NaN, but refuses integers beyond 64 bits
and lone surrogates; the standard library's JSON (ASCII, NaN allowed) takes those. Which one is used depends on the
value alone, so equal values give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec

from ..errors import InvalidPayload, PayloadTooLarge
from ..model.scalars import plain_data
from .depth_limit import deeper_than, json_deeper_than

INLINE_LIMIT_BYTES = 900_000
"""Payloads above this go to the blobs topic: a Kafka record may have about 1 MB (its default message.max.bytes)."""
MAX_PAYLOAD_MB = 64
MAX_DEPTH = 200
"""Deeper nesting is refused at the edge: decoders recurse, and how deep they can go depends on the caller's stack."""

NULL = b"m\xc0"
REFERENCE_BYTES = 41
"""Length of what `refer` writes."""

_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder()


class Reference(msgspec.Struct, frozen=True):
    """Where a large payload lies: the SHA-256 of its encoded bytes (hex) and their number."""

    digest: str
    size: int


def _too_deep(what: str) -> InvalidPayload:
    return InvalidPayload(f"{what} is nested deeper than {MAX_DEPTH} levels")


def encode(value: Any, what: str = "the payload", max_mb: float = MAX_PAYLOAD_MB) -> bytes:
    """Encode JSON-like user data (also dataclasses, pydantic models, numpy and pandas values, bytes, datetimes).

    Raises `InvalidPayload` (nesting beyond MAX_DEPTH, values of unknown types) and `PayloadTooLarge`.
    """
    if value is None:
        return NULL
    try:
        try:
            data = b"m" + msgspec.msgpack.encode(value, enc_hook=plain_data)
        except (OverflowError, UnicodeEncodeError, msgspec.ValidationError):
            builtins = msgspec.to_builtins(value, enc_hook=plain_data, builtin_types=(), str_keys=True)
            data = b"j" + json.dumps(builtins, separators=(",", ":")).encode("ascii")
    except RecursionError:  # a cycle, or far too deep; what the stack just allowed is counted below
        raise _too_deep(what) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidPayload(f"{what} cannot be stored: {error}") from None
    # Counted in the bytes: that costs next to nothing, and nothing (a model, an array, a cycle) hides from it.
    deeper = deeper_than if data[:1] == b"m" else json_deeper_than
    if deeper(data[1:], MAX_DEPTH):
        raise _too_deep(what)
    if len(data) > max_mb * 1_000_000:
        raise PayloadTooLarge(
            f"{what} has {len(data):,} bytes; the limit is {max_mb:g} MB (max_payload_mb)",
            limit=int(max_mb * 1_000_000),
            size=len(data),
        )
    return data


def decode(data: bytes, fetch: Callable[[Reference], bytes] | None = None) -> Any:
    """Return a fresh copy of the value; `fetch` is asked for the bytes behind a reference.

    Raises `InvalidPayload` where the bytes are not ours, and whatever `fetch` raises.
    """
    kind, body = data[:1], data[1:]
    if kind == b"m":
        try:
            return _decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise InvalidPayload(f"a stored payload cannot be read: {error}") from None
    if kind == b"j":
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InvalidPayload(f"a stored payload cannot be read: {error}") from None
    if kind == b"r" and fetch is not None:
        return decode(fetch(reference(data)))
    raise InvalidPayload(f"a stored payload starts with {kind!r}")


def is_reference(data: bytes) -> bool:
    """Say whether these bytes only point at a blob."""
    return data[:1] == b"r"


def refer(data: bytes) -> bytes:
    """Return the bytes that stand for `data` in an event; `data` itself belongs into blobs under `digest_of(data)`."""
    return b"r" + len(data).to_bytes(8, "big") + sha256(data).digest()


def digest_of(data: bytes) -> str:
    """The key of `data` in the blobs topic: SHA-256 in hex."""
    return sha256(data).hexdigest()


def reference(data: bytes) -> Reference:
    """Read what `refer` wrote."""
    return Reference(digest=data[9:].hex(), size=int.from_bytes(data[1:9], "big"))
