"""Which cells an evaluation has.

Races are run everywhere: for all servers, devices, constraints, policies, shares and seeds. Whole answers
cost more to simulate, so that what becomes of them is looked at with fewer shares and seeds; how sensitive
that is with one device; and a server that slows down where a trace has requests enough to slow down.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from msgspec import Struct
from msgspec.structs import replace as with_changed

from discostream.sim.cells import AnyCell, Cell, Drift
from discostream.sim.online import Follows
from discostream.sim.study import Case
from discostream.sim.world import Handoff

__all__ = [
    "ABLATIONS",
    "ALONE",
    "BASELINE",
    "CONSUMPTION_TOKENS_PER_S",
    "FACTORS",
    "OPTIMAL",
    "PAPERS",
    "POLICIES",
    "SHARES",
    "Ablation",
    "Constraint",
    "Grid",
    "Setting",
]

Constraint: TypeAlias = Literal["device", "server"]

ALONE = ("server-only", "device-only")
"""Policies to which no share matters."""

BASELINE, PAPERS, OPTIMAL = "stochastic", "disco", "optimal"
"""What others are measured by, the paper's, and ours."""

POLICIES = (*ALONE, BASELINE, PAPERS, OPTIMAL)
SHARES = tuple(tenths / 10 for tenths in range(1, 10))

USUAL_SHARE = 0.3
"""That at which one share stands for all."""

FEW_SHARES = 5
"""At so many shares at most `optimal` is looked at: a table takes ten times as long as others' cells."""

FEW_SEEDS = 3
"""With so many seeds at most whole answers are looked at, and days with a slow server."""

DAY_REQUESTS = 2000
"""How many requests come in a day with a slow server, at most."""

CONSUMPTION_TOKENS_PER_S = (3.3, 4.785, 7.2, 9.6)
"""Listening and reading, as by Andes (arXiv 2404.16283), and readers half as fast again and twice as fast."""

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""By what handoff times and remaining lengths are misjudged."""


STAYING: dict[str, Any] = {"handoff": Handoff.OFF}
"""Answers stay where they begin, which is all the same to TTFT, and quickly simulated."""


class Ablation(NamedTuple):
    """A policy without one of its parts.

    Attributes:
        policy: Whose part it is.
        without: What is left out, in words; empty for the whole.
        changes: To its case.
        waits: Whether plans may wait.
        of_answers: Whether the part is one of how answers move, and not of who starts when.
    """

    policy: str
    without: str
    changes: dict[str, Any]
    waits: bool = True
    of_answers: bool = False


ABLATIONS = (
    Ablation(PAPERS, "", STAYING),
    Ablation(PAPERS, "no tail stage", {**STAYING, "alpha": 0.0}),
    Ablation(PAPERS, "no waits", STAYING, waits=False),
    Ablation(OPTIMAL, "", STAYING),
    Ablation(OPTIMAL, "no waits", STAYING, waits=False),
    Ablation(PAPERS, "", {}, of_answers=True),
    Ablation(PAPERS, "no warm standby", {"warm_standby": False}, of_answers=True),
    Ablation(PAPERS, "stop-then-start", {"handoff": Handoff.STOP_THEN_START}, of_answers=True),
    Ablation(PAPERS, "no migration", STAYING, of_answers=True),
)
"""Each follows the whole with which it is compared."""


class Setting(NamedTuple):
    """Where policies are compared."""

    server_trace: str
    device: str
    constraint: Constraint


class Grid(Struct, frozen=True, kw_only=True):
    """What an evaluation looks at.

    Attributes:
        server_traces: See `read_trace`.
        lasting: Those of them that are long enough for a day of their own.
        devices: See `device_named`.
        shares: b, rising.
        policies: `BASELINE` among them.
        seeds: How many; the first ones where fewer do.
        requests: How many are judged in each cell.
        workload: See `read_workload`.
    """

    server_traces: tuple[str, ...]
    lasting: tuple[str, ...]
    devices: tuple[str, ...]
    constraints: tuple[Constraint, ...] = ("device", "server")
    shares: tuple[float, ...] = SHARES
    policies: tuple[str, ...] = POLICIES
    seeds: int
    requests: int
    workload: str

    @property
    def settings(self) -> list[Setting]:
        """Every server with every device under every constraint."""
        return [Setting(*each) for each in product(self.server_traces, self.devices, self.constraints)]

    @property
    def few_seeds(self) -> range:
        """Those with which whole answers are looked at."""
        return range(min(self.seeds, FEW_SEEDS))

    @property
    def usual_share(self) -> float:
        """The share that stands for all of them."""
        return min(self.shares_of(OPTIMAL), key=lambda share: abs(share - USUAL_SHARE))

    @property
    def largest_share(self) -> float:
        """The share at which most answers begin where they are dear, so that migration has most to do."""
        return self.shares[-1]

    @property
    def answer_shares(self) -> tuple[float, ...]:
        """Those at which savings are looked at."""
        return tuple(sorted({self.usual_share, self.largest_share}))

    @property
    def usual_device(self) -> str:
        """The device with which sensitivity is looked at."""
        return self.devices[len(self.devices) // 2]

    def shares_of(self, policy: str) -> tuple[float, ...]:
        """Those at which a policy is looked at: all, or some from end to end where that takes long."""
        if policy in ALONE:
            return (1.0,)
        if policy != OPTIMAL:
            return self.shares
        evenly = np.linspace(0, len(self.shares) - 1, FEW_SHARES)
        return tuple(self.shares[index] for index in np.unique(np.rint(evenly).astype(int)))

    def cell(
        self, setting: Setting, policy: str, share: float, seed: int, *, waits: bool = True, **changes: Any
    ) -> Cell:
        """One cell; answers move by make-before-break unless the changes say otherwise."""
        case = Case(
            server_trace=setting.server_trace,
            device=setting.device,
            constraint=setting.constraint,
            policy=policy,
            share=share,
            seed=seed,
            workload=self.workload,
            requests=self.requests,
            **changes,
        )
        return Cell(case=case, waits=waits)

    def race(self, setting: Setting, policy: str, share: float, seed: int) -> Cell:
        """The same without migration, which neither TTFT nor the constrained kind's share depends on."""
        return self.cell(setting, policy, share, seed, handoff=Handoff.OFF)

    def ablation(self, setting: Setting, ablation: Ablation, seed: int) -> Cell:
        """A policy without one of its parts."""
        share = self.largest_share if ablation.of_answers else self.usual_share
        return self.cell(setting, ablation.policy, share, seed, waits=ablation.waits, **ablation.changes)

    def varied(self, setting: Setting, seed: int, field: str, value: float) -> Cell:
        """The paper's policy with one field of its case set to something else."""
        changes: dict[str, Any] = {field: value}
        return self.cell(setting, PAPERS, self.largest_share, seed, **changes)

    def drift(self, setting: Setting, follows: Follows, seed: int) -> Drift:
        """A day on which the server slows down for a while."""
        cell = self.race(setting, PAPERS, self.usual_share, seed)
        requests = min(self.requests, DAY_REQUESTS)
        return Drift(case=with_changed(cell.case, requests=requests), follows=follows)

    @property
    def ablations(self) -> list[Ablation]:
        """Those of the policies that are looked at."""
        return [ablation for ablation in ABLATIONS if ablation.policy in self.policies]

    def tasks(self) -> list[tuple[AnyCell, ...]]:
        """All cells, together those that share what they rest on, and in a row those of one trace."""
        seeds = range(self.seeds)
        return [tuple(dict.fromkeys(self._cells(*each))) for each in product(self.settings, seeds)]

    def _cells(self, setting: Setting, seed: int) -> Iterator[AnyCell]:
        for policy in self.policies:
            yield from (self.race(setting, policy, share, seed) for share in self.shares_of(policy))
        if seed not in self.few_seeds:
            return
        yield from (self.ablation(setting, ablation, seed) for ablation in self.ablations)
        if PAPERS in self.policies:
            yield from (self.cell(setting, PAPERS, share, seed) for share in self.answer_shares)
        if PAPERS in self.policies and setting.device == self.usual_device:
            yield from self._sensitive(setting, seed)

    def _sensitive(self, setting: Setting, seed: int) -> Iterator[AnyCell]:
        for field, values in SENSITIVITIES.items():
            yield from (self.varied(setting, seed, field, value) for value in values)
        if setting.server_trace in self.lasting:
            yield from (self.drift(setting, follows, seed) for follows in Follows)


SENSITIVITIES = {
    "consumption_tokens_per_s": CONSUMPTION_TOKENS_PER_S,
    "t_m_factor": FACTORS,
    "remaining_factor": FACTORS,
}
"""What is varied, by the field of a case, and the values that it takes."""
