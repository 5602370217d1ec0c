"""Handoff: moving a running answer to another endpoint.

The problem: decoding may be cheaper elsewhere, or a stream may break, while a reader is in mid-sentence.
The naive answer (the paper's, section 4.3) stops the source when the reader has enough unread tokens and
starts the target; if the target is slow or wrong the reader waits, and nothing can be taken back.

Here the source goes on while the target prefills: its tokens past the seam are held. The target's first
words make the handoff once they are proof (`core/seam.py`); until then it can be dropped, and the held tokens
are delivered instead. So a handoff can be abandoned, never lost. A rescue is the same without a source to go
back to; a hedge is a rescue whose source is only silent, and may speak again.

`TABLE` is the whole of it; `advance` refuses what is not in it. `weigh_move` decides whether one of many
possible moves, or each of an array of them, should be made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.core.profile import EndpointProfile
from discostream.errors import InvalidTransition

__all__ = [
    "CAUTION",
    "FINAL",
    "RISK",
    "TABLE",
    "Decision",
    "Signal",
    "State",
    "advance",
    "diagram",
    "handoff_s",
    "weigh_move",
]

Amount: TypeAlias = float | NDArray[np.float64]
"""One value, or one for each of many possible moves."""

START_TIME_QUANTILE = 0.9
"""t_m is this quantile of the target's start time, so that nine handoffs in ten stay hidden."""

CAUTION = 2.0
"""By how much it is stretched: a target on the source's own machine starts more slowly than it did alone."""

RISK = 1.0 - START_TIME_QUANTILE
"""The share of moves that are expected to come to nothing: those whose target is later than t_m."""


class State(StrEnum):
    """Where a delivery stands."""

    STREAMING = "streaming"
    """The source's pieces are delivered as they come."""
    PREPARING = "preparing"
    """A target prefills; the source goes on, and its pieces are held."""
    HEDGING = "hedging"
    """A target prefills because the source is silent; if it speaks first, it goes on."""
    RESCUING = "rescuing"
    """There is no source any more; a target is being started."""
    FINISHED = "finished"
    """The answer is whole."""
    FAILED = "failed"
    """The answer broke off, and nothing could go on with it."""


class Signal(StrEnum):
    """What can happen to a delivery."""

    MIGRATE = "migrate"
    """The rest is cheaper elsewhere, and the buffer hides the change."""
    TARGET_READY = "target_ready"
    """The target's first words have come, and go on with the answer."""
    TARGET_DROPPED = "target_dropped"
    """The target failed, was late, or said what is no continuation."""
    COMPLETE = "complete"
    """The answer turns out to be whole already: the target says so, or a stop string has come."""
    SOURCE_FINISHED = "source_finished"
    """The source ended the answer."""
    SOURCE_BROKE = "source_broke"
    """The source's stream failed."""
    SOURCE_STOPPED = "source_stopped"
    """The source was stopped to start the target (stop-then-start)."""
    SOURCE_SILENT = "source_silent"
    """The source has not spoken for longer than it should, and the reader has little left."""
    SOURCE_SPOKE = "source_spoke"
    """It has spoken again."""
    NO_TARGET = "no_target"
    """No endpoint is left that could go on."""


TABLE: Mapping[tuple[State, Signal], State] = {
    (State.STREAMING, Signal.MIGRATE): State.PREPARING,
    (State.STREAMING, Signal.SOURCE_STOPPED): State.RESCUING,
    (State.STREAMING, Signal.SOURCE_SILENT): State.HEDGING,
    (State.STREAMING, Signal.SOURCE_FINISHED): State.FINISHED,
    (State.STREAMING, Signal.SOURCE_BROKE): State.RESCUING,
    (State.PREPARING, Signal.TARGET_READY): State.STREAMING,
    (State.PREPARING, Signal.TARGET_DROPPED): State.STREAMING,
    (State.PREPARING, Signal.SOURCE_FINISHED): State.FINISHED,
    (State.PREPARING, Signal.SOURCE_BROKE): State.RESCUING,
    (State.HEDGING, Signal.TARGET_READY): State.STREAMING,
    (State.HEDGING, Signal.TARGET_DROPPED): State.STREAMING,
    (State.HEDGING, Signal.COMPLETE): State.FINISHED,
    (State.HEDGING, Signal.SOURCE_SPOKE): State.STREAMING,
    (State.HEDGING, Signal.SOURCE_FINISHED): State.FINISHED,
    (State.HEDGING, Signal.SOURCE_BROKE): State.RESCUING,
    (State.RESCUING, Signal.TARGET_READY): State.STREAMING,
    (State.RESCUING, Signal.TARGET_DROPPED): State.RESCUING,
    (State.RESCUING, Signal.COMPLETE): State.FINISHED,
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


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    rows = [f"{before.value} --> {after.value}: {signal.value}" for (before, signal), after in TABLE.items()]
    ends = [f"{state.value} --> [*]" for state in State if state in FINAL]
    return "\n    ".join(["stateDiagram-v2", f"[*] --> {State.STREAMING.value}", *rows, *ends])


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to migrate, with the numbers that decided it; values, or arrays of one shape.

    Attributes:
        saving_usd: What decoding the rest at the target is expected to save, if the move succeeds.
        overhead_usd: What it costs in any case: what the target reads, and the source's tokens past the seam.
        risk_usd: The part of the saving that is lost to moves which come to nothing.
        unread_tokens: What the reader still has.
        needed_tokens: What hides the handoff: B = r_c x t_m.
        moves: How often the answer has moved before; for each time, a move must save its overhead once more,
            or an answer whose length is misjudged would go to and fro.
        hindrance: What else keeps the answer where it is, in words; `None` if nothing does.
    """

    saving_usd: Amount
    overhead_usd: Amount
    risk_usd: Amount
    unread_tokens: Amount
    needed_tokens: Amount
    moves: int = 0
    hindrance: str | None = None

    @property
    def gain_usd(self) -> Amount:
        """What the move is expected to save after all."""
        return self.saving_usd - self.risk_usd - self.overhead_usd

    @property
    def pays(self) -> Any:
        """Whether the move saves more than it costs."""
        return self.gain_usd > self.moves * self.overhead_usd

    @property
    def hidden(self) -> Any:
        """Whether the reader has enough unread not to notice."""
        return self.unread_tokens >= self.needed_tokens

    @property
    def migrate(self) -> Any:
        """Whether to go ahead."""
        return self.pays & self.hidden

    def in_words(self) -> str:
        """The reasons of one decision, for people."""
        money = (
            f"saves ${self.saving_usd:.3g} for ${self.overhead_usd:.3g} and a risk of ${self.risk_usd:.3g}"
            if self.saving_usd > 0
            else "there is nothing to save"
        )
        if not self.pays:
            return f"{money}: does not pay" if self.saving_usd > 0 else money
        buffer = f"{self.unread_tokens:.1f} tokens unread where {self.needed_tokens:.1f} hide it"
        hindrance = self.hindrance if self.hidden else "would be noticed"
        return f"{money}; {buffer}{f': {hindrance}' if hindrance else ''}"


def handoff_s(target: EndpointProfile, uncached_tokens: Amount) -> Any:
    """t_m: how long the target may well take to start (seconds), of the same shape.

    Args:
        target: Who would take over.
        uncached_tokens: What it would have to read: the prompt and the answer so far, less what it has read
            already. A target that lost the race for this very prompt is warm, and t_m is short.
    """
    return CAUTION * target.ttft.quantile(uncached_tokens, START_TIME_QUANTILE)


def weigh_move(
    source: EndpointProfile,
    target: EndpointProfile,
    *,
    prefill_tokens: Amount,
    cached_tokens: Amount,
    remaining_tokens: Amount,
    unread_tokens: Amount,
    consumption_tokens_per_s: float,
    handoff_s: Amount,
    moves: int = 0,
) -> Decision:
    """Weigh possible moves between two endpoints (paper, section 4.3), one or an array of them.

    Args:
        source: Where the answer is now.
        target: Where it could go.
        prefill_tokens: The prompt and the answer so far.
        cached_tokens: How much of that the target has read already.
        remaining_tokens: How much of the answer is still expected.
        unread_tokens: What the reader has not consumed yet.
        consumption_tokens_per_s: r_c, the reader's rate.
        handoff_s: t_m, how long the target may well take to start; the reader must not notice.
        moves: How often the answer has moved before.
    """
    overlap_s = target.ttft.quantile(prefill_tokens - cached_tokens, 0.5)
    overlap_tokens = np.minimum(source.decode_tokens_per_s * overlap_s, remaining_tokens)
    saving_usd = (source.rates.decode_usd - target.rates.decode_usd) * remaining_tokens
    reading_usd = target.reading_usd(prefill_tokens, cached_tokens)
    return Decision(
        saving_usd=saving_usd,
        overhead_usd=reading_usd + source.rates.decode_usd * overlap_tokens,
        risk_usd=RISK * np.maximum(saving_usd, 0.0),
        unread_tokens=unread_tokens,
        needed_tokens=consumption_tokens_per_s * handoff_s,
        moves=moves,
    )
