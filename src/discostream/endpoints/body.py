"""The body of a response, read so that nobody waits for what will not come."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

import aiohttp
import anyio
from aiohttp.http_exceptions import HttpProcessingError

from discostream.wire.openai_answer import AnswerReader

__all__ = ["Body", "read_tail"]

LOOK_EVERY_S = 0.5
MOST_BYTES = 1 << 14
"""How much is read at once: all of it is held until a slow client has taken the last of its pieces."""
TAIL_S = 2.0
"""How long a finished answer waits for its token counts before it counts as over."""
REUSE_S = 0.05
"""How long it then waits for the response's end, without which the connection cannot be used again."""


class Body:
    """A response's body as it comes; a context manager, outside of which it must not be read.

    Where the framing is wrong, as when a proxy writes its error page into a stream, aiohttp (3.14, with its
    C parser) closes the connection and tells nobody: a reader would wait for ever, whatever the timeouts.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._content = response.content
        self._protocol = response.connection.protocol if response.connection is not None else None
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        self._watch()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    async def read(self) -> bytes:
        """What comes next, or a part of it; nothing at the end.

        Raises:
            aiohttp.ClientError: The connection broke or fell silent, or the framing is wrong.
        """
        self._break_off_if_given_up()
        try:
            return await self._content.read(MOST_BYTES)
        except HttpProcessingError as error:  # from aiohttp's other parser, which does tell
            raise aiohttp.ClientPayloadError("its framing is wrong") from error

    def _watch(self) -> None:
        self._break_off_if_given_up()
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._watch)

    def _break_off_if_given_up(self) -> None:
        """Tell whoever reads that the connection has failed, if that is not known or the body complete."""
        if self._protocol is None or self._protocol.exception() is None:
            return
        if self._content.exception() is None and not self._content.is_eof():
            self._content.set_exception(aiohttp.ClientPayloadError("its framing is wrong"))


async def read_tail(body: Body, answer: AnswerReader) -> None:
    """Collect the token counts behind the finish."""
    with anyio.move_on_after(TAIL_S), suppress(aiohttp.ClientError):
        while not answer.over:
            list(answer.feed(await body.read()))
    with anyio.move_on_after(REUSE_S), suppress(aiohttp.ClientError):
        await body.read()
