"""Streams of dialects of their own: lines found in pieces, and payloads read whatever they hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discostream.wire.anthropic_upstream import decode_event
from discostream.wire.gemini_upstream import decode_response
from discostream.wire.ndjson import NdjsonDecoder
from discostream.wire.ollama_upstream import decode_line
from discostream.wire.openai_upstream import ChunkError, UpstreamChunk
from discostream.wire.sse import SseError

KEYS = (
    *("type", "delta", "text", "stop_reason", "usage", "message", "input_tokens", "output_tokens", "error"),
    *(
        "thinking",
        "candidates",
        "content",
        "parts",
        "thought",
        "finishReason",
        "promptFeedback",
        "blockReason",
    ),
    *("usageMetadata", "promptTokenCount", "candidatesTokenCount", "done", "done_reason", "eval_count"),
)
WORDS = st.sampled_from(
    ["text_delta", "thinking_delta", "end_turn", "STOP", "SAFETY", "stop", "unload", "error", "", "12"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=20,
)


@pytest.mark.parametrize("decode", [decode_event, decode_response, decode_line])
@settings(deadline=None, max_examples=200)
@given(tree=TREES)
def test_any_payload_is_a_chunk_or_an_error(decode: Callable[[bytes], UpstreamChunk], tree: Any) -> None:
    """Whatever is missing, null or of an odd type counts as absent; nothing but `ChunkError` is raised."""
    try:
        chunk = decode(json.dumps(tree).encode())
    except ChunkError:
        return
    assert isinstance(chunk.content, str)
    assert chunk.extra is None or (isinstance(chunk.extra.reasoning, str) and chunk.extra.reasoning)


@given(lines=st.lists(st.text("ab é漢\u2028", min_size=1), min_size=1), cuts=st.lists(st.integers(0, 60)))
def test_lines_are_found_however_they_arrive(lines: list[str], cuts: list[int]) -> None:
    """Pieces of any size give the same lines, and a last one needs no line end."""
    data = "\n".join(lines).encode()
    decoder, found, start = NdjsonDecoder(), [], 0
    for end in [*sorted({min(cut, len(data)) for cut in cuts}), len(data)]:
        found += decoder.feed(data[start:end])
        start = end
    assert [line.decode() for line in found + decoder.end()] == lines


def test_a_line_is_bounded() -> None:
    """What is held back of a line that does not end stays below the limit."""
    decoder = NdjsonDecoder(max_line_bytes=8)
    assert decoder.feed(b"12345678\n") == [b"12345678"]
    with pytest.raises(SseError, match="longer than 8 bytes"):
        decoder.feed(b"123456789")
