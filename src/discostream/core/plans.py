"""Plans by prompt length, as a policy makes them ahead of requests."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.types import Plan, Start

__all__ = ["NEVER", "STANDBY", "PlanTable"]

Floats: TypeAlias = NDArray[np.float64]

STANDBY = np.inf
"""An offset that never comes: the endpoint starts only when the others have failed."""

NEVER = np.nan
"""No offset at all: the endpoint is not part of the plan."""


@dataclass(frozen=True, eq=False)
class PlanTable:
    """Start offsets by prompt length; a row may mix several actions.

    Attributes:
        endpoints: Names, in the order of the last axis of `offsets`.
        longest: The longest prompt (tokens) of each row, rising; the last is infinite. Shape (rows,).
        offsets: Seconds after arrival, `STANDBY` or `NEVER`. Shape (rows, actions, endpoints).
        weights: How often each action of a row is taken; rows sum to one. Shape (rows, actions).
    """

    policy: str
    endpoints: tuple[str, ...]
    longest: Floats
    offsets: Floats
    weights: Floats

    def choose(self, prompt_tokens: float, draw: float) -> Plan:
        """The plan for one request; `draw`, uniform in [0, 1), picks among a row's actions."""
        bounds, rows = self._rows
        shares, plans = rows[bisect_left(bounds, prompt_tokens)]
        return plans[min(bisect_right(shares, draw), len(plans) - 1)]

    def offsets_of(self, prompt_tokens: Floats, draws: Floats) -> Floats:
        """Start offsets of many requests at once, as `choose` would have them, shape (requests, endpoints).

        Args:
            prompt_tokens: Of each, shape (requests,).
            draws: Uniform in [0, 1), shape (requests,).
        """
        row = np.searchsorted(self.longest, prompt_tokens)
        last = self.weights.shape[1] - 1 - np.argmax(self.weights[:, ::-1] > 0, axis=1)
        passed = (np.cumsum(self.weights, axis=1)[row] <= draws[:, None]).sum(axis=1)
        return np.asarray(self.offsets[row, np.minimum(passed, last[row])])

    @cached_property
    def _rows(self) -> tuple[list[float], list[tuple[list[float], list[Plan]]]]:
        """The bounds, and for each row the running sum of its weights and the plan of each action."""
        rows = []
        for weights, offsets in zip(self.weights, self.offsets, strict=True):
            taken = weights > 0
            rows.append(
                (np.cumsum(weights[taken]).tolist(), [self._plan(action) for action in offsets[taken]])
            )
        return self.longest.tolist(), rows

    def _plan(self, offsets: Floats) -> Plan:
        starts = zip(self.endpoints, offsets.tolist(), strict=True)
        return Plan(
            self.policy,
            tuple(Start(name, None if at == STANDBY else at) for name, at in starts if not math.isnan(at)),
        )
