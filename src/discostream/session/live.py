"""Requests that are being answered, as they stand at a moment. Nothing is done for it while tokens pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from discostream.core.handoff import State
from discostream.core.qoe import Gap, longest_gaps
from discostream.ledger.reading import utc
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.session.deliver import Delivery
from discostream.session.settle import told_policy
from discostream.session.written import Written
from discostream.types import AttemptOutcome, Kind, MigrationReason, Plan, Request

__all__ = ["AttemptNow", "AttemptStands", "RequestNow", "Seam", "Stands", "Watched"]

HANDING_OFF = frozenset({State.PREPARING, State.HEDGING, State.RESCUING})
DELIVERING = frozenset({AttemptOutcome.WON, AttemptOutcome.MIGRATED_TO})


class Stands(StrEnum):
    """How far a request has come."""

    RACING = "racing"
    """No content has come yet."""
    STREAMING = "streaming"
    """The answer is being delivered."""
    HANDING_OFF = "handing off"
    """Another endpoint gets ready to go on with it."""
    SETTLING = "settling"
    """Nothing of it runs any more; it is being accounted for."""


class AttemptStands(StrEnum):
    """How far an attempt has come."""

    WAITING = "waiting"
    """It races, and has not spoken."""
    TARGET = "target"
    """It is to go on with the answer."""
    DELIVERING = "delivering"
    """It writes the answer."""
    LOST = "lost"
    """It was let go before it wrote any of it."""
    FAILED = "failed"
    """It broke, or was refused."""
    DONE = "done"
    """It wrote its part of the answer."""


@dataclass(frozen=True, slots=True)
class AttemptNow:
    """One attempt of a running request; times are from the request's arrival (seconds).

    Attributes:
        ttft_s: Until its first content; `None` before that.
        ended_s: Until it ended or was cancelled; `None` while it runs.
    """

    endpoint: str
    kind: Kind
    start_offset_s: float
    ttft_s: float | None
    ended_s: float | None
    state: AttemptStands


@dataclass(frozen=True, slots=True)
class Seam:
    """A handoff that was made; see `Migration`."""

    at_token: int
    at_s: float | None
    source: str
    target: str
    reason: MigrationReason
    gap_s: float


@dataclass(frozen=True, slots=True)
class RequestNow:
    """A running request at one moment.

    Attributes:
        policy: As it will be recorded.
        arrived_at: UTC, ISO 8601 with milliseconds.
        age_s: For how long it has been here.
        prompt_tokens: As an endpoint counted them, else an estimate.
        delivered_tokens: How many have left us.
        unread_tokens: How many of those its reader has not consumed, at the pace of the settings.
        stalls: When its reader got nothing, the longest first (`core.qoe`); the present time included.
    """

    request_id: str
    policy: str
    arrived_at: str
    age_s: float
    state: Stands
    prompt_tokens: int
    delivered_tokens: int
    unread_tokens: float
    attempts: tuple[AttemptNow, ...]
    seams: tuple[Seam, ...]
    stalls: tuple[Gap, ...]


@dataclass(frozen=True, eq=False)
class Watched:
    """The parts of a running request that tell how it stands."""

    request: Request
    plan: Plan
    attempts: Attempts
    written: Written
    delivery: Delivery

    def as_of(self, at: float) -> RequestNow:
        """How it stands at this moment."""
        delivered_s, stands = self.written.outlet.delivered_s, self._stands()
        age_s = at - self.request.arrived_at
        return RequestNow(
            request_id=self.request.request_id,
            policy=told_policy(self.plan, self.request),
            arrived_at=utc(datetime.now(UTC) - timedelta(seconds=age_s)),
            age_s=age_s,
            state=stands,
            prompt_tokens=self.attempts.prompt_tokens,
            delivered_tokens=len(delivered_s),
            unread_tokens=self.written.reader.unread(at),
            attempts=tuple(map(self._attempt, self.attempts.started)),
            seams=tuple(self._seams()),
            stalls=longest_gaps(delivered_s if stands is Stands.SETTLING else [*delivered_s, age_s]),
        )

    def _stands(self) -> Stands:
        started = self.attempts.started
        if started and all(attempt.ended_at is not None for attempt in started):
            return Stands.SETTLING
        if self.delivery.state in HANDING_OFF:
            return Stands.HANDING_OFF
        return Stands.STREAMING if any(attempt.won for attempt in started) else Stands.RACING

    def _attempt(self, attempt: LiveAttempt) -> AttemptNow:
        return AttemptNow(
            endpoint=attempt.endpoint.name,
            kind=attempt.endpoint.kind,
            start_offset_s=attempt.started_at - self.request.arrived_at,
            ttft_s=None if attempt.first_at is None else attempt.first_at - self.request.arrived_at,
            ended_s=None if attempt.ended_at is None else attempt.ended_at - self.request.arrived_at,
            state=self._attempt_stands(attempt),
        )

    def _attempt_stands(self, attempt: LiveAttempt) -> AttemptStands:
        if attempt.error is not None:
            return AttemptStands.FAILED
        if attempt.ended_at is not None:
            return AttemptStands.LOST if attempt.outcome is AttemptOutcome.LOST else AttemptStands.DONE
        target = self.delivery.target
        if target is not None and attempt is target.attempt:
            return AttemptStands.TARGET
        return AttemptStands.DELIVERING if attempt.outcome in DELIVERING else AttemptStands.WAITING

    def _seams(self) -> Iterator[Seam]:
        for move in self.written.seams:
            yield Seam(move.at_token, move.at_s, move.source, move.target, move.reason, move.gap_s)
