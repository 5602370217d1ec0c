"""What OpenAI-compatible endpoints send: chunks and error objects, read with tolerance.

Fields that are missing, null or of an odd type count as absent. Only what cannot be an answer at all
raises, and always `ChunkError`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any, Literal

import msgspec
from msgspec import Struct

from discostream.types import Extra, FinishReason
from discostream.wire.fields import count as _count
from discostream.wire.fields import mapping as _dict

__all__ = [
    "CONTEXT_LENGTH_EXCEEDED",
    "ChunkError",
    "UpstreamChunk",
    "Usage",
    "decode_chunk",
    "decode_error",
    "decode_object",
]

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
"""OpenAI's code for a prompt longer than the context, which other servers' errors are mapped to."""

MAX_MESSAGE_CHARS = 300

_TOO_LONG = (
    CONTEXT_LENGTH_EXCEEDED,
    "exceed_context_size",
    "maximum context length",
    "context size",
    "context window",
    "exceeds the maximum number of tokens",
    "prompt is too long",
)
_FINISH_REASONS = {
    "content_filter": FinishReason.CONTENT_FILTER,
    "function_call": FinishReason.FUNCTION_CALL,
    "length": FinishReason.LENGTH,
    "limit": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "sensitive": FinishReason.CONTENT_FILTER,
    "tool_calls": FinishReason.TOOL_CALLS,
}
_TEXT = frozenset({"content", "role"})
_REASONING = ("reasoning_content", "reasoning")
"""What llama.cpp, DeepSeek and SGLang call it; and vLLM, OpenRouter and Ollama."""

_BROKEN = ("abort", "cancelled", "error", "insufficient_system_resource")
"""The last is DeepSeek's, which breaks an answer off when it has no machines left."""


class ChunkError(ValueError):
    """The stream cannot go on: the endpoint reports an error, or sent what is no chunk.

    Args:
        message: The endpoint's own words, bounded.
        status: The HTTP status that its error names, where it names one.
        code: Its short word for the error, where it has one.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts, as far as the endpoint gives them."""

    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None

    def filled_from(self, earlier: Usage | None) -> Usage:
        """These counts, with those of an earlier chunk where they are missing."""
        if earlier is None:
            return self
        pairs = zip(astuple(self), astuple(earlier), strict=True)
        return Usage(*(old if new is None else new for new, old in pairs))


class UpstreamChunk(Struct, frozen=True):
    """What one chunk holds."""

    content: str
    finish_reason: FinishReason | None
    usage: Usage | None
    extra: Extra | None = None


class _PlainDelta(Struct, forbid_unknown_fields=True):
    content: str | None = None
    role: str | None = None
    refusal: None = None


class _PlainChoice(Struct, forbid_unknown_fields=True):
    delta: _PlainDelta
    index: int = 0
    finish_reason: None = None
    logprobs: None = None


class _PlainChunk(Struct):
    """A chunk that holds text and nothing else, as most do; whatever does not fit is read with tolerance."""

    choices: tuple[_PlainChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: None = None
    error: None = None


_PLAIN = msgspec.json.Decoder(_PlainChunk)


def decode_chunk(payload: bytes) -> UpstreamChunk:
    """The chunk in one event's payload.

    Raises:
        ChunkError: The payload is an error object, or no JSON object.
    """
    try:
        (plain,) = _PLAIN.decode(payload).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _tolerantly(payload)
    return UpstreamChunk(plain.delta.content or "", None, None)


def _tolerantly(payload: bytes) -> UpstreamChunk:
    tree = decode_object(payload)
    choices = tree.get("choices")
    choice = _dict(choices[0]) if isinstance(choices, list) and choices else {}
    delta = _dict(choice.get("delta"))
    return UpstreamChunk(
        _text(delta.get("content")) or _text(choice.get("text")),
        _finish_reason(choice.get("finish_reason")),
        _usage(tree.get("usage")),
        _extra(delta, choice.get("logprobs")),
    )


def decode_object(payload: bytes) -> dict[str, Any]:
    """The JSON object in one event's payload, of whatever dialect.

    Raises:
        ChunkError: The payload is an error object, or no JSON object.
    """
    try:
        tree = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ChunkError(f"sent a chunk that is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ChunkError("sent a chunk that is not a JSON object")
    if tree.get("error") or tree.get("object") == "error":
        raise _error_in(tree)
    return tree


def decode_error(body: bytes) -> ChunkError:
    """What an error response says, whatever its shape: OpenAI's, FastAPI's, plain text or a web page."""
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ChunkError(_bounded(body.decode(errors="replace")))
    first = tree[0] if isinstance(tree, list) and tree else tree  # Google's OpenAI route sends a list of one
    return _error_in(first) if isinstance(first, dict) else ChunkError(_bounded(str(tree)))


def _error_in(tree: dict[str, Any]) -> ChunkError:
    error = tree.get("error") or tree
    fields = _dict(error)
    message = fields.get("message") or fields.get("detail") or (error if isinstance(error, str) else None)
    text = _bounded(message if isinstance(message, str) else msgspec.json.encode(error).decode())
    code = next((fields[key] for key in ("code", "type") if isinstance(fields.get(key), str)), None)
    if any(sign in f"{code} {text}".lower() for sign in _TOO_LONG):
        code = CONTEXT_LENGTH_EXCEEDED
    return ChunkError(text, status=_http_status(fields.get("code")), code=code)


def _bounded(text: str) -> str:
    """One line of text, for logs and terminals: what would steer them is a blank."""
    text = "".join(char if char.isprintable() else " " for char in text[: 8 * MAX_MESSAGE_CHARS])
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[:MAX_MESSAGE_CHARS]}…"


def _http_status(code: Any) -> int | None:
    status = _count(code)
    return status if status is not None and 400 <= status <= 599 else None


def _text(content: Any) -> str:
    """Content is a string; some servers send a list of parts, of which the text ones count."""
    if isinstance(content, str):
        return content
    texts = _parts(content, "text")
    return "".join(text for text in texts if isinstance(text, str))


def _thought(content: Any) -> str:
    """The parts that Mistral's models think in, each of which holds parts of text."""
    return "".join(map(_text, _parts(content, "thinking")))


def _parts(content: Any, kind: str) -> list[Any]:
    """What the parts of one kind hold."""
    parts = [_dict(part) for part in content] if isinstance(content, list) else []
    return [part.get(kind) for part in parts if part.get("type") == kind]


def _extra(delta: dict[str, Any], logprobs: Any) -> Extra | None:
    """What the choice says beside text, if it says anything."""
    thought = _thought(delta.get("content"))
    if not (logprobs or thought) and _TEXT.issuperset(delta):
        return None
    more = {name: value for name, value in delta.items() if name not in _TEXT and value}
    if calls := _objects(more.pop("tool_calls", None)):
        more["tool_calls"] = calls
    reasoning = [*(_text(more.pop(name, None)) for name in _REASONING), thought]
    if not (logprobs or more or any(reasoning)):
        return None
    return Extra(reasoning=next(filter(None, reasoning), ""), delta=more, logprobs=_dict(logprobs) or None)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _finish_reason(reason: Any) -> FinishReason | None:
    if not isinstance(reason, str) or not reason:
        return None
    if reason.lower() in _BROKEN:
        raise ChunkError(f"ended the answer with finish_reason {reason!r}")
    return _FINISH_REASONS.get(reason.lower(), FinishReason.STOP)


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict) or not usage:
        return None
    return Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _count(_dict(usage.get("prompt_tokens_details")).get("cached_tokens")),
    )
