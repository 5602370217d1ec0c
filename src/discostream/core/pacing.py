"""How much of a delivered answer its reader has not consumed yet."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Reader"]


@dataclass(frozen=True, slots=True)
class Reader:
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
        return replace(self, done_at=free_at + tokens / self.tokens_per_s)

    def unread(self, at: float) -> float:
        """Tokens delivered but not yet read at moment `at`."""
        return 0.0 if self.done_at is None else max(0.0, self.done_at - at) * self.tokens_per_s
