"""A plan table as people read it: by whole prompt lengths, rows that say the same in one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from discostream.core.plans import NEVER, STANDBY, PlanTable
from discostream.core.profile import Known
from discostream.types import Kind, Start

__all__ = ["Action", "Row", "in_line", "merged_rows", "without_servers"]


@dataclass(frozen=True, slots=True)
class Action:
    """What is done with this share of some requests."""

    share: float
    starts: tuple[Start, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Prompts of neighbouring lengths that are planned alike.

    Attributes:
        shortest: In whole tokens.
        longest: In whole tokens; `None` for no bound.
        actions: What is done with them, the most frequent first.
        prompts: How many of all prompts are expected to be so long, in [0, 1].
        mean_ttft_s: What these may expect; `None` where there are none.
    """

    shortest: int
    longest: int | None
    actions: tuple[Action, ...]
    prompts: float = 0.0
    mean_ttft_s: float | None = None


def merged_rows(table: PlanTable) -> Iterator[Row]:
    """The rows of a table from the shortest prompts to the longest."""
    pending: Row | None = None
    for row in _whole(table):
        if pending and pending.actions == row.actions:
            pending = replace(pending, longest=row.longest)
            continue
        if pending:
            yield pending
        pending = row
    if pending:
        yield pending


def in_line(action: Action) -> tuple[Start, ...]:
    """The starts in order of time: whoever is first in line starts at once, whatever the plan says."""
    line = sorted(action.starts, key=lambda start: math.inf if start.offset_s is None else start.offset_s)
    return (replace(line[0], offset_s=0.0), *line[1:])


def without_servers(known: Known, table: PlanTable) -> PlanTable:
    """What is left of a plan for private requests; every device stands by where it names none."""
    devices = tuple(endpoint.name for endpoint in known.endpoints if endpoint.kind is Kind.DEVICE)
    offsets = np.full((*table.weights.shape, len(devices)), NEVER)
    for column, name in enumerate(devices):
        if name in table.endpoints:
            offsets[..., column] = table.offsets[..., table.endpoints.index(name)]
    offsets[np.isnan(offsets).all(axis=-1)] = STANDBY
    return replace(table, endpoints=devices, offsets=offsets)


def _whole(table: PlanTable) -> Iterator[Row]:
    """The table's rows that hold whole lengths."""
    shortest = 1
    for index, bound in enumerate(table.longest.tolist()):
        if bound == math.inf:
            yield Row(shortest, None, _actions(table, index))
            return
        if bound >= shortest:
            yield Row(shortest, math.floor(bound), _actions(table, index))
            shortest = math.floor(bound) + 1


def _actions(table: PlanTable, row: int) -> tuple[Action, ...]:
    shares: dict[tuple[Start, ...], float] = {}
    weights = table.weights[row]
    for weight, draw in zip(weights.tolist(), (np.cumsum(weights) - weights / 2).tolist(), strict=True):
        if weight > 0:
            starts = table.choose(float(table.longest[row]), draw).starts
            shares[starts] = shares.get(starts, 0.0) + weight
    actions = [Action(round(share, 9), starts) for starts, share in shares.items()]
    return tuple(sorted(actions, key=lambda action: (-action.share, repr(action.starts))))
