from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp.http_parser
import anyio
import pytest
from aiohttp import web
from aiohttp.http_parser import HttpResponseParserPy

from discostream.config import EndpointSettings, convert_options, settings_from
from discostream.endpoints.openai import OpenAIEndpoint
from discostream.errors import ConfigError, EndpointError, Phase
from discostream.library import connect
from discostream.types import (
    Carrier,
    Event,
    Finish,
    FinishReason,
    Kind,
    Message,
    Piece,
    Prefix,
    Request,
    Sampling,
)
from discostream.wire.sse import DONE, MAX_LINE_BYTES, data_event

pytestmark = pytest.mark.anyio

REQUEST = Request(messages=(Message("user", "Hello"),), arrived_at=0.0, request_id="r1")
GOOD_KEY = "sk-right"


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


def chunk(content: str | None = None, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return data_event(json.dumps({"choices": [choice], **fields}).encode())


def usage(prompt: int, completion: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return data_event(json.dumps({"choices": [], "usage": counts}).encode())


Script = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Upstream:
    """A stand-in server that does what its script says and remembers what it was asked."""

    script: Script
    base_url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    peers: list[Any] = field(default_factory=list)
    left: anyio.Event = field(default_factory=anyio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        assert request.transport is not None
        self.peers.append(request.transport.get_extra_info("peername"))
        try:
            return await self.script(request)
        except BaseException:
            self.left.set()
            raise


@asynccontextmanager
async def upstream(script: Script) -> AsyncIterator[Upstream]:
    server = Upstream(script)
    app = web.Application(client_max_size=8 << 20)
    app.router.add_post("/v1/chat/completions", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            await web.SockSite(runner, listener).start()
            server.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            yield server
        finally:
            await runner.cleanup()


@asynccontextmanager
async def endpoint(base_url: str, **options: Any) -> AsyncIterator[OpenAIEndpoint]:
    made = build(base_url=base_url, **options)
    try:
        yield made
    finally:
        await made.aclose()
        await made.aclose()


def build(**options: Any) -> OpenAIEndpoint:
    settings = EndpointSettings(
        name="cloud", kind=Kind.SERVER, dialect="openai", model="big", options=options
    )
    return OpenAIEndpoint(settings, convert_options(settings, OpenAIEndpoint.Options))


def streams(*parts: bytes | float) -> Script:
    """Send these parts of an event stream; a number waits that long."""

    async def script(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            if isinstance(part, bytes):
                await response.write(part)
            else:
                await anyio.sleep(part)
        return response

    return script


def answers(status: int, body: str, content_type: str = "application/json", **headers: str) -> Script:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=body, content_type=content_type, headers=headers)

    return script


async def everything(
    made: OpenAIEndpoint, request: Request = REQUEST, prefix: str = "", into: list[Event] | None = None
) -> list[Event]:
    """All events of one answer, kept in `into` as they come."""
    events = [] if into is None else into
    async with aclosing(made.generate(request, Prefix(prefix))) as stream:
        async for event in stream:
            events.append(event)
    return events


async def failure_of(script: Script, **options: Any) -> tuple[list[Event], EndpointError]:
    """What came before the failure, and the failure."""
    before: list[Event] = []
    async with upstream(script) as server, endpoint(server.base_url, **options) as made:
        with pytest.raises(EndpointError) as caught:
            await everything(made, into=before)
    assert caught.value.endpoint == "cloud"
    return before, caught.value


async def test_an_answer_streams_to_its_counts() -> None:
    """Role preludes are no pieces; counts that follow the finish reason are in the finish."""
    prelude = data_event(b'{"choices":[{"delta":{"role":"assistant","reasoning":null,"content":""}}]}')
    parts = (b": ping\n\n", prelude, chunk("Hel"), chunk("lo"), chunk(finish="length"), usage(5, 2), DONE)
    async with upstream(streams(*parts)) as server, endpoint(server.base_url) as made:
        assert await everything(made) == [Piece("Hel"), Piece("lo"), Finish(FinishReason.LENGTH, 5, 2)]


async def test_the_request_says_all_that_was_asked() -> None:
    """Every field of the request is sent, under the name that the server knows, and nothing unsaid is."""
    asked = Request(
        messages=(Message("system", "Be brief."), Message("user", "Hello")),
        arrived_at=0.0,
        request_id="r1",
        max_tokens=7,
        stop=("END",),
        sampling=Sampling(temperature=0.0, seed=3),
    )
    async with upstream(streams(chunk("x", "stop"), DONE)) as server:
        async with endpoint(server.base_url + "/", max_tokens_field="max_completion_tokens") as made:
            await everything(made, asked)
        async with endpoint(server.base_url, include_usage=False) as made:
            await everything(made)
    assert server.bodies == [
        {
            "model": "big",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 7,
            "stop": ["END"],
            "temperature": 0.0,
            "seed": 3,
        },
        {"model": "big", "messages": [{"role": "user", "content": "Hello"}], "stream": True},
    ]
    assert "Authorization" not in server.headers[0]
    assert server.headers[0]["Accept-Encoding"] == "identity"


async def test_a_long_conversation_is_sent_whole() -> None:
    """Megabytes of prompt travel like any other, with a length and without complaint."""
    long = Request(messages=(Message("user", "word " * 400_000),), arrived_at=0.0, request_id="r1")
    async with upstream(streams(chunk("x", "stop"), DONE)) as server, endpoint(server.base_url) as made:
        await everything(made, long)
    assert server.bodies[0]["messages"][0]["content"] == long.messages[0].content
    assert int(server.headers[0]["Content-Length"]) > 2_000_000


@pytest.mark.parametrize(
    ("continuation", "body", "message"),
    [
        ("continue_final_message", {"continue_final_message": True, "add_generation_prompt": False}, {}),
        ("prefix", {}, {"prefix": True}),
        ("trailing_assistant", {}, {}),
    ],
)
async def test_each_dialect_marks_the_partial_answer_its_own_way(
    continuation: str, body: dict[str, Any], message: dict[str, Any]
) -> None:
    """The partial answer goes as the last message, without trailing whitespace, and is not said again."""
    script = streams(chunk(" upon"), chunk(finish="stop"), DONE)
    async with upstream(script) as server, endpoint(server.base_url, continuation=continuation) as made:
        assert made.continues == {Carrier.TEXT}
        assert await everything(made, prefix="Once ") == [Piece("upon"), Finish(FinishReason.STOP)]
    sent = server.bodies[0]
    assert sent["messages"][-1] == {"role": "assistant", "content": "Once", **message}
    assert {key: sent[key] for key in body} == body
    assert set(sent) - set(body) == {"model", "messages", "stream", "stream_options"}


async def test_an_endpoint_that_repeats_the_prefix_is_told_apart() -> None:
    """With `repeats_prefix` the echo never reaches the reader."""
    options = {"continuation": "prefix", "repeats_prefix": True}
    script = streams(chunk("Once up"), chunk("on a time", "stop"), DONE)
    async with upstream(script) as server, endpoint(server.base_url, **options) as made:
        assert (await everything(made, prefix="Once upon"))[0] == Piece(" a time", 2)


REFUSED_CONTINUATIONS = [
    ("This model does not support assistant message prefill.", 1),
    ("Unknown field: continue_final_message", 1),
    ("Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant", 1),
    ("temperature must be below 1", 2),
    ("maximum context length is 5", 3),
    ("Cannot have 2 or more assistant messages at the end of the list.", 3),
]


@pytest.mark.parametrize(("message", "enough"), REFUSED_CONTINUATIONS)
async def test_a_refused_continuation_is_remembered(message: str, enough: int) -> None:
    """A 400 that names continuations takes the ability away; so do two in a row of no known cause."""
    script = answers(400, json.dumps({"error": {"message": message}}))
    async with upstream(script) as server, endpoint(server.base_url, continuation="prefix") as made:
        for count in (1, 2):
            with pytest.raises(EndpointError) as caught:
                await everything(made, prefix="Once")
            assert caught.value.phase is Phase.REFUSED
            assert bool(made.continues) is (count < enough)


async def test_refusals_of_other_things_are_not_held_against_continuing() -> None:
    """A continuation that is accepted, and refusals of whole answers, are no evidence."""
    refuses, accepts = answers(422, '{"error":{"message":"no"}}'), streams(chunk(" upon", "stop"), DONE)
    async with upstream(refuses) as server, endpoint(server.base_url, continuation="prefix") as made:
        for script, prefix in ((refuses, "Once"), (accepts, "Once"), (refuses, "Once"), (refuses, "")):
            server.script = script
            with suppress(EndpointError):
                await everything(made, prefix=prefix)
            assert made.continues == {Carrier.TEXT}


async def test_an_answer_completes_though_its_target_refuses_to_go_on(tmp_path: Path) -> None:
    """A server that cannot continue is asked once; the answer is finished by another, as is the next one."""
    told = "The keepers lit the lamp at dusk."
    broken = {"name": "laptop", "kind": "device", "dialect": "scripted", "answer": told, "breaks_after": 3}
    other = {"name": "other", "kind": "server", "dialect": "scripted", "answer": told, "ttft_s": 0.2}
    script = answers(400, json.dumps({"error": {"message": "prefill is not supported"}}))
    async with upstream(script) as server:
        refusing = {
            "name": "cloud",
            "kind": "server",
            "dialect": "openai",
            "base_url": server.base_url,
            "continuation": "trailing_assistant",
        }
        settings = settings_from(
            {
                "endpoint": [broken | {"vocabulary": "a"}, refusing, other | {"vocabulary": "b"}],
                "policy": {"name": "offsets", "offsets": {"laptop": 0.0}},
                "ledger": {"path": str(tmp_path / "ledger.db")},
            }
        )
        async with connect(settings) as disco:
            for _ in range(2):
                answer = disco.stream("What did the keepers do?")
                assert "".join([piece.text async for piece in answer]) == told
                assert answer.outcome
                assert [move.target for move in answer.outcome.migrations] == ["other"]
    assert len(server.bodies) == 1


async def test_without_a_dialect_nothing_is_continued() -> None:
    """`continuation = "none"`, the default, offers nothing to a handoff."""
    assert build(base_url="http://localhost/v1").continues == frozenset()


async def test_a_server_that_is_not_there_fails_to_connect() -> None:
    """A refused connection and an unknown name are `CONNECT`, and say where."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for url, words in (
        (f"http://127.0.0.1:{port}", "onnect"),
        ("http://no-such.invalid", "no-such.invalid:80"),
    ):
        async with endpoint(url) as made:
            with pytest.raises(EndpointError, match=words) as caught:
                await everything(made)
        assert caught.value.phase is Phase.CONNECT


async def test_speaking_tls_to_a_plain_server_fails_to_connect() -> None:
    """A failed TLS handshake is `CONNECT`."""
    async with upstream(streams(DONE)) as server, endpoint(f"https{server.base_url[4:]}") as made:
        with pytest.raises(EndpointError) as caught:
            await everything(made)
    assert caught.value.phase is Phase.CONNECT


REFUSALS = [
    (answers(500, "oops", "text/plain"), 500, None, "HTTP 500: oops"),
    (answers(429, '{"error":{"message":"slow down","code":"rate"}}'), 429, "rate", "HTTP 429: slow down"),
    (
        answers(400, '{"error":{"message":"long","code":"context_length_exceeded"}}'),
        400,
        "context_length_exceeded",
        "HTTP 400: long",
    ),
    (
        answers(200, "<html>Log in</html>", "text/html"),
        None,
        None,
        "text/html.*instead of an event stream",
    ),
    (answers(200, '{"error":{"message":"no credit","code":402}}'), 402, None, "no credit"),
    (
        answers(301, "<html>Moved</html>", Location="https://127.0.0.1:9/v1?key=secret"),
        301,
        None,
        "HTTP 301: it points to 'https://127.0.0.1:9/v1'; correct base_url",
    ),
]


async def test_an_answer_at_once_was_accepted() -> None:
    """A server that ignores `stream` and sends a whole answer has done the work, and will be paid."""
    _, error = await failure_of(answers(200, '{"choices":[{"message":{"content":"Hi"}}]}'))
    assert error.phase is Phase.PREFILL


@pytest.mark.parametrize(
    ("script", "status", "code", "words"),
    REFUSALS,
)
async def test_anything_but_a_stream_is_a_refusal(
    script: Script, status: int | None, code: str | None, words: str
) -> None:
    """Error statuses, web pages, redirects and plain JSON are `REFUSED`, in the server's own words."""
    before, error = await failure_of(script)
    assert (before, error.phase, error.status, error.code) == ([], Phase.REFUSED, status, code)
    with pytest.raises(EndpointError, match=words):
        raise error


ERROR = data_event(b'{"choices":[],"error":{"message":"overloaded","code":503}}')


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (ERROR, "overloaded"),
        (DONE, "without a finish_reason"),
        (b"", "without a finish_reason"),
        (data_event(b'{"choices":[{"delta":{"content":"\xff"}}]}'), "not JSON"),
        (data_event(b"{oops"), "not JSON"),
        (data_event(b"[]"), "not a JSON object"),
        (b"data: " + b"x" * (MAX_LINE_BYTES + 1), "malformed stream"),
        (data_event(b'{"choices":[{"finish_reason":"error"}]}'), "finish_reason 'error'"),
    ],
)
@pytest.mark.parametrize("content", [False, True])
async def test_every_kind_of_break_names_its_phase(tail: bytes, words: str, content: bool) -> None:
    """A stream that breaks is `PREFILL` before content and `DECODE` after, and never a short success."""
    before, error = await failure_of(streams(*[chunk("Hel")] * content, tail))
    assert before == [Piece("Hel")] * content
    assert error.phase is (Phase.DECODE if content else Phase.PREFILL)
    assert words in error.message


async def test_a_cut_connection_is_a_break() -> None:
    """Bytes that stop in the middle of the transfer are a break."""

    async def cut(request: web.Request) -> web.StreamResponse:
        response = await streams(chunk("Hel"))(request)
        assert request.transport is not None
        request.transport.close()
        return response

    before, error = await failure_of(cut)
    assert (before, error.phase) == ([Piece("Hel")], Phase.DECODE)


def throws_in_a_page(*parts: bytes) -> Script:
    """Send these parts, and then what is no chunk of the body."""

    async def script(request: web.Request) -> web.StreamResponse:
        response = await streams(*parts, 0.05)(request)
        assert request.transport is not None
        request.transport.write(b"<html>502 Bad Gateway</html>\r\n")
        await anyio.sleep(30)
        return response

    return script


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
SAID = chunk("What nobody asked to keep.")


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (SAID + b"\r\n\r\n", "Bad status line"),
        (HEAD + b"Content-Length: 20\r\n\r\n" + SAID, "Bad status line"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + SAID, "Invalid character in chunk size"),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n" + SAID, "Can not decode content-encoding: gzip"),
        (HEAD, "the server closed it"),
    ],
)
async def test_bytes_that_are_no_http_are_not_quoted(sent: bytes, words: str) -> None:
    """They can be an answer, and aiohttp would quote them all; its parser's 400 is nobody's status."""

    async def throw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        writer.close()

    async with await asyncio.start_server(throw, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with endpoint(f"http://127.0.0.1:{port}/v1") as made:
            with pytest.raises(EndpointError) as caught:
                await everything(made)
    assert (caught.value.message, caught.value.status) == (f"the connection broke: {words}", None)


@pytest.mark.parametrize("parser", [aiohttp.http_parser.HttpResponseParser, HttpResponseParserPy])
async def test_a_page_thrown_into_the_body_is_a_break(parser: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body whose framing goes wrong breaks off soon, though aiohttp may tell nobody; a finish stays one."""
    monkeypatch.setattr("aiohttp.client_proto.HttpResponseParser", parser)
    with anyio.fail_after(5):
        before, error = await failure_of(throws_in_a_page(chunk("Hel")))
        assert (before, error.phase) == ([Piece("Hel")], Phase.DECODE)
        assert error.message == "the connection broke: its framing is wrong"
        script = throws_in_a_page(chunk("Hi", "stop"))
        async with upstream(script) as server, endpoint(server.base_url) as made:
            assert await everything(made) == [Piece("Hi"), Finish(FinishReason.STOP)]


@pytest.mark.parametrize(
    ("parts", "phase"),
    [
        ((), Phase.PREFILL),
        ((chunk("Hel"),), Phase.DECODE),
        ((chunk("Hel"), 0.1, chunk("lo")), Phase.DECODE),
    ],
)
async def test_silence_is_a_break(parts: tuple[bytes, ...], phase: Phase) -> None:
    """A server that says nothing for `read_timeout_s` is given up."""
    _, error = await failure_of(streams(*parts, 30.0), read_timeout_s=0.2)
    assert (error.phase, error.message) == (phase, "silent for 0.2 s")


async def test_whoever_does_not_read_waits_for_nothing() -> None:
    """While a slow client keeps us from reading, a server that says nothing meanwhile is not given up."""
    script = streams(chunk("Hel"), 0.6, chunk("lo", "stop"))
    events: list[Event] = []
    async with upstream(script) as server, endpoint(server.base_url, read_timeout_s=0.4) as made:
        async for event in made.generate(REQUEST, Prefix()):
            events.append(event)
            await anyio.sleep(0.5)
    assert events == [Piece("Hel"), Piece("lo"), Finish(FinishReason.STOP)]


async def test_silence_is_a_break_on_a_connection_that_is_used_again() -> None:
    """A request behind another one waits as long for its head as the first did, and no longer."""

    async def says_nothing(request: web.Request) -> web.StreamResponse:
        await anyio.sleep(30)
        raise AssertionError

    good = streams(chunk("Hi", "stop"), DONE)
    async with upstream(good) as server, endpoint(server.base_url, read_timeout_s=0.2) as made:
        await everything(made)
        server.script = says_nothing
        with anyio.fail_after(2), pytest.raises(EndpointError, match=r"silent for 0\.2 s"):
            await everything(made)
    assert len(set(server.peers)) == 1


@pytest.mark.parametrize("tail", [ERROR, data_event(b"{oops"), b""])
async def test_nothing_breaks_an_answer_that_is_finished(tail: bytes) -> None:
    """After the finish reason only counts are still of interest, and their absence is no failure."""
    async with upstream(streams(chunk("Hi", "stop"), tail)) as server, endpoint(server.base_url) as made:
        assert await everything(made) == [Piece("Hi"), Finish(FinishReason.STOP)]


async def test_a_finished_answer_does_not_wait_for_a_server_that_hangs_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that never closes after the finish reason holds the finish up only briefly."""
    monkeypatch.setattr("discostream.endpoints.body.TAIL_S", 0.1)
    async with upstream(streams(chunk("Hi", "stop"), 30.0)) as server, endpoint(server.base_url) as made:
        with anyio.fail_after(5):
            assert (await everything(made))[-1] == Finish(FinishReason.STOP)


async def test_leaving_early_closes_the_connection() -> None:
    """Closing the generator, before content or after, is seen by the server at once."""
    for parts, content in (((30.0,), False), ((chunk("Hel"), 30.0), True)):
        async with upstream(streams(*parts)) as server, endpoint(server.base_url) as made:
            async with aclosing(made.generate(REQUEST, Prefix())) as events:
                if content:
                    await anext(events)
                else:
                    with anyio.move_on_after(0.2):
                        await anext(events)
            with anyio.fail_after(2):
                await server.left.wait()


async def test_a_finished_connection_is_used_again() -> None:
    """The next request on a quiet endpoint pays for no handshake."""
    script = streams(chunk("Hi", "stop"), usage(1, 1), DONE)
    async with upstream(script) as server, endpoint(server.base_url) as made:
        await everything(made)
        await everything(made)
    assert len(server.peers) == 2
    assert len(set(server.peers)) == 1


async def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key travels in its header and nowhere else, even when the server quotes it."""
    monkeypatch.setenv("CLOUD_KEY", f" {GOOD_KEY}\n")
    script = answers(401, json.dumps({"error": {"message": f"Incorrect API key: {GOOD_KEY}"}}))
    async with upstream(script) as server, endpoint(server.base_url, api_key_env="CLOUD_KEY") as made:
        with pytest.raises(EndpointError) as caught:
            await everything(made)
        assert GOOD_KEY not in repr(made) + str(caught.value) + repr(caught.value)
    assert server.headers[0]["Authorization"] == f"Bearer {GOOD_KEY}"


async def test_a_missing_key_is_a_setting_to_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, variable and fix are named before anything is sent."""
    monkeypatch.delenv("CLOUD_KEY", raising=False)
    with pytest.raises(
        ConfigError, match=r"endpoint 'cloud': api_key_env = 'CLOUD_KEY'.*not set; export CLOUD_KEY="
    ):
        build(base_url="http://localhost/v1", api_key_env="CLOUD_KEY")
    monkeypatch.setenv("CLOUD_KEY", "line\nbreak")
    with pytest.raises(ConfigError, match="no header can carry") as caught:
        build(base_url="http://localhost/v1", api_key_env="CLOUD_KEY")
    assert "break" not in str(caught.value)


@pytest.mark.parametrize(
    ("base_url", "words"),
    [
        ("", "must start with http"),
        ("localhost:8000/v1", "must start with http"),
        ("ftp://localhost", "must start with http"),
        ("http://localhost:99999", "no URL"),
        ("http://me:secret@localhost:99999", "no URL"),
        ("http://me:secret@localhost", "no user, key or query"),
        ("http://localhost?key=secret", "no user, key or query"),
        ("http://localhost/v1/chat/completions", "leave out /chat/completions"),
    ],
)
async def test_a_wrong_base_url_is_a_setting_to_fix(base_url: str, words: str) -> None:
    """A base URL that cannot work is refused at once, and secrets in it are not repeated."""
    with pytest.raises(ConfigError, match=words) as caught:
        build(base_url=base_url)
    assert "secret" not in str(caught.value)
