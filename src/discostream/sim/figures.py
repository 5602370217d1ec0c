"""The figures that simulated answers come to, however many parts they were simulated in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from discostream.core.forecast import SILENCE_S
from discostream.sim.answers import Answers
from discostream.sim.race import NOBODY
from discostream.types import Kind

__all__ = ["Figures", "Tally"]

Floats: TypeAlias = NDArray[np.float64]


class Figures(Struct, frozen=True, kw_only=True):
    """What one policy came to. Money, energy and waste are means a request.

    Attributes:
        policy: Its name.
        constraint: The kind that the budget holds back.
        share: b, what it was planned for.
        n: How many requests.
        mean_ttft_s: With those that nobody answered counted as `SILENCE_S`; so are the quantiles.
        spent_share: Prompt tokens that the constrained kind processed, as a share of all prompt tokens.
        cost: Dollars, energy converted.
        migrated_share: Of all requests.
        delayed_tokens_mean: Tokens that came after the reader wanted them, a migration.
        p99_tbt_s: Of the gaps between tokens as they are read.
        qoe_mean: As by Andes, 0 for requests that nobody answered.
        wasted_tokens: Generated and never delivered.
        unanswered_share: Of all requests.
    """

    policy: str
    constraint: str
    share: float
    device: str
    server_trace: str
    n: int
    mean_ttft_s: float
    p50_ttft_s: float
    p90_ttft_s: float
    p99_ttft_s: float
    max_ttft_s: float
    spent_share: float
    usd: float
    joules: float
    cost: float
    migrated_share: float
    delayed_tokens_mean: float
    delayed_tokens_p99: float
    p99_tbt_s: float
    qoe_mean: float
    wasted_tokens: float
    unanswered_share: float

    def as_dict(self) -> dict[str, str | float]:
        """The same for JSON and CSV."""
        return msgspec.structs.asdict(self)


@dataclass(frozen=True)
class Tally:
    """Sums over answers, and whatever quantiles need.

    Attributes:
        constrained: The kind whose prompt tokens the share counts.
        parts: Of the answers so far.
    """

    constrained: Kind
    parts: tuple[_Part, ...] = ()

    def add(self, answers: Answers) -> Tally:
        """The same with more answers."""
        return Tally(self.constrained, (*self.parts, _Part.of(answers, self.constrained)))

    @property
    def ttft_s(self) -> Floats:
        """Every TTFT, those that never came counted as `SILENCE_S`, shape (requests,)."""
        return np.concatenate([part.ttft_s for part in self.parts])

    def figures(self, *, policy: str, share: float, device: str, server_trace: str) -> Figures:
        """What it all comes to.

        Args:
            policy: Its name.
            share: What it was planned for.
            device: Its name.
            server_trace: Its name.
        """
        ttft_s, delayed = self.ttft_s, np.concatenate([part.delayed_tokens for part in self.parts])
        p50, p90, p99 = np.quantile(ttft_s, (0.5, 0.9, 0.99)).tolist()
        sums = np.sum([part.sums for part in self.parts], axis=0)
        count = ttft_s.size
        usd, joules, cost, qoe, wasted, unanswered = (sums[:6] / count).tolist()
        return Figures(
            policy=policy,
            constraint=self.constrained.value,
            share=share,
            device=device,
            server_trace=server_trace,
            n=count,
            mean_ttft_s=float(ttft_s.mean()),
            p50_ttft_s=p50,
            p90_ttft_s=p90,
            p99_ttft_s=p99,
            max_ttft_s=float(ttft_s.max()),
            spent_share=float(sums[6] / sums[7]),
            usd=usd,
            joules=joules,
            cost=cost,
            migrated_share=delayed.size / count,
            delayed_tokens_mean=float(delayed.mean()) if delayed.size else 0.0,
            delayed_tokens_p99=float(np.quantile(delayed, 0.99)) if delayed.size else 0.0,
            p99_tbt_s=self._p99_tbt_s(),
            qoe_mean=qoe,
            wasted_tokens=wasted,
            unanswered_share=unanswered,
        )

    def _p99_tbt_s(self) -> float:
        """The gap that 99 in 100 do not exceed: a reader's own pace, unless more of them are waits."""
        waits_s = np.concatenate([part.waits_s for part in self.parts])
        times = np.concatenate([part.waits for part in self.parts])
        gaps = sum(part.gaps for part in self.parts)
        longest_first = np.argsort(-waits_s, kind="stable")
        longer = np.cumsum(times[longest_first])
        within = np.searchsorted(longer, 0.01 * gaps, side="right")
        beyond_s = float(waits_s[longest_first[within]]) if within < longer.size else 0.0
        return self.parts[0].reading_s + beyond_s


@dataclass(frozen=True, eq=False)
class _Part:
    ttft_s: Floats
    delayed_tokens: NDArray[np.int64]
    waits_s: Floats
    waits: NDArray[np.int64]
    gaps: int
    reading_s: float
    sums: Floats

    @classmethod
    def of(cls, answers: Answers, constrained: Kind) -> _Part:
        kinds = [endpoint.kind for endpoint in answers.world.known.endpoints]
        ours = np.array([kind is constrained for kind in kinds])
        tokens, prompt_tokens = answers.delivered_tokens, answers.requests.prompt_tokens
        unanswered = answers.source == NOBODY
        return cls(
            ttft_s=np.where(unanswered, SILENCE_S, answers.ttft_s),
            delayed_tokens=answers.delayed_tokens[answers.moved],
            waits_s=answers.waits_s,
            waits=answers.waits,
            gaps=int(np.maximum(tokens - 1, 0).sum()),
            reading_s=1.0 / answers.world.consumption_tokens_per_s,
            sums=np.array(
                [
                    answers.usd.sum(),
                    answers.joules.sum(),
                    answers.cost.sum(),
                    answers.qoe.sum(),
                    (answers.wrote_tokens.sum(axis=1) - tokens).sum(),
                    unanswered.sum(),
                    answers.read_tokens[:, ours].sum(),
                    prompt_tokens.sum(),
                ]
            ),
        )
