"""Requests as OpenAI's API spells them, for endpoints that speak it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Raw
from msgspec.structs import asdict

from discostream.types import Message, Prefix, Request

__all__ = ["messages_of", "passed_fields", "request_body"]


def request_body(
    request: Request,
    prefix: Prefix,
    *,
    unfinished: Mapping[str, Any] | None = None,
    max_tokens_field: str = "max_tokens",
    seed_field: str = "seed",
) -> dict[str, Any]:
    """All that the client asked for, to be streamed; what is known here wins over what is passed on.

    Args:
        request: What to answer.
        prefix: The answer so far.
        unfinished: What the message that holds it is marked with, where this is a chat.
        max_tokens_field: Which of OpenAI's two names for the limit the endpoint knows.
        seed_field: What the endpoint calls a seed.
    """
    passed = passed_fields(request)
    sampling = asdict(request.sampling)
    limits = {max_tokens_field: request.max_tokens, "stop": request.stop or None}
    wishes = {**limits, seed_field: sampling.pop("seed"), **sampling}
    said = {name: wish for name, wish in wishes.items() if wish is not None}
    if request.raw_prompt is not None:
        return {**passed, **said, "prompt": request.raw_prompt + prefix.text, "stream": True}
    messages = messages_of(request.messages)
    if prefix.text:
        messages.append({"role": "assistant", "content": prefix.text, **(unfinished or {})})
    return {**passed, **said, "messages": messages, "stream": True}


def passed_fields(request: Request) -> dict[str, Any]:
    """What the client asked for that is passed on as it is."""
    return {name: Raw(value) for name, value in request.fields.items()}


def messages_of(messages: Sequence[Message]) -> list[Any]:
    """A conversation, each message as the client wrote it, where that says more than its text."""
    return [
        {"role": message.role, "content": message.content} if message.raw is None else Raw(message.raw)
        for message in messages
    ]
