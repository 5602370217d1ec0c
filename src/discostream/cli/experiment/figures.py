"""What measured answers come to, in the simulator's own figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.core.forecast import SILENCE_S
from discostream.core.qoe import qoe, read_times, tbt_as_read
from discostream.types import Kind, MigrationReason, Outcome

__all__ = ["FIGURES", "JUDGED", "Sample"]

Floats: TypeAlias = NDArray[np.float64]

PUNCTUAL_S = 1e-3
"""By how much a token may be late and still count as in time: an event loop tells no less apart."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Answers of one policy; shape (answers,), but for the gaps.

    Attributes:
        ttft_s: `SILENCE_S` where no content came.
        prompt_tokens: How long the prompts were.
        constrained_tokens: How much of them the constrained kind processed, prefixes included.
        usd: Dollars of all attempts.
        joules: Joules of all attempts.
        cost: Dollars, energy converted.
        moved: 1 where an answer moved for cost, else 0.
        delayed_tokens: How many tokens came, because of that, later than the reader wanted them.
        qoe: Quality of experience; 0 where no content came.
        wasted_tokens: How many were generated and never delivered.
        unanswered: 1 where no content came, else 0.
        gaps_s: Between tokens as they are read, those of all answers together.
    """

    ttft_s: Floats
    prompt_tokens: Floats
    constrained_tokens: Floats
    usd: Floats
    joules: Floats
    cost: Floats
    moved: Floats
    delayed_tokens: Floats
    qoe: Floats
    wasted_tokens: Floats
    unanswered: Floats
    gaps_s: Floats

    @classmethod
    def of(
        cls, outcomes: Sequence[Outcome], constrained: Kind, usd_per_joule: float, tokens_per_s: float
    ) -> Sample:
        """What was measured.

        Args:
            outcomes: At least one.
            constrained: The kind whose share of all prompt tokens is limited.
            usd_per_joule: The exchange rate.
            tokens_per_s: The reader's pace.
        """

        def column(told: Callable[[Outcome], float]) -> Floats:
            return np.array([told(outcome) for outcome in outcomes], np.float64)

        gaps_s = [tbt_as_read(outcome.delivered_s, tokens_per_s) for outcome in outcomes]
        return cls(
            ttft_s=column(lambda one: SILENCE_S if one.ttft_s is None else one.ttft_s),
            prompt_tokens=column(lambda one: one.prompt_tokens),
            constrained_tokens=column(lambda one: _tokens_read(one, constrained)),
            usd=column(lambda one: one.usd),
            joules=column(lambda one: one.joules),
            cost=column(lambda one: one.usd + usd_per_joule * one.joules),
            moved=column(lambda one: _seam(one) is not None),
            delayed_tokens=column(lambda one: _delayed_tokens(one, tokens_per_s)),
            qoe=column(lambda one: qoe(one.delivered_s, tokens_per_s) if one.delivered_s else 0.0),
            wasted_tokens=column(_wasted_tokens),
            unanswered=column(lambda one: one.ttft_s is None),
            gaps_s=np.concatenate(gaps_s),
        )

    def redrawn(self, rng: np.random.Generator) -> Sample:
        """As many of the rows, drawn with replacement; the gaps as they are."""
        rows = rng.integers(self.ttft_s.size, size=self.ttft_s.size)
        names = [each.name for each in fields(self) if each.name != "gaps_s"]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def _tokens_read(outcome: Outcome, kind: Kind) -> int:
    return sum(attempt.prompt_tokens for attempt in outcome.attempts if attempt.kind is kind)


def _wasted_tokens(outcome: Outcome) -> int:
    return sum(attempt.completion_tokens for attempt in outcome.attempts) - outcome.completion_tokens


def _seam(outcome: Outcome) -> int | None:
    """How many tokens had been delivered when the answer moved for cost; `None` if it did not."""
    moves = [move.at_token for move in outcome.migrations if move.reason is MigrationReason.COST]
    return moves[0] if moves else None


def _delayed_tokens(outcome: Outcome, tokens_per_s: float) -> int:
    """How many tokens past the seam came later than a reader wants them who has not had to wait since."""
    seam = _seam(outcome)
    if seam is None:
        return 0
    before_s, rest_s = np.split(np.array(outcome.delivered_s), [seam])
    wanted_s = read_times(before_s, tokens_per_s)[-1] + np.arange(1, rest_s.size + 1) / tokens_per_s
    return int((rest_s > wanted_s + PUNCTUAL_S).sum())


def _ttft(share: float) -> Callable[[Sample], float]:
    return lambda sample: float(np.quantile(sample.ttft_s, share))


def _mean(name: str) -> Callable[[Sample], float]:
    return lambda sample: float(getattr(sample, name).mean())


def _moved(judge: Callable[[Floats], float]) -> Callable[[Sample], float]:
    """A figure of the answers that moved, 0 where none did."""
    return lambda sample: float(judge(sample.delayed_tokens[sample.moved > 0])) if sample.moved.any() else 0.0


def _p99_tbt_s(sample: Sample) -> float:
    return float(np.quantile(sample.gaps_s, 0.99, method="inverted_cdf")) if sample.gaps_s.size else 0.0


FIGURES: Mapping[str, Callable[[Sample], float]] = {
    "mean_ttft_s": _mean("ttft_s"),
    "p50_ttft_s": _ttft(0.5),
    "p90_ttft_s": _ttft(0.9),
    "p99_ttft_s": _ttft(0.99),
    "max_ttft_s": _ttft(1.0),
    "spent_share": lambda sample: float(sample.constrained_tokens.sum() / sample.prompt_tokens.sum()),
    "usd": _mean("usd"),
    "joules": _mean("joules"),
    "cost": _mean("cost"),
    "migrated_share": _mean("moved"),
    "delayed_tokens_mean": _moved(np.mean),
    "delayed_tokens_p99": _moved(lambda tokens: float(np.quantile(tokens, 0.99))),
    "p99_tbt_s": _p99_tbt_s,
    "qoe_mean": _mean("qoe"),
    "wasted_tokens": _mean("wasted_tokens"),
    "unanswered_share": _mean("unanswered"),
}
"""By the names that `sim/figures.py` gives them."""

JUDGED = (
    "mean_ttft_s",
    "p50_ttft_s",
    "p90_ttft_s",
    "spent_share",
    "usd",
    "joules",
    "cost",
    "migrated_share",
    "delayed_tokens_mean",
    "qoe_mean",
    "wasted_tokens",
)
"""Those of which a hundred answers can tell how far chance moves them. Of extremes they cannot: whichever are
drawn anew, none is slower than the slowest.
"""
