"""One request's attempts as bars over time, told apart without colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from discostream.cli.plan.words import span
from discostream.cli.screen import COLOURS
from discostream.types import Attempt, AttemptOutcome, Migration

__all__ = ["LEGEND", "timeline", "words"]

PLANNED, PREFILL, FIRST, DECODE, SEAM, BROKE = "○─●━‖✕"
LEGEND = (
    f"{PREFILL} waiting, {FIRST} first content, {DECODE} decoding, {SEAM} seam, {BROKE} failed, "
    f"{PLANNED} planned start"
)
SEAM_STYLE = "bold magenta"

WORDS_WIDE = max(len(outcome.value) for outcome in AttemptOutcome)
LONGEST_NAME, FEWEST_CELLS = 16, 20

TOOK_OVER = frozenset({AttemptOutcome.MIGRATED_TO, AttemptOutcome.MIGRATED_FROM, AttemptOutcome.FAILED})
"""What can become of an attempt that once took an answer over."""


def timeline(attempts: Sequence[Attempt], migrations: Sequence[Migration], width: int) -> Iterator[Text]:
    """An axis, and a bar for each attempt; nothing where none ran for any time.

    Args:
        attempts: In the order in which they were made.
        migrations: Likewise.
        width: Of the widest line, in characters.
    """
    until_s = max(map(_end_s, attempts), default=0.0)
    if not until_s:
        return
    names = min(max(cell_len(attempt.endpoint) for attempt in attempts), LONGEST_NAME)
    cells = max(width - names - WORDS_WIDE - 2, FEWEST_CELLS)
    yield Text(" " * (names + 1) + _axis(until_s, cells), "dim")
    seams = _seams(attempts, migrations)
    for index, attempt in enumerate(attempts):
        name = Text(attempt.endpoint)
        name.truncate(names, overflow="ellipsis", pad=True)
        bar = _bar(attempt, (cells - 1) / until_s, SEAM if index in seams else FIRST).ljust(cells)[:cells]
        yield Text.assemble(name, " ", _coloured(bar, attempt), " ", words(attempt.outcome))


def words(outcome: AttemptOutcome) -> str:
    """What became of an attempt."""
    return outcome.value.replace("_", " ")


def _axis(until_s: float, cells: int) -> str:
    middle, end = span(until_s / 2), span(until_s)
    left = "0 s".ljust(cells // 2 - len(middle) // 2) + middle
    return left + end.rjust(cells - len(left))


def _end_s(attempt: Attempt) -> float:
    """When it ended, as far as that was recorded; nothing for what never ran."""
    if attempt.outcome is AttemptOutcome.NOT_STARTED:
        return 0.0
    if attempt.ran_s is not None:
        return attempt.start_offset_s + attempt.ran_s
    return attempt.start_offset_s if attempt.ttft_s is None else attempt.ttft_s


def _bar(attempt: Attempt, cells_per_s: float, first_mark: str) -> str:
    start, end = (round(cells_per_s * at_s) for at_s in (attempt.start_offset_s, _end_s(attempt)))
    before = " " * start
    if attempt.outcome is AttemptOutcome.NOT_STARTED:
        return before + PLANNED
    first = None if attempt.ttft_s is None else round(cells_per_s * attempt.ttft_s)
    if first is None:
        bar = PREFILL * (end - start + 1)
    else:
        bar = PREFILL * (first - start) + first_mark + DECODE * (end - first)
    return before + (bar[:-1] + BROKE if attempt.outcome is AttemptOutcome.FAILED else bar)


def _coloured(bar: str, attempt: Attempt) -> Text:
    text = Text(bar, COLOURS[attempt.kind])
    text.highlight_regex(SEAM, SEAM_STYLE)
    return text


def _seams(attempts: Sequence[Attempt], migrations: Sequence[Migration]) -> set[int]:
    """Which attempts took the answer over: of several on a target, the later ones did."""
    found: set[int] = set()
    for migration in reversed(migrations):
        takers = (index for index, attempt in enumerate(attempts) if _took_over(attempt, migration))
        found.update([index for index in takers if index not in found][-1:])
    return found


def _took_over(attempt: Attempt, migration: Migration) -> bool:
    went_on = attempt.outcome in TOOK_OVER and attempt.dropped is None and attempt.ttft_s is not None
    return went_on and attempt.endpoint == migration.target
