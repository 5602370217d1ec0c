"""Change detection: noticing within some requests that an endpoint has become slower or faster.

Where each observation stands in the distribution believed before, its rank between 0 and 1, is uniform while
nothing changes. Two sums of log-likelihood ratios watch it, each falling back to nothing at zero (Page's
CUSUM, 1954): one expects ranks of density 3u^2, as after slowing down, the other 3(1-u)^2. An observation cut
short has a range of ranks; so have ties, and what never comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from discostream.core.distributions import Distribution
from discostream.core.survival import Observations

__all__ = ["FASTEST", "SLOWEST", "Excursion", "RankRange", "Watch", "rank_range", "releveled"]

Reference = TypeVar("Reference")

RankRange: TypeAlias = tuple[float, float]
"""The least and the greatest rank that an observation may have, both in [0, 1]."""

ALARM = 8.0
"""Evidence (nats) that a change is believed at.

Eight observations in a row beyond everything seen before make 8.8. While nothing changes, one of the sums
reaches it once in 7,000 observations, or once in 10,000 where two in three are cut short
(`tests/core/test_change.py` measures it).
"""

FASTEST, SLOWEST = 1 / 32, 32.0
"""How far a level may move at one change."""


@dataclass(frozen=True, slots=True)
class Excursion(Generic[Reference]):
    """Evidence for one kind of change, adding up since it last fell to nothing.

    Attributes:
        reference: What was believed when it began; `None` while there is none.
        evidence: Log-likelihood ratio (nats).
        length: How many observations it is made of.
    """

    reference: Reference | None = None
    evidence: float = 0.0
    length: int = 0

    def add(self, reference: Reference, evidence: float) -> Excursion[Reference]:
        """The same with one more observation, judged by `reference`; a fresh one when nothing is left."""
        total = self.evidence + evidence
        return Excursion(reference, total, self.length + 1) if total > 0.0 else Excursion()


@dataclass(frozen=True, slots=True)
class Watch(Generic[Reference]):
    """Both sums over the observations of one endpoint."""

    slower: Excursion[Reference] = Excursion()
    faster: Excursion[Reference] = Excursion()

    def observe(self, believed: Reference, rank: Callable[[Reference], RankRange]) -> Watch[Reference]:
        """The same with one more observation.

        Args:
            believed: What is believed now, and judges the excursions that begin with this observation.
            rank: Where the observation stands, by what was believed at some time.
        """
        before_slower = self.slower.reference or believed
        before_faster = self.faster.reference or believed
        low, high = rank(before_slower)
        slower = self.slower.add(before_slower, _evidence(low, high))
        if before_faster is not before_slower:
            low, high = rank(before_faster)
        return Watch(slower, self.faster.add(before_faster, _evidence(1.0 - high, 1.0 - low)))

    @property
    def alarm(self) -> Excursion[Reference] | None:
        """The excursion that has gone too far to be chance; `None` while nothing has changed."""
        worst = max(self.slower, self.faster, key=lambda excursion: excursion.evidence)
        return worst if worst.evidence > ALARM else None


def _evidence(low: float, high: float) -> float:
    """The log of 3u^2's mean between two ranks."""
    density = low * low + low * high + high * high
    return math.log(density) if density > 0.0 else -math.inf


def rank_range(distribution: Distribution, value: float, *, censored: bool) -> RankRange:
    """Where a value stands in a distribution; beyond it if it was cut short."""
    if math.isinf(value):
        return 1.0 - distribution.never, 1.0
    low, high = distribution.cdf((math.nextafter(value, -math.inf), value)).tolist()
    return (high, 1.0) if censored else (low, high)


def releveled(distribution: Distribution, since: Observations) -> Distribution:
    """The same shape at the level of a few observations.

    Stretched until they are neither low nor high in it: until their ranks and that of one more observation,
    at the old median, are one half on average (those cut short lie anywhere beyond). The share that never
    comes is theirs, counting one more observation as before.
    """
    comes = np.isfinite(since.values)
    never = (distribution.never + float((~comes).sum())) / (1 + len(since))
    shape = Distribution(distribution.probabilities, distribution.values)
    values = np.append(since.values[comes], shape.quantile(0.5))
    censored = np.append(since.censored[comes], False)

    def mean_rank(factor: float) -> float:
        ranks = shape.cdf(values / factor)
        return float(np.where(censored, (1.0 + ranks) / 2.0, ranks).mean())

    low, high = math.log(FASTEST), math.log(SLOWEST)
    for _ in range(30):
        middle = (low + high) / 2.0
        low, high = (middle, high) if mean_rank(math.exp(middle)) > 0.5 else (low, middle)
    return replace(shape.thinned().scaled(math.exp((low + high) / 2.0)), never=never)
