"""Conventions: how instrumentations write a model call into a span, read into messages of one form.

Besides the names of our own tracer (`gen_ai.prompt.0.content`, which the adapters read themselves) these are known:
OpenTelemetry's GenAI conventions as attributes and as events, OpenInference, the AI SDK of Vercel, LangSmith, Logfire,
pydantic-ai and Traceloop. Nothing here raises, whatever a span holds.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from ..model.semconv import LightningSpanAttributes
from ..model.span import Span
from .attributes import unflatten_attributes

__all__ = [
    "Exchange",
    "Role",
    "call_role",
    "completion_of",
    "exchange_of",
    "json_text",
    "listed",
    "nested",
    "parsed",
    "prompt_of",
    "response_id_of",
    "spelled",
]

Message = dict[str, Any]
Role = Literal["call", "around"]

_CALLS = frozenset(("chat", "completion", "generate_content", "text_completion"))
_ROLES = {"ai": "assistant", "human": "user", "model": "assistant"}
_EVENT_ROLES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
_CHOICE = "gen_ai.choice"
_INPUT, _OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
_ENVELOPES = ("message", "tool_call", "message_content", "data", "kwargs")
"""Keys under which a message or a part may be wrapped."""


@dataclass
class Exchange:
    """What a span says of one model call: messages as OpenAI's API has them, tools by name, and what was not read."""

    prompt: list[Message] = field(default_factory=list[Message])
    answers: list[Message] = field(default_factory=list[Message])
    tools: list[Message] = field(default_factory=list[Message])
    unread: list[str] = field(default_factory=list[str])


def call_role(span: Span) -> Role | None:
    """``call`` for a span that is a call of a model for text, ``around`` for one that lasts around such calls.

    An agent's run or a whole `generateText` is around calls: it is a call only where nothing below it is one.
    """
    attributes = span.attributes
    kinds = [attributes.get(key) for key in ("openinference.span.kind", "langsmith.span.kind")]
    for kind in kinds:
        if isinstance(kind, str):
            return "call" if kind.lower() == "llm" else "around" if kind.lower() in ("agent", "chain") else None
    operation = attributes.get("ai.operationId")
    if isinstance(operation, str):
        if operation.endswith((".doGenerate", ".doStream")):
            return "call"
        return "around" if operation.startswith(("ai.generate", "ai.stream")) else None
    operation = attributes.get("gen_ai.operation.name")
    if isinstance(operation, str):
        return "call" if operation in _CALLS else "around" if operation == "invoke_agent" else None
    kind = attributes.get("gen_ai.request.type", attributes.get("llm.request.type"))
    if isinstance(kind, str):
        return "call" if kind in _CALLS else None
    if "embed" in span.name.lower():
        return None
    marks = ("gen_ai.request.model", "gen_ai.response.model", _INPUT, _OUTPUT, "request_data")
    return "call" if any(mark in attributes for mark in marks) else None


def response_id_of(span: Span) -> str | None:
    """The id that the server gave the answer; None without one."""
    keys = ("gen_ai.response.id", f"{LightningSpanAttributes.OPERATION_OUTPUT.value}.id", "ai.response.id")
    value = next((span.attributes[key] for key in keys if span.attributes.get(key)), None)
    return value if isinstance(value, str) else None


def prompt_of(span: Span) -> Any:
    """The messages sent: as stored below ``gen_ai.prompt`` or in an operation span, else as read by :func:`exchange_of`."""
    operation = f"{LightningSpanAttributes.OPERATION_INPUT.value}.messages"
    return nested(span.attributes, "gen_ai.prompt") or nested(span.attributes, operation) or exchange_of(span).prompt


def completion_of(span: Span) -> Any:
    """The answers: as stored below ``gen_ai.completion`` or in an operation span, else as read by :func:`exchange_of`."""
    operation = f"{LightningSpanAttributes.OPERATION_OUTPUT.value}.choices"
    return nested(span.attributes, "gen_ai.completion") or nested(span.attributes, operation) or exchange_of(span).answers


def exchange_of(span: Span) -> Exchange:
    """The messages of a span in any of the conventions; empty where it has none."""
    found = Exchange()
    for name, read in _PROMPTS:
        if not found.prompt:
            found.prompt = _checked(name, read(span), found.unread)
    for name, read in _ANSWERS:
        if not found.answers:
            found.answers = _checked(name, read(span), found.unread)
    found.tools = _tools(span)
    return found


def _checked(name: str, messages: list[Message] | None, unread: list[str]) -> list[Message]:
    """None: the span does not have it. Without any message it is there and could not be read."""
    if messages is not None and not messages:
        unread.append(f"messages in {name!r} that could not be read")
    return messages or []


# Values


def nested(attributes: Mapping[str, Any], prefix: str) -> Any:
    """What is stored below ``prefix``, nested again; ``{}`` without any. A value of the prefix itself is ignored."""
    start = prefix + "."
    return unflatten_attributes(
        {key[len(start) :]: value for key, value in attributes.items() if key.startswith(start)}
    )


def parsed(text: Any) -> Any:
    """The value of a JSON text; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def spelled(text: str) -> Any:
    """The value of a JSON text or of Python's spelling of a list or mapping; None for anything else."""
    value = parsed(text)
    if value is None and text.lstrip().startswith(("[", "(", "{")):
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return value


def json_text(value: Any) -> str | None:
    """A value as JSON, where a text is JSON already or Python's spelling of a mapping or list; None for other texts."""
    if isinstance(value, str):
        if not value or parsed(value) is not None or value.strip() == "null":
            return value
        value = spelled(value)
        if value is None:
            return None
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        return None


def listed(value: Any) -> list[Any]:
    """A list, or the items of a mapping whose keys are numbers, in numeric order; else empty.

    Other keys beside the numbers (``prompt_filter_results``) are left out.
    """
    if isinstance(value, (list, tuple)):
        return list(cast("Sequence[Any]", value))
    if not isinstance(value, dict):
        return []
    items = cast("dict[Any, Any]", value).items()
    # More digits than this are no index, and int() refuses thousands of them.
    numbered = [(int(k), v) for k, v in items if isinstance(k, str) and k.isascii() and k.isdigit() and len(k) < 10]
    return [item for _, item in sorted(numbered, key=lambda pair: pair[0])]


def _fields(value: Any) -> dict[str, Any]:
    """The mapping, also where it is written as a text; empty for anything else."""
    found = spelled(value) if isinstance(value, str) else value
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _stored(attributes: Mapping[str, Any], key: str) -> Any:
    """What an attribute says: a text of JSON, a list of such texts, or keys below it; None without any."""
    value = attributes.get(key)
    if value is None:
        return nested(attributes, key) or None
    if isinstance(value, str):
        found = spelled(value)
        return value if found is None else found
    if isinstance(value, (list, tuple)):
        return [item if (found := parsed(item)) is None else found for item in cast("Sequence[Any]", value)]
    return value


# Messages


def _messages(items: Any, role: str) -> list[Message]:
    """Messages of a list in any form; ``role`` is that of items that have none. Lists of lists are one list."""
    found: list[Message] = []
    pending = listed(items)
    if pending and all(isinstance(item, (list, tuple)) and not _is_pair(item) for item in pending):
        pending = [one for item in pending for one in listed(item)]
    for item in pending:
        found += _message(item, role)
    return found


def _is_pair(item: Any) -> bool:
    """A role and a text, as LangChain takes messages."""
    return isinstance(item, (list, tuple)) and len(cast("list[Any]", item)) == 2 and all(
        isinstance(one, str) for one in cast("list[Any]", item)
    )


def _message(item: Any, role: str) -> list[Message]:
    """The messages that an item stands for: results of several tools in one message are messages of their own."""
    if isinstance(item, str):
        fields = _fields(item) if item.lstrip().startswith("{") else {}
        if not fields:
            return [{"role": role, "content": item}]
    elif _is_pair(item):
        kind, text = cast("list[str]", item)
        return [{"role": _role(kind, role), "content": text}]
    else:
        fields = _fields(item)
    fields = _unwrapped(fields)
    if isinstance(fields.get("content"), dict) and "parts" in fields["content"]:  # a candidate of Google's API
        fields = {**fields, **fields["content"]}
    if not fields:
        return []
    if fields.get("type") in ("function_call", "function_call_output"):
        return [_of_responses(fields)]
    content = next((fields[key] for key in ("parts", "contents", "content", "text") if fields.get(key) is not None), None)
    given = fields.get("tool_calls")
    listing = listed(spelled(given) if isinstance(given, str) else given)
    calls = [call for one in listing if (call := _call(_unwrapped(_fields(one))))]
    results: list[Message] = []
    parts: list[Message] = []
    for part in _parts(content):
        kind = part.get("type")
        if kind in ("tool_call", "tool-call", "tool_use", "function_call"):
            calls += [call] if (call := _call(part)) else []
        elif kind in ("tool_call_response", "tool-result", "tool_result"):
            results.append(_result(part))
        elif kind not in ("reasoning", "thinking", "redacted_thinking"):
            parts.append(part)
    message: Message = {"role": _role(fields.get("role", fields.get("type")), role)}
    for key in ("name", "tool_call_id", "refusal", "finish_reason"):
        if isinstance(fields.get(key), str):
            message[key] = fields[key]
    if results and not parts and not calls:
        return results
    text = _content(parts)
    if calls:
        message["tool_calls"] = calls
    elif text is None and "refusal" not in message and content is None:
        return results
    message["content"] = "" if text is None else text
    return [*results, message]


def _unwrapped(fields: dict[str, Any]) -> dict[str, Any]:
    """What stands in the envelopes of LangChain, OpenInference and the choices of OpenAI, with what stands beside it."""
    for _ in range(3):
        inner = next((key for key in _ENVELOPES if isinstance(fields.get(key), dict) and "role" not in fields), None)
        if inner is None:
            break
        beside = {key: value for key, value in fields.items() if key not in (inner, "id", "lc")}
        path = fields.get("id")
        if isinstance(path, list) and path and inner == "kwargs":
            beside["type"] = path[-1]  # a class of LangChain, as it serializes itself
        fields = {**beside, **cast("dict[str, Any]", fields[inner])}
    return fields


def _role(given: Any, otherwise: str) -> str:
    # LangChain serializes the class: AIMessage, AIMessageChunk.
    role = given.lower().partition("message")[0] if isinstance(given, str) else ""
    role = _ROLES.get(role, role)
    return role if role in ("assistant", "developer", "function", "system", "tool", "user") else otherwise


def _parts(content: Any) -> list[Message]:
    """The content as parts with a type."""
    if isinstance(content, str):
        parts = listed(parsed(content)) if content.lstrip().startswith("[{") else []
        if parts and all("type" in _fields(part) for part in parts):
            content = parts
        else:
            return [{"type": "text", "text": content}]
    if isinstance(content, dict) and not listed(content):
        content = [content]
    found: list[Message] = []
    for item in listed(content):
        fields = _unwrapped(_fields(item)) if not isinstance(item, str) else {"type": "text", "text": item}
        if "type" not in fields and isinstance(fields.get("text"), str):
            fields = {**fields, "type": "text"}
        found += [fields] if fields else []
    return found


def _content(parts: list[Message]) -> Any:
    """A text where the parts are texts, else OpenAI's parts; None without any."""
    if not parts:
        return None
    if all(part.get("type") in ("text", "input_text", "output_text") for part in parts):
        return "".join(_text(part) for part in parts)
    return [_api_part(part) for part in parts]


def _text(part: Message) -> str:
    value = part.get("text", part.get("content", ""))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _api_part(part: Message) -> Message:
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text"):
        return {"type": "text", "text": _text(part)}
    image = part.get("image_url", part.get("image", part.get("uri")))
    if isinstance(image, dict):
        inner = cast("dict[str, Any]", image)
        image = inner.get("url") or _fields(inner.get("image")).get("url")
    if isinstance(image, str):
        return {"type": "image_url", "image_url": {"url": image}}
    media = str(part.get("mime_type", part.get("mediaType", "")))
    if kind in ("blob", "file") and media.startswith("image/"):
        data = part.get("content", part.get("data", ""))
        return {"type": "image_url", "image_url": {"url": f"data:{media};base64,{data}"}}
    return part


def _call(fields: Message) -> Message | None:
    """A tool call; None without a name."""
    function = _fields(fields.get("function")) or fields
    name = function.get("name", function.get("toolName"))
    if not isinstance(name, str):
        return None
    given = next((function[key] for key in ("arguments", "args", "input") if function.get(key) is not None), "")
    text = json_text(given)
    own = next((fields[key] for key in ("id", "toolCallId", "call_id") if fields.get(key)), "")
    return {"id": str(own), "name": name, "arguments": str(given) if text is None else text}


def _result(part: Message) -> Message:
    own = next((part[key] for key in ("id", "toolCallId", "tool_use_id") if part.get(key)), "")
    value = next((part[key] for key in ("response", "result", "output", "content") if part.get(key) is not None), "")
    inner = _fields(value) if isinstance(value, dict) else {}
    if set(inner) == {"type", "value"}:  # how the AI SDK says what kind of output it is
        value = inner["value"]
    if isinstance(value, (list, tuple)) and all(_fields(one).get("type") == "text" for one in listed(value)):
        value = "".join(_text(_fields(one)) for one in listed(value))
    return {"role": "tool", "tool_call_id": str(own), "content": value if isinstance(value, str) else json_text(value) or ""}


def _of_responses(item: Message) -> Message:
    """An item of the Responses API that is no message."""
    if item["type"] == "function_call":
        call = _call({**item, "id": item.get("call_id") or item.get("id")})
        return {"role": "assistant", "content": "", "tool_calls": [call] if call else []}
    return _result({**item, "id": item.get("call_id")})


# Requests and answers as APIs have them


def _of_request(value: Any) -> list[Message]:
    """The messages in a request: of a chat, a completion, the Responses API, or a bare text or list."""
    if isinstance(value, (str, list, tuple)):
        return [{"role": "user", "content": value}] if isinstance(value, str) else _messages(value, "user")
    fields = _fields(value)
    system = [{"role": "system", "content": one} for key in ("system", "instructions") if (one := _flat(fields.get(key)))]
    for key in ("messages", "contents", "input", "prompts", "prompt"):
        given = fields.get(key)
        found = [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given, "user")
        if found:
            return [*system, *found]
    return [*system, *(_message(fields, "user") if fields.get("content") is not None else [])]


def _of_answer(value: Any) -> list[Message]:
    """The messages in an answer: of a chat, a completion, the Responses API, LangChain, Google, or a bare text."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if isinstance(value, (list, tuple)):
        return _messages(value, "assistant")
    fields = _fields(value)
    for key in ("choices", "generations", "candidates", "output", "messages"):
        given = fields.get(key)
        found = _of_answer(given) if isinstance(given, str) else _messages(given, "assistant")
        if found:
            return [one for one in found if one["role"] == "assistant"] or found
    for key in ("combined_chunk_content", "completion"):
        if isinstance(fields.get(key), str):
            return [{"role": "assistant", "content": fields[key]}]
    return _message(fields, "assistant")


def _flat(value: Any) -> str:
    """A system instruction as text."""
    content = _content(_parts(value)) if value is not None else None
    return content if isinstance(content, str) else "" if content is None else json.dumps(content, default=str)


# Where the conventions keep them

Reader = Callable[[Span], list[Message] | None]


def _genai(key: str, role: str) -> Reader:
    """OpenTelemetry's attributes of today, on the span or on an event of it."""

    def read(span: Span) -> list[Message] | None:
        for attributes in (span.attributes, *(event.attributes for event in span.events)):
            value = _stored(attributes, key)
            if value is None:
                continue
            system = _flat(_stored(attributes, "gen_ai.system_instructions")) if key == _INPUT else ""
            found = _messages(value, role) if not isinstance(value, str) else _message(value, role)
            return [*([{"role": "system", "content": system}] if system else []), *found]
        return None

    return read


def _events(answers: bool) -> Reader:
    """OpenTelemetry's events of one message each, as events of the span or as a list in an attribute of it."""

    def read(span: Span) -> list[Message] | None:
        found_events: list[tuple[str, Mapping[str, Any]]] = [(event.name, event.attributes) for event in span.events]
        for key in ("events", "all_messages_events"):
            listing = listed(_stored(span.attributes, key))
            found_events += [(str(_fields(one).get("event.name", "")), _fields(one)) for one in listing]
        found: list[Message] = []
        seen = False
        for name, attributes in found_events:
            if answers and name == _CHOICE:
                seen = True
                own = {**attributes, **_fields(attributes.get("message"))}
                found += _message({**own, "role": "assistant", "message": None}, "assistant")
            elif not answers and name in _EVENT_ROLES:
                seen = True
                own = {**attributes, "tool_call_id": attributes.get("tool_call_id", attributes.get("id"))}
                found += _message({**own, "role": attributes.get("role", _EVENT_ROLES[name])}, _EVENT_ROLES[name])
            elif name == f"gen_ai.content.{'completion' if answers else 'prompt'}":
                seen = True
                value = _stored(attributes, f"gen_ai.{'completion' if answers else 'prompt'}")
                found += (_of_answer if answers else _of_request)(value) if value is not None else []
        return found if seen else None

    return read


def _whole(key: str, read: Callable[[Any], list[Message]], *, kind: str | None = None) -> Reader:
    """A request or an answer in one attribute; ``kind``: only in spans of that kind of OpenInference."""

    def found(span: Span) -> list[Message] | None:
        if kind is not None and str(span.attributes.get("openinference.span.kind", "")).upper() != kind:
            return None
        value = span.attributes.get(key)
        return None if value is None else read(_stored({key: value}, key))

    return found


def _below(key: str, role: str) -> Reader:
    """Messages by number below a key: OpenInference, and Traceloop's first names."""

    def read(span: Span) -> list[Message] | None:
        below = nested(span.attributes, key)
        return _messages(below, role) if below else None

    return read


def _vercel(span: Span) -> list[Message] | None:
    """The answer of the AI SDK: text, calls of tools and an object stand in attributes of their own."""
    for prefix in ("ai.response", "ai.result"):
        text = span.attributes.get(f"{prefix}.text", span.attributes.get(f"{prefix}.object"))
        calls = _stored(span.attributes, f"{prefix}.toolCalls")
        if text is None and calls is None:
            continue
        reason = span.attributes.get(f"{prefix}.finishReason", span.attributes.get("ai.finishReason"))
        own: Message = {"role": "assistant", "content": text, "tool_calls": calls}
        return _message({**own, **({"finish_reason": reason} if isinstance(reason, str) else {})}, "assistant")
    return None


_PROMPTS: tuple[tuple[str, Reader], ...] = (
    (_INPUT, _genai(_INPUT, "user")),
    ("llm.input_messages", _below("llm.input_messages", "user")),
    ("ai.prompt.messages", _whole("ai.prompt.messages", _of_request)),
    ("ai.prompt", _whole("ai.prompt", _of_request)),
    ("gen_ai.prompt", _whole("gen_ai.prompt", _of_request)),
    ("request_data", _whole("request_data", _of_request)),
    ("events", _events(False)),
    ("llm.prompts", _below("llm.prompts", "user")),
    ("pydantic_ai.all_messages", _whole("pydantic_ai.all_messages", _of_request)),
    ("input.value", _whole("input.value", _of_request, kind="LLM")),
)
_ANSWERS: tuple[tuple[str, Reader], ...] = (
    (_OUTPUT, _genai(_OUTPUT, "assistant")),
    ("llm.output_messages", _below("llm.output_messages", "assistant")),
    ("ai.response", _vercel),
    ("gen_ai.completion", _whole("gen_ai.completion", _of_answer)),
    ("response_data", _whole("response_data", _of_answer)),
    ("events", _events(True)),
    ("llm.completions", _below("llm.completions", "assistant")),
    ("output.value", _whole("output.value", _of_answer, kind="LLM")),
)


def _tools(span: Span) -> list[Message]:
    """Tools that the model was offered: name, description and parameters each."""
    sources: Iterable[Any] = (
        _stored(span.attributes, "gen_ai.tool.definitions"),
        _stored(span.attributes, "ai.prompt.tools"),
        _stored(span.attributes, "llm.tools"),
        *(_fields(span.attributes.get(key)).get("tools") for key in ("request_data", "gen_ai.prompt")),
        _fields(span.attributes.get("model_request_parameters")).get("function_tools"),  # pydantic-ai
    )
    for source in sources:
        found: list[Message] = []
        for item in listed(source):
            outer = _fields(item)
            outer = _fields(outer.get("tool")) or outer
            outer = _fields(outer.get("json_schema")) or outer
            function = _fields(outer.get("function")) or outer
            schemas = ("parameters", "inputSchema", "input_schema", "parameters_json_schema")
            parameters = next((function[key] for key in schemas if key in function), None)
            found.append({key: function[key] for key in ("name", "description") if key in function}
                         | ({"parameters": parameters} if parameters is not None else {}))  # fmt: skip
        if found:
            return found
    return []
