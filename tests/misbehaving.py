"""An upstream that tells a known answer over raw TCP, and goes wrong wherever a test says.

No HTTP library stands in between: sockets are reset, half-closed, dripped on and left in silence for real.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any

import anyio

__all__ = ["ANSWER", "Fault", "Manner", "Place", "Script", "Upstream", "misbehaving"]

ANSWER = (
    "Zuerst met 1 fox 🦊 two wolves 🐺🐺.\r\n"
    "三匹目の狐は、静かに走る。\n\n"
    "\tCafe\u0301 nai\u0308ve, Z\u0351\u036balgo: 👩‍👩‍👧‍👦 and 🏳️‍🌈\u2028kept — whole…\r\n\r\n"
    '  - four  spaces, "quoted" \\ back, {"json": [5]}, <p>six</p>\n'
    "data: [DONE]\n\n"
    "event: seven\r"
    "Eight words end it here."
)
"""Holds what breaks when it is cut or joined wrongly; the last of it ends a sentence."""

DRIP_S = 1.0
ARRIVED_S = 0.01
"""How long what was said is given to arrive before anything goes wrong."""
LONG = b"x" * 10_000_000
PAGE = b"<!DOCTYPE html>\r\n<html><body><h1>502 Bad Gateway</h1>\n\n</body></html>\r\n"
OVERLOADED = b'{"message": "overloaded", "type": "server_error", "code": 503}'


class Fault(StrEnum):
    """What goes wrong."""

    RESET = "reset"
    HALF_CLOSE = "half-close"
    STALL = "stall"
    DRIP = "drip"
    ERROR_FRAME = "error frame"
    BARE_DONE = "bare [DONE]"
    INVALID_UTF8 = "invalid UTF-8"
    INVALID_JSON = "invalid JSON"
    LONG_LINE = "10 MB line"
    HTML = "HTML"


class Place(StrEnum):
    """Where it goes wrong."""

    BEFORE_CONTENT = "before content"
    AFTER_ONE_TOKEN = "after one token"
    MID_ANSWER = "in mid-answer"
    AT_THE_END = "at the end"
    """All text is told, but not that it is over."""
    AFTER_THE_FINISH = "after the finish"


class Manner(StrEnum):
    """How a partial answer is continued."""

    EXACT = "exactly"
    TRIMS = "without the line ends in front"
    """As it cannot see those that were cut off; what comes with them must have come in words."""
    REPEATS = "with the partial answer once more in front"


@dataclass(frozen=True, kw_only=True)
class Script:
    """How one prompt is answered.

    Attributes:
        tokens: The answer, as it is cut into events.
        fault: What goes wrong; `None` answers soundly.
        early: Whether what goes wrong before content does so in the response's head already.
        shape: Which of the shapes of a fault it is, in turn.
        chunked: How the body is framed: in chunks, or by the end of the connection.
        ascii_only: Whether JSON escapes what is not ASCII.
        pause_s: The time between two tokens.
        hiccup_s: How long a sound answer stops at the place.
    """

    tokens: tuple[str, ...]
    manner: Manner = Manner.EXACT
    fault: Fault | None = None
    place: Place = Place.BEFORE_CONTENT
    early: bool = False
    shape: int = 0
    chunked: bool = True
    ascii_only: bool = True
    pause_s: float = 0.0
    hiccup_s: float = 0.0

    @classmethod
    def drawn(cls, luck: Random, *, in_words: bool = False, **fields: Any) -> Script:
        """A script of which chance decides what is not given."""
        return cls(
            tokens=_words() if in_words else _cut_anywhere(luck),
            early=luck.random() < 0.5,
            shape=luck.randrange(60),
            chunked=luck.random() < 0.5,
            ascii_only=luck.random() < 0.5,
            **fields,
        )

    @property
    def starts_wrong(self) -> bool:
        """Whether not even the response's head is right."""
        return self.fault is not None and self.place is Place.BEFORE_CONTENT and self.early

    def rest(self, told: str) -> list[str]:
        """What is said to whoever has `told` of the answer already."""
        if told and self.manner is Manner.TRIMS:
            told = ANSWER.removesuffix(ANSWER[len(told) :].lstrip("\r\n"))
        rest, end = [], 0
        for token in self.tokens:
            end += len(token)
            if end > len(told):
                rest.append(token[-(end - len(told)) :])
        return [told, *rest] if told and self.manner is Manner.REPEATS else rest

    def strike(self, tokens: int) -> int:
        """Before which event of `tokens` tokens and a finish the place is."""
        match self.place:
            case Place.BEFORE_CONTENT:
                return 0
            case Place.AFTER_ONE_TOKEN:
                return min(1, tokens)
            case Place.MID_ANSWER:
                return min(max(1, tokens // 2), tokens)
            case Place.AT_THE_END:
                return tokens
            case Place.AFTER_THE_FINISH:
                return tokens + 1


def _cut_anywhere(luck: Random) -> tuple[str, ...]:
    tokens, start = [], 0
    while start < len(ANSWER):
        end = start + luck.randint(1, 12)
        tokens.append(ANSWER[start:end])
        start = end
    return tuple(tokens)


def _words() -> tuple[str, ...]:
    """Spaces lead and line ends trail, so that a trimmed partial answer tells which of them it had."""
    return tuple(re.findall(r"[^\S\r\n]*\S+[\r\n]*", ANSWER))


class Upstream:
    """Answers by the script for each role and prompt; the path names the role.

    Attributes:
        scripts: By role and prompt.
        asked: How often each was asked.
        strays: Partial answers it was asked to go on with that are no part of the answer.
        connections: How many are open.
        telling: How many answers to each prompt are under way.
    """

    def __init__(self) -> None:
        self.scripts: dict[tuple[str, str], Script] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.strays: list[str] = []
        self.connections = 0
        self.telling: Counter[str] = Counter()
        self.port = 0

    def base_url(self, role: str) -> str:
        return f"http://127.0.0.1:{self.port}/{role}/v1"

    async def quiet(self, prompt: str) -> None:
        """Wait until every client that asked for an answer to this prompt has it or has left."""
        with anyio.fail_after(3):
            while self.telling[prompt]:  # noqa: ASYNC110 - sockets tell nobody
                await anyio.sleep(0.01)

    async def deserted(self) -> None:
        """Wait until every connection is closed."""
        with anyio.fail_after(3):
            while self.connections:  # noqa: ASYNC110
                await anyio.sleep(0.01)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while call := await _next_call(reader):
                await self._answer(*call, Wire(reader, writer))
        except OSError:
            pass  # the client has left
        finally:
            self.connections -= 1
            writer.close()

    async def _answer(self, role: str, prompt: str, told: str, wire: Wire) -> None:
        script = self.scripts[role, prompt]
        self.asked[role, prompt] += 1
        self.telling[prompt] += 1
        try:
            if ANSWER.startswith(told):
                await _perform(script, told, wire)
            else:
                self.strays.append(told)
                wire.reset()
        finally:
            self.telling[prompt] -= 1


@asynccontextmanager
async def misbehaving() -> AsyncIterator[Upstream]:
    """A running upstream without scripts."""
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.port = server.sockets[0].getsockname()[1]
    async with server:
        yield upstream


async def _next_call(reader: asyncio.StreamReader) -> tuple[str, str, str] | None:
    """Role, prompt and partial answer of the next request; `None` when the client has left."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    assert length
    messages = json.loads(await reader.readexactly(int(length[1])))["messages"]
    told = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    return head.split(b"/")[1].decode(), messages[0]["content"], told


async def _perform(script: Script, told: str, wire: Wire) -> None:
    tokens = script.rest(told)
    strike = script.strike(len(tokens))
    events = [_framed(event, script) for event in _garbled(script, _events(tokens, script), strike)]
    parts = [_head(script), *events, b"0\r\n\r\n" if script.chunked else b""]
    right = 0 if script.starts_wrong else 1 + strike
    for part in parts[:right]:
        await wire.send(part)
        await asyncio.sleep(script.pause_s)
    await asyncio.sleep(ARRIVED_S if script.fault else script.hiccup_s)
    match script.fault:
        case Fault.RESET:
            wire.reset()
        case Fault.HALF_CLOSE:
            await wire.half_close()
        case Fault.STALL:
            await wire.until_left()
        case Fault.DRIP:
            await wire.drip(parts[right])
        case _:
            for part in parts[right:]:
                await wire.send(part)
                await asyncio.sleep(script.pause_s)
            if not script.chunked:
                await wire.half_close()


def _head(script: Script) -> bytes:
    status, kind, more = "200 OK", "text/event-stream", b""
    if script.starts_wrong:
        match script.fault:
            case Fault.ERROR_FRAME:
                status, kind = "503 Service Unavailable", "application/json"
            case Fault.HTML:
                kind = "text/html; charset=utf-8"
            case Fault.LONG_LINE:
                more = b"X-Long: " + LONG + b"\r\n"
    framing = "Transfer-Encoding: chunked" if script.chunked else "Connection: close"
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{framing}\r\n".encode() + more + b"\r\n"


def _framed(event: bytes, script: Script) -> bytes:
    """As the body holds it; a page may be thrown in with no regard to the framing."""
    framed = script.chunked and not (event is PAGE and script.shape % 2)
    return b"%x\r\n%b\r\n" % (len(event), event) if framed else event


def _events(tokens: Sequence[str], script: Script) -> list[bytes]:
    """The whole stream: a chunk for each token, the finish, the token counts, and `[DONE]`."""
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": token}, "finish_reason": None}]} for token in tokens
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": max(1, len(tokens))}})
    told = [json.dumps({"id": "chatcmpl-1", **chunk}, ensure_ascii=script.ascii_only) for chunk in chunks]
    return [_event(text.encode()) for text in told] + [_event(b"[DONE]")]


def _event(payload: bytes) -> bytes:
    return b"data: %b\n\n" % payload


def _garbled(script: Script, events: list[bytes], strike: int) -> list[bytes]:
    """The stream with one event spoilt, or cut short; what goes wrong below it leaves it as it is."""
    spoilt = events[strike]
    match script.fault:
        case Fault.BARE_DONE:
            return [*events[:strike], _event(b"[DONE]")]
        case Fault.HTML:
            return [*events[:strike], PAGE]
        case Fault.ERROR_FRAME if script.starts_wrong:
            return [b'{"error": %b}' % OVERLOADED]
        case Fault.ERROR_FRAME:
            spoilt = _one_of(ERROR_FRAMES, script)
        case Fault.INVALID_UTF8:
            # In the text where there is any, else in another string of the chunk.
            before = b'"content": "' if b'"content": "' in spoilt else b'"id": "'
            spoilt = spoilt.replace(before, before + _one_of(NO_UTF8, script), 1)
        case Fault.INVALID_JSON:
            spoilt = _one_of(NO_JSON, script)(spoilt)
        case Fault.LONG_LINE:
            spoilt = _one_of(LONG_LINES, script)(spoilt)
    return [*events[:strike], spoilt, *events[strike + 1 :]]


def _one_of(shapes: Sequence[Any], script: Script) -> Any:
    return shapes[script.shape % len(shapes)]


ERROR_FRAMES: Sequence[bytes] = (
    _event(b'{"error": %b}' % OVERLOADED),
    _event(b'{"error": "overloaded"}'),
    _event(b'{"object": "error", "message": "overloaded"}'),
    b'event: error\r\ndata: {"error": %b}\r\n\r\n' % OVERLOADED,
    _event(b'{"choices": [{"index": 0, "delta": {"content": "sorry"}, "finish_reason": "error"}]}'),
)
NO_UTF8: Sequence[bytes] = (
    b"\xff",
    "🦊".encode()[:2],
    "🦊".encode()[2:],
    b"\xed\xa0\xbd",  # half of a surrogate pair, encoded
    b"\\ud83e",  # the same, escaped
    b"\xc0\x80",
)
NO_JSON: Sequence[Callable[[bytes], bytes]] = (
    lambda event: event[: len(event) // 2] + b"\n\n",
    lambda event: event.replace(b"\n\n", b"}\n\n"),
    lambda event: event.replace(b'"', b"'"),
    lambda event: event.replace(b"{", b'{"seen": NaN, ', 1),
    lambda event: event.replace(b"data: ", b"data: data: "),
    lambda event: _event(b"[1, 2]"),
)
LONG_LINES: Sequence[Callable[[bytes], bytes]] = (
    lambda event: event.replace(b"{", b'{"long": "%b", ' % LONG, 1),
    lambda event: b": %b\n\n" % LONG + event,
)


class Wire:
    """One connection, and what can be done to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, part: bytes) -> None:
        self._writer.write(part)
        await self._writer.drain()

    def reset(self) -> None:
        """Break the connection with an RST, which a close without lingering sends."""
        self._writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self._writer.transport.abort()

    async def half_close(self) -> None:
        """Say nothing more, and listen on."""
        self._writer.write_eof()
        await self.until_left()

    async def until_left(self) -> None:
        """Wait until the client closes the connection."""
        await self._reader.read()

    async def drip(self, part: bytes) -> None:
        """Send a byte at a time until the client closes the connection."""
        for byte in part:
            await self.send(bytes((byte,)))
            with anyio.move_on_after(DRIP_S):
                await self.until_left()
                return
        await self.until_left()
