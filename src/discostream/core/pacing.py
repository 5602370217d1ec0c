"""When tokens come, when each is passed on, and how much of an answer its reader has not consumed yet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

__all__ = ["Pulse", "Reader", "release_in_s", "words_of"]

LEAST_SILENCE_S = 1.0
"""No stream is taken for silent sooner; recorded servers pause for up to about so long in mid-answer."""

PATIENCE = 3.0
"""How many times its longest gap so far a stream may be silent: what it came back from, it may do again."""

_WORD = re.compile(r"\s*\S+\s*\Z|\s*\S+|\s+\Z")


class Reader(Struct, frozen=True):
    """A virtual reader who consumes tokens at a steady rate and waits when there are none.

    Attributes:
        tokens_per_s: The reading rate.
        done_at: When everything delivered so far will have been read; `None` before the first token.
    """

    tokens_per_s: float
    done_at: float | None = None

    def deliver(self, at: float, tokens: int) -> Reader:
        """The reader after `tokens` more were delivered at moment `at`."""
        free_at = at if self.done_at is None else max(self.done_at, at)
        return Reader(self.tokens_per_s, free_at + tokens / self.tokens_per_s)

    def unread(self, at: float) -> float:
        """Tokens delivered but not yet read at moment `at`."""
        return 0.0 if self.done_at is None else max(0.0, self.done_at - at) * self.tokens_per_s


class Pulse(Struct, frozen=True):
    """How regularly a stream has spoken.

    Attributes:
        quiet_since: From when on it could have spoken again.
        longest_gap_s: The longest silence that it has come back from.
    """

    quiet_since: float
    longest_gap_s: float = 0.0

    def beat(self, at: float) -> Pulse:
        """The same after it has spoken."""
        return Pulse(at, max(self.longest_gap_s, at - self.quiet_since))

    def resume(self, at: float) -> Pulse:
        """The same when it can speak again only now, because its reader did not listen."""
        return replace(self, quiet_since=max(self.quiet_since, at))

    @property
    def silent_at(self) -> float:
        """When it will have been silent for too long."""
        return self.quiet_since + max(LEAST_SILENCE_S, PATIENCE * self.longest_gap_s)


def release_in_s(due_in_s: Sequence[float], most_s: float) -> float:
    """How long to wait before the next waiting word is passed on (seconds).

    The slowest even pace by which every one of them is out in time, but no slower than its reader: bursts
    become even, and only a backlog that would come too late speeds it up.

    Args:
        due_in_s: When each of them has to be out, in their order; shape (waiting words,), not empty.
        most_s: How long the reader takes for the next one.
    """
    in_time_s = min(due_s / place for place, due_s in enumerate(due_in_s, start=1))
    return max(min(most_s, in_time_s), 0.0)


def words_of(text: str, tokens: int) -> Iterator[tuple[str, int]]:
    """A piece as words with the whitespace before them, its tokens shared out by characters, rounded up."""
    shared = written = 0
    for word in _WORD.findall(text):
        written += len(word)
        share = -(-tokens * written // len(text)) - shared
        shared += share
        yield word, share
