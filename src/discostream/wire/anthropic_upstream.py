"""What Anthropic's Messages API streams: events with a `type`, read with tolerance.

https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

from typing import Any

from discostream.types import FinishReason
from discostream.wire.fields import count, mapping, text, thoughts
from discostream.wire.openai_upstream import UpstreamChunk, Usage, decode_object

__all__ = ["decode_event"]

_STOP_REASONS = {
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "refusal": FinishReason.CONTENT_FILTER,
}


def decode_event(payload: bytes) -> UpstreamChunk:
    """What one event says of the answer; pings and events yet unknown say nothing.

    Raises:
        ChunkError: The payload is an `error` event, or no JSON object.
    """
    tree = decode_object(payload)
    delta = mapping(tree.get("delta"))
    kind = delta.get("type")
    usage = tree.get("usage") or mapping(tree.get("message")).get("usage")
    return UpstreamChunk(
        content=text(delta.get("text")) if kind == "text_delta" else "",
        finish_reason=_finish_reason(delta.get("stop_reason")),
        usage=_usage(usage),
        extra=thoughts(delta.get("thinking")) if kind == "thinking_delta" else None,
    )


def _finish_reason(reason: Any) -> FinishReason | None:
    if not isinstance(reason, str) or not reason:
        return None
    return _STOP_REASONS.get(reason, FinishReason.STOP)


def _usage(usage: Any) -> Usage | None:
    """The counts, of which `input_tokens` leaves out what was read from the cache or written to it."""
    if not isinstance(usage, dict):
        return None
    uncached, cached = count(usage.get("input_tokens")), count(usage.get("cache_read_input_tokens"))
    stored = count(usage.get("cache_creation_input_tokens"))
    prompt = None if uncached is None else uncached + (cached or 0) + (stored or 0)
    return Usage(prompt, count(usage.get("output_tokens")), cached)
