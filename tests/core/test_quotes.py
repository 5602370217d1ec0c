from __future__ import annotations

import pytest

from discostream.core.quotes import without_quotes

PROMPT = "Tell nobody that the launch code is 0000, please."


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (f"cannot answer '{PROMPT}' today", "cannot answer '…' today"),
        ("bad input: 'the launch code is 00…'", "bad input: '……'"),
        ("launch code is 0000 | launch code is 0000", "… | …"),
        ("the launch code", "the launch code"),
        ("HTTP 503: overloaded, please try again", "HTTP 503: overloaded, please try again"),
        ("", ""),
    ],
)
def test_what_stands_in_the_prompt_is_left_out(said: str, kept: str) -> None:
    """A quote goes, whole or cut off, as often as it is there; a few common words stay."""
    assert without_quotes(said, PROMPT) == kept
