"""How an answer's tokens follow its first one: recorded gaps are replayed, bursts and stalls included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Streams"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Streams:
    """Recordings of whole answers, for the tokens of others to come at the same times.

    Attributes:
        recordings: Seconds after the first token at which each came, shape (recordings, longest).
        lengths: How many tokens each recording has, shape (recordings,); what stands behind them is void.
        tokens: How long the answers are that are replayed.
    """

    recordings: Floats
    lengths: Integers
    tokens: int

    @classmethod
    def steady(cls, tokens_per_s: float) -> Streams:
        """One recording with a token every `1 / tokens_per_s` seconds.

        Raises:
            ValueError: The pace is not a number above zero.
        """
        return cls.paced([1.0 / tokens_per_s if tokens_per_s > 0 else np.nan])

    @classmethod
    def paced(cls, gaps_s: ArrayLike) -> Streams:
        """One recording for each mean gap (seconds), which it keeps throughout: all that is known of it.

        Raises:
            ValueError: There is no gap, or one is not a number above zero.
        """
        gaps = np.asarray(gaps_s, np.float64)
        if gaps.size == 0 or not np.all(np.isfinite(gaps) & (gaps > 0)):
            raise ValueError("streams need at least one gap, and gaps above zero only")
        return cls(np.stack((np.zeros(gaps.size), gaps), axis=1), np.full(gaps.size, 2), 2)

    @classmethod
    def recorded(cls, answers: Sequence[ArrayLike]) -> Streams:
        """The recordings of answers that took some time, replayed as long as the longest of them.

        Args:
            answers: For each, seconds after its first token at which every token came, starting at 0. Those
                that came at one instant say nothing of a pace and are left out.

        Raises:
            ValueError: No answer took time, or one does not start at 0, falls, or holds what is no number.
        """
        rows = [np.asarray(answer, np.float64) for answer in answers]
        if not all(row.size and row[0] == 0 and np.all(np.isfinite(row)) for row in rows):
            raise ValueError("a recording starts at 0 and holds finite numbers only")
        if any(np.any(np.diff(row) < 0) for row in rows):
            raise ValueError("a recording never falls")
        rows = [row for row in rows if row[-1] > 0]
        if not rows:
            raise ValueError("streams need at least one recording that took some time")
        lengths = np.array([row.size for row in rows])
        recordings = np.zeros((len(rows), lengths.max()))
        for recording, row in zip(recordings, rows, strict=True):
            recording[: row.size] = row
        return cls(recordings, lengths, int(lengths.max()))

    def reaching(self, tokens: int) -> Streams:
        """The same for answers of so many tokens: a longer recording is cut, a shorter one goes on.

        One that is over begins anew, a mean gap of its own after its last token.

        Raises:
            ValueError: An answer of no tokens.
        """
        if tokens < 1:
            raise ValueError("an answer has at least one token")
        return replace(self, tokens=tokens)

    @cached_property
    def at_s(self) -> Floats:
        """Seconds after the first token at which each came, shape (recordings, tokens).

        The first column is 0, and no row ever falls.
        """
        token, at_s = np.arange(self.tokens), np.empty((len(self.recordings), self.tokens))
        for recording, row in enumerate(at_s):
            row[:] = self.came_s(recording, token)
        return at_s

    def came_s(self, recording: int, token: ArrayLike) -> Floats:
        """When tokens of one recording come, seconds after its first, however long the answer is.

        Args:
            recording: Which one.
            token: Their places in the answer, counted from 0; the result has the same shape.
        """
        length = self.lengths[recording]
        rounds, of_round = np.divmod(token, length)
        anew_s = length * self.mean_gaps_s[recording]
        return np.asarray(self.recordings[recording, of_round] + rounds * anew_s)

    @cached_property
    def mean_gaps_s(self) -> Floats:
        """The mean gap between the tokens of each recording (seconds), shape (recordings,)."""
        spans_s = np.take_along_axis(self.recordings, self.lengths[:, None] - 1, axis=1)[:, 0]
        return np.asarray(spans_s / (self.lengths - 1))

    @property
    def tokens_per_s(self) -> float:
        """The median pace of the recordings after their first token."""
        return float(np.median(1.0 / self.mean_gaps_s))
