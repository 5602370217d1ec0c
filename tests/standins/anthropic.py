"""Anthropic's Messages API, as docs.anthropic.com describes it.

Its words for a prefill on 4.6 are from the migration guide, those for a blank at its end from forgecode#1872.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from standins.serving import PROMPT_TOKENS, Asked, Reply, event, refusal, words

CACHED, STORED = 16, 4


def handle(asked: Asked) -> Reply:
    body = asked.body
    if asked.path != "/v1/messages" or "anthropic-version" not in asked.headers:
        return _error(404, "not_found_error", "Not found")
    if asked.headers.get("x-api-key") != "sk-ant-right":
        return _error(401, "authentication_error", "invalid x-api-key")
    if "max_tokens" not in body:
        return _error(400, "invalid_request_error", "max_tokens: Field required")
    if unknown := set(body) - {
        "model",
        "max_tokens",
        "messages",
        "stream",
        "system",
        "stop_sequences",
        "temperature",
        "top_p",
    }:
        return _error(400, "invalid_request_error", f"{unknown.pop()}: Extra inputs are not permitted")
    if any(message["role"] not in ("user", "assistant") for message in body["messages"]):
        return _error(400, "invalid_request_error", "messages: Unexpected role")
    last = body["messages"][-1]
    told = last["content"] if last["role"] == "assistant" else ""
    if told and "-4-6" in body["model"]:
        return _error(
            400,
            "invalid_request_error",
            "This model does not support assistant message prefill. "
            "The conversation must end with a user message.",
        )
    if told != told.rstrip():
        return _error(
            400,
            "invalid_request_error",
            "messages: final assistant content cannot end with trailing whitespace",
        )
    return "text/event-stream; charset=utf-8", _stream(told, body["max_tokens"])


def _stream(told: str, most: int) -> Iterator[bytes]:
    said, whole = words(told, most)
    usage = {
        "input_tokens": PROMPT_TOKENS - CACHED - STORED,
        "cache_read_input_tokens": CACHED,
        "cache_creation_input_tokens": STORED,
    }
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "stop_reason": None}
    yield _event("message_start", message={**message, "usage": {**usage, "output_tokens": 1}})
    yield _event("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""})
    yield _event("ping")
    yield _event(
        "content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Let me count."}
    )
    yield _event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "EqQBCg"})
    yield _event("content_block_stop", index=0)
    yield _event("content_block_start", index=1, content_block={"type": "text", "text": ""})
    for word in said:
        yield _event("content_block_delta", index=1, delta={"type": "text_delta", "text": word})
    yield _event("content_block_stop", index=1)
    delta = {"stop_reason": "end_turn" if whole else "max_tokens", "stop_sequence": None}
    yield _event("message_delta", delta=delta, usage={"output_tokens": len(said) + 5})
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _error(status: int, kind: str, message: str) -> Reply:
    return refusal(status, {"type": "error", "error": {"type": kind, "message": message}})
