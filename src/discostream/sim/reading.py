"""What a steady reader makes of recorded streams, and of two that were joined.

A reader who takes a token every 1/r seconds is late with a token by the running maximum of how late tokens
came before it (`core/qoe.read_times`). So for a recording, everything a reader feels follows from one curve,
and for a stream that goes on elsewhere from two: who has a slack of s seconds when the second one begins
feels of its lateness only what exceeds s. Sums over tokens are differences of running sums; no request is
ever written out token by token, but for those whose readers notice their handoff.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.core.qoe import read_times
from discostream.traces.streams import Streams

__all__ = ["Reading"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

EXPANDED_TOKENS = 1 << 20
"""How many tokens are written out at a time: a few arrays of 8 MB."""

ROUNDING_S = 1e-9
"""Shorter waits are none: sums of floats differ by as much."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Recordings as they come, and as they are read from their first token on.

    Attributes:
        at_s: When tokens come, shape (recordings, tokens).
        tokens_per_s: r, the reader's pace.
    """

    at_s: Floats
    tokens_per_s: float

    @classmethod
    def of(cls, streams: Streams, tokens: int, tokens_per_s: float) -> Reading:
        """Answers of at most so many tokens."""
        return cls(streams.reaching(tokens).at_s, tokens_per_s)

    @cached_property
    def late_s(self) -> Floats:
        """How much later than at a steady pace each token is read; never falls; shape of `at_s`."""
        late_s = np.empty_like(self.at_s)
        for late, at_s in zip(late_s, self.at_s, strict=True):
            late[:] = read_times(at_s, self.tokens_per_s) - self._steady_s
        return late_s

    def late_sum_s(self, recording: Integers, tokens: Integers) -> Floats:
        """The sum of `late_s` over the first `tokens` of each recording."""
        return np.asarray(self._late_sums_s[recording, tokens])

    def done_s(self, recording: Integers, tokens: Integers) -> Floats:
        """When the first `tokens` of each, at least one, have been read."""
        return np.asarray(self.late_s[recording, tokens - 1] + tokens / self.tokens_per_s)

    def unread_before(self, recording: Integers, token: int) -> Floats:
        """What a reader still has when a token comes that is not the first; in tokens."""
        done_s = self.late_s[recording, token - 1] + token / self.tokens_per_s
        return np.asarray(np.maximum(done_s - self.at_s[recording, token], 0.0) * self.tokens_per_s)

    def come_by(self, recording: Integers, at_s: Floats) -> Integers:
        """How many tokens of each have come by these times."""
        return _reached(self.at_s, recording, at_s)

    def felt_sum_s(self, recording: Integers, tokens: Integers, slack_s: Floats) -> Floats:
        """How late the first `tokens` are read, summed, by a reader with that slack when the first comes.

        A negative slack is what the reader has waited by then.
        """
        unfelt = np.minimum(_reached(self.late_s, recording, slack_s), tokens)
        beyond_s = self.late_sum_s(recording, tokens) - self.late_sum_s(recording, unfelt)
        return np.asarray(beyond_s - slack_s * (tokens - unfelt))

    def delayed_tokens(self, recording: Integers, tokens: Integers, slack_s: Floats) -> Integers:
        """How many of the first `tokens` come later than a reader with that slack wants them."""
        delayed = np.zeros(recording.size, np.int64)
        for rows, counted in self._noticed(recording, tokens, slack_s):
            longest = counted.shape[1]
            late_s = self.at_s[recording[rows], :longest] - self._steady_s[:longest]
            delayed[rows] = ((late_s > slack_s[rows, None] + ROUNDING_S) & counted).sum(axis=1)
        return delayed

    def waits_s(self, recording: Integers, tokens: Integers, slack_s: Floats) -> Floats:
        """Every wait of readers with that slack, for one of the first `tokens`; in no order."""
        waits = [np.empty(0)]
        for rows, counted in self._noticed(recording, tokens, slack_s):
            felt_s = np.maximum(self.late_s[recording[rows], : counted.shape[1]] - slack_s[rows, None], 0.0)
            each_s = np.diff(felt_s, axis=1, prepend=0.0)
            waits.append(each_s[(each_s > ROUNDING_S) & counted])
        return np.concatenate(waits)

    def waits_from_start(self, recording: Integers, tokens: Integers) -> tuple[Floats, Integers]:
        """Every wait of readers of the first `tokens` of each: how long it is, and how often it occurs."""
        spans_s, times = [np.empty(0)], [np.empty(0, np.int64)]
        for row, ours in _by_row(recording):
            each_s = np.diff(self.late_s[row, : tokens[ours].max()])
            waiting = np.flatnonzero(each_s > ROUNDING_S)
            spans_s.append(each_s[waiting])
            times.append(ours.size - np.searchsorted(np.sort(tokens[ours]), waiting + 2))
        return np.concatenate(spans_s), np.concatenate(times)

    def _noticed(
        self, recording: Integers, tokens: Integers, slack_s: Floats
    ) -> Iterator[tuple[Integers, NDArray[np.bool_]]]:
        """The rows whose reader has to wait, some at a time, and which of their tokens count."""
        rows = np.flatnonzero(self.late_s[recording, tokens - 1] > slack_s)
        parts = 1 + rows.size * int(tokens.max(initial=1)) // EXPANDED_TOKENS
        for part in np.array_split(rows, parts):
            if part.size:
                yield part, np.arange(tokens[part].max()) < tokens[part, None]

    @cached_property
    def _steady_s(self) -> Floats:
        return np.arange(self.at_s.shape[1]) / self.tokens_per_s

    @cached_property
    def _late_sums_s(self) -> Floats:
        sums_s = np.zeros((len(self.at_s), self.at_s.shape[1] + 1))
        np.cumsum(self.late_s, axis=1, out=sums_s[:, 1:])
        return sums_s


def _reached(curves: Floats, row: Integers, value: Floats) -> Integers:
    """How many points of these rows of never falling `curves` are at or below a value each."""
    reached = np.empty(row.size, np.int64)
    for number, ours in _by_row(row):
        reached[ours] = np.searchsorted(curves[number], value[ours], side="right")
    return reached


def _by_row(row: Integers) -> Iterator[tuple[int, Integers]]:
    """Every number in `row`, and where it stands."""
    order = np.argsort(row, kind="stable")
    numbers, counts = np.unique(row, return_counts=True)
    yield from zip(numbers.tolist(), np.split(order, np.cumsum(counts)), strict=False)
