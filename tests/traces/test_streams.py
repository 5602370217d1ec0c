from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.traces.streams import Streams

gaps = st.lists(st.floats(0.0, 60.0), min_size=1, max_size=30).filter(lambda gaps: sum(gaps) > 1e-3)
answers = st.lists(gaps.map(lambda gaps: np.cumsum([0.0, *gaps])), min_size=1, max_size=5)


def test_a_steady_stream_is_a_line():
    """Token k of a stream of r tokens a second comes k / r seconds after the first."""
    at_s = Streams.steady(8.0).reaching(1000).at_s
    assert at_s.shape == (1, 1000)
    assert at_s[0] == pytest.approx(np.arange(1000) / 8.0, rel=1e-12)


def test_every_answer_keeps_its_own_pace():
    """Mean gaps of 0.1 and 0.4 s stay two recordings; their median pace is that of neither."""
    streams = Streams.paced([0.1, 0.4])
    assert streams.reaching(4).at_s == pytest.approx(np.array([[0.0, 0.1, 0.2, 0.3], [0.0, 0.4, 0.8, 1.2]]))
    assert streams.tokens_per_s == pytest.approx((10.0 + 2.5) / 2)


def test_bursts_and_stalls_are_replayed():
    """Three tokens at once and a silence of 2.5 s come again as they were, and in the next round too."""
    answer = [0.0, 0.0, 0.0, 2.5, 3.0]
    streams = Streams.recorded([answer])
    assert streams.at_s.tolist() == [answer]
    assert streams.reaching(10).at_s.tolist() == [[*answer, 3.75, 3.75, 3.75, 6.25, 6.75]]


def test_a_shorter_recording_goes_on_beside_a_longer_one():
    """A recording that is over begins anew, its own mean gap after its last token."""
    streams = Streams.recorded([[0.0, 1.0, 4.0], [0.0, 1.0, 2.0, 3.0, 9.0]])
    assert streams.at_s.tolist() == [[0.0, 1.0, 4.0, 6.0, 7.0], [0.0, 1.0, 2.0, 3.0, 9.0]]
    assert streams.mean_gaps_s.tolist() == [2.0, 2.25]


@given(answers, st.integers(1, 200))
def test_any_recordings_reach_any_length(rows, tokens):
    """Rows start at 0 and never fall, begin as recorded, and take as long as their mean gaps say."""
    streams = Streams.recorded(rows).reaching(tokens)
    assert streams.at_s.shape == (len(rows), tokens)
    assert np.all(streams.at_s[:, 0] == 0.0)
    assert np.all(np.diff(streams.at_s, axis=1) >= -1e-9)
    for at_s, row, gap_s in zip(streams.at_s, rows, streams.mean_gaps_s, strict=True):
        assert np.array_equal(at_s[: row.size], row[:tokens])
        rounds = np.arange(0, tokens, row.size)
        assert at_s[rounds] == pytest.approx(rounds * gap_s)


def test_one_token_can_be_asked_for():
    """Token 7 of a recording of three is the second of its third round, 6 s each."""
    streams = Streams.recorded([[0.0, 1.0, 4.0], [0.0, 1.0, 2.0, 3.0, 9.0]])
    assert streams.came_s(0, 7) == 2 * (4.0 + 2.0) + 1.0
    assert streams.came_s(1, [[4, 5], [0, 1]]).tolist() == [[9.0, 11.25], [0.0, 1.0]]


@given(answers, st.integers(1, 100), st.integers(1, 100))
def test_cutting_forgets_nothing(rows, tokens, more):
    """A recording that was cut short and is then wanted longer is the same as if it had never been cut."""
    streams = Streams.recorded(rows)
    assert np.array_equal(streams.reaching(tokens).reaching(more).at_s, streams.reaching(more).at_s)


def test_an_answer_at_one_instant_says_nothing_of_a_pace():
    """Answers of one token, or of several at once, are left out."""
    streams = Streams.recorded([[0.0], [0.0, 0.0, 0.0], [0.0, 0.5]])
    assert streams.lengths.tolist() == [2]
    assert streams.tokens_per_s == 2.0


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "at least one recording that took some time"),
        ([[0.0, 0.0]], "at least one recording that took some time"),
        ([[]], "starts at 0"),
        ([[0.5, 1.0]], "starts at 0"),
        ([[0.0, np.nan]], "finite numbers"),
        ([[0.0, np.inf]], "finite numbers"),
        ([[0.0, 2.0, 1.0]], "never falls"),
    ],
)
def test_impossible_recordings_are_refused(answers, message):
    """Nothing is made of recordings that cannot have been."""
    with pytest.raises(ValueError, match=message):
        Streams.recorded(answers)


@pytest.mark.parametrize("pace", [0.0, -1.0, np.nan, np.inf])
def test_impossible_paces_are_refused(pace):
    """A pace is a number above zero."""
    with pytest.raises(ValueError, match="above zero"):
        Streams.steady(pace)


def test_no_answer_has_no_tokens():
    """An answer is at least one token long."""
    with pytest.raises(ValueError, match="at least one token"):
        Streams.steady(1.0).reaching(0)
