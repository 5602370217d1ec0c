"""Where two endpoints' texts may be joined, and what must not show there."""

from __future__ import annotations

from discostream.types import Carrier

__all__ = ["EchoFilter", "ends_sentence", "may_cut"]

SENTENCE_ENDS = tuple(".!?:;…。！？`\"'”’)]}")  # noqa: RUF001 - full-width marks end sentences too


def may_cut(written: str, following: str, by: Carrier) -> bool:
    """Whether an answer may change hands between `written` and the source's next text.

    Token IDs can be cut between any two pieces, because a piece holds whole characters. Text is
    tokenised anew by the target, so it is cut only before a whitespace-led word and never behind
    whitespace: tokenisers keep a space with the word that follows, and several servers trim it.
    """
    if not written:
        return False
    return by is Carrier.TOKENS or (following[:1].isspace() and not written[-1:].isspace())


def ends_sentence(text: str) -> bool:
    """Whether an answer could well be over here."""
    return text.rstrip().endswith(SENTENCE_ENDS)


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
