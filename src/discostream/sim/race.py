"""Races of many requests at once, by the rules of `session/race.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOBODY", "Race", "run_race"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

NOBODY = -1
"""The winner of a race in which every attempt failed."""


AT_LAST_S = 1e300
"""After every planned start, and still a number."""


@dataclass(frozen=True, eq=False)
class Race:
    """How races ended. A column is one attempt that the plan names.

    Attributes:
        winner: The column whose content came first, or `NOBODY`, shape (requests,).
        ttft_s: Seconds from arrival to that content, infinite if there was none, shape (requests,).
        ended_s: When the race was over, also where everybody failed, shape (requests,).
        start_s: When each attempt began, infinite for never, shape (requests, columns).
        failed: Which of them had failed by the end, shape (requests, columns).
        named: Which of them the plan names at all, shape (requests, columns).
    """

    winner: Integers
    ttft_s: Floats
    ended_s: Floats
    start_s: Floats
    failed: Flags
    named: Flags

    @property
    def started(self) -> Flags:
        """Which attempts began, shape (requests, columns)."""
        return np.isfinite(self.start_s)


def run_race(offsets: Floats, ttft_s: Floats, failed_after_s: Floats) -> Race:
    """Race as planned: the first content wins, and a failure brings the next start forward.

    The first start of a plan never waits, for nobody else runs. Who merely stands by starts when nobody runs
    any more.

    Args:
        offsets: Planned starts in seconds, infinite for who stands by, not a number for who takes no part,
            shape (requests, columns).
        ttft_s: From an attempt's start to its first content, infinite if it fails, same shape.
        failed_after_s: From its start to its failure, infinite if it does not fail, same shape.
    """
    rows = np.arange(len(offsets))
    taking_part = ~np.isnan(offsets)
    due_s = np.where(taking_part, offsets, np.inf)
    start_s = due_s.copy()
    start_s[rows, _next_of(taking_part, due_s)] = 0.0
    failing = np.flatnonzero((np.isfinite(failed_after_s) & taking_part).any(axis=1))
    if failing.size:
        start_s[failing] = _brought_forward(
            start_s[failing], due_s[failing], taking_part[failing], ttft_s[failing], failed_after_s[failing]
        )
    content_s = start_s + ttft_s
    column = np.argmin(content_s, axis=1)
    first_s = content_s[rows, column]
    answered = np.isfinite(first_s)
    failed_s = start_s + failed_after_s
    over_s = np.max(failed_s, axis=1, where=np.isfinite(failed_s), initial=0.0)
    ended_s = np.where(answered, first_s, over_s)
    winner = np.where(answered, column, NOBODY)
    ran = (start_s == 0.0) | (start_s < ended_s[:, None]) | (np.arange(offsets.shape[1]) == winner[:, None])
    start_s = np.where(ran, start_s, np.inf)
    return Race(winner, first_s, ended_s, start_s, failed_s <= ended_s[:, None], taking_part)


def _next_of(waiting: Flags, due_s: Floats) -> Integers:
    """The column that is due first of those that wait, who stand by being the last, shape (requests,)."""
    return np.asarray(np.argmin(np.where(waiting, np.minimum(due_s, AT_LAST_S), np.inf), axis=1))


def _brought_forward(
    start_s: Floats, due_s: Floats, taking_part: Flags, ttft_s: Floats, failed_after_s: Floats
) -> Floats:
    """When each attempt begins once the failures before any content have had their effect."""
    start_s, told, rows = start_s.copy(), np.zeros(start_s.shape, bool), np.arange(len(start_s))
    for _ in range(start_s.shape[1]):
        failed_s = start_s + failed_after_s
        untold_s = np.where(told, np.inf, failed_s)
        column = np.argmin(untold_s, axis=1)
        at_s = untold_s[rows, column]
        heard = at_s < (start_s + ttft_s).min(axis=1)
        told[rows, column] |= heard
        begun = start_s <= at_s[:, None]
        running = (begun & (failed_s > at_s[:, None])).any(axis=1)
        waiting = taking_part & ~begun
        following = _next_of(waiting, due_s)
        called = waiting[rows, following] & (np.isfinite(due_s[rows, following]) | ~running)
        rise = heard & called
        start_s[rows[rise], following[rise]] = at_s[rise]
    return start_s
