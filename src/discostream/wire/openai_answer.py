"""One upstream answer: bytes of a stream in, OpenAI's unless told otherwise, an endpoint's events out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from discostream.core.seam import EchoFilter
from discostream.errors import Phase
from discostream.types import Event, Extra, Finish, FinishReason, Piece, Prompt
from discostream.wire.fields import mapping
from discostream.wire.fields import text as string
from discostream.wire.openai_upstream import ChunkError, UpstreamChunk, Usage, decode_chunk
from discostream.wire.sse import SseDecoder, SseError

__all__ = ["AnswerReader", "Decoder"]

CHARS_PER_TOKEN = 4
"""English text under a large vocabulary; counts only until the endpoint sends its own figures."""


class Decoder(Protocol):
    """Finds the payloads in bytes that arrive in pieces of any size."""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that these bytes complete."""

    def end(self) -> list[bytes]:
        """What is left at the end of the bytes."""


class AnswerReader:
    """Reads one answer as its bytes arrive.

    Args:
        echo: What a continuation repeats, if the endpoint is known to repeat it.
        blank: Whitespace that was cut off the partial answer; a continuation may or may not repeat it.
        decode: Reads one payload.
        decoder: Finds the payloads; those of server-sent events, if none is given.

    Attributes:
        phase: How far the answer has come.
        finish_reason: Why it ended; `None` until it has.
        over: Whether nothing more will come, not even token counts.
    """

    def __init__(
        self,
        echo: str = "",
        blank: str = "",
        *,
        decode: Callable[[bytes], UpstreamChunk] = decode_chunk,
        decoder: Decoder | None = None,
    ) -> None:
        self.phase = Phase.PREFILL
        self.finish_reason: FinishReason | None = None
        self.over = False
        self._decode = decode
        self._decoder = decoder or SseDecoder()
        self._echo = EchoFilter(echo)
        self._blank = blank
        self._may_repeat = bool(echo or blank)
        self._usage: Usage | None = None
        self._calls = _Calls()

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events in these bytes; none at all (`b""`) stand for the end of the stream.

        Once the finish reason is known nothing can break the answer any more.

        Raises:
            ChunkError: The endpoint reports an error, sent what is no chunk, or ended too early.
            SseError: A line is too long.
        """
        try:
            for payload in self._decoder.feed(data) if data else self._decoder.end():
                if payload.startswith(b"[DONE]"):
                    self.over = True
                    break
                if payload.strip():
                    chunk = self._decode(payload)
                    if chunk.usage is not None and (prompt := self._count(chunk.usage)):
                        yield prompt
                    if piece := self._piece(chunk):
                        yield piece
                    self.finish_reason = self.finish_reason or chunk.finish_reason
            self.over = self.over or not data
            if self.over and self.finish_reason is None:
                raise ChunkError("ended the stream without a finish_reason")
        except (ChunkError, SseError):
            if self.finish_reason is None:
                raise
            self.over = True

    def finish(self) -> Finish:
        """The last event; to be sent once `finish_reason` is known."""
        assert self.finish_reason is not None
        if self._usage is None:
            return Finish(self.finish_reason)
        usage = self._usage
        return Finish(self.finish_reason, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    def _count(self, usage: Usage) -> Prompt | None:
        """Keep token counts; how long the prompt is, where that is news and nothing else has come yet."""
        is_news = self._usage is None and self.phase is Phase.PREFILL
        self._usage = usage.filled_from(self._usage)
        return Prompt(usage.prompt_tokens) if is_news and usage.prompt_tokens else None

    def _piece(self, chunk: UpstreamChunk) -> Piece | None:
        text = self._without_repeats(chunk) if self._may_repeat else chunk.content
        if self.finish_reason is not None:
            return None
        if chunk.extra is not None:
            return self._beyond_text(text, chunk.extra)
        if not text:
            return None
        self.phase = Phase.DECODE
        return Piece(text, _tokens(len(text)))

    def _beyond_text(self, text: str, extra: Extra) -> Piece:
        extra = self._calls.numbered(extra)
        piece = Piece(text, _tokens(len(text) + _chars(extra)), extra=extra)
        if piece.is_content:
            self.phase = Phase.DECODE
        return piece

    def _without_repeats(self, chunk: UpstreamChunk) -> str:
        text = self._echo.feed(chunk.content)
        if chunk.finish_reason is not None:
            text += self._echo.end()
        while self._blank and text.startswith(self._blank[0]):
            text, self._blank = text[1:], self._blank[1:]
        if text:
            self._blank = ""
        return text


class _Calls:
    """Gives parts of tool calls the index by which clients join them: Gemini's OpenAI route leaves it out."""

    def __init__(self) -> None:
        self._index = -1
        self._id = ""

    def numbered(self, extra: Extra) -> Extra:
        """The same, every part of a call with an index."""
        parts = extra.delta.get("tool_calls")
        if not isinstance(parts, list):
            return extra
        calls = [{**part, "index": self._index_of(part)} for part in parts]
        return replace(extra, delta={**extra.delta, "tool_calls": calls})

    def _index_of(self, part: Mapping[str, Any]) -> int:
        """Its own, or the next one where a call begins, or else the last."""
        index = part.get("index")
        if isinstance(index, int):
            self._index = index
        elif self._index < 0 or self._begins(part):
            self._index += 1
        self._id = string(part.get("id")) or self._id
        return self._index

    def _begins(self, part: Mapping[str, Any]) -> bool:
        if known := string(part.get("id")):
            return known != self._id
        return bool(mapping(part.get("function")).get("name"))


def _tokens(chars: int) -> int:
    return max(1, round(chars / CHARS_PER_TOKEN))


def _chars(extra: Extra) -> int:
    """How many characters a model wrote that are no text: thoughts, a refusal, what it calls tools with."""
    chars = len(extra.reasoning) + len(string(extra.delta.get("refusal")))
    calls = extra.delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        match call:
            case {"function": {"arguments": str(arguments)}}:
                chars += len(arguments)
    return chars
