"""A bare relay, the floor for a gateway in Python: it parses every chunk and encodes it anew, no more.

python benchmarks/gateway/relay.py --port PORT --upstream BASE_URL
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from importlib.util import find_spec

import aiohttp
import anyio
import msgspec
from aiohttp import web

UPSTREAM, SESSION = web.AppKey("upstream", str), web.AppKey("session", aiohttp.ClientSession)
DONE = b"[DONE]"


async def relay(http: web.Request) -> web.StreamResponse:
    """Pass one answer on as it comes."""
    body, rest = msgspec.json.encode(msgspec.json.decode(await http.read())), b""
    async with http.app[SESSION].post(http.app[UPSTREAM], data=body) as upstream:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        async for data in upstream.content.iter_any():
            *events, rest = (rest + data).split(b"\n\n")
            await response.write(b"".join([encoded_anew(event.removeprefix(b"data: ")) for event in events]))
        await response.write_eof()
    return response


def encoded_anew(payload: bytes) -> bytes:
    """The event that carries what this payload means."""
    return b"data: %b\n\n" % (
        payload if payload == DONE else msgspec.json.encode(msgspec.json.decode(payload))
    )


async def health(http: web.Request) -> web.Response:
    """Say that it runs."""
    return web.json_response({"status": "ok"})


async def connect(app: web.Application) -> AsyncIterator[None]:
    """Keep one pool of connections for as long as the relay runs."""
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        app[SESSION] = session
        yield


async def serve(port: int, upstream: str) -> None:
    """Relay until killed."""
    app = web.Application()
    app[UPSTREAM] = f"{upstream}/chat/completions"
    app.cleanup_ctx.append(connect)
    app.add_routes([web.post("/v1/chat/completions", relay), web.get("/health", health)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await anyio.sleep_forever()


def main() -> None:
    """Relay to the upstream that was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    chosen = parser.parse_args()
    uvloop = {"use_uvloop": find_spec("uvloop") is not None}
    anyio.run(serve, chosen.port, chosen.upstream, backend_options=uvloop)


if __name__ == "__main__":
    main()
