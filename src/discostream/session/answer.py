"""A running answer: what its reader holds, and the queue between the two."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup

from discostream.errors import AnswerInterrupted, DiscoError
from discostream.session.house import House
from discostream.session.run import run
from discostream.types import Delivered, Outcome, Request

__all__ = ["Answer", "begin"]

log = logging.getLogger(__name__)

CHARS_AHEAD = 1 << 14
"""Characters that may wait for a slow reader before the answer waits too."""

PIECE_CHARS = 256
"""What a piece takes of that for itself, however short it is."""

DROPPED_AFTER_S = 1.0
"""How soon an answer that waits for its reader looks whether there still is one."""


def begin(request: Request, house: House, tasks: TaskGroup) -> Answer:
    """Start answering, in a task that ends when nobody holds the answer any more."""
    answer = Answer(request)
    tasks.start_soon(answer._progress.follow, request, house)
    return answer


class Answer:
    """A running answer: an async iterator of `Delivered` pieces.

    Iteration ends when the answer is whole and settled. `async with` or `aclose` abandons it early, which
    cancels every attempt; an answer that is simply dropped is abandoned at its next piece.

    Attributes:
        request: What is being answered.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self._progress = _Progress(weakref.ref(self))
        self._unread: deque[Delivered] = deque()
        self._abandoned = False

    @property
    def on_news(self) -> Callable[[], None] | None:
        """Is called whenever a piece has come, or the end; must neither wait nor raise."""
        return self._progress.on_news

    @on_news.setter
    def on_news(self, told: Callable[[], None] | None) -> None:
        self._progress.on_news = told

    @property
    def outcome(self) -> Outcome | None:
        """Everything settled about it; `None` until then."""
        return self._progress.outcome

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Delivered:
        """The next piece.

        Raises:
            AllEndpointsFailed: Nothing could answer, or go on answering.
            AnswerInterrupted: The connection was closed first.
        """
        if not self._unread:
            self._unread.extend(await self.pieces())
        if not self._unread:
            raise StopAsyncIteration
        return self._unread.popleft()

    async def pieces(self) -> list[Delivered]:
        """All pieces that have come and were not read yet; waits until there is one. None at the end.

        Raises:
            AllEndpointsFailed: Nothing could answer, or go on answering.
            AnswerInterrupted: The connection was closed first.
        """
        if self._unread:
            unread, self._unread = list(self._unread), deque()
            return unread
        if not self._abandoned:
            pieces = await self._progress.read()
            if pieces:
                return pieces
            if not self._abandoned:
                self.whole()
        return []

    @property
    def ended(self) -> bool:
        """Whether nothing more will come, and all pieces were read."""
        return self._progress.is_read and not self._unread

    def waiting(self) -> list[Delivered]:
        """The pieces that have come and were not read yet. Waits for none."""
        if not self._unread:
            return self._progress.waiting()
        unread, self._unread = list(self._unread), deque()
        return unread + self._progress.waiting()

    def whole(self) -> Outcome:
        """Everything settled about an answer that has come to its own end.

        Raises:
            AllEndpointsFailed: Nothing could answer, or go on answering.
            AnswerInterrupted: The connection was closed first.
        """
        if self._progress.failure is not None:
            raise self._progress.failure
        if self.outcome is None or self.outcome.finish_reason is None:
            raise AnswerInterrupted("the connection was closed before the answer was whole")
        return self.outcome

    async def aclose(self) -> None:
        """Abandon the answer and wait until it is settled. Safe to call twice, and after its end."""
        self._abandoned = True
        self._unread.clear()
        if self._progress.over:
            return
        self._progress.left.cancel()
        with anyio.CancelScope(shield=True):
            await self._progress.end()

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Progress:
    """What an answer and the task behind it share; it is the `Client` that the session knows."""

    def __init__(self, reader: weakref.ref[Answer]) -> None:
        self.left = anyio.CancelScope()
        self.over = False
        self.outcome: Outcome | None = None
        self.failure: Exception | None = None
        self.on_news: Callable[[], None] | None = None
        self._pieces: list[Delivered] = []
        self._waiting = 0
        self._came: anyio.Event | None = None
        self._went: anyio.Event | None = None
        self._ended = anyio.Event()
        self._reader = reader

    async def follow(self, request: Request, house: House) -> None:
        try:
            await run(request, house, self)
        except DiscoError as error:
            self.failure = error
        except Exception as error:
            # One request's unexpected end must not take the others down with it.
            log.exception("request %s could not be served", request.request_id)
            self.failure = error
        finally:
            house.live.pop(self, None)
            self.over = True
            self._ended.set()
            self._tell()

    def take(self, piece: Delivered) -> None:
        self._pieces.append(piece)
        self._waiting += PIECE_CHARS + len(piece.text)
        if piece.extra is not None:
            self._waiting += len(msgspec.json.encode(piece.extra))
        self._tell()

    def _tell(self) -> None:
        if self.on_news is not None:
            self.on_news()
        if self._came is not None:
            self._came.set()
            self._came = None

    async def read(self) -> list[Delivered]:
        """All that has come; waits for something. Nothing once everything was read, and is over."""
        while not self._pieces and not self.over:
            if self._came is None:  # else another reader waits for it, too
                self._came = anyio.Event()
            await self._came.wait()
        return self.waiting()

    def waiting(self) -> list[Delivered]:
        """All that has come, if anything has."""
        pieces, self._pieces, self._waiting = self._pieces, [], 0
        if self._went is not None:
            self._went.set()
        return pieces

    @property
    def is_read(self) -> bool:
        return self.over and not self._pieces

    async def end(self) -> None:
        """Wait until it is over."""
        await self._ended.wait()

    @property
    def is_full(self) -> bool:
        return self._waiting > CHARS_AHEAD or self._reader() is None

    async def room(self) -> None:
        while self._waiting > CHARS_AHEAD and self._reader() is not None:
            self._went = anyio.Event()
            with anyio.move_on_after(DROPPED_AFTER_S):
                await self._went.wait()
        if self._reader() is None:
            self.left.cancel()
        await anyio.lowlevel.checkpoint()

    def settled(self, outcome: Outcome) -> None:
        self.outcome = outcome
