"""The answer as it stands: what was written, by whom, and what its reader still has unread."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import anyio

from discostream.core.pacing import Reader
from discostream.core.seam import reasoning_is_open
from discostream.core.stops import StopFilter
from discostream.session.attempts import LiveAttempt
from discostream.session.outlet import Outlet
from discostream.types import Extra, Migration, Piece, Prefix

__all__ = ["Written"]

CHARS_PER_TOKEN = 4
"""Of the few words by which an answer is cut back."""


@dataclass
class Written:
    """What was written so far. `write` is the only way to write more.

    Attributes:
        outlet: Takes it to the client.
        reader: Whoever reads it, from the moment that it was written.
        stops: Keeps stop strings from the client, and the beginning of what could be one.
        text: All of it, up to a stop string.
        tokens: How many tokens that is, as those who wrote it counted.
        token_ids: The answer's IDs in its current source's vocabulary; `None` once they are not all known.
        whole_ids: How many of them stand for text that was written; behind those, a source may have
            reported tokens whose text it still holds back.
        textless_tokens: How many tokens those are.
        reasoned: Whether reasoning came that is no part of the text.
        beyond_text: Whether there is more than text and reasoning, such as a tool call.
        last_at: When the latest token was written; the arrival, before there was one.
    """

    outlet: Outlet
    reader: Reader
    stops: StopFilter
    last_at: float
    text: str = ""
    tokens: int = 0
    token_ids: list[int] | None = field(default_factory=list)
    whole_ids: int = 0
    textless_tokens: int = 0
    reasoned: bool = False
    beyond_text: bool = False
    migrations: list[Migration] = field(default_factory=list)
    _unsent: deque[tuple[LiveAttempt, str, int, Extra | None]] = field(default_factory=deque)

    @property
    def holds_text(self) -> bool:
        """Whether the source has reported tokens without their text."""
        return self.textless_tokens > 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self.stops.stopped

    @property
    def begun(self) -> bool:
        """Whether there is any of the answer."""
        return bool(self.text) or self.reasoned or self.beyond_text

    @property
    def seams(self) -> tuple[Migration, ...]:
        """Its handoffs, each with when the first token after it was delivered, as far as one was."""
        delivered_s = self.outlet.delivered_s
        return tuple(
            replace(move, at_s=delivered_s[move.at_token]) if move.at_token < len(delivered_s) else move
            for move in self.migrations
        )

    def unfit_to_move(self, *, opened: bool) -> str | None:
        """Why nobody else can go on from its text; `None` if it can be done.

        Args:
            opened: Whether its prompt had opened a thought.
        """
        if self.beyond_text:
            return "it holds more than text"
        if (self.reasoned and not self.text) or reasoning_is_open(self.text, opened=opened):
            return "the model is still reasoning"
        return None

    @property
    def whole_tokens(self) -> int:
        """How many tokens its text has."""
        return self.tokens - self.textless_tokens

    def ids(self) -> tuple[int, ...] | None:
        """The IDs of its text, where they are known."""
        return None if self.token_ids is None else tuple(self.token_ids[: self.whole_ids])

    def prefix(self, text: str, *, with_ids: bool) -> Prefix:
        """What another endpoint needs to go on from `text`, the answer so far or its beginning."""
        return Prefix(text, self.ids() if with_ids else None, self.tokens_of(text))

    def tokens_of(self, text: str) -> int:
        """How many tokens the answer so far, or its beginning, has; all but its last words were counted."""
        return max(self.whole_tokens - round((len(self.text) - len(text)) / CHARS_PER_TOKEN), 0)

    def forget_unwritten(self, *, keep_ids: bool) -> None:
        """Continue from the text: drop tokens without text, and all IDs if the next source has others."""
        ids = self.ids() if keep_ids else None
        self.token_ids = None if ids is None else list(ids)
        self.tokens -= self.textless_tokens
        self.textless_tokens = 0

    def write(self, attempt: LiveAttempt, piece: Piece, at: float) -> None:
        """Add one piece of an attempt, at this moment; nothing comes behind a stop string."""
        if self.stops.stopped:
            return
        self.last_at = at
        self.tokens += piece.tokens
        self.reader = self.reader.deliver(at, piece.tokens)
        self.textless_tokens += piece.tokens
        if self.token_ids is not None and (piece.text or piece.extra is None):
            self._keep_ids(self.token_ids, piece)
        if piece.extra is None and piece.text and self.stops.idle:  # as nearly every one
            tokens, self.textless_tokens = self.textless_tokens, 0
            self.text += piece.text
            self.outlet.put(piece.text, tokens, attempt.endpoint.name, at)
            return
        if piece.extra is not None:
            self.reasoned = self.reasoned or bool(piece.extra.reasoning)
            self.beyond_text = self.beyond_text or piece.extra.is_beyond_text
        if piece.text or piece.extra is not None:
            self._unsent.append((attempt, piece.text, self.textless_tokens, piece.extra))
            self.textless_tokens = 0
            self._send(self._up_to_stop(piece.text), at)

    async def close(self) -> None:
        """Let everything leave that is still held back."""
        self._send(len(self.stops.end()), anyio.current_time())
        await self.outlet.drain()

    def _up_to_stop(self, text: str) -> int:
        """How many characters may leave now that `text` was added."""
        before = len(self.text) - self.stops.held
        passed = self.stops.feed(text)
        self.text += text
        if self.stopped:
            self.text = self.text[: before + len(passed)]
        return len(passed)

    def _send(self, chars: int, at: float) -> None:
        """Let so many characters leave, each under the name of whoever wrote it, and what came with them."""
        while chars or (self._unsent and not self._unsent[0][1]):
            attempt, text, tokens, extra = self._unsent.popleft()
            if len(text) > chars:
                self._unsent.appendleft((attempt, text[chars:], 0, None))
                text = text[:chars]
            chars -= len(text)
            self.outlet.put(text, tokens, attempt.endpoint.name, at, extra)

    def _keep_ids(self, known: list[int], piece: Piece) -> None:
        if piece.token_ids is None:
            self.token_ids = None
            return
        known.extend(piece.token_ids)
        if piece.text:
            self.whole_ids = len(known)
