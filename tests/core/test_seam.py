"""Seams: where a cut is allowed, what is stripped, and what proves that a target goes on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.core.seam import (
    EchoFilter,
    NoContinuation,
    Proof,
    cut_back,
    ends_sentence,
    may_cut,
    opens_thought,
    reasoning_is_open,
    rejoined,
)
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
        ("漢字。", "漢", True),
    ],
)
def test_where_text_may_be_cut(written, following, by_text):
    """Text is cut before a spaced word or behind a wide mark, never behind whitespace; IDs anywhere."""
    assert may_cut(written, following, Carrier.TEXT) is by_text
    assert may_cut(written, following, Carrier.TOKENS)


def test_nothing_is_cut_before_it_began():
    """An answer that nothing was delivered of cannot change hands."""
    assert not may_cut("", " word", Carrier.TOKENS)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("The quick bro", "The quick"),
        ("The quick ", "The quick"),
        ("The quick\r\n\r\n", "The quick"),
        ("One line.\n\nTw", "One line."),
        ("It is over.", "It is over."),
        ("Well,", "Well,"),
        ("Word", "Word"),
        ("漢字漢字", "漢字漢字"),
        ("one " + "x" * 40, "one " + "x" * 40),
        (" led", " led"),
    ],
)
def test_a_broken_answer_is_cut_back_to_a_safe_place(written, kept):
    """Before the last word, behind no whitespace; where a mark ends the word, or there is none, nowhere."""
    assert cut_back(written) == kept


@given(st.text("ab é漢\n", max_size=60))
def test_cutting_back_never_invents_anything(written):
    """What is kept is a beginning of the answer, and whitespace ends it only if it is all there is."""
    kept = cut_back(written)
    assert written.startswith(kept)
    assert not kept[-1:].isspace() or kept == written
    assert bool(kept) == bool(written)


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


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("<think>Let me see", True),
        ("\n<think>Let me see</think>\n\nIt", False),
        ("Write <think> to", False),
        ("", False),
    ],
)
def test_reasoning_is_seen(text, is_open):
    """An answer that began by thinking aloud is not handed over before it has ended that."""
    assert reasoning_is_open(text) is is_open


def test_reasoning_that_the_prompt_opened_is_seen():
    """Where the prompt ends in an open thought, the answer is one from its first word on."""
    assert opens_thought("<|im_start|>assistant\n<think>\n")
    assert not opens_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert reasoning_is_open("", opened=True)
    assert reasoning_is_open("Let me see", opened=True)
    assert not reasoning_is_open("Let me see</think>\n\nIt", opened=True)


THINKING_PROMPT = "Why?<|assistant|>\n<think>\n"


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (THINKING_PROMPT, "", THINKING_PROMPT),
        ("Why?<|assistant|>\n", "It is", "Why?<|assistant|>\n"),
        (THINKING_PROMPT, "It is", "Why?<|assistant|>\n<think>\n\n</think>\n\n"),
        (THINKING_PROMPT, "Let me see</think>\n\nIt is", THINKING_PROMPT),
        (THINKING_PROMPT, "\n<think>Let me see</think>\n\nIt is", "Why?<|assistant|>\n"),
    ],
    ids=["a fresh start", "no thought", "an answer without one", "the same model's", "a thought of its own"],
)
def test_an_answer_never_goes_on_inside_a_thought(prompt, answer, expected):
    """Behind a prompt that opens a thought an answer finds it closed, its own going on, or none."""
    assert rejoined(prompt, answer) == expected


SENT = "The keepers lit the lamp at dusk and wrote down"


def heard(proof: Proof, said: str, size: int = 1) -> str:
    """What gets through when this is said in pieces of so many characters, and then nothing more."""
    passed = "".join(proof.feed(said[at : at + size]) for at in range(0, len(said), size))
    return passed + proof.end()


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("said", "passed"),
    [
        (" the weather.", " the weather."),
        (", slowly, the weather.", ", slowly, the weather."),
        (SENT + " the weather.", " the weather."),
        (" at dusk and wrote down the weather.", " the weather."),
        ("at dusk and wrote down, slowly.", ", slowly."),
        (" wrote down wrote down.", " wrote down wrote down."),
        (" at dusk and wrote downwards.", " at dusk and wrote downwards."),
        (" The", " The"),
        ("<th>the weather", "<th>the weather"),
        (" <", " <"),
        ("\n\nThe", "\n\nThe"),
        ("\n\n" + SENT + " the weather.", " the weather."),
    ],
    ids=[
        "plain",
        "mark",
        "echo",
        "repeated",
        "trimmed",
        "two words",
        "half a word",
        "name",
        "another tag",
        "no tag",
        "paragraph",
        "echo below",
    ],
)
def test_what_goes_on_gets_through(said, passed, size):
    """An echo of the answer and a repetition of its last words are stripped, and nothing else."""
    assert heard(Proof(SENT), said, size) == passed


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("The keepers lit the fire instead", "began the answer anew"),
        ("\n\nThe keepers lit the fire instead", "began the answer anew"),
        ("Sure! Here is the rest", "left out the space"),
        ("the weather", "left out the space"),
        ("\n<think>Okay, so", "began to think aloud"),
    ],
)
def test_what_does_not_go_on_is_told(said, why, size):
    """A target that begins anew, introduces itself or glues its first word on is no continuation."""
    with pytest.raises(NoContinuation, match=why):
        heard(Proof(SENT, following=" the"), said, size)


REPETITIVE = {
    "list": "- to be done today\n- to be done today\n- to be done tomorrow, or on the day after that.",
    "table": "| a | b |\n| yes | yes | no |\n| yes | yes | no |\n| yes | no | no | no |\n\nThat is all.",
    "code": "x = foo(a, b, c)\nx = foo(a, b, c)\nx = foo(a, b, c)\ny = bar(a, b, c)\nprint(x, y, x, y)",
    "laughter": "She laughed: ha ha ha ha ha ha ha ha ha ha, and then she said nothing for a while.",
}


@pytest.mark.parametrize("text", REPETITIVE.values(), ids=REPETITIVE)
def test_what_repeats_itself_may_go_on_doing_so(text):
    """Wherever such a text is cut, all of what the source goes on to say, too, gets through."""
    words = re.findall(r"\s*\S+", text)
    for at in range(1, len(words) - 1):
        sent, rest = "".join(words[:at]), words[at:]
        proof = Proof(sent, following=rest[0])
        proof.follow("".join(rest[1:6]))
        assert heard(proof, "".join(rest), size=1) == "".join(rest)


def test_what_was_said_twice_may_be_said_again():
    """A rescuer may say once more what the answer has said more than once; the source cannot be asked."""
    refrain = "We will rock you\nWe will rock you"
    assert heard(Proof(refrain), "\nWe will rock you, sing it") == "\nWe will rock you, sing it"


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize(
    ("overlap", "said", "passed"),
    [
        (" the wea", " the weather.", "ther."),
        (" wea", "weather.", "ther."),
        (" ", " the", "the"),
        (" ", "the", "the"),
        ("\n\n", "\n\nNext", "Next"),
        (" 日本", " 日本語", "語"),
    ],
)
def test_the_last_word_is_said_again_and_stripped(overlap, said, passed, size):
    """What was delivered beyond the cut comes once more, with or without its space, and is not delivered."""
    assert heard(Proof(SENT, overlap), said, size) == passed


@pytest.mark.parametrize(("overlap", "said"), [(" wea", " rain"), (" wea", " we"), ("\n\n", " next")])
def test_another_word_is_no_continuation(overlap, said):
    """A target that says something else in place of what was delivered is not believed."""
    with pytest.raises(NoContinuation, match="last word"):
        heard(Proof(SENT, overlap), said)


def test_a_space_is_not_doubled():
    """Behind a space that was delivered, the space before the next word is left out."""
    assert heard(Proof("wrote down "), " the weather") == "the weather"


def test_a_plain_continuation_is_not_kept_waiting():
    """The first token that fits nothing suspicious is delivered at once."""
    assert Proof(SENT).feed(" rain") == " rain"
    assert Proof("Yes").feed(".") == "."


def test_blanks_wait_for_what_follows_them():
    """A new line alone proves nothing, and gets through with the first word; at the end it is left out."""
    proof = Proof(SENT)
    assert [proof.feed("\n"), proof.feed("\nNext")] == ["", "\n\nNext"]
    assert heard(Proof(SENT), " \n") == ""


@pytest.mark.parametrize("sent", ["# Yes", "(a)", "👩\u200d👩\u200d👧a", "Yes"])
def test_a_short_echo_is_told_by_what_the_source_said_next(sent):
    """However short the answer is: all of it once more is an echo, unless the source began with that, too."""
    assert heard(Proof(sent, following="\n\nIt"), sent + "\n\nIt is.") == "\n\nIt is."
    assert heard(Proof(sent, following=f" {sent}"), f" {sent} again") == f" {sent} again"
    assert heard(Proof("The", following=" cat"), " Theory") == " Theory"
    assert heard(Proof("#", following="\n"), "\n# Two") == "\n# Two"


def test_an_echo_that_begins_as_the_source_went_on_is_one():
    """That the source's next word is the answer's first says little: an echo is told by what it says then."""
    sent = "End of the first, end of the second,"
    echoing = Proof(sent, following=" End")
    echoing.follow(" of the third")
    assert heard(echoing, f" {sent} End of the third.", size=4) == " End of the third."
    assert heard(Proof(sent, following=" End"), " Ends meet.", size=4) == " Ends meet."


def test_a_refrain_that_the_source_began_as_well_goes_on():
    """Where the source has said more of a repetition than an echo's length, the target's is no echo."""
    sent = "Row, row, row your boat,"
    singing = Proof(sent, following=" Row,")
    singing.follow(" row, row your")
    assert heard(singing, f" {sent} again", size=4) == f" {sent} again"


def test_a_refrain_without_the_space_before_it_is_an_echo():
    """Who begins with the answer's first letter, and not as the source went on, has begun the answer anew."""
    sent = "Row, row, row your boat,"
    echoing = Proof(sent, following=" Row,")
    echoing.follow(" row, row your")
    assert heard(echoing, f"{sent} gently", size=4) == " gently"


def test_agreeing_is_told_from_silence():
    """A target that says the end of the answer again and stops has agreed; one that says nothing has not."""
    proof = Proof(SENT, " the wea")
    assert heard(proof, " the wea") == ""
    assert proof.agreed
    assert not Proof(SENT).agreed


@pytest.mark.parametrize(("sent", "said"), [("Name,Age,", "City"), ("the U.", "S."), ("std::", "Vector")])
def test_a_capital_behind_a_mark_goes_on(sent, said):
    """In tables, abbreviations and programs a capital may follow a mark without a space."""
    assert Proof(sent).feed(said) == said


def test_a_capital_in_the_middle_of_a_word_does_not():
    """A target that introduces itself where a word was cut is no continuation."""
    with pytest.raises(NoContinuation, match="middle of a word"):
        Proof("wrote down the wea").feed("Sure!")
