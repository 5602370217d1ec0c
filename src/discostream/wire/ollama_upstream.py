"""What Ollama's `/api/chat` streams: lines of JSON, read with tolerance.

https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from discostream.types import FinishReason
from discostream.wire.fields import count, mapping, text, thoughts
from discostream.wire.openai_upstream import ChunkError, UpstreamChunk, Usage, decode_object

__all__ = ["decode_line"]

_UNLOADED = ("load", "unload")


def decode_line(payload: bytes) -> UpstreamChunk:
    """What one line says of the answer, and of the `thinking` before it.

    Raises:
        ChunkError: It is an error, no JSON object, or ends the answer although nothing was generated.
    """
    tree = decode_object(payload)
    message = mapping(tree.get("message"))
    content, thought = text(message.get("content")), thoughts(message.get("thinking"))
    if tree.get("done") is not True:
        return UpstreamChunk(content=content, finish_reason=None, usage=None, extra=thought)
    reason = tree.get("done_reason")
    if reason in _UNLOADED:
        raise ChunkError(f"ended the answer with done_reason {reason!r}")
    return UpstreamChunk(
        content=content,
        finish_reason=FinishReason.LENGTH if reason == "length" else FinishReason.STOP,
        usage=Usage(count(tree.get("prompt_eval_count")), count(tree.get("eval_count")), None),
        extra=thought,
    )
