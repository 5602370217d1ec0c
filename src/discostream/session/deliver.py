"""Delivery: pieces go to the client; the rest of the answer moves when that pays, or must."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import anyio

from discostream.config import MigrationSettings
from discostream.core.handoff import FINAL, Decision, Signal, State, advance, should_migrate
from discostream.core.profile import Known
from discostream.core.seam import EchoFilter, ends_sentence, may_cut
from discostream.endpoints.base import Endpoint
from discostream.errors import AllEndpointsFailed, EndpointError
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.session.race import Lead
from discostream.session.written import Written
from discostream.types import (
    AttemptOutcome,
    Carrier,
    Event,
    Finish,
    FinishReason,
    Migration,
    MigrationReason,
    Piece,
    Prefix,
    Request,
)

__all__ = ["Delivery"]

START_TIME_QUANTILE = 0.9
"""t_m is this quantile of the target's start time, so that nine handoffs in ten stay hidden."""

CAUTION = 2.0
"""By how much it is stretched: a target on the source's own machine starts more slowly than it did alone."""


@dataclass
class Target:
    """An endpoint that is to go on with the answer, until it has proved that it can."""

    attempt: LiveAttempt
    by: Carrier
    reason: MigrationReason
    late_at: float
    echo: EchoFilter


class Delivery:
    """Delivers one answer from the race's winner on, wherever it goes.

    Args:
        request: What is being answered.
        known: The snapshot that the plan was made from.
        endpoints: Where the answer may go, by name.
        attempts: The running attempts.
        written: The answer so far.
        settings: Whether it may move for cost, and how fast it is read.
    """

    def __init__(
        self,
        request: Request,
        known: Known,
        endpoints: Mapping[str, Endpoint],
        attempts: Attempts,
        written: Written,
        settings: MigrationSettings,
    ) -> None:
        self.request = request
        self.known = known
        self.endpoints = endpoints
        self.attempts = attempts
        self.written = written
        self.settings = settings
        self.state = State.STREAMING
        self.source: LiveAttempt
        self.target: Target | None = None
        self.held: list[Piece] = []
        self.failures: list[EndpointError] = []
        self.spent: set[str] = set()
        self.may_migrate = settings.enabled and request.pinned is None
        self.finish: FinishReason | None = None

    async def run(self, lead: Lead) -> FinishReason:
        """Deliver until the answer ends; says why it did.

        Raises:
            AllEndpointsFailed: The stream broke, and nothing could go on with it.
        """
        self.source = lead.winner
        self.spent.update(attempt.endpoint.name for attempt in self.attempts.started if attempt.error)
        for event in lead.events:
            await self._from_source(event)
        while self.state not in FINAL:
            heard = await self.attempts.hear(until=self.target.late_at if self.target else math.inf)
            if heard is None:
                await self._drop_target()
            elif heard[0] is self.source:
                await self._from_source(heard[1])
            elif self.target and heard[0] is self.target.attempt:
                await self._from_target(self.target, heard[1])
        if self.finish is None:
            raise AllEndpointsFailed(self.failures)
        return self.finish

    async def _from_source(self, report: Event | EndpointError) -> None:
        match report:
            case Piece() if self.state is State.PREPARING:
                self.held.append(report)
            case Piece() if self._moves_before(report):
                self.held = [report]
            case Piece():
                await self.written.write(self.source, report)
            case Finish(reason):
                self._signal(Signal.SOURCE_FINISHED)
                self._cancel_target()
                await self._release_held()
                self.finish = reason
            case EndpointError():
                self._signal(Signal.SOURCE_BROKE)
                self._note_failure(self.source, report)
                await self._rescue()

    async def _from_target(self, target: Target, report: Event | EndpointError) -> None:
        match report:
            case Piece(text):
                if fresh := target.echo.feed(text):
                    self._signal(Signal.TARGET_READY)
                    await self._hand_off(target, report if fresh == text else Piece(fresh, report.tokens))
            case Finish(reason) if self.state is State.RESCUING and ends_sentence(self.written.text):
                self._signal(Signal.TARGET_FINISHED)
                self.finish = reason
            case Finish():
                await self._drop_target()
            case EndpointError():
                self._note_failure(target.attempt, report)
                await self._drop_target()

    def _moves_before(self, following: Piece) -> bool:
        """Start preparing a target if the rest, from `following` on, should be generated elsewhere."""
        if not (self.may_migrate and self.written.tokens and self.written.settled_text):
            return False
        worthy = [
            (decision.saving_usd, name, by)
            for name, by in self._successors()
            if may_cut(self.written.text, following.text, by) and (decision := self._weigh(name)).migrate
        ]
        if not worthy:
            return False
        _, name, by = max(worthy)
        self.may_migrate = False
        self._signal(Signal.MIGRATE)
        self._start_target(name, by, MigrationReason.COST, late_at=self.written.reader.done_at or 0.0)
        return True

    def _weigh(self, name: str) -> Decision:
        source, target = self.known.of(self.source.endpoint.name), self.known.of(name)
        prefill_tokens = (self.source.prompt_tokens or 0) + self.written.tokens
        remaining = self.known.answer_tokens.distribution.mean_residual(self.written.tokens)
        if self.request.max_tokens is not None:
            remaining = min(remaining, self.request.max_tokens - self.written.tokens)
        return should_migrate(
            source=source.rates,
            target=target.rates,
            prefill_tokens=prefill_tokens,
            remaining_tokens=remaining,
            unread_tokens=self.written.reader.unread(anyio.current_time()),
            handoff_s=CAUTION * target.ttft.quantile(prefill_tokens, START_TIME_QUANTILE),
            overlap_s=target.ttft.quantile(prefill_tokens, 0.5),
            source_tokens_per_s=source.decode_tokens_per_s,
            consumption_tokens_per_s=self.settings.consumption_tokens_per_s,
        )

    def _successors(self) -> Iterator[tuple[str, Carrier]]:
        """Who could go on with the answer, and by what."""
        vocabulary = self.source.endpoint.vocabulary if self.written.token_ids is not None else None
        for name, endpoint in self.endpoints.items():
            if name == self.source.endpoint.name or name in self.spent:
                continue
            if Carrier.TOKENS in endpoint.continues and vocabulary and endpoint.vocabulary == vocabulary:
                yield name, Carrier.TOKENS
            elif Carrier.TEXT in endpoint.continues:
                yield name, Carrier.TEXT

    def _start_target(self, name: str, by: Carrier, reason: MigrationReason, late_at: float) -> None:
        written = self.written
        token_ids = tuple(written.token_ids) if by is Carrier.TOKENS and written.token_ids else None
        request = self.request
        if request.max_tokens is not None:
            request = replace(request, max_tokens=max(1, request.max_tokens - written.tokens))
        attempt = self.attempts.start(name, request, Prefix(written.text, token_ids))
        echo = EchoFilter("" if by is Carrier.TOKENS else written.text)
        self.target = Target(attempt, by, reason, late_at, echo)

    async def _hand_off(self, target: Target, piece: Piece) -> None:
        written = self.written
        if target.reason is MigrationReason.COST:
            self.source.outcome = AttemptOutcome.MIGRATED_FROM
        self.source.scope.cancel()
        if target.by is Carrier.TEXT:
            written.token_ids = None
        written.migrations.append(
            Migration(
                source=self.source.endpoint.name,
                target=target.attempt.endpoint.name,
                at_token=written.tokens,
                at_char=len(written.text),
                reason=target.reason,
                gap_s=anyio.current_time() - written.arrived_at - written.delivered_s[-1],
                by=target.by,
            )
        )
        target.attempt.outcome = AttemptOutcome.MIGRATED_TO
        self.source, self.target, self.held = target.attempt, None, []
        await written.write(self.source, piece)

    async def _rescue(self) -> None:
        """Let another endpoint go on; one that prepares already needs only the time it takes."""
        if self.target:
            self.target.reason, self.target.late_at = MigrationReason.RESCUE, math.inf
            return
        await self._release_held()
        successors = [] if self.request.pinned else list(self._successors())
        if not successors:
            self._signal(Signal.NO_TARGET)
            return
        name, by = min(successors, key=lambda successor: self._weigh(successor[0]).needed_tokens)
        self._start_target(name, by, MigrationReason.RESCUE, late_at=math.inf)

    async def _drop_target(self) -> None:
        self._signal(Signal.TARGET_DROPPED)
        if self.target:
            self.spent.add(self.target.attempt.endpoint.name)
        self._cancel_target()
        if self.state is State.RESCUING:
            await self._rescue()
        else:
            await self._release_held()

    async def _release_held(self) -> None:
        held, self.held = self.held, []
        for piece in held:
            await self.written.write(self.source, piece)

    def _cancel_target(self) -> None:
        if self.target:
            self.target.attempt.scope.cancel()
            self.target = None

    def _note_failure(self, attempt: LiveAttempt, error: EndpointError) -> None:
        attempt.outcome = AttemptOutcome.FAILED
        self.spent.add(attempt.endpoint.name)
        self.failures.append(error)

    def _signal(self, signal: Signal) -> None:
        self.state = advance(self.state, signal)
