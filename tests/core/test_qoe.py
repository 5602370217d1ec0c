from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.core.qoe import (
    Gap,
    GapFigures,
    gap_figures,
    longest_gaps,
    qoe,
    read_times,
    stalls,
    tbt_as_read,
)

deliveries = st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60).map(np.cumsum)
paces = st.floats(0.5, 50.0)


def test_a_reader_takes_a_burst_one_token_at_a_time():
    """Four tokens at once, at two tokens a second, are read half a second apart."""
    assert read_times([1.0, 1.0, 1.0, 1.0], 2.0).tolist() == [1.0, 1.5, 2.0, 2.5]


def test_a_reader_waits_for_a_late_token_and_goes_on_from_it():
    """A gap shifts everything after it: nobody reads faster to catch up."""
    assert read_times([0.0, 0.25, 3.0, 3.0, 3.0], 2.0).tolist() == [0.0, 0.5, 3.0, 3.5, 4.0]


def test_unread_tokens_hide_a_gap():
    """A pause of a second goes unnoticed where two tokens were ahead of the reader."""
    delivered = [0.0, 0.0, 0.0, 1.0, 1.0]
    assert tbt_as_read(delivered, 2.0).tolist() == [0.5, 0.5, 0.5, 0.5]
    assert stalls(delivered, 2.0).size == 0


@given(deliveries, paces)
def test_read_times_follow_their_recurrence(delivered, pace):
    """The running maximum is the recurrence `read[i] = max(d[i], read[i-1] + 1/r)`."""
    expected = [delivered[0]]
    for arrival in delivered[1:]:
        expected.append(max(arrival, expected[-1] + 1.0 / pace))
    assert read_times(delivered, pace) == pytest.approx(np.array(expected))


def test_many_answers_are_read_at_once():
    """Tokens run along the last axis; each row has its own reader."""
    delivered = [[0.0, 0.0, 4.0], [1.0, 1.0, 1.0]]
    assert read_times(delivered, 1.0).tolist() == [[0.0, 1.0, 4.0], [1.0, 2.0, 3.0]]
    assert tbt_as_read(delivered, 1.0).tolist() == [[1.0, 3.0], [1.0, 1.0]]


def test_an_answer_without_tokens_is_read_at_once():
    """Nothing delivered gives no times, no gaps and no stalls."""
    assert read_times([], 4.8).shape == (0,)
    assert tbt_as_read([], 4.8).shape == (0,)
    assert stalls([], 4.8).shape == (0,)


def test_gap_figures_are_mean_p99_and_longest():
    """Of 100 gaps, 99 of 10 ms and one of 1 s: the 99th percentile lies 1 % up the last step."""
    times = np.cumsum([0.0, *[0.01] * 99, 1.0])
    figures = gap_figures(times)
    assert figures == GapFigures(pytest.approx(0.0199), pytest.approx(0.01 + 0.01 * 0.99), pytest.approx(1.0))


@pytest.mark.parametrize("times", [(), (0.3,)])
def test_fewer_than_two_tokens_have_no_gaps(times):
    """A figure that does not exist is None, never zero."""
    assert gap_figures(times) is None


def test_stalls_are_the_waits_beyond_the_readers_own_pace():
    """At one token a second, a token 4 s after the one before is a wait of 3 s; a shorter one is 0.5 s."""
    delivered = [0.0, 4.0, 4.0, 6.5]
    assert stalls(delivered, 1.0).tolist() == [3.0, 0.5]
    assert stalls(delivered, 1.0, longer_than_s=1.0).tolist() == [3.0]


def test_an_answer_that_is_always_there_in_time_has_a_qoe_of_one():
    """The first token at once and the rest no slower than they are read."""
    assert qoe([0.0, 0.1, 0.2], 5.0) == 1.0
    assert qoe([0.0], 5.0) == 1.0


def test_qoe_is_what_andes_says_it_is():
    """Two tokens, 1 s late each: read at 1 and 1.5 instead of 0 and 0.5, so 1 - 2/2.5."""
    assert qoe([1.0, 1.0], 2.0) == pytest.approx(1 - 2 / 2.5)
    assert qoe([0.0, 2.0], 1.0) == pytest.approx(1 - 1 / 2)


def test_qoe_counts_from_the_submission():
    """Moving an answer and its submission together changes nothing."""
    assert qoe([11.0, 11.0], 2.0, submitted_s=10.0) == pytest.approx(qoe([1.0, 1.0], 2.0))


def test_an_expected_wait_does_not_count_against_an_answer():
    """With 1 s taken for granted, an answer from 1 s on is perfect, and one from 0.2 s on no better."""
    assert qoe([1.0, 1.0], 2.0, expected_ttft_s=1.0) == 1.0
    assert qoe([0.2, 0.2], 2.0, expected_ttft_s=1.0) == 1.0
    assert qoe([2.0], 2.0, expected_ttft_s=1.0) == 0.5


@given(deliveries, paces, st.floats(0.0, 3.0))
def test_qoe_lies_between_zero_and_one(delivered, pace, expected_ttft_s):
    """No delivery is better than in time, and none worse than never."""
    assert -1e-9 <= qoe(delivered, pace, expected_ttft_s=expected_ttft_s) <= 1.0 + 1e-9


def test_no_tokens_have_no_qoe():
    """There is nothing to judge, and no number that would say so."""
    with pytest.raises(ValueError, match="without tokens"):
        qoe([], 4.8)


def test_the_longest_gaps_are_told_with_when_they_began():
    """Only what is longer than a quarter of a second, the longest first, and of equals the earlier first."""
    times = [0.5, 0.5, 0.75, 1.25, 2.25, 2.75, 2.75]
    assert longest_gaps(times) == (Gap(1.25, 1.0), Gap(0.75, 0.5), Gap(2.25, 0.5))
    assert longest_gaps([3.0]) == longest_gaps([]) == ()


def test_of_many_gaps_the_longest_eight_are_told():
    """An answer that stalls all the time does not fill the ledger."""
    gaps_s = [0.5 + n / 64 for n in range(20)]
    told = longest_gaps(np.cumsum([0.0, *gaps_s]))
    assert [gap.for_s for gap in told] == gaps_s[:-9:-1]
