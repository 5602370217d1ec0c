"""Services that speak OpenAI's chat completions each in its own way, as their documentation describes it.

Mistral's refusal of fields that it does not know is from editor-code-assistant/eca#231, its echo from
rentry.org/or-prefill; OpenAI's refusal of `max_tokens` is what its reasoning models say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from standins.serving import PROMPT_TOKENS, Asked, Handler, Reply, event, refusal, words

COMMON = {
    "model",
    "messages",
    "stream",
    "stop",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
}


def _told(body: dict[str, Any]) -> str:
    last = body["messages"][-1]
    return last["content"] if last["role"] == "assistant" else ""


def deepseek(asked: Asked) -> Reply:
    """Goes on from a prefix under /beta; elsewhere it knows no prefixes, and begins anew."""
    beta = asked.path == "/beta/chat/completions"
    told = _told(asked.body) if beta and asked.body["messages"][-1].get("prefix") else ""
    return _reply(asked.body, words(told, asked.body.get("max_tokens")))


def mistral(asked: Asked) -> Reply:
    """Repeats the prefix that it goes on from, counts unasked, and refuses what it does not know."""
    body = asked.body
    if unknown := sorted(set(body) - COMMON - {"max_tokens", "random_seed"}):
        detail = {
            "type": "extra_forbidden",
            "loc": ["body", unknown[0]],
            "msg": "Extra inputs are not permitted",
        }
        return refusal(422, {"object": "error", "message": {"detail": [detail]}})
    told = _told(body)
    if told and not body["messages"][-1].get("prefix"):
        return refusal(
            400,
            {
                "object": "error",
                "message": "Expected last role User or Tool (or Assistant with prefix True) for serving "
                "but got assistant",
                "type": "invalid_request_message_order",
                "code": "3230",
            },
        )
    said, whole = words(told, body.get("max_tokens"))
    return _reply(body, ([told, *said] if told else said, whole), count=True)


def openai(asked: Asked) -> Reply:
    """Knows no `max_tokens`; a last assistant message is history, and the answer begins anew."""
    if "max_tokens" in asked.body:
        message = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead."
        )
        error = {"message": message, "type": "invalid_request_error", "code": "unsupported_parameter"}
        return refusal(400, {"error": error})
    return _reply(asked.body, words("", asked.body.get("max_completion_tokens")))


def continues_if(is_so: Callable[[dict[str, Any]], bool]) -> Handler:
    """A server that goes on from a last assistant message if `is_so` of the request; else it begins anew."""

    def handle(asked: Asked) -> Reply:
        told = _told(asked.body) if is_so(asked.body) else ""
        most = asked.body.get("max_tokens") or asked.body.get("max_completion_tokens")
        return _reply(asked.body, words(told, most))

    return handle


vllm = continues_if(
    lambda b: bool(b.get("continue_final_message")) and b.get("add_generation_prompt") is False
)
"""vLLM and SGLang."""

open_turn = continues_if(lambda b: True)
"""Groq, and such models of Ollama, LM Studio, Together and Fireworks as leave the assistant's turn open."""


def openrouter(asked: Asked) -> Reply:
    """Goes on where a provider is pinned that does; sends comments while it waits for one."""
    provider = asked.body.get("provider", {})
    told = _told(asked.body) if provider.get("only") and provider.get("allow_fallbacks") is False else ""
    kind, parts = _reply(asked.body, words(told, asked.body.get("max_tokens")))
    return kind, chain([b": OPENROUTER PROCESSING\n\n"], parts)


def _reply(
    body: dict[str, Any], said: tuple[list[str], bool], *, count: bool = False
) -> tuple[str, Iterable[bytes]]:
    return "text/event-stream", _stream(*said, count or "stream_options" in body)


def _stream(said: list[str], whole: bool, count: bool) -> Iterator[bytes]:
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    for word in said:
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        yield event({**head, "choices": [choice]})
    yield event(
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop" if whole else "length"}]}
    )
    if count:
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": len(said), "total_tokens": 0}
        yield event({**head, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"
