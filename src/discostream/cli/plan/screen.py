"""What `disco plan` shows in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Timer

from rich.padding import Padding
from rich.text import Text

from discostream.cli.plan.report import Curve, Point, Report
from discostream.cli.plan.sheets import comparison, endpoints, remarks, table
from discostream.cli.plan.words import headline, percent, rests_on, worth_in_words
from discostream.cli.screen import Axis, Series, as_table, errors, output, plot, print_table
from discostream.sim.page import Sheet
from discostream.types import Kind

__all__ = ["patience", "show"]

SLOW_S = 1.0

INDENT = (0, 0, 0, 2)
CURVE_COLOURS = ("yellow", "cyan", "magenta")

say = partial(output.print, soft_wrap=False)


@contextmanager
def patience(what: str) -> Iterator[None]:
    """A note on a terminal's stderr once something takes longer than a second."""
    status = errors.status(what)
    timer = Timer(SLOW_S, status.start)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


def show(report: Report) -> None:
    """Print everything; curves on a terminal only."""
    say(Text(headline(report), "bold"))
    _section("It rests on", endpoints(report), rests_on(report))
    _section(f"Who starts when ({report.prospects[0].policy})", table(report))
    _section("Policies side by side", comparison(report), remarks(report))
    _section("What more budget would buy (optimal)", None, worth_in_words(report))
    if report.constraint:
        say()
        _plot("Mean TTFT", report.curves, report.constraint.kind, lambda point: point.mean_ttft_s)
        _plot("P99 TTFT", report.curves, report.constraint.kind, lambda point: point.p99_ttft_s)


def _section(title: str, sheet: Sheet | None, sentences: Iterable[str] = ()) -> None:
    say(Text(f"\n{title}", "bold"))
    if sheet:
        words = sheet.columns[: sheet.words]
        print_table(as_table(sheet.columns, sheet.rows, words=sheet.words, folding=words), INDENT[3])
    for sentence in sentences:
        say(Padding(Text(sentence), INDENT))


def _plot(what: str, curves: Iterable[Curve], kind: Kind, height: Callable[[Point], float]) -> None:
    series = [
        Series(curve.policy, [point.share for point in curve.points], [*map(height, curve.points)], colour)
        for curve, colour in zip(curves, CURVE_COLOURS, strict=True)
    ]
    shares = {share: percent(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    axis = Axis(f"share of prompt tokens that the {kind} may take", shares)
    plot(f"{what} by budget, in seconds", series, axis, Axis(""))
