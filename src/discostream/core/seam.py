"""Where two endpoints' texts may be joined, and what must not show there.

The problem: a target that goes on by text tokenises anew, and may be a chat that does not really go on. It
may repeat the answer so far, or its last words; begin it anew; drop the space before its first word. None of
that may reach the reader, and none of it can be seen in a single token, so a target's first words are held
until they are proof (`Proof`); what the source says meanwhile is kept. By token IDs it goes on exactly.
"""

from __future__ import annotations

from discostream.types import Carrier

__all__ = [
    "ECHO_CHARS",
    "EchoFilter",
    "NoContinuation",
    "Proof",
    "cut_back",
    "ends_sentence",
    "may_cut",
    "opens_thought",
    "reasoning_is_open",
    "rejoined",
]

SENTENCE_ENDS = tuple(".!?:;…。！？`\"'”’)]}")  # noqa: RUF001 - full-width marks end sentences too
WIDE_MARKS = tuple("。！？；，、：")  # noqa: RUF001 - behind which scripts without spaces may be cut

THOUGHT, THOUGHT_END = "<think>", "</think>"
"""Between them a model thinks aloud."""

LONGEST_OVERLAP = 32
"""Characters that a rescuer is asked to say once more at the most; most words are far shorter."""

ECHO_CHARS = 12
"""A shorter answer may well begin with the same characters twice, unless the source said something else."""

RESTART_WORDS = 3
"""So many words of the answer's beginning, followed by others, are the answer begun anew."""

REPEAT_WORDS = 3
"""So many of the last words, said once more, are a repetition and no figure of speech."""

REPEAT_WINDOW = 160
"""Characters of the answer's end in which the beginning of a repetition is looked for."""


def may_cut(written: str, following: str, by: Carrier) -> bool:
    """Whether an answer may change hands between `written` and the source's next text.

    Token IDs can be cut between any two pieces, because a piece holds whole characters. Text is
    tokenised anew by the target, so it is cut only before a whitespace-led word, or behind the mark that ends
    a clause in a script without spaces, and never behind whitespace: tokenisers keep a space with the word
    that follows, and several servers trim it.
    """
    if not written:
        return False
    if by is Carrier.TOKENS:
        return True
    return not written[-1].isspace() and (following[:1].isspace() or written.endswith(WIDE_MARKS))


def cut_back(written: str) -> str:
    """The longest beginning behind which the answer may be cut, when it broke off just anywhere.

    All of it where its last word is over, because a mark ends it, or where no such place is near its end.
    """
    if not (written[-1:].isspace() or written[-1:].isalnum()):
        return written
    for at in range(len(written) - 1, max(len(written) - LONGEST_OVERLAP, 1) - 1, -1):
        if written[at].isspace() and not written[at - 1].isspace():
            return written[:at]
    return written


def ends_sentence(text: str) -> bool:
    """Whether an answer could well be over here."""
    return text.rstrip().endswith(SENTENCE_ENDS)


def reasoning_is_open(text: str, *, opened: bool = False) -> bool:
    """Whether a model that began by thinking aloud still does; such text means little to another.

    Args:
        text: The answer so far.
        opened: Whether its prompt had opened the thought.
    """
    return (opened or text[:16].lstrip().startswith(THOUGHT)) and THOUGHT_END not in text


def opens_thought(prompt: str) -> bool:
    """Whether a prompt as the model reads it has the answer begin inside a thought."""
    return prompt.rstrip().endswith(THOUGHT)


def rejoined(prompt: str, answer: str) -> str:
    """The prompt as the model reads it, for an answer to stand behind it that exists in part.

    Where the prompt opens a thought, the answer goes on in it only if it holds the end of one. Another brings
    the beginning of its own, or came from a model that had none in mind: then the thought stays empty.
    """
    if not answer or not opens_thought(prompt):
        return prompt
    if answer.lstrip().startswith(THOUGHT):
        return prompt.rstrip().removesuffix(THOUGHT)
    return prompt if THOUGHT_END in answer else f"{prompt.rstrip()}\n\n{THOUGHT_END}\n\n"


class EchoFilter:
    """Strips a prefix that a target repeats although it was asked only to go on.

    Text is held while it could still be the beginning of the prefix, and released at the first
    character that differs.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._held = ""
        self._open = not prefix

    def feed(self, text: str) -> str:
        """What may be passed on, now that `text` has come from the target."""
        if self._open:
            return text
        self._held += text
        if self._prefix.startswith(self._held) and self._held != self._prefix:
            return ""
        self._open = True
        return self._held.removeprefix(self._prefix)

    def end(self) -> str:
        """What is still held when the target has ended: it was no echo, for an echo would have gone on."""
        return "" if self._open else self._held


class NoContinuation(ValueError):  # noqa: N818 - says what was found
    """What a target said is no continuation of the answer."""


class Proof:
    """Holds the first words of a target that goes on by text until they prove that it does.

    Args:
        sent: The answer as it was sent to the target; never empty.
        overlap: What was delivered beyond that, and must be said once more before anything new.
        following: What the source would have said next, where that is known.

    Attributes:
        given: Whether the proof was given; from then on everything may be delivered.
        agreed: Whether it has said again what it had to.
    """

    def __init__(self, sent: str, overlap: str = "", following: str = "") -> None:
        self._sent = sent
        self._overlap = overlap
        self._following = following
        self._source_said = following
        self._said = ""
        self.given = False
        self.agreed = False

    def follow(self, text: str) -> None:
        """Take note of more that the source has said meanwhile."""
        self._source_said += text

    def feed(self, text: str) -> str:
        """What may be delivered now that the target has said `text`; nothing while that is not known.

        Raises:
            NoContinuation: It goes on with something else.
        """
        if self.given:
            return text
        self._said += text
        return self._judged(over=False)

    def end(self) -> str:
        """What may be delivered of what is still held, when the target has ended the answer.

        Raises:
            NoContinuation: It has not said again what it should have.
        """
        return "" if self.given else self._judged(over=True)

    def _judged(self, *, over: bool) -> str:
        if self._next_word and self._agrees_with_source():
            self.given = True
            return self._said
        news = self._behind_echo(over=over)
        news = None if news is None else self._behind_overlap(news, over=over)
        news = None if news is None else self._behind_repetition(news, over=over)
        if not news or news.isspace():
            return ""  # blanks alone are no proof: whoever has nothing to say may begin with a new line
        self.given = True
        return self._joined(news)

    def _agrees_with_source(self) -> bool:
        """Whether the target goes on as the source itself did, be it with a repetition.

        Where that may be an echo, their first letters are not enough: many an answer comes back to its first
        word.
        """
        if not self._said.startswith(self._next_word):
            return False
        sent, head = self._sent.lstrip(), self._said.lstrip()
        if not (sent.startswith(head) or head.startswith(sent)):
            return True
        return len(_beginning(self._source_said.lstrip(), head)) >= min(len(sent), ECHO_CHARS)

    @property
    def _next_word(self) -> str:
        """What the source said next, where that began a word; blanks alone say nothing of what follows."""
        word = self._following
        return word if word[:1].isspace() and not word.isspace() else ""

    def _behind_echo(self, *, over: bool) -> str | None:
        """What comes behind the answer so far, if that is what the target begins with."""
        sent, head = self._sent.lstrip(), self._said.lstrip()
        if head.startswith(THOUGHT):
            raise NoContinuation("began to think aloud")
        if head and THOUGHT.startswith(head) and not over:
            return None
        if len(sent) >= ECHO_CHARS or self._next_word:
            news = head.removeprefix(sent)
            if head.startswith(sent) and not (self._next_word and news[:1].isalnum()):
                return news
            if sent.startswith(head) and not over:
                return None
        common = _beginning(sent, head)
        if len(common.split()) > RESTART_WORDS and _is_there_once(common, sent):
            raise NoContinuation("began the answer anew")
        return self._said

    def _behind_overlap(self, said: str, *, over: bool) -> str | None:
        """What comes behind the words that were to be said again, with or without the space before them."""
        for overlap in (self._overlap, self._overlap if said[:1].isspace() else self._overlap.lstrip()):
            if said.startswith(overlap):
                self.agreed = bool(overlap.strip())
                return said.removeprefix(overlap)
            if overlap.startswith(said) and not over:
                return None
        raise NoContinuation("did not say the last word again")

    def _behind_repetition(self, said: str, *, over: bool) -> str | None:
        """What comes behind the answer's last words, if that is what the target begins with."""
        answer = self._sent + self._overlap
        tail, head = answer[-REPEAT_WINDOW:], said.lstrip()
        for at in range(len(tail)):
            repeated = tail[at:]
            if (at and tail[at - 1].isalnum()) or not tail[at].isalnum() or not _is_telling(repeated):
                continue
            if not _is_there_once(repeated, answer):
                continue
            if repeated.startswith(head) and not over:
                return None
            if head.startswith(repeated) and not head[len(repeated) :][:1].isalnum():
                return head.removeprefix(repeated)
        return said

    def _joined(self, news: str) -> str:
        """The first words as they must stand behind the answer, with one space between."""
        if not self._overlap and news[0].isalnum() and self._following[:1].isspace():
            raise NoContinuation("left out the space before its first word")
        if not self._overlap and news[0].isupper() and self._sent[-1].islower():
            raise NoContinuation("began a sentence in the middle of a word")
        return news.removeprefix(" ") if self._sent.endswith(" ") and not self._overlap else news


def _beginning(one: str, other: str) -> str:
    """What two texts have in common, from the start."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return one[: min(len(one), len(other)) if length is None else length]


def _is_there_once(words: str, answer: str) -> bool:
    """Whether to say them again would be new; refrains, tables and code repeat themselves as they go on."""
    return answer.find(words) == answer.rfind(words)


def _is_telling(words: str) -> bool:
    return sum(any(map(str.isalpha, word)) for word in words.split()) >= REPEAT_WORDS
