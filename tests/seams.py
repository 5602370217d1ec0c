"""What must not show where two endpoints' texts meet: five defects, each a question to plain text.

A defect is something at the seam that the text does nowhere else. Double spaces in a table, dots inside
names, names like dateTime, and sentences that a small model says over and over are the writer's habits, and
no fault of the seam.

- double space: two or more spaces touch the seam, between two words of a line;
- missing space: two words that the seam glues together, or a word and the sentence or clause before it;
- split word: a single blank at the seam cuts a known word, and leaves a fragment that is none;
- repeated phrase: three or more words before the seam come again right after it, and then no more;
- lost newline: a list item, a heading or a fence of code goes on in the line of what stands before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

__all__ = ["DEFECTS", "defects", "words_of"]

PHRASE = 3
"""Words that make a phrase."""

LETTER = r"[^\W\d_]"
WORD = rf"{LETTER}+(?:['’]{LETTER}+)*"  # noqa: RUF001 - an apostrophe, as it is typeset
LAST_WORD, FIRST_WORD = re.compile(rf"{WORD}$"), re.compile(rf"['’]?{WORD}")  # noqa: RUF001 - as above
MARKER = re.compile(
    r"[ \t]*(?:(?P<bullet>[-*+•]|#{1,6})[ \t]+(?P<item>\S)|(?P<number>\d+)(?P<dot>[.)])[ \t]+\S)"
)


@dataclass(frozen=True)
class Seam:
    """Two texts that meet.

    Attributes:
        before: Everything up to the seam.
        after: Everything behind it.
        vocabulary: Words that are known to be some, in lower case.
    """

    before: str
    after: str
    vocabulary: Collection[str]

    @property
    def line(self) -> str:
        """The line that the seam is in, up to there."""
        return self.before.rpartition("\n")[2]

    @property
    def blanks(self) -> int:
        """How many spaces touch the seam."""
        left = len(self.before) - len(self.before.rstrip(" "))
        return left + len(self.after) - len(self.after.lstrip(" "))

    @cached_property
    def left(self) -> str:
        """The word that ends before the seam, spaces left out; empty if none does."""
        found = LAST_WORD.search(self.before.rstrip(" "))
        return found[0] if found else ""

    @cached_property
    def right(self) -> str:
        """The word, or the rest of one, that begins behind it, likewise."""
        found = FIRST_WORD.match(self.after.lstrip(" "))
        return found[0] if found else ""

    def knows(self, word: str) -> bool:
        """Whether something is a word: one of the vocabulary, or of the text away from the seam."""
        return word.lower() in self.vocabulary or word.lower() in self._elsewhere

    def does_elsewhere(self, pattern: str) -> bool:
        """Whether either text has this by itself."""
        return any(re.search(pattern, text, re.MULTILINE) for text in (self.before, self.after))

    @cached_property
    def _elsewhere(self) -> frozenset[str]:
        before, after = self.before.rstrip(" ").removesuffix(self.left), self.after.lstrip(" ")
        return words_of([before, after.removeprefix(self.right)])


def defects(text: str, at_char: int, vocabulary: Collection[str] = frozenset()) -> list[str]:
    """The names of the defects that show in a text at the seam before its character `at_char`.

    Args:
        text: An answer.
        at_char: How many of its characters stand before the seam.
        vocabulary: Words in lower case that are known, beside those that the text has away from the seam.
    """
    seam = Seam(text[:at_char], text[at_char:], vocabulary)
    return [name for name, shows in DEFECTS.items() if shows(seam)]


def words_of(texts: Iterable[str]) -> frozenset[str]:
    """All words in these texts, in lower case."""
    return frozenset(word.lower() for text in texts for word in re.findall(WORD, text))


def _has_double_space(seam: Seam) -> bool:
    indents = not seam.line.strip(" ")
    ends_line = seam.after.lstrip(" ")[:1] in ("", "\n")  # two spaces there are Markdown for a new line
    return seam.blanks >= 2 and not indents and not ends_line and not seam.does_elsewhere(r"\S {2,}\S")


def _misses_space(seam: Seam) -> bool:
    if seam.blanks or not seam.right:
        return False
    if seam.left[-1:].islower() and seam.right[0].isupper() and seam.does_elsewhere(r"[a-z][A-Z]"):
        return False  # a name like dateTime in a program
    if seam.left:
        return seam.knows(seam.left) and seam.knows(seam.right) and not seam.knows(seam.left + seam.right)
    mark = seam.before[-1:]
    if not re.search(rf"{LETTER}{{2}}[.,;:!?]$", seam.before) or (mark == "." and seam.right.islower()):
        return False  # a dot within a name, as in example.com
    return not seam.does_elsewhere(rf"{LETTER}{re.escape(mark)}{LETTER}")


def _splits_word(seam: Seam) -> bool:
    if seam.blanks != 1 or not seam.left or not seam.right:
        return False
    both_are_words = seam.knows(seam.left) and seam.knows(seam.right)
    return seam.knows(seam.left + seam.right) and not both_are_words


def _repeats_phrase(seam: Seam) -> bool:
    before, after = (re.findall(r"\w+", text.lower()) for text in (seam.before, seam.after))
    lengths = range(PHRASE, min(len(before), len(after)) + 1)
    return any(before[-n:] == after[:n] and not _goes_round(before, after, n) for n in lengths)


def _goes_round(before: list[str], after: list[str], length: int) -> bool:
    """Whether a phrase that comes twice is part of a longer series: ha ha ha, or a model that cannot stop."""
    phrase = after[:length]
    within = any(phrase[step:] == phrase[:-step] for step in range(1, length // 2 + 1))
    return within or phrase in (before[-2 * length : -length], after[length : 2 * length])


def _loses_newline(seam: Seam) -> bool:
    if not seam.line.strip():
        return False
    if seam.after.lstrip(" \t").startswith("```"):
        return "```" not in seam.line
    found = MARKER.match(seam.after)
    if found is None:
        return False
    if found["number"]:
        earlier = rf"^[ \t]*{int(found['number']) - 1}{re.escape(found['dot'])}[ \t]"
        return bool(re.search(earlier, seam.before, re.MULTILINE))
    bullet = re.escape(found["bullet"])
    is_dash = found["bullet"] == "-" and (found["item"].islower() or seam.does_elsewhere(r"\S - \S"))
    return not is_dash and bool(re.search(rf"^[ \t]*{bullet}[ \t]", seam.before, re.MULTILINE))


DEFECTS: Mapping[str, Callable[[Seam], bool]] = {
    "double space": _has_double_space,
    "missing space": _misses_space,
    "split word": _splits_word,
    "repeated phrase": _repeats_phrase,
    "lost newline": _loses_newline,
}
