"""Findings as tables in words, for the page and for Markdown alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from statistics import fmean, median
from typing import TypeVar

from discostream.sim.grid import ALONE, BASELINE, OPTIMAL
from discostream.sim.page import Sheet
from discostream.sim.report.findings import Findings, Loss, Move, Place
from discostream.sim.report.intervals import Interval
from discostream.sim.world import Handoff

__all__ = [
    "ablations",
    "as_markdown",
    "biggest_savings",
    "cuts",
    "days",
    "handoffs",
    "headlines",
    "lost",
    "percent",
    "reproduction",
    "savings",
    "sensitivity",
    "servers",
    "setup",
    "spend",
]

SHOWN_SAVINGS = 6
"""How many of the largest are told for each constraint."""

SAME_S = 1e-4
"""Gaps that differ by less are equal."""

Item = TypeVar("Item", bound=Place)
Key = TypeVar("Key", bound=Hashable)


def as_markdown(sheet: Sheet) -> str:
    """A table in Markdown."""
    rule = ["---"] * sheet.words + ["---:"] * (len(sheet.columns) - sheet.words)
    lines = (sheet.columns, rule, *sheet.rows)
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines) + "\n"


def percent(share: float) -> str:
    """A share of something in whole percent."""
    return f"{100 * share:.0f} %".replace("-0 %", "0 %")


def servers(findings: Findings) -> Sheet:
    """What was read."""
    rows = ((each.name, each.note, f"{each.requests:,}") for each in findings.servers)
    return Sheet(("server", "what was estimated or left out", "requests"), 2, tuple(rows))


def cuts(findings: Findings, policy: str) -> Sheet:
    """A policy's TTFT against the baseline's, everywhere."""
    rows = (
        (
            cut.server,
            cut.device,
            cut.constraint,
            _interval(cut.mean_ttft),
            _interval(cut.p99_ttft),
            _interval(cut.mean_ttft_at_spend),
            _interval(cut.p99_ttft_at_spend),
        )
        for cut in findings.cuts
        if cut.policy == policy
    )
    return Sheet(
        ("server", "device", "budget on", "mean", "P99", "mean, equal spend", "P99, equal spend"),
        3,
        tuple(rows),
    )


def reproduction(findings: Findings) -> Sheet:
    """The paper's table, and ours."""
    rows = (
        (
            each.service,
            each.constraint,
            each.device,
            f"{100 * each.paper:.1f} %",
            each.server or "none",
            "-" if each.ours is None else _interval(each.ours),
        )
        for each in findings.reproductions
    )
    return Sheet(("service", "budget on", "device", "paper", "our trace", "ours"), 3, tuple(rows))


def setup(findings: Findings) -> str:
    """What was evaluated, in words."""
    grid = findings.grid
    shares = ", ".join(f"{share:g}" for share in grid.shares)
    few = ", ".join(f"{share:g}" for share in grid.shares_of(OPTIMAL))
    return (
        f"{grid.requests:,} requests in each cell, prompts and answers of {findings.workload}, shares "
        f"{shares} ({OPTIMAL}: {few}), {grid.seeds} seeds. One share stands for all: "
        f"{grid.usual_share:g} where it is about who starts when, and {grid.largest_share:g} where it is "
        f"about answers that move; these are looked at with {len(grid.few_seeds)} of the seeds, "
        f"misjudgement and slow days with {grid.usual_device} alone."
    )


def lost(findings: Findings) -> list[str]:
    """The cells that nothing came of, and why."""
    return [
        f"{case.policy} at {case.share:g}, budget on the {case.constraint}, {case.server_trace} with "
        f"{case.device}, seed {case.seed}: {each.reason}"
        for each in findings.lost
        for case in (each.cell.case,)
    ]


def headlines(findings: Findings) -> list[str]:
    """What it comes to, a sentence each."""
    return [*_cut_headlines(findings), *_saving_headlines(findings), *_move_headlines(findings)]


def _cut_headlines(findings: Findings) -> Iterator[str]:
    for policy, constraint in ((p, c) for p in findings.grid.policies for c in findings.grid.constraints):
        ours = [cut for cut in findings.cuts if (cut.policy, cut.constraint) == (policy, constraint)]
        if ours:
            yield (
                f"With a budget on the {constraint}, {policy} cuts P99 TTFT by "
                f"{percent(median(cut.p99_ttft.mean for cut in ours))} and mean TTFT by "
                f"{percent(median(cut.mean_ttft.mean for cut in ours))} against {BASELINE} at the same "
                f"share, in the median of {len(ours)} settings; in P99 it is better beyond chance in "
                f"{_count(ours, lambda cut: _is_above(cut.p99_ttft))}, and worse in "
                f"{_count(ours, lambda cut: _is_below(cut.p99_ttft))}."
            )


def _saving_headlines(findings: Findings) -> Iterator[str]:
    for most in findings.most_saved:
        best, case = most.saving, most.case
        yield (
            f"With a budget on the {best.constraint}, migration cuts cost by up to "
            f"{percent(best.fall.mean)} at equal QoE (which changes by {best.qoe_change.mean:+.4f}): "
            f"{best.server} with {best.device}, {best.policy} at share {best.share:g}, answers of "
            f"{findings.workload}, server at ${case.prompt_usd_per_mtok:g} and "
            f"${case.completion_usd_per_mtok:g} per million prompt and completion tokens, "
            f"{_rate_in_words(best.constraint)}."
        )


def _rate_in_words(constraint: str) -> str:
    if constraint == "server":
        return "energy at the price of electricity"
    return "energy so dear that the device's cheaper phase costs twice the server's dearer one"


def _move_headlines(findings: Findings) -> Iterator[str]:
    ours = [move for move in findings.moves if move.handoff == Handoff.MAKE_BEFORE_BREAK]
    moving = [move for move in ours if move.delayed_tokens is not None]
    if moving:
        worst = max(moving, key=lambda move: move.delayed_tokens or 0.0)
        yield (
            f"Make-before-break delays {_delayed(moving):.2f} tokens a migration in the mean, and "
            f"{worst.delayed_tokens:.2f} in the worst setting ({worst.server} with {worst.device}, budget on "
            f"the {worst.constraint}); P99 TBT is what it is without migration in "
            f"{_count(moving, lambda move: _keeps_tbt(findings, move))} of {len(moving)} settings with "
            f"migrations."
        )


def spend(findings: Findings) -> Sheet:
    """What policies spend of what they may."""
    rows = []
    for policy in findings.grid.policies:
        for constraint in findings.grid.constraints:
            points = [
                point
                for each in findings.frontiers
                if (each.policy, each.constraint) == (policy, constraint)
                for point in each.points
            ]
            if policy in ALONE or not points:
                continue
            over = [point.spent_share - point.share for point in points]
            rows.append(
                (
                    policy,
                    constraint,
                    f"{fmean(over):+.3f}",
                    f"{min(over):+.3f}",
                    f"{max(over):+.3f}",
                    percent(sum(each <= 0.03 for each in over) / len(over)),
                )
            )
    return Sheet(
        ("policy", "budget on", "spent beyond the share", "least", "most", "at most 0.03 beyond"),
        2,
        tuple(rows),
    )


def savings(findings: Findings) -> Sheet:
    """What migration saves, by device, constraint and share: the median server and the best."""
    rows = []
    for (device, constraint, share), alike in _grouped(
        findings.savings, lambda each: (each.device, each.constraint, each.share)
    ):
        falls = [each.fall.mean for each in alike]
        best = max(alike, key=lambda each: each.fall.mean)
        rows.append(
            (
                device,
                constraint,
                f"{share:g}",
                percent(median(falls)),
                percent(best.fall.mean),
                best.server,
                f"{min(each.qoe_change.mean for each in alike):+.4f}",
            )
        )
    return Sheet(
        (
            "device",
            "budget on",
            "share",
            "cost falls by: median server",
            "best",
            "which",
            "QoE changes by, worst",
        ),
        2,
        tuple(rows),
    )


def biggest_savings(findings: Findings) -> Sheet:
    """The settings in which migration saves most at equal QoE."""
    most = [
        each
        for constraint in findings.grid.constraints
        for each in sorted(
            (each for each in findings.savings if each.keeps_qoe and each.constraint == constraint),
            key=lambda each: -each.fall.mean,
        )[:SHOWN_SAVINGS]
    ]
    rows = (
        (
            each.server,
            each.device,
            each.constraint,
            f"{each.share:g}",
            f"${1000 * each.cost_without:.2f}",
            f"${1000 * each.cost_with:.2f}",
            _interval(each.fall),
            f"{each.qoe_without:.3f}",
            f"{each.qoe_change.mean:+.4f}",
            percent(each.migrated_share),
        )
        for each in most
    )
    return Sheet(
        (
            *("server", "device", "budget on", "share", "cost of 1,000 answers", "with migration"),
            *("fall", "QoE", "changes by", "answers that move"),
        ),
        3,
        tuple(rows),
    )


def handoffs(findings: Findings) -> Sheet:
    """What readers notice, by constraint and way of moving."""
    rows = []
    for (constraint, handoff), alike in _grouped(
        findings.moves, lambda each: (each.constraint, each.handoff)
    ):
        moving = [each for each in alike if each.delayed_tokens is not None]
        if not moving:
            continue
        rows.append(
            (
                constraint,
                handoff,
                str(len(moving)),
                percent(fmean(each.migrated_share for each in moving)),
                f"{_delayed(moving):.2f}",
                f"{max(each.delayed_tokens or 0.0 for each in moving):.2f}",
                f"{max(each.p99_delayed_tokens for each in moving):.0f}",
                _count(moving, lambda move: move.p99_tbt_s <= move.reading_s + SAME_S),
                _count(moving, lambda move: _keeps_tbt(findings, move)),
                f"{fmean(each.wasted_tokens for each in moving):.0f}",
            )
        )
    return Sheet(
        (
            *("budget on", "handoff", "settings with migrations", "answers that move"),
            *("delayed tokens a migration", "worst setting", "P99, worst setting"),
            *(
                "P99 TBT is the reader's pace",
                "or as without migration",
                "tokens generated in vain, a request",
            ),
        ),
        2,
        tuple(rows),
    )


def ablations(findings: Findings) -> Sheet:
    """What is lost with each part: the median setting, and the extremes."""
    rows = []
    for (policy, constraint, without), alike in _grouped(
        findings.losses, lambda each: (each.policy, each.constraint, each.without)
    ):
        of_answers = alike[0].of_answers
        rows.append(
            (
                policy,
                constraint,
                without,
                "-" if of_answers else _range([each.mean_ttft.mean for each in alike]),
                "-" if of_answers else _range([each.p99_ttft.mean for each in alike]),
                _range([each.cost.mean for each in alike]),
                _delay_change(alike) if of_answers else "-",
            )
        )
    return Sheet(
        ("policy", "budget on", "without", "mean TTFT", "P99 TTFT", "cost", "delayed tokens a migration"),
        3,
        tuple(rows),
    )


def days(findings: Findings) -> Sheet:
    """The days on which the server is slow for a while."""
    rows = (
        (
            each.server,
            each.constraint,
            each.follows,
            *(f"{third.mean_ttft_s:.2f} s" for third in each.thirds),
            *(f"{third.p99_ttft_s:.2f} s" for third in each.thirds),
            f"{each.thirds[1].spent_share:.2f}",
            f"{each.whole.spent_share:.2f} of {each.share:g}",
        )
        for each in findings.days
    )
    return Sheet(
        (
            *("server", "budget on", "plans follow", "mean TTFT before", "meanwhile", "after"),
            *("P99 before", "meanwhile", "after", "spent meanwhile", "spent in all"),
        ),
        3,
        tuple(rows),
    )


def sensitivity(findings: Findings) -> Sheet:
    """What misjudgement and other readers change, in the median server."""
    rows = []
    for (constraint, varied, value), alike in _grouped(
        findings.sensitivities, lambda each: (each.constraint, each.varied, each.value)
    ):
        delayed = [each.delayed_tokens for each in alike if each.delayed_tokens is not None]
        rows.append(
            (
                constraint,
                VARIED[varied],
                f"{value:g}",
                percent(median(each.cost.mean for each in alike)),
                percent(median(each.migrated_share for each in alike)),
                f"{max(delayed, default=0.0):.2f}",
                f"{median(each.qoe for each in alike):.3f}",
            )
        )
    return Sheet(
        (
            *("budget on", "varied", "to", "cost, of that without migration", "answers that move"),
            *("delayed tokens a migration, worst server", "QoE"),
        ),
        2,
        tuple(rows),
    )


VARIED = {
    "consumption_tokens_per_s": "reader's pace, tokens/s",
    "t_m_factor": "handoff time taken for so many times itself",
    "remaining_factor": "remaining length taken for so many times itself",
}
"""The fields of a case that are varied, in words."""


def _interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return percent(interval.mean)
    return f"{percent(interval.mean)} ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def _range(changes: Sequence[float]) -> str:
    return f"{_signed(median(changes))} ({_signed(min(changes))} to {_signed(max(changes))})"


def _signed(change: float) -> str:
    return f"{100 * change:+.0f} %".replace("-0 %", "+0 %")


def _is_above(interval: Interval) -> bool:
    return interval.low is not None and interval.low > 0.0


def _is_below(interval: Interval) -> bool:
    return interval.high is not None and interval.high < 0.0


def _count(items: Iterable[Item], holds: Callable[[Item], bool]) -> str:
    return str(sum(map(holds, items)))


def _delayed(moves: Sequence[Move]) -> float:
    """Delayed tokens a migration, over settings; those with more migrations weigh more."""
    weights = [move.migrated_share for move in moves]
    return sum((move.delayed_tokens or 0.0) * move.migrated_share for move in moves) / sum(weights)


def _delay_change(losses: Sequence[Loss]) -> str:
    with_it = [each.delayed_tokens_whole for each in losses if each.delayed_tokens_whole is not None]
    without = [each.delayed_tokens for each in losses if each.delayed_tokens is not None]
    if not with_it or not without:
        return "-"
    return f"{fmean(without):.2f}, in place of {fmean(with_it):.2f}"


def _keeps_tbt(findings: Findings, move: Move) -> bool:
    """Whether P99 TBT is what it is where answers stay."""
    return any(
        move.p99_tbt_s <= each.p99_tbt_s + SAME_S
        for each in findings.moves
        if each.handoff == Handoff.OFF
        and (each.server, each.device, each.constraint) == (move.server, move.device, move.constraint)
    )


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> list[tuple[Key, list[Item]]]:
    """The items by key, both in the order in which they first come."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())
