"""Chat messages from traces: what was sent to the model and what it answered, call by call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, cast

from ...core.model.span import Span
from ...core.spans.conventions import Exchange, exchange_of, json_text
from ...core.spans.model_calls import candidates_of, distinct_calls
from . import span_fields
from .base import TraceAdapter, as_spans

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
else:
    # The client's types are for type checkers: importing them takes a second.
    ChatCompletionFunctionToolParam = ChatCompletionMessageParam = dict

__all__ = ["OpenAIMessages", "TraceMessagesAdapter", "TraceToMessages"]

_ROLES = frozenset(("assistant", "developer", "function", "system", "tool", "user"))
_OTHER_ROLES = {"ai": "assistant", "human": "user", "model": "assistant"}
_PARTS = frozenset(("audio", "file", "image_url", "input_audio", "refusal", "text"))


class OpenAIMessages(TypedDict):
    """One model call as OpenAI's fine-tuning takes it; ``tools`` is None where none was offered."""

    messages: list[ChatCompletionMessageParam]
    tools: list[ChatCompletionFunctionToolParam] | None


class TraceToMessages(TraceAdapter[list[OpenAIMessages]]):
    """The messages of every model call, in the order of the input: one entry a call, the answers last.

    A call that two instrumentations recorded is one call; the conventions that are read are named in conventions.py.

    A message without a role gets the one that it must have (``tool_calls``: assistant,
    ``tool_call_id``: tool); where none is known the message is left out. Embeddings and spans
    without any message give no entry; a call that failed gives its prompt.
    """

    def adapt(self, source: Sequence[Any], /) -> list[OpenAIMessages]:
        """The conversations of stored spans or of OpenTelemetry's; none for no spans."""
        odd: Counter[str] = Counter()
        spans = as_spans(source, odd)
        requested = _requested(spans, odd)
        candidates = candidates_of(spans, lambda span: "call" if _has_indexed(span) else None)
        calls = [candidates[place].span for place in distinct_calls(candidates)]
        found: list[OpenAIMessages] = []
        for span in calls:
            prompts = span_fields.nested(span.attributes, "gen_ai.prompt")
            answers = span_fields.nested(span.attributes, "gen_ai.completion")
            exchange = Exchange() if prompts and answers else exchange_of(span)
            prompts, answers = prompts or exchange.prompt, answers or exchange.answers
            messages = _prompt_messages(span_fields.sequence(prompts), odd)
            messages += _answers(span_fields.sequence(answers), requested.get(span.span_id, []), odd)
            odd.update(exchange.unread)
            if messages:
                functions = span_fields.nested(span.attributes, "gen_ai.request.functions") or exchange.tools
                typed = cast("list[ChatCompletionMessageParam]", messages)
                found.append(OpenAIMessages(messages=typed, tools=cast(Any, _tools(functions, odd))))
            else:
                odd["model call of which no message could be read"] += 1
        self.report(odd)
        return found


def _has_indexed(span: Span) -> bool:
    """Whether there are messages in the names of our tracer, which need no other mark of a model call."""
    # What is embedded is text, but nobody says it to anybody.
    return span.attributes.get("gen_ai.request.type") != "embedding" and any(
        key.startswith(("gen_ai.prompt.", "gen_ai.completion.")) for key in span.attributes
    )


TraceMessagesAdapter = TraceToMessages
"""The adapter under its older name."""


def _requested(spans: Sequence[Span], odd: Counter[str]) -> dict[str, list[dict[str, Any]]]:
    """Span id -> the tool calls that its child spans stand for."""
    found: dict[str, list[dict[str, Any]]] = {}
    seen: set[tuple[str, str, str]] = set()
    for span in spans:
        if span.parent_id is None or not any(key.startswith("tool.") for key in span.attributes):
            continue
        key = (span.rollout_id, span.attempt_id, span.span_id)
        if key in seen:
            continue
        seen.add(key)
        name = span.attributes.get("tool.name")
        if not isinstance(name, str):
            odd["tool call without a name"] += 1
            continue
        call = {
            "id": str(span.attributes.get("tool.call.id", "")),
            "type": str(span.attributes.get("tool.call.type", "function")),
            "function": {"name": name, "arguments": _arguments(span_fields.given(span.attributes, "tool.parameters"), odd)},
        }
        found.setdefault(span.parent_id, []).append(call)
    return found


def _prompt_messages(prompts: Sequence[Any], odd: Counter[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for prompt in prompts:
        if not isinstance(prompt, dict):
            odd["message that is no mapping"] += 1
            continue
        fields = cast("dict[str, Any]", prompt)
        calls = _tool_calls(fields, odd)
        role = _role(fields, bool(calls), odd)
        if role is None:
            continue
        if role == "assistant" and calls:
            messages.append({"role": role, "content": _content(fields) or None, "tool_calls": calls})
            open_calls = [call["id"] for call in calls]
        elif role == "tool":
            answered = _tool_call_id(fields, open_calls, odd)
            if answered is not None:
                messages.append({"role": role, "content": _content(fields), "tool_call_id": answered})
        else:
            message = {"role": role, "content": _content(fields)}
            if role == "function" or isinstance(fields.get("name"), str):
                message["name"] = str(fields.get("name", ""))
            messages.append(message)
    return messages


def _role(fields: Mapping[str, Any], calls: bool, odd: Counter[str]) -> str | None:
    role = fields.get("role")
    if isinstance(role, str):
        role = _OTHER_ROLES.get(role.lower(), role.lower())
        if role in _ROLES:
            return role
        odd["message of an unknown role"] += 1
    if calls or "tool_call_id" in fields:
        odd["message whose role was inferred"] += 1
        return "assistant" if calls else "tool"
    if role is None:
        odd["message without a role"] += 1
    return None


def _tool_call_id(fields: Mapping[str, Any], open_calls: list[str], odd: Counter[str]) -> str | None:
    """The call that a tool's message answers: the oldest open one where the message does not say."""
    given = fields.get("tool_call_id")
    if isinstance(given, (str, int)) and given != "":
        if str(given) in open_calls:
            open_calls.remove(str(given))
        return str(given)
    if open_calls:
        odd["tool message whose call was inferred"] += 1
        return open_calls.pop(0)
    odd["tool message that answers no call"] += 1
    return None


def _tool_calls(fields: Mapping[str, Any], odd: Counter[str]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for item in span_fields.sequence(fields.get("tool_calls")):
        call = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        inner = call.get("function")
        function = cast("dict[str, Any]", inner) if isinstance(inner, dict) else call
        name = function.get("name")
        if not isinstance(name, str):
            odd["tool call without a name"] += 1
            continue
        arguments = _arguments(function.get("arguments"), odd)
        calls.append(
            {"id": str(call.get("id", "")), "type": "function", "function": {"name": name, "arguments": arguments}}
        )
    return calls


def _arguments(value: Any, odd: Counter[str]) -> str:
    """The arguments of a tool call as JSON, whatever they are stored as; a text that is none stays, and is counted."""
    text = "" if value is None else json_text(value)
    if text is None:
        odd["arguments of a tool call that are no JSON"] += 1
        return str(value)
    return text


def _content(fields: Mapping[str, Any]) -> Any:
    """The text, or the parts where the span holds them as JSON; ``""`` without any."""
    content = fields.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        parts = span_fields.sequence(span_fields.parsed(content)) if content.lstrip().startswith("[") else []
        return parts if parts and all(_is_part(part) for part in parts) else content
    parts = span_fields.sequence(content)
    return parts if parts and all(_is_part(part) for part in parts) else json_text(content) or str(content)


def _is_part(part: Any) -> bool:
    kind = cast("dict[str, Any]", part).get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in _PARTS


def _answers(answers: Sequence[Any], requested: list[dict[str, Any]], odd: Counter[str]) -> list[dict[str, Any]]:
    """The messages of the model. Tool calls stand in the message, or else in child spans of the call."""
    messages: list[dict[str, Any]] = []
    for answer in answers:
        if not isinstance(answer, dict):
            odd["message that is no mapping"] += 1
            continue
        fields = cast("dict[str, Any]", answer)
        role = fields.get("role")
        if role is None:
            odd["message whose role was inferred"] += 1
        elif not isinstance(role, str) or _OTHER_ROLES.get(role.lower(), role.lower()) != "assistant":
            odd["answer of a role other than the assistant's"] += 1
            continue
        message: dict[str, Any] = {"role": "assistant", "content": _content(fields) or None}
        if isinstance(fields.get("refusal"), str):
            message["refusal"] = fields["refusal"]
        calls = _tool_calls(fields, odd)
        if calls:
            message["tool_calls"] = calls
        messages.append(message)
    if requested and not any("tool_calls" in message for message in messages):
        if not messages:
            messages.append({"role": "assistant", "content": None})
        messages[0]["tool_calls"] = requested
    for message in messages:
        if message["content"] is None and "tool_calls" not in message and "refusal" not in message:
            message["content"] = ""
    return messages


def _tools(functions: Any, odd: Counter[str]) -> list[dict[str, Any]] | None:
    tools: list[dict[str, Any]] = []
    for item in span_fields.sequence(functions):
        fields = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        name = fields.get("name")
        if not isinstance(name, str):
            odd["tool without a name"] += 1
            continue
        function: dict[str, Any] = {"name": name}
        if isinstance(fields.get("description"), str):
            function["description"] = fields["description"]
        given = fields.get("parameters")
        if given is not None:
            parameters = span_fields.parsed(given) if isinstance(given, str) else given
            if isinstance(parameters, dict):
                function["parameters"] = parameters
            else:
                odd["parameters of a tool that are no JSON object"] += 1
        tools.append({"type": "function", "function": function})
    return tools or None
