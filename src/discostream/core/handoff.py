"""Handoff: moving a running answer to another endpoint.

The problem: decoding may be cheaper elsewhere, or a stream may break, while a reader is in mid-sentence.
The naive answer (the paper's, section 4.3) stops the source when the reader has enough unread tokens and
starts the target; if the target is slow or wrong the reader waits, and nothing can be taken back.

Here the source goes on while the target prefills: its tokens past the seam are held. The target's first
content makes the handoff; until then it can be dropped, and the held tokens are delivered instead. So a
handoff can be abandoned, never lost. A rescue is the same without a source to fall back on.

`TABLE` is the whole of it; `advance` refuses what is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from discostream.core.cost import Rates
from discostream.errors import InvalidTransition

__all__ = ["FINAL", "TABLE", "Decision", "Signal", "State", "advance", "should_migrate"]


class State(StrEnum):
    """Where a delivery stands."""

    STREAMING = "streaming"
    """The source's pieces are delivered as they come."""
    PREPARING = "preparing"
    """A target prefills; the source goes on, and its pieces are held."""
    RESCUING = "rescuing"
    """The source broke; a target is being started."""
    FINISHED = "finished"
    """The answer is whole."""
    FAILED = "failed"
    """The answer broke off, and nothing could go on with it."""


class Signal(StrEnum):
    """What can happen to a delivery."""

    MIGRATE = "migrate"
    """The rest is cheaper elsewhere, and the buffer hides the change."""
    TARGET_READY = "target_ready"
    """The target's first content has come."""
    TARGET_DROPPED = "target_dropped"
    """The target failed, was late, or had nothing to say."""
    TARGET_FINISHED = "target_finished"
    """The target says that the answer was complete already."""
    SOURCE_FINISHED = "source_finished"
    """The source ended the answer."""
    SOURCE_BROKE = "source_broke"
    """The source's stream failed."""
    NO_TARGET = "no_target"
    """No endpoint is left that could go on."""


TABLE: Mapping[tuple[State, Signal], State] = {
    (State.STREAMING, Signal.MIGRATE): State.PREPARING,
    (State.STREAMING, Signal.SOURCE_FINISHED): State.FINISHED,
    (State.STREAMING, Signal.SOURCE_BROKE): State.RESCUING,
    (State.PREPARING, Signal.TARGET_READY): State.STREAMING,
    (State.PREPARING, Signal.TARGET_DROPPED): State.STREAMING,
    (State.PREPARING, Signal.SOURCE_FINISHED): State.FINISHED,
    (State.PREPARING, Signal.SOURCE_BROKE): State.RESCUING,
    (State.RESCUING, Signal.TARGET_READY): State.STREAMING,
    (State.RESCUING, Signal.TARGET_DROPPED): State.RESCUING,
    (State.RESCUING, Signal.TARGET_FINISHED): State.FINISHED,
    (State.RESCUING, Signal.NO_TARGET): State.FAILED,
}

FINAL = frozenset({State.FINISHED, State.FAILED})


def advance(state: State, signal: Signal) -> State:
    """The state that follows.

    Raises:
        InvalidTransition: The table has no such row.
    """
    try:
        return TABLE[state, signal]
    except KeyError:
        raise InvalidTransition(f"{signal.value!r} cannot happen while {state.value!r}") from None


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to migrate, with the numbers that decided it.

    Attributes:
        saving_usd: What decoding the rest at the target is expected to save.
        overhead_usd: What the move costs: the target's prefill and the source's tokens past the seam.
        unread_tokens: What the reader still has.
        needed_tokens: What hides the handoff: B = r_c x t_m.
    """

    saving_usd: float
    overhead_usd: float
    unread_tokens: float
    needed_tokens: float

    @property
    def pays(self) -> bool:
        """Whether the move saves more than it costs."""
        return self.saving_usd > self.overhead_usd

    @property
    def hidden(self) -> bool:
        """Whether the reader has enough unread not to notice."""
        return self.unread_tokens >= self.needed_tokens

    @property
    def migrate(self) -> bool:
        """Whether to go ahead."""
        return self.pays and self.hidden


def should_migrate(
    *,
    source: Rates,
    target: Rates,
    prefill_tokens: float,
    remaining_tokens: float,
    unread_tokens: float,
    handoff_s: float,
    overlap_s: float,
    source_tokens_per_s: float,
    consumption_tokens_per_s: float,
) -> Decision:
    """Weigh one possible move (paper, section 4.3).

    Args:
        source: What a token costs where the answer is now.
        target: What a token would cost there.
        prefill_tokens: What the target must read first: the prompt and the answer so far.
        remaining_tokens: How much of the answer is still expected.
        unread_tokens: What the reader has not consumed yet.
        handoff_s: t_m, how long the target may well take to start at that length; the reader must not notice.
        overlap_s: How long it should take: what the source generates meanwhile is thrown away.
        source_tokens_per_s: The source's pace.
        consumption_tokens_per_s: r_c, the reader's rate.
    """
    overlap_tokens = min(source_tokens_per_s * overlap_s, remaining_tokens)
    return Decision(
        saving_usd=(source.decode_usd - target.decode_usd) * remaining_tokens,
        overhead_usd=target.prefill_usd * prefill_tokens + source.decode_usd * overlap_tokens,
        unread_tokens=unread_tokens,
        needed_tokens=consumption_tokens_per_s * handoff_s,
    )
