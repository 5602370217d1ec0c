"""The way out to the client: when what was written leaves us."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from discostream.core.pacing import release_in_s, words_of
from discostream.types import Delivered, Extra

__all__ = ["Outlet", "PacedOutlet", "Sink"]

WORDS_WAITING, CHARS_WAITING = 1024, 1 << 17
"""Beyond so many, whoever brings more waits too, and so does its upstream."""


class Sink(Protocol):
    """Where pieces go in the end."""

    def take(self, piece: Delivered) -> None:
        """Receive a piece."""

    @property
    def is_full(self) -> bool:
        """Whether what comes next should wait, because the client is slow."""

    async def room(self) -> None:
        """Wait until it need not."""


class Outlet:
    """Passes text on at once. An async context manager.

    Args:
        arrived_at: When the request arrived.
        sink: The client.

    Attributes:
        delivered_s: When each delivered token left us, seconds after arrival.
    """

    def __init__(self, arrived_at: float, sink: Sink) -> None:
        self.delivered_s: list[float] = []
        self._arrived_at = arrived_at
        self._sink = sink

    async def __aenter__(self) -> Outlet:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def put(self, text: str, tokens: int, endpoint: str, at: float, extra: Extra | None = None) -> None:
        """Pass something on that came at this moment: text, what came beside it, or both."""
        at_s = at - self._arrived_at
        self.delivered_s.extend([at_s] * tokens)
        self._sink.take(Delivered(text, tokens, endpoint, at_s, extra))

    @property
    def is_full(self) -> bool:
        """Whether whoever brings more should wait."""
        return self._sink.is_full

    async def room(self) -> None:
        """Wait until nobody has to."""
        await self._sink.room()

    async def drain(self) -> None:
        """Wait until everything has left."""


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    tokens: int
    endpoint: str
    due_at: float
    extra: Extra | None = None


class PacedOutlet(Outlet):
    """Passes text on word by word, evenly, and never later than a bound.

    Args:
        arrived_at: When the request arrived.
        sink: The client.
        tokens_per_s: The reader's pace, which it keeps to while no word would become late.
        max_lag_s: How long a word may be kept back.
    """

    def __init__(self, arrived_at: float, sink: Sink, tokens_per_s: float, max_lag_s: float) -> None:
        super().__init__(arrived_at, sink)
        self._tokens_per_s = tokens_per_s
        self._max_lag_s = max_lag_s
        self._waiting: deque[_Word] = deque()
        self._waiting_chars = 0
        self._released_at: float | None = None
        self._changed = anyio.Event()
        self._error: Exception | None = None
        self._tasks: TaskGroup

    async def __aenter__(self) -> Outlet:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._release_words)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    def put(self, text: str, tokens: int, endpoint: str, at: float, extra: Extra | None = None) -> None:
        """Keep something until its time has come; what is more than text stays in one."""
        due_at = at + self._max_lag_s
        words = words_of(text, tokens) if extra is None else ((text, tokens),)
        self._waiting.extend(_Word(word, share, endpoint, due_at, extra) for word, share in words)
        self._waiting_chars += len(text)
        self._tell()

    @property
    def is_full(self) -> bool:
        """Whether whoever brings more should wait, or be told what went wrong."""
        return self._holds_too_much() or self._error is not None

    async def room(self) -> None:
        """Wait until nobody has to."""
        await self._while(self._holds_too_much)

    async def drain(self) -> None:
        """Wait until everything has left."""
        await self._while(lambda: bool(self._waiting))

    def _holds_too_much(self) -> bool:
        return len(self._waiting) > WORDS_WAITING or self._waiting_chars > CHARS_WAITING

    async def _while(self, waits: Callable[[], bool]) -> None:
        """Wait while that is so; whoever waits is told what went wrong with words on their way out."""
        while waits() and self._error is None:
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    async def _release_words(self) -> None:
        try:
            await self._release()
        except Exception as error:
            self._error = error
            self._tell()

    async def _release(self) -> None:
        while True:
            changed = self._changed
            if not self._waiting:
                await changed.wait()
            elif self._next_at() > anyio.current_time():
                with anyio.CancelScope(deadline=self._next_at()):
                    await changed.wait()
            else:
                word = self._waiting[0]
                self._released_at = anyio.current_time()
                super().put(word.text, word.tokens, word.endpoint, self._released_at, word.extra)
                self._waiting.popleft()
                self._waiting_chars -= len(word.text)
                self._tell()
                if self._sink.is_full:
                    await self._sink.room()

    def _next_at(self) -> float:
        """When the first of the waiting words is to leave; the very first does not wait."""
        if self._released_at is None:
            return -math.inf
        due_in_s = [word.due_at - self._released_at for word in self._waiting]
        return self._released_at + release_in_s(due_in_s, self._waiting[0].tokens / self._tokens_per_s)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
