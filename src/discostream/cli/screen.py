"""How answers look in a terminal: each endpoint has its colour, and the seam is marked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from discostream.library import Disco
from discostream.session.answer import Answer
from discostream.types import Kind, Migration, Outcome

__all__ = [
    "Axis",
    "Series",
    "as_table",
    "count_bar",
    "errors",
    "legend",
    "one_line",
    "output",
    "plot",
    "print_answer",
    "print_table",
    "progress_bar",
    "summary",
]

SEAM = " ‖ "
CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})
WIDEST, PLOT_LINES = 100, 16
FOLDED = 8
"""So many letters of a word stay together, however narrow its column."""
COLOURS = {Kind.DEVICE: "green", Kind.SERVER: "blue"}

UNBOUNDED = 10_000
"""Columns of a terminal that nothing is too wide for."""

output = Console(highlight=False, markup=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


async def print_answer(answer: Answer, disco: Disco) -> str:
    """Print an answer as it streams, coloured by endpoint, the seam marked; returns its text."""
    text, last = "", None
    async for piece in answer:
        if last is not None and piece.endpoint != last and output.is_terminal:
            output.print(Text(SEAM.rstrip() if piece.text[:1].isspace() else SEAM, "bold magenta"), end="")
        _print_piece(piece.text, COLOURS[disco.endpoints[piece.endpoint].kind])
        text, last = text + piece.text, piece.endpoint
    output.print()
    return text


def _print_piece(text: str, colour: str) -> None:
    """To a terminal in colour and without control characters; to a file or a pipe as it is."""
    if output.is_terminal:
        output.print(Text(text.translate(CONTROLS), colour), end="")
    else:
        output.file.write(text)


def one_line(text: str) -> str:
    """What strangers said, without control characters and line ends."""
    return " ".join(text.translate(CONTROLS).split())


def as_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    words: int,
    folding: Collection[str],
    gap: int = 2,
) -> Table:
    """Rows under headings: the first columns hold words, the others figures.

    Where it is narrow some columns fold, and nothing is cut: the table can be wider (`print_table`).
    """
    rows = [*rows]
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, gap - 1, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        justify: JustifyMethod = "left" if index < words else "right"
        folds = column in folding
        widest = max(map(cell_len, (column, *(str(row[index]) for row in rows))))
        least = min(widest, FOLDED) if folds else widest
        table.add_column(column, justify=justify, no_wrap=not folds, overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*row)
    return table


def print_table(table: Table, indent: int = 0) -> None:
    """Print all of a table; where the terminal is narrower than that takes, its lines wrap."""
    least = Measurement.get(output, output.options.update(width=UNBOUNDED), table).minimum
    wide = Console(highlight=False, markup=False, width=max(output.width, indent + least))
    wide.print(Padding(table, (0, 0, 0, indent), expand=False))


def legend() -> Text:
    """What the colours and the mark mean."""
    kinds = [(f"{kind.value} ", colour) for kind, colour in COLOURS.items()]
    return Text.assemble("Written by ", *kinds, (SEAM.strip(), "bold magenta"), " handoff")


def summary(outcome: Outcome) -> str:
    """One line on how an answer came about."""
    raced = ", ".join(
        f"{attempt.endpoint} {attempt.outcome.value.replace('_', ' ')}"
        + (f" ({attempt.ttft_s:.2f} s)" if attempt.ttft_s is not None else "")
        for attempt in outcome.attempts
    )
    moves = "".join(f"; {_move(migration)}" for migration in outcome.migrations)
    return f"{raced}{moves}; ${outcome.usd:.6f}, {outcome.joules:.1f} J"


def _move(migration: Migration) -> str:
    return (
        f"{migration.source} to {migration.target} at token {migration.at_token} "
        f"by {migration.by.value} ({migration.reason.value}, gap {migration.gap_s * 1000:.0f} ms)"
    )


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A download bar on stderr; where that is no terminal, a line per quarter."""
    if not errors.is_terminal:
        yield _Quarters(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Quarters:
    def __init__(self, what: str) -> None:
        self.what = what
        self.told = -1

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        quarter = 4 * done_bytes // max(total_bytes, 1)
        if quarter > self.told:
            self.told = quarter
            sys.stderr.write(f"{self.what}: {25 * quarter} % of {total_bytes / 1e6:.0f} MB\n")


@contextmanager
def count_bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on stderr that advances by one, or as told; where that is no terminal, a line at the start."""
    if not errors.is_terminal:
        errors.print(f"{what}: {total:,}")
        yield lambda count=1: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count=1: bar.advance(task, count)


@dataclass(frozen=True)
class Axis:
    """One side of a plot.

    Attributes:
        label: What is shown, and its unit.
        ticks: Words at some of its values; evenly spaced numbers when empty.
        limits: What it shows at least and at most; as much as there is when `None`.
        logarithmic: Whether equal steps are equal factors; all values must then be above zero.
    """

    label: str
    ticks: Mapping[float, str] = field(default_factory=dict)
    limits: tuple[float, float] | None = None
    logarithmic: bool = False


@dataclass(frozen=True)
class Series:
    """What is plotted in one colour: points, or a line through them."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    line: bool = True


def plot(title: str, series: Sequence[Series], x: Axis, y: Axis) -> None:
    """Draw series on stdout if that is a terminal; nothing otherwise."""
    if output.is_terminal:
        drawn = Text.from_ansi(_drawn(series, x, y))
        output.print(title, style="dim")
        output.print(drawn.plain if output.no_color else drawn)


def _drawn(series: Sequence[Series], x: Axis, y: Axis) -> str:
    import plotext  # 0.1 s

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(min(output.width, WIDEST), PLOT_LINES)
    for one in series:
        draw, marker = (plotext.plot, "braille") if one.line else (plotext.scatter, "dot")
        draw(list(one.x), list(one.y), marker=marker, color=one.colour, label=one.label)
    for axis, label, limit, scale, tick in (
        (x, plotext.xlabel, plotext.xlim, plotext.xscale, plotext.xticks),
        (y, plotext.ylabel, plotext.ylim, plotext.yscale, plotext.yticks),
    ):
        label(axis.label)
        scale("log" if axis.logarithmic else "linear")
        if axis.limits:
            limit(*axis.limits)
        if axis.ticks:
            tick(list(axis.ticks), list(axis.ticks.values()))
    return str(plotext.build()).rstrip()
