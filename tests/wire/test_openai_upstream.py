from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.errors import Phase
from discostream.types import Event, Extra, Finish, FinishReason, Piece, Prompt
from discostream.wire.openai_answer import AnswerReader
from discostream.wire.openai_upstream import ChunkError, UpstreamChunk, Usage, decode_chunk, decode_error
from discostream.wire.sse import DONE, SseError, data_event


def chunk(content: Any = None, finish: Any = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return data_event(json.dumps({"choices": [choice], **fields}).encode())


def read(reader: AnswerReader, *pieces: bytes) -> list[Event]:
    return [event for piece in pieces for event in reader.feed(piece)]


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"choices": []},
        {"choices": None, "usage": None, "error": None},
        {"choices": [None]},
        {"choices": [{"delta": None, "finish_reason": None}]},
        {"choices": [{"delta": {"role": "assistant", "content": None}}]},
        {"choices": [{"delta": {"reasoning_content": None, "tool_calls": []}, "logprobs": None}]},
        {"choices": [{"delta": {"content": 5}}]},
        {"choices": {}},
    ],
)
def test_chunks_without_content_are_empty(payload: Any) -> None:
    """Role preludes, nulls and odd types bring no content and no error."""
    assert decode_chunk(json.dumps(payload).encode()) == UpstreamChunk("", None, None)


CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}


@pytest.mark.parametrize(
    ("delta", "extra"),
    [
        ({"reasoning_content": "hm"}, Extra(reasoning="hm")),
        ({"reasoning": "hm", "content": ""}, Extra(reasoning="hm")),
        ({"reasoning_content": "hm", "reasoning": "hm"}, Extra(reasoning="hm")),
        ({"content": None, "tool_calls": [CALL]}, Extra(delta={"tool_calls": [CALL]})),
        ({"reasoning_details": [{"index": 0}]}, Extra(delta={"reasoning_details": [{"index": 0}]})),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
            Extra(reasoning="hm"),
        ),
    ],
)
def test_what_stands_beside_text_is_kept(delta: dict[str, Any], extra: Extra) -> None:
    """Reasoning has one name, whatever the server calls it; everything else stays as it is."""
    assert decode_chunk(json.dumps({"choices": [{"delta": delta}]}).encode()).extra == extra


def test_log_probabilities_come_with_their_text() -> None:
    """They stand at the choice, and text completions have them there, too."""
    chunk = decode_chunk(b'{"choices":[{"text":"Hi","logprobs":{"tokens":["Hi"]}}]}')
    assert (chunk.content, chunk.extra) == ("Hi", Extra(logprobs={"tokens": ["Hi"]}))


@pytest.mark.parametrize(
    ("delta", "phase", "tokens"),
    [
        ({"reasoning": "Let me think"}, Phase.DECODE, 3),
        ({"tool_calls": [CALL]}, Phase.DECODE, 1),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "twelve chars"}}, 3]}, Phase.DECODE, 3),
        ({"annotations": [1]}, Phase.PREFILL, 1),
    ],
)
def test_reasoning_and_calls_begin_an_answer(delta: dict[str, Any], phase: Phase, tokens: int) -> None:
    """They count as content and as tokens; remarks are passed on, but begin nothing."""
    reader = AnswerReader()
    (piece,) = read(reader, data_event(json.dumps({"choices": [{"delta": delta}]}).encode()))
    assert isinstance(piece, Piece)
    assert (piece.text, piece.tokens, reader.phase) == ("", tokens, phase)


def test_content_may_come_in_parts() -> None:
    """Of a list of parts only the text ones are content."""
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Hi"}, 3]
    assert decode_chunk(json.dumps({"choices": [{"delta": {"content": parts}}]}).encode()).content == "Hi"


@pytest.mark.parametrize("twelve", [12, 12.0, "12"])
def test_counts_may_be_spelt_oddly(twelve: Any) -> None:
    """Counts come as integers, floats or strings; what is no count is absent."""
    usage = {"prompt_tokens": twelve, "completion_tokens": True, "prompt_tokens_details": None}
    assert decode_chunk(json.dumps({"usage": usage}).encode()).usage == Usage(12, None, None)


@pytest.mark.parametrize(
    ("spelt", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("eos", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("max_tokens", FinishReason.LENGTH),
        ("MAX_TOKENS", FinishReason.LENGTH),
        ("sensitive", FinishReason.CONTENT_FILTER),
        ("content_filter", FinishReason.CONTENT_FILTER),
        (None, None),
        ("", None),
    ],
)
def test_finish_reasons_are_put_into_openai_words(spelt: str | None, reason: FinishReason | None) -> None:
    """Dialects of finish reasons come out as one vocabulary."""
    assert decode_chunk(json.dumps({"choices": [{"finish_reason": spelt}]}).encode()).finish_reason is reason


@pytest.mark.parametrize("reason", ["error", "ERROR", "abort", "insufficient_system_resource"])
def test_a_finish_that_is_a_failure_raises(reason: str) -> None:
    """An answer that the server gave up is not finished."""
    with pytest.raises(ChunkError, match=reason):
        decode_chunk(json.dumps({"choices": [{"finish_reason": reason}]}).encode())


@pytest.mark.parametrize(
    ("error", "message", "status", "code"),
    [
        ({"error": {"message": "busy", "code": 529}}, "busy", 529, None),
        ({"error": {"message": "busy", "code": "429", "type": "rate"}}, "busy", 429, "429"),
        ({"error": "just text"}, "just text", None, None),
        ({"object": "error", "message": "old vLLM", "code": 400}, "old vLLM", 400, None),
        ({"error": {"oops": 1}}, '{"oops":1}', None, None),
        ({"error": {"message": "x" * 999}}, "x" * 300 + "…", None, None),
        (
            {"error": {"message": "This model's maximum context length is 4096 tokens", "code": 400}},
            "This model's maximum context length is 4096 tokens",
            400,
            "context_length_exceeded",
        ),
        (
            {"error": {"message": "too big", "type": "exceed_context_size_error"}},
            "too big",
            None,
            "context_length_exceeded",
        ),
    ],
)
def test_error_objects_of_every_shape_are_read(
    error: dict[str, Any], message: str, status: int | None, code: str | None
) -> None:
    """An error is looked for before choices, and a too long prompt always has OpenAI's code."""
    body = json.dumps({"choices": [{"delta": {"content": "no"}}], **error}).encode()
    with pytest.raises(ChunkError) as caught:
        decode_chunk(body)
    assert (str(caught.value), caught.value.status, caught.value.code) == (message, status, code)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"no such model"}}', "no such model"),
        (b'{"detail":"not found"}', "not found"),
        (b'{"message":"Unauthorized"}', "Unauthorized"),
        (b'{"detail":[{"loc":["body"]}]}', '{"detail":[{"loc":["body"]}]}'),
        (b"<html>\n  Bad gateway\xff</html>", "<html> Bad gateway\ufffd</html>"),
        (b"[1]", "[1]"),
        (b'[{"error":{"code":400,"message":"no such model"}}]', "no such model"),
        (b"\x1b[31mred\x1b]0;title\x07\x00", "[31mred ]0;title"),
        (b"", ""),
    ],
)
def test_error_bodies_of_every_shape_are_read(body: bytes, message: str) -> None:
    """Whatever a server says when it refuses, some words of it are kept."""
    assert str(decode_error(body)) == message


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_no_payload_raises_a_foreign_error(content: Any) -> None:
    """Any JSON anywhere is either read or refused with our own error."""
    shapes: list[Any] = [content, {"choices": content}, {"usage": content}, {"choices": [content]}]
    shapes += [{"choices": [{"delta": content, "finish_reason": content}]}, {"error": content}]
    for shape in shapes:
        try:
            decode_chunk(json.dumps(shape).encode())
        except ChunkError:
            continue


def test_an_answer_is_read_to_its_counts() -> None:
    """Pieces come as they arrive; counts behind the finish reason still reach the finish."""
    reader = AnswerReader()
    assert read(reader, chunk(""), chunk("Hello"), chunk(" there, reader")) == [
        Piece("Hello", 1),
        Piece(" there, reader", 4),
    ]
    assert (reader.phase, reader.finish_reason) == (Phase.DECODE, None)
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
    assert read(reader, chunk(finish="stop"), chunk("late", usage=usage), DONE) == []
    assert reader.over
    assert reader.finish() == Finish(FinishReason.STOP, 9, 4, 2)


def test_counts_before_content_tell_the_prompt() -> None:
    """An endpoint that counts from the start tells the prompt's length once."""
    usage = {"prompt_tokens": 9, "completion_tokens": 0}
    events = read(AnswerReader(), chunk("", usage=usage), chunk("a", usage=usage), chunk("b", usage=usage))
    assert events == [Prompt(9), Piece("a"), Piece("b")]


@pytest.mark.parametrize("ending", [DONE, b"data: [DONE]", b""])
def test_an_end_without_a_finish_reason_is_a_break(ending: bytes) -> None:
    """Neither [DONE] nor the end of the bytes finishes an answer."""
    reader = AnswerReader()
    with pytest.raises(ChunkError, match="without a finish_reason"):
        read(reader, chunk("Hel"), ending, b"")
    assert reader.phase is Phase.DECODE


def test_content_before_a_malformed_chunk_is_not_lost() -> None:
    """Pieces that arrived with the bad bytes come out before the error."""
    events: list[Event] = []
    with pytest.raises(ChunkError, match="not JSON"):
        events.extend(AnswerReader().feed(chunk("good") + data_event(b'{"choices":\xff')))
    assert events == [Piece("good")]


def test_empty_payloads_are_no_content() -> None:
    """`data:` with nothing behind it changes nothing, and an endless line is refused."""
    reader = AnswerReader()
    assert read(reader, b"data:\n\n", b"data: \n\n") == []
    assert reader.phase is Phase.PREFILL
    with pytest.raises(SseError):
        read(reader, b"data: " + b"x" * (1 << 20), b"x")


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_repeated_prefix_is_taken_off(cut: int) -> None:
    """However the echo is cut into pieces, only what is new comes out."""
    said = "Once upon a time"
    events = read(AnswerReader(echo="Once upon"), chunk(said[:cut]), chunk(said[cut:]))
    assert "".join(event.text for event in events if isinstance(event, Piece)) == " a time"
    assert all(event.text for event in events if isinstance(event, Piece))


@pytest.mark.parametrize("rest", [("ab", ""), ("a", "b"), ("ab",)])
def test_what_turns_out_to_be_no_echo_is_told(rest: tuple[str, ...]) -> None:
    """Text that could have become the repeated prefix is the answer's own once the answer has ended."""
    *first, last = rest
    events = read(AnswerReader(echo="abc"), *map(chunk, first), chunk(last, finish="stop"))
    assert "".join(event.text for event in events if isinstance(event, Piece)) == "ab"
    assert read(AnswerReader(echo="abc"), chunk("abc"), chunk("", finish="stop")) == []


@pytest.mark.parametrize(
    ("blank", "said", "new"),
    [
        (" ", [" time"], "time"),
        (" ", ["time"], "time"),
        ("\n\n", ["\n", "\n", "Next"], "Next"),
        ("\n", ["\n\nNext"], "\nNext"),
        ("\n\n", ["\nNext"], "Next"),
        ("", [" time"], " time"),
    ],
)
def test_whitespace_that_was_cut_off_is_not_said_twice(blank: str, said: list[str], new: str) -> None:
    """The seam holds the whitespace once, whether or not the endpoint says it again."""
    events = read(AnswerReader(blank=blank), *map(chunk, said))
    assert "".join(event.text for event in events if isinstance(event, Piece)) == new


def test_a_refusal_is_what_the_model_said() -> None:
    """A refusal in a field of its own is content, and no text: it would not fit an answer's schema."""
    refusal = {"choices": [{"delta": {"refusal": "I cannot help with that."}}]}
    reader = AnswerReader()
    (piece,) = read(reader, data_event(json.dumps(refusal).encode()))
    assert piece == Piece("", 6, extra=Extra(delta={"refusal": "I cannot help with that."}))
    assert (piece.is_content, reader.phase) == (True, Phase.DECODE)


def test_parts_of_calls_have_an_index() -> None:
    """A part that came without gets the next one where a call begins, and else its call's."""
    parts: list[dict[str, Any]] = [
        {"id": "a", "function": {"name": "f", "arguments": "{"}},
        {"id": "a", "function": {"arguments": "}"}},
        {"id": "", "function": {"name": "", "arguments": " "}},
        {"id": "b", "index": None, "function": {"name": "g"}},
        {"function": {"name": "h"}},
        {"index": 5, "id": "i"},
        {"function": {"arguments": "{}"}},
    ]
    reader = AnswerReader()
    pieces = read(reader, *(called(part) for part in parts))
    calls = [
        call
        for piece in pieces
        if isinstance(piece, Piece) and piece.extra
        for call in piece.extra.delta["tool_calls"]
    ]
    assert [call["index"] for call in calls] == [0, 0, 0, 1, 2, 5, 5]
    assert [{**call, "index": None} for call in calls] == [{**part, "index": None} for part in parts]


def called(part: dict[str, Any]) -> bytes:
    return data_event(json.dumps({"choices": [{"delta": {"tool_calls": [part]}}]}).encode())


@pytest.mark.parametrize("calls", ["f()", {"name": "f"}, ["f"], [None], 1])
def test_calls_that_are_none_are_absent(calls: Any) -> None:
    """Calls of tools are a list of objects; anything else under their name says nothing."""
    payload = json.dumps({"choices": [{"delta": {"content": "Hi", "tool_calls": calls}}]}).encode()
    assert decode_chunk(payload) == UpstreamChunk("Hi", None, None)


def test_late_nulls_do_not_erase_counts() -> None:
    """Counts that were told once stay, whatever a later chunk leaves out."""
    reader = AnswerReader()
    full = {"prompt_tokens": 3, "completion_tokens": 9}
    empty = {"prompt_tokens": None, "completion_tokens": None}
    read(reader, chunk("Hi", usage=full), chunk(finish="stop", usage=empty), DONE)
    assert reader.finish() == Finish(FinishReason.STOP, 3, 9)


@pytest.mark.parametrize("count", [2**31, 2**70, -1, True])
def test_counts_that_cannot_be_are_no_counts(count: Any) -> None:
    """A number that no answer can have is not charged, and does not break the ledger."""
    usage = {"prompt_tokens": count, "completion_tokens": 1}
    told = decode_chunk(json.dumps({"choices": [], "usage": usage}).encode()).usage
    assert told
    assert told.prompt_tokens is None


@pytest.mark.parametrize(
    ("around", "expected"),
    [
        ('"object":"error"', ChunkError),
        ('"error":{"message":"busy"}', ChunkError),
        ('"error":{"message":"busy"},"error":null', UpstreamChunk("Hi", None, None)),
        ('"usage":{"prompt_tokens":3}', UpstreamChunk("Hi", None, Usage(3, None, None))),
        ('"choices":[{"index":1,"delta":{"content":"so"}}]', UpstreamChunk("so", None, None)),
        ('"choices":[]', UpstreamChunk("", None, None)),
        (f'"note":{"[" * 100_000}{"]" * 100_000}', ChunkError),
    ],
)
def test_what_stands_beside_plain_text_is_not_overlooked(around: str, expected: Any) -> None:
    """A chunk that looks plain at first is read as any other, whatever else it holds."""
    head = b'{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":""}],'
    payload = b"%b%b}" % (head, around.encode())
    for plain in (payload, payload.replace(b',"finish_reason":""', b"")):
        if expected is ChunkError:
            with pytest.raises(ChunkError):
                decode_chunk(plain)
        else:
            assert decode_chunk(plain) == expected
