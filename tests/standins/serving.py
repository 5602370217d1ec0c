"""Stand-ins for servers that cannot run here, on real sockets, each written from public documentation."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

UNITS = ("", "-one", "-two", "-three", "-four", "-five", "-six", "-seven", "-eight", "-nine")
TENS = ("twenty", "thirty", "forty", "fifty")
ANSWER = ", ".join(ten + unit for ten in TENS for unit in UNITS).capitalize() + "."
"""Forty words, each of which counts as a token."""
PROMPT_TOKENS = 24


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Service:
    """A stand-in that runs."""

    root: str
    asked: list[Asked] = field(default_factory=list)


Reply = web.StreamResponse | tuple[str, Iterable[bytes]]
"""A whole response; or a stream's media type and its parts."""

Handler = Callable[[Asked], Reply | Awaitable[Reply]]


def refusal(status: int, body: dict[str, Any]) -> web.Response:
    return web.json_response(body, status=status)


def words(told: str = "", most: int | None = None) -> tuple[list[str], bool]:
    """What is left to say after `told`, in words that spaces lead; and whether that is all.

    What stands before a colon in `told` is the teller's own.
    """
    told = told.rpartition(": ")[2]
    rest = re.findall(r"\s*\S+", ANSWER[len(told) :] if ANSWER.startswith(told) else ANSWER)
    return rest[:most], most is None or most >= len(rest)


def event(body: dict[str, Any], name: str = "") -> bytes:
    named = f"event: {name}\n" if name else ""
    return f"{named}data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Service]:
    """Answer every POST by what the handler says of it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        asked = Asked(request.path, dict(request.query), dict(request.headers), await request.json())
        service.asked.append(asked)
        reply = handler(asked)
        if isinstance(reply, Awaitable):
            reply = await reply
        if isinstance(reply, web.StreamResponse):
            return reply
        kind, parts = reply
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = Service(f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            await web.SockSite(runner, listener).start()
            yield service
        finally:
            await runner.cleanup()
