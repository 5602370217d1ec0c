"""An endpoint that is to go on with an answer, until it has proved that it can."""

from __future__ import annotations

from dataclasses import dataclass, field

from discostream.core.seam import NoContinuation, Proof
from discostream.session.attempts import LiveAttempt
from discostream.session.successors import Successor
from discostream.types import Carrier, MigrationReason, Piece

__all__ = ["NoContinuation", "Target"]


@dataclass
class Target:
    """A target and what it has said so far.

    Attributes:
        successor: Who it is, and by what it goes on.
        reason: What it is asked for.
        why: In words.
        late_at: When it is dropped if it has not spoken.
        sent: The answer that it goes on with, in text.
        proof: Judges its first words; `None` where it goes on by token IDs, or from the start.
    """

    attempt: LiveAttempt
    successor: Successor
    reason: MigrationReason
    why: str
    late_at: float
    sent: str
    proof: Proof | None
    _said: list[Piece] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return self.attempt.endpoint.name

    @property
    def agrees(self) -> bool:
        """Whether it has said the end of the answer just as it was."""
        return self.proof is not None and self.proof.agreed

    def follow(self, piece: Piece) -> None:
        """Take note of more that the source has said meanwhile."""
        if self.proof is not None:
            self.proof.follow(piece.text)

    def hear(self, piece: Piece) -> Piece | None:
        """What can be delivered now that `piece` has come; `None` while that is not known.

        Raises:
            NoContinuation: It does not go on with the answer.
        """
        self._said.append(piece)
        if self.proof is None:
            return self._merged(piece.text) if piece.is_content else None
        if piece.extra is not None and piece.extra.reasoning:
            raise NoContinuation("began to think aloud")
        news = self.proof.feed(piece.text)
        return self._merged(news) if news else None

    def end(self) -> Piece | None:
        """What can be delivered of what is still held, when it has ended; `None` if it added nothing.

        Raises:
            NoContinuation: It did not go on with the answer.
        """
        news = self.proof.end() if self.proof is not None else ""
        return self._merged(news) if news else None

    def _merged(self, news: str) -> Piece:
        """Its first words as one piece; only tokens of text that is news count."""
        skipped = max(sum(len(piece.text) for piece in self._said) - len(news), 0)
        counted: list[Piece] = []
        for piece in self._said:
            if len(piece.text) > skipped or (not skipped and not piece.text):
                counted.append(piece)
            skipped = max(skipped - len(piece.text), 0)
        ids = [piece.token_ids for piece in counted]
        known = self.successor.by is Carrier.TOKENS and None not in ids
        merged = tuple(token for group in ids if group for token in group) if known else None
        return Piece(news, sum(piece.tokens for piece in counted), merged, self._said[-1].extra)
