"""A load client: streams answers, a given number at a time, and counts what is wrong with them.

While it measures it only keeps what comes and when; everything is read afterwards, so that it takes as little
of the machine as can be. It asks for what `upstream.py` serves, and prints one JSON object.

    python benchmarks/gateway/client.py --port PORT --model NAME --streams 10 --gap-ms 5 --seconds 4
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import anyio

CHUNKS = 64
"""How many every answer has."""

PATIENCE_S = 60.0
END = b"\r\n0\r\n\r\n"
"""What ends every chunked body, and no head, even if its last header ends in 0."""
CONTENT = re.compile(r" (\d+)@(\d+)")


@dataclass
class Exchange:
    """A request and what came back, as raw as it came.

    Attributes:
        arrivals: When each read came (ns), and its bytes.
        problem: Why there is no answer, or not all of it; `None` when it came to its end.
    """

    sent_ns: int
    arrivals: list[tuple[int, bytes]] = field(default_factory=list)
    problem: str | None = None


@dataclass
class Answer:
    """What an exchange brought.

    Attributes:
        numbers: Of the chunks, in the order in which they came.
        sent_us: When each was sent, after the request.
        came_ns: When each came.
    """

    numbers: list[int] = field(default_factory=list)
    sent_us: list[int] = field(default_factory=list)
    came_ns: list[int] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """One connection, for one exchange after the other."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Remember where requests go."""
        self.transport = transport
        self.over: asyncio.Future[None] | None = None

    async def ask(self, request: bytes) -> Exchange:
        """Send a request and wait for the end of its answer."""
        self.over, self.last = asyncio.get_running_loop().create_future(), b""
        self.exchange = Exchange(time.monotonic_ns())
        self.transport.write(request)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.over
        except TimeoutError:
            self.exchange.problem = f"no end after {PATIENCE_S:g} s"
        return self.exchange

    def data_received(self, data: bytes) -> None:
        """Keep what came."""
        self.exchange.arrivals.append((time.monotonic_ns(), data))
        self.last = (self.last + data[-len(END) :])[-len(END) :]
        if self.last == END:
            self._end(None)
        elif len(self.exchange.arrivals) == 1 and not data.startswith(b"HTTP/1.1 200"):
            self._end(data.split(b"\r\n")[0].decode(errors="replace"))

    def connection_lost(self, error: Exception | None) -> None:
        """An answer that was not complete never will be."""
        self._end("the connection was closed")

    def _end(self, problem: str | None) -> None:
        if self.over is not None and not self.over.done():
            self.exchange.problem = problem
            self.over.set_result(None)


async def load(chosen: argparse.Namespace) -> tuple[list[Exchange], int, int]:
    """All exchanges, and from when until when (ns) as many as were asked for ran at a time.

    The streams start evenly over the time that one takes, as those of many readers would, not all at once.
    """
    answer_s = CHUNKS * chosen.gap_ms / 1000
    began_at = time.monotonic()
    steady = began_at + answer_s, began_at + answer_s + chosen.seconds
    numbers = iter(range(chosen.requests))
    starts = [began_at + answer_s * stream / chosen.streams for stream in range(chosen.streams)]
    streams = [stream(chosen, numbers, starts_at, steady[1]) for starts_at in starts]
    exchanges = [exchange for each in await asyncio.gather(*streams) for exchange in each]
    return exchanges, round(1e9 * steady[0]), round(1e9 * steady[1])


async def stream(
    chosen: argparse.Namespace, numbers: Iterator[int], starts_at: float, until: float
) -> list[Exchange]:
    """One answer after the other, until it is time."""
    loop, connection, exchanges = asyncio.get_running_loop(), None, []
    await asyncio.sleep(starts_at - time.monotonic())
    while time.monotonic() < until and (number := next(numbers, None)) is not None:
        if connection is None:
            _, connection = await loop.create_connection(Connection, "127.0.0.1", chosen.port)
        exchanges.append(await connection.ask(request(chosen, number)))
        if exchanges[-1].problem is not None:
            connection.transport.close()
            connection = None
    return exchanges


def request(chosen: argparse.Namespace, number: int) -> bytes:
    """The bytes that ask for an answer."""
    prompt = f"Question {number}: please stream {CHUNKS} chunks, {chosen.gap_ms} ms apart."
    body = json.dumps(
        {"model": chosen.model, "messages": [{"role": "user", "content": prompt}], "stream": True}
    )
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{chosen.port}\r\n"
        "Authorization: Bearer unused\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def read(exchange: Exchange) -> Answer:
    """The answer in an exchange; what cannot be read becomes its problem."""
    answer, done = Answer(), False
    try:
        for came_ns, payload in payloads(exchange.arrivals):
            done = done or payload == b"[DONE]"
            for number, sent_us in CONTENT.findall("" if done else content(payload)):
                answer.numbers.append(int(number))
                answer.sent_us.append(int(sent_us))
                answer.came_ns.append(came_ns)
    except (ValueError, LookupError, TypeError) as error:
        exchange.problem = f"cannot be read: {error!r}"
    if not done and exchange.problem is None:
        exchange.problem = "no [DONE]"
    return answer


def payloads(arrivals: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The payload of each event, and when it was complete."""
    raw, text = bytearray(), bytearray()
    for came_ns, data in arrivals:
        raw += data
        if raw.startswith(b"HTTP/"):
            _, end, rest = raw.partition(b"\r\n\r\n")
            if not end:
                continue
            raw = rest
        text += unchunked(raw)
        *events, text = text.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if event.startswith(b"data:"):
                yield came_ns, bytes(event.removeprefix(b"data:").strip())


def unchunked(raw: bytearray) -> bytearray:
    """What the whole HTTP chunks in `raw` hold, which are taken from it."""
    body = bytearray()
    while (end := raw.find(b"\r\n")) >= 0:
        size = int(raw[:end], 16)
        if len(raw) < end + size + 4:
            break
        body += raw[end + 2 : end + 2 + size]
        del raw[: end + size + 4]
    return body


def content(payload: bytes) -> str:
    """The text in a chunk."""
    chunk = json.loads(payload)
    if "choices" not in chunk:
        raise ValueError(f"no chunk: {payload[:200]!r}")
    return (chunk["choices"][0]["delta"].get("content") or "") if chunk["choices"] else ""


def figures(
    exchanges: list[Exchange], steady_from_ns: int, steady_until_ns: int, gap_ms: int
) -> dict[str, Any]:
    """What there is to say about all of them; nothing about latencies when the upstream does not pause."""
    answers = [(exchange, read(exchange)) for exchange in exchanges]
    whole = [(exchange, answer) for exchange, answer in answers if exchange.problem is None]
    came_ns = [at for _, answer in whole for at in answer.came_ns]
    until_ns = min(steady_until_ns, max(came_ns, default=steady_until_ns))
    steady = sum(steady_from_ns <= at < until_ns for at in came_ns)
    timed = [(exchange, answer) for exchange, answer in whole if gap_ms and answer.numbers]
    return {
        "requests": len(exchanges),
        "errors": Counter(exchange.problem for exchange in exchanges if exchange.problem is not None),
        "chunks": len(came_ns),
        "chunks_per_s": 1e9 * steady / max(until_ns - steady_from_ns, 1),
        "missing": sum(CHUNKS - len(set(answer.numbers)) for _, answer in whole),
        "doubled": sum(len(answer.numbers) - len(set(answer.numbers)) for _, answer in whole),
        "reordered": sum(reordered(answer.numbers) for _, answer in whole),
        "ttft_ms": [round((answer.came_ns[0] - exchange.sent_ns) / 1e6, 3) for exchange, answer in timed],
        "gap_ms": [gap for _, answer in timed for gap in gaps_ms(answer)],
    }


def reordered(numbers: list[int]) -> int:
    """How many chunks came behind a later one."""
    return sum(after < before for before, after in pairwise(numbers))


def gaps_ms(answer: Answer) -> Iterator[float]:
    """By how much longer each chunk came after the one before it than it was sent after that."""
    came, sent = answer.came_ns, answer.sent_us
    for at in range(1, len(came)):
        yield round((came[at] - came[at - 1]) / 1e6 - (sent[at] - sent[at - 1]) / 1e3, 3)


def main() -> None:
    """Load and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--gap-ms", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="how long all streams run at a time")
    parser.add_argument("--requests", type=int, default=5000, help="at most")
    chosen = parser.parse_args()
    gc.disable()
    uvloop = {"use_uvloop": find_spec("uvloop") is not None}
    exchanges, *steady_ns = anyio.run(load, chosen, backend_options=uvloop)
    print(json.dumps(figures(exchanges, *steady_ns, chosen.gap_ms)))


if __name__ == "__main__":
    main()
