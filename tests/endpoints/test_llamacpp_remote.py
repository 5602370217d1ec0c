"""llama.cpp servers that run elsewhere, and do not always behave: a stand-in on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from aiohttp import web

from discostream.config import EndpointSettings, convert_options, settings_from
from discostream.endpoints.llamacpp import LlamaCppEndpoint
from discostream.errors import ConfigError, EndpointError, Phase
from discostream.types import Event, Kind, Message, Piece, Prefix, Request

pytestmark = pytest.mark.anyio

VARIABLE, KEY = "REMOTE_LLAMA_KEY", "sk-REMOTE-0123456789abcdef"
START = Prefix()
Handler = Callable[[web.Request], object]


@asynccontextmanager
async def server(completion: Handler, props: object = None) -> AsyncIterator[str]:
    """A llama.cpp server whose completions are this handler's, and perhaps its properties; its base URL."""

    async def template(http: web.Request) -> web.Response:
        return web.json_response({"prompt": "hi"})

    async def tokens(http: web.Request) -> web.Response:
        return web.json_response({"tokens": [1, 2]})

    async def text(http: web.Request) -> web.Response:
        return web.json_response({"content": "so far"})

    async def properties(http: web.Request) -> web.Response:
        return web.json_response(props, status=403 if props is None else 200)

    app = web.Application()
    app.router.add_get("/props", properties)
    app.router.add_post("/apply-template", template)
    app.router.add_post("/tokenize", tokens)
    app.router.add_post("/detokenize", text)
    app.router.add_post("/completion", completion)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def collect(
    base_url: str, prefix: Prefix = START, max_tokens: int | None = None, **options: object
) -> tuple[list[Event], EndpointError | None]:
    options = {"base_url": base_url, **options}
    settings = EndpointSettings(name="remote", kind=Kind.SERVER, dialect="llamacpp", options=options)
    endpoint = LlamaCppEndpoint(settings, convert_options(settings, LlamaCppEndpoint.Options))
    request = Request(
        messages=(Message("user", "hi"),), arrived_at=0.0, request_id="r", max_tokens=max_tokens
    )
    events: list[Event] = []
    try:
        async for event in endpoint.generate(request, prefix):
            events.append(event)  # noqa: PERF401 - what came before an error is wanted too
    except EndpointError as error:
        return events, error
    finally:
        await endpoint.aclose()
    return events, None


async def hang(http: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(http)
    await response.write(b'data: {"content":"hi","tokens":[7],"tokens_predicted":1}\n\n')
    await asyncio.sleep(30)
    return response


async def say_half_a_character(http: web.Request) -> web.Response:
    return web.Response(body=b'data: {"content":"\xf0\x9f"}\n\n')


async def throw_in_a_page(http: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(http)
    await response.write(b'data: {"content":"hi","tokens":[7],"tokens_predicted":1}\n\n')
    await asyncio.sleep(0.05)
    assert http.transport is not None
    http.transport.write(b"<html>502 Bad Gateway</html>\r\n")
    await asyncio.sleep(30)
    return response


async def quote_the_key(http: web.Request) -> web.Response:
    told = {"error": {"message": "x" * 280 + http.headers["Authorization"], "type": "authentication_error"}}
    return web.json_response(told, status=401)


async def flood(http: web.Request) -> web.Response:
    return web.Response(body=b"x" * 50_000_000, status=500)


@pytest.mark.parametrize(("counted", "allowed"), [(1, 9), (2, 10), (5, 10)])
async def test_no_more_is_asked_for_than_was_allowed(counted: int, allowed: int) -> None:
    """A beginning of two tokens that counted for fewer lowers the limit; for more, it does not raise it."""
    asked: list[int] = []

    async def note(http: web.Request) -> web.Response:
        asked.append((await http.json())["n_predict"])
        return web.Response(body=b'data: {"content":"hi","tokens":[7],"stop":true}\n\n')

    async with server(note) as base_url:
        await collect(base_url, Prefix("so far", tokens=counted), max_tokens=10)
    assert asked == [allowed]


async def test_silence_is_a_break() -> None:
    """A stream that falls silent ends in an error once its patience is over, and can then be rescued."""
    async with server(hang) as base_url:
        events, error = await collect(base_url, read_timeout_s=0.2)
    assert [event.text for event in events if isinstance(event, Piece)] == ["hi"]
    assert error
    assert (error.phase, error.message) == (Phase.DECODE, "silent for too long")


async def test_half_a_character_is_a_break() -> None:
    """A stream that is not UTF-8 ends in an error of the endpoint's."""
    async with server(say_half_a_character) as base_url:
        _, error = await collect(base_url)
    assert error
    assert "sent what llama.cpp would not" in error.message


async def test_a_page_thrown_into_the_body_is_a_break() -> None:
    """A body whose framing goes wrong, as by a proxy in between, breaks off soon."""
    async with server(throw_in_a_page) as base_url:
        with anyio.fail_after(5):
            events, error = await collect(base_url)
    assert [event.text for event in events if isinstance(event, Piece)] == ["hi"]
    assert error
    assert error.phase is Phase.DECODE


async def test_a_quoted_key_is_never_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that repeats the key in its refusal does not get it into our errors, not even a part."""
    monkeypatch.setenv(VARIABLE, KEY)
    async with server(quote_the_key) as base_url:
        _, error = await collect(base_url, api_key_env=VARIABLE)
    assert error
    assert error.status == 401
    assert KEY[:8] not in str(error)


async def test_a_flood_of_error_is_cut() -> None:
    """An error body of any size becomes a short message."""
    async with server(flood) as base_url:
        _, error = await collect(base_url)
    assert error
    assert len(error.message) <= 300


async def point_elsewhere(http: web.Request) -> web.Response:
    raise web.HTTPTemporaryRedirect(f"/elsewhere{http.path}")


async def test_a_redirect_is_not_followed() -> None:
    """A prompt goes where the settings say, and not on to where that server points, which may be anywhere."""
    came: list[str] = []

    async def elsewhere(http: web.Request) -> web.Response:
        came.append(http.path)
        return web.json_response({"prompt": "hi", "tokens": [1]})

    app = web.Application()
    app.router.add_route("*", "/elsewhere/{path:.*}", elsewhere)
    app.router.add_route("*", "/{path:.*}", point_elsewhere)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    _, error = await collect(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()
    assert error
    assert (error.status, error.phase, came) == (307, Phase.REFUSED, [])
    assert error.message.endswith("it points to '/elsewhere/apply-template'; correct base_url")


@pytest.mark.parametrize(
    ("base_url", "words"),
    [
        ("localhost:8080", "must start with http"),
        ("http://localhost:99999", "no URL"),
        ("http://me:secret@localhost:99999", "no URL"),
        ("http://me:secret@localhost", "no user, key or query"),
        ("http://localhost?key=secret", "no user, key or query"),
    ],
)
async def test_a_wrong_base_url_is_a_setting_to_fix(base_url: str, words: str) -> None:
    """A base URL that cannot work is refused at once, and secrets in it are not repeated."""
    with pytest.raises(ConfigError, match=f"^endpoint 'remote': base_url = .*{words}") as caught:
        await collect(base_url)
    assert "secret" not in str(caught.value)


async def test_a_base_url_may_end_in_v1() -> None:
    """The address that other tools take, with /v1, is understood."""
    async with server(hang) as base_url:
        events, _ = await collect(f"{base_url}/v1/", read_timeout_s=0.2)
    assert events


@pytest.mark.parametrize(
    ("props", "slots"), [({"total_slots": 4, "model_path": "m"}, 4), (None, None), ({"slots": "many"}, None)]
)
async def test_a_server_that_runs_already_tells_its_slots(props: object, slots: int | None) -> None:
    """How many requests it serves at a time is asked for once; servers that keep it to themselves do too."""
    async with server(hang, props) as base_url:
        settings = EndpointSettings(
            name="remote", kind=Kind.DEVICE, dialect="llamacpp", options={"base_url": base_url}
        )
        endpoint = LlamaCppEndpoint(settings, convert_options(settings, LlamaCppEndpoint.Options))
        assert endpoint.slots is None
        await endpoint.prepare()
        await endpoint.aclose()
    assert endpoint.slots == slots


@pytest.mark.parametrize(
    ("declared", "features"),
    [(None, {"json", "logprobs", "completions", "images"}), (["tools"], {"tools"})],
)
async def test_a_server_tells_what_its_model_can_do(declared: list[str] | None, features: set[str]) -> None:
    """Its template and its modalities count, unless the settings say otherwise."""
    props = {
        "total_slots": 1,
        "chat_template_caps": {"supports_tools": False},
        "modalities": {"vision": True, "audio": False},
    }
    async with server(hang, props) as base_url:
        remote = {"name": "remote", "kind": "server", "dialect": "llamacpp", "base_url": base_url}
        remote |= {"features": declared} if declared else {}
        (settings,) = settings_from({"endpoint": [remote]}).endpoint
        endpoint = LlamaCppEndpoint(settings, convert_options(settings, LlamaCppEndpoint.Options))
        await endpoint.prepare()
        await endpoint.aclose()
    assert endpoint.features == features


def test_an_unknown_feature_is_refused_by_name() -> None:
    """The error says which there are."""
    remote = {"name": "remote", "kind": "server", "dialect": "llamacpp", "features": ["tool"]}
    with pytest.raises(ConfigError, match=r"features\[0\] = 'tool': must be one of tools, json, logprobs"):
        settings_from({"endpoint": [remote]})
