"""What an endpoint quotes of a prompt when it says what is wrong with it."""

from __future__ import annotations

import re

__all__ = ["without_quotes"]

QUOTED_CHARS = 16
"""As much of a prompt, from the start of a word on, is no coincidence."""

_WORD_STARTS = re.compile(r"(?<!\w)\w")


def without_quotes(said: str, prompt: str) -> str:
    """What was said, an ellipsis in place of whatever stands in the prompt, too."""
    kept, done = [], 0
    for word in _WORD_STARTS.finditer(said):
        at = word.start()
        if at >= done and said[at : at + QUOTED_CHARS] in prompt and len(said) - at >= QUOTED_CHARS:
            kept.append(said[done:at])
            done = _end_of_quote(said, at, prompt)
            kept.append("…")
    return "".join(kept) + said[done:]


def _end_of_quote(said: str, at: int, prompt: str) -> int:
    """Where the longest part that begins at `at` and stands in the prompt ends, by halving."""
    least, most = at + QUOTED_CHARS, len(said)
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if said[at:middle] in prompt else (least, middle - 1)
    return least
