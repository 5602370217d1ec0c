from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import openai
import pytest
from aiohttp import web
from aiohttp.http import StreamWriter
from anyio.abc import TaskStatus
from yarl import URL

from discostream.config import Settings, settings_from
from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.errors import AllEndpointsFailed, ConfigError, EndpointError, NotConnected, Phase
from discostream.gateway import app as gateway_app
from discostream.gateway.app import serve
from discostream.gateway.errors import describe
from discostream.library import Disco, connect
from discostream.session import connection
from discostream.session.models import VIRTUAL, choice_of
from discostream.types import Event, Finish, FinishReason, Piece, Prefix, Request
from discostream.wire.sse import DONE

pytestmark = pytest.mark.anyio

MESSAGES: Any = [{"role": "user", "content": "Tell me a story"}]
STORY = "Once upon a time there was a race."


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


@dataclass
class Gateway:
    """A running gateway: where it is, and the endpoints behind it."""

    base_url: str
    disco: Disco

    @property
    def laptop(self) -> ScriptedEndpoint:
        endpoint = self.disco.endpoints["laptop"]
        assert isinstance(endpoint, ScriptedEndpoint)
        return endpoint

    def client(self, retries: int = 0) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.base_url, api_key="any", max_retries=retries)

    @asynccontextmanager
    async def call(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """The raw response to one HTTP request."""
        url = self.base_url.removesuffix("/v1") + path
        async with aiohttp.ClientSession() as session, session.request(method, url, **options) as response:
            yield response

    @asynccontextmanager
    async def ask(self, body: Any = None, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """The raw response to a chat completion."""
        body = json.dumps({"messages": MESSAGES, "stream": True} if body is None else body)
        async with self.call("POST", "/v1/chat/completions", data=body, **options) as response:
            yield response

    async def idle(self) -> None:
        """Wait until the laptop has been cancelled."""
        with anyio.fail_after(3):
            while self.laptop.open:  # noqa: ASYNC110 - the endpoint only counts
                await anyio.sleep(0.01)


Serving = Callable[..., Any]


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Serve one scripted endpoint, the laptop, on a free port."""

    @asynccontextmanager
    async def running(gateway: dict[str, Any] | None = None, **script: Any) -> AsyncIterator[Gateway]:
        made: list[Disco] = []

        def keep(settings: Settings) -> Disco:
            made.append(connect(settings))
            return made[0]

        monkeypatch.setattr(gateway_app, "connect", keep)
        async with anyio.create_task_group() as tasks:
            base_url = await tasks.start(serve, settings_for(tmp_path, gateway, **script))
            yield Gateway(base_url, made[0])
            tasks.cancel_scope.cancel()

    return running


def settings_for(folder: Path, gateway: dict[str, Any] | None = None, **script: Any) -> Settings:
    laptop = {"name": "laptop", "kind": "device", "dialect": "scripted", "answer": STORY, **script}
    return settings_from(
        {
            "endpoint": [laptop],
            "policy": {"name": "offsets", "offsets": {"laptop": 0.0}},
            "gateway": {"port": 0, **(gateway or {})},
            "ledger": {"path": str(folder / "ledger.db")},
        }
    )


async def error_in(response: aiohttp.ClientResponse) -> dict[str, Any]:
    assert response.content_type == "application/json"
    error: dict[str, Any] = (await response.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_the_official_client_streams(serving: Serving) -> None:
    """The openai package reads text, one finish reason, usage, and our account from the stream."""
    async with serving() as gateway, gateway.client() as client:
        stream = await client.chat.completions.create(
            model="disco", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *told, finish, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == STORY
    assert [chunk.choices[0].delta.role for chunk in told] == ["assistant"] + [None] * (len(told) - 1)
    assert {(chunk.id, chunk.model, chunk.created) for chunk in chunks} == {
        (finish.id, "disco", finish.created)
    }
    assert finish.choices[0].finish_reason == "stop"
    assert (finish.model_extra or {})["disco"]["winner"] == "laptop"
    assert finish.id == f"chatcmpl-{(finish.model_extra or {})['disco']['request_id']}"
    assert (usage.choices, usage.usage and usage.usage.completion_tokens) == ([], 8)


async def test_the_official_stream_helper_accumulates(serving: Serving) -> None:
    """Accumulating clients end up with one role and the whole text."""
    async with (
        serving() as gateway,
        gateway.client() as client,
        client.chat.completions.stream(model="disco", messages=MESSAGES) as stream,
    ):
        whole = await stream.get_final_completion()
    assert (whole.choices[0].message.role, whole.choices[0].message.content) == ("assistant", STORY)


async def test_the_official_client_gets_whole_answers(serving: Serving) -> None:
    """The synchronous client, without streaming, gets text, usage and account in one object."""

    def ask(base_url: str) -> Any:
        with openai.OpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
            return client.chat.completions.create(model="disco", messages=MESSAGES, max_tokens=3)

    async with serving() as gateway:
        whole = await anyio.to_thread.run_sync(ask, gateway.base_url)
    assert whole.choices[0].message.content == "Once upon a"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 3
    assert whole.model_extra["disco"]["attempts"][0]["outcome"] == "won"


async def test_models_are_the_virtual_ones_and_every_endpoint(serving: Serving) -> None:
    """Clients can list and look up what they may name."""
    async with serving() as gateway, gateway.client() as client:
        assert [model.id async for model in client.models.list()] == [*VIRTUAL, "laptop"]
        assert (await client.models.retrieve("laptop")).owned_by == "discostream"
        with pytest.raises(
            openai.NotFoundError, match=r"There is no model 'nobody'; there are: disco, .*, laptop"
        ):
            await client.models.retrieve("nobody")


async def test_a_stream_is_plain_data_lines_and_ends_with_done(serving: Serving) -> None:
    """Headers let nothing buffer; the body is only `data:` events, the last one [DONE]."""
    async with serving() as gateway, gateway.ask() as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Accel-Buffering"] == "no"
        events = (await response.read()).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert all(event.startswith(b"data: ") for event in events[:-1])


async def test_every_piece_is_sent_when_it_comes(serving: Serving) -> None:
    """The first words arrive while the endpoint still pauses, not with the last."""
    async with serving(hangs_after=2) as gateway, gateway.ask() as response:
        received = b""
        with anyio.fail_after(3):
            while b" upon" not in received:
                received += await response.content.readany()


async def test_an_answer_without_text_is_still_an_answer(serving: Serving) -> None:
    """An endpoint that has nothing to say ends a stream properly."""
    async with serving(answer="") as gateway, gateway.client() as client:
        stream = await client.chat.completions.create(model="disco", messages=MESSAGES, stream=True)
        chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "stop"]


async def test_comments_keep_a_silent_stream_open(serving: Serving) -> None:
    """Between distant pieces there are comments, and no piece is lost to them."""
    async with serving({"keep_alive_s": 0.02}, answer="a b", tbt_s=0.2) as gateway:
        async with gateway.ask() as response:
            assert b"\n\n: keep-alive\n\n" in await response.read()
        async with gateway.client() as client:
            stream = await client.chat.completions.create(model="disco", messages=MESSAGES, stream=True)
            told: list[str] = []
            await listen(stream, told)
    assert "".join(told) == "a b"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_before_content_has_its_own_status(serving: Serving, stream: bool) -> None:
    """No header is sent before content, so a failed race is a 502, and clients are told not to retry."""
    async with serving(refuses="out of memory") as gateway:
        async with gateway.client(retries=2) as client:
            with pytest.raises(openai.InternalServerError, match="laptop: out of memory") as caught:
                await client.chat.completions.create(model="disco", messages=MESSAGES, stream=stream)
        assert gateway.laptop.started == 1
    assert caught.value.status_code == 502
    assert caught.value.code == "all_endpoints_failed"
    assert caught.value.request_id


async def test_a_failure_after_content_is_an_event(serving: Serving) -> None:
    """A broken stream says so in band, and still ends with [DONE]."""
    async with serving(breaks_after=2) as gateway:
        async with gateway.client() as client:
            stream = await client.chat.completions.create(model="disco", messages=MESSAGES, stream=True)
            told: list[str] = []
            with pytest.raises(openai.APIError, match="connection reset"):
                await listen(stream, told)
        assert "".join(told) == "Once upon"
        async with gateway.ask() as response:
            assert (response.status, (await response.read())[-14:]) == (200, b"data: [DONE]\n\n")


class Garbling(ScriptedEndpoint):
    """Says half of a character, which no adapter should."""

    pause_s = 0.0

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        for text, pause_s in (("Once", 0.02), ("\ud83e", self.pause_s), (" upon", 0.0)):
            yield Piece(text)
            await anyio.sleep(pause_s)
        yield Finish(FinishReason.STOP)


@pytest.mark.parametrize("pause_s", [0.0, 0.02])
async def test_a_piece_that_cannot_be_written_ends_the_stream(serving: Serving, pause_s: float) -> None:
    """An answer does not go on without it; what comes in the meantime is not written behind the end."""
    body = json.dumps({"messages": MESSAGES, "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    async with serving() as gateway:
        garbling = Garbling(gateway.laptop.settings, gateway.laptop.script)
        garbling.pause_s = pause_s
        gateway.disco.endpoints["laptop"] = garbling
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(gateway.base_url).port)
        writer.write((head + body).encode())
        said = await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()
    assert b'"content":"Once"' in said
    assert b" upon" not in said
    assert said.count(b'"error"') == 1
    assert said.endswith(DONE + b"\r\n0\r\n\r\n")


async def listen(stream: Any, told: list[str]) -> None:
    """Keep what a stream tells, up to its end or failure."""
    async for chunk in stream:
        told.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - kept even when it fails


def failures(*causes: tuple[Phase, str | None]) -> AllEndpointsFailed:
    return AllEndpointsFailed([EndpointError("cloud", phase, "no", code=code) for phase, code in causes])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (failures((Phase.CONNECT, None), (Phase.CONNECT, None)), 503, "all_endpoints_failed"),
        (failures((Phase.CONNECT, None), (Phase.REFUSED, None)), 502, "all_endpoints_failed"),
        (failures((Phase.REFUSED, "context_length_exceeded")), 400, "context_length_exceeded"),
        (
            failures((Phase.REFUSED, "context_length_exceeded"), (Phase.PREFILL, None)),
            502,
            "all_endpoints_failed",
        ),
        (
            AllEndpointsFailed(
                [EndpointError("a", Phase.REFUSED, "no", status=429), EndpointError("b", Phase.CONNECT, "no")]
            ),
            502,
            "all_endpoints_failed",
        ),
        (RuntimeError("secret detail"), 500, None),
    ],
)
async def test_the_status_tells_whose_fault_it_was(error: Exception, status: int, code: str | None) -> None:
    """Nobody there is 503, a prompt too long for all 400, a mixture 502; our own defects tell nothing."""
    reply = describe(error)
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (status, code)
    assert b"secret" not in reply.body
    assert (reply.headers.get("x-should-retry") == "false") is isinstance(error, AllEndpointsFailed)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", [{"hangs_after": 0}, {"hangs_after": 2}])
async def test_a_client_that_leaves_cancels_every_attempt(
    serving: Serving, stream: bool, script: dict[str, Any]
) -> None:
    """Leaving before or after the first content frees the endpoint."""
    async with serving(**script) as gateway:
        with anyio.move_on_after(0.3):
            async with gateway.ask({"messages": MESSAGES, "stream": stream}) as response:
                assert gateway.laptop.open == 1
                await response.read()
        await gateway.idle()
        assert gateway.laptop.started == 1


async def test_a_stopping_gateway_ends_streams_with_an_error(serving: Serving) -> None:
    """An answer that the gateway's end cuts off is not silently short."""
    rest = bytearray()

    async def follow(gateway: Gateway, *, task_status: TaskStatus[None]) -> None:
        async with gateway.ask() as response:
            task_status.started()
            rest.extend(await response.read())

    async with anyio.create_task_group() as tasks, serving(hangs_after=2) as gateway:
        await tasks.start(follow, gateway)
    assert b'"code":"interrupted"' in rest
    assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ("oops", None, "expected `object`, got `str`"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": MESSAGES, "n": 3}, "n", "`n` is not supported"),
        ({"messages": MESSAGES, "max_tokens": -1}, "max_tokens", ">= 1"),
    ],
)
async def test_bad_requests_are_400_and_name_the_field(
    serving: Serving, body: Any, param: str | None, words: str
) -> None:
    """A request that cannot be served is refused before anything starts."""
    async with serving() as gateway, gateway.ask(body) as response:
        assert response.status == 400
        error = await error_in(response)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert words in error["message"]
        assert gateway.laptop.started == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/v1/models", 405)],
)
async def test_wrong_paths_and_methods_have_openai_shapes(
    serving: Serving, method: str, path: str, status: int
) -> None:
    """404 and 405 are JSON like every other error."""
    async with serving() as gateway, gateway.call(method, path) as response:
        assert response.status == status
        assert (status == 405) is ("Allow" in response.headers)
        await error_in(response)


async def test_a_huge_body_is_413(serving: Serving) -> None:
    """The body's size is limited."""
    body = io.BytesIO(b" " * (9 << 20))
    async with serving() as gateway, gateway.call("POST", "/v1/chat/completions", data=body) as response:
        assert response.status == 413
        await error_in(response)


@pytest.mark.parametrize(
    ("sent", "kept"), [("trace-1.a_B", True), ("x" * 129, False), ("a b", False), ("é", False), ("", False)]
)
async def test_a_sane_request_id_is_kept(serving: Serving, sent: str, kept: bool) -> None:
    """The client's own ID comes back, an odd one is replaced, and every response has one."""
    async with serving() as gateway, gateway.ask(headers={"x-request-id": sent}) as response:
        name = response.headers["x-request-id"]
        assert (name == sent) is kept
        assert f'"id":"chatcmpl-{name}"'.encode() in await response.read()
    async with serving() as gateway, gateway.ask([], headers={"x-request-id": "mine"}) as response:
        assert response.headers["x-request-id"] == "mine"


async def test_the_clients_key_is_checked(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key set, everything under /v1 needs it, and health does not."""
    monkeypatch.setenv("GATEWAY_KEY", "right")
    async with serving({"api_key_env": "GATEWAY_KEY"}) as gateway:
        for sent in ("", "right", "Bearer", "Bearer wrong", "Bearer rightt", "Basic right", "Bearer ä"):
            async with gateway.call("GET", "/v1/models", headers={"Authorization": sent}) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert (await error_in(response))["code"] == "invalid_api_key"
        async with gateway.call("GET", "/v1/models", headers={"Authorization": "bearer right"}) as response:
            assert response.status == 200
        async with gateway.call("GET", "/health") as response:
            assert await response.json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Host", "evil.example", 403),
        ("Host", "127.0.0.1.evil.example:80", 403),
        ("Host", "localhost:[", 403),
        ("Host", "localhost:8377", 200),
        ("Host", "[::1]:8377", 200),
        ("Origin", "https://evil.example", 403),
        ("Origin", "null", 403),
        ("Origin", "http://localhost:3000", 200),
    ],
)
async def test_foreign_web_pages_are_turned_away(
    serving: Serving, header: str, value: str, status: int
) -> None:
    """A gateway on loopback serves no page from elsewhere, whatever name it found the address by."""
    async with serving() as gateway, gateway.call("GET", "/v1/models", headers={header: value}) as response:
        assert response.status == status


PAGE = "http://chat.example:3000"


async def test_a_page_that_is_allowed_may_use_it(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its preflight is answered without the key, requests need one, and the browser may show replies."""
    monkeypatch.setenv("GATEWAY_KEY", "right")
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-stainless-os"}
    settings = {"allow_origins": [PAGE], "api_key_env": "GATEWAY_KEY"}
    async with serving(settings) as gateway:
        path = "/v1/chat/completions"
        async with gateway.call("OPTIONS", path, headers={"Origin": PAGE, **asks}) as response:
            assert (response.status, await response.read()) == (204, b"")
            assert response.headers["Access-Control-Allow-Origin"] == PAGE
            assert response.headers["Access-Control-Allow-Headers"] == "x-stainless-os"
        async with gateway.ask(headers={"Origin": PAGE}) as response:
            assert response.status == 401
            assert response.headers["Access-Control-Allow-Origin"] == PAGE
        async with gateway.ask(headers={"Origin": PAGE, "Authorization": "Bearer right"}) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == PAGE
            assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://chat.example:3000", "http://chat.example", "null", PAGE + "/"])
async def test_other_pages_are_still_turned_away(serving: Serving, origin: str) -> None:
    """An origin is allowed by scheme, host and port; what is only like it is not, nor is its preflight."""
    asks = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    async with serving({"allow_origins": [PAGE]}) as gateway:
        for method in ("GET", "OPTIONS"):
            async with gateway.call(method, "/v1/models", headers=asks) as response:
                assert response.status == 403
                assert "Access-Control-Allow-Origin" not in response.headers


async def test_nothing_is_said_of_origins_unless_some_are_allowed(serving: Serving) -> None:
    """By default no page is told that it may read anything."""
    async with serving() as gateway, gateway.call("GET", "/v1/models") as response:
        assert not {"Vary", "Access-Control-Allow-Origin"} & set(response.headers)


async def test_ready_says_how_each_endpoint_stands(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready as soon as one endpoint could answer at once; until then 503, and no key is needed."""
    loaded = anyio.Event()

    async def prepare(self: ScriptedEndpoint) -> None:
        await loaded.wait()
        if self.script.refuses:
            raise EndpointError(self.name, Phase.CONNECT, "no such model at http://10.0.0.7")

    monkeypatch.setattr(ScriptedEndpoint, "prepare", prepare)
    for refuses, status, standing in (("", 200, "ready"), ("yes", 503, "failed")):
        loaded = anyio.Event()
        async with serving(refuses=refuses) as gateway:
            async with gateway.call("GET", "/ready") as response:
                assert response.status == 503
                assert await response.json() == {"status": "starting", "endpoints": {"laptop": "starting"}}
            loaded.set()
            await anyio.sleep(0.05)
            async with gateway.call("GET", "/ready") as response:
                assert response.status == status
                assert (await response.json())["endpoints"] == {"laptop": standing}


async def test_a_server_that_is_started_later_gets_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The gateway may be up before it: until then 503 and one line in the log, afterwards 200 unasked."""
    monkeypatch.setattr(connection, "ASK_AGAIN_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    rack = {"name": "rack", "kind": "server", "dialect": "llamacpp", "base_url": f"http://127.0.0.1:{port}"}
    settings = settings_from(
        {"endpoint": [rack], "gateway": {"port": 0}, "ledger": {"path": str(tmp_path / "ledger.db")}}
    )

    async def standing(wanted: dict[str, Any]) -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(200):
                async with session.get(base_url.removesuffix("v1") + "ready") as response:
                    if await response.json() == wanted:
                        return
                await anyio.sleep(0.02)
        raise AssertionError(wanted)

    async with anyio.create_task_group() as tasks:
        base_url = await tasks.start(serve, settings)
        await standing({"status": "starting", "endpoints": {"rack": "failed"}})
        await anyio.sleep(0.2)
        started = web.AppRunner(web.Application())  # knows no path, as an old llama.cpp does not know all
        await started.setup()
        await web.TCPSite(started, "127.0.0.1", port).start()
        await standing({"status": "ready", "endpoints": {"rack": "ready"}})
        tasks.cancel_scope.cancel()
    await started.cleanup()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["rack"]


async def test_an_open_address_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off loopback a key is required, and a key that is named must exist."""
    monkeypatch.delenv("GATEWAY_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"api_key_env: must name .* gateway.host = '0.0.0.0'"):
        await serve(settings_for(tmp_path, {"host": "0.0.0.0"}))
    with pytest.raises(ConfigError, match="api_key_env = 'GATEWAY_KEY': the environment variable is not set"):
        await serve(settings_for(tmp_path, {"api_key_env": "GATEWAY_KEY"}))


async def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """The address, the reason and the fix are in one line, before any endpoint starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"^127.0.0.1:{port} is in use; .* set gateway.port to another$"
        ):
            await serve(settings_for(tmp_path, {"port": port}))


async def test_an_endpoints_name_pins_it_and_an_unknown_name_is_404(serving: Serving) -> None:
    """`disco` leaves the choice to the policy, an endpoint's name is that endpoint, any other is refused."""
    async with serving() as gateway, gateway.client() as client:
        pinned = await client.chat.completions.create(model="laptop", messages=MESSAGES)
        assert (pinned.model_extra or {})["disco"]["winner"] == "laptop"
        assert pinned.model == "laptop"
        with pytest.raises(openai.NotFoundError, match=r"there are: disco, .*, laptop") as refused:
            await client.chat.completions.create(model="gpt-nope", messages=MESSAGES)
    assert refused.value.code == "model_not_found"
    assert gateway.laptop.started == 1


def test_models_names_pin_where_they_mean_one_endpoint(tmp_path: Path) -> None:
    """A model served by one endpoint pins it; a model that two endpoints serve leaves the choice open."""

    def disco(*models: str) -> Disco:
        endpoints = [
            {"name": f"e{n}", "kind": "device", "dialect": "scripted", "model": model}
            for n, model in enumerate(models)
        ]
        return connect(settings_from({"endpoint": endpoints}))

    def pinned(model: str, *models: str) -> str | None:
        return choice_of(model, disco(*models).endpoints).endpoint

    assert pinned("llama", "llama", "gemma") == "e0"
    assert pinned("llama", "llama", "llama") is None
    assert pinned("disco", "llama") is None
    assert pinned("disco", "disco") is None


async def test_a_gateway_that_is_not_connected_says_503(tmp_path: Path) -> None:
    """A request that meets a closed connection gets a status that says so, and no traceback."""
    reply = describe(NotConnected("not connected"))
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["code"] == "interrupted"


async def test_a_slow_race_keeps_the_connection_open(serving: Serving) -> None:
    """A stream whose first token takes long begins without it, with comments that keep it alive."""
    async with serving({"keep_alive_s": 0.05}, ttft_s=0.3) as gateway, gateway.ask() as response:
        assert response.status == 200
        lines = (await response.read()).splitlines()
    assert lines[0].startswith(b"data: {")
    assert b": keep-alive" in lines
    assert lines[-2] == b"data: [DONE]"


async def test_a_client_that_is_gone_is_no_defect(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever leaves just before the next write leaves nothing in the log that someone should look into."""
    write = StreamWriter.write

    async def leaving(writer: StreamWriter, data: bytes, **wishes: Any) -> None:
        if b"upon" in data:
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        await write(writer, data, **wishes)

    monkeypatch.setattr(StreamWriter, "write", leaving)
    async with serving(tbt_s=0.05) as gateway, gateway.ask() as response:
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    assert "defect" not in caplog.text


async def test_a_body_in_a_false_encoding_is_the_clients_mistake(serving: Serving) -> None:
    """A body that says gzip and is none gets a 400, not a defect of ours."""
    async with (
        serving() as gateway,
        gateway.call(
            "POST",
            "/v1/chat/completions",
            data=b"{}",
            headers={"Content-Encoding": "gzip"},
        ) as response,
    ):
        assert response.status == 400
        assert "could not be read" in (await error_in(response))["message"]
