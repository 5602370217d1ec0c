"""Settlement: what became of every attempt and what it cost, losers included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import anyio

from discostream.core.budget import most_prompt_tokens
from discostream.core.profile import Known
from discostream.core.quotes import without_quotes
from discostream.errors import BudgetSpent, Phase
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.session.written import Written
from discostream.types import Attempt, AttemptOutcome, FinishReason, Outcome, Plan, Request

__all__ = ["settle", "told_policy"]

NOTHING_ACCEPTED = (Phase.CONNECT, Phase.REFUSED)
CLIENTS_FAULT = frozenset({400, 404, 413, 422})
"""Statuses by which an endpoint refuses a request for what it says, which tells nothing of the endpoint."""


def settle(
    request: Request,
    plan: Plan,
    known: Known,
    attempts: Attempts,
    written: Written,
    finish: FinishReason | None,
    stayed: str | None,
    error: str | None,
) -> Outcome:
    """The account of one request, once nothing of it runs any more; budgets pay for it here.

    An attempt's prompt counts in full from its start, unless it was refused: what a server or a device had
    read of it when it was cancelled cannot be known from outside. Only what a cache held takes no energy.
    """
    delivered_s = written.outlet.delivered_s
    winner = next((attempt for attempt in attempts.started if attempt.won), None)
    outcome = Outcome(
        request_id=request.request_id,
        policy=told_policy(plan, request),
        winner=winner.endpoint.name if winner else None,
        ttft_s=delivered_s[0] if delivered_s else None,
        finish_reason=finish,
        prompt_chars=request.prompt_chars,
        prompt_tokens=(winner.prompt_tokens if winner else None) or attempts.prompt_tokens,
        completion_tokens=_delivered_tokens(winner if finish else None, written),
        attempts=(
            *(_paid(attempt, _settled(attempt, attempts, known)) for attempt in attempts.started),
            *_never_started(plan, known, attempts),
        ),
        migrations=written.seams,
        delivered_s=tuple(delivered_s),
        error=error,
        stayed=stayed,
        settled_s=anyio.current_time() - request.arrived_at,
    )
    failed = error is not None or any(attempt.error is not None for attempt in attempts.started)
    if not failed:
        return outcome
    return _unquoted(outcome, "\n".join([*(turn.content for turn in request.turns), written.text]))


def _unquoted(outcome: Outcome, text: str) -> Outcome:
    """The same without what endpoints quote of the prompt or the answer, which nobody asked to keep."""

    def spared(said: str | None) -> str | None:
        return said and without_quotes(said, text)

    return replace(
        outcome,
        error=spared(outcome.error),
        attempts=tuple(replace(each, error=spared(each.error)) for each in outcome.attempts),
        migrations=tuple(replace(each, why=without_quotes(each.why, text)) for each in outcome.migrations),
    )


def told_policy(plan: Plan, request: Request) -> str:
    """Who chose, and whether it could choose among devices only."""
    return f"{plan.policy}, private" if request.private and request.endpoint is None else plan.policy


def _delivered_tokens(winner: LiveAttempt | None, written: Written) -> int:
    """As the endpoint counted them, where one endpoint wrote the whole answer; else as they came."""
    if winner is not None and winner.finish is not None and not written.migrations and not written.stopped:
        return winner.completion_tokens
    return len(written.outlet.delivered_s)


def _paid(attempt: LiveAttempt, settled: Attempt) -> Attempt:
    attempt.reservation.settle(usd=settled.usd, joules=settled.joules, prompt_tokens=settled.prompt_tokens)
    return settled


def _settled(attempt: LiveAttempt, attempts: Attempts, known: Known) -> Attempt:
    endpoint = attempt.endpoint
    failed = attempt.error is not None and attempt.error.phase in NOTHING_ACCEPTED
    refused = failed or not attempt.asked
    read = 0 if refused else _read_tokens(attempt, attempts)
    wrote = _written_tokens(attempt)
    billed = wrote
    if not refused and attempt.finish is None and not endpoint.cancel_stops_billing:
        billed = max(billed, _full_length(attempt, known))
    return Attempt(
        endpoint=endpoint.name,
        kind=endpoint.kind,
        start_offset_s=attempt.started_at - attempt.request.arrived_at,
        ttft_s=None if attempt.first_at is None else attempt.first_at - attempt.request.arrived_at,
        prompt_tokens=read,
        completion_tokens=wrote,
        usd=endpoint.prices.usd(read, billed),
        joules=endpoint.energy.joules(max(read - (attempt.cached_tokens or 0), 0), wrote),
        outcome=attempt.outcome,
        error=str(attempt.error) if attempt.error else None,
        mean_tbt_s=attempt.decode_s / (attempt.completion_tokens - 1)
        if attempt.completion_tokens > 1
        else None,
        ran_s=_ran_s(attempt),
        cached_tokens=attempt.cached_tokens,
        ahead=attempt.ahead,
        identity=endpoint.identity,
        dropped=attempt.dropped,
        ended_s=None if attempt.ended_at is None else attempt.ended_at - attempt.request.arrived_at,
        error_type=_error_type(attempt),
    )


def _error_type(attempt: LiveAttempt) -> str | None:
    return str(attempt.error.status or attempt.error.phase) if attempt.error else None


def _ran_s(attempt: LiveAttempt) -> float | None:
    if attempt.ended_at is None or not attempt.asked or isinstance(attempt.error, BudgetSpent):
        return None
    if attempt.error and attempt.error.status in CLIENTS_FAULT:
        return None
    return attempt.ended_at - attempt.started_at


def _read_tokens(attempt: LiveAttempt, attempts: Attempts) -> int:
    """Prompt and prefix, as the endpoint counted them; else estimated from what others counted."""
    if attempt.prompt_tokens is not None:
        return attempt.prompt_tokens
    chars = attempt.request.prompt_chars
    estimate = round(attempts.prompt_tokens * (1 + len(attempt.prefix.text) / max(chars, 1)))
    return min(estimate, most_prompt_tokens(attempt.request, attempt.prefix))


def _written_tokens(attempt: LiveAttempt) -> int:
    """As the endpoint counted them; else as they came, which may be more than it was allowed to write."""
    counted = attempt.finish is not None and attempt.finish.completion_tokens
    most = attempt.request.max_tokens
    return attempt.completion_tokens if counted or most is None else min(attempt.completion_tokens, most)


def _full_length(attempt: LiveAttempt, known: Known) -> int:
    """What a server bills that generates on after the stream was closed.

    An average answer, but the longest that was allowed where a hard budget pays.
    """
    expected, most = round(known.answer_tokens.distribution.mean), attempt.request.max_tokens
    if most is None:
        return expected
    return most if attempt.reservation.pays_for_answer else min(expected, most)


def _never_started(plan: Plan, known: Known, attempts: Attempts) -> Iterator[Attempt]:
    started = Counter(attempt.endpoint.name for attempt in attempts.started)
    for start in plan.starts:
        started[start.endpoint] -= 1
        if start.offset_s is not None and started[start.endpoint] < 0:
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
                error=_why_not(start.endpoint, attempts),
            )


def _why_not(endpoint: str, attempts: Attempts) -> str | None:
    refusal = attempts.refused.get(endpoint)
    return str(refusal) if refusal else None
