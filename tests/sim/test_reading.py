"""What a reader makes of recordings: sums by curves are what token by token comes to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.core.pacing import Reader
from discostream.core.qoe import read_times
from discostream.sim.reading import Reading
from discostream.traces.streams import Streams

RATE = 5.0


def recordings(*gaps):
    return Reading.of(Streams.recorded([np.concatenate(([0.0], np.cumsum(each))) for each in gaps]), 12, RATE)


GAPS = st.lists(st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.5]), min_size=11, max_size=11).filter(any)


@given(GAPS, GAPS, st.integers(1, 12), st.integers(0, 1), st.floats(-3, 3))
def test_sums_over_tokens_are_sums_over_curves(first, second, tokens, row, slack_s):
    """Lateness, waits and delayed tokens equal those of a reader who takes one token after another."""
    reading = recordings(first, second)
    rows, count, slack = np.array([row]), np.array([tokens]), np.array([slack_s])
    at_s = reading.at_s[row, :tokens]
    steady_s = np.arange(tokens) / RATE
    alone_s = read_times(at_s, RATE)
    assert reading.late_sum_s(rows, count)[0] == pytest.approx((alone_s - steady_s).sum())
    # A reader who is busy, or has waited, until `slack` from the first token on.
    busy_s = np.maximum(alone_s, slack_s + steady_s)
    felt_s = busy_s - slack_s - steady_s
    assert reading.felt_sum_s(rows, count, slack)[0] == pytest.approx(felt_s.sum())
    waits_s = np.diff(np.concatenate(([0.0], felt_s)))
    assert sorted(reading.waits_s(rows, count, slack)) == pytest.approx(sorted(waits_s[waits_s > 1e-9]))
    wanted_s = slack_s + steady_s
    assert reading.delayed_tokens(rows, count, slack)[0] == (at_s > wanted_s + 1e-9).sum()


@given(GAPS, st.integers(1, 11))
def test_what_is_unread_is_what_the_live_reader_has(gaps, token):
    """Before a token comes, a reader has what `core/pacing.Reader` has who was given those before it."""
    reading, reader = recordings(gaps), Reader(RATE)
    for at in reading.at_s[0, :token]:
        reader = reader.deliver(float(at), 1)
    unread = reading.unread_before(np.array([0]), token)[0]
    assert unread == pytest.approx(reader.unread(float(reading.at_s[0, token])), abs=1e-9)
    assert reading.done_s(np.array([0]), np.array([token]))[0] == pytest.approx(reader.done_at)


def test_tokens_that_have_come_are_counted():
    """At any moment, those whose time has come; none before the first, all after the last."""
    reading = recordings([0.5] * 11, [1.0] * 11)
    rows = np.array([0, 0, 0, 1, 1])
    assert reading.come_by(rows, np.array([-1.0, 0.0, 1.2, 3.0, 1e6])).tolist() == [0, 1, 3, 4, 12]


def test_waits_from_the_start_are_counted_by_how_far_readers_come():
    """A wait before the fourth token occurs to those who read four tokens or more of that recording."""
    reading = recordings([0.1, 0.1, 2.0] + [0.1] * 8, [0.1] * 11)
    spans_s, times = reading.waits_from_start(np.array([0, 0, 0, 1]), np.array([3, 4, 9, 9]))
    assert spans_s == pytest.approx([2.2 - 3 / RATE])
    assert times.tolist() == [2]
