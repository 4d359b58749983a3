"""OTLP: spans of any exporter, protobuf and JSON, zipped or not; a bad group costs no other."""

from __future__ import annotations

import gzip
import threading

import aiohttp
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from agentlightning.core.model.store_interface import LightningStore
from agentlightning.rest.server import otlp

PROTOBUF = {"Content-Type": "application/x-protobuf"}


def export(*groups: tuple[str, str, int]) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    for rollout_id, attempt_id, count in groups:
        group = request.resource_spans.add()
        for key, value in (("agentlightning.rollout_id", rollout_id), ("agentlightning.attempt_id", attempt_id)):
            pair = group.resource.attributes.add()
            pair.key, pair.value.string_value = key, value
        scope = group.scope_spans.add()
        for number in range(count):
            span = scope.spans.add()
            span.name, span.trace_id, span.span_id = "work", b"\x01" * 16, bytes([number + 1] * 8)
            span.start_time_unix_nano = 1_500_000_000
            span.status.code, span.kind = Status.STATUS_CODE_OK, Span.SPAN_KIND_CLIENT
            pair = span.attributes.add()
            pair.key = "nested"
            pair.value.kvlist_value.values.add().key = "k"
            pair = span.attributes.add()
            pair.key, pair.value.bytes_value = "bytes", b"\xab"
    return request


@pytest.fixture
async def attempt(store: LightningStore) -> tuple[str, str]:
    started = await store.start_rollout(1)
    return started.rollout_id, started.attempt.attempt_id


@pytest.mark.parametrize("zipped", [False, True])
async def test_protobuf(
    http: aiohttp.ClientSession, store: LightningStore, attempt: tuple[str, str], zipped: bool
) -> None:
    body = export((*attempt, 2)).SerializeToString()
    headers = {**PROTOBUF, **({"Content-Encoding": "gzip"} if zipped else {})}
    async with http.post("/v1/traces", data=gzip.compress(body) if zipped else body, headers=headers) as answer:
        assert answer.status == 200 and await answer.read() == b""
        assert answer.headers.get("Content-Encoding") == "gzip"
    spans = await store.query_spans(attempt[0])
    assert [span.sequence_id for span in spans] == [1, 2]
    assert (spans[0].trace_id, spans[0].span_id, spans[0].parent_id) == ("01" * 16, "01" * 8, None)
    assert spans[0].start_time == 1.5 and spans[0].end_time is None
    assert spans[0].attributes == {"nested": '{"k": null}', "bytes": "ab"}
    assert spans[0].status.status_code == "OK"


async def test_json(http: aiohttp.ClientSession, store: LightningStore, attempt: tuple[str, str]) -> None:
    value = json_format.MessageToDict(export((*attempt, 1)))
    span = value["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span["traceId"], span["spanId"] = "0a" * 16, "0b" * 8
    async with http.post("/v1/traces", json=value) as answer:
        assert answer.status == 200 and await answer.json() == {}
    (stored,) = await store.query_spans(attempt[0])
    assert (stored.trace_id, stored.span_id) == ("0a" * 16, "0b" * 8)


async def test_a_bad_group_does_not_lose_the_others(
    http: aiohttp.ClientSession, store: LightningStore, attempt: tuple[str, str]
) -> None:
    request = export(("", attempt[1], 1), ("ro-none", "at-none", 2), (*attempt, 3))
    async with http.post("/v1/traces", data=request.SerializeToString(), headers=PROTOBUF) as answer:
        assert answer.status == 200
        partial = ExportTraceServiceResponse.FromString(await answer.read()).partial_success
    assert partial.rejected_spans == 3 and "ro-none" in partial.error_message
    assert (await store.query_spans(attempt[0])).total == 3


async def test_what_cannot_be_read_is_400_in_the_callers_format(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/traces", data=b"\xff\xff", headers=PROTOBUF) as answer:
        assert answer.status == 400 and answer.content_type == "application/x-protobuf"
        assert b"cannot be read" in await answer.read()
    async with http.post("/v1/traces", data=b"x", headers={"Content-Type": "text/plain"}) as answer:
        assert answer.status == 400
    async with http.post("/v1/traces", data=b"{", headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 400 and (await answer.json())["message"]
    for value in (b"[]", b"5", b"null"):
        async with http.post("/v1/traces", data=value, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 400 and "no JSON object" in (await answer.json())["message"]
    async with http.post("/v1/traces", data=b"x", headers={**PROTOBUF, "Content-Encoding": "br"}) as answer:
        assert answer.status == 400 and b"The content encoding is gzip or none, not 'br'" in await answer.read()
    async with http.post("/v1/traces", data=b"", headers=PROTOBUF) as answer:
        assert answer.status == 200
    for path in ("/v1/metrics", "/v1/logs"):
        async with http.post(path, data=b"") as answer:
            assert answer.status == 501


async def test_a_gzip_bomb_is_refused(http: aiohttp.ClientSession) -> None:
    bomb = gzip.compress(bytes(200_000_000), 1)
    async with http.post("/v1/traces", data=bomb, headers={**PROTOBUF, "Content-Encoding": "gzip"}) as answer:
        assert answer.status == 413


async def test_a_gzip_body_of_several_members_is_read_to_its_end(
    http: aiohttp.ClientSession, store: LightningStore, attempt: tuple[str, str]
) -> None:
    body = export((*attempt, 3)).SerializeToString()
    zipped = gzip.compress(body[:50]) + gzip.compress(body[50:])
    headers = {**PROTOBUF, "Content-Encoding": "gzip"}
    async with http.post("/v1/traces", data=zipped, headers=headers) as answer:
        assert answer.status == 200
    assert (await store.query_spans(attempt[0])).total == 3
    async with http.post("/v1/traces", data=zipped + b"junk", headers=headers) as answer:
        assert answer.status == 400


@pytest.mark.parametrize("id", ["absent", "", "0" * 16, "0" * 32])
async def test_spans_without_ids_are_kept_all_and_an_export_sent_again_changes_nothing(
    http: aiohttp.ClientSession, store: LightningStore, attempt: tuple[str, str], id: str
) -> None:
    value = json_format.MessageToDict(export((*attempt, 3)))
    spans = value["resourceSpans"][0]["scopeSpans"][0]["spans"]
    for span in spans:  # all of them say the same
        del span["spanId"], span["traceId"]
        span.update({} if id == "absent" else {"spanId": id[:16], "traceId": id, "parentSpanId": id[:16]})
    for _ in range(2):
        async with http.post("/v1/traces", json=value) as answer:
            assert answer.status == 200 and await answer.json() == {}
    stored = await store.query_spans(attempt[0])
    assert len({one.span_id for one in stored}) == stored.total == 3 and all(one.parent_id is None for one in stored)
    assert all(one.span_id.strip("0") and one.trace_id.strip("0") and len(one.span_id) == 16 for one in stored)


async def test_one_span_that_cannot_be_read_or_stored_costs_no_other(
    http: aiohttp.ClientSession, store: LightningStore, attempt: tuple[str, str]
) -> None:
    value = json_format.MessageToDict(export((*attempt, 7)))
    spans = value["resourceSpans"][0]["scopeSpans"][0]["spans"]
    for number, span in enumerate(spans):
        span.update(spanId=f"{number + 1:016x}", traceId="0a" * 16, name=f"span {number}")
    spans[1]["spanId"] = "no hexadecimal digits"
    spans[2]["attributes"].append({"key": "agentlightning.reward.0.value", "value": {"doubleValue": "NaN"}})
    spans[3] = 7
    spans[4]["attributes"].append({"key": "text", "value": {"stringValue": "cut \ud83d"}})
    async with http.post("/v1/traces", json=value) as answer:
        partial = (await answer.json())["partialSuccess"]
    assert answer.status == 200 and int(partial["rejectedSpans"]) == 3
    assert "The reward of rollout" in partial["errorMessage"] and "hexadecimal" in partial["errorMessage"]
    stored = {one.name: one for one in await store.query_spans(attempt[0])}
    assert list(stored) == ["span 0", "span 4", "span 5", "span 6"]
    assert stored["span 4"].attributes["text"] == "cut \ufffd"


async def test_one_text_that_is_no_utf_8_costs_no_other_span(
    http: aiohttp.ClientSession, store: LightningStore, attempt: tuple[str, str]
) -> None:
    request = export((*attempt, 3), (*attempt, 1))
    for number, group in enumerate(request.resource_spans):
        for one in group.scope_spans[0].spans:
            one.trace_id = bytes([number + 1]) * 16
    request.resource_spans[1].scope_spans[0].spans[0].span_id = b"\x09" * 8
    spoiled = request.resource_spans[0].scope_spans[0].spans[1]
    spoiled.name = "spoiled"
    body = request.SerializeToString().replace(b"spoiled", b"spoil\xed\xa0")
    async with http.post("/v1/traces", data=body, headers=PROTOBUF) as answer:
        partial = ExportTraceServiceResponse.FromString(await answer.read()).partial_success
    assert answer.status == 200 and partial.rejected_spans == 1
    assert (await store.query_spans(attempt[0])).total == 3
    async with http.post("/v1/traces", data=body[:-3], headers=PROTOBUF) as answer:
        assert answer.status == 400


async def test_what_is_dropped_of_one_request_is_few_lines(
    http: aiohttp.ClientSession, store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    many = export(*[(f"ro-{number}", "at-1", 1) for number in range(300)], ("", "", 100))
    async with http.post("/v1/traces", data=many.SerializeToString(), headers=PROTOBUF) as answer:
        found = ExportTraceServiceResponse.FromString(await answer.read()).partial_success
    assert answer.status == 200 and found.rejected_spans == 400
    lines = [line for line in caplog.messages if "dropped" in line or "more" in line]
    assert len(lines) == 11 and lines[0].startswith("100 spans were dropped: span 'work' has no")
    assert lines[-1] == "291 more complaints about spans of the same request"


async def test_a_small_zipped_body_is_unpacked_beside_the_event_loop(
    http: aiohttp.ClientSession, store: LightningStore, attempt: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    unpack = otlp.gunzip
    monkeypatch.setattr(otlp, "gunzip", lambda *args: threads.add(threading.current_thread().name) or unpack(*args))
    body = gzip.compress(export((*attempt, 1)).SerializeToString())
    async with http.post("/v1/traces", data=body, headers={**PROTOBUF, "Content-Encoding": "gzip"}) as answer:
        assert answer.status == 200
    assert len(threads) == 1 and not threads & {"MainThread", "agl-store"}
