"""A service that changes while it is used: plans made once, and plans that follow what is seen and spent.

The paper takes F, the distribution of a server's TTFT, for known. Here the server is slower for a while. A
day of requests races under tables that are made anew after every few of them, from a profile that observes
what a session would: winners, failures, and losers that were cancelled, of which it only knows that their
content would have come later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from discostream.config import PolicySettings
from discostream.core.budget import POLICY_SHARE, Allowance, Resource, allowed_share
from discostream.core.forecast import SILENCE_S
from discostream.core.plans import PlanTable
from discostream.core.plugins import load_policy
from discostream.core.policies import Policy
from discostream.core.profile import EndpointProfile, Known
from discostream.sim.race import Race, run_race
from discostream.sim.study import SERVER, Case, Stage
from discostream.sim.world import Luck, Requests, World
from discostream.types import Attempt, AttemptOutcome, Kind

__all__ = ["EVERY", "Follows", "Stretch", "live_through"]

Floats: TypeAlias = NDArray[np.float64]

EVERY = 32
"""After so many requests a table is made anew, as on the live path."""

DAY_S = 86_400.0
"""All requests come within a day, evenly, so what was seen ages as it does in use."""


class Follows(StrEnum):
    """What tables that are made anew take account of."""

    NOTHING = "nothing"
    """There is one table, made before the first request."""
    SPEND = "spend"
    """What was spent, so that the budget holds."""
    EVERYTHING = "everything"
    """That, and what was seen of the server."""


class Stretch(Struct, frozen=True, kw_only=True):
    """A run of requests, one after the other.

    Attributes:
        n: How many.
        mean_ttft_s: With those that nobody answered counted as `SILENCE_S`; so is the quantile.
        spent_share: Prompt tokens that the constrained kind processed, as a share of all of theirs.
    """

    n: int
    mean_ttft_s: float
    p99_ttft_s: float
    spent_share: float


def live_through(case: Case, follows: Follows, slower: float, *parts: int) -> tuple[tuple[Stretch, ...], ...]:
    """What requests meet, one after the other, while the server is slower for the middle third of them.

    Args:
        case: Who plans by what, and how many requests come. Answers stay where they begin.
        follows: What the tables take account of.
        slower: By what the server's TTFT is multiplied meanwhile.
        parts: In how many stretches of equal length it is told; for each number, so many come back.
    """
    stage = Stage.of(case)
    requests, luck = stage.draw(case.requests, np.random.default_rng([case.seed, 0]))
    track = _Track.of(stage.world, requests, _disturbed(luck, case.requests, slower))
    plans = _Plans.of(case, stage, follows)
    ttft_s, spent_tokens = np.empty(case.requests), np.empty(case.requests)
    for first in range(0, case.requests, EVERY):
        rows = slice(first, first + EVERY)
        race = track.race(plans.table, rows)
        spent_tokens[rows] = track.prompt_tokens[rows] * (race.started @ plans.is_constrained)
        ttft_s[rows] = np.where(np.isinf(race.ttft_s), SILENCE_S, race.ttft_s)
        plans = plans.after(race, track.prompt_tokens[rows], float(spent_tokens[rows].sum()))
    every = np.arange(case.requests)
    return tuple(
        tuple(_told(ttft_s, spent_tokens, track.prompt_tokens, rows) for rows in np.array_split(every, count))
        for count in parts
    )


def _told(ttft_s: Floats, spent_tokens: Floats, prompt_tokens: Floats, rows: NDArray[np.int64]) -> Stretch:
    return Stretch(
        n=rows.size,
        mean_ttft_s=float(ttft_s[rows].mean()),
        p99_ttft_s=float(np.quantile(ttft_s[rows], 0.99)),
        spent_share=float(spent_tokens[rows].sum() / prompt_tokens[rows].sum()),
    )


def _disturbed(luck: Mapping[str, Luck], count: int, slower: float) -> dict[str, Luck]:
    third = count // 3
    factor = np.repeat([1.0, slower, 1.0], [third, third, count - 2 * third])
    return {**luck, SERVER: replace(luck[SERVER], ttft_s=luck[SERVER].ttft_s * factor)}


@dataclass(frozen=True, eq=False)
class _Track:
    """Everything that requests will meet, whoever is started for them.

    Attributes:
        ttft_s: From the start of an endpoint's first attempt, or second, to its content; (requests,) each.
        failed_after_s: From there to its failure.
    """

    requests: Requests
    ttft_s: Mapping[tuple[str, int], Floats]
    failed_after_s: Mapping[tuple[str, int], Floats]

    @classmethod
    def of(cls, world: World, requests: Requests, luck: Mapping[str, Luck]) -> _Track:
        uncached = requests.prompt_tokens - requests.cached_tokens
        tries = [(name, attempt) for name in world.services for attempt in range(2)]
        return cls(
            requests,
            {(name, n): world.services[name].ttft_s(uncached, luck[name].ttft_s[n]) for name, n in tries},
            {(name, n): luck[name].failed_after_s[n] for name, n in tries},
        )

    @property
    def prompt_tokens(self) -> Floats:
        return self.requests.prompt_tokens

    def race(self, table: PlanTable, rows: slice) -> Race:
        """Race some of the requests."""
        offsets = table.offsets_of(self.requests.felt_tokens[rows], self.requests.draws[rows])
        tries = [(name, table.endpoints[:column].count(name)) for column, name in enumerate(table.endpoints)]
        return run_race(
            offsets,
            np.column_stack([self.ttft_s[each][rows] for each in tries]),
            np.column_stack([self.failed_after_s[each][rows] for each in tries]),
        )


@dataclass(frozen=True, eq=False)
class _Plans:
    """The table in force, and all that the next one will be made from.

    Attributes:
        share: b, the budget.
        kind: What it holds back.
        every_s: From one request to the next.
        seen: Requests so far.
        all_tokens: Prompt tokens of those.
        spent_tokens: What of them the constrained kind has processed.
    """

    policy: Policy
    settings: PolicySettings
    follows: Follows
    share: float
    kind: Kind
    known: Known
    table: PlanTable
    every_s: float
    seen: int = 0
    all_tokens: float = 0.0
    spent_tokens: float = 0.0

    @classmethod
    def of(cls, case: Case, stage: Stage, follows: Follows) -> _Plans:
        kind = stage.constrained
        settings = PolicySettings(name=case.policy, constraint=kind.value, share=case.share, alpha=case.alpha)
        return cls(
            policy=load_policy(case.policy),
            settings=settings,
            follows=follows,
            share=case.share,
            kind=kind,
            known=stage.world.known,
            table=stage.table,
            every_s=DAY_S / case.requests,
        )

    @property
    def is_constrained(self) -> NDArray[np.bool_]:
        """Which columns of the table spend the budget, shape (columns,)."""
        return np.array([self.known.of(name).kind is self.kind for name in self.table.endpoints])

    def after(self, race: Race, prompt_tokens: Floats, spent_tokens: float) -> _Plans:
        """The plans for what comes next, once some more requests are over.

        Args:
            race: What became of them.
            prompt_tokens: Of each, shape (requests,).
            spent_tokens: What of it the constrained kind has processed.
        """
        if self.follows is Follows.NOTHING:
            return self
        known = self._having_seen(race, prompt_tokens) if self.follows is Follows.EVERYTHING else self.known
        seen = self.seen + prompt_tokens.size
        all_tokens, spent = self.all_tokens + float(prompt_tokens.sum()), self.spent_tokens + spent_tokens
        share = allowed_share(self.share, spent_tokens=spent, all_tokens=all_tokens, requests=seen)
        known = replace(known, allowances=(Allowance(POLICY_SHARE, Resource.SHARE, self.kind, share),))
        return replace(
            self,
            known=known,
            table=self.policy(known, self.settings),
            seen=seen,
            all_tokens=all_tokens,
            spent_tokens=spent,
        )

    def _having_seen(self, race: Race, prompt_tokens: Floats) -> Known:
        """What is known once the server's attempts are settled; the device does what it always did."""
        server = self.known.of(SERVER)
        for index, attempt in _attempts(server, self.table, race, prompt_tokens):
            server = server.observe(attempt, (self.seen + index) * self.every_s)
        others = (each for each in self.known.endpoints if each.name != SERVER)
        return replace(self.known, endpoints=(*others, server))


def _attempts(
    endpoint: EndpointProfile, table: PlanTable, race: Race, prompt_tokens: Floats
) -> Iterator[tuple[int, Attempt]]:
    """Every attempt on an endpoint that began, as it was settled, and the number of its request."""
    ours = np.array([name == endpoint.name for name in table.endpoints])
    for index, column in np.argwhere(race.started & ours).tolist():
        start_s, won = float(race.start_s[index, column]), bool(race.winner[index] == column)
        failed = bool(race.failed[index, column])
        outcome = AttemptOutcome.WON if won else AttemptOutcome.FAILED if failed else AttemptOutcome.LOST
        attempt = Attempt(
            endpoint=endpoint.name,
            kind=endpoint.kind,
            start_offset_s=start_s,
            ttft_s=float(race.ttft_s[index]) if won else None,
            prompt_tokens=int(prompt_tokens[index]),
            completion_tokens=0,
            usd=0.0,
            joules=0.0,
            outcome=outcome,
            error="failed" if failed else None,
            ran_s=float(race.ended_s[index]) - start_s,
        )
        yield index, attempt
