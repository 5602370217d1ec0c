"""Plans without waits: what a start offset is worth, compared with a lot of the same price.

A wait spends a budget on the requests that turn out to be late. The lot spends as much, on as many requests
of the same lengths, before anybody can know which will be late. Whatever a plan loses by that is what
waiting was worth to it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.core.forecast import run_races
from discostream.core.plans import NEVER, STANDBY, PlanTable
from discostream.core.profile import Known

__all__ = ["without_waits"]

Floats: TypeAlias = NDArray[np.float64]


def without_waits(known: Known, table: PlanTable) -> PlanTable:
    """The same table, in which whoever would have waited starts at once, or only when the others have failed.

    How often it does is as often as it would have started, so that each row spends what it did.

    Args:
        known: What the table was made from.
        table: Its columns are endpoints of `known`.
    """
    waiting = (table.offsets > 0.0) & (table.offsets < STANDBY)
    if not waiting.any():
        return table
    rows = []
    bounds = np.concatenate(([-np.inf], table.longest))
    for row, within in enumerate(pairwise(bounds)):
        lengths = _lengths(known, *within)
        drawn: list[tuple[float, Floats]] = []
        for weight, offsets in zip(table.weights[row], table.offsets[row], strict=True):
            starts = _starts(known, table, lengths, offsets)
            drawn += [(weight * share, at) for share, at in _drawn(table.endpoints, offsets, starts)]
        rows.append([(weight, at) for weight, at in drawn if weight > 0.0])
    widest = max(map(len, rows))
    padded = [row + [(0.0, row[0][1])] * (widest - len(row)) for row in rows]
    return PlanTable(
        table.policy,
        table.endpoints,
        table.longest,
        np.array([[offsets for _, offsets in row] for row in padded]),
        np.array([[weight for weight, _ in row] for row in padded]),
    )


def _lengths(known: Known, above: float, up_to: float) -> Floats:
    """The prompts that look up a row; if there are none, the nearest there could be, of a token at least."""
    samples = known.prompt_tokens.samples
    ours = samples[(samples > above) & (samples <= up_to)]
    return ours if ours.size else np.maximum(np.clip(samples[-1:], above, up_to), 1.0)


def _starts(known: Known, table: PlanTable, lengths: Floats, offsets: Floats) -> Floats:
    """How likely each column of an action starts, the mean over the row's prompt tokens; shape (columns,)."""
    endpoints = [known.of(name) for name in table.endpoints]
    at = np.where(np.isnan(offsets), np.inf, offsets)
    races = run_races(endpoints, lengths, at[None, :], np.zeros(lengths.size, np.intp))
    return np.asarray(lengths @ races.starts / lengths.sum())


def _drawn(endpoints: tuple[str, ...], offsets: Floats, starts: Floats) -> list[tuple[float, Floats]]:
    """The actions that stand for one, and how often each of them is taken.

    Who would have started more often is in wherever one that would have started less often is.
    """
    waiting = np.flatnonzero((offsets > 0.0) & (offsets < STANDBY))
    order = waiting[np.argsort(-starts[waiting], kind="stable")]
    bounds = np.concatenate(([1.0], np.minimum.accumulate(starts[order]), [0.0]))
    actions = []
    for joining in range(order.size + 1):
        at = offsets.copy()
        at[order[:joining]] = 0.0
        at[order[joining:]] = [_unless_needed(endpoints, column) for column in order[joining:]]
        actions.append((float(bounds[joining] - bounds[joining + 1]), at))
    return actions


def _unless_needed(endpoints: tuple[str, ...], column: int) -> float:
    """An endpoint stands by; its second attempt is no part of the plan."""
    return NEVER if endpoints[column] in endpoints[:column] else STANDBY
