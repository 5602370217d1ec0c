"""Streams out of what a file tells of its answers' tokens, each with a remark on how that was done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from discostream.builtin import builtin_profiles
from discostream.core.distributions import Distribution
from discostream.traces.streams import Streams

__all__ = ["at_even_pace", "mean_gaps_s", "replayed", "strata"]

Floats = NDArray[np.float64]

LONG_ENOUGH = 64
"""Tokens of an answer that shows how a longer one would go on. Azure sends text in bursts of some twenty, so
a short answer comes at one instant, and repeated it would be a stream of 100,000 tokens a second.
"""

MOST_PACES = 512
"""How many steady paces stand for those of all answers; as many as most packet captures have."""


def replayed(answers: Sequence[Floats]) -> tuple[Streams, str]:
    """Recorded gaps, of long answers if there are any.

    Args:
        answers: For each, when its tokens came, seconds after the first.
    """
    lasting = [answer for answer in answers if answer[-1] > 0]
    if not lasting:
        return at_even_pace(np.empty(0))
    streams = Streams.recorded([each for each in lasting if each.size >= LONG_ENOUGH] or lasting)
    return streams, f"token gaps of {streams.lengths.size:,} answers, as recorded"


def at_even_pace(gaps_s: Floats) -> tuple[Streams, str]:
    """A steady stream for each answer's mean gap, of those above zero, and a usual one if there are none."""
    told = gaps_s[gaps_s > 0]
    if told.size == 0:
        assumed = builtin_profiles()["gpt-4o"].tokens_per_s
        return Streams.steady(assumed), f"no pace recorded: tokens at an even {assumed:g} a second assumed"
    if told.size > MOST_PACES:
        told = strata(Distribution.of_samples(told), MOST_PACES)
    return Streams.paced(told), "tokens at the even pace of each answer; no token gaps recorded"


def mean_gaps_s(decode_s: Floats, tokens: Floats) -> Floats:
    """The mean gaps of answers, of long ones if there are any.

    Args:
        decode_s: From the first token of each to its last.
        tokens: How many it has; not a number (NaN) for none.
    """
    lasting = (tokens > 1) & (decode_s > 0)
    telling = lasting & (tokens >= LONG_ENOUGH)
    told = telling if telling.any() else lasting
    return np.asarray(decode_s[told] / (tokens[told] - 1))


def strata(distribution: Distribution, count: int) -> Floats:
    """The means of `count` equal shares of a distribution, sorted; their mean is its own."""
    bounds = np.linspace(0.0, 1.0, count + 1)
    knots = np.union1d(bounds, distribution.probabilities)
    heights = distribution.quantile(knots)
    areas = np.append(0.0, np.cumsum(np.diff(knots) * (heights[1:] + heights[:-1]) / 2))
    return np.asarray(np.diff(areas[np.searchsorted(knots, bounds)]) * count)
