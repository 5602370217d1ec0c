"""Stop strings: what is passed on, what is held back, and where an answer ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.core.stops import StopFilter

ALPHABET = "ab\n🙂"
stops_of = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)
pieces_of = st.lists(st.text(ALPHABET, max_size=4), max_size=30)


@given(stops_of, pieces_of)
def test_an_answer_ends_before_its_first_stop_string(stops, pieces):
    """However the text is split, what stands before the first stop string to be whole gets through."""
    filtering, passed, whole = StopFilter(stops), "", ""
    for piece in pieces:
        passed += filtering.feed(piece)
        whole += piece
        if filtering.stopped:
            break
        assert len(whole) - len(passed) < max(map(len, stops), default=1)
        assert not any(stop in whole for stop in stops)
    passed += filtering.end()
    ends = [whole.find(stop) for stop in stops if stop in whole]
    assert passed == whole[: min(ends, default=len(whole))]
    assert filtering.stopped == bool(ends)


@pytest.mark.parametrize(
    ("stops", "pieces", "passed"),
    [
        (["END"], ["one E", "ND two"], ["one ", ""]),
        (["END"], ["one E", "xit"], ["one ", "Exit"]),
        (["\n\n"], ["a\n", "b\n", "\n"], ["a", "\nb", ""]),
        ([], ["a", "b"], ["a", "b"]),
        (["aab"], ["aa", "ab"], ["", "a"]),
    ],
)
def test_only_what_could_begin_a_stop_string_is_held(stops, pieces, passed):
    """Text waits for the next piece while it could be the beginning of a stop string, and no longer."""
    filtering = StopFilter(stops)
    assert [filtering.feed(piece) for piece in pieces] == passed


def test_nothing_comes_behind_a_stop_string():
    """Once stopped, always stopped."""
    filtering = StopFilter(["x"])
    assert filtering.feed("axb") == "a"
    assert filtering.feed("c") == filtering.end() == ""
