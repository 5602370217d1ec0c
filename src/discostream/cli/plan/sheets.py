"""The tables of a plan, as text: the terminal and the page show the same."""

from __future__ import annotations

from collections.abc import Iterator

from discostream.cli.plan.report import Prospect, Report
from discostream.cli.plan.words import (
    actions_in_words,
    costs_in_words,
    energy,
    excesses_in_words,
    lengths_in_words,
    money,
    percent,
    seconds,
    source_in_words,
    ttft_in_words,
)
from discostream.sim.page import Sheet
from discostream.types import Kind

__all__ = ["comparison", "endpoints", "remarks", "table"]

PER = 1000
MARK = "!"


def endpoints(report: Report) -> Sheet:
    """What is known of each endpoint."""
    findings = report.findings
    rows = tuple(
        (
            profile.name,
            profile.kind.value,
            f"{ttft_in_words(profile)} ({source_in_words(profile, findings.attempts[profile.name])}); "
            f"{costs_in_words(profile)}",
        )
        for profile in findings.known.endpoints
    )
    return Sheet(("endpoint", "kind", "what is known"), 3, rows)


def table(report: Report) -> Sheet:
    """The plan of the policy in force."""
    rows = tuple(
        (
            lengths_in_words(row),
            actions_in_words(row.actions),
            percent(row.prompts),
            "" if row.mean_ttft_s is None else seconds(row.mean_ttft_s),
        )
        for row in report.rows
    )
    return Sheet(("prompt tokens", "who starts when", "prompts", "mean s"), 2, rows)


def comparison(report: Report) -> Sheet:
    """What every policy would do, per 1,000 requests where nothing else is said."""
    figures = ("mean s", "P50 s", "P90 s", "P99 s", "$/1,000", "J/1,000", *(kind.value for kind in Kind))
    return Sheet(("policy", *figures), 1, tuple(map(_figures, report.prospects)))


def remarks(report: Report) -> Iterator[str]:
    """What that table cannot say."""
    yield "The last columns: which share of all prompt tokens each kind processes."
    for prospect in report.prospects:
        for excess in excesses_in_words(prospect, report.findings):
            yield f"{MARK} {excess}"
    for failure in report.failures:
        yield f"{failure.policy} makes no plan: {failure.error}"


def _figures(prospect: Prospect) -> tuple[str, ...]:
    expected = prospect.forecast
    broken = any(spending.exceeds for spending in prospect.spendings)
    return (
        f"{prospect.policy} {MARK}" if broken else prospect.policy,
        seconds(expected.mean_ttft_s),
        seconds(expected.p50_ttft_s),
        seconds(expected.p90_ttft_s),
        seconds(expected.p99_ttft_s),
        money(PER * expected.usd),
        energy(PER * expected.joules),
        *(percent(expected.token_share[kind]) for kind in Kind),
    )
