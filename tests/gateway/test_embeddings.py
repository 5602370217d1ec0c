"""Embeddings over real sockets: passed on, passed back, and refused where they must be."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import openai
import pytest
from aiohttp import web

from discostream.config import settings_from
from discostream.gateway.app import serve
from discostream.ledger.queries import totals

pytestmark = pytest.mark.anyio

KEY = "sk-very-secret-key"
REPLY = b'{"object":"list", "data":[{"object":"embedding","index":0,"embedding":[1e-3,0.25]}],"extra":1}'
LAPTOP = {"name": "laptop", "kind": "device", "dialect": "scripted"}


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


@dataclass
class Upstream:
    """A stand-in for a service, from OpenAI's reference of `/embeddings`; it notes what it was sent."""

    base_url: str
    status: int = 200
    body: bytes = REPLY
    waits: bool = False
    asked: list[bytes] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    left: anyio.Event = field(default_factory=anyio.Event)

    async def embed(self, http: web.Request) -> web.Response:
        self.asked.append(await http.read())
        self.keys.append(http.headers["Authorization"])
        try:
            if self.waits:
                await anyio.sleep(30)
        except BaseException:
            self.left.set()
            raise
        return web.Response(status=self.status, body=self.body, content_type="application/json")


@asynccontextmanager
async def an_upstream(**script: Any) -> AsyncIterator[Upstream]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = Upstream(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", **script)
        app = web.Application()
        app.add_routes([web.post("/v1/embeddings", upstream.embed)])
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield upstream
        await runner.cleanup()


@asynccontextmanager
async def serving(folder: Path, *endpoints: dict[str, Any], **tables: Any) -> AsyncIterator[str]:
    """The base URL of a gateway on a free port."""
    settings = {
        "endpoint": list(endpoints),
        "gateway": {"port": 0},
        "ledger": {"path": str(folder / "ledger.db")},
        **tables,
    }
    async with anyio.create_task_group() as tasks:
        yield await tasks.start(serve, settings_from(settings))
        tasks.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_KEY", KEY)


def cloud(upstream: Upstream, **keys: Any) -> dict[str, Any]:
    return {
        "name": "cloud",
        "kind": "server",
        "dialect": "openai",
        "base_url": upstream.base_url,
        "api_key_env": "CLOUD_KEY",
        "prompt_usd_per_mtok": 1.0,
        "completion_usd_per_mtok": 1.0,
        "model": "chatty",
        "embedding_model": "vectors-3",
        **keys,
    }


async def post(base_url: str, body: bytes | dict[str, Any], **headers: str) -> tuple[int, Any, bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body)
    url = f"{base_url}/embeddings"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=data, headers={"x-request-id": "mine", **headers}) as response,
    ):
        return response.status, response.headers, await response.read()


async def test_all_but_the_model_is_passed_unchanged(tmp_path: Path) -> None:
    """Fields keep their bytes and their order, the reply is the endpoint's own, the ledger has nothing."""
    sent = b'{"input": ["a\\u00e9", [1, 2]], "model": "cloud", "dimensions": 1.50, "new_field": {"x": null}}'
    async with an_upstream() as upstream, serving(tmp_path, LAPTOP, cloud(upstream)) as base_url:
        status, headers, body = await post(base_url, sent)
    assert (status, headers["x-request-id"], headers["Content-Type"]) == (200, "mine", "application/json")
    assert body == REPLY
    (asked,) = upstream.asked
    assert json.loads(asked) == {**json.loads(sent), "model": "vectors-3"}
    assert b'["a\\u00e9", [1, 2]]' in asked
    assert b"1.50" in asked
    assert upstream.keys == [f"Bearer {KEY}"]
    assert totals(tmp_path / "ledger.db").requests == 0


@pytest.mark.parametrize("model", ["disco", "disco-cheap", "cloud", "vectors-3"])
async def test_the_official_client_embeds(model: str, tmp_path: Path) -> None:
    """The openai package reads vectors, whichever of the names it uses."""
    async with (
        an_upstream() as upstream,
        serving(tmp_path, LAPTOP, cloud(upstream)) as base_url,
        openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as client,
    ):
        reply = await client.embeddings.create(model=model, input="Hello", encoding_format="float")
    assert reply.data[0].embedding == [1e-3, 0.25]


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"model": "gpt-nope", "input": "a"}, 404, "model", "there are: disco, cloud, vectors-3"),
        ({"model": "laptop", "input": "a"}, 404, "model", "no embedding model 'laptop'"),
        ({"model": 3, "input": "a"}, 400, "model", "must be a name"),
        ({"model": "disco"}, 400, "input", "is missing"),
        ({"model": "disco-private", "input": "a"}, 400, "model", "No device that the texts may not leave"),
        (b"[]", 400, None, "no JSON object"),
        (b'{"input": "\xff"', 400, None, "no JSON object"),
    ],
)
async def test_bad_requests_go_nowhere(
    body: Any, status: int, param: str | None, says: str, tmp_path: Path
) -> None:
    """The client's mistakes are told by field, and no endpoint hears of them."""
    async with an_upstream() as upstream, serving(tmp_path, LAPTOP, cloud(upstream)) as base_url:
        told, _, reply = await post(base_url, body)
    error = json.loads(reply)["error"]
    assert (told, error["param"]) == (status, param)
    assert says in error["message"]
    assert upstream.asked == []


async def test_private_texts_go_to_devices_only(tmp_path: Path) -> None:
    """By header, by model or by the settings: a server is passed over, and a device is asked."""
    asks: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"input": "a"}, {"x-disco-private": "true"}),
        ({"input": "a", "model": "disco-private"}, {}),
    ]
    async with an_upstream() as far, an_upstream() as near:
        endpoints = cloud(far), cloud(near, name="shed", kind="device")
        async with serving(tmp_path, *endpoints) as base_url:
            assert [(await post(base_url, body, **headers))[0] for body, headers in asks] == [200, 200]
            refused = await post(base_url, {"input": "a", "model": "cloud"}, **{"x-disco-private": "true"})
        async with serving(tmp_path, *endpoints, policy={"private": True}) as base_url:
            assert (await post(base_url, {"input": "a"}))[0] == 200
    assert (len(far.asked), len(near.asked)) == (0, 3)
    assert refused[0] == 404


async def test_nobody_who_embeds_is_a_400_that_names_the_setting(tmp_path: Path) -> None:
    """A gateway without an embedding model says what to set."""
    async with serving(tmp_path, LAPTOP) as base_url:
        status, _, body = await post(base_url, {"input": "a"})
    assert status == 400
    assert "set `embedding_model` in an [[endpoint]]" in json.loads(body)["error"]["message"]


async def test_failures_look_as_those_of_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused is 502, also by a 200, unreachable 503, too long 400, too large 502; no key is told."""
    monkeypatch.setattr("discostream.endpoints.http.MAX_REPLY_BYTES", 1000)
    told: list[tuple[int, str]] = []
    async with an_upstream(status=401) as upstream, serving(tmp_path, cloud(upstream)) as base_url:
        upstream.body = json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}}).encode()
        for status, said in (
            (401, upstream.body),
            (400, b'{"error": {"message": "no", "code": "context_length_exceeded"}}'),
            (200, b"[" + b" " * 2000),
            (200, json.dumps({"error": {"message": f"Incorrect API key: {KEY}", "code": 401}}).encode()),
            (200, b"<html>Log in</html>"),
        ):
            upstream.status, upstream.body = status, said
            got, headers, body = await post(base_url, {"input": "a"})
            told.append((got, headers["x-should-retry"]))
            assert KEY.encode() not in body
    async with serving(tmp_path, cloud(upstream)) as base_url:
        told.append(((await post(base_url, {"input": "a"}))[0], "false"))
    assert told == [(status, "false") for status in (502, 400, 502, 502, 502, 503)]


@pytest.mark.parametrize("refused", [400, 413, 422])
async def test_input_that_is_refused_is_the_clients_mistake(refused: int, tmp_path: Path) -> None:
    """What the endpoint says of bad input comes back as a 400 in its own words."""
    said = b'{"error": {"message": "input: must not be empty"}}'
    async with (
        an_upstream(status=refused, body=said) as upstream,
        serving(tmp_path, cloud(upstream)) as base_url,
    ):
        status, headers, body = await post(base_url, {"input": ""})
    error = json.loads(body)["error"]
    assert (status, headers["x-should-retry"], error["type"]) == (400, "false", "invalid_request_error")
    assert "input: must not be empty" in error["message"]


async def test_a_client_that_leaves_cancels_the_request_upstream(tmp_path: Path) -> None:
    """The connection to the endpoint is closed while it still works."""
    async with an_upstream(waits=True) as upstream, serving(tmp_path, cloud(upstream)) as base_url:
        with anyio.move_on_after(0.3):
            await post(base_url, {"input": "a"})
        with anyio.fail_after(3):
            await upstream.left.wait()
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    ("budget", "status"),
    [
        ({"usd": 0, "per": "day", "mode": "hard"}, 402),
        ({"usd": 5, "per": "day", "mode": "hard"}, 402),
        ({"usd": 5, "per": "day", "mode": "soft"}, 200),
        ({"share": 0.5, "of": "server", "mode": "hard"}, 402),
        ({"joules": 5, "per": "day", "mode": "hard"}, 200),
    ],
)
async def test_what_a_hard_budget_would_have_to_count_is_not_asked(
    budget: dict[str, Any], status: int, tmp_path: Path
) -> None:
    """A server is not asked under a hard budget of dollars or of its share; energy is none of its concern."""
    async with (
        an_upstream() as upstream,
        serving(tmp_path, LAPTOP, cloud(upstream), budget=[{"name": "purse", **budget}]) as base_url,
    ):
        told, headers, body = await post(base_url, {"input": "a"})
    assert (told, len(upstream.asked)) == (status, int(status == 200))
    if status == 402:
        assert headers["x-should-retry"] == "false"
        assert b"budget 'purse' is hard, and embeddings are not counted" in body
