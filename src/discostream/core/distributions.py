"""A distribution known by its quantiles: measured samples or a published table, for one value or an array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Distribution"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Distribution:
    """A distribution whose quantile function is linear between knots.

    Attributes:
        probabilities: Knots in [0, 1], rising from 0 to 1.
        values: The quantile at each knot, never falling, in the unit of what was measured.
    """

    probabilities: Floats
    values: Floats

    @classmethod
    def of_samples(cls, samples: ArrayLike, weights: ArrayLike | None = None) -> Distribution:
        """The empirical distribution of at least one sample; its mean is the samples' mean.

        A sample sits in the middle of the share it stands for (Hazen's quantiles).

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
        middles = (np.cumsum(shares) - shares / 2) / shares.sum()
        values = values[order]
        return cls(np.concatenate(([0.0], middles, [1.0])), np.concatenate((values[:1], values, values[-1:])))

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
        """F^-1: the value below which this share lies, of the same shape as `probability`."""
        return np.interp(np.asarray(probability, np.float64), self.probabilities, self.values)

    def cdf(self, value: ArrayLike) -> Any:
        """F: the share at or below `value`, of the same shape."""
        return np.interp(np.asarray(value, np.float64), self.values, self.probabilities, left=0.0, right=1.0)

    @cached_property
    def mean(self) -> float:
        """The expected value: the area under the quantile function."""
        return float(np.trapezoid(self.values, self.probabilities))

    def mean_residual(self, reached: float) -> float:
        """How much more is to be expected once `reached` has been passed: E[X - reached | X > reached]."""
        start = float(self.cdf(reached))
        if start >= 1.0:
            return 0.0
        inside = self.probabilities > start
        knots = np.concatenate(([start], self.probabilities[inside]))
        heights = np.concatenate(([max(reached, float(self.values[0]))], self.values[inside]))
        heights = np.maximum(heights, reached)
        return float(np.trapezoid(heights, knots)) / (1.0 - start) - reached

    def sample(self, rng: np.random.Generator, size: int | None = None) -> Any:
        """Draw values by inverting a uniform draw."""
        return self.quantile(rng.random(size))
