"""What an evaluation found: every number that its report shows, and nothing that is only seen in a figure.

Policies are compared pairwise: with the same seed they meet the same requests and the same luck, so that a
difference of two is far less noisy than either. Intervals are over seeds, each of which splits the data
anew; they tell how much chance there is in the halves and draws, not how another month would have been.
"""

from __future__ import annotations

from msgspec import Struct

from discostream.sim.cells import Lost
from discostream.sim.grid import Grid
from discostream.sim.online import Stretch
from discostream.sim.report.intervals import Interval
from discostream.sim.study import Case

__all__ = [
    "EQUAL_QOE",
    "Cut",
    "Day",
    "Experience",
    "Findings",
    "Frontier",
    "Loss",
    "MostSaved",
    "Move",
    "Point",
    "Reproduction",
    "Saving",
    "Sensitivity",
    "Server",
    "Spread",
]

EQUAL_QOE = 0.001
"""By how much QoE, which lies in [0, 1], may fall and still count as equal."""


class Server(Struct, frozen=True, kw_only=True):
    """A trace.

    Attributes:
        name: What the report calls it.
        source: Where it was read from.
        note: What was estimated or left out.
    """

    name: str
    source: str
    requests: int
    note: str


class Place(Struct, frozen=True, kw_only=True):
    """Where something was found.

    Attributes:
        server: Its name.
        constraint: The kind that the budget holds back.
    """

    server: str
    device: str
    constraint: str


class Cut(Place, frozen=True, kw_only=True):
    """By how much a policy's TTFT lies below the baseline's at the same budget, as a share of that.

    Attributes:
        shares: Over which it is averaged.
        mean_ttft: The cut in the mean, both planning by the same share.
        p99_ttft: In the tail.
        mean_ttft_at_spend: The cut in the mean against what the baseline comes to where it spends as much.
        p99_ttft_at_spend: In the tail.
    """

    policy: str
    shares: tuple[float, ...]
    mean_ttft: Interval
    p99_ttft: Interval
    mean_ttft_at_spend: Interval
    p99_ttft_at_spend: Interval


class Reproduction(Struct, frozen=True, kw_only=True):
    """A cell of the paper's table, and ours beside it.

    Attributes:
        service: As the paper calls it.
        paper: Its cut in P99 TTFT.
        server: Our trace; `None` where there is none for the service, or it was not evaluated.
        ours: Our cut, and over how many seeds.
    """

    service: str
    constraint: str
    device: str
    paper: float
    server: str | None
    ours: Interval | None


class Spread(Place, frozen=True, kw_only=True):
    """How TTFT is distributed: its quantiles at the report's probabilities, means over seeds."""

    policy: str
    share: float
    ttft_s: tuple[float, ...]


class Point(Struct, frozen=True, kw_only=True):
    """What one share came to, means over seeds.

    Attributes:
        share: What was allowed.
        spent_share: What was spent.
    """

    share: float
    spent_share: float
    mean_ttft_s: float
    p99_ttft_s: float


class Frontier(Place, frozen=True, kw_only=True):
    """What a policy makes of every share."""

    policy: str
    points: tuple[Point, ...]


class Saving(Place, frozen=True, kw_only=True):
    """What migration saves.

    Attributes:
        cost_without: Dollars a request, energy converted, when answers stay where they begin.
        cost_with: When they move by make-before-break.
        fall: The difference, as a share of the former.
        qoe_without: Quality of experience in [0, 1].
        qoe_change: What migration adds to it.
        migrated_share: Of all answers.
    """

    policy: str
    share: float
    cost_without: float
    cost_with: float
    fall: Interval
    qoe_without: float
    qoe_change: Interval
    migrated_share: float

    @property
    def keeps_qoe(self) -> bool:
        """Whether QoE is equal."""
        return self.qoe_change.mean >= -EQUAL_QOE


class MostSaved(Struct, frozen=True):
    """The largest saving of many, and one of the cells in which it was found, in full."""

    saving: Saving
    case: Case


class Move(Place, frozen=True, kw_only=True):
    """What a reader notices of migration.

    Attributes:
        handoff: How answers move.
        migrated_share: Of all answers.
        delayed_tokens: Tokens that come after the reader wanted them, a migration; `None` without any.
        p99_delayed_tokens: Of the migrations; the worst of the seeds.
        p99_tbt_s: Of the gaps between tokens as read, of all answers.
        reading_s: What a reader takes for a token.
        wasted_tokens: Generated in vain, a request.
    """

    handoff: str
    share: float
    migrated_share: float
    delayed_tokens: float | None
    p99_delayed_tokens: float
    p99_tbt_s: float
    reading_s: float
    wasted_tokens: float


class Experience(Place, frozen=True, kw_only=True):
    """QoE of the answers under a policy, which stay where they begin."""

    policy: str
    share: float
    qoe: Interval


class Loss(Place, frozen=True, kw_only=True):
    """What a policy is without one of its parts; changes are shares of what the whole has.

    Attributes:
        without: The part, in words.
        of_answers: Whether it is a part of how answers move, so that TTFT does not depend on it.
        mean_ttft: The change of mean TTFT.
        p99_ttft: The change of P99 TTFT.
        spent_share: The change of the spend, in shares of all prompt tokens.
        cost: The change of the cost.
        qoe: What is added to QoE.
        delayed_tokens: A migration; `None` without any.
        delayed_tokens_whole: The same with nothing left out.
    """

    policy: str
    without: str
    of_answers: bool
    mean_ttft: Interval
    p99_ttft: Interval
    spent_share: Interval
    cost: Interval
    qoe: Interval
    delayed_tokens: float | None
    delayed_tokens_whole: float | None


class Day(Place, frozen=True, kw_only=True):
    """A day on which the server is slower for the middle third of the requests; means over seeds.

    Attributes:
        follows: What plans take account of.
        whole: All of it.
        thirds: Before, meanwhile and after.
        mean_ttft_s: For each of many stretches.
        spent_share: Likewise.
    """

    follows: str
    policy: str
    share: float
    slower: float
    whole: Stretch
    thirds: tuple[Stretch, ...]
    mean_ttft_s: tuple[float, ...]
    spent_share: tuple[float, ...]


class Sensitivity(Place, frozen=True, kw_only=True):
    """What becomes of answers when something is misjudged, or the reader is another.

    Attributes:
        varied: The field of a case.
        value: What it is set to.
        cost: Dollars a request, energy converted, as a share of what it is without migration.
        delayed_tokens: A migration; `None` without any.
    """

    varied: str
    value: float
    cost: Interval
    qoe: float
    migrated_share: float
    delayed_tokens: float | None
    p99_tbt_s: float
    reading_s: float


class Findings(Struct, frozen=True, kw_only=True):
    """All of it.

    Attributes:
        workload: The name of what prompts and answers come from.
        workload_note: What was estimated of it, or left out.
        probabilities: At which the quantiles of `spreads` are.
        most_saved: Of the savings that keep QoE, the largest for each constraint.
        lost: Cells that nothing came of, and why.
    """

    grid: Grid
    workload: str
    workload_note: str
    servers: tuple[Server, ...]
    probabilities: tuple[float, ...]
    cuts: tuple[Cut, ...]
    reproductions: tuple[Reproduction, ...]
    spreads: tuple[Spread, ...]
    frontiers: tuple[Frontier, ...]
    savings: tuple[Saving, ...]
    most_saved: tuple[MostSaved, ...]
    moves: tuple[Move, ...]
    experiences: tuple[Experience, ...]
    losses: tuple[Loss, ...]
    days: tuple[Day, ...]
    sensitivities: tuple[Sensitivity, ...]
    lost: tuple[Lost, ...]
