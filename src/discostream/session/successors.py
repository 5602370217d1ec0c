"""Who could go on with an answer, by what, and whether moving it would pay and go unnoticed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import anyio

from discostream.config import MigrationSettings
from discostream.core.handoff import handoff_s, weigh_move
from discostream.core.profile import Known
from discostream.core.seam import may_cut
from discostream.endpoints.base import Endpoint
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.session.written import Written
from discostream.types import Carrier, Piece, Prefix, Request

__all__ = ["Successor", "Successors"]


@dataclass(frozen=True, slots=True)
class Successor:
    """An endpoint that can take an answer over.

    Attributes:
        handoff_s: t_m, how long it may well take to start.
    """

    name: str
    by: Carrier
    handoff_s: float


@dataclass(frozen=True)
class Successors:
    """Finds them for one answer.

    Attributes:
        request: What is being answered.
        known: The snapshot that the plan was made from.
        endpoints: Where the answer may go, by name.
        attempts: What was tried, and how long the prompt is.
        written: The answer so far.
        settings: Whether it may move for cost, and how fast it is read.
    """

    request: Request
    known: Known
    endpoints: Mapping[str, Endpoint]
    attempts: Attempts
    written: Written
    settings: MigrationSettings

    def able(self, source: LiveAttempt, spent: Collection[str]) -> list[Successor]:
        """Whoever can go on with what `source` wrote, but for the spent; the quickest first.

        An endpoint that a hard budget keeps from starting is left out, too.
        """
        return [successor for successor in self._capable(source, spent) if self._can_start(successor)]

    def rest(self, by: Carrier) -> tuple[Request, Prefix]:
        """What to ask of an endpoint that goes on from here."""
        request = self.request
        if request.max_tokens is not None:
            request = replace(request, max_tokens=request.max_tokens - self.written.tokens)
        return request, self.written.prefix(with_ids=by is Carrier.TOKENS)

    def worthwhile(self, source: LiveAttempt, following: Piece, spent: Collection[str]) -> Successor | None:
        """The one that saves most, if the answer should move before `following` is delivered."""
        unread = self.written.reader.unread(anyio.current_time())
        best: tuple[float, Successor] | None = None
        for successor in self._capable(source, spent):
            if unread < self.settings.consumption_tokens_per_s * successor.handoff_s:
                break
            if may_cut(self.written.text, following.text, successor.by):
                saving_usd = self._saving_usd(source, successor, unread)
                saves_most = saving_usd > 0.0 and (best is None or saving_usd > best[0])
                if saves_most and self._can_start(successor):
                    best = saving_usd, successor
        return best[1] if best else None

    def _capable(self, source: LiveAttempt, spent: Collection[str]) -> list[Successor]:
        found = [Successor(name, by, self._handoff_s(name)) for name, by in self._carriers(source, spent)]
        return sorted(found, key=lambda successor: successor.handoff_s)

    def _can_start(self, successor: Successor) -> bool:
        return self.attempts.can_start(successor.name, *self.rest(successor.by))

    def _carriers(self, source: LiveAttempt, spent: Collection[str]) -> Iterator[tuple[str, Carrier]]:
        vocabulary = source.endpoint.vocabulary if self.written.token_ids is not None else None
        for name, endpoint in self.endpoints.items():
            if name == source.endpoint.name or name in spent:
                continue
            if Carrier.TOKENS in endpoint.continues and vocabulary and endpoint.vocabulary == vocabulary:
                yield name, Carrier.TOKENS
            elif Carrier.TEXT in endpoint.continues:
                yield name, Carrier.TEXT

    def _handoff_s(self, name: str) -> float:
        return float(handoff_s(self.known.of(name), self._prefill_tokens))

    def _saving_usd(self, source: LiveAttempt, successor: Successor, unread: float) -> float:
        """What the move is expected to save after its own cost; nothing where it would be noticed."""
        decision = weigh_move(
            self.known.of(source.endpoint.name),
            self.known.of(successor.name),
            prefill_tokens=self._prefill_tokens,
            remaining_tokens=self._remaining_tokens(),
            unread_tokens=unread,
            consumption_tokens_per_s=self.settings.consumption_tokens_per_s,
            handoff_s=successor.handoff_s,
        )
        return float(decision.saving_usd - decision.overhead_usd) if decision.migrate else 0.0

    @property
    def _prefill_tokens(self) -> int:
        return self.attempts.prompt_tokens + self.written.tokens

    def _remaining_tokens(self) -> float:
        return self.known.answer_tokens.remaining(self.written.tokens, self.request.max_tokens)
