"""Messages and objects in spans of every release."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.model.span import Span


def span(attributes: dict[str, Any], name: str = "agentlightning.annotation") -> Span:
    return Span.from_attributes(attributes=attributes, name=name)


def test_messages_and_objects_of_older_releases_are_read() -> None:
    assert agl.get_message_value(span({"message": "hello"}, "agentlightning.message")) == "hello"
    assert agl.get_message_value(span({"message": "hello"}, "something.else")) is None
    assert agl.get_object_value(span({"object": '{"a": 1}'}, "agentlightning.object")) == {"a": 1}
    assert agl.get_object_value(span({"object": '{"a": 1}'}, "something.else")) is None


class Level(IntEnum):
    HIGH = 3


class Colour(str, Enum):
    RED = "red"


class Number(float):
    """As numpy's float64 is: a float, and no builtin one."""

    def __str__(self) -> str:
        return "Number(...)"


@pytest.mark.parametrize(("value", "back"), [(Level.HIGH, 3), (Colour.RED, "red"), (Number(0.1), 0.1)])
def test_subclasses_of_primitives_come_back_as_primitives(value: Any, back: Any) -> None:
    read = agl.get_object_value(agl.emit_object(value, propagate=False))
    assert read == back and type(read) is type(back)


@pytest.mark.parametrize("literal", [["1"], "x" * 9, "1.2.3", 7.5])
@pytest.mark.parametrize("kind", ["int", "float", "bytes", "set", None])
def test_a_literal_that_cannot_be_read_is_one_error(literal: Any, kind: str | None) -> None:
    attributes = {"agentlightning.object.literal": literal, **({"agentlightning.object.type": kind} if kind else {})}
    try:
        assert agl.get_object_value(span(attributes)) is not None
    except RuntimeError as error:
        assert str(error)
