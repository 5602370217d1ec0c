"""What the cells of an evaluation have in common: from figures of single cells to findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import TypedDict

import numpy as np

from discostream.sim.cells import PROBABILITIES, Cell, Course, Verdict
from discostream.sim.evaluate import Evaluation
from discostream.sim.figures import Figures
from discostream.sim.grid import ALONE, BASELINE, PAPERS, SENSITIVITIES, Ablation, Constraint, Setting
from discostream.sim.online import Follows, Stretch
from discostream.sim.report.findings import (
    Cut,
    Day,
    Experience,
    Findings,
    Frontier,
    Loss,
    MostSaved,
    Move,
    Point,
    Reproduction,
    Saving,
    Sensitivity,
    Server,
    Spread,
)
from discostream.sim.report.intervals import Interval, interval_of
from discostream.sim.study import Case
from discostream.sim.world import Handoff

__all__ = ["STAND_INS", "findings_of"]

STAND_INS = {
    "GPT": ("GPT4o", "gpt-4o", "AzureGPT4oMini"),
    "LLaMA": ("together_70b", "replicate_70b", "llama-2-70b-replicate"),
}
"""Traces for the services of the paper, whose own were not published; for Cohere's Command there is none."""

PAPER_P99_CUT = {
    ("GPT", "server"): (0.2385, 0.4404),
    ("GPT", "device"): (0.2639, 0.1632),
    ("LLaMA", "server"): (0.1108, 0.2629),
    ("LLaMA", "device"): (0.3567, 0.2129),
    ("Command", "server"): (0.4793, 0.5223),
    ("Command", "device"): (0.3478, 0.2442),
}
"""arXiv 2502.11417: by how much the tail of TTFT falls against the baseline at the same budget."""

PAPER_DEVICES = "pixel-7-pro-bloom-1.1b", "xiaomi-14-qwen1.5-0.5b"
"""Those of the figures above."""


def findings_of(evaluation: Evaluation) -> Findings:
    """What the cells of an evaluation come to; what rests on lost ones alone is left out."""
    return _Search(evaluation).findings()


class _Search:
    """An evaluation, asked for what its cells have in common."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.grid, self.found = evaluation.grid, evaluation.found
        self.evaluation, self.names = evaluation, _names(evaluation)

    def findings(self) -> Findings:
        savings = tuple(self._savings())
        cuts = tuple(self._cuts())
        traces = self.evaluation.traces
        return Findings(
            grid=self.grid,
            workload=self.evaluation.workload.name,
            workload_note=self.evaluation.workload.note,
            servers=tuple(
                Server(name=self.names[source], source=source, requests=len(trace), note=trace.note)
                for source, trace in traces.items()
            ),
            probabilities=PROBABILITIES,
            cuts=cuts,
            reproductions=tuple(_reproductions(cuts)),
            spreads=tuple(self._spreads()),
            frontiers=tuple(self._frontiers()),
            savings=savings,
            most_saved=tuple(self._most_saved(savings)),
            moves=tuple(self._moves()),
            experiences=tuple(self._experiences()),
            losses=tuple(self._losses()),
            days=tuple(self._days()),
            sensitivities=tuple(self._sensitivities()),
            lost=self.evaluation.lost,
        )

    def _cuts(self) -> Iterator[Cut]:
        for setting, policy in product(self.grid.settings, self.grid.policies):
            if policy in (*ALONE, BASELINE):
                continue
            shares = self.grid.shares_of(policy)
            rivals = [
                rivals
                for seed in range(self.grid.seeds)
                if len((rivals := self._rivals(setting, policy, seed)).pairs) == len(shares)
            ]
            if rivals:
                yield Cut(
                    **self._place(setting),
                    policy=policy,
                    shares=shares,
                    mean_ttft=interval_of([each.fall("mean_ttft_s") for each in rivals]),
                    p99_ttft=interval_of([each.fall("p99_ttft_s") for each in rivals]),
                    mean_ttft_at_spend=interval_of([each.fall_at_spend("mean_ttft_s") for each in rivals]),
                    p99_ttft_at_spend=interval_of([each.fall_at_spend("p99_ttft_s") for each in rivals]),
                )

    def _rivals(self, setting: Setting, policy: str, seed: int) -> _Rivals:
        shares = self.grid.shares_of(policy)
        pairs = self._pairs(
            (self.grid.race(setting, BASELINE, share, seed), self.grid.race(setting, policy, share, seed))
            for share in shares
        )
        spending = [self.grid.race(setting, BASELINE, share, seed) for share in self.grid.shares]
        frugal = [self.grid.race(setting, policy, 1.0, seed) for policy in ALONE]
        frontier = [verdict.figures for verdict in self._verdicts([*spending, *frugal])]
        return _Rivals(
            pairs=pairs,
            frontier=[each for each in frontier if each.policy == BASELINE or each.spent_share == 0.0],
        )

    def _spreads(self) -> Iterator[Spread]:
        for setting, policy, share in self._usual():
            verdicts = self._races(setting, policy, share)
            if verdicts:
                quantiles = zip(*(verdict.ttft_s for verdict in verdicts), strict=True)
                yield Spread(
                    **self._place(setting),
                    policy=policy,
                    share=share,
                    ttft_s=tuple(fmean(each) for each in quantiles),
                )

    def _frontiers(self) -> Iterator[Frontier]:
        for setting, policy in product(self.grid.settings, self.grid.policies):
            points = []
            for share in self.grid.shares_of(policy):
                figures = [verdict.figures for verdict in self._races(setting, policy, share)]
                if figures:
                    points.append(
                        Point(
                            share=share,
                            spent_share=fmean(each.spent_share for each in figures),
                            mean_ttft_s=fmean(each.mean_ttft_s for each in figures),
                            p99_ttft_s=fmean(each.p99_ttft_s for each in figures),
                        )
                    )
            if points:
                yield Frontier(**self._place(setting), policy=policy, points=tuple(points))

    def _savings(self) -> Iterator[Saving]:
        for setting, share in product(self.grid.settings, self.grid.answer_shares):
            pairs = self._pairs(
                (self.grid.race(setting, PAPERS, share, seed), self.grid.cell(setting, PAPERS, share, seed))
                for seed in self.grid.few_seeds
            )
            if pairs:
                yield Saving(
                    **self._place(setting),
                    policy=PAPERS,
                    share=share,
                    cost_without=fmean(without.cost for without, _ in pairs),
                    cost_with=fmean(moving.cost for _, moving in pairs),
                    fall=interval_of([_fall(*pair, "cost") for pair in pairs]),
                    qoe_without=fmean(without.qoe_mean for without, _ in pairs),
                    qoe_change=interval_of([moving.qoe_mean - without.qoe_mean for without, moving in pairs]),
                    migrated_share=fmean(moving.migrated_share for _, moving in pairs),
                )

    def _moves(self) -> Iterator[Move]:
        share = self.grid.largest_share
        for setting, handoff in product(self.grid.settings, Handoff):
            cells = [
                self.grid.cell(setting, PAPERS, share, seed, handoff=handoff) for seed in self.grid.few_seeds
            ]
            figures = [verdict.figures for verdict in self._verdicts(cells)]
            if figures:
                yield Move(
                    **self._place(setting),
                    handoff=handoff.value,
                    share=share,
                    migrated_share=fmean(each.migrated_share for each in figures),
                    delayed_tokens=_delayed_tokens(figures),
                    p99_delayed_tokens=max(each.delayed_tokens_p99 for each in figures),
                    p99_tbt_s=fmean(each.p99_tbt_s for each in figures),
                    reading_s=1.0 / cells[0].case.consumption_tokens_per_s,
                    wasted_tokens=fmean(each.wasted_tokens for each in figures),
                )

    def _experiences(self) -> Iterator[Experience]:
        for setting, policy, share in self._usual():
            qoe = [verdict.figures.qoe_mean for verdict in self._races(setting, policy, share)]
            if qoe:
                yield Experience(**self._place(setting), policy=policy, share=share, qoe=interval_of(qoe))

    def _losses(self) -> Iterator[Loss]:
        whole = None
        for setting, ablation in product(self.grid.settings, self.grid.ablations):
            if not ablation.without:
                whole = ablation
                continue
            assert whole is not None
            pairs = self._pairs(
                (self.grid.ablation(setting, whole, seed), self.grid.ablation(setting, ablation, seed))
                for seed in self.grid.few_seeds
            )
            if pairs:
                yield Loss(**self._place(setting), **_loss(ablation, pairs))

    def _days(self) -> Iterator[Day]:
        for setting, follows in product(self.grid.settings, Follows):
            cells = [self.grid.drift(setting, follows, seed) for seed in self.grid.few_seeds]
            courses = [course for cell in cells if isinstance(course := self.found.get(cell), Course)]
            if courses:
                stretches = [
                    _mean_of(each) for each in zip(*(course.stretches for course in courses), strict=True)
                ]
                yield Day(
                    **self._place(setting),
                    follows=follows.value,
                    policy=cells[0].case.policy,
                    share=cells[0].case.share,
                    slower=cells[0].slower,
                    whole=_mean_of([course.whole for course in courses]),
                    thirds=tuple(
                        _mean_of(each) for each in zip(*(course.thirds for course in courses), strict=True)
                    ),
                    mean_ttft_s=tuple(each.mean_ttft_s for each in stretches),
                    spent_share=tuple(each.spent_share for each in stretches),
                )

    def _sensitivities(self) -> Iterator[Sensitivity]:
        settings = [setting for setting in self.grid.settings if setting.device == self.grid.usual_device]
        varied = [(name, value) for name, values in SENSITIVITIES.items() for value in values]
        for setting, (name, value) in product(settings, varied):
            cells = [self.grid.varied(setting, seed, name, value) for seed in self.grid.few_seeds]
            share = self.grid.largest_share
            pairs = self._pairs(
                (self.grid.race(setting, PAPERS, share, seed), cell)
                for seed, cell in zip(self.grid.few_seeds, cells, strict=True)
            )
            if pairs:
                moving = [figures for _, figures in pairs]
                yield Sensitivity(
                    **self._place(setting),
                    varied=name,
                    value=value,
                    cost=interval_of([1.0 - _fall(*pair, "cost") for pair in pairs]),
                    qoe=fmean(each.qoe_mean for each in moving),
                    migrated_share=fmean(each.migrated_share for each in moving),
                    delayed_tokens=_delayed_tokens(moving),
                    p99_tbt_s=fmean(each.p99_tbt_s for each in moving),
                    reading_s=1.0 / cells[0].case.consumption_tokens_per_s,
                )

    def _usual(self) -> Iterator[tuple[Setting, str, float]]:
        """Every policy in every setting, at the share that stands for all."""
        for setting, policy in product(self.grid.settings, self.grid.policies):
            yield setting, policy, 1.0 if policy in ALONE else self.grid.usual_share

    def _races(self, setting: Setting, policy: str, share: float) -> list[Verdict]:
        return self._verdicts(self.grid.race(setting, policy, share, seed) for seed in range(self.grid.seeds))

    def _verdicts(self, cells: Iterable[Cell]) -> list[Verdict]:
        return [verdict for cell in cells if isinstance(verdict := self.found.get(cell), Verdict)]

    def _pairs(self, cells: Iterable[tuple[Cell, Cell]]) -> list[tuple[Figures, Figures]]:
        """What two cells each came to, where both did."""
        pairs = (self._verdicts(pair) for pair in cells)
        return [(pair[0].figures, pair[1].figures) for pair in pairs if len(pair) == 2]

    def _place(self, setting: Setting) -> _Where:
        return {
            "server": self.names[setting.server_trace],
            "device": setting.device,
            "constraint": setting.constraint,
        }

    def _most_saved(self, savings: Sequence[Saving]) -> Iterator[MostSaved]:
        for constraint in self.grid.constraints:
            keeping = [each for each in savings if each.constraint == constraint and each.keeps_qoe]
            if keeping:
                most = max(keeping, key=lambda saving: saving.fall.mean)
                yield MostSaved(most, self._case_of(most))

    def _case_of(self, saving: Saving) -> Case:
        source = next(source for source, name in self.names.items() if name == saving.server)
        constraint = self.grid.constraints[
            [str(each) for each in self.grid.constraints].index(saving.constraint)
        ]
        return self.grid.cell(Setting(source, saving.device, constraint), saving.policy, saving.share, 0).case


@dataclass(frozen=True)
class _Rivals:
    """A policy and the baseline, with the same seed.

    Attributes:
        pairs: What each share came to with the baseline and with the policy.
        frontier: What the baseline comes to at every share, and where nothing is spent.
    """

    pairs: Sequence[tuple[Figures, Figures]]
    frontier: Sequence[Figures]

    def fall(self, name: str) -> float:
        """By how much a figure falls at the same share, the mean over shares."""
        return fmean(_fall(*pair, name) for pair in self.pairs)

    def fall_at_spend(self, name: str) -> float:
        """By how much it falls at the same spend, between the shares of the baseline straight."""
        points = sorted((each.spent_share, getattr(each, name)) for each in self.frontier)
        spends, heights = zip(*points, strict=True)
        ours = [figures for _, figures in self.pairs]
        theirs = np.interp([each.spent_share for each in ours], spends, heights).tolist()
        pairs = zip(theirs, (getattr(each, name) for each in ours), strict=True)
        return fmean(_share_of_fall(*pair) for pair in pairs)


class _Where(TypedDict):
    server: str
    device: str
    constraint: Constraint


class _Lost(TypedDict):
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


def _loss(ablation: Ablation, pairs: Sequence[tuple[Figures, Figures]]) -> _Lost:
    return {
        "policy": ablation.policy,
        "without": ablation.without,
        "of_answers": ablation.of_answers,
        "mean_ttft": interval_of([-_fall(*pair, "mean_ttft_s") for pair in pairs]),
        "p99_ttft": interval_of([-_fall(*pair, "p99_ttft_s") for pair in pairs]),
        "spent_share": interval_of([part.spent_share - whole.spent_share for whole, part in pairs]),
        "cost": interval_of([-_fall(*pair, "cost") for pair in pairs]),
        "qoe": interval_of([part.qoe_mean - whole.qoe_mean for whole, part in pairs]),
        "delayed_tokens": _delayed_tokens([part for _, part in pairs]),
        "delayed_tokens_whole": _delayed_tokens([whole for whole, _ in pairs]),
    }


def _fall(before: Figures, after: Figures, name: str) -> float:
    return _share_of_fall(getattr(before, name), getattr(after, name))


def _share_of_fall(was: float, became: float) -> float:
    """By how much something falls, as a share of what it was; nothing falls from nothing."""
    return 1.0 - became / was if was else 0.0


def _delayed_tokens(figures: Sequence[Figures]) -> float | None:
    """Delayed tokens a migration, every migration counting alike; `None` where there is none."""
    moved = [each.migrated_share * each.n for each in figures]
    if not sum(moved):
        return None
    delayed = (each.delayed_tokens_mean * count for each, count in zip(figures, moved, strict=True))
    return sum(delayed) / sum(moved)


def _mean_of(stretches: Sequence[Stretch]) -> Stretch:
    return Stretch(
        n=stretches[0].n,
        mean_ttft_s=fmean(each.mean_ttft_s for each in stretches),
        p99_ttft_s=fmean(each.p99_ttft_s for each in stretches),
        spent_share=fmean(each.spent_share for each in stretches),
    )


def _reproductions(cuts: Sequence[Cut]) -> Iterator[Reproduction]:
    """The paper's table, with all that stands in for each of its services."""
    for (service, constraint), figures in PAPER_P99_CUT.items():
        for device, paper in zip(PAPER_DEVICES, figures, strict=True):
            ours = [
                cut
                for name in STAND_INS.get(service, ())
                for cut in cuts
                if (cut.server, cut.constraint, cut.device, cut.policy) == (name, constraint, device, PAPERS)
            ]
            for cut in ours or (None,):
                yield Reproduction(
                    service=service,
                    constraint=constraint,
                    device=device,
                    paper=paper,
                    server=cut.server if cut else None,
                    ours=cut.p99_ttft if cut else None,
                )


def _names(evaluation: Evaluation) -> dict[str, str]:
    """What the report calls each trace: its own name, or all of its source where two have the same."""
    short = {source: trace.name.removeprefix("requests-") for source, trace in evaluation.traces.items()}
    taken = list(short.values())
    return {source: name if taken.count(name) == 1 else source for source, name in short.items()}
