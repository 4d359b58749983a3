"""The spans of the OpenAI client in the names that algorithms read; the one file that knows both."""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

from ...core.model.span import Attributes, Span, SpanContext, TraceStatus
from .call_span import SCOPE

__all__ = ["SCOPE_PREFIXES", "SPAN_NAMES", "normalised"]

SCOPE_PREFIXES = (SCOPE, "opentelemetry.instrumentation.openai")
"""Spans of instrumentation scopes with these prefixes are translated; the second written against version 0.62."""

SPAN_NAMES = {
    "openai.chat": "openai.chat.completion",
    "openai.completion": "openai.completion",
    "openai.embeddings": "openai.embeddings",
    "openai.response": "openai.responses.create",
}
_REQUEST_TYPES = {
    "openai.chat": "chat",
    "openai.completion": "completion",
    "openai.embeddings": "embedding",
    "openai.response": "chat",
}
_COPIES = {
    "gen_ai.usage.input_tokens": "gen_ai.usage.prompt_tokens",
    "gen_ai.usage.output_tokens": "gen_ai.usage.completion_tokens",
    "gen_ai.is_streaming": "gen_ai.request.streaming",
    "gen_ai.openai.response.system_fingerprint": "gen_ai.openai.system_fingerprint",
    "gen_ai.headers": "gen_ai.request.headers",
}
# The API's words for the instrumentation's.
_FINISH_REASONS = {"tool_call": "tool_calls"}
# One event per streamed piece, without its text: counted and timed below, then left out.
_CHUNK = "gen_ai.content.completion.chunk"


def normalised(span: Span) -> list[Span]:
    """``span`` with the older names added; tool calls of the answer come before it as child spans.

    Attributes that are there are kept as they are. A span of any other source comes back alone
    and unchanged. The same span gives the same result every time, ids included.
    """
    scope = getattr(span, "instrumentation_scope", None)
    name = str(cast("dict[str, Any]", scope).get("name", "")) if isinstance(scope, dict) else ""
    if not name.startswith(SCOPE_PREFIXES) or span.name not in SPAN_NAMES:
        return [span]
    added: Attributes = {"gen_ai.system": "OpenAI", "gen_ai.request.type": _REQUEST_TYPES[span.name]}
    for source, target in _COPIES.items():
        if source in span.attributes:
            added[target] = span.attributes[source]
    added.update(_prompts(_messages(span, "gen_ai.input.messages")))
    answers = _messages(span, "gen_ai.output.messages")
    calls = [call for message in answers for call in _tool_calls(message)]
    added.update(_completions(answers))
    added.update(_tools(span))
    added.update(_stream(span))
    fields: dict[str, Any] = {
        "name": SPAN_NAMES[span.name],
        "attributes": {**added, **span.attributes},
        "events": [event for event in span.events if event.name != _CHUNK],
    }
    if span.status.status_code == "UNSET":
        fields["status"] = TraceStatus(status_code="OK")
    parent = span.model_copy(update=fields)
    return [*(_tool_span(parent, index, call) for index, call in enumerate(calls)), parent]


def _messages(span: Span, key: str) -> list[dict[str, Any]]:
    text = span.attributes.get(key)
    if not isinstance(text, str):
        return []
    try:
        value = json.loads(text)
    except ValueError:
        return []
    if not isinstance(value, list):
        return []
    return [cast("dict[str, Any]", item) for item in cast("list[Any]", value) if isinstance(item, dict)]


def _parts(message: dict[str, Any], *kinds: str) -> list[dict[str, Any]]:
    parts = message.get("parts")
    if not isinstance(parts, list):
        return []
    found = [cast("dict[str, Any]", part) for part in cast("list[Any]", parts) if isinstance(part, dict)]
    return [part for part in found if part.get("type") in kinds] if kinds else found


def _content(message: dict[str, Any]) -> str | None:
    """The text of a message; the JSON of its parts where it has more than text; None without any."""
    parts = [part for part in _parts(message) if part.get("type") not in ("tool_call", "reasoning")]
    if not parts:
        return None
    if all(part.get("type") == "text" for part in parts):
        return "".join(str(part.get("content", "")) for part in parts)
    if all(part.get("type") == "tool_call_response" for part in parts):
        return "".join(_text(part.get("response", "")) for part in parts)
    return json.dumps([_api_part(part) for part in parts])


def _api_part(part: dict[str, Any]) -> dict[str, Any]:
    if part.get("type") == "text":
        return {"type": "text", "text": part.get("content", "")}
    if part.get("type") == "uri" and part.get("modality") == "image":
        return {"type": "image_url", "image_url": {"url": part.get("uri", "")}}
    if part.get("type") == "blob" and part.get("modality") == "image":
        url = f"data:{part.get('mime_type')};base64,{part.get('content')}"
        return {"type": "image_url", "image_url": {"url": url}}
    return part


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _tool_calls(message: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "id": str(part.get("id") or ""),
            "name": str(part.get("name") or ""),
            "arguments": _text(part.get("arguments")) if part.get("arguments") is not None else "",
        }
        for part in _parts(message, "tool_call")
    ]


def _prompts(messages: list[dict[str, Any]]) -> Attributes:
    flat: Attributes = {}
    for index, message in enumerate(messages):
        prefix = f"gen_ai.prompt.{index}"
        flat[f"{prefix}.role"] = str(message.get("role", "user"))
        content = _content(message)
        if content is not None:
            flat[f"{prefix}.content"] = content
        for part in _parts(message, "tool_call_response"):
            flat[f"{prefix}.tool_call_id"] = str(part.get("id") or "")
        _add_calls(flat, prefix, message)
    return flat


def _completions(messages: list[dict[str, Any]]) -> Attributes:
    flat: Attributes = {}
    for index, message in enumerate(messages):
        prefix = f"gen_ai.completion.{index}"
        flat[f"{prefix}.role"] = str(message.get("role", "assistant"))
        content = _content(message)
        if content is not None:
            flat[f"{prefix}.content"] = content
        reason = str(message.get("finish_reason") or "")
        if reason:
            flat[f"{prefix}.finish_reason"] = _FINISH_REASONS.get(reason, reason)
        for part in _parts(message, "refusal"):
            flat[f"{prefix}.refusal"] = str(part.get("content", ""))
        _add_calls(flat, prefix, message)
    return flat


def _add_calls(flat: Attributes, prefix: str, message: dict[str, Any]) -> None:
    for number, call in enumerate(_tool_calls(message)):
        flat.update({f"{prefix}.tool_calls.{number}.{field}": value for field, value in call.items()})


def _tools(span: Span) -> Attributes:
    flat: Attributes = {}
    for index, tool in enumerate(_messages(span, "gen_ai.tool.definitions")):
        prefix = f"gen_ai.request.functions.{index}"
        for field in ("name", "description"):
            if tool.get(field):
                flat[f"{prefix}.{field}"] = str(tool[field])
        if tool.get("parameters"):
            flat[f"{prefix}.parameters"] = json.dumps(tool["parameters"])
    return flat


def _stream(span: Span) -> Attributes:
    """Number of pieces, and seconds to the first and from there to the end."""
    times = [event.timestamp for event in span.events if event.name == _CHUNK and event.timestamp is not None]
    if not times or span.start_time is None:
        return {}
    end = span.end_time if span.end_time is not None else times[-1]
    return {
        "llm.openai.stream.chunk_count": len(times),
        "gen_ai.streaming.time_to_first_token": max(0.0, times[0] - span.start_time),
        "gen_ai.streaming.time_to_generate": max(0.0, end - times[0]),
    }


def _tool_span(parent: Span, index: int, call: dict[str, str]) -> Span:
    digest = hashlib.sha1(f"{parent.trace_id}{parent.span_id}{index}".encode(), usedforsecurity=False)
    span_id = digest.hexdigest()[:16]
    return Span(
        rollout_id=parent.rollout_id,
        attempt_id=parent.attempt_id,
        sequence_id=parent.sequence_id,
        trace_id=parent.trace_id,
        span_id=span_id,
        parent_id=parent.span_id,
        name=f"tool_call.{call['name']}",
        status=TraceStatus(status_code="OK"),
        attributes={
            "agentops.span.kind": "AgentOpsSpanKindValues.TOOL",
            "tool.name": call["name"],
            "tool.parameters": call["arguments"],
            "tool.call.id": call["id"],
            "tool.call.type": "function",
        },
        events=[],
        links=[],
        start_time=parent.end_time,
        end_time=parent.end_time,
        context=SpanContext(trace_id=parent.trace_id, span_id=span_id, is_remote=False, trace_state={}),
        parent=parent.context,
        resource=parent.resource,
    )
