"""What Gemini's `streamGenerateContent` streams: responses with candidates, read with tolerance.

https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

from typing import Any

from discostream.types import FinishReason
from discostream.wire.fields import count, mapping, text, thoughts
from discostream.wire.openai_upstream import ChunkError, UpstreamChunk, Usage, decode_object

__all__ = ["decode_response"]

_FINISH_REASONS = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    "SAFETY": FinishReason.CONTENT_FILTER,
    "RECITATION": FinishReason.CONTENT_FILTER,
    "BLOCKLIST": FinishReason.CONTENT_FILTER,
    "PROHIBITED_CONTENT": FinishReason.CONTENT_FILTER,
    "SPII": FinishReason.CONTENT_FILTER,
}


def decode_response(payload: bytes) -> UpstreamChunk:
    """What one response of the stream says of the answer, and of the thoughts before it.

    Raises:
        ChunkError: It is an error object, no JSON object, or ends the answer for no good reason.
    """
    tree = decode_object(payload)
    candidates = tree.get("candidates")
    candidate = mapping(candidates[0]) if isinstance(candidates, list) and candidates else {}
    blocked = mapping(tree.get("promptFeedback")).get("blockReason")
    parts = mapping(candidate.get("content")).get("parts")
    return UpstreamChunk(
        content=_said(parts, thought=False),
        finish_reason=FinishReason.CONTENT_FILTER if blocked else _ended(candidate.get("finishReason")),
        usage=_usage(tree.get("usageMetadata")),
        extra=thoughts(_said(parts, thought=True)),
    )


def _said(parts: Any, *, thought: bool) -> str:
    parts = [mapping(part) for part in parts] if isinstance(parts, list) else []
    return "".join(text(part.get("text")) for part in parts if bool(part.get("thought")) is thought)


def _ended(reason: Any) -> FinishReason | None:
    if not isinstance(reason, str) or reason in ("", "FINISH_REASON_UNSPECIFIED"):
        return None
    if reason not in _FINISH_REASONS:
        raise ChunkError(f"ended the answer with finishReason {reason!r}")
    return _FINISH_REASONS[reason]


def _usage(usage: Any) -> Usage | None:
    """The counts; thoughts are paid for as a part of the answer."""
    if not isinstance(usage, dict) or not usage:
        return None
    said, thought = count(usage.get("candidatesTokenCount")), count(usage.get("thoughtsTokenCount"))
    wrote = None if said is None and thought is None else (said or 0) + (thought or 0)
    return Usage(count(usage.get("promptTokenCount")), wrote, count(usage.get("cachedContentTokenCount")))
