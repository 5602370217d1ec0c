from __future__ import annotations

import json
from typing import Any

import pytest

from discostream.errors import RequestRejected
from discostream.types import (
    Attempt,
    AttemptOutcome,
    FinishReason,
    Kind,
    Message,
    Outcome,
    Sampling,
)
from discostream.wire.openai_schema import (
    ChatCall,
    ChunkEncoder,
    decode_chat_request,
    encode_completion,
    encode_error,
    encode_models,
)

HELLO = [{"role": "user", "content": "Hello"}]


def decode(**fields: Any) -> ChatCall:
    return decode_bytes(json.dumps({"model": "disco", "messages": HELLO, **fields}).encode())


def decode_bytes(body: bytes) -> ChatCall:
    return decode_chat_request(body, arrived_at=7.5, request_id="r1")


def rejected(**fields: Any) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        decode(**fields)
    assert caught.value.status == 400
    return caught.value


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


def test_harmless_extras_are_ignored() -> None:
    """What does not change the answer, and what says the default, is accepted."""
    call = decode(
        user="u",
        metadata={"a": "b"},
        store=True,
        tools=[],
        tool_choice="auto",
        n=1,
        logprobs=False,
        response_format={"type": "text"},
        logit_bias={},
        unheard_of={"deep": [1]},
    )
    assert call == decode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("n", 2),
        ("logit_bias", {"50256": -100}),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
    ],
)
def test_what_no_endpoint_carries_is_refused_by_name(field: str, value: Any) -> None:
    """A request for what cannot be had is an error that names the field, never silently less."""
    error = rejected(**{field: value})
    assert (error.param, error.code) == (field, "unsupported_parameter")
    assert str(error) == f"`{field}` is not supported by this version; leave it out"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "hi"}, "messages", "expected `array`, got `str`"),
        ({"messages": [{"content": "x"}]}, "messages[0]", "missing required field `role`"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "'king'"),
        ({"messages": [*HELLO, {"role": "user", "content": 5}]}, "messages[1].content", "got `int`"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "not supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing",
        ),
        ({"n": True}, "n", "not supported"),
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


def test_pictures_and_tool_calls_are_refused_where_they_stand() -> None:
    """The message's place in the request is part of the error."""
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    error = rejected(messages=[{"role": "user", "content": [picture]}])
    assert "`messages[0].content[0]`: a part of type 'image_url' is not supported" in str(error)
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert rejected(messages=[*HELLO, called]).param == "messages[1].tool_calls"


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
    sent = [encoder.opening(), encoder.piece('"é\u2028'), encoder.finish(outcome), encoder.usage(outcome)]
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


def test_usage_appears_only_when_asked_for() -> None:
    """Without `include_usage` no chunk mentions it, because a null would erase what a client has."""
    encoder = ChunkEncoder(decode(stream=True), created=1)
    assert b"usage" not in encoder.opening() + encoder.piece("x") + encoder.finish(settled())


def test_a_whole_completion_carries_text_usage_and_account() -> None:
    """What is not streamed comes as one object."""
    whole = json.loads(encode_completion(decode(), 5, "Hi", settled(FinishReason.LENGTH)))
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
