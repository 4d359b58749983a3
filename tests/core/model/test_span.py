"""Spans: conversion from OpenTelemetry, construction by hand, and what an attribute may hold."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from pydantic import ValidationError

from agentlightning.core.model import span as spans
from agentlightning.core.model.span import (
    Event,
    Link,
    OtelResource,
    Span,
    SpanContext,
    SpanCoreFields,
    TraceStatus,
    convert_timestamp,
)

PUBLIC = """AttributeValue Attributes TraceState SpanContext TraceStatus Event Link OtelResource Span SpanNames
SpanAttributeNames SpanLike StatusCode SpanCoreFields SpanRecordingContext""".split()
REQUIRED = set(Span.model_fields)


def recorded(**options: Any) -> tuple[ReadableSpan, ReadableSpan]:
    """A child span with everything a span can have, and its parent."""
    resource = Resource({"service.name": "svc"}, "http://schema")
    tracer = TracerProvider(resource=resource, shutdown_on_exit=False).get_tracer("scope", "1.2")
    with tracer.start_as_current_span("outer") as outer:
        link = trace.Link(outer.get_span_context(), {"why": "because"})
        with tracer.start_as_current_span("inner", links=[link], **options) as inner:
            inner.add_event("happened", {"count": 2}, timestamp=1_500_000_000_000_000_000)
            inner.set_status(trace.Status(trace.StatusCode.ERROR, "broken"))
    assert isinstance(inner, ReadableSpan) and isinstance(outer, ReadableSpan)
    return inner, outer


def test_every_public_name_is_exported() -> None:
    assert set(PUBLIC) <= set(spans.__all__)
    assert all(hasattr(spans, name) for name in spans.__all__)


def test_an_opentelemetry_span_is_copied_field_by_field() -> None:
    inner, outer = recorded(kind=trace.SpanKind.CLIENT, attributes={"text": "x", "numbers": (1, 2), "flag": True})
    span = Span.from_opentelemetry(inner, "ro-1", "at-1", 7)
    ours, theirs = inner.get_span_context(), outer.get_span_context()
    assert ours is not None and theirs is not None and inner.start_time is not None and inner.end_time is not None
    parent_context = SpanContext(
        trace_id=f"{theirs.trace_id:032x}", span_id=f"{theirs.span_id:016x}", is_remote=False, trace_state={}
    )
    assert (span.rollout_id, span.attempt_id, span.sequence_id) == ("ro-1", "at-1", 7)
    assert (span.trace_id, span.span_id) == (f"{ours.trace_id:032x}", f"{ours.span_id:016x}")
    assert (span.parent_id, span.parent) == (parent_context.span_id, parent_context)
    assert (span.name, span.status) == ("inner", TraceStatus(status_code="ERROR", description="broken"))
    assert span.attributes == {"text": "x", "numbers": [1, 2], "flag": True}
    assert span.events == [Event(name="happened", attributes={"count": 2}, timestamp=1.5e9)]
    assert span.links == [Link(context=parent_context, attributes={"why": "because"})]
    assert (span.start_time, span.end_time) == (inner.start_time / 1e9, inner.end_time / 1e9)
    assert span.resource == OtelResource(attributes={"service.name": "svc"}, schema_url="http://schema")
    assert span.model_extra == {"kind": "CLIENT", "instrumentation_scope": {"name": "scope", "version": "1.2"}}


def test_a_converted_span_comes_back_from_json_unchanged() -> None:
    span = Span.from_opentelemetry(recorded(attributes={"numbers": (1, 2), "none": []})[0], "r", "a", 1)
    assert Span.model_validate_json(span.model_dump_json()) == span
    assert Span.model_validate(json.loads(json.dumps(span.model_dump()))) == span
    assert REQUIRED <= set(json.loads(span.model_dump_json()))


def test_a_root_span_has_no_parent_and_a_span_without_context_has_ids_of_zeros() -> None:
    root = Span.from_opentelemetry(recorded()[1], "r", "a", 1)
    assert (root.parent_id, root.parent) == (None, None)
    blank = Span.from_opentelemetry(ReadableSpan(name="blank"), "r", "a", 1)
    assert (blank.trace_id, blank.span_id, blank.context) == ("0" * 32, "0" * 16, None)
    assert (blank.start_time, blank.end_time, blank.events, blank.links) == (None, None, [], [])


def test_one_odd_attribute_does_not_cost_the_span() -> None:
    inner, _ = recorded()
    odd = SimpleNamespace(
        **{name: getattr(inner, name) for name in ("context", "parent", "name", "status", "events", "links")},
        start_time=inner.start_time,
        end_time=inner.end_time,
        resource=inner.resource,
        attributes={"bytes": b"\x01\xff", "map": {"a": (1, None)}, "mixed": [1, "a"], "none": None, "sum": [1, 0.5]},
    )
    span = Span.from_opentelemetry(odd, "r", "a", 1)  # pyright: ignore[reportArgumentType]
    assert span.attributes == {"bytes": "01ff", "map": '{"a": [1, null]}', "mixed": '[1, "a"]', "sum": [1.0, 0.5]}


def test_what_a_subclass_adds_is_kept_as_json_and_never_shadows_a_field() -> None:
    class Custom(trace.Status):
        pass

    status = Custom(trace.StatusCode.OK)
    status.__dict__.update(_origin={"at": (1, 2)}, model_dump="shadow", _status_code=trace.StatusCode.OK, unset=None)
    part = TraceStatus.from_opentelemetry(status)
    assert part.model_extra == {"origin": {"at": [1, 2]}}
    assert part.model_dump()["status_code"] == "OK"


def test_nothing_is_shared_with_the_source() -> None:
    source = SimpleNamespace(name="e", attributes={"list": ["a"]}, timestamp=None)
    event = Event.from_opentelemetry(source)
    source.attributes["list"].append("b")
    assert event.attributes == {"list": ["a"]}


class TestFromAttributes:
    def test_what_is_left_out_gets_its_default(self) -> None:
        span = Span.from_attributes(attributes={"a": 1})
        assert (span.rollout_id, span.attempt_id, span.sequence_id) == ("", "", 0)
        assert (span.name, span.status.status_code) == ("agentlightning.virtual", "OK")
        assert (span.start_time, span.end_time, span.parent_id, span.parent) == (None, None, None, None)
        assert (span.events, span.links) == ([], [])
        assert span.resource == OtelResource(attributes={}, schema_url="")
        assert (len(span.trace_id), len(span.span_id)) == (32, 16)
        assert span.context == SpanContext(
            trace_id=span.trace_id, span_id=span.span_id, is_remote=False, trace_state={}
        )
        assert span.span_id != Span.from_attributes(attributes={}).span_id

    def test_a_parent_is_in_the_same_trace(self) -> None:
        span = Span.from_attributes(attributes={}, trace_id="t", span_id="s", parent_id="p")
        assert span.parent == SpanContext(trace_id="t", span_id="p", is_remote=False, trace_state={})

    def test_core_fields_are_taken_over_and_start_now_if_they_do_not_say(self) -> None:
        status = TraceStatus(status_code="ERROR", description="d")
        core = SpanCoreFields(name="n", status=status, attributes={"a": 1}, start_time=1.0, end_time=2.0)
        span = Span.from_core_fields(core, rollout_id="r", attempt_id="at", sequence_id=3)
        assert (span.name, span.status, span.attributes) == ("n", status, {"a": 1})
        assert (span.start_time, span.end_time, span.rollout_id, span.sequence_id) == (1.0, 2.0, "r", 3)
        before = time.time()
        started = Span.from_core_fields(core.model_copy(update={"start_time": None})).start_time
        assert started is not None and before <= started <= time.time()
        assert Span.from_core_fields(core.model_copy(update={"start_time": 0.0})).start_time == 0.0


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_every_field_has_to_be_there_even_where_it_may_be_none(missing: str) -> None:
    fields = Span.from_attributes(attributes={}).model_dump()
    del fields[missing]
    with pytest.raises(ValidationError, match=missing):
        Span.model_validate(fields)


@pytest.mark.parametrize("value", [None, {"a": 1}, b"x", [1, "a"], [True, 1], [[1]], [None], object()])
def test_a_value_that_no_attribute_can_hold_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match="'the.key'"):
        Span.from_attributes(attributes={"the.key": value})


primitives: tuple[st.SearchStrategy[Any], ...] = (
    st.text(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
)
values = st.one_of(*primitives, *(st.lists(kind, max_size=4) for kind in primitives))


@given(attributes=st.dictionaries(st.text(), values, max_size=5))
def test_attributes_come_back_from_json_with_their_values_and_types(attributes: dict[str, Any]) -> None:
    span = Span.from_attributes(attributes=attributes)
    again = Span.model_validate_json(span.model_dump_json())
    assert again == span
    assert [type(value) for value in again.attributes.values()] == [type(value) for value in attributes.values()]


def test_the_callers_attributes_are_neither_changed_nor_shared() -> None:
    mine: dict[str, Any] = {"pair": (1, 2), "list": [1, 0.5]}
    span = Span.from_attributes(attributes=mine)
    assert (mine, span.attributes) == ({"pair": (1, 2), "list": [1, 0.5]}, {"pair": [1, 2], "list": [1.0, 0.5]})
    mine["list"].append(2)
    assert span.attributes["list"] == [1.0, 0.5]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_finite_number_survives_json(value: float) -> None:
    core = SpanCoreFields(
        name="n", status=TraceStatus(status_code="OK"), attributes={"r": value}, start_time=None, end_time=None
    )
    span = Span.from_attributes(attributes={"r": value}, resource=OtelResource(attributes={"r": value}, schema_url=""))
    for text, cls in ((core.model_dump_json(), SpanCoreFields), (span.model_dump_json(), Span)):
        again = cls.model_validate_json(text).attributes["r"]
        assert isinstance(again, float) and repr(again) == repr(value)


def test_unknown_fields_are_kept() -> None:
    fields = {**Span.from_attributes(attributes={}).model_dump(), "later": {"a": [1]}}
    assert Span.model_validate_json(Span.model_validate(fields).model_dump_json()).model_extra == {"later": {"a": [1]}}


def test_a_span_prints_as_the_tutorial_shows_it() -> None:
    assert str(Span.from_attributes(attributes={"value": 0.95}, name="reward")) == (
        "Span(name='reward', attributes={'value': 0.95})"
    )
    assert "trace_id=" in repr(Span.from_attributes(attributes={}))


@pytest.mark.parametrize(
    ("given_time", "seconds"),
    [(None, None), (0, None), (1.5, 1.5), (1e12, 1e12), (1_500_000_000_000_000_000, 1.5e9)],
)
def test_times_are_seconds_whether_they_came_in_nanoseconds_or_not(given_time: Any, seconds: float | None) -> None:
    assert convert_timestamp(given_time) == seconds


def test_opentelemetry_is_not_imported() -> None:
    code = (
        "import sys, agentlightning.core.model.span; sys.exit(any(m.split('.')[0] == 'opentelemetry' for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_constructed_span_dumps_like_a_validated_one() -> None:
    span = Span.from_attributes(attributes={"a": 1})
    fields: dict[str, Any] = {name: getattr(span, name) for name in Span.model_fields}
    build: Callable[..., Span] = Span.model_construct
    assert build(**fields).model_dump_json() == span.model_dump_json()


class LikeASpan:
    """What wrappers and samplers pass on: the API's method instead of the SDK's attribute, and little else."""

    name = "work"

    def get_span_context(self) -> Any:
        return SimpleNamespace(trace_id=1, span_id=2, is_remote=False, trace_state=None)


def test_whatever_reads_like_an_opentelemetry_span_is_taken() -> None:
    span = Span.from_opentelemetry(LikeASpan(), "ro", "at", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert (span.trace_id, span.span_id, span.name) == (f"{1:032x}", f"{2:016x}", "work")
    assert (span.status.status_code, span.events, span.attributes, span.start_time) == ("UNSET", [], {}, None)
    assert spans.reads_like_a_span(LikeASpan()) and not spans.reads_like_a_span(object())
