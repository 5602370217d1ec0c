"""Defects at a seam: what is told as one, and what is a writer's own habit."""

from __future__ import annotations

import pytest
from seams import defects, words_of

WORDS = words_of(["The keepers lit the lighthouse lamp at dusk and don't forget the oil."])
LIST = "We need:\n- Eggs\n- Milk"


def told(marked: str, vocabulary: frozenset[str] = WORDS) -> list[str]:
    """The defects of a text whose seam is marked."""
    before, _, after = marked.partition("‖")
    return defects(before + after, len(before), vocabulary)


@pytest.mark.parametrize(
    ("marked", "defect"),
    [
        ("The keepers ‖ lit the lamp.", "double space"),
        ("The keepers‖  lit the lamp.", "double space"),
        ("The keepers  ‖lit the lamp.", "double space"),
        ("The keep‖  ers lit the lamp.", "double space"),
        ("The keepers‖lit the lamp.", "missing space"),
        ("They lit the lamp‖The keepers slept.", "missing space"),
        ("They lit the lamp.‖The keepers slept.", "missing space"),
        ("They lit the lamp,‖and slept.", "missing space"),
        ("Is it dusk?‖The keepers slept.", "missing space"),
        ("The keep‖ ers lit the lamp.", "split word"),
        ("The light ‖house is old.", "split word"),
        ("They don‖ 't forget.", "split word"),
        ("At dusk the keepers lit the lamp‖ the keepers lit the lamp and slept.", "repeated phrase"),
        ("They lit the lamp‖ lit the lamp and slept.", "repeated phrase"),
        ("So they wrote it down.‖ They wrote it down. Then they slept.", "repeated phrase"),
        ("We need:\n* Eggs\n* Milk‖ * Oil", "lost newline"),
        (f"{LIST}‖ - Oil", "lost newline"),
        (f"{LIST}‖- Oil", "lost newline"),
        ("Do this:\n1. Trim the lamp.‖ 2. Light it.", "lost newline"),
        ("## Dusk\nThey lit it.‖ ## Dawn\nThey slept.", "lost newline"),
        ("It prints the hour:‖```python\nprint(4)\n```", "lost newline"),
    ],
)
def test_each_defect_is_told(marked, defect):
    """Every defect is told by its name, and nothing else is told of the same seam."""
    assert told(marked) == [defect]


@pytest.mark.parametrize(
    "marked",
    [
        "",
        "‖The keepers slept.",
        "The keepers slept.‖",
        "The keepers‖ lit the lamp.",
        "The light‖house is old.",
        "The lighthouse‖ keepers slept.",
        "They lit the lamp and‖ don't forget it.",
        "They don‖'t forget the lamp.",
        "Some‖ thing moved.",
        "A light, a house, a lighthouse: the light‖ house is old.",
        "A light, a house, a lighthouse: the light‖house is old.",
        "The lamp‖, the oil and the book.",
        "See example.‖com for more.",
        "function light‖House(lampOil) { return house(light); }",
        "At 4.‖5 metres it is dark.",
        "In the Node.Js and Vue.‖Js tools there is a lamp.",
        "A,b,c are letters,‖d too.",
        "He laughed: ha ha ha‖ ha ha ha, and slept.",
        "I cannot say. I cannot say.‖ I cannot say. I cannot say.",
        "I cannot say.‖ I cannot say. I cannot say. I cannot say.",
        "The lamp‖ the lamp and then the oil.",
        "def lit():\n    ‖    return True",
        "def lit():\n‖        return True",
        "One sentence.  Another.‖ A third.",
        "One sentence.  Another.‖  A third.",
        "A line of Markdown ‖  \nand the next one.",
        "| hour | what |\n|---|---|\n| six ‖| lamp |",
        f"{LIST}‖\n- Oil",
        f"{LIST}\n‖- Oil",
        f"{LIST}\n  ‖  - Oil",
        f"{LIST}‖ - two litres of it",
        "A lamp‖ - the big one - is lit.",
        "- Paris - The capital\n- Rome‖ - The other one",
        "It was built in 1871.‖ 2. is no year.",
        "Write it as `lamp`‖ and `oil`.",
        "Use ```lamp```‖``` or so.",
        "They lit it.\n\n‖## Dawn\nThey slept.",
        "The C‖ # language.",
    ],
)
def test_clean_seams_are_left_alone(marked):
    """Nothing is told of what a writer does without any seam: code, lists, tables, names and refrains."""
    assert told(marked) == []


def test_words_of_the_text_itself_are_known():
    """Without a vocabulary, a fragment is told by the whole word elsewhere in the text."""
    assert told("Keepers are few. The keep‖ ers slept.", frozenset()) == ["split word"]
    assert told("The keep‖ ers slept.", frozenset()) == []
