"""What a client may send and hold, on real sockets: too much, too deep, too slow, and never read."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import socket
import sqlite3
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from discostream.config import Settings, settings_from
from discostream.gateway import app, limits
from discostream.gateway.app import serve
from discostream.gateway.streaming import Streaming
from discostream.ledger.queries import totals
from discostream.library import connect
from discostream.wire.sse import DONE

pytestmark = pytest.mark.anyio

CHAT = {"messages": [{"role": "user", "content": "Tell me a story"}]}
LAPTOP = {"name": "laptop", "kind": "device", "dialect": "scripted", "answer": "Once upon a time"}


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


def settings(folder: Path, *endpoints: dict[str, Any], **gateway: Any) -> Settings:
    return settings_from(
        {
            "endpoint": list(endpoints),
            "gateway": {"port": 0, **gateway},
            "ledger": {"path": str(folder / "ledger.db")},
        }
    )


@asynccontextmanager
async def serving(served: Settings) -> AsyncIterator[int]:
    """The port of a gateway."""
    async with anyio.create_task_group() as tasks:
        base_url = await tasks.start(serve, served)
        yield int(base_url.split(":")[2].split("/")[0])
        tasks.cancel_scope.cancel()


async def exchange(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back on a connection of its own, for bytes sent with a pause after each part."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await anyio.sleep(pause_s)
        with anyio.fail_after(5):
            return await reader.readuntil(b"\r\n\r\n") + await reader.read(4096)
    finally:
        writer.close()


def post(body: bytes, *, headers: bytes = b"", path: bytes = b"/v1/chat/completions") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%b\r\n%b" % (
        path,
        len(body),
        headers,
        body,
    )


async def test_an_older_client_sees_where_a_stream_ends(tmp_path: Path) -> None:
    """Over HTTP/1.0 a stream ends with its connection, even if the client asked to keep that."""
    body = json.dumps({**CHAT, "stream": True}).encode()
    asked = post(body, headers=b"Connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with serving(settings(tmp_path, LAPTOP)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asked)
        with anyio.fail_after(5):
            assert (await reader.read()).endswith(DONE)
        writer.close()


@pytest.mark.parametrize(
    "request_",
    [
        post(b"{}", headers=b"X-Long: " + b"x" * 9000 + b"\r\n"),
        post(b"{}", path=b"/" + b"x" * 9000),
        post(b"{}", headers=b"".join(b"X-%d: y\r\n" % n for n in range(200))),
        post(b"{}", headers=b"Content-Length: 3\r\n"),
        b"\x16\x03\x01 not http at all\r\n\r\n",
    ],
    ids=["header", "line", "headers", "twice", "tls"],
)
async def test_heads_are_bounded(request_: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A header, a request line or a number of headers beyond the limit is a 400, and nothing to log."""
    async with serving(settings(tmp_path, LAPTOP)) as port:
        assert (await exchange(port, request_)).split(b" ")[1] == b"400"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


DEEP = limits.MAX_NESTING + 1
TOO_DEEP = [
    b"[" * 100_000,
    b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    b'{"messages": [{"role": "user", "content": "a"}], "tools": %b%b}' % (b"[" * DEEP, b"]" * DEEP),
    b'{"input": %b%b}' % (b'[{"a":' * DEEP, b"}]" * DEEP),
]


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/embeddings"])
@pytest.mark.parametrize("body", TOO_DEEP, ids=["open", "objects", "tools", "input"])
async def test_deep_nesting_is_a_400(body: bytes, path: bytes, tmp_path: Path) -> None:
    """However deep a body nests, in a field that is read or in one that is passed on, it is refused."""
    async with serving(settings(tmp_path, LAPTOP)) as port:
        reply = await exchange(port, post(body, path=path))
    assert reply.startswith(b"HTTP/1.1 400")
    assert b"nested deeper than 100" in reply


async def test_brackets_in_text_are_no_nesting(tmp_path: Path) -> None:
    """Prompts may hold any number of brackets, quotes and backslashes; long chats have many objects."""
    text = '[[{{"\\' * 300 + '"]\\\\"'
    body = {"messages": [{"role": "user", "content": text}] * 150}
    async with serving(settings(tmp_path, LAPTOP)) as port:
        assert (await exchange(port, post(json.dumps(body).encode()))).startswith(b"HTTP/1.1 200")


async def test_a_body_is_bounded_by_what_it_unpacks_to(tmp_path: Path) -> None:
    """A small compressed body that holds a hundred megabytes is a 413."""
    bomb = gzip.compress(b" " * (100 << 20), compresslevel=1)
    async with serving(settings(tmp_path, LAPTOP)) as port:
        reply = await exchange(port, post(bomb, headers=b"Content-Encoding: gzip\r\n"))
    assert reply.startswith(b"HTTP/1.1 413")


async def test_a_body_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then is told 408 when its time is up, whatever the byte rate."""
    monkeypatch.setattr(limits, "BODY_S", 0.3)
    whole = post(json.dumps(CHAT).encode())
    began = time.monotonic()
    async with serving(settings(tmp_path, LAPTOP)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(whole[:-40])
        for byte in whole[-40:-20]:
            writer.write(bytes((byte,)))
            await anyio.sleep(0.03)
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.read(4096)
        writer.close()
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["error"]["code"] == "request_timeout"
    assert time.monotonic() - began < 3


async def test_a_client_that_reads_nothing_holds_less_than_a_megabyte(tmp_path: Path) -> None:
    """An endless answer stops at the endpoint itself, and all that is held between the two is counted."""
    sent = 0

    async def tell_endlessly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        piece = b'data: {"choices":[{"index":0,"delta":{"content":" and then"}}]}\n\n' * 10
        try:
            while True:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
        except ConnectionError:
            writer.close()

    async def settle_down() -> None:
        before = -1
        while before != sent:
            before = sent
            await anyio.sleep(0.5)

    upstream = await asyncio.start_server(tell_endlessly, "127.0.0.1", 0)
    cloud = {"name": "cloud", "kind": "server", "dialect": "openai", "base_url": url_of(upstream)}
    async with upstream, serving(settings(tmp_path, cloud)) as port:
        asking = post(json.dumps({**CHAT, "stream": True}).encode())
        for counted in (False, True):  # what the first one leaves in caches is nobody's
            with socket.create_connection(("127.0.0.1", port)) as client:
                if counted:
                    gc.collect()
                    tracemalloc.start()
                client.sendall(asking)
                began = sent
                await settle_down()
                gc.collect()
            while not counted and not totals(tmp_path / "ledger.db").requests:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert sent - began > 1 << 19
    assert held < 1 << 20


async def test_a_client_that_pauses_gets_all_of_its_answer(tmp_path: Path) -> None:
    """A client that does not read for longer than comments are apart loses nothing of a long answer."""
    words = [f"word{n}" for n in range(20_000)]
    told = {**LAPTOP, "answer": " ".join(words)}
    async with serving(settings(tmp_path, told, keep_alive_s=0.1)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
        writer.write(post(json.dumps({**CHAT, "stream": True}).encode(), headers=b"Connection: close\r\n"))
        head = await reader.readuntil(b"\r\n\r\n")
        await anyio.sleep(1.0)
        with anyio.fail_after(30.0):
            said = await reader.read()
        writer.close()
    assert head.startswith(b"HTTP/1.1 200")
    assert said.count(b'"content":" word') == len(words) - 1
    assert b"data: [DONE]" in said


async def test_a_client_that_reads_nothing_is_looked_at_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a comment is due and cannot be written, nothing is tried again before the next is due."""
    looked, keep_alive = 0, Streaming._keep_alive

    def counted(streaming: Streaming) -> None:
        nonlocal looked
        looked += 1
        keep_alive(streaming)

    monkeypatch.setattr(Streaming, "_keep_alive", counted)
    told = {**LAPTOP, "answer": "word " * 20_000}
    async with serving(settings(tmp_path, told, keep_alive_s=0.1)) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(post(json.dumps({**CHAT, "stream": True}).encode()))
            await anyio.sleep(1.0)
    assert 0 < looked <= 10


async def test_a_client_that_leaves_at_the_last_moment_is_nothing_to_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection breaks between the last word and the end of the stream: no traceback is logged."""
    broken, run = [], Streaming.run

    async def running(streaming: Streaming) -> None:
        await run(streaming)
        assert streaming._writer.transport
        streaming._writer.transport.abort()
        broken.append(streaming)

    monkeypatch.setattr(Streaming, "run", running)
    async with serving(settings(tmp_path, LAPTOP)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(json.dumps({**CHAT, "stream": True}).encode()))
        with anyio.fail_after(5):
            while not broken:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        await anyio.sleep(0.05)
        writer.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_stopping_gateway_waits_for_slow_clients_no_longer_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reads nothing holds up the end of the gateway for `STOPPING_S`, not for twice that."""
    monkeypatch.setattr(app, "STOPPING_S", 1.0)
    told = {**LAPTOP, "answer": "word " * 20_000}
    with socket.socket() as client:
        async with serving(settings(tmp_path, told)) as port:
            client.connect(("127.0.0.1", port))
            client.sendall(post(json.dumps({**CHAT, "stream": True}).encode()))
            await anyio.sleep(0.3)
            stopped_at = time.monotonic()
        assert 0.5 < time.monotonic() - stopped_at < 1.5


async def test_an_account_that_is_not_recorded_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the ledger takes nothing, the log has each account and the reason, without a traceback."""
    async with serving(settings(tmp_path, LAPTOP)) as port:
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as other:
            other.execute("ALTER TABLE attempt RENAME TO lost")
        reply = await exchange(port, post(json.dumps(CHAT).encode()))
    assert reply.startswith(b"HTTP/1.1 200")
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "no such table" in record.getMessage()
    assert "'winner': 'laptop'" in record.getMessage()
    assert record.exc_info is None


def url_of(upstream: asyncio.Server) -> str:
    return f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}/v1"


PROVIDERS_KEY, CLIENTS_KEY = "sk-provider-7f3a9c51", "kunden-schlüssel-ß"


async def test_keys_outside_of_ascii_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in UTF-8 is accepted as such; in another encoding, or cut short, it is a wrong one."""
    monkeypatch.setenv("CLIENTS_KEY", CLIENTS_KEY)
    sent = {
        CLIENTS_KEY.encode(): b"200",
        CLIENTS_KEY.encode("latin-1"): b"401",
        CLIENTS_KEY.encode()[:-1]: b"401",
        b"\xff\x80": b"401",
    }
    async with serving(settings(tmp_path, LAPTOP, api_key_env="CLIENTS_KEY")) as port:
        for key, status in sent.items():
            reply = await exchange(
                port, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n" % key
            )
            assert reply.split(b" ")[1] == status


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_secrets_and_texts_stay_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys are in no reply, log, repr or ledger, even where they are quoted; texts in no ledger or log."""
    monkeypatch.setenv("PROVIDERS_KEY", PROVIDERS_KEY)
    monkeypatch.setenv("CLIENTS_KEY", CLIENTS_KEY)
    caplog.set_level(logging.DEBUG)
    refusal = json.dumps({"error": {"message": f"Incorrect API key provided: {PROVIDERS_KEY}."}})

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 401 No\r\nContent-Length: {len(refusal)}\r\nConnection: close\r\n\r\n"
        writer.write((head + refusal).encode())
        await writer.drain()
        writer.close()

    upstream = await asyncio.start_server(refuse, "127.0.0.1", 0)
    cloud = {
        "name": "cloud",
        "kind": "server",
        "dialect": "openai",
        "base_url": url_of(upstream),
        "api_key_env": "PROVIDERS_KEY",
        "embedding_model": "vectors",
    }
    served = settings(tmp_path, LAPTOP, cloud, api_key_env="CLIENTS_KEY")
    told = [repr(served), *map(repr, connect(served).endpoints.values())]
    async with upstream, serving(served) as port, aiohttp.ClientSession() as session:
        for key in (CLIENTS_KEY, "wrong-" + CLIENTS_KEY):
            for path, body in (
                ("chat/completions", {**CHAT, "model": "disco-fast"}),
                ("chat/completions", {**CHAT, "model": "cloud"}),
                ("chat/completions", {**CHAT, "model": "cloud", "stream": True}),
                ("embeddings", {"input": CHAT["messages"][0]["content"]}),
            ):
                url, headers = f"http://127.0.0.1:{port}/v1/{path}", {"Authorization": f"Bearer {key}"}
                async with session.post(url, json=body, headers=headers) as response:
                    told += [str(response.headers), await response.text()]
        broken = f"Authorization: Bearer {PROVIDERS_KEY}\0\r\n".encode()
        await exchange(port, post(b"{}", headers=broken))
    kept = everything_in(tmp_path)
    logged = caplog.text
    for secret in (PROVIDERS_KEY, CLIENTS_KEY):
        assert not [text for text in (*told, logged) if secret in text]
        assert secret.encode() not in kept
    assert any("Incorrect API key provided: ***" in text for text in told)
    assert b"Incorrect API key provided: ***" in kept
    for text in (CHAT["messages"][0]["content"], "Once upon"):
        assert text not in logged
        assert text.encode() not in kept


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_many_connections_are_allowed() -> None:
    """A shell's limit of open files is raised to what the system allows, which stays as it is."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        limits.allow_many_connections()
        raised, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert most == before[1]
    assert raised == (1 << 16 if most == resource.RLIM_INFINITY else min(most, 1 << 16))
