"""Answers as OpenAI's API spells them: chunks of a stream, or one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import msgspec

from discostream.types import Delivered, Extra, Outcome
from discostream.wire.openai_schema import Call

__all__ = ["ChunkEncoder", "PieceEncoder", "TextChunkEncoder", "annotating", "chunk_encoder", "encode_answer"]

PieceEncoder: TypeAlias = Callable[[Delivered], bytes]
"""Writes the chunk that carries a piece."""

_ONCE = {"id", "index", "type"}
"""Members of a delta that are said again, not continued."""


class ChunkEncoder:
    """Writes the chunks of one streamed answer; `id`, `created` and `model` stay the same on all.

    Call `opening` once, `piece` per piece, `finish` once, and `usage` last if the client asked for it.
    """

    def __init__(self, call: Call, created: int) -> None:
        self._head = _head(call, created, "chatcmpl", "chat.completion.chunk")
        self._delta = b'%b,"choices":[{"index":0,"delta":' % self._head
        self._usage = b',"usage":null' if call.include_usage else b""
        self._tail = b',"logprobs":null,"finish_reason":null}]%b}' % self._usage

    def opening(self) -> bytes:
        """The first chunk: who speaks. Sent once, because clients join repeated roles."""
        return b'%b{"role":"assistant","content":""}%b' % (self._delta, self._tail)

    def piece(self, piece: Delivered) -> bytes:
        """A chunk that carries a piece."""
        if piece.extra is not None:
            return self._beyond_text(piece.text, piece.extra)
        return b'%b{"content":%b}%b' % (self._delta, msgspec.json.encode(piece.text), self._tail)

    def finish(self, outcome: Outcome) -> bytes:
        """The chunk that ends the answer: why it ended, and the `disco` account at top level."""
        reason, disco = _finish_reason(outcome).encode(), msgspec.json.encode(outcome.as_disco())
        choice = b'{},"logprobs":null,"finish_reason":"%b"}]' % reason
        return b'%b%b%b,"disco":%b}' % (self._delta, choice, self._usage, disco)

    def usage(self, outcome: Outcome) -> bytes:
        """The chunk that carries the token counts: no choices, and nothing but [DONE] after it."""
        return b'%b,"choices":[],"usage":%b}' % (self._head, msgspec.json.encode(_usage(outcome)))

    def _beyond_text(self, text: str, extra: Extra) -> bytes:
        said = {"reasoning_content": extra.reasoning, "content": text}
        delta = msgspec.json.encode({**{name: words for name, words in said.items() if words}, **extra.delta})
        logprobs = msgspec.json.encode(extra.logprobs)
        rest = b',"logprobs":%b,"finish_reason":null}]%b}' % (logprobs, self._usage)
        return b"%b%b%b" % (self._delta, delta, rest)


class TextChunkEncoder(ChunkEncoder):
    """The same for raw completions, whose chunks carry bare text."""

    def __init__(self, call: Call, created: int) -> None:
        super().__init__(call, created)
        self._head = _head(call, created, "cmpl", "text_completion")
        self._choice = b'%b,"choices":[{"index":0,"text":' % self._head

    def opening(self) -> bytes:
        """Nothing is said before the text."""
        return b""

    def piece(self, piece: Delivered) -> bytes:
        """A chunk that carries a piece."""
        logprobs = piece.extra.logprobs if piece.extra is not None else None
        return self._chunk(piece.text, b"null", logprobs) + b"}"

    def finish(self, outcome: Outcome) -> bytes:
        """The chunk that ends the answer; see `ChunkEncoder.finish`."""
        disco = msgspec.json.encode(outcome.as_disco())
        return b'%b,"disco":%b}' % (self._chunk("", b'"%b"' % _finish_reason(outcome).encode()), disco)

    def _chunk(self, text: str, reason: bytes, logprobs: Mapping[str, Any] | None = None) -> bytes:
        """A chunk, not yet closed."""
        said = msgspec.json.encode(text), msgspec.json.encode(logprobs), reason, self._usage
        return b'%b%b,"logprobs":%b,"finish_reason":%b}]%b' % (self._choice, *said)


def chunk_encoder(call: Call, created: int) -> ChunkEncoder:
    """What writes the chunks of this call's answer."""
    return (ChunkEncoder if call.request.raw_prompt is None else TextChunkEncoder)(call, created)


def annotating(encode: PieceEncoder) -> PieceEncoder:
    """The same, but each chunk also says who made its piece, of how many tokens, and when it left us.

    One that has neither text nor tokens says that an attempt began. It is said at top level, because clients
    add up whatever numbers they find in a `delta`.
    """

    def annotated(piece: Delivered) -> bytes:
        made = {"endpoint": piece.endpoint, "tokens": piece.tokens, "at_s": piece.at_s}
        return b'%b,"disco":%b}' % (encode(piece)[:-1], msgspec.json.encode(made))

    return annotated


def encode_answer(call: Call, created: int, pieces: Iterable[Delivered], outcome: Outcome) -> bytes:
    """The body of an answer that is not streamed."""
    text, extra = _whole(pieces)
    said: dict[str, Any]
    if call.request.raw_prompt is None:
        head, said = _head(call, created, "chatcmpl", "chat.completion"), {"message": _message(text, extra)}
    else:
        head, said = _head(call, created, "cmpl", "text_completion"), {"text": text}
    choice = {"index": 0, **said, "logprobs": extra.logprobs, "finish_reason": _finish_reason(outcome)}
    rest = {"choices": [choice], "usage": _usage(outcome), "disco": outcome.as_disco()}
    return b"%b,%b" % (head, msgspec.json.encode(rest)[1:])


def _whole(pieces: Iterable[Delivered]) -> tuple[str, Extra]:
    """The text of all pieces, and what came beside it, joined as clients join chunks."""
    texts, reasoning = [], []
    delta: Any = {}
    logprobs: Any = None
    for piece in pieces:
        texts.append(piece.text)
        if piece.extra is not None:
            reasoning.append(piece.extra.reasoning)
            delta = _joined(delta, piece.extra.delta)
            logprobs = _joined(logprobs, piece.extra.logprobs)
    return "".join(texts), Extra(reasoning="".join(reasoning), delta=delta, logprobs=logprobs)


def _message(text: str, extra: Extra) -> dict[str, Any]:
    content = None if extra.is_beyond_text and not text else text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, **extra.delta}
    if extra.reasoning:
        message["reasoning_content"] = extra.reasoning
    if "tool_calls" in message:
        message["tool_calls"] = [_without_index(call) for call in message["tool_calls"]]
    return message


def _without_index(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call that is whole; only parts of one are told apart by their index."""
    return {name: value for name, value in call.items() if name != "index"}


def _joined(old: Any, new: Any) -> Any:
    """Two parts of one value: texts and lists go on, objects are joined, anything else is said anew."""
    match old, new:
        case str(), str():
            return old + new
        case dict(), dict():
            both = old.keys() & new.keys() - _ONCE
            return {**old, **new, **{name: _joined(old[name], new[name]) for name in both}}
        case list(), list():
            longer = list(old)
            for part in new:
                _put(longer, part)
            return longer
        case _:
            return old if new is None else new


def _put(parts: list[Any], part: Any) -> None:
    """Add a part to a list, or to the part that has the same index."""
    index = _index(part)
    at = [] if index is None else [at for at, known in enumerate(parts) if _index(known) == index]
    if at:
        parts[at[0]] = _joined(parts[at[0]], part)
    else:
        parts.append(part)


def _index(part: Any) -> Any:
    return part.get("index") if isinstance(part, dict) else None


def _head(call: Call, created: int, prefix: str, kind: str) -> bytes:
    """An unclosed JSON object with the fields that all chunks of an answer share."""
    shared = {
        "id": f"{prefix}-{call.request.request_id}",
        "object": kind,
        "created": created,
        "model": call.model,
    }
    return msgspec.json.encode(shared)[:-1]


def _finish_reason(outcome: Outcome) -> str:
    assert outcome.finish_reason is not None
    return outcome.finish_reason.value


def _usage(outcome: Outcome) -> dict[str, int]:
    prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
