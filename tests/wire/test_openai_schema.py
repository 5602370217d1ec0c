from __future__ import annotations

import json
from typing import Any

import pytest

from discostream.errors import RequestRejected
from discostream.types import (
    Attempt,
    AttemptOutcome,
    Delivered,
    Extra,
    Feature,
    FinishReason,
    Kind,
    Message,
    Outcome,
    Sampling,
)
from discostream.wire.openai_reply import ChunkEncoder, TextChunkEncoder, encode_answer
from discostream.wire.openai_schema import (
    Call,
    chat_message,
    decode_chat_request,
    decode_completion_request,
    encode_error,
    encode_models,
    passed_on,
)

HELLO = [{"role": "user", "content": "Hello"}]


def decode(**fields: Any) -> Call:
    return decode_bytes(json.dumps({"model": "disco", "messages": HELLO, **fields}).encode())


def decode_bytes(body: bytes) -> Call:
    return decode_chat_request(body, arrived_at=7.5, request_id="r1")


def rejected(**fields: Any) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        decode(**fields)
    assert caught.value.status == 400
    return caught.value


def said(text: str = "", **extra: Any) -> Delivered:
    return Delivered(text, 1, "laptop", 0.2, Extra(**extra) if extra else None)


def settled(reason: FinishReason = FinishReason.STOP) -> Outcome:
    attempt = Attempt(
        endpoint="laptop",
        kind=Kind.DEVICE,
        start_offset_s=0.0,
        ttft_s=0.2,
        prompt_tokens=3,
        completion_tokens=2,
        usd=0.0,
        joules=1.5,
        outcome=AttemptOutcome.WON,
    )
    return Outcome(
        request_id="r1",
        policy="disco",
        winner="laptop",
        ttft_s=0.2,
        finish_reason=reason,
        prompt_chars=12,
        prompt_tokens=3,
        completion_tokens=2,
        attempts=(attempt,),
        migrations=(),
        delivered_s=(0.2, 0.3),
    )


def test_a_full_request_keeps_every_field() -> None:
    """Everything that an endpoint can carry reaches the request."""
    call = decode(
        model="any/name",
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        max_tokens=5,
        temperature=0,
        top_p=0.5,
        seed=3,
        presence_penalty=-1,
        frequency_penalty=2,
    )
    assert (call.model, call.stream, call.include_usage) == ("any/name", True, True)
    assert call.request.messages == (Message("user", "Hello"),)
    assert (call.request.arrived_at, call.request.request_id, call.request.max_tokens) == (7.5, "r1", 5)
    assert call.request.sampling == Sampling(
        temperature=0.0, top_p=0.5, seed=3, presence_penalty=-1.0, frequency_penalty=2.0
    )


def test_a_minimal_request_leaves_the_rest_to_the_endpoint() -> None:
    """Absent and null fields are the same: not said."""
    bare = decode()
    assert bare == decode(stream=None, max_tokens=None, stop=None, temperature=None, tools=None, n=None)
    assert (bare.stream, bare.include_usage, bare.request.max_tokens, bare.request.stop) == (
        False,
        False,
        None,
        (),
    )
    assert bare.request.sampling == Sampling()


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_token_limit_count(name: str) -> None:
    """`max_tokens` and `max_completion_tokens` mean the same, and of both the smaller holds."""
    assert decode(**{name: 9}).request.max_tokens == 9
    assert decode(max_tokens=9, max_completion_tokens=4).request.max_tokens == 4


def test_stop_strings() -> None:
    """A stop string may be written in two ways, and several in one; the answer may move all the same."""
    assert decode(stop="END").request.stop == ("END",)
    assert decode(stop=["a", "b"]).request.stop == ("a", "b")
    assert decode(stop=["a"]).request.pinned is None
    assert decode(stop=[]).request.stop == ()


def test_text_parts_are_joined() -> None:
    """A list of text parts is one text, a line each, and `developer` is what templates call `system`."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = decode(
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    )
    assert call.request.messages == (Message("system", "Be brief."), Message("user", "one\ntwo"))


def test_what_asks_for_nothing_is_left_out() -> None:
    """Fields for OpenAI's own service, and values that some servers refuse although they say nothing."""
    call = decode(
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="flex",
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=False,
        n=1,
        logprobs=False,
        response_format={"type": "text"},
        logit_bias={},
        unheard_of=None,
    )
    assert call == decode()


def test_everything_else_is_passed_on_as_it_was_written() -> None:
    """Fields that are not understood here keep their very JSON, and need nothing of an endpoint."""
    body = b'{"messages":[{"role":"user","content":"x"}],"top_k":5,"unheard_of":{"deep":[1.50, 1e2]}}'
    request = decode_bytes(body).request
    assert request.fields == {"top_k": b"5", "unheard_of": b'{"deep":[1.50, 1e2]}'}
    assert (request.needs, request.pinned, request.messages[0].raw) == (frozenset(), None, None)


@pytest.mark.parametrize(
    ("fields", "need"),
    [
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, Feature.TOOLS),
        ({"tools": [{"type": "function"}], "parallel_tool_calls": False}, Feature.TOOLS),
        ({"tool_choice": "required"}, Feature.TOOLS),
        ({"functions": [{}], "function_call": "auto"}, Feature.TOOLS),
        ({"response_format": {"type": "json_object"}}, Feature.JSON),
        ({"grammar": "root ::= [a-z]"}, Feature.JSON),
        ({"logprobs": True, "top_logprobs": 3}, Feature.LOGPROBS),
        ({"modalities": ["text", "audio"], "audio": {"voice": "any"}}, Feature.AUDIO),
    ],
)
def test_fields_say_what_they_need(fields: dict[str, Any], need: Feature) -> None:
    """Whatever changes what an endpoint must be able to do is passed on, and known."""
    request = decode(**fields).request
    assert request.needs == {need}
    assert {name: json.loads(value) for name, value in request.fields.items()} == fields


PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}


@pytest.mark.parametrize(
    ("message", "text", "needs"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "see"}, PICTURE]}, "see", {Feature.IMAGES}),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "", {Feature.AUDIO}),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "", {Feature.IMAGES}),
        (CALLED, "", {Feature.TOOLS}),
        ({"role": "tool", "tool_call_id": "1", "content": "rain"}, "rain", {Feature.TOOLS}),
        ({"role": "assistant", "audio": {"id": "a"}}, "", {Feature.AUDIO}),
        ({"role": "user", "name": "Ann", "content": "Hi"}, "Hi", set()),
        ({"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}, "a", set()),
    ],
)
def test_messages_keep_what_text_cannot_say(message: Any, text: str, needs: set[Feature]) -> None:
    """A message's own JSON goes along, its text is what counts, and what it needs is known."""
    request = decode(messages=[*HELLO, message]).request
    plain, kept = request.messages
    assert plain.raw is None
    assert kept.raw is not None
    assert (json.loads(kept.raw), kept.content, request.needs) == (message, text, needs)


def test_newer_words_for_roles_are_mapped_in_kept_messages_too() -> None:
    """A `developer` is a `system` wherever the message goes."""
    (message,) = decode(messages=[{"role": "developer", "content": "x", "name": "y"}]).request.messages
    assert message.raw is not None
    assert json.loads(message.raw) == {"role": "system", "content": "x", "name": "y"}


def test_tools_count_as_prompt() -> None:
    """Templates put the tools before the conversation, so lengths and caches are reckoned with them."""
    plain, with_tools = decode().request, decode(tools=[{"type": "function"}]).request
    assert with_tools.prompt_chars == plain.prompt_chars + len(with_tools.fields["tools"])
    assert [turn.role for turn in with_tools.turns] == ["tools", "user"]


@pytest.mark.parametrize("number", [2, True, 0, "1"])
def test_more_than_one_answer_is_refused(number: Any) -> None:
    """`n` other than 1 is an error that names it."""
    error = rejected(n=number)
    assert (error.param, error.code) == ("n", "unsupported_parameter")


def test_a_raw_completion_has_one_prompt() -> None:
    """The prompt is no chat; without a limit it gets OpenAI's; what asks for other answers is refused."""

    def completion(**fields: Any) -> Call:
        body = json.dumps({"prompt": "Once", **fields}).encode()
        return decode_completion_request(body, arrived_at=7.5, request_id="r1")

    request = completion(logprobs=0, top_k=3, best_of=1, echo=False, suffix="").request
    assert (request.raw_prompt, request.max_tokens) == ("Once", 16)
    assert request.needs == {Feature.COMPLETIONS, Feature.LOGPROBS}
    assert request.fields == {"logprobs": b"0", "top_k": b"3"}
    assert completion(prompt=["Once"], max_tokens=3).request.max_tokens == 3
    for field, value in [("echo", True), ("best_of", 2), ("suffix", "end"), ("n", 2)]:
        with pytest.raises(RequestRejected, match=f"`{field}` is not supported"):
            completion(**{field: value})
    for prompt in ([], ["a", "b"], [1, 2], None):
        with pytest.raises(RequestRejected, match="prompt"):
            completion(prompt=prompt)


def test_the_library_speaks_the_same() -> None:
    """Messages and fields that are values, not JSON, are told apart in the same way."""
    assert chat_message(HELLO[0], "messages[0]") == Message("user", "Hello")
    assert passed_on({"top_k": 5, "user": "u", "tools": []}) == {"top_k": b"5"}
    with pytest.raises(RequestRejected, match=r"`top_k`: cannot be written as JSON"):
        passed_on({"top_k": object()})
    with pytest.raises(RequestRejected, match=r"`messages\[3\]\.role`"):
        chat_message({"role": "king", "content": "x"}, "messages[3]")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "hi"}, "messages", "expected `array`, got `str`"),
        ({"messages": [{"content": "x"}]}, "messages[0]", "missing required field `role`"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "'king'"),
        ({"messages": [*HELLO, {"role": "user", "content": 5}]}, "messages[1].content", "got `int`"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing",
        ),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_tokens": "many"}, "max_tokens", "got `str`"),
        ({"temperature": 3}, "temperature", "<= 2.0"),
        ({"stop": ["a"] * 5}, "stop", "length <= 4"),
        ({"stop": ""}, "stop", "length >= 1"),
        ({"seed": 1.5}, "seed", "got `float`"),
        ({"stream": "yes"}, "stream", "got `str`"),
        ({"model": 3}, "model", "got `int`"),
    ],
)
def test_wrong_values_are_refused_by_name(fields: dict[str, Any], param: str, words: str) -> None:
    """A wrong type or value is an error that says where and what."""
    error = rejected(**fields)
    assert error.param == param
    assert words in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"NaN",
        b'{"x":' + b"[" * 10**5,
        b'{"messages":[{"role":"user","content":"x"}],"x":"\xff"}',
        b'{"messages":[{"role":"user","content":"x","name":"\\ud800"}]}',
    ],
)
def test_bodies_that_are_no_json_object_are_refused(body: bytes) -> None:
    """Nothing that a client can send gets past as anything but a rejection."""
    with pytest.raises(RequestRejected, match="body"):
        decode_bytes(body)


def test_a_stream_is_spelt_as_clients_expect() -> None:
    """One role, constant names, null usage until the last chunk, one finish reason with the account."""
    call = decode(model="m", stream=True, stream_options={"include_usage": True})
    encoder, outcome = ChunkEncoder(call, created=11), settled()
    sent = [
        encoder.opening(),
        encoder.piece(said('"é\u2028')),
        encoder.finish(outcome),
        encoder.usage(outcome),
    ]
    chunks = [json.loads(payload) for payload in sent]
    for chunk in chunks:
        named = (chunk["id"], chunk["object"], chunk["created"], chunk["model"])
        assert named == ("chatcmpl-r1", "chat.completion.chunk", 11, "m")
    opening, piece, finish, usage = chunks
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert piece["choices"][0] == {
        "index": 0,
        "delta": {"content": '"é\u2028'},
        "logprobs": None,
        "finish_reason": None,
    }
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
    assert finish["disco"] == json.loads(json.dumps(outcome.as_disco()))
    assert [chunk["usage"] for chunk in chunks[:3]] == [None, None, None]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_what_is_more_than_text_goes_out_in_one_chunk() -> None:
    """Reasoning, tool calls and log-probabilities stand where clients look for them."""
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}
    encoder = ChunkEncoder(decode(stream=True), created=1)
    pieces = [said(reasoning="hm"), said(delta={"tool_calls": [call]}), said("x", logprobs={"content": []})]
    choices = [json.loads(encoder.piece(piece))["choices"][0] for piece in pieces]
    assert [choice["delta"] for choice in choices] == [
        {"reasoning_content": "hm"},
        {"tool_calls": [call]},
        {"content": "x"},
    ]
    assert [choice["logprobs"] for choice in choices] == [None, None, {"content": []}]


def test_a_whole_answer_collects_what_came_in_pieces() -> None:
    """Tool calls are joined by index, reasoning and log-probabilities in their order."""
    parts = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": '{"x"'}},
        {"index": 0, "function": {"arguments": ":1}"}},
    ]
    pieces = [
        said(reasoning="h"),
        said(reasoning="m"),
        *(said(delta={"tool_calls": [part]}) for part in parts),
    ]
    whole = json.loads(encode_answer(decode(), 5, pieces, settled(FinishReason.TOOL_CALLS)))
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert whole["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    tokens = [said(text, logprobs={"content": [{"token": text}], "refusal": None}) for text in "ab"]
    (choice,) = json.loads(encode_answer(decode(), 5, tokens, settled()))["choices"]
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}


def test_parts_of_odd_kinds_are_joined_all_the_same() -> None:
    """A list that holds more than objects goes on; nothing in it can break an answer that has come."""
    odd = [said(delta={"notes": ["a", None]}), said(delta={"notes": [{"index": 0, "text": "b"}]})]
    (choice,) = json.loads(encode_answer(decode(), 5, odd, settled()))["choices"]
    assert choice["message"]["notes"] == ["a", None, {"index": 0, "text": "b"}]


def test_raw_completions_are_spelt_as_text() -> None:
    """No role, no delta: text on every chunk, its reason on the last, the counts behind it."""
    body = b'{"prompt":"a","model":"m","stream":true,"stream_options":{"include_usage":true}}'
    call = decode_completion_request(body, arrived_at=7.5, request_id="r1")
    encoder, outcome = TextChunkEncoder(call, created=11), settled()
    assert encoder.opening() == b""
    pieces = [said("x"), said("y", logprobs={"tokens": ["y"]})]
    sent = [*map(encoder.piece, pieces), encoder.finish(outcome), encoder.usage(outcome)]
    *told, finish, usage = map(json.loads, sent)
    assert told[0]["choices"] == [{"index": 0, "text": "x", "logprobs": None, "finish_reason": None}]
    assert told[1]["choices"][0]["logprobs"] == {"tokens": ["y"]}
    assert finish["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]
    assert (finish["id"], finish["object"], finish["disco"]["winner"]) == (
        "cmpl-r1",
        "text_completion",
        "laptop",
    )
    assert (told[0]["usage"], usage["choices"], usage["usage"]["total_tokens"]) == (None, [], 5)
    whole = json.loads(encode_answer(call, 11, pieces, outcome))
    assert (whole["choices"][0]["text"], whole["choices"][0]["logprobs"]) == ("xy", {"tokens": ["y"]})
    assert (whole["id"], whole["object"]) == ("cmpl-r1", "text_completion")


def test_usage_appears_only_when_asked_for() -> None:
    """Without `include_usage` no chunk mentions it, because a null would erase what a client has."""
    encoder = ChunkEncoder(decode(stream=True), created=1)
    assert b"usage" not in encoder.opening() + encoder.piece(said("x")) + encoder.finish(settled())


def test_a_whole_completion_carries_text_usage_and_account() -> None:
    """What is not streamed comes as one object."""
    whole = json.loads(encode_answer(decode(), 5, [said("H"), said("i")], settled(FinishReason.LENGTH)))
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"]["content"] == "Hi"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["total_tokens"] == 5
    assert whole["disco"]["winner"] == "laptop"


def test_errors_and_models_have_openai_shapes() -> None:
    """Every field that clients read is there."""
    assert json.loads(encode_error("no", "server_error", code="c")) == {
        "error": {"message": "no", "type": "server_error", "param": None, "code": "c"}
    }
    assert json.loads(encode_models(["disco"], 3)) == {
        "object": "list",
        "data": [{"id": "disco", "object": "model", "created": 3, "owned_by": "discostream"}],
    }
