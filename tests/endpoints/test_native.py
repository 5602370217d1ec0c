"""Dialects of their own (Anthropic, Gemini, Ollama) against stand-ins written from their documentation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from standins import anthropic, gemini, ollama
from standins.serving import ANSWER, Handler, Service, event, refusal, serving

from discostream.config import EndpointSettings
from discostream.endpoints.base import Endpoint
from discostream.endpoints.registry import build_endpoint
from discostream.errors import EndpointError, Phase
from discostream.types import (
    Carrier,
    Event,
    Extra,
    Finish,
    FinishReason,
    Kind,
    Message,
    Piece,
    Prefix,
    Request,
    Sampling,
)

pytestmark = pytest.mark.anyio

TALK = (
    Message("system", "Be brief."),
    Message("user", "Hello."),
    Message("assistant", "Hi."),
    Message("user", "Now count."),
    Message("user", "To forty."),
)
HANDLERS = {"anthropic": anthropic.handle, "gemini": gemini.handle, "ollama": ollama.handle}
ROOTS = {"anthropic": "/v1", "gemini": "/v1beta", "ollama": ""}
MODELS = {"anthropic": "claude-sonnet-4-5", "gemini": "gemini-2.5-flash", "ollama": "open"}
OPTIONS: dict[str, dict[str, Any]] = {"ollama": {"continuation": "trailing_assistant"}}
DIALECTS = list(HANDLERS)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-right")
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-right")


def asking(messages: tuple[Message, ...] = TALK, **fields: Any) -> Request:
    return Request(messages=messages, arrived_at=0.0, request_id="r1", **fields)


@asynccontextmanager
async def running(
    dialect: str, handler: Handler | None = None, model: str | None = None, **options: Any
) -> AsyncIterator[tuple[Endpoint, Service]]:
    """An endpoint of that dialect before its stand-in, or before something else."""
    async with serving(handler or HANDLERS[dialect]) as service:
        keys = {"base_url": service.root + ROOTS[dialect], **OPTIONS.get(dialect, {}), **options}
        settings = EndpointSettings(
            name="cloud",
            kind=Kind.SERVER,
            dialect=dialect,
            model=model or MODELS[dialect],
            prompt_usd_per_mtok=1.0,
            completion_usd_per_mtok=1.0,
            options=keys,
        )
        endpoint = build_endpoint(settings)
        try:
            yield endpoint, service
        finally:
            await endpoint.aclose()


async def events(
    endpoint: Endpoint, request: Request, prefix: str = "", into: list[Event] | None = None
) -> list[Event]:
    """All events of one answer, kept in `into` as they come."""
    said = [] if into is None else into
    async with aclosing(endpoint.generate(request, Prefix(prefix))) as stream:
        async for one in stream:
            said.append(one)
    return said


def text_of(said: list[Event]) -> str:
    return "".join(event.text for event in said if isinstance(event, Piece))


@pytest.mark.parametrize(
    ("dialect", "thoughts", "counts"),
    [
        ("anthropic", "Let me count.", (24, 45, 16)),
        ("gemini", "I shall count.", (24, 70, 8)),
        ("ollama", "Hm.", (24, 41, None)),
    ],
)
async def test_an_answer_streams_to_its_counts(
    dialect: str, thoughts: str, counts: tuple[int, int, int | None]
) -> None:
    """The model's thoughts come first, then its text in pieces, then what was read, cached and written."""
    async with running(dialect) as (endpoint, _):
        *said, finish = await events(endpoint, asking())
    assert text_of(said) == ANSWER
    assert [piece.extra for piece in said if isinstance(piece, Piece)][:2] == [
        Extra(reasoning=thoughts),
        None,
    ]
    assert len(said) >= 41
    assert finish == Finish(FinishReason.STOP, *counts)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_answer_is_gone_on_with(dialect: str) -> None:
    """Only the continuation comes; the blank before it was not sent, nor is it said again."""
    async with running(dialect) as (endpoint, service):
        assert endpoint.continues == {Carrier.TEXT}
        said = await events(endpoint, asking(), "Twenty, twenty-one, twenty-two, ")
    assert text_of(said) == ANSWER.removeprefix("Twenty, twenty-one, twenty-two, ")
    assert b"twenty-two, " not in json.dumps(service.asked[0].body).encode()


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_longest_answer_is_said(dialect: str) -> None:
    """`max_tokens` goes under the dialect's own name, and an answer that is cut short says so."""
    async with running(dialect) as (endpoint, _):
        said = await events(endpoint, asking(max_tokens=3))
    assert text_of(said) == "Twenty, twenty-one, twenty-two,"
    assert isinstance(said[-1], Finish)
    assert said[-1].reason is FinishReason.LENGTH


WISHES = {
    "anthropic": {"stop_sequences": ["END"], "temperature": 0.5, "top_p": 0.9, "max_tokens": 4096},
    "gemini": {
        "generationConfig": {"stopSequences": ["END", " "], "temperature": 0.5, "topP": 0.9, "seed": 3},
    },
    "ollama": {"options": {"stop": ["END", " "], "temperature": 0.5, "top_p": 0.9, "seed": 3}},
}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_request_says_all_that_was_asked(dialect: str) -> None:
    """Sampling and stop strings have the dialect's names; Anthropic, which wants a limit, gets one."""
    sampling = Sampling(temperature=0.5, top_p=0.9, seed=3)
    async with running(dialect) as (endpoint, service):
        await events(endpoint, asking(stop=("END", " "), sampling=sampling))
    body = service.asked[0].body
    assert {key: body[key] for key in WISHES[dialect]} == WISHES[dialect]


async def test_ollama_is_told_how_long_its_context_is() -> None:
    """`context_tokens` goes as `num_ctx`, with every request alike, for another one reloads the model."""
    async with running("ollama", context_tokens=16_384) as (endpoint, service):
        await events(endpoint, asking())
        await events(endpoint, asking(max_tokens=3))
    assert [asked.body["options"]["num_ctx"] for asked in service.asked] == [16_384, 16_384]


async def test_conversations_have_the_vendors_shapes() -> None:
    """The system prompt goes apart where it has its own field; Gemini's turns alternate."""
    for dialect in DIALECTS:
        async with running(dialect) as (endpoint, service):
            await events(endpoint, asking(), "Twenty,")
        body = service.asked[0].body
        match dialect:
            case "anthropic":
                assert body["system"] == "Be brief."
                assert [turn["role"] for turn in body["messages"]] == [
                    "user",
                    "assistant",
                    "user",
                    "user",
                    "assistant",
                ]
            case "gemini":
                assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
                assert [turn["role"] for turn in body["contents"]] == ["user", "model", "user", "model"]
                assert body["contents"][2]["parts"] == [{"text": "Now count."}, {"text": "To forty."}]
            case "ollama":
                assert body["messages"][0]["role"] == "system"


async def test_keys_travel_in_headers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemini's key is not in the URL, and a wrong key is refused without being told to anyone."""
    async with running("gemini") as (endpoint, service):
        await events(endpoint, asking())
    assert service.asked[0].query == {"alt": "sse"}
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-wrong")
    async with running("anthropic") as (endpoint, _):
        with pytest.raises(EndpointError, match="HTTP 401: invalid x-api-key") as caught:
            await events(endpoint, asking())
    assert (caught.value.phase, caught.value.code) == (Phase.REFUSED, "authentication_error")
    assert "sk-ant-wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("dialect", "models", "continues"),
    [
        (
            "anthropic",
            ["claude-3-haiku-20240307", "claude-3-7-sonnet-latest", "claude-sonnet-4-20250514"],
            True,
        ),
        ("anthropic", ["claude-opus-4-1", "claude-sonnet-4-5-20250929", "claude-haiku-4-5@20251001"], True),
        (
            "anthropic",
            ["claude-opus-4-6", "claude-sonnet-4-7-20260901", "claude-fable-5", "claude-opus-4-10"],
            False,
        ),
        ("gemini", ["gemini-2.0-flash", "gemini-2.5-pro", "gemini-3-pro-preview", "gemini-3.1-pro"], True),
        ("gemini", ["gemini-3.5-flash", "gemini-pro-latest", "models/gemini-2.5-flash"], True),
        ("gemini", ["gemini-3.5-flash-lite", "gemini-3.6-flash", "gemini-4-pro"], False),
    ],
)
async def test_families_that_dropped_prefill_are_no_targets(
    dialect: str, models: list[str], continues: bool
) -> None:
    """Whether a model goes on is known by its name, and unknown ones do not; the settings go before that."""
    for model in models:
        async with running(dialect, model=model) as (endpoint, _):
            assert bool(endpoint.continues) is continues, model
        asked_for = "none" if continues else "trailing_assistant"
        async with running(dialect, model=model, continuation=asked_for) as (endpoint, _):
            assert bool(endpoint.continues) is not continues, model


@pytest.mark.parametrize(
    ("dialect", "model"), [("anthropic", "claude-opus-4-6"), ("gemini", "gemini-3.6-flash")]
)
async def test_a_family_that_refuses_is_learnt_at_once(dialect: str, model: str) -> None:
    """Where the settings say that a model goes on and its vendor says no, it is no target any more."""
    async with running(dialect, model=model, continuation="trailing_assistant") as (endpoint, _):
        with pytest.raises(EndpointError) as caught:
            await events(endpoint, asking(), "Twenty,")
        assert (caught.value.phase, caught.value.status) == (Phase.REFUSED, 400)
        assert endpoint.continues == frozenset()
        assert text_of(await events(endpoint, asking())) == ANSWER


async def test_ollama_goes_on_only_where_it_is_said_to() -> None:
    """A template that closes the turn makes the model begin anew, so that nothing is presumed."""
    async with running("ollama", continuation="none") as (endpoint, _):
        assert endpoint.continues == frozenset()
    async with running("ollama", model="closed") as (endpoint, _):
        assert text_of(await events(endpoint, asking(), "Twenty,")) == ANSWER


def streams(kind: str, *parts: bytes) -> Handler:
    return lambda asked: (kind, parts)


def claude(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


CLAUDE_SAYS = claude("content_block_delta", delta={"type": "text_delta", "text": "Twenty,"})
GEMINI_SAYS = event({"candidates": [{"content": {"parts": [{"text": "Twenty,"}]}}]})
OLLAMA_SAYS = b'{"message": {"content": "Twenty,"}, "done": false}\n'
SSE, NDJSON = "text/event-stream", "application/x-ndjson"

BREAKS = [
    ("anthropic", streams(SSE, CLAUDE_SAYS, claude("message_stop")), "without a finish_reason"),
    (
        "anthropic",
        streams(
            SSE, CLAUDE_SAYS, claude("error", error={"type": "overloaded_error", "message": "Overloaded"})
        ),
        "Overloaded",
    ),
    ("gemini", streams(SSE, GEMINI_SAYS), "without a finish_reason"),
    ("gemini", streams(SSE, GEMINI_SAYS, event({"candidates": [{"finishReason": "OTHER"}]})), "'OTHER'"),
    ("gemini", streams(SSE, GEMINI_SAYS, event({"error": {"code": 503, "message": "busy"}})), "busy"),
    ("ollama", streams(NDJSON, OLLAMA_SAYS), "without a finish_reason"),
    ("ollama", streams(NDJSON, OLLAMA_SAYS, b'{"error": "the runner has died"}\n'), "runner has died"),
    ("ollama", streams(NDJSON, OLLAMA_SAYS, b'{"done": true, "done_reason": "unload"}\n'), "'unload'"),
    ("ollama", streams(NDJSON, OLLAMA_SAYS, b"<html>\n"), "not JSON"),
    ("ollama", streams(NDJSON, OLLAMA_SAYS, b"x" * ((1 << 20) + 1)), "malformed stream"),
]


@pytest.mark.parametrize(("dialect", "handler", "words"), BREAKS)
async def test_a_stream_that_ends_otherwise_is_a_break(dialect: str, handler: Handler, words: str) -> None:
    """Errors within the stream, and its end without a finish, are `DECODE` failures after content."""
    async with running(dialect, handler) as (endpoint, _):
        said: list[Event] = []
        with pytest.raises(EndpointError, match=words) as caught:
            await events(endpoint, asking(), into=said)
    assert (said, caught.value.phase) == ([Piece("Twenty,", 2)], Phase.DECODE)


ENDS = [
    ("anthropic", claude("message_delta", delta={"stop_reason": "refusal"}), FinishReason.CONTENT_FILTER),
    ("anthropic", claude("message_delta", delta={"stop_reason": "stop_sequence"}), FinishReason.STOP),
    ("gemini", event({"candidates": [{"finishReason": "SAFETY"}]}), FinishReason.CONTENT_FILTER),
    ("gemini", event({"promptFeedback": {"blockReason": "SAFETY"}}), FinishReason.CONTENT_FILTER),
    ("ollama", b'{"done": true}', FinishReason.STOP),
]


@pytest.mark.parametrize(("dialect", "last", "reason"), ENDS)
async def test_every_end_has_its_reason(dialect: str, last: bytes, reason: FinishReason) -> None:
    """The vendors' words for the end of an answer become OpenAI's."""
    async with running(dialect, streams(NDJSON if dialect == "ollama" else SSE, last)) as (endpoint, _):
        assert await events(endpoint, asking()) == [Finish(reason)]


async def test_refusals_are_told_in_the_vendors_words() -> None:
    """Errors of each vendor's shape give status, code and words; too long a prompt is called that."""
    async with running("ollama", model="none") as (endpoint, _):
        with pytest.raises(EndpointError, match="HTTP 404: model 'none' not found"):
            await events(endpoint, asking())
    too_long = "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576)."
    body = {"error": {"code": 400, "message": too_long, "status": "INVALID_ARGUMENT"}}
    async with running("gemini", lambda asked: refusal(400, body)) as (endpoint, _):
        with pytest.raises(EndpointError) as caught:
            await events(endpoint, asking(), "Twenty,")
        assert caught.value.code == "context_length_exceeded"
        assert endpoint.continues == {Carrier.TEXT}


async def test_penalties_are_not_dropped_in_silence() -> None:
    """Claude knows none: a request that has one is refused before it is sent; one of zero is none."""
    async with running("anthropic") as (endpoint, service):
        with pytest.raises(EndpointError, match="presence_penalty") as caught:
            await events(endpoint, asking(sampling=Sampling(presence_penalty=0.5)))
        assert (caught.value.phase, caught.value.status, service.asked) == (Phase.REFUSED, 400, [])
        assert text_of(await events(endpoint, asking(sampling=Sampling(presence_penalty=0.0)))) == ANSWER


async def test_cancelled_answers_of_google_are_paid_whole() -> None:
    """Closing a stream of Gemini's does not end its bill, unless the settings say that it does."""
    async with running("gemini") as (endpoint, _):
        assert endpoint.cancel_stops_billing is False
        told = EndpointSettings(
            name="g", kind=Kind.SERVER, dialect="gemini", model="gemini-2.5-pro", cancel_stops_billing=True
        )
        assert build_endpoint(told).cancel_stops_billing is True
    async with running("anthropic") as (endpoint, _):
        assert endpoint.cancel_stops_billing is True
