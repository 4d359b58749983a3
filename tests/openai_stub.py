"""A server that speaks enough of OpenAI's API for agents under test: it answers at once, and the same unless told how."""

from __future__ import annotations

import json
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = "The sky is blue because of Rayleigh scattering."
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
PROMPT_TOKENS = [1, 2, 3]
TOKENS = [10, 11, 12, 13, 14, 15, 16, 17]
"""Given by models whose name ends in `-tokens`: one for each word of the answer."""
Answer = Callable[[dict[str, Any]], "str | dict[str, Any]"]
"""What to say to the body of a request: a text, or a whole message (chat only)."""
TOOL_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        self.server.requests.append((self.path, body))  # type: ignore[attr-defined]
        model = body.get("model", "")
        if model == "broken":
            return self._json({"error": {"message": "The model is broken", "type": "invalid_request_error"}}, 400)
        kind = self.path.rsplit("/", 1)[-1]
        answer: Answer | None = self.server.answer  # type: ignore[attr-defined]
        if answer is not None:
            return self._json((_chat if "chat" in self.path else _text)(body, answer(body)))
        if self.path.endswith("/chat/completions"):
            return self._stream(_chat_chunks(body)) if body.get("stream") else self._json(_chat(body))
        if kind == "completions":
            return self._stream(_text_chunks(body)) if body.get("stream") else self._json(_text(body))
        if kind == "responses":
            return self._stream(_response_events(body)) if body.get("stream") else self._json(_response(body))
        if kind == "embeddings":
            return self._json(_embeddings(body))
        return self._json({"error": {"message": f"No route {self.path}"}}, 404)

    def _json(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, chunks: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


def _chat(body: dict[str, Any], said: str | dict[str, Any] = ANSWER) -> dict[str, Any]:
    message: dict[str, Any] = said if isinstance(said, dict) else {"role": "assistant", "content": said}
    answered = any(message.get("role") == "tool" for message in body.get("messages", []))
    if said is ANSWER and body.get("tools") and not answered:
        message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    choices: list[dict[str, Any]] = []
    for index in range(body.get("n") or 1):
        choice: dict[str, Any] = {"index": index, "message": message, "finish_reason": reason, "logprobs": None}
        if _gives_tokens(body):
            choice["token_ids"] = [100 * index + token for token in TOKENS]
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [_logprob(word) for word in ANSWER.split(" ")], "refusal": None}
        choices.append(choice)
    extra = {"prompt_token_ids": PROMPT_TOKENS} if _gives_tokens(body) else {}
    return {**_head(body, "chat.completion"), "choices": choices, "usage": USAGE, **extra}


def _gives_tokens(body: dict[str, Any]) -> bool:
    return bool(body.get("return_token_ids")) or str(body.get("model")).endswith("-tokens")


def _logprob(word: str) -> dict[str, Any]:
    return {"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": []}


def _chat_chunks(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One piece for each word; the last choice comes first, so that their order says nothing."""
    head = _head(body, "chat.completion.chunk")
    indices = range((body.get("n") or 1) - 1, -1, -1)
    first = {"prompt_token_ids": PROMPT_TOKENS} if _gives_tokens(body) else {}
    for number, word in enumerate(ANSWER.split(" ")):
        for index in indices:
            delta = {"content": word if number == 0 else " " + word}
            if number == 0:
                delta["role"] = "assistant"
            piece: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": None}
            if _gives_tokens(body):
                piece["token_ids"] = [100 * index + TOKENS[number]]
            if body.get("logprobs"):
                piece["logprobs"] = {"content": [_logprob(word)], "refusal": None}
            yield {**head, **first, "choices": [piece]}
            first = {}
    for index in indices:
        yield {**head, "choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": USAGE}


def _text(body: dict[str, Any], said: str | dict[str, Any] = " positive") -> dict[str, Any]:
    choice = {"index": 0, "text": said, "finish_reason": "stop", "logprobs": None}
    return {**_head(body, "text_completion"), "choices": [choice], "usage": USAGE}


def _text_chunks(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for text, reason in ((" posi", None), ("tive", "stop")):
        choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        yield {**_head(body, "text_completion"), "choices": [choice]}


def _response(body: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "output_text", "text": ANSWER, "annotations": []}
    message = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [text]}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        # New for each: the instrumentation takes answers of one id for parts of one.
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": 1700000000,
        "status": "completed",
        "model": body.get("model", "stub"),
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18, **details},
        **({"prompt_token_ids": PROMPT_TOKENS, "response_token_ids": TOKENS} if _gives_tokens(body) else {}),
    }


def _response_events(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    whole = _response(body)
    item = whole["output"][0]
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**whole, "status": "in_progress", "output": [], "usage": None}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.content_part.added", **place, "part": {**item["content"][0], "text": ""}},
        *(
            {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
            for piece in re.findall(r"\S+\s*", ANSWER)
        ),
        {"type": "response.output_text.done", **place, "text": ANSWER, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": item["content"][0]},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    for number, event in enumerate(events):
        yield {**event, "sequence_number": number}


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
    return {"object": "list", "model": body.get("model", "stub"), "data": data, "usage": usage}


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-stub",
        "object": kind,
        "created": 1700000000,
        "model": body.get("model", "stub"),
        "system_fingerprint": "fp_stub",
    }


class Stub:
    """A running stub: ``base_url`` for the client, ``requests`` as (path, body) in order of arrival."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.base_url = f"http://127.0.0.1:{server.server_port}/v1"
        self.requests: list[tuple[str, Any]] = server.requests  # type: ignore[attr-defined]


@contextmanager
def openai_stub(port: int = 0, answer: Answer | None = None) -> Iterator[Stub]:
    """Serve on a free port of the loopback address until the block ends; ``answer`` says what, without streaming."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.daemon_threads = True
    server.requests = []  # type: ignore[attr-defined]
    server.answer = answer  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Stub(server)
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with openai_stub(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as stub:
        print(stub.base_url, flush=True)
        threading.Event().wait()
