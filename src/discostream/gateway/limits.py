"""How much a client may send, and how long it may take: what is read before a request is understood."""

from __future__ import annotations

import logging
from contextlib import suppress

import anyio
import numpy as np
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from discostream.errors import RequestRejected

__all__ = [
    "BODY_S",
    "KEEP_IDLE_S",
    "MAX_BODY_BYTES",
    "MAX_HEADERS",
    "MAX_HEADER_BYTES",
    "MAX_LINE_BYTES",
    "MAX_NESTING",
    "SEND_BUFFER_BYTES",
    "allow_many_connections",
    "http_log",
    "read_within_limits",
]

MAX_LINE_BYTES = 8190
"""Of the request line."""
MAX_HEADER_BYTES = 8190
MAX_HEADERS = 128
MAX_BODY_BYTES = 8 << 20
BODY_S = 60.0
"""How long a body may take to arrive."""
KEEP_IDLE_S = 75.0
"""How long a connection is kept that nothing is asked over."""
MANY_FILES = 1 << 16
"""Files and connections that a gateway may well need at a time; shells allow 1,024."""
MAX_NESTING = 100
"""How deep arrays and objects may stand in each other: JSON schemas of tools need a third of that."""
SEND_BUFFER_BYTES = 1 << 16
"""What the system may hold for one client: many seconds of any model's text."""

CLIENTS_FAULT = (HttpProcessingError, ConnectionError)
"""What a request ends in that is no HTTP, or whose client is gone in the moment in which it is written to."""

_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def allow_many_connections() -> None:
    """Let this process have as many files and connections open as the system allows, if it needs them."""
    try:
        import resource
    except ImportError:
        return  # Windows has no such limit
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if most == resource.RLIM_INFINITY else min(MANY_FILES, most)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        with suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def http_log() -> logging.Logger:
    """Where aiohttp tells of defects: not of clients that left, nor of what is no HTTP, which it quotes."""
    log = logging.getLogger("discostream.gateway.http")
    log.addFilter(_is_no_clients_fault)
    return log


def _is_no_clients_fault(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], CLIENTS_FAULT))


@web.middleware
async def read_within_limits(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's response, once the body has come whole and in time; handlers then read it at once."""
    if request.can_read_body:
        body = await (request.read() if request.content.is_eof() else _read_in_time(request))
        if _nesting(body) > MAX_NESTING:
            raise RequestRejected(f"The body is nested deeper than {MAX_NESTING}", code="invalid_json")
    return await handler(request)


async def _read_in_time(request: web.Request) -> bytes:
    try:
        with anyio.fail_after(BODY_S):
            return await request.read()
    except TimeoutError:
        raise RequestRejected(
            f"The body did not arrive within {BODY_S:g} s", status=408, code="request_timeout"
        ) from None


def _nesting(body: bytes) -> int:
    """How deep brackets outside of strings stand in each other; at most so deep, for few of them."""
    if (brackets := body.count(b"[") + body.count(b"{")) <= MAX_NESTING:
        return brackets
    # What comes between two quotes is text, once escaped backslashes and quotes are gone.
    outside = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    steps = np.frombuffer(b"".join(outside).translate(_STEPS, _ALL_BUT_BRACKETS), np.int8)
    return int(steps.cumsum(dtype=np.int32).max(initial=0))
