"""Seams: where a cut is allowed, and what is stripped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.core.pacing import Reader
from discostream.core.seam import EchoFilter, ends_sentence, may_cut
from discostream.types import Carrier


@pytest.mark.parametrize(
    ("written", "following", "by_text"),
    [
        ("It is", " raining", True),
        ("It is rain", "ing", False),
        ("It is ", "raining", False),
        ("It is ", " raining", False),
        ("done.", "\n\nNext", True),
        ("漢", "字", False),
    ],
)
def test_where_text_may_be_cut(written, following, by_text):
    """Text is cut only before a whitespace-led word, and never behind whitespace; IDs anywhere."""
    assert may_cut(written, following, Carrier.TEXT) is by_text
    assert may_cut(written, following, Carrier.TOKENS)


def test_nothing_is_cut_before_it_began():
    """An answer that nothing was delivered of cannot change hands."""
    assert not may_cut("", " word", Carrier.TOKENS)


@given(st.text(min_size=1, max_size=30), st.text(max_size=30), st.lists(st.integers(1, 5)))
def test_an_echo_is_stripped_however_it_arrives(prefix, rest, sizes):
    """Whether or not the target repeats the prefix, and however it is split, only news gets through."""
    for repeated in (prefix + rest, rest):
        if repeated == rest and (prefix.startswith(rest[: len(prefix)]) or rest.startswith(prefix)):
            continue
        echo, passed, text = EchoFilter(prefix), "", repeated
        for size in [*sizes, 100]:
            passed += echo.feed(text[:size]) if text[:size] else ""
            text = text[size:]
        assert passed == rest


def test_sentence_ends():
    """A full stop, even before closing quotes, could be the end; a comma is not."""
    assert ends_sentence('He said "yes."  ')
    assert ends_sentence("終わり。")
    assert not ends_sentence("and then,")


def test_reader_in_numbers():
    """A reader of 5 tokens/s with 10 delivered at 0 s has 5 unread at 1 s, and none from 2 s on."""
    reader = Reader(5.0).deliver(0.0, 10)
    assert reader.unread(1.0) == pytest.approx(5.0)
    assert reader.unread(2.0) == 0.0
    assert reader.deliver(3.0, 5).unread(3.0) == pytest.approx(5.0)
    assert Reader(5.0).unread(0.0) == 0.0
