"""What `disco experiment` shows in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from discostream.cli.experiment.design import BASELINES
from discostream.cli.experiment.report import Report, Row
from discostream.cli.plan.words import money, percent, seconds
from discostream.cli.screen import output

__all__ = ["show"]

PER = 1000
BUSY = 0.1
"""The part of all cores that other programs can take before it is worth a remark."""

Words: TypeAlias = Callable[[float], str]
Columns: TypeAlias = Mapping[str, tuple[str, Words]]

TTFT: Columns = {
    "mean s": ("mean_ttft_s", seconds),
    "P50 s": ("p50_ttft_s", seconds),
    "P90 s": ("p90_ttft_s", seconds),
    "P99 s": ("p99_ttft_s", seconds),
    "worst s": ("max_ttft_s", seconds),
}
SPENT: Columns = {
    "share": ("spent_share", percent),
    "$/1,000": ("usd", lambda usd: money(PER * usd)),
    "J": ("joules", lambda joules: f"{joules:.2f}"),
    "cost/1,000": ("cost", lambda usd: money(PER * usd)),
    "wasted": ("wasted_tokens", lambda tokens: f"{tokens:.1f}"),
}
READ: Columns = {
    "moved": ("migrated_share", percent),
    "delayed": ("delayed_tokens_mean", lambda tokens: f"{tokens:.1f}"),
    "P99 TBT s": ("p99_tbt_s", seconds),
    "QoE": ("qoe_mean", lambda good: f"{good:.3f}"),
}
BASELINE = "stochastic"
SHARES = frozenset({"spent_share", "migrated_share"})

TABLES: Mapping[str, Columns] = {
    "Time to first token": TTFT,
    "Spent: share of prompt tokens, and what an answer takes (dollars: 1,000 of them)": SPENT,
    "Read: answers that moved, tokens a move delayed, gaps between tokens, quality of experience": READ,
}

say = partial(output.print, soft_wrap=False)


def show(report: Report) -> None:
    """Print everything there is."""
    if not report.rows:
        say(f"Interrupted before every policy had answered a prompt; {len(report.measured.answers)} answers.")
        return
    say(Text(_headline(report), "bold"))
    for title, columns in TABLES.items():
        say(Text(f"\n{title}", "bold"))
        say(_table(report, columns))
    for remark in _remarks(report):
        say(Text(f"\n{remark}"))


def _headline(report: Report) -> str:
    design, policy = report.design, report.measured.settings.policy
    share = report.rows[0].measured.share
    return (
        f"{len(design.prompts)} prompts, {report.rows[0].measured.device} against {design.trace.name}; "
        f"the {policy.constraint} may take {percent(share)} of the prompt tokens"
    )


def _table(report: Report, columns: Columns) -> Table:
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    drawn.add_column("policy")
    drawn.add_column("")
    for label in columns:
        drawn.add_column(label, justify="right", no_wrap=True)
    for row in report.rows:
        for cells in _lines(row, columns):
            drawn.add_row(*cells)
    return drawn


def _lines(row: Row, columns: Columns) -> Iterator[list[str | Text]]:
    for what, figures in (("measured", row.measured), ("predicted", row.predicted)):
        policy = Text(figures.policy, "bold") if figures is row.measured else ""
        yield [policy, what, *(words(getattr(figures, name)) for name, words in columns.values())]
    yield ["", Text("difference", "dim"), *(_difference(row, name) for name, _ in columns.values())]


def _difference(row: Row, name: str) -> Text:
    """How far the measured is from the predicted: in points for shares, otherwise relatively."""
    found, foretold = getattr(row.measured, name), getattr(row.predicted, name)
    judged = "yellow" if name in row.surprises else "green"
    style = judged if name in row.spans else "dim"
    if name in SHARES:
        return Text(f"{100 * (found - foretold):+.1f} pt", style)
    if found == foretold:
        return Text("0.0 %", style)
    return Text(f"{100 * (found / foretold - 1):+.1f} %" if foretold else "–", style)  # noqa: RUF001


def _remarks(report: Report) -> Iterator[str]:
    """What the tables cannot say."""
    measured, trace = report.measured, report.design.trace
    if report.interrupted:
        yield (
            f"Interrupted after {len(measured.answers)} of {report.wanted} answers; the figures are of the "
            f"{report.rounds} prompts that all policies answered."
        )
    yield (
        f"Predictions rest on what {' and '.join(BASELINES)} showed. A yellow difference is more than "
        f"chance: 95 of 100 such experiments would measure something nearer."
    )
    yield from filter(None, map(_surprise, report.rows))
    yield from _gains(report.rows)
    if lost := sum(answered.outcome.ttft_s is None for answered in measured.answers):
        yield f"{lost} requests were not answered; they count as if they had waited two minutes."
    if measured.taken_by_others > BUSY:
        yield (
            f"Other programs took {percent(measured.taken_by_others)} of all cores meanwhile: the device was "
            f"slower than it is, and not always by as much."
        )
    if trace.note:
        yield f"{trace.name}: {trace.note}."


def _surprise(row: Row) -> str:
    """The figures of a policy that came out otherwise than chance explains; empty if none did."""
    told = [
        f"{label} {words(low)} to {words(high)}, predicted {words(getattr(row.predicted, name))}"
        for columns in TABLES.values()
        for label, (name, words) in columns.items()
        if name in row.surprises
        for low, high in (row.spans[name],)
    ]
    return f"{row.measured.policy}: {'; '.join(told)}" if told else ""


def _gains(rows: Sequence[Row]) -> Iterator[str]:
    """What a plan is worth, for those that spend the same share as the policy that spends it at random."""
    at_random = next((row for row in rows if row.measured.policy == BASELINE), None)
    for row in rows:
        if at_random and row.measured.policy not in (*BASELINES, BASELINE):
            mean, p99 = (_gain(row, at_random, name) for name in ("mean_ttft_s", "p99_ttft_s"))
            yield f"{row.measured.policy} against {BASELINE}: mean TTFT {mean}; P99 TTFT {p99}."


def _gain(row: Row, other: Row, name: str) -> str:
    found, foretold = (
        100 * (getattr(figures, name) / getattr(others, name) - 1)
        for figures, others in ((row.measured, other.measured), (row.predicted, other.predicted))
    )
    return f"{found:+.1f} % (predicted {foretold:+.1f} %)"
