"""The answer as it stands: what was delivered, when, by whom, and what its reader still has unread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio

from discostream.core.pacing import Reader
from discostream.session.attempts import LiveAttempt
from discostream.types import Delivered, Migration, Piece

__all__ = ["Emit", "Written"]

Emit: TypeAlias = Callable[[Delivered], Awaitable[None]]
"""Takes one delivered piece to the client; waits while the client is slow."""


@dataclass
class Written:
    """What a client has been given so far. `write` is the only way to give more.

    Attributes:
        token_ids: The answer's IDs in its current source's vocabulary; `None` once they are not all known.
        settled_text: Whether the source holds back no text of tokens it has already reported.
    """

    arrived_at: float
    emit: Emit
    reader: Reader
    text: str = ""
    tokens: int = 0
    token_ids: list[int] | None = field(default_factory=list)
    settled_text: bool = True
    delivered_s: list[float] = field(default_factory=list)
    migrations: list[Migration] = field(default_factory=list)

    async def write(self, attempt: LiveAttempt, piece: Piece) -> None:
        """Deliver one piece of an attempt."""
        self.settled_text = bool(piece.text)
        self.tokens += piece.tokens
        if self.token_ids is not None and piece.token_ids is not None:
            self.token_ids.extend(piece.token_ids)
        else:
            self.token_ids = None
        at = anyio.current_time()
        self.reader = self.reader.deliver(at, piece.tokens)
        self.delivered_s.extend([at - self.arrived_at] * piece.tokens)
        if piece.text:
            self.text += piece.text
            await self.emit(Delivered(piece.text, piece.tokens, attempt.endpoint.name, at - self.arrived_at))
