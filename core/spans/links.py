"""Tags on spans, and links from a span to others by what those carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from ..errors import InvalidInput
from ..model.semconv import LightningSpanAttributes, LinkAttributes, LinkPydanticModel
from ..model.span import Attributes
from .attributes import filter_attributes, unflatten_attributes

__all__ = [
    "extract_links_from_attributes",
    "extract_tags_from_attributes",
    "make_link_attributes",
    "make_tag_attributes",
    "query_linked_spans",
]

S = TypeVar("S")

_TAG, _LINK = LightningSpanAttributes.TAG.value, LightningSpanAttributes.LINK.value
_KEY, _VALUE = LinkAttributes.KEY_MATCH.value, LinkAttributes.VALUE_MATCH.value


def make_tag_attributes(tags: Sequence[str]) -> Attributes:
    """The attributes that hold the tags, in their order."""
    return {f"{_TAG}.{index}": tag for index, tag in enumerate(tags)}


def extract_tags_from_attributes(attributes: Mapping[str, Any]) -> list[str]:
    """The tags in their order; what is no text is left out."""
    return [tag for tag in _items(attributes, _TAG) if isinstance(tag, str)]


def make_link_attributes(links: Mapping[str, str]) -> Attributes:
    """The attributes of links: key -> the value that the linked span has there.

    The keys ``trace_id`` and ``span_id`` mean the ids of the span, any other one an attribute.
    ValueError for a value that is no string.
    """
    flat: Attributes = {}
    for index, (key, value) in enumerate(links.items()):
        if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"The link {key!r} must match a string, not {value!r}")
        flat[f"{_LINK}.{index}.{_KEY}"] = key
        flat[f"{_LINK}.{index}.{_VALUE}"] = value
    return flat


def extract_links_from_attributes(attributes: Mapping[str, Any]) -> list[LinkPydanticModel]:
    """The links in their order; one without key or value is left out."""
    links: list[LinkPydanticModel] = []
    for item in _items(attributes, _LINK):
        fields = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        key, value = fields.get(_KEY), fields.get(_VALUE)
        if isinstance(key, str) and isinstance(value, str):
            links.append(LinkPydanticModel(key_match=key, value_match=value))
    return links


def query_linked_spans(spans: Sequence[S], links: Sequence[LinkPydanticModel]) -> list[S]:
    """The spans that every link matches exactly, in their order; all of them for no links."""
    return [span for span in spans if all(_matches(span, link) for link in links)]


def _matches(span: Any, link: LinkPydanticModel) -> bool:
    if link.key_match in ("trace_id", "span_id"):
        return _id(span, link.key_match) == link.value_match
    attributes = cast("Mapping[str, Any]", span.attributes or {})
    return attributes.get(link.key_match) == link.value_match


def _id(span: Any, name: str) -> str | None:
    own = getattr(span, name, None)
    if isinstance(own, str):
        return own
    # OpenTelemetry's own spans have their ids as numbers, in their context.
    context = getattr(span, "context", None)
    number = getattr(context, name, None)
    return f"{number:0{32 if name == 'trace_id' else 16}x}" if isinstance(number, int) else None


def _items(attributes: Mapping[str, Any], prefix: str) -> list[Any]:
    """What stands below ``prefix`` by number, in numeric order, whatever is missing between."""
    below = {
        key[len(prefix) + 1 :]: value for key, value in filter_attributes(attributes, prefix).items() if key != prefix
    }
    tree = unflatten_attributes(below)
    if isinstance(tree, list):
        return cast("list[Any]", tree)
    items = cast("dict[str, Any]", tree).items()
    numbered = [(int(key), value) for key, value in items if key.isascii() and key.isdigit() and len(key) < 10]
    return [value for _, value in sorted(numbered, key=lambda pair: pair[0])]
