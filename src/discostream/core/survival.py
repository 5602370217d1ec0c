"""Distributions of what was sometimes cut short: the product-limit estimate, with a prior and forgetting.

The loser of a race is cancelled: all it tells is that its content would have come later than that. Counting
winners alone makes an endpoint look faster than it is, and so does taking the moment of cancelling for that
of content. The product-limit estimate asks instead, at every value, which share of those that had got so far
ended there (Kaplan and Meier, JASA 1958). With the prior it is a posterior mean (Susarla and Van Ryzin, JASA
1976; Walker and Muliere, Annals of Statistics 1997).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from discostream.core.distributions import Distribution

__all__ = ["LearntDistribution", "Observations", "product_limit"]

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Learnt = TypeVar("Learnt", bound="LearntDistribution")

LATEST = 1024
"""How many observations are kept; at the default half-life the one before these counts for a quarter."""

PRIOR_STRENGTH, PRIOR_FLOOR = 32.0, 1.0
"""How many observations the prior counts for at first, and in the end."""

PRIOR_FADES_OVER = 64.0
"""After so many fresh observations the prior is down to its floor."""

FORGOTTEN = 1e-6
"""An observation that counts for less is left out."""

AGEING = 0.01
"""Half-lives that may pass before a distribution is worked out anew for age alone: weights err by 0.7 %."""

NOTHING_BELIEVED = Distribution(np.array([0.0, 1.0]), np.zeros(2))
NOTHING_EVER_COMES = Distribution(np.array([0.0, 1.0]), np.zeros(2), never=1.0)

TINY = float(np.finfo(np.float64).tiny)
"""Keeps what is none in none from being no number."""


@dataclass(frozen=True, eq=False)
class Observations:
    """The latest of many observations, oldest first.

    Attributes:
        rows: Values, moments (wall-clock seconds) and whether each was cut short (0 or 1). Shape (3, n).
    """

    rows: Floats = field(default_factory=lambda: np.empty((3, 0)))

    def __len__(self) -> int:
        return int(self.rows.shape[1])

    @property
    def values(self) -> Floats:
        """What was measured; infinite for what never came."""
        return np.asarray(self.rows[0])

    @property
    def at_s(self) -> Floats:
        """When (wall-clock seconds)."""
        return np.asarray(self.rows[1])

    @property
    def censored(self) -> Bools:
        """Whether each was cut short: what was measured lies beyond its value."""
        return np.asarray(self.rows[2] > 0)

    def add(self, value: float, at_s: float, *, censored: bool) -> Observations:
        """The same with one more, and without the oldest when there are too many."""
        kept = min(len(self), LATEST - 1)
        rows = np.empty((3, kept + 1))
        rows[:, :kept] = self.rows[:, len(self) - kept :]
        rows[:, kept] = value, at_s, censored
        return Observations(rows)

    def latest(self, count: int) -> Observations:
        """The last so many of them."""
        return Observations(self.rows[:, max(len(self) - count, 0) :])


@dataclass(frozen=True, eq=False)
class LearntDistribution:
    """A distribution learnt from observations that are forgotten again, on top of a prior.

    Attributes:
        prior: What is believed before anything was seen.
        half_life_requests: After so many further observations one counts for half.
        half_life_s: After so many seconds it counts for half, too.
        seen: The latest observations.
        now_s: The moment it stands for; the newest observation's when `None`.
    """

    prior: Distribution
    half_life_requests: float = 500.0
    half_life_s: float = 86_400.0
    seen: Observations = field(default_factory=Observations)
    now_s: float | None = None

    def observe(self: Learnt, value: float, at_s: float, *, censored: bool = False) -> Learnt:
        """The same with one more observation.

        Args:
            value: What was measured; infinite for what will never come.
            at_s: When (wall-clock seconds).
            censored: Whether it was cut short there, and would have been more.
        """
        return replace(self, seen=self.seen.add(value, at_s, censored=censored), now_s=None)

    def as_of(self: Learnt, now_s: float) -> Learnt:
        """The same at a later moment (wall-clock seconds), what was seen having aged until then."""
        stands_for = self.newest_at_s if self.now_s is None else self.now_s
        if stands_for is None or now_s - stands_for < AGEING * self.half_life_s:
            return self
        return replace(self, now_s=now_s)

    @property
    def newest_at_s(self) -> float | None:
        """When the newest observation was made (wall-clock seconds)."""
        return float(self.seen.at_s.max()) if len(self.seen) else None

    @cached_property
    def weights(self) -> Floats:
        """What each observation still counts for, in (0, 1]. Shape (n,)."""
        since = np.arange(len(self.seen) - 1, -1, -1.0) / self.half_life_requests
        now_s = self.newest_at_s if self.now_s is None else self.now_s
        return np.exp2(-since - np.maximum((now_s or 0.0) - self.seen.at_s, 0.0) / self.half_life_s)

    @property
    def sample_size(self) -> float:
        """How many fresh observations those that were kept are worth."""
        return float(self.weights.sum())

    @property
    def prior_strength(self) -> float:
        """How many observations the prior counts for now: it fades as they come, and returns as they age."""
        faded = PRIOR_STRENGTH * (1.0 - self.sample_size / PRIOR_FADES_OVER)
        return max(PRIOR_FLOOR, faded)

    @cached_property
    def distribution(self) -> Distribution:
        """F: the prior, fading, with what was seen."""
        counts = self.weights > FORGOTTEN
        if not counts.any():
            return self.prior
        values, censored = self.seen.values[counts], self.seen.censored[counts]
        return product_limit(values, censored, self.weights[counts], self.prior, self.prior_strength)


def product_limit(
    values: ArrayLike,
    censored: ArrayLike,
    weights: ArrayLike | None = None,
    prior: Distribution | None = None,
    strength: float = 0.0,
) -> Distribution:
    """The distribution behind values of which some were cut short.

    Where nobody is left to be observed, what remains is spread as the prior has it; without one, it lies at
    the greatest value, or never comes if some never did.

    Args:
        values: At least one, in any order; infinite for what never comes.
        censored: Whether each was cut short, and lies beyond its value.
        weights: How much each counts, all above zero; one each when left out.
        prior: What was believed before.
        strength: How many observations that counts for.
    """
    spans, cut_short = np.asarray(values, np.float64), np.asarray(censored, np.bool_)
    counts = np.ones(spans.size) if weights is None else np.asarray(weights, np.float64)
    ever = np.isfinite(spans)
    if prior is None or strength == 0.0:
        prior, strength = NOTHING_BELIEVED, 0.0
    grid = np.unique(np.concatenate((prior.values if strength else spans[:0], spans[ever])))
    if grid.size == 0:
        return NOTHING_EVER_COMES
    place = np.searchsorted(grid, spans[ever])
    leaving = np.bincount(place, counts[ever], grid.size).astype(np.float64)
    ending = np.bincount(place, counts[ever] * ~cut_short[ever], grid.size).astype(np.float64)
    at_risk = leaving[::-1].cumsum()[::-1] + counts[~ever].sum()
    return _multiplied(grid, at_risk, ending, prior, strength, some_never_did=not ever.all())


def _multiplied(
    grid: Floats,
    at_risk: Floats,
    ending: Floats,
    prior: Distribution,
    strength: float,
    *,
    some_never_did: bool,
) -> Distribution:
    """Multiply the shares that survive the way to each value of the grid, and the value itself.

    Between two values only the prior's mass falls, and `(c S0(b) + Y) / (c S0(a) + Y)` survives of it
    exactly, however it is spread.
    """
    short_of = strength * (1.0 - prior.cdf(np.nextafter(grid, -np.inf)))
    beyond = strength * (1.0 - prior.cdf(grid))
    starting = np.concatenate(([strength], beyond[:-1])) + at_risk
    factors = np.empty((grid.size, 2))
    factors[:, 0] = (short_of + at_risk) / np.maximum(starting, TINY)
    factors[:, 1] = (beyond + at_risk - ending) / np.maximum(short_of + at_risk, TINY)
    survival = factors.clip(0.0, 1.0).cumprod()
    never = float(survival[-1]) if some_never_did or beyond[-1] > 0.0 else 0.0
    if never >= 1.0:
        return NOTHING_EVER_COMES
    survival[-1] = never
    jumps = np.diff(survival, prepend=1.0) < 0.0
    jumps[::2] = True
    shares = (1.0 - survival[jumps]) / (1.0 - never)
    return Distribution(shares, np.repeat(grid, 2)[jumps], never)
