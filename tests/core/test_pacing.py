"""Pacing: what a reader has left, how regular a stream is, and when words are passed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.core.pacing import LEAST_SILENCE_S, PATIENCE, Pulse, Reader, release_in_s, words_of


def test_reader_in_numbers():
    """A reader of 5 tokens/s with 10 delivered at 0 s has 5 unread at 1 s, and none from 2 s on."""
    reader = Reader(5.0).deliver(0.0, 10)
    assert reader.unread(1.0) == pytest.approx(5.0)
    assert reader.unread(2.0) == 0.0


def test_a_stream_is_silent_after_thrice_its_longest_gap():
    """A stream that has come back from 0.8 s of silence is given 2.4 s; a steady one the least."""
    pulse = Pulse(0.0).beat(0.1).beat(0.9)
    assert pulse.silent_at == pytest.approx(0.9 + PATIENCE * 0.8)
    assert Pulse(0.0).beat(0.05).silent_at == pytest.approx(0.05 + LEAST_SILENCE_S)


def test_time_that_nobody_listened_is_no_silence():
    """While a slow client keeps us from listening, the stream is not to blame."""
    pulse = Pulse(0.0).beat(0.1).resume(5.0)
    assert pulse.silent_at == 5.0 + LEAST_SILENCE_S
    assert pulse.beat(5.2).longest_gap_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("due_in_s", "most_s", "waits_s"),
    [([1.0], 0.2, 0.2), ([1.0] * 10, 0.2, 0.1), ([0.3, 1.0], 0.5, 0.3), ([-0.1, 1.0], 0.2, 0.0)],
    ids=["reader's pace", "backlog", "first is due", "too late already"],
)
def test_words_leave_at_the_slowest_pace_that_is_in_time(due_in_s, most_s, waits_s):
    """The reader's pace, unless a word would be late at it; then the even pace at which none is."""
    assert release_in_s(due_in_s, most_s) == pytest.approx(waits_s)


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=30).map(sorted), st.floats(0.01, 1.0))
def test_no_word_is_late(due_in_s, most_s):
    """If words leave one after the other at the pace that is chosen anew each time, all are in time."""
    now_s = 0.0
    for place, due_s in enumerate(due_in_s):
        now_s += release_in_s([due - now_s for due in due_in_s[place:]], most_s)
        assert now_s <= due_s + 1e-9


@given(st.text(" ab漢\n", max_size=40), st.integers(1, 40))
def test_words_add_up(text, tokens):
    """A piece's words are its text and its tokens, each with the whitespace before it."""
    words = list(words_of(text, tokens))
    assert "".join(word for word, _ in words) == text
    assert sum(share for _, share in words) == (tokens if text else 0)
    assert all(word.strip() for word, _ in words) or not text.strip()
