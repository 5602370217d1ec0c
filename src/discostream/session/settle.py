"""Settlement: what became of every attempt and what it cost, losers included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from discostream.core.profile import Known
from discostream.errors import Phase
from discostream.session.attempts import LiveAttempt
from discostream.session.written import Written
from discostream.types import Attempt, AttemptOutcome, FinishReason, Kind, Outcome, Plan, Request

__all__ = ["estimate_tokens", "settle"]

CHARS_PER_TOKEN = 4.0
"""English text in the vocabularies of current models; used only until an endpoint counts for itself."""

NOTHING_ACCEPTED = (Phase.CONNECT, Phase.REFUSED)


def estimate_tokens(request: Request) -> int:
    """About how many tokens a request's prompt has, before any endpoint has counted it."""
    return max(1, round(sum(len(message.content) for message in request.messages) / CHARS_PER_TOKEN))


def settle(
    request: Request,
    plan: Plan,
    known: Known,
    kinds: dict[str, Kind],
    started: Sequence[LiveAttempt],
    written: Written,
    finish: FinishReason | None,
    error: str | None,
) -> Outcome:
    """The account of one request, once nothing of it runs any more.

    A server's prompt tokens count as soon as it accepted the request, whether or not its answer was used;
    so do a device's, which makes its energy an upper bound for a prefill that was cut short.
    """
    prompt_tokens = _prompt_tokens(request, started)
    winner = next((attempt for attempt in started if attempt.won), None)
    return Outcome(
        request_id=request.request_id,
        policy=plan.policy,
        winner=winner.endpoint.name if winner else None,
        ttft_s=written.delivered_s[0] if written.delivered_s else None,
        finish_reason=finish,
        prompt_tokens=(winner.prompt_tokens if winner else None) or prompt_tokens,
        completion_tokens=written.tokens,
        attempts=(
            *(_settled(attempt, request, prompt_tokens, known) for attempt in started),
            *_never_started(plan, kinds, started),
        ),
        migrations=tuple(written.migrations),
        delivered_s=tuple(written.delivered_s),
        error=error,
    )


def _prompt_tokens(request: Request, started: Sequence[LiveAttempt]) -> int:
    """The prompt's length as some endpoint counted it from a fresh start, else an estimate."""
    counted = (attempt.prompt_tokens for attempt in started if not attempt.prefix.text)
    return next((tokens for tokens in counted if tokens), estimate_tokens(request))


def _settled(attempt: LiveAttempt, request: Request, prompt_tokens: int, known: Known) -> Attempt:
    endpoint = attempt.endpoint
    accepted = attempt.error is None or attempt.error.phase not in NOTHING_ACCEPTED
    if not accepted:
        read = 0
    elif attempt.prompt_tokens is not None:
        read = attempt.prompt_tokens
    else:
        read = prompt_tokens + round(len(attempt.prefix.text) / CHARS_PER_TOKEN)
    billed = attempt.completion_tokens
    if accepted and attempt.finish is None and not endpoint.cancel_stops_billing:
        billed = max(billed, _full_length(request, known))
    return Attempt(
        endpoint=endpoint.name,
        kind=endpoint.kind,
        start_offset_s=attempt.started_at - request.arrived_at,
        ttft_s=None if attempt.first_at is None else attempt.first_at - request.arrived_at,
        prompt_tokens=read,
        completion_tokens=attempt.completion_tokens,
        usd=endpoint.prices.usd(read, billed),
        joules=endpoint.energy.joules(read, attempt.completion_tokens),
        outcome=attempt.outcome,
        error=str(attempt.error) if attempt.error else None,
        mean_tbt_s=_mean_tbt(attempt),
    )


def _full_length(request: Request, known: Known) -> int:
    """What a server bills that generates on after the stream was closed."""
    expected = round(known.answer_tokens.distribution.mean)
    return expected if request.max_tokens is None else min(expected, request.max_tokens)


def _mean_tbt(attempt: LiveAttempt) -> float | None:
    if attempt.first_at is None or attempt.last_at is None or attempt.completion_tokens < 2:
        return None
    return (attempt.last_at - attempt.first_at) / (attempt.completion_tokens - 1)


def _never_started(plan: Plan, kinds: dict[str, Kind], started: Sequence[LiveAttempt]) -> Iterator[Attempt]:
    names = {attempt.endpoint.name for attempt in started}
    for start in plan.starts:
        if start.offset_s is not None and start.endpoint not in names:
            yield Attempt(
                endpoint=start.endpoint,
                kind=kinds[start.endpoint],
                start_offset_s=start.offset_s,
                ttft_s=None,
                prompt_tokens=0,
                completion_tokens=0,
                usd=0.0,
                joules=0.0,
                outcome=AttemptOutcome.NOT_STARTED,
            )
