"""One answer on its way to a client: pieces are written as they come, for as long as the client keeps up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

from aiohttp import web
from aiohttp.http import StreamWriter

from discostream.session.answer import Answer
from discostream.types import Delivered
from discostream.wire.sse import comment

__all__ = ["Streaming"]

KEEP_ALIVE = comment("keep-alive")


class Streaming:
    """Writes the pieces of an answer, and comments where nothing comes for long.

    All that comes in one turn of the event loop is written in the next, by a callback. The task that holds
    the response is woken only at the end, and for what has to wait because the client is slow: to wake it for
    each piece would cost a quarter of all that the gateway does for one.

    Args:
        http: The client's request.
        response: Its response, prepared.
        events: Encodes pieces.
        answer: What is written.
        keep_alive_s: After so much silence comes a comment.
    """

    def __init__(
        self,
        http: web.Request,
        response: web.StreamResponse,
        events: Callable[[Iterable[Delivered]], bytes],
        answer: Answer,
        keep_alive_s: float,
    ) -> None:
        self._response = response
        self._writer = cast(StreamWriter, http.writer)
        self._events = events
        self._answer = answer
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()
        self._due: asyncio.Handle | None = None
        self._needed = asyncio.Event()
        self._error: Exception | None = None

    async def run(self) -> None:
        """Write until the answer has ended.

        Raises:
            ConnectionError: The client is gone.
        """
        self._answer.on_news = self._hear
        self._timer = self._loop.call_later(self._keep_alive_s, self._keep_alive)
        try:
            self._hear()
            while not self._answer.ended:
                await self._needed.wait()
                self._needed.clear()
                await self._write_patiently()
        finally:
            self._answer.on_news = None
            self._timer.cancel()
            if self._due is not None:
                self._due.cancel()  # or it would write behind what ends the stream

    async def _write_patiently(self) -> None:
        if self._error is not None:
            raise self._error
        if pieces := self._answer.waiting():
            await self._response.write(self._events(pieces))
            self._written_at = self._loop.time()

    def _hear(self) -> None:
        if self._due is None:
            self._due = self._loop.call_soon(self._write_what_waits)

    def _write_what_waits(self) -> None:
        self._due = None
        if self._is_slow():
            self._needed.set()
            return
        if pieces := self._answer.waiting():
            self._write(pieces)
        if self._answer.ended:
            self._needed.set()

    def _is_slow(self) -> bool:
        """Whether the client has yet to take what was written before; or is gone."""
        transport = self._writer.transport
        return transport is None or transport.get_write_buffer_size() > 0

    def _write(self, pieces: Iterable[Delivered]) -> None:
        """Write these; or a comment, if there are none."""
        try:
            data = self._events(pieces) if pieces else KEEP_ALIVE
            self._writer.write(data, drain=False).send(None)  # waits for nothing but to drain
        except StopIteration:
            pass
        except Exception as error:
            self._error = error
            self._needed.set()
        self._written_at = self._loop.time()

    def _keep_alive(self) -> None:
        silent_s = self._loop.time() - self._written_at
        if silent_s >= self._keep_alive_s:
            silent_s = 0.0
            if not self._is_slow():
                self._write(())
        self._timer = self._loop.call_later(self._keep_alive_s - silent_s, self._keep_alive)
