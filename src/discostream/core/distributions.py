"""A distribution known by its quantiles: measured samples or a published table, for one value or an array."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Distribution"]

Floats = NDArray[np.float64]

THIN = np.concatenate(([0.0], 1.0 / (1.0 + np.exp(-np.linspace(-10.0, 10.0, 255))), [1.0]))
"""Probabilities at even steps of log-odds: dense where tails are told apart."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """A distribution whose quantile function is linear between knots.

    Attributes:
        probabilities: Knots in [0, 1], rising from 0 to 1.
        values: The quantile at each knot, never falling, in the unit of what was measured.
        never: The share at infinity, of what never comes; the knots describe the rest.
    """

    probabilities: Floats
    values: Floats
    never: float = 0.0

    @classmethod
    def of_samples(cls, samples: ArrayLike, weights: ArrayLike | None = None) -> Distribution:
        """The empirical distribution of at least one sample; its mean is the samples' mean.

        A sample sits in the middle of the share it stands for (Hazen's quantiles). Infinite ones never come.

        Args:
            samples: In any order.
            weights: How much each counts, all above zero; equally when left out.

        Raises:
            ValueError: There is no sample, or one is not a number.
        """
        values = np.asarray(samples, dtype=np.float64)
        if values.size == 0 or np.isnan(values).any():
            raise ValueError("a distribution needs at least one sample, and numbers only")
        order = np.argsort(values, kind="stable")
        shares = np.ones(values.size) if weights is None else np.asarray(weights, np.float64)[order]
        values = values[order]
        ever = int(np.searchsorted(values, np.inf))
        total, values, shares = shares.sum(), values[:ever], shares[:ever]
        if ever == 0:
            return cls(np.array([0.0, 1.0]), np.zeros(2), never=1.0)
        middles = (np.cumsum(shares) - shares / 2) / shares.sum()
        return cls(
            np.concatenate(([0.0], middles, [1.0])),
            np.concatenate((values[:1], values, values[-1:])),
            never=max(0.0, 1.0 - float(shares.sum() / total)),
        )

    @classmethod
    def of_table(cls, probabilities: Sequence[float], values: Sequence[float]) -> Distribution:
        """A distribution from a quantile table.

        Raises:
            ValueError: The table does not rise from probability 0 to 1, or its values fall.
        """
        knots, heights = np.asarray(probabilities, np.float64), np.asarray(values, np.float64)
        if knots.shape != heights.shape or knots.size < 2 or knots[0] != 0 or knots[-1] != 1:
            raise ValueError("a quantile table pairs a value with each probability, from 0 to 1")
        if np.any(np.diff(knots) <= 0) or np.any(np.diff(heights) < 0):
            raise ValueError("a quantile table's probabilities rise, and its values never fall")
        return cls(knots, heights)

    def quantile(self, probability: ArrayLike) -> Any:
        """F^-1: the value below which this share lies, of the same shape as `probability`.

        Infinite for shares that reach into what never comes.
        """
        share = np.asarray(probability, np.float64)
        if not self.never:
            return np.interp(share, self.probabilities, self.values)
        ever = 1.0 - self.never
        finite = np.interp(share / max(ever, 1e-300), self.probabilities, self.values)
        return np.where(share > ever, np.inf, finite)

    def cdf(self, value: ArrayLike) -> Any:
        """F: the share at or below `value`, of the same shape; for infinity, the share that ever comes."""
        share = np.interp(np.asarray(value, np.float64), self.values, self.probabilities, left=0.0, right=1.0)
        return share * (1.0 - self.never)

    @cached_property
    def mean(self) -> float:
        """The expected value: the area under the quantile function; infinite where some never come."""
        return np.inf if self.never else float(np.trapezoid(self.values, self.probabilities))

    def mean_residual(self, reached: float, up_to: float = np.inf) -> float:
        """How much more, of `up_to` at most, is to be expected once `reached` has been passed.

        E[min(X, up_to) - reached | X > reached], of what comes at all; nothing once all values are passed.
        """
        alive, excess = self._above(reached)
        if not alive or up_to <= reached:
            return 0.0
        return (excess - self._above(up_to)[1]) / alive

    @cached_property
    def longest_residual(self) -> float:
        """The most that `mean_residual` comes to, wherever one asks from zero on.

        Between two knots it falls and then rises, so that it is greatest at one of them.
        """
        alive = 1.0 - self.probabilities
        reached = alive > 0
        residuals = np.array(self._knots[2])[reached] / alive[reached] - self.values[reached]
        return max(self.mean, float(residuals.max(initial=0.0)))

    def _above(self, value: float) -> tuple[float, float]:
        """The share above a value, and by how much it is above, on average over everything that comes."""
        values, probabilities, beyond = self._knots
        after = bisect_right(values, value)
        if after == len(values):
            return 0.0, 0.0
        share, height = probabilities[after], values[after]
        if not after:
            return 1.0, beyond[0] - value
        step = (height - value) / (height - values[after - 1]) * (share - probabilities[after - 1])
        return 1.0 - share + step, step * (height - value) / 2 + beyond[after] - value * (1.0 - share)

    @cached_property
    def _knots(self) -> tuple[list[float], list[float], list[float]]:
        """Values, probabilities, and the area under the quantile function from each knot on.

        As lists, because a single value is looked up in them ten times as fast as in arrays.
        """
        areas = np.diff(self.probabilities) * (self.values[1:] + self.values[:-1]) / 2
        beyond = np.append(np.cumsum(areas[::-1])[::-1], 0.0)
        return self.values.tolist(), self.probabilities.tolist(), beyond.tolist()

    def scaled(self, factor: float) -> Distribution:
        """The distribution of `factor` times as much."""
        return Distribution(self.probabilities, self.values * factor, self.never)

    def thinned(self) -> Distribution:
        """Almost the same by some hundred knots at most, which lie closer where the tails begin and end."""
        if self.probabilities.size <= THIN.size:
            return self
        return Distribution(THIN, np.interp(THIN, self.probabilities, self.values), self.never)

    def sample(self, rng: np.random.Generator, size: int | None = None) -> Any:
        """Draw values by inverting a uniform draw."""
        return self.quantile(rng.random(size))
