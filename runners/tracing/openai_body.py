"""What a model was asked and what it answered, read from the bodies of OpenAI's API: whole ones and the pieces of streams."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from ...core.model.span import Attributes

__all__ = ["Answer", "ChoicesAnswer", "EventPieces", "ResponseAnswer", "plain", "request_attributes"]

_REQUEST = {
    "model": "gen_ai.request.model",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "user": "gen_ai.user",
    "service_tier": "openai.request.service_tier",
}
_HEAD = {
    "id": "gen_ai.response.id",
    "model": "gen_ai.response.model",
    "system_fingerprint": "gen_ai.openai.response.system_fingerprint",
    "service_tier": "openai.response.service_tier",
}
_USAGE = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "input_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "total_tokens": "gen_ai.usage.total_tokens",
}
_USAGE_DETAILS = {
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning_tokens",
}
_TEXTS = ("text", "input_text", "output_text")
_EVENT_END = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")
_MOST_PARTS = 1000
_LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed")


def plain(value: Any) -> Any:
    """A value of the client as JSON has it: its models become mappings; what has no such form becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, str | int | float | bool | None):
        return value
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json", exclude_unset=True)
    if isinstance(value, list | tuple | Iterator):
        return [plain(item) for item in cast("list[Any]", value)]
    schema = getattr(value, "model_json_schema", None)
    return schema() if callable(schema) else str(value)


def request_attributes(asked: Mapping[str, Any]) -> Attributes:
    """The attributes of a call with these arguments: settings, messages and tools."""
    found: Attributes = {"gen_ai.is_streaming": bool(asked.get("stream"))}
    for name, key in _REQUEST.items():
        value = asked.get(name)
        if isinstance(value, str | int | float):
            found[key] = value
    if asked.get("response_format"):
        found["gen_ai.request.structured_output_schema"] = json.dumps(_schema(plain(asked["response_format"])))
    messages = list(_input_messages(asked))
    if messages:
        found["gen_ai.input.messages"] = json.dumps(messages)
    tools = [_tool(tool) for tool in _items(plain(asked.get("tools") or asked.get("functions")))]
    if tools:
        found["gen_ai.tool.definitions"] = json.dumps(tools)
    return found


def _schema(wanted: Any) -> Any:
    inner = _field(wanted, "json_schema")
    return _field(inner, "schema") or wanted


def _tool(tool: Any) -> Any:
    function = _field(tool, "function") or tool
    kept = {name: function[name] for name in ("name", "description", "parameters") if _field(function, name)}
    return {"type": _field(tool, "type") or "function", **kept}


def _input_messages(asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    instructions = asked.get("instructions")
    if isinstance(instructions, str):
        yield {"role": "system", "parts": [_text_part(instructions)]}
    given: Any = next((plain(asked[name]) for name in ("messages", "input", "prompt") if asked.get(name)), None)
    for item in _items(given) if isinstance(given, list | None) else [given]:
        if isinstance(item, Mapping):
            yield _message(cast("Mapping[str, Any]", item))
        else:
            yield {"role": "user", "parts": [_text_part(item)]}


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    """A message of the chat API, or an item of the Responses API, in OpenTelemetry's form."""
    kind = item.get("type")
    if kind == "function_call":
        return {"role": "assistant", "parts": [_call_part(item, item.get("call_id") or item.get("id"))]}
    if kind == "function_call_output":
        response = {"type": "tool_call_response", "id": item.get("call_id"), "response": item.get("output", "")}
        return {"role": "tool", "parts": [response]}
    role = item.get("role") or "user"
    if role == "tool":
        response = {"type": "tool_call_response", "id": item.get("tool_call_id"), "response": item.get("content")}
        return {"role": role, "parts": [response]}
    return {"role": role, "parts": _parts(item)}


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    parts = [_part(part) for part in _items(content)]
    if isinstance(content, str) and (content or not message.get("tool_calls")):
        parts.append(_text_part(content))
    if message.get("refusal"):
        parts.append({"type": "refusal", "content": message["refusal"]})
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning:
        parts.append({"type": "reasoning", "content": reasoning})
    calls = _items(message.get("tool_calls"))
    if message.get("function_call"):
        calls = [*calls, {"function": message["function_call"]}]
    return parts + [_call_part(_field(call, "function"), _field(call, "id")) for call in calls]


def _part(part: Any) -> dict[str, Any]:
    kind = _field(part, "type")
    if kind in _TEXTS:
        return _text_part(_field(part, "text"))
    if kind == "refusal":
        return {"type": "refusal", "content": _field(part, "refusal")}
    url = _field(part, "image_url")
    if url:
        return {"type": "uri", "modality": "image", "uri": _field(url, "url") or url}
    return dict(cast("Mapping[str, Any]", part)) if isinstance(part, Mapping) else _text_part(part)


def _text_part(text: Any) -> dict[str, Any]:
    return {"type": "text", "content": text if isinstance(text, str) else json.dumps(text)}


def _call_part(function: Any, call_id: Any) -> dict[str, Any]:
    arguments = _field(function, "arguments")
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        pass  # the model's own text, which is no JSON, is what counts
    return {"type": "tool_call", "name": _field(function, "name"), "id": call_id, "arguments": arguments}


def _field(value: Any, name: str) -> Any:
    return cast("Mapping[str, Any]", value).get(name) if isinstance(value, Mapping) else None


def _mapping(value: Any) -> dict[str, Any]:
    return dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else {}


def _items(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _name(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _ids(value: Any) -> list[int]:
    items = _items(value)
    return list(items) if all(type(item) is int for item in items) else []


class Answer:
    """Collects an answer, whole or in pieces; the base takes what all of them have."""

    def __init__(self) -> None:
        self.pieces = 0
        self.error: str | None = None
        """The error in the body."""
        self._head: Attributes = {}
        self._prompt: list[int] = []

    def take(self, body: Any) -> None:
        """An answer or a piece of one; whatever does not look like one is passed over."""
        self.pieces += 1
        error = _field(body, "error")
        if error:
            self.error = str(_field(error, "message") or error)
        for name, key in _HEAD.items():
            value = _field(body, name)
            if isinstance(value, str):
                self._head[key] = value
        usage = _field(body, "usage")
        for name, key in _USAGE.items():
            value = _field(usage, name)
            if isinstance(value, int):
                self._head[key] = value
        for details in ("prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details"):
            for name, key in _USAGE_DETAILS.items():
                value = _field(_field(usage, details), name)
                if isinstance(value, int):
                    self._head[key] = value
        if not self._prompt:
            self._prompt = _ids(_field(body, "prompt_token_ids"))

    def attributes(self) -> Attributes:
        """The attributes of the answer on the span of the call."""
        return {**self._head, **({"prompt_token_ids": self._prompt} if self._prompt else {})}


class _Choice:
    """One of several answers to the same request."""

    def __init__(self) -> None:
        self.role = "assistant"
        self.texts: dict[str, list[str]] = {}
        self.calls: list[dict[str, Any]] = []
        self.reason = ""
        self.token_ids: list[int] = []
        self.logprobs: dict[str, list[Any]] = {}

    def take(self, choice: Any) -> None:
        message: Any = _field(choice, "message") or _field(choice, "delta")
        self._add("content", _field(choice, "text"))
        for name in ("content", "refusal", "reasoning_content", "reasoning"):
            self._add(name, _field(message, name))
        self.role = _name(_field(message, "role")) or self.role
        self.reason = _name(_field(choice, "finish_reason")) or self.reason
        for position, call in enumerate(_items(_field(message, "tool_calls"))):
            self._add_call(call, position)
        if _field(message, "function_call"):
            self._add_call({"index": 0, "function": _field(message, "function_call")}, 0)
        for part in ("content", "refusal"):
            items = _field(_field(choice, "logprobs"), part)
            if isinstance(items, list):
                self.logprobs.setdefault(part, []).extend(cast("list[Any]", items))

    def _add(self, name: str, text: Any) -> None:
        if isinstance(text, str):
            self.texts.setdefault(name, []).append(text)

    def _add_call(self, call: Any, position: int) -> None:
        index = _field(call, "index")
        number = index if isinstance(index, int) and 0 <= index <= len(self.calls) else position
        if number >= len(self.calls):
            self.calls.append({"id": "", "function": {"name": "", "arguments": ""}})
            number = len(self.calls) - 1
        kept, function = self.calls[number], _field(call, "function")
        kept["id"] = _name(_field(call, "id")) or kept["id"]
        kept["function"]["name"] = _name(_field(function, "name")) or kept["function"]["name"]
        arguments = _field(function, "arguments")
        if arguments:
            kept["function"]["arguments"] += arguments if isinstance(arguments, str) else json.dumps(arguments)

    def message(self) -> dict[str, Any]:
        texts = {name: "".join(pieces) for name, pieces in self.texts.items()}
        content = {"content": texts.pop("content")} if texts.get("content") or not self.calls and "content" in texts else {}
        texts.pop("content", None)
        return {
            "role": self.role,
            "parts": _parts({**content, **texts, "tool_calls": self.calls}),
            "finish_reason": self.reason,
        }


class ChoicesAnswer(Answer):
    """An answer of the chat or the completions API: its choices are kept apart by their index."""

    def __init__(self) -> None:
        super().__init__()
        self._choices: dict[int, _Choice] = {}

    def take(self, body: Any) -> None:
        super().take(body)
        of_all = _items(_field(body, "response_token_ids"))
        for position, choice in enumerate(_items(_field(body, "choices"))):
            index = _field(choice, "index")
            kept = self._choices.setdefault(index if isinstance(index, int) else position, _Choice())
            kept.take(choice)
            kept.token_ids += (
                _ids(of_all[position] if position < len(of_all) else None)
                or _ids(_field(choice, "token_ids"))
                or _ids(_field(_field(choice, "provider_specific_fields"), "token_ids"))
            )
            if not self._prompt:
                self._prompt = _ids(_field(choice, "prompt_token_ids"))

    def attributes(self) -> Attributes:
        """``response_token_ids`` and ``logprobs.<part>`` are of the first choice; ``gen_ai.choices.<n>`` of each of several."""
        found = super().attributes()
        choices = [self._choices[index] for index in sorted(self._choices)]
        if not choices:
            return found
        found["gen_ai.output.messages"] = json.dumps([choice.message() for choice in choices])
        reasons = [choice.reason for choice in choices if choice.reason]
        if reasons:
            found["gen_ai.response.finish_reasons"] = reasons
        if choices[0].token_ids:
            found["response_token_ids"] = choices[0].token_ids
        found.update({f"logprobs.{part}": json.dumps(items) for part, items in choices[0].logprobs.items()})
        for number, choice in enumerate(choices if len(choices) > 1 else []):
            if choice.token_ids:
                found[f"gen_ai.choices.{number}.token_ids"] = choice.token_ids
            for part, items in choice.logprobs.items():
                found[f"gen_ai.choices.{number}.logprobs.{part}"] = json.dumps(items)
        return found


class ResponseAnswer(Answer):
    """An answer of the Responses API: the whole one, which ends a stream too, or what its pieces gave so far."""

    def __init__(self) -> None:
        super().__init__()
        self._response: list[int] = []
        self._items: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Any] = []
        self._reason = ""

    def take(self, body: Any) -> None:
        kind = _field(body, "type")
        whole = _field(body, "response") if kind else body
        super().take(whole if whole is not None else {})
        if whole is not None:
            self._take_whole(whole, final=not kind or kind in _LAST_EVENTS)
            return
        index = _field(body, "output_index")
        if not isinstance(index, int):
            return
        item = _field(body, "item")
        if isinstance(item, Mapping):
            self._items[index] = dict(cast("Mapping[str, Any]", item))
            return
        delta = _field(body, "delta")
        if kind == "response.output_text.delta" and isinstance(delta, str):
            self._add_text(index, _field(body, "content_index"), delta)
            self._logprobs += _items(_field(body, "logprobs"))
        elif kind == "response.function_call_arguments.delta" and isinstance(delta, str):
            call = self._items.setdefault(index, {"type": "function_call"})
            call["arguments"] = _name(call.get("arguments")) + delta

    def _add_text(self, index: int, content_index: Any, text: str) -> None:
        item = self._items.setdefault(index, {"type": "message"})
        content = item["content"] = _items(item.get("content"))
        number = content_index if isinstance(content_index, int) else 0
        if 0 <= number < _MOST_PARTS:
            content += [{}] * (number + 1 - len(content))
            content[number] = {"type": "output_text", "text": _name(_field(content[number], "text")) + text}

    def _take_whole(self, response: Any, *, final: bool) -> None:
        if not self._response:
            self._response = _ids(_field(response, "response_token_ids")) or _ids(_field(response, "token_ids"))
        if not final:
            return
        output = [_mapping(item) for item in _items(_field(response, "output"))]
        if output:
            self._items = dict(enumerate(output))
            contents = [content for item in output for content in _items(_field(item, "content"))]
            logprobs = [part for content in contents for part in _items(_field(content, "logprobs"))]
            self._logprobs = logprobs or self._logprobs
        status, why = _field(response, "status"), _field(_field(response, "incomplete_details"), "reason")
        if status == "completed":
            self._reason = "tool_calls" if any(_field(item, "type") == "function_call" for item in output) else "stop"
        elif status == "incomplete":
            self._reason = "content_filter" if why == "content_filter" else "length"
        elif status in ("failed", "cancelled"):
            self._reason = "error"

    def attributes(self) -> Attributes:
        found = super().attributes()
        parts: list[dict[str, Any]] = []
        for _, item in sorted(self._items.items()):
            if item.get("type") == "function_call":
                parts.append(_call_part(item, item.get("call_id") or item.get("id")))
            elif item.get("type") == "reasoning":
                texts = [str(_field(piece, "text") or "") for piece in _items(item.get("summary"))]
                parts.append({"type": "reasoning", "content": "\n".join(texts)})
            else:
                parts.extend(_part(part) for part in _items(item.get("content")))
        if parts:
            message = {"role": "assistant", "parts": parts, "finish_reason": self._reason}
            found["gen_ai.output.messages"] = json.dumps([message])
        if self._reason:
            found["gen_ai.response.finish_reasons"] = [self._reason]
        ids = self._response or [number for item in self._items.values() for number in _ids(item.get("token_ids"))]
        if ids:
            found["response_token_ids"] = ids
        if self._logprobs:
            found["logprobs.content"] = json.dumps(self._logprobs)
        return found


class EventPieces:
    """Takes the bytes of a body as they arrive and gives the JSON in it: each event of a stream, or the body at its end."""

    def __init__(self, events: bool) -> None:
        self.events = events
        self._rest = bytearray()
        self.done = False
        """Whether the stream has sent its end marker."""

    def split(self, data: bytes) -> list[bytes]:
        """``data`` with the events apart, so that none is taken for read because it arrived together with another."""
        return [piece for piece in _EVENT_END.split(data) if piece] if self.events else [data]

    def feed(self, data: bytes) -> Iterator[Any]:
        """The events that ``data`` completes."""
        self._rest += data
        if not self.events or b"\n" not in data:
            return
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest[:] = rest
        for line in lines:
            yield from self._line(line)

    def end(self) -> Iterator[Any]:
        """What is complete once the body is."""
        rest = bytes(self._rest)
        self._rest.clear()
        yield from self._line(rest) if self.events else _loaded(rest)

    def _line(self, line: bytes) -> Iterator[Any]:
        name, _, text = line.strip().partition(b":")
        if name != b"data":
            return
        if text.strip() == b"[DONE]":
            self.done = True
        else:
            yield from _loaded(text)


def _loaded(text: bytes) -> Iterator[Any]:
    try:
        yield json.loads(text)
    except (ValueError, RecursionError):
        return  # no JSON, so no answer; the caller of the client learns of it
