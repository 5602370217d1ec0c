"""Handoff: moving a running answer to another endpoint.

The problem: decoding may be cheaper elsewhere, or a stream may break, while a reader is in mid-sentence.
The naive answer (the paper's, section 4.3) stops the source when the reader has enough unread tokens and
starts the target; if the target is slow or wrong the reader waits, and nothing can be taken back.

Here the source goes on while the target prefills: its tokens past the seam are held. The target's first
content makes the handoff; until then it can be dropped, and the held tokens are delivered instead. So a
handoff can be abandoned, never lost. A rescue is the same without a source to fall back on.

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

from discostream.core.cost import Rates
from discostream.core.profile import EndpointProfile
from discostream.errors import InvalidTransition

__all__ = [
    "CAUTION",
    "FINAL",
    "TABLE",
    "Decision",
    "Signal",
    "State",
    "advance",
    "handoff_s",
    "should_migrate",
    "weigh_move",
]

Amount: TypeAlias = float | NDArray[np.float64]
"""One value, or one for each of many possible moves."""

START_TIME_QUANTILE = 0.9
"""t_m is this quantile of the target's start time, so that nine handoffs in ten stay hidden."""

CAUTION = 2.0
"""By how much it is stretched: a target on the source's own machine starts more slowly than it did alone."""


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
    """Whether to migrate, with the numbers that decided it; values, or arrays of one shape.

    Attributes:
        saving_usd: What decoding the rest at the target is expected to save.
        overhead_usd: What the move costs: the target's prefill and the source's tokens past the seam.
        unread_tokens: What the reader still has.
        needed_tokens: What hides the handoff: B = r_c x t_m.
    """

    saving_usd: Amount
    overhead_usd: Amount
    unread_tokens: Amount
    needed_tokens: Amount

    @property
    def pays(self) -> Any:
        """Whether the move saves more than it costs."""
        return self.saving_usd > self.overhead_usd

    @property
    def hidden(self) -> Any:
        """Whether the reader has enough unread not to notice."""
        return self.unread_tokens >= self.needed_tokens

    @property
    def migrate(self) -> Any:
        """Whether to go ahead."""
        return self.pays & self.hidden


def should_migrate(
    *,
    source: Rates,
    target: Rates,
    prefill_tokens: Amount,
    remaining_tokens: Amount,
    unread_tokens: Amount,
    handoff_s: Amount,
    overlap_s: Amount,
    source_tokens_per_s: float,
    consumption_tokens_per_s: float,
) -> Decision:
    """Weigh possible moves (paper, section 4.3), one or an array of them.

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
    overlap_tokens = np.minimum(source_tokens_per_s * overlap_s, remaining_tokens)
    return Decision(
        saving_usd=(source.decode_usd - target.decode_usd) * remaining_tokens,
        overhead_usd=target.prefill_usd * prefill_tokens + source.decode_usd * overlap_tokens,
        unread_tokens=unread_tokens,
        needed_tokens=consumption_tokens_per_s * handoff_s,
    )


def handoff_s(target: EndpointProfile, prefill_tokens: Amount) -> Any:
    """t_m: how long the target may well take to start at that length (seconds), of the same shape."""
    return CAUTION * target.ttft.quantile(prefill_tokens, START_TIME_QUANTILE)


def weigh_move(
    source: EndpointProfile,
    target: EndpointProfile,
    *,
    prefill_tokens: Amount,
    remaining_tokens: Amount,
    unread_tokens: Amount,
    consumption_tokens_per_s: float,
    handoff_s: Amount,
) -> Decision:
    """Weigh moves between two endpoints by what is known of them; see `should_migrate`."""
    return should_migrate(
        source=source.rates,
        target=target.rates,
        prefill_tokens=prefill_tokens,
        remaining_tokens=remaining_tokens,
        unread_tokens=unread_tokens,
        handoff_s=handoff_s,
        overlap_s=target.ttft.quantile(prefill_tokens, 0.5),
        source_tokens_per_s=source.decode_tokens_per_s,
        consumption_tokens_per_s=consumption_tokens_per_s,
    )
