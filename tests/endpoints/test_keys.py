"""Keys stay out of what we say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.endpoints.keys import api_key, redact
from discostream.errors import ConfigError

KEY = "sk-0123456789abcdef"


@given(st.text(max_size=20), st.integers(1, 60))
def test_no_part_of_a_key_survives_a_cut(before, kept):
    """However a message that quotes the key was shortened, at most three of its characters remain."""
    cut = f"{before}{KEY} and so on"[:kept]
    assert KEY[:4] not in redact(cut, KEY).removeprefix(before)
    assert KEY[:4] not in redact(f"{cut}…", KEY).removeprefix(before)


def test_text_without_a_key_is_left_alone():
    """Nothing changes where no key is configured, or none was quoted."""
    assert redact("plain", "") == "plain"
    assert redact("plain", KEY) == "plain"


def test_a_key_in_place_of_its_variables_name_is_not_echoed():
    """Somebody who writes the key itself into the settings is told so without repeating it."""
    with pytest.raises(ConfigError, match="not a key") as refused:
        api_key("cloud", KEY)
    assert KEY not in str(refused.value)


def test_whitespace_around_a_key_is_ignored(monkeypatch):
    """A trailing line end, as from a file, is no part of the key."""
    monkeypatch.setenv("A_KEY", f"{KEY}\r\n")
    assert api_key("cloud", "A_KEY") == KEY
