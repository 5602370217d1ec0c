"""The cells of an evaluation, and what each of them comes to.

Most cells differ from another in nothing but the policy, the share, or how answers move. What they have in
common (the halves of the data, what was learnt from the first, the requests and the luck drawn from the
second) is made once for all that are judged together. None of it depends on who else is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import TypeAlias

import numpy as np
from msgspec import Struct
from msgspec.structs import replace as with_changed

from discostream.config import PolicySettings
from discostream.core.plans import PlanTable
from discostream.core.plugins import load_policy
from discostream.sim.figures import Figures, Tally
from discostream.sim.lots import without_waits
from discostream.sim.online import Follows, Stretch, live_through
from discostream.sim.rehearsed import rehearsed
from discostream.sim.simulate import simulate
from discostream.sim.study import PART, Case, Stage
from discostream.sim.world import Handoff, Luck, Requests, World

__all__ = [
    "PROBABILITIES",
    "STRETCHES",
    "AnyCell",
    "Cell",
    "Course",
    "Drift",
    "Lost",
    "Outcome",
    "Verdict",
    "judge_together",
    "scene_of",
]

PROBABILITIES = tuple(np.round(1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, 41))), 5).tolist())
"""At which the distribution of TTFT is told: dense at both ends."""

DIGITS = 5
"""Significant ones of those quantiles."""

STRETCHES = 24
"""In how many parts a day with a slow server is told: eight to each third."""


class Cell(Struct, frozen=True, kw_only=True, tag_field="kind", tag="answers"):
    """Requests that are answered under a policy.

    Attributes:
        case: Everything that decides what becomes of them, but for this.
        waits: Whether plans may wait; see `without_waits`.
    """

    case: Case
    waits: bool = True


class Drift(Struct, frozen=True, kw_only=True, tag_field="kind", tag="drift"):
    """Requests that come one after the other while the server slows down; see `live_through`.

    Attributes:
        case: Who plans by what, and how many come.
        follows: What plans take account of.
        slower: By what the server's TTFT is multiplied in the middle third.
    """

    case: Case
    follows: Follows
    slower: float = 3.0


class Verdict(Struct, frozen=True, kw_only=True):
    """What a `Cell` came to.

    Attributes:
        ttft_s: Quantiles of TTFT at `PROBABILITIES`.
    """

    cell: Cell
    figures: Figures
    ttft_s: tuple[float, ...]


class Course(Struct, frozen=True, kw_only=True):
    """What a `Drift` came to.

    Attributes:
        whole: The day.
        thirds: Before the server is slower, meanwhile, and after.
        stretches: `STRETCHES` of them.
    """

    cell: Drift
    whole: Stretch
    thirds: tuple[Stretch, ...]
    stretches: tuple[Stretch, ...]


class Lost(Struct, frozen=True, kw_only=True):
    """A cell that nothing came of.

    Attributes:
        reason: In words.
    """

    cell: Cell | Drift
    reason: str


AnyCell: TypeAlias = Cell | Drift
Outcome: TypeAlias = Verdict | Course | Lost


def scene_of(case: Case) -> Case:
    """The case without what cells that are judged together may differ in."""
    return with_changed(
        case,
        policy="server-only",
        share=1.0,
        handoff=Handoff.OFF,
        alpha=0.0,
        warm_standby=True,
        t_m_factor=1.0,
        remaining_factor=1.0,
    )


def judge_together(cells: Iterable[AnyCell]) -> Iterator[Outcome]:
    """What each cell comes to; one that fails is lost with its reason, and the others go on."""
    scenes: dict[Case, _Scene] = {}
    for cell in cells:
        try:
            if isinstance(cell, Drift):
                yield _lived_through(cell)
                continue
            key = scene_of(cell.case)
            if key not in scenes:
                scenes[key] = _Scene(key)
            yield scenes[key].judge(cell)
        except Exception as error:
            yield Lost(cell=cell, reason=f"{type(error).__name__}: {error}")


def _lived_through(cell: Drift) -> Course:
    (whole,), thirds, stretches = live_through(cell.case, cell.follows, cell.slower, 1, 3, STRETCHES)
    return Course(cell=cell, whole=whole, thirds=thirds, stretches=stretches)


_policy = cache(load_policy)


class _Scene:
    """What cells have in common.

    Attributes:
        stage: Of any of them.
        world: Of the stage, rehearsed.
        parts: The requests and their luck, a part at a time, as `judge` draws them.
        tables: Those made so far, by policy, share and alpha.
    """

    def __init__(self, case: Case) -> None:
        self.stage = Stage.of(case)
        self.world = rehearsed(self.stage.world)
        self.parts: list[tuple[Requests, dict[str, Luck]]] = [
            self.stage.draw(min(PART, case.requests - first), np.random.default_rng([case.seed, part]))
            for part, first in enumerate(range(0, case.requests, PART))
        ]
        self.tables: dict[tuple[str, float, float], PlanTable] = {}

    def judge(self, cell: Cell) -> Verdict:
        """The figures of one cell."""
        case, world = cell.case, self._world(cell.case)
        table = self._table(case) if cell.waits else without_waits(world.known, self._table(case))
        tally = Tally(self.stage.constrained)
        for requests, luck in self.parts:
            tally = tally.add(simulate(world, table, requests, luck))
        figures = tally.figures(
            policy=case.policy, share=case.share, device=case.device, server_trace=self.stage.judged.name
        )
        quantiles = np.quantile(tally.ttft_s, PROBABILITIES).tolist()
        return Verdict(
            cell=cell, figures=figures, ttft_s=tuple(float(f"{each:.{DIGITS}g}") for each in quantiles)
        )

    def _world(self, case: Case) -> World:
        return replace(
            self.world,
            handoff=case.handoff,
            warm_standby=case.warm_standby,
            t_m_factor=case.t_m_factor,
            remaining_factor=case.remaining_factor,
        )

    def _table(self, case: Case) -> PlanTable:
        key = case.policy, case.share, case.alpha
        if key not in self.tables:
            kind = self.stage.constrained
            settings = PolicySettings(
                name=case.policy, constraint=kind.value, share=case.share, alpha=case.alpha
            )
            self.tables[key] = _policy(case.policy)(self.stage.world.known, settings)
        return self.tables[key]
