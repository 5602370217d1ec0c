"""`disco requests`: settled requests as a list, and all that is known of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from discostream.cli.plan.words import energy, money, seconds, span
from discostream.cli.screen import WIDEST, as_table, one_line, output, print_table
from discostream.cli.timeline import LEGEND, timeline, words
from discostream.ledger.queries import RecordedRequest, Settled
from discostream.types import Attempt, Migration

__all__ = ["listing", "show", "show_all"]

COLUMNS = ("id", "when", "policy", "outcome", "winner", "moved", "TTFT s", "tokens", "cost", "energy")
ATTEMPTS = ("endpoint", "start s", "first s", "end s", "prompt", "cached", "answer", "cost", "energy")
STYLES = {"ok": "", "failed": "red", "cancelled": "yellow"}
INDENT = (0, 0, 0, 2)

say = partial(output.print, soft_wrap=False)


def show_all(requests: Sequence[RecordedRequest], called: Mapping[str, str], now: datetime) -> None:
    """Print a list, newest first."""
    if requests:
        print_table(listing(requests, called, now))
    else:
        say("No settled request is like that.")


def listing(requests: Sequence[RecordedRequest], called: Mapping[str, str], now: datetime) -> Table:
    """A row for each request.

    Args:
        requests: What to list.
        called: How each is called, by its whole ID.
        now: The local time; of what was settled today, the date is left out.
    """
    rows = [_row(request, called[request.request_id], now) for request in requests]
    return as_table(COLUMNS, rows, words=6, folding=("policy", "winner", "moved"), gap=1)


def _row(request: RecordedRequest, called: str, now: datetime) -> tuple[str | Text, ...]:
    return (
        called,
        _when(request, now),
        request.policy,
        Text(request.outcome, STYLES[request.outcome]),
        request.winner or "",
        _moved(request),
        "" if request.ttft_s is None else seconds(request.ttft_s),
        f"{request.prompt_tokens}+{request.completion_tokens}",
        money(request.usd),
        energy(request.joules),
    )


def _when(request: RecordedRequest, now: datetime) -> str:
    at = _local(request)
    return f"{at:%H:%M:%S}" if at.date() == now.date() else f"{at:%m-%d %H:%M}"


def _local(request: RecordedRequest) -> datetime:
    return datetime.fromisoformat(request.recorded_at).astimezone()


def _moved(request: RecordedRequest) -> str:
    """For cost and as a rescue, each with how often where that was more than once."""
    counts = {"cost": request.migrations - request.rescues, "rescue": request.rescues}
    return ", ".join(f"{count} {why}" if count > 1 else why for why, count in counts.items() if count)


def show(settled: Settled) -> None:
    """Print all that is known of one request, its attempts drawn over time."""
    say(Text(f"Request {settled.request.request_id}", "bold"))
    facts = Table.grid(padding=(0, 2, 0, 0))
    for label, text in (*_facts(settled.request), *_stalls(settled)):
        facts.add_row(label, Text(text))
    say(Padding(facts, INDENT))
    _draw(settled)
    for migration in settled.migrations:
        say(Padding(Text(_seam(migration)), INDENT))
    say()
    rows = [_attempt(attempt) for attempt in settled.attempts]
    print_table(as_table(ATTEMPTS, rows, words=1, folding=("endpoint",)), INDENT[3])
    for attempt in settled.attempts:
        for remark in _remarks(attempt):
            say(Padding(Text(remark), INDENT))


def _facts(request: RecordedRequest) -> Iterator[tuple[str, str]]:
    yield "settled", f"{_local(request):%Y-%m-%d %H:%M:%S}"
    yield "policy", request.policy
    yield "outcome", request.outcome + (f" ({request.finish_reason})" if request.finish_reason else "")
    if request.winner is not None:
        yield "winner", request.winner
    if request.ttft_s is not None:
        yield "TTFT", span(request.ttft_s)
    if request.mean_tbt_s is not None and request.p99_tbt_s is not None and request.max_tbt_s is not None:
        mean, p99, longest = map(span, (request.mean_tbt_s, request.p99_tbt_s, request.max_tbt_s))
        yield "TBT", f"mean {mean}, P99 {p99}, longest {longest}"
    chars = "" if request.prompt_chars is None else f" ({request.prompt_chars:,} characters)"
    yield "tokens", f"prompt {request.prompt_tokens:,}{chars}, answer {request.completion_tokens:,}"
    yield "spent", f"{money(request.usd)}, {energy(request.joules)}"
    if request.stayed is not None:
        yield "stayed", one_line(request.stayed)
    if request.error is not None:
        yield "error", one_line(request.error)


def _stalls(settled: Settled) -> Iterator[tuple[str, str]]:
    if settled.longest_gaps:
        gaps = (f"{span(gap.for_s)} after {span(gap.at_s)}" for gap in settled.longest_gaps)
        yield "stalls", ", ".join(gaps)


def _draw(settled: Settled) -> None:
    lines = list(timeline(settled.attempts, settled.migrations, min(output.width, WIDEST) - INDENT[3]))
    if lines:
        say()
        for line in (*lines, Text(LEGEND, "dim")):
            say(Padding(line, INDENT))


def _seam(migration: Migration) -> str:
    at = "" if migration.at_s is None else f"after {span(migration.at_s)} "
    return (
        f"‖ {migration.source} to {migration.target} {at}at token {migration.at_token} (character "
        f"{migration.at_char}) by {migration.by}, gap {span(migration.gap_s)}: {migration.reason}"
        + (f", {one_line(migration.why)}" if migration.why else "")
    )


def _attempt(attempt: Attempt) -> tuple[str, ...]:
    ended_s = None if attempt.ran_s is None else attempt.start_offset_s + attempt.ran_s
    return (
        attempt.endpoint,
        seconds(attempt.start_offset_s),
        *("" if at_s is None else seconds(at_s) for at_s in (attempt.ttft_s, ended_s)),
        f"{attempt.prompt_tokens:,}",
        "" if attempt.cached_tokens is None else f"{attempt.cached_tokens:,}",
        f"{attempt.completion_tokens:,}",
        money(attempt.usd),
        energy(attempt.joules),
    )


def _remarks(attempt: Attempt) -> Iterator[str]:
    if attempt.error is not None:
        yield f"{words(attempt.outcome)}: {one_line(attempt.error)}"
    if attempt.dropped is not None:
        yield f"{attempt.endpoint} was let go: {one_line(attempt.dropped)}"
    if attempt.ahead:
        yield f"{attempt.endpoint} had {attempt.ahead} other attempt{'s' * (attempt.ahead > 1)} to serve"
