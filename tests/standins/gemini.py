"""Gemini's `streamGenerateContent`, as ai.google.dev describes it.

What newer models say to a last turn of the model is from LibreChat-AI/agents PR #323.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from standins.serving import PROMPT_TOKENS, Asked, Reply, event, refusal, words

CACHED, THOUGHTS = 8, 30


def handle(asked: Asked) -> Reply:
    model, _, method = asked.path.removeprefix("/v1beta/models/").partition(":")
    contents, config = asked.body["contents"], asked.body.get("generationConfig", {})
    if method != "streamGenerateContent" or asked.query != {"alt": "sse"}:
        return _error(404, "NOT_FOUND", f"models/{model} is not found")
    if asked.headers.get("x-goog-api-key") != "AIza-right":
        return _error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
    if any(one["role"] == other["role"] for one, other in pairwise(contents)):
        return _error(
            400, "INVALID_ARGUMENT", "Please ensure that multiturn requests alternate between user and model."
        )
    told = contents[-1]["parts"][0]["text"] if contents[-1]["role"] == "model" else ""
    if told and model == "gemini-3.6-flash":
        return _error(
            400,
            "INVALID_ARGUMENT",
            "Requests ending with a model turn are not supported "
            "unless the last part is a function response.",
        )
    return "text/event-stream", _stream(told, config.get("maxOutputTokens"))


def _stream(told: str, most: int | None) -> Iterator[bytes]:
    said, whole = words(told, most)
    counts = {"promptTokenCount": PROMPT_TOKENS, "cachedContentTokenCount": CACHED}
    thought = {"parts": [{"text": "I shall count.", "thought": True}], "role": "model"}
    yield event({"candidates": [{"content": thought, "index": 0}], "usageMetadata": counts})
    for number, word in enumerate(said, 1):
        content = {"parts": [{"text": word}], "role": "model"}
        candidate = {"content": content, "index": 0}
        if number == len(said):
            candidate["finishReason"] = "STOP" if whole else "MAX_TOKENS"
        told_so_far = {**counts, "candidatesTokenCount": number, "thoughtsTokenCount": THOUGHTS}
        yield event({"candidates": [candidate], "usageMetadata": told_so_far, "modelVersion": "gemini"})


def _error(status: int, kind: str, message: str) -> Reply:
    return refusal(status, {"error": {"code": status, "message": message, "status": kind}})
