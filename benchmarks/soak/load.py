"""What `benchmarks/soak.py` puts on a gateway: clients that leave, and upstreams that break and keep count.

Talks with whoever started it by lines: tells the ports of its upstreams, is told the gateway's address, and
then runs one phase for each `SECONDS STREAMS` that it is told, with a line when all of its clients are gone.
When its input ends it writes what it saw to the file, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio

STEADY, FLAKY, LAPTOP = "steady", "flaky", "laptop"
"""The upstream that answers soundly, the one that does so in most cases, and the embedded engine."""

ORDER = re.compile(r"number (\d+), (\d+) words")
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
WORDS, GAP_S = (5, 60), 0.04
FAULTY, LEAVING, SLOW = 0.3, 0.25, 0.05
"""How many of all flaky answers break, how many clients leave early, and how many read slowly."""
SHORT = 12
"""Tokens of an answer by the engine, which has many to give and two slots."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
FAULTS = ("refusal", "reset at once", "reset", "silence", "error", "no JSON", "no finish")


@dataclass
class Asked:
    """One answer that an upstream was asked for.

    Attributes:
        words: How many it has put on the wire; each is a token.
        prompt_tokens: What it tells at the end that the prompt had.
        told: What it then tells that it wrote; `None` until it has told all.
    """

    upstream: str
    request: int
    prompt_tokens: int
    words: int = 0
    told: int | None = None
    fault: str | None = None


@dataclass
class Answered:
    """How one request ended for its client: whole, with an error, or because it left."""

    request: int
    model: str
    ended: str
    words: int = 0
    sound: bool = True


class Upstream:
    """An OpenAI-compatible server that counts.

    Args:
        name: By which its answers are counted.
        asked: To which they are added.
        faulty: How many of all answers break.
        luck: Which ones do, and how.
    """

    def __init__(self, name: str, asked: list[Asked], faulty: float, luck: random.Random) -> None:
        self.name, self.asked, self.faulty, self.luck = name, asked, faulty, luck

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after the other."""
        with suppress(OSError, asyncio.IncompleteReadError):  # the client has left
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = LENGTH.search(head)
                assert length is not None
                body = json.loads(await reader.readexactly(int(length[1])))
                await self._answer(body["messages"], reader, writer)
        writer.transport.abort()

    async def _answer(
        self, messages: list[dict[str, str]], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        order = ORDER.search(messages[0]["content"])
        assert order is not None
        number, words = int(order[1]), int(order[2])
        before = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        asked = Asked(self.name, number, prompt_tokens=7 + number % 5 + len(before) // 4)
        self.asked.append(asked)
        if self.luck.random() < self.faulty:
            asked.fault = self.luck.choice(FAULTS)
        first = len(before) // 4
        breaks_at = self.luck.randint(first, words) if asked.fault else words
        if asked.fault == "refusal":
            await _send(writer, BUSY)
            return
        await asyncio.sleep(self.luck.uniform(0.0, 0.1))
        if asked.fault == "reset at once":
            raise OSError
        await _send(writer, HEAD)
        for place in range(first, breaks_at):
            asked.words += 1
            await _send(writer, _chunk({"content": word(place)}))
            await asyncio.sleep(GAP_S)
        if asked.fault:
            await _break(asked.fault, reader, writer)
        asked.told = asked.words
        usage = {"prompt_tokens": asked.prompt_tokens, "completion_tokens": asked.told}
        await _send(writer, _chunk({}, "stop") + _event({"choices": [], "usage": usage}) + END)


async def _break(fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Go wrong, for which `OSError` is raised in the end."""
    match fault:
        case "silence":
            await reader.read()
        case "error":
            await _send(writer, _event({"error": {"message": "overloaded", "code": 503}}))
        case "no JSON":
            await _send(writer, _framed(b"data: {'no'}\n\n"))
        case "no finish":
            await _send(writer, END)
    raise OSError


def word(place: int) -> str:
    """A word of four characters, which counts as one token."""
    return f" {place:03d}"


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    return _event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _event(payload: dict[str, Any]) -> bytes:
    return _framed(b"data: %b\n\n" % json.dumps({"id": "chatcmpl-1", **payload}).encode())


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


END = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


class Crowd:
    """Clients, so many at a time.

    Args:
        base_url: The gateway's.
        luck: What they ask for, and when they leave.
    """

    def __init__(self, base_url: str, luck: random.Random) -> None:
        self.base_url, self.luck = base_url, luck
        self.answered: list[Answered] = []

    async def run(self, seconds: float, streams: int) -> None:
        """Keep so many streams running, and see the last of them to its end."""
        until = time.monotonic() + seconds
        # Nobody may wait for ever, or the soak would; that is an error like any other.
        timeout = aiohttp.ClientTimeout(total=None, sock_read=60.0)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(streams):
                tasks.start_soon(self._keep_asking, session, until)

    async def _keep_asking(self, session: aiohttp.ClientSession, until: float) -> None:
        while time.monotonic() < until:
            await self._ask(session)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        luck, number = self.luck, len(self.answered)
        model = luck.choices(("disco", LAPTOP, FLAKY, STEADY), (85, 3, 8, 4))[0]
        words = luck.randint(*WORDS)
        answered = Answered(number, model, "error")
        self.answered.append(answered)
        body = {
            "model": model,
            "stream": True,
            "messages": [{"role": "user", "content": f"Count, number {number}, {words} words."}],
            **({"max_tokens": SHORT} if model == LAPTOP else {}),
        }
        leaves_after_s = luck.uniform(0.0, words * GAP_S) if luck.random() < LEAVING else None
        pause_s = 2 * GAP_S if luck.random() < SLOW else 0.0
        with anyio.move_on_after(leaves_after_s) as patience, suppress(aiohttp.ClientError, TimeoutError):
            async with session.post(
                f"{self.base_url}/chat/completions", json=body, headers={"x-request-id": str(number)}
            ) as response:
                said = "".join([text async for text in _read(response, answered, pause_s)])
                answered.sound = said == "".join(map(word, range(words)))
        if patience.cancelled_caught:
            answered.ended = "left"


async def _read(response: aiohttp.ClientResponse, answered: Answered, pause_s: float) -> AsyncIterator[str]:
    """The text as it comes."""
    async for line in response.content:
        if line.startswith(b"data: {") and (chunk := json.loads(line[6:])).get("choices"):
            choice = chunk["choices"][0]
            if text := choice["delta"].get("content"):
                answered.words += 1
                yield text
            if choice.get("finish_reason"):
                answered.ended = "whole"
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def listening(upstream: Upstream) -> AsyncIterator[int]:
    """The port on which it serves."""
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, backlog=1024)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def main(seed: int, file: Path) -> None:
    """Do what the input says."""
    asked: list[Asked] = []
    luck = random.Random(seed)
    steady, flaky = Upstream(STEADY, asked, 0.0, luck), Upstream(FLAKY, asked, FAULTY, luck)
    async with listening(steady) as first, listening(flaky) as second:
        tell(json.dumps({STEADY: first, FLAKY: second}))
        crowd = Crowd(await hear(), luck)
        while told := await hear():
            seconds, streams = told.split()
            await crowd.run(float(seconds), int(streams))
            tell("over")
    seen = {"asked": list(map(asdict, asked)), "answered": list(map(asdict, crowd.answered))}
    file.write_text(json.dumps(seen), encoding="utf-8")  # noqa: ASYNC240 - nothing else runs any more


async def hear() -> str:
    """The next line of the input; nothing at its end."""
    return (await asyncio.to_thread(sys.stdin.readline)).strip()


def tell(line: str) -> None:
    """Say it to whoever started us."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    chosen = parser.parse_args()
    asyncio.run(main(chosen.seed, chosen.file))
