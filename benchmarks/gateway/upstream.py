"""A fast mock upstream: OpenAI-compatible streams, whose every chunk says what it is.

The prompt orders the answer: `64 chunks, 5 ms apart`; the first comes at once. A chunk's text is ` i@us`, its
number and how many microseconds after the request it was sent, so that a reader can tell which are missing,
doubled or out of order, and what lies between has added. Every GET says what was served so far.

    python benchmarks/gateway/upstream.py --port PORT [--drop NUMBER]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec

import anyio

ORDER = re.compile(rb"(\d+) chunks, (\d+) ms apart")
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
WANTS_USAGE = re.compile(rb'"include_usage": *true')
EARLY_S = 0.0005
"""What is due so soon is sent now: uvloop's timers know whole milliseconds only."""

EVENT = (
    'data: {{"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1,"model":"mock",'
    '"choices":[{{"index":0,"delta":{},"logprobs":null,"finish_reason":{}}}]}}\n\n'
)
USAGE = (
    'data: {"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1,"model":"mock","choices":[],'
    '"usage":{"prompt_tokens":12,"completion_tokens":128,"total_tokens":140}}\n\n'
)


def framed(event: str) -> bytes:
    """An event as a chunk of HTTP's chunked encoding."""
    return f"{len(event):x}\r\n{event}\r\n".encode()


OPENING = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + framed(EVENT.format('{"role":"assistant","content":""}', "null"))
)
FINISH, END = framed(EVENT.format("{}", '"stop"')), framed("data: [DONE]\n\n") + b"0\r\n\r\n"


@dataclass
class Served:
    """What was asked for and sent so far.

    Attributes:
        left: How many answers their reader did not wait for.
    """

    requests: int = 0
    chunks: int = 0
    left: int = 0


class Connection(asyncio.Protocol):
    """One connection, which serves one request after the other.

    Args:
        served: Kept up to date.
        drop: The number of a chunk that is left out of every answer.
    """

    def __init__(self, served: Served, drop: int | None) -> None:
        self.served = served
        self.drop = drop
        self.received = b""
        self.timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Remember where answers go."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer once a request is complete."""
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            self.received = b""
            if head.startswith(b"GET"):
                self.tell()
            else:
                self.begin(body)

    def connection_lost(self, error: Exception | None) -> None:
        """Stop at once when the reader leaves."""
        if self.timer is not None:
            self.timer.cancel()
            self.served.left += 1

    def tell(self) -> None:
        """Say what was served."""
        body = json.dumps(asdict(self.served))
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write((head + body).encode())

    def begin(self, body: bytes) -> None:
        """Start the answer that the prompt orders."""
        order = ORDER.search(body)
        assert order is not None
        self.served.requests += 1
        self.chunks, self.gap_s = int(order[1]), int(order[2]) / 1000
        self.ending = FINISH + (framed(USAGE) if WANTS_USAGE.search(body) else b"") + END
        self.began_at, self.number = time.monotonic(), 0
        self.transport.write(OPENING)
        self.go_on()

    def go_on(self) -> None:
        """Send what is due, all of it in one write, and come back for the rest."""
        spent_s, first = time.monotonic() - self.began_at, self.number
        while self.number < self.chunks and self.number * self.gap_s <= spent_s + EARLY_S:
            self.number += 1
        events = [self.event(number, spent_s) for number in range(first, self.number) if number != self.drop]
        self.served.chunks += len(events)
        if self.number == self.chunks:
            self.timer = None
            self.transport.write(b"".join(events) + self.ending)
        else:
            self.transport.write(b"".join(events))
            wait_s = self.number * self.gap_s - spent_s
            self.timer = asyncio.get_running_loop().call_later(wait_s, self.go_on)

    def event(self, number: int, spent_s: float) -> bytes:
        """One chunk of content."""
        return framed(EVENT.format(f'{{"content":" {number}@{spent_s * 1e6:.0f}"}}', "null"))


async def serve(port: int, drop: int | None) -> None:
    """Serve until killed."""
    connection = partial(Connection, Served(), drop)
    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    """Serve on the port that was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--drop", type=int, help="leave this chunk out of every answer, to see who notices")
    chosen = parser.parse_args()
    uvloop = {"use_uvloop": find_spec("uvloop") is not None}
    anyio.run(serve, chosen.port, chosen.drop, backend_options=uvloop)


if __name__ == "__main__":
    main()
