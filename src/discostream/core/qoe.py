"""What a reader feels, from the times at which an answer's tokens were delivered.

The reader is virtual: takes the first token when it arrives, and every further one when it has arrived
and the token before it has been read. Tokens run along the last axis; times and spans are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Gap", "GapFigures", "gap_figures", "longest_gaps", "qoe", "read_times", "stalls", "tbt_as_read"]

STALL_S = 0.25
"""No shorter gap is told as one: whoever reads 4.8 tokens a second takes 0.21 s for each."""

MOST_GAPS = 8
"""So many of an answer are told."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GapFigures:
    """The gaps of one answer in three numbers, seconds."""

    mean_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of an answer in which its reader got nothing: from when, and for how long (seconds)."""

    at_s: float
    for_s: float


def longest_gaps(times_s: ArrayLike) -> tuple[Gap, ...]:
    """The gaps of more than 0.25 s between times that never fall, the longest first; at most eight.

    Args:
        times_s: Shape (tokens,): as delivered, seconds after the request's arrival.
    """
    times = np.asarray(times_s, np.float64)
    gaps = np.diff(times)
    longest = np.argsort(-gaps, kind="stable")[:MOST_GAPS]
    return tuple(Gap(float(times[place]), float(gaps[place])) for place in longest if gaps[place] > STALL_S)


def gap_figures(times_s: ArrayLike) -> GapFigures | None:
    """Mean, 99th percentile and longest gap between times that never fall; `None` below two times.

    Args:
        times_s: Shape (tokens,): as delivered, or as read (`read_times`).
    """
    gaps = np.sort(np.diff(np.asarray(times_s, np.float64))).tolist()
    if not gaps:
        return None
    # As np.quantile has it, which takes ten times as long for one quantile of a short list.
    place = 0.99 * (len(gaps) - 1)
    below = gaps[int(place)]
    above = gaps[min(int(place) + 1, len(gaps) - 1)]
    return GapFigures(sum(gaps) / len(gaps), below + (place % 1.0) * (above - below), gaps[-1])


def read_times(delivered_s: ArrayLike, tokens_per_s: float) -> Floats:
    """When each token is read: never before it is there, nor sooner than one token's time after the last.

    `read[0] = d[0]` and `read[i] = max(d[i], read[i-1] + 1/r)`, solved for all tokens at once:
    `read[i] - i/r` is the running maximum of `d[i] - i/r`.

    Args:
        delivered_s: Delivery times, shape (..., tokens).
        tokens_per_s: r, the reader's pace.

    Returns:
        Times of the same shape.
    """
    delivered = np.asarray(delivered_s, np.float64)
    head_start = np.arange(delivered.shape[-1]) / tokens_per_s
    return np.maximum.accumulate(delivered - head_start, axis=-1) + head_start


def tbt_as_read(delivered_s: ArrayLike, tokens_per_s: float) -> Floats:
    """Gaps between the moments at which tokens are read, shape (..., tokens - 1); at least 1/r each.

    Arguments as `read_times`.
    """
    return np.diff(read_times(delivered_s, tokens_per_s), axis=-1)


def stalls(delivered_s: ArrayLike, tokens_per_s: float, longer_than_s: float = 1e-6) -> Floats:
    """How long the reader sat waiting for text, once per stall, in the order they came.

    Args:
        delivered_s: Delivery times of one answer, shape (tokens,).
        tokens_per_s: The reader's pace.
        longer_than_s: Shorter waits do not count; the default only hides rounding.
    """
    waits = tbt_as_read(delivered_s, tokens_per_s) - 1.0 / tokens_per_s
    return waits[waits > longer_than_s]


def qoe(
    delivered_s: ArrayLike, tokens_per_s: float, *, submitted_s: float = 0.0, expected_ttft_s: float = 0.0
) -> float:
    """Quality of experience in [0, 1]: 1 when no token was read later than the reader would have liked.

    Andes (arXiv 2404.16283): `1 - sum(actual - ideal) / sum(actual - submitted)` over tokens, where
    `actual` is when each is read and `ideal` when it would be, had the answer been there in time.

    Args:
        delivered_s: Delivery times of one answer, shape (tokens,), at least one.
        tokens_per_s: The reader's pace; Andes takes 4.8 for reading and 3.3 for listening.
        submitted_s: When the request was sent, on the same clock.
        expected_ttft_s: The wait that a reader takes for granted; nobody reads sooner.

    Raises:
        ValueError: There are no tokens to judge.
    """
    delivered = np.asarray(delivered_s, np.float64)
    if delivered.size == 0:
        raise ValueError("an answer without tokens has no quality of experience")
    starts_at = submitted_s + expected_ttft_s
    actual = read_times(np.maximum(delivered, starts_at), tokens_per_s)
    late = actual - (starts_at + np.arange(delivered.size) / tokens_per_s)
    span = float(np.sum(actual - submitted_s))
    return 1.0 - float(np.sum(late)) / span if span > 0.0 else 1.0
