"""Who could go on with an answer, by what, and whether moving it would pay and go unnoticed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import anyio

from discostream.config import MigrationSettings
from discostream.core.handoff import RISK, Decision, handoff_s, weigh_move
from discostream.core.profile import EndpointProfile, Known
from discostream.core.seam import cut_back, may_cut
from discostream.endpoints.base import Endpoint
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.session.written import Written
from discostream.types import Carrier, Piece, Prefix, Request

__all__ = ["Successor", "Successors"]

PROOF_TOKENS = 4
"""How many tokens a target that goes on by text says, on average, before it has proved that it does."""


@dataclass(frozen=True, slots=True)
class Successor:
    """An endpoint that can take an answer over.

    Attributes:
        handoff_s: t_m, how long it may well take to start.
        cached_tokens: How much of the prompt it has read already, as far as is known.
        still_reads_s: How much of t_m is the batch that it may still be in, for an attempt that was let go.
    """

    name: str
    by: Carrier
    handoff_s: float
    cached_tokens: float
    still_reads_s: float


@dataclass(frozen=True, slots=True)
class _Bar:
    """What it takes, now or later, for a move to one successor to be possible at all.

    As the answer grows, the successor has more to read, which takes longer and costs more; so a bar that was
    not reached needs no second look.

    Attributes:
        unread_tokens: Fewer do not hide its start; the batch that it may be in is left out, as it ends.
        usd_per_token: What each remaining token would save, less its risk.
        reading_usd: What the move costs at least.
    """

    unread_tokens: float
    usd_per_token: float
    reading_usd: float


@dataclass
class Successors:
    """Finds them for one answer.

    Attributes:
        request: What is being answered.
        known: The snapshot that the plan was made from.
        endpoints: Where the answer may go, by name.
        uncached: How many tokens of the prompt each would have had to read when the request arrived,
            estimated as the whole prompt was.
        attempts: What was tried, and how long the prompt is.
        written: The answer so far.
        settings: Whether it may move for cost, and how fast it is read.
    """

    request: Request
    known: Known
    endpoints: Mapping[str, Endpoint]
    uncached: Mapping[str, float]
    attempts: Attempts
    written: Written
    settings: MigrationSettings
    _weighed_for: LiveAttempt | None = None
    _circumstances: tuple[int, bool] = (0, True)
    _abilities: list[tuple[Endpoint, frozenset[Carrier], str | None]] = field(default_factory=list)
    _bars: list[_Bar] = field(default_factory=list)

    @property
    def weighed(self) -> bool:
        """Whether a move was ever weighed."""
        return self._weighed_for is not None

    def able(self, source: LiveAttempt, spent: Collection[str]) -> list[Successor]:
        """Whoever can rescue what `source` wrote, but for the spent; the quickest first.

        An endpoint that a hard budget keeps from starting is left out, too.
        """
        able = self._capable(source, spent)
        return [each for each in able if self._can_start(each, self.rescued_from(each))]

    def rescued_from(self, successor: Successor) -> str:
        """The part of the answer that a rescuer goes on from: by text, up to a place where it may be cut."""
        text = self.written.text
        return cut_back(text) if successor.by is Carrier.TEXT else text

    def rest(self, successor: Successor, text: str) -> tuple[Request, Prefix]:
        """What to ask of an endpoint that goes on from `text`, the answer so far or its beginning."""
        prefix = self.written.prefix(text, with_ids=successor.by is Carrier.TOKENS)
        request = self.request
        if request.max_tokens is not None:
            request = replace(request, max_tokens=request.max_tokens - self.written.tokens_of(text))
        return request, prefix

    def worth_weighing(self, source: LiveAttempt, at: float) -> bool:
        """Whether a move could pay and go unnoticed now, by what is known from when it was weighed last."""
        if source is not self._weighed_for or self._circumstances_changed():
            return True
        unread = self.written.reader.unread(at)
        for bar in self._bars:
            if unread >= bar.unread_tokens and bar.usd_per_token * self._remaining_tokens > bar.reading_usd:
                return True
        return False

    def weigh(
        self, source: LiveAttempt, following: Piece, spent: Collection[str], moves: int, at: float
    ) -> tuple[Successor | None, Decision | None]:
        """Who saves most, if the answer should move before `following` is delivered; and the decision.

        There is a decision where it should stay, too, unless nobody is cheaper than `source`.
        """
        unread = self.written.reader.unread(at)
        source_profile = self.known.of(source.endpoint.name)
        best: Successor | None = None
        decided: Decision | None = None
        cheaper = self._capable(source, self._dearer(source_profile).union(spent))
        self._weighed_for = source
        self._circumstances = len(self.attempts.started), self.written.token_ids is None
        self._abilities = [(each, each.continues, each.vocabulary) for each in self.endpoints.values()]
        self._bars = [bar for each in cheaper if (bar := self._bar(source_profile, each)) is not None]
        for successor in cheaper:
            profile = self.known.of(successor.name)
            decision = self._decision(source_profile, profile, successor, unread, moves)
            if decision.migrate:
                decision = replace(decision, hindrance=self._hindrance(successor, following))
            if decision.migrate and decision.hindrance is None:
                if best is None or decided is None or decision.gain_usd > decided.gain_usd:
                    best, decided = successor, decision
            elif best is None:
                decided = decision
        return best, decided

    def _circumstances_changed(self) -> bool:
        """Whether somebody else could go on now, or from something else; while not, bars hold."""
        if (len(self.attempts.started), self.written.token_ids is None) != self._circumstances:
            return True
        for endpoint, continued, vocabulary in self._abilities:
            if endpoint.continues != continued or endpoint.vocabulary != vocabulary:
                return True
        return False

    def _bar(self, source: EndpointProfile, successor: Successor) -> _Bar | None:
        """What a move has to reach; `None` where no answer is long enough for that."""
        target = self.known.of(successor.name)
        starts_s = successor.handoff_s - successor.still_reads_s
        gap_usd = source.rates.decode_usd - target.rates.decode_usd
        reading_usd = float(target.reading_usd(self._prefill_tokens, successor.cached_tokens))
        usd_per_token = gap_usd * (1.0 - RISK)
        most_tokens = self.known.answer_tokens.most_remaining(self.written.tokens, self.request.max_tokens)
        if usd_per_token * most_tokens <= reading_usd:
            return None
        return _Bar(self.settings.consumption_tokens_per_s * starts_s, usd_per_token, reading_usd)

    def _dearer(self, source: EndpointProfile) -> set[str]:
        least = source.rates.decode_usd
        return {each.name for each in self.known.endpoints if each.rates.decode_usd >= least}

    def _hindrance(self, successor: Successor, following: Piece) -> str | None:
        """Why the answer cannot move before `following` although it should."""
        if not may_cut(self.written.text, following.text, successor.by):
            return "cannot be cut there"
        if not self._can_start(successor, self.written.text):
            return "a hard budget leaves too little"
        return None

    def _decision(
        self,
        source: EndpointProfile,
        target: EndpointProfile,
        successor: Successor,
        unread: float,
        moves: int,
    ) -> Decision:
        return weigh_move(
            source,
            target,
            prefill_tokens=self._prefill_tokens,
            cached_tokens=successor.cached_tokens,
            remaining_tokens=self._remaining_tokens,
            unread_tokens=unread,
            consumption_tokens_per_s=self.settings.consumption_tokens_per_s,
            handoff_s=successor.handoff_s,
            moves=moves,
        )

    def _capable(self, source: LiveAttempt, spent: Collection[str]) -> list[Successor]:
        found = [self._successor(name, by) for name, by in self._carriers(source, spent)]
        return sorted(found, key=lambda successor: successor.handoff_s)

    def _successor(self, name: str, by: Carrier) -> Successor:
        profile, cached = self.known.of(name), self._cached_tokens(name)
        start_s = float(handoff_s(profile, self._prefill_tokens - cached))
        proof_s = PROOF_TOKENS / profile.decode_tokens_per_s if by is Carrier.TEXT else 0.0
        still_reads_s = self._still_reads_s(name)
        return Successor(name, by, still_reads_s + start_s + proof_s, cached, still_reads_s)

    def _still_reads_s(self, name: str) -> float:
        """How long an endpoint still reads for an attempt of ours that was let go."""
        ours = (
            each for each in self.attempts.started if each.endpoint.name == name and each.first_at is None
        )
        until = max((each.reads_until for each in ours if each.reads_until is not None), default=0.0)
        return max(until - anyio.current_time(), 0.0)

    def _cached_tokens(self, name: str) -> float:
        """How much of the prompt an endpoint with a cache has read: in earlier turns, or in this race."""
        if self.endpoints[name].slots is None:
            return 0.0
        uncached_part = min(self.uncached[name] / self.attempts.estimated_tokens, 1.0)
        before = self.attempts.prompt_tokens * (1.0 - uncached_part)
        ours = [attempt for attempt in self.attempts.started if attempt.endpoint.name == name]
        return max([before, *(self._read_tokens(attempt, before) for attempt in ours)])

    def _read_tokens(self, attempt: LiveAttempt, before: float) -> float:
        if attempt.first_at is not None:
            return self.attempts.prompt_tokens
        if attempt.read_tokens is not None:
            return attempt.read_tokens
        if attempt.cached_tokens is None and attempt.ahead >= (attempt.endpoint.slots or 0):
            return before  # it is still in the queue
        ran_s = (attempt.ended_at or anyio.current_time()) - attempt.served_at
        uncached = self.attempts.prompt_tokens - before
        return before + uncached * float(self.known.of(attempt.endpoint.name).read_part(ran_s, uncached))

    def _can_start(self, successor: Successor, text: str) -> bool:
        return self.attempts.can_start(successor.name, *self.rest(successor, text))

    def _carriers(self, source: LiveAttempt, spent: Collection[str]) -> Iterator[tuple[str, Carrier]]:
        vocabulary = source.endpoint.vocabulary if self.written.token_ids is not None else None
        for name, endpoint in self.endpoints.items():
            if name in spent:
                continue
            if Carrier.TOKENS in endpoint.continues and vocabulary and endpoint.vocabulary == vocabulary:
                yield name, Carrier.TOKENS
            elif Carrier.TEXT in endpoint.continues or self.request.raw_prompt is not None:
                yield name, Carrier.TEXT

    @property
    def _remaining_tokens(self) -> float:
        return self.known.answer_tokens.remaining(self.written.tokens, self.request.max_tokens)

    @property
    def _prefill_tokens(self) -> int:
        return self.attempts.prompt_tokens + self.written.tokens
