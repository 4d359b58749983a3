"""Readers: the messages and objects in spans, also in those that older versions wrote."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from ..model.semconv import AGL_MESSAGE, AGL_OBJECT, LightningSpanAttributes
from ..model.span import SpanAttributeNames
from .rewards import attributes_of

__all__ = ["get_message_value", "get_object_value"]

# Before release 0.3 these were the whole names.
_OLD_MESSAGE, _OLD_OBJECT = SpanAttributeNames.MESSAGE.value, SpanAttributeNames.OBJECT.value


def get_message_value(span: Any) -> str | None:
    """The text of a message span of any version; None for other spans, TypeError when it is no text."""
    attributes = attributes_of(span)
    value = attributes.get(LightningSpanAttributes.MESSAGE_BODY.value)
    if value is None and span.name == AGL_MESSAGE:
        value = attributes.get(_OLD_MESSAGE)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"A message must be a string, not {type(value).__name__}")
    return value


def get_object_value(span: Any) -> Any:
    """The value of an object span of any version; None for other spans.

    RuntimeError when the value cannot be read back.
    """
    attributes = attributes_of(span)
    text = attributes.get(LightningSpanAttributes.OBJECT_JSON.value)
    if text is None and span.name == AGL_OBJECT:
        text = attributes.get(_OLD_OBJECT)
    if text is not None:
        return _read("JSON", json.loads, text)
    literal = attributes.get(LightningSpanAttributes.OBJECT_LITERAL.value)
    if literal is None:
        return None
    kind = attributes.get(LightningSpanAttributes.OBJECT_TYPE.value)
    if kind == "str":
        return literal
    if kind == "bool":
        return literal == "True"
    read: Callable[[Any], Any] | None = {"int": int, "float": float, "bytes": base64.b64decode}.get(str(kind))
    if read is None:
        raise RuntimeError(f"Unknown type of object: {kind!r}")
    return _read(str(kind), read, literal)


def _read(kind: str, read: Callable[[Any], Any], text: Any) -> Any:
    try:
        return read(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise RuntimeError(f"The object cannot be read as {kind}: {error}") from error
