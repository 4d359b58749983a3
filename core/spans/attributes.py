"""Nested values as span attributes and back: dots and indices in the keys, primitives in the values."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ...core.errors import message_of
from ..errors import InvalidInput
from ..model.scalars import plain_data, plain_scalar
from ..model.span import Attributes, AttributeValue

__all__ = [
    "check_attributes_sanity",
    "filter_and_unflatten_attributes",
    "filter_attributes",
    "flatten_attributes",
    "format_exception_attributes",
    "full_qualified_name",
    "sanitize_attribute_value",
    "sanitize_attributes",
    "sanitize_list_attribute_sanity",
    "unflatten_attributes",
]

_log = logging.getLogger(__name__)
_PRIMITIVES = (str, bool, int, float)
# Deeper than anything that means something, and far from the interpreter's limit.
_DEEPEST = 64


def flatten_attributes(nested: Any, *, expand_leaf_lists: bool = False) -> dict[str, Any]:
    """``{"a": {"b": [1, {"c": 2}]}}`` -> ``{"a.b.0": 1, "a.b.1.c": 2}``.

    A list of one primitive type stays a value unless ``expand_leaf_lists``; one of mixed
    primitive types is expanded with a warning. Empty mappings and lists vanish. ValueError for
    a key that is no string, and for more than 64 levels (a value that holds itself has no end).
    """
    flat: dict[str, Any] = {}
    _flatten("", nested, flat, expand_leaf_lists, _DEEPEST)
    return flat


def _flatten(prefix: str, value: Any, flat: dict[str, Any], expand: bool, levels: int) -> None:
    if levels < 0:
        raise InvalidInput(f"The attribute {prefix[:80]!r} is nested deeper than {_DEEPEST} levels")
    if isinstance(value, Mapping):
        for key, item in cast(Mapping[Any, Any], value).items():
            if not isinstance(key, str):
                raise InvalidInput(f"The keys of attributes must be strings, not {key!r}")
            key = str(plain_scalar(key))
            _flatten(f"{prefix}.{key}" if prefix else key, item, flat, expand, levels - 1)
    elif isinstance(value, (list, tuple)):
        items = [plain_scalar(item) for item in cast(Sequence[Any], value)]
        kinds: set[type[Any]] = {type(item) for item in items}
        if items and kinds <= set(_PRIMITIVES) and not expand:
            if len(kinds) == 1 and prefix:
                flat[prefix] = items
                return
            if len(kinds) > 1:
                _log.warning("The list in attribute %r mixes types and is stored item by item.", prefix)
        for index, item in enumerate(items):
            _flatten(f"{prefix}.{index}" if prefix else str(index), item, flat, expand, levels - 1)
    else:
        flat[prefix] = plain_scalar(value)


def unflatten_attributes(flat: Mapping[str, Any]) -> Any:
    """The way back; keys that are digits become a list only where they are exactly 0 to n-1.

    Never fails: where one key says that a place holds a value and another that it holds more
    keys, the keys win; below 64 levels the rest of a key stays as it is.
    """
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        node = tree
        *parents, last = key.split(".", _DEEPEST)
        for part in parents:
            child = node.get(part)
            if not isinstance(child, _Node):
                child = node[part] = _Node()
            node = cast("dict[str, Any]", child)
        if not isinstance(node.get(last), _Node):
            node[last] = value
    return _listed(_Node(tree))


class _Node(dict[str, Any]):
    """A level of keys, as distinct from a value that is a mapping."""


def _listed(node: Any) -> Any:
    if not isinstance(node, _Node):
        return node
    mapping = {key: _listed(value) for key, value in node.items()}
    if mapping and all(str(index) in mapping for index in range(len(mapping))):
        return [mapping[str(index)] for index in range(len(mapping))]
    return mapping


def filter_attributes(attributes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The attributes whose key is ``prefix`` or continues it behind a dot."""
    return {key: value for key, value in attributes.items() if key == prefix or key.startswith(prefix + ".")}


def filter_and_unflatten_attributes(attributes: Mapping[str, Any], prefix: str) -> Any:
    """What is stored below ``prefix``, nested again; ValueError when a key equals the prefix."""
    below = filter_attributes(attributes, prefix)
    if prefix in below:
        raise InvalidInput(f"The attribute {prefix!r} has a value of its own")
    return unflatten_attributes({key[len(prefix) + 1 :]: value for key, value in below.items()})


def sanitize_attribute_value(value: Any, force: bool = True) -> AttributeValue:
    """``value`` if a span can hold it; else its JSON text (``force``), or ValueError.

    A list of int and float becomes one of float. With ``force`` nothing fails: what JSON cannot
    hold is written with ``str``, and what cannot be written at all by its type.
    """
    given: Any = plain_scalar(value)
    if type(given) in _PRIMITIVES:
        return given
    if isinstance(value, (list, tuple)):
        try:
            return sanitize_list_attribute_sanity(list(cast(Sequence[Any], given)))
        except ValueError:
            pass
    if not force:
        raise InvalidInput(f"A span cannot hold this value: {given!r}")
    try:
        return json.dumps(given, default=_written)
    except Exception as error:
        # It may be a value that holds itself, or any error of somebody's __str__.
        return f"<{type(given).__name__} that cannot be written: {type(error).__name__}>"


def _written(value: Any) -> Any:
    """For JSON: what stands for a plain value as that, the rest as text."""
    try:
        return plain_data(value)
    except TypeError:
        return str(value)


def sanitize_list_attribute_sanity(values: Sequence[Any]) -> list[str] | list[bool] | list[int] | list[float]:
    """A list of one type: all str, all bool, all int, or numbers as float. ValueError for any other."""
    plain: list[Any] = [plain_scalar(item) for item in values]
    for kind in (str, bool, int):
        if all(type(item) is kind for item in plain):
            return plain
    if all(type(item) in (int, float) for item in plain):
        return [float(item) for item in plain]
    raise InvalidInput("A span can only hold lists of str, of bool, or of numbers")


def sanitize_attributes(attributes: Mapping[str, Any], force: bool = True) -> Attributes:
    """:func:`sanitize_attribute_value` of every value."""
    return {key: sanitize_attribute_value(value, force) for key, value in attributes.items()}


def check_attributes_sanity(attributes: Mapping[str, Any]) -> None:
    """ValueError unless a span can hold all values as they are."""
    for key, value in attributes.items():
        try:
            sanitize_attribute_value(value, force=False)
        except ValueError as error:
            raise InvalidInput(f"Attribute {key!r}: {error}") from None


def format_exception_attributes(exception: BaseException) -> Attributes:
    """The attributes that describe an exception, with its traceback."""
    return {
        "exception.type": type(exception).__name__,
        "exception.message": message_of(exception),
        "exception.escaped": True,
        "exception.stacktrace": "".join(
            traceback.format_exception(type(exception), exception, exception.__traceback__)
        ),
    }


def full_qualified_name(kind: type[Any]) -> str:
    """``module.Class``; the bare name for builtins."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
