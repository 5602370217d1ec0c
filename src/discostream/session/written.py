"""The answer as it stands: what was delivered, when, by whom, and what its reader still has unread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio

from discostream.core.pacing import Reader
from discostream.session.attempts import LiveAttempt
from discostream.types import Delivered, Migration, Piece, Prefix

__all__ = ["Emit", "Written"]

Emit: TypeAlias = Callable[[Delivered], Awaitable[None]]
"""Takes one delivered piece to the client; waits while the client is slow."""


@dataclass
class Written:
    """What a client has been given so far. `write` is the only way to give more.

    Attributes:
        token_ids: The answer's IDs in its current source's vocabulary; `None` once they are not all known.
        whole_ids: How many of them stand for text that was delivered; behind those, a source may have
            reported tokens whose text it still holds back.
    """

    arrived_at: float
    emit: Emit
    reader: Reader
    text: str = ""
    tokens: int = 0
    token_ids: list[int] | None = field(default_factory=list)
    whole_ids: int = 0
    holds_text: bool = False
    delivered_s: list[float] = field(default_factory=list)
    migrations: list[Migration] = field(default_factory=list)

    @property
    def last_at(self) -> float:
        """When the latest token left; the arrival, before there was one."""
        return self.arrived_at + (self.delivered_s[-1] if self.delivered_s else 0.0)

    def prefix(self, *, with_ids: bool) -> Prefix:
        """What another endpoint needs to go on from here."""
        ids = tuple(self.token_ids[: self.whole_ids]) if with_ids and self.token_ids is not None else None
        return Prefix(self.text, ids)

    def forget_unwritten(self, *, keep_ids: bool) -> None:
        """Continue from the delivered text: drop IDs without text, or all if the next source has others."""
        self.token_ids = self.token_ids[: self.whole_ids] if keep_ids and self.token_ids is not None else None
        self.holds_text = False

    async def write(self, attempt: LiveAttempt, piece: Piece) -> None:
        """Deliver one piece of an attempt."""
        at = anyio.current_time()
        self.tokens += piece.tokens
        self._keep_ids(piece)
        self.reader = self.reader.deliver(at, piece.tokens)
        self.delivered_s.extend([at - self.arrived_at] * piece.tokens)
        if piece.text:
            self.text += piece.text
            await self.emit(Delivered(piece.text, piece.tokens, attempt.endpoint.name, at - self.arrived_at))

    def _keep_ids(self, piece: Piece) -> None:
        self.holds_text = not piece.text
        if self.token_ids is None or piece.token_ids is None:
            self.token_ids = None
            return
        self.token_ids.extend(piece.token_ids)
        if piece.text:
            self.whole_ids = len(self.token_ids)
