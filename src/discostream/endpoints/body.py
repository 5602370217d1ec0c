"""The body of a response, read so that nobody waits for what will not come, and what broke it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

import aiohttp
import anyio
from aiohttp.http_exceptions import HttpProcessingError

from discostream.wire.openai_answer import AnswerReader

__all__ = ["Body", "breach", "pointed_to", "read_tail"]

LOOK_EVERY_S = 0.5
"""How often it is looked for a connection that has failed, or is silent."""
MOST_BYTES = 1 << 14
"""How much is read at once: all of it is held until a slow client has taken the last of its pieces."""
TAIL_S = 2.0
"""How long a finished answer waits for its token counts before it counts as over."""
REUSE_S = 0.05
"""How long it then waits for the response's end, without which the connection cannot be used again."""
MOST_ADDRESS_CHARS = 200


class Body:
    """A response's body as it comes; a context manager, outside of which it must not be read.

    Where the framing is wrong, as when a proxy writes its error page into a stream, aiohttp (3.14, with its
    C parser) closes the connection and tells nobody: a reader would wait for ever, whatever the timeouts.

    Args:
        response: What it belongs to.
        silence_s: How long nothing may come while it is read. A timeout of aiohttp's own would be set anew
            for each chunk.
    """

    def __init__(self, response: aiohttp.ClientResponse, silence_s: float) -> None:
        self._content = response.content
        self._protocol = response.connection.protocol if response.connection is not None else None
        self._loop = asyncio.get_running_loop()
        self._silence_s = silence_s
        self._is_read = False
        self._come = -1
        self._spoke_at = 0.0

    def __enter__(self) -> Self:
        if self._protocol is not None:
            self._protocol.read_timeout = None
            self._protocol.start_timeout()  # or the one that runs would go off while nobody reads
        self._watch()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @property
    def is_complete(self) -> bool:
        """Whether all of it has come and was read."""
        return self._content.at_eof()

    async def read(self) -> bytes:
        """What comes next, or a part of it; nothing at the end.

        Raises:
            aiohttp.ClientError: The connection broke or fell silent, or the framing is wrong.
        """
        self._is_read = True
        try:
            return await self._content.read(MOST_BYTES)
        except HttpProcessingError as error:  # from aiohttp's other parser, which does tell
            raise aiohttp.ClientPayloadError("its framing is wrong") from error
        finally:
            self._is_read = False

    def _watch(self) -> None:
        self._break_off_if_given_up()
        self._break_off_if_silent()
        self._timer = self._loop.call_later(min(LOOK_EVERY_S, self._silence_s / 4), self._watch)

    def _break_off_if_silent(self) -> None:
        """Tell whoever waits that nothing has come for too long."""
        now, come = self._loop.time(), self._content.total_bytes
        if come != self._come or not self._is_read:
            self._come, self._spoke_at = come, now
        elif now - self._spoke_at >= self._silence_s:
            self._content.set_exception(aiohttp.SocketTimeoutError("nothing came for too long"))

    def _break_off_if_given_up(self) -> None:
        """Tell whoever reads that the connection has failed, if that is not known or the body complete."""
        if self._protocol is None or self._protocol.exception() is None:
            return
        if self._content.exception() is None and not self._content.is_eof():
            self._content.set_exception(aiohttp.ClientPayloadError("its framing is wrong"))


def breach(error: Exception) -> str:
    """What broke a connection, without the bytes that aiohttp quotes below: they can be an answer's."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed it"
    said = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    # aiohttp's parser calls everything a 400, which nobody has answered.
    said = said.removeprefix("400, message:").strip().partition("\n")[0].rstrip(":")
    return said or type(error).__name__


def pointed_to(response: aiohttp.ClientResponse) -> str | None:
    """What to do about a redirect; none is followed, because a prompt goes where the settings say."""
    where = response.headers.get("Location", "").partition("?")[0]
    if not where or not 300 <= response.status < 400:
        return None
    return f"it points to {where[:MOST_ADDRESS_CHARS]!r}; correct base_url"


async def read_tail(body: Body, answer: AnswerReader) -> None:
    """Collect the token counts behind the finish."""
    if not answer.over:
        with anyio.move_on_after(TAIL_S), suppress(aiohttp.ClientError):
            while not answer.over:
                list(answer.feed(await body.read()))
    if not body.is_complete:
        with anyio.move_on_after(REUSE_S), suppress(aiohttp.ClientError):
            await body.read()
