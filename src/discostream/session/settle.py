"""Settlement: what became of every attempt and what it cost, losers included."""

from __future__ import annotations

from collections.abc import Iterator

from discostream.core.profile import Known
from discostream.errors import Phase
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.session.written import Written
from discostream.types import Attempt, AttemptOutcome, FinishReason, Outcome, Plan, Request

__all__ = ["settle"]

NOTHING_ACCEPTED = (Phase.CONNECT, Phase.REFUSED)


def settle(
    request: Request,
    plan: Plan,
    known: Known,
    attempts: Attempts,
    written: Written,
    *,
    finish: FinishReason | None,
    error: str | None,
) -> Outcome:
    """The account of one request, once nothing of it runs any more.

    An attempt's prompt counts in full from its start, unless it was refused: what a server or a device had
    read of it when it was cancelled cannot be known from outside.
    """
    winner = next((attempt for attempt in attempts.started if attempt.won), None)
    return Outcome(
        request_id=request.request_id,
        policy=plan.policy,
        winner=winner.endpoint.name if winner else None,
        ttft_s=written.delivered_s[0] if written.delivered_s else None,
        finish_reason=finish,
        prompt_chars=request.prompt_chars,
        prompt_tokens=(winner.prompt_tokens if winner else None) or attempts.prompt_tokens,
        completion_tokens=_delivered_tokens(winner, written),
        attempts=(
            *(_settled(attempt, attempts, known) for attempt in attempts.started),
            *_never_started(plan, known, attempts),
        ),
        migrations=tuple(written.migrations),
        delivered_s=tuple(written.delivered_s),
        error=error,
    )


def _delivered_tokens(winner: LiveAttempt | None, written: Written) -> int:
    """As the endpoint counted them, where one endpoint wrote the whole answer; else as they came."""
    if winner is not None and winner.finish is not None and not written.migrations:
        return winner.completion_tokens
    return written.tokens


def _settled(attempt: LiveAttempt, attempts: Attempts, known: Known) -> Attempt:
    endpoint = attempt.endpoint
    refused = attempt.error is not None and attempt.error.phase in NOTHING_ACCEPTED
    read = 0 if refused else _read_tokens(attempt, attempts)
    billed = attempt.completion_tokens
    if not refused and attempt.finish is None and not endpoint.cancel_stops_billing:
        billed = max(billed, _full_length(attempt.request, known))
    return Attempt(
        endpoint=endpoint.name,
        kind=endpoint.kind,
        start_offset_s=attempt.started_at - attempt.request.arrived_at,
        ttft_s=None if attempt.first_at is None else attempt.first_at - attempt.request.arrived_at,
        prompt_tokens=read,
        completion_tokens=attempt.completion_tokens,
        usd=endpoint.prices.usd(read, billed),
        joules=endpoint.energy.joules(read, attempt.completion_tokens),
        outcome=attempt.outcome,
        error=str(attempt.error) if attempt.error else None,
        mean_tbt_s=attempt.decode_s / (attempt.completion_tokens - 1)
        if attempt.completion_tokens > 1
        else None,
    )


def _read_tokens(attempt: LiveAttempt, attempts: Attempts) -> int:
    """Prompt and prefix, as the endpoint counted them; else estimated from what others counted."""
    if attempt.prompt_tokens is not None:
        return attempt.prompt_tokens
    chars = attempt.request.prompt_chars
    return round(attempts.prompt_tokens * (1 + len(attempt.prefix.text) / max(chars, 1)))


def _full_length(request: Request, known: Known) -> int:
    """What a server bills that generates on after the stream was closed."""
    expected = round(known.answer_tokens.distribution.mean)
    return expected if request.max_tokens is None else min(expected, request.max_tokens)


def _never_started(plan: Plan, known: Known, attempts: Attempts) -> Iterator[Attempt]:
    names = {attempt.endpoint.name for attempt in attempts.started}
    for start in plan.starts:
        if start.offset_s is not None and start.endpoint not in names:
            yield Attempt(
                endpoint=start.endpoint,
                kind=known.of(start.endpoint).kind,
                start_offset_s=start.offset_s,
                ttft_s=None,
                prompt_tokens=0,
                completion_tokens=0,
                usd=0.0,
                joules=0.0,
                outcome=AttemptOutcome.NOT_STARTED,
            )
