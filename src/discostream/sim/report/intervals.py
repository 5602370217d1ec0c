"""Means of a few values, and how far chance may have moved them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean, stdev

from msgspec import Struct

__all__ = ["CONFIDENCE", "Interval", "interval_of", "t_quantile"]

CONFIDENCE = 0.95

HALVINGS = 80
"""Of the range in which a quantile is looked for: to the last digit of a float."""

MOST_DEVIATIONS = 1e6


class Interval(Struct, frozen=True):
    """A mean, and between what it lies with `CONFIDENCE` if the values are independent draws.

    Attributes:
        low: `None` where there is but one value.
        high: Likewise.
        n: How many values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def interval_of(values: Sequence[float]) -> Interval:
    """Student's interval for the mean of at least one value."""
    mean, n = fmean(values), len(values)
    if n == 1:
        return Interval(mean, None, None, n)
    half = t_quantile((1.0 + CONFIDENCE) / 2.0, n - 1) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t with so many degrees of freedom, for a probability of at least a half."""
    below, above = 0.0, MOST_DEVIATIONS
    for _ in range(HALVINGS):
        middle = (below + above) / 2.0
        if _within(middle, freedom) < 2.0 * probability - 1.0:
            below = middle
        else:
            above = middle
    return above


def _within(t: float, freedom: int) -> float:
    """How likely |T| stays below t: a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total
