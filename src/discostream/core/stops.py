"""Stop strings, enforced across a seam: half of one may be the source's, and half the target's."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopFilter"]


class StopFilter:
    """Passes an answer's text on up to the first stop string in it.

    Held back is what could be the beginning of one: at most one character less than the longest has.

    Args:
        stops: Each not empty.

    Attributes:
        stopped: Whether one has come; nothing is passed on any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be delivered now that `text` has come."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = max(_open_end(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to look for, so that all text passes as it comes."""
        return not self._stops

    @property
    def held(self) -> int:
        """How many characters are held back."""
        return len(self._held)

    def end(self) -> str:
        """What is still held when the answer has ended: no stop string any more."""
        held, self._held = self._held, ""
        return held


def _open_end(text: str, stop: str) -> int:
    """How many characters at the text's end could be the beginning of the stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
