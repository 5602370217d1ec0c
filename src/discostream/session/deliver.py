"""Delivery: pieces go to the client; the rest of the answer moves when that pays, or must."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import anyio

from discostream.core.handoff import FINAL, Signal, State, advance
from discostream.core.seam import EchoFilter, ends_sentence
from discostream.errors import EndpointError
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.session.race import Lead
from discostream.session.successors import Successor, Successors
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
    Request,
)

__all__ = ["Delivery"]


@dataclass
class Target:
    """An endpoint that is to go on with the answer, until it has proved that it can.

    Attributes:
        late_at: When it is dropped if it has not spoken.
        unproven: What it has said that might still be an echo of the answer so far.
    """

    attempt: LiveAttempt
    by: Carrier
    reason: MigrationReason
    late_at: float
    echo: EchoFilter
    unproven: list[Piece] = field(default_factory=list)

    def hear(self, piece: Piece, news: str) -> Piece | None:
        """What can be delivered now that `piece` has come, of which `news` is no echo."""
        self.unproven.append(piece)
        if not news:
            return None
        said, self.unproven = self.unproven, []
        ids = [piece.token_ids for piece in said]
        known = self.by is Carrier.TOKENS and None not in ids
        merged = tuple(token for group in ids if group for token in group) if known else None
        return Piece(news, sum(piece.tokens for piece in said), merged)


class Delivery:
    """Delivers one answer from the race's winner on, wherever it goes.

    Args:
        request: What is being answered.
        attempts: The running attempts.
        written: The answer so far.
        successors: Who could go on with it.
        may_migrate: Whether it may move for cost.
    """

    def __init__(
        self,
        request: Request,
        attempts: Attempts,
        written: Written,
        successors: Successors,
        *,
        may_migrate: bool,
    ) -> None:
        self.request = request
        self.attempts = attempts
        self.written = written
        self.successors = successors
        self.may_migrate = may_migrate
        self.state = State.STREAMING
        self.source: LiveAttempt
        self.target: Target | None = None
        self.held: list[Piece] = []
        self.failures: list[EndpointError] = []
        self.failed: set[str] = set()
        self.late: set[str] = set()
        self.finish: FinishReason | None = None

    async def run(self, lead: Lead) -> FinishReason:
        """Deliver until the answer ends; says why it did.

        Raises:
            AllEndpointsFailed: The stream broke, and nothing could go on with it.
        """
        self.source = lead.winner
        for failure in lead.failures:
            self._note_failure(failure)
        for event in lead.events:
            await self._from_source(event)
        while self.state not in FINAL:
            heard = await self.attempts.hear(until=self.target.late_at if self.target else math.inf)
            if heard is None:
                await self._drop_target(late=True)
            elif heard[0] is self.source:
                await self._from_source(heard[1])
            elif self.target and heard[0] is self.target.attempt:
                await self._from_target(self.target, heard[1])
        if self.finish is None:
            raise self.attempts.exhausted(self.failures)
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
                await self._finish_at_source(reason)
            case EndpointError() if self._is_full():
                await self._finish_at_source(FinishReason.LENGTH)
            case EndpointError():
                self._signal(Signal.SOURCE_BROKE)
                self._note_failure(report)
                if self.target is None:
                    await self._rescue()
                else:
                    self.target.reason = MigrationReason.RESCUE

    async def _from_target(self, target: Target, report: Event | EndpointError) -> None:
        match report:
            case Piece(text):
                if piece := target.hear(report, target.echo.feed(text)):
                    await self._hand_off(target, piece)
            case Finish(reason):
                await self._end_of_target(target, reason)
            case EndpointError():
                self._note_failure(report)
                await self._drop_target()

    def _moves_before(self, following: Piece) -> bool:
        """Start preparing a target if the rest, from `following` on, should be generated elsewhere."""
        if not self.may_migrate or not self.written.tokens or self.written.holds_text:
            return False
        successor = self.successors.worthwhile(self.source, following, self.failed)
        if successor is None:
            return False
        self.may_migrate = False
        self._signal(Signal.MIGRATE)
        dry_at = self.written.reader.done_at
        assert dry_at is not None
        self._start_target(successor, MigrationReason.COST, late_at=dry_at)
        return True

    def _start_target(self, successor: Successor, reason: MigrationReason, late_at: float) -> None:
        attempt = self.attempts.start(successor.name, *self.successors.rest(successor.by))
        echo = EchoFilter("" if successor.by is Carrier.TOKENS else self.written.text)
        self.target = Target(attempt, successor.by, reason, late_at, echo)

    async def _hand_off(self, target: Target, piece: Piece) -> None:
        written = self.written
        self._signal(Signal.TARGET_READY)
        if target.reason is MigrationReason.COST:
            self.source.outcome = AttemptOutcome.MIGRATED_FROM
        self.source.cancel()
        written.forget_unwritten(keep_ids=target.by is Carrier.TOKENS)
        written.migrations.append(
            Migration(
                source=self.source.endpoint.name,
                target=target.attempt.endpoint.name,
                at_token=written.tokens,
                at_char=len(written.text),
                reason=target.reason,
                gap_s=anyio.current_time() - written.last_at,
                by=target.by,
            )
        )
        target.attempt.outcome = AttemptOutcome.MIGRATED_TO
        self.source, self.target, self.held = target.attempt, None, []
        await written.write(self.source, piece)

    async def _finish_at_source(self, reason: FinishReason) -> None:
        self._signal(Signal.SOURCE_FINISHED)
        self._cancel_target()
        await self._release_held()
        self.finish = reason

    async def _end_of_target(self, target: Target, reason: FinishReason) -> None:
        """A target that ends before it has proved itself: held back too long, believed, or dropped."""
        if news := target.echo.end():
            piece = Piece(news, sum(piece.tokens for piece in target.unproven))
            await self._hand_off(target, piece)
            await self._from_source(Finish(reason))
        elif self.state is State.RESCUING and ends_sentence(self.written.text):
            self._signal(Signal.TARGET_FINISHED)
            target.attempt.outcome = AttemptOutcome.MIGRATED_TO
            self.finish = reason
        else:
            self.failed.add(target.attempt.endpoint.name)
            await self._drop_target()

    async def _rescue(self) -> None:
        """Let another endpoint go on. The last one that can is never cut, even if it was late before."""
        await self._release_held()
        able = [] if self.request.pinned else self.successors.able(self.source, self.failed)
        prompt = [successor for successor in able if successor.name not in self.late]
        if not able:
            self._signal(Signal.NO_TARGET)
            return
        successor = (prompt or able)[0]
        late_at = anyio.current_time() + successor.handoff_s if len(prompt) > 1 else math.inf
        self._start_target(successor, MigrationReason.RESCUE, late_at)

    async def _drop_target(self, *, late: bool = False) -> None:
        self._signal(Signal.TARGET_DROPPED)
        if self.target and late:
            self.late.add(self.target.attempt.endpoint.name)
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
            self.target.attempt.cancel()
            self.target = None

    def _is_full(self) -> bool:
        """Whether the source broke only after it had written all it was allowed to."""
        most = self.request.max_tokens
        return most is not None and self.written.tokens + sum(piece.tokens for piece in self.held) >= most

    def _note_failure(self, error: EndpointError) -> None:
        self.failed.add(error.endpoint)
        self.failures.append(error)

    def _signal(self, signal: Signal) -> None:
        self.state = advance(self.state, signal)
