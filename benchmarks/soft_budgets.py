"""How near soft budgets come to what they say, planned by the budget itself and by what was really spent.

A service in numbers: prompts from the built-in table, a device, and a server whose TTFT trebles for the
middle third of 2,000 requests, spread over a day. Tables are made anew every 32 requests, as the planner
does, and what was spent is kept in a session's purse. Prints the table of docs/budgets.md;
tests/session/test_soft_budgets.py holds the same days to 3 %.

    python benchmarks/soft_budgets.py [--runs 60] [--jobs 2]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from discostream.builtin import builtin_output_lengths, builtin_prompt_lengths
from discostream.config import PolicySettings
from discostream.core.budget import Allowance, Budget, Resource, Window
from discostream.core.cost import Energy, Prices, Rates
from discostream.core.distributions import Distribution
from discostream.core.optimal import optimal
from discostream.core.policies import Policy, disco
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.session.purse import Purse
from discostream.types import FinishReason, Kind, Outcome, Plan

Floats: TypeAlias = NDArray[np.float64]

REQUESTS, EVERY, DAY_S = 2000, 32, 86_400.0
SLOWER = np.repeat([1.0, 3.0, 1.0], [REQUESTS // 3, REQUESTS // 3, REQUESTS - 2 * (REQUESTS // 3)])
"""By what the server's TTFT is multiplied, for each request."""

DEVICE = DeviceTtft.believed(1 / 80, 0.05, 0.02)
SERVER_TTFT = Distribution.of_samples(np.random.default_rng(0).lognormal(-0.439, 0.321, 4096))
"""GPT-4o-mini, by the fit to 60,480 probes of the llmprobe study."""

JOULES = {Kind.DEVICE: Energy(0.04, 0.06), Kind.SERVER: Energy()}
USD = {Kind.DEVICE: Prices(), Kind.SERVER: Prices(2.5, 10.0)}
PROMPTS, ANSWERS = builtin_prompt_lengths(), builtin_output_lengths()

ALWAYS_J = JOULES[Kind.DEVICE].joules(PROMPTS.mean, 0.0) * REQUESTS
"""What all prompts would take, all of them on the device."""

ALWAYS_USD = USD[Kind.SERVER].usd(PROMPTS.mean, ANSWERS.mean) * REQUESTS
"""What all prompts and answers would cost, all of them on the server."""

KINDS = {kind.value: kind for kind in Kind}
"""Of the endpoints, of which there is one of each."""

MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)
NEAR = 0.03
"""By how much a budget may be missed."""


@dataclass(frozen=True)
class Case:
    """A policy and its budget.

    Attributes:
        who: The policy in words.
        constraint: The kind that it holds back.
        told: The budget in words.
    """

    who: str
    policy: Policy
    constraint: Kind
    budget: Budget
    told: str


def share_of(kind: Kind, share: float) -> Budget:
    """A share of all prompt tokens."""
    return Budget(name="share", resource=Resource.SHARE, amount=share, kind=kind)


def daily(resource: Resource, amount: float) -> Budget:
    """So many dollars or joules for the day."""
    return Budget(name="daily", resource=resource, amount=amount, window=Window.DAY)


CASES = (
    *(
        Case(f"`disco`, {kind}", disco, kind, share_of(kind, share), f"share {share:g}")
        for kind in Kind
        for share in (0.1, 0.3, 0.7)
    ),
    Case(
        "`disco`, device",
        disco,
        Kind.DEVICE,
        daily(Resource.JOULES, 0.3 * ALWAYS_J),
        "joules, 0.3 of what prompts would take",
    ),
    Case(
        "`disco`, server",
        disco,
        Kind.SERVER,
        daily(Resource.USD, 0.3 * ALWAYS_USD),
        "dollars, 0.3 of what always racing could take",
    ),
    Case("`optimal`", optimal, Kind.SERVER, daily(Resource.USD, 0.3 * ALWAYS_USD), "the same dollars"),
)


class Bill(TypedDict):
    """What an attempt takes of anything."""

    usd: float
    joules: float
    prompt_tokens: int


class Attempt(NamedTuple):
    """One start in a race, and when its content would come; both in seconds after the request."""

    kind: Kind
    start_s: float
    content_s: float


class Race(NamedTuple):
    """Who had started when the first content came, and whose that was."""

    started: tuple[Attempt, ...]
    winner: Attempt


@dataclass(frozen=True, eq=False)
class Day:
    """What comes, in order of arrival.

    Attributes:
        spans_s: How long an attempt at each kind takes until its content, shape (attempts, requests).
        arrived_s: After midnight.
    """

    prompt_tokens: Floats
    answer_tokens: Floats
    spans_s: dict[Kind, Floats]
    arrived_s: Floats

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Day:
        """One day at random."""
        prompt_tokens = np.maximum(np.rint(PROMPTS.sample(rng, REQUESTS)), 1.0)
        answer_tokens = ANSWERS.sample(rng, REQUESTS)
        server_s = SLOWER * SERVER_TTFT.sample(rng, REQUESTS)
        noise_s = rng.normal(0.0, DEVICE.spread_s, REQUESTS)
        device_s = DEVICE.slope * prompt_tokens + DEVICE.constant + noise_s
        arrived_s = np.sort(rng.random(REQUESTS)) * DAY_S
        (hedges,) = rng.spawn(1)
        again_s = SLOWER * SERVER_TTFT.sample(hedges, REQUESTS)
        spans_s = {Kind.DEVICE: device_s[None, :], Kind.SERVER: np.array([server_s, again_s])}
        return cls(prompt_tokens, answer_tokens, spans_s, arrived_s)

    def race(self, request: int, plan: Plan) -> Race:
        """What comes of a plan; whoever is first in line starts at once."""
        offsets_s = [math.inf if start.offset_s is None else start.offset_s for start in plan.starts]
        offsets_s[offsets_s.index(min(offsets_s))] = 0.0
        attempts: list[Attempt] = []
        for start, start_s in zip(plan.starts, offsets_s, strict=True):
            kind = KINDS[start.endpoint]
            again = sum(attempt.kind is kind for attempt in attempts)
            attempts.append(Attempt(kind, start_s, start_s + float(self.spans_s[kind][again, request])))
        winner = min(attempts, key=lambda attempt: attempt.content_s)
        started = tuple(attempt for attempt in attempts if attempt.start_s < winner.content_s)
        return Race(started, winner)


class Clock:
    """Tells the local time of the day.

    Attributes:
        now_s: After midnight.
    """

    now_s = 0.0

    def __call__(self) -> datetime:
        """This moment."""
        return MIDNIGHT + timedelta(seconds=self.now_s)


def realised(policy: Policy, constraint: Kind, budget: Budget, seed: int, *, followed: bool = True) -> float:
    """What is spent in a day over what the budget says.

    Args:
        policy: Makes the tables.
        constraint: The kind that it holds back.
        budget: What it has to keep.
        seed: Of the day, and of the lots that plans draw.
        followed: Whether plans follow what was spent, as those of a session do; else the budget itself.
    """
    settings, rng, clock = PolicySettings(constraint=constraint.value), np.random.default_rng(seed), Clock()
    day, purse, ttft, spent = Day.drawn(rng), Purse([budget], clock), ServerTtft(SERVER_TTFT), 0.0
    for request, prompt_tokens in enumerate(day.prompt_tokens.tolist()):
        clock.now_s = float(day.arrived_s[request])
        if request % EVERY == 0:
            allowances = purse.allowances(constraint) if followed else (_planned(budget),)
            table = policy(_known(ttft, allowances), settings)
        plan = table.choose(prompt_tokens, rng.random())
        race = day.race(request, purse.smoothed(plan, KINDS, prompt_tokens) if followed else plan)
        for attempt in race.started:
            won = attempt is race.winner
            bill = _bill(attempt.kind, prompt_tokens, float(day.answer_tokens[request]) if won else 0.0)
            purse.pay(attempt.kind, **bill)
            spent += budget.taken_by(attempt.kind, **bill)
            if attempt.kind is Kind.SERVER:
                ran_s = race.winner.content_s - attempt.start_s
                ttft = ttft.observe(ran_s, clock.now_s, censored=not won)
        purse.count(_answered(prompt_tokens, race))
    of = day.prompt_tokens.sum() if budget.resource is Resource.SHARE else 1.0
    return float(spent / (budget.amount * of))


def _planned(budget: Budget) -> Allowance:
    """What an average request may take when nobody looks at what was spent."""
    requests = 1 if budget.resource is Resource.SHARE else REQUESTS
    return Allowance(budget.name, budget.resource, budget.kind, budget.amount / requests)


def _known(ttft: ServerTtft, allowances: tuple[Allowance, ...]) -> Known:
    rates, joules, usd = Rates(0, 0), JOULES[Kind.DEVICE], USD[Kind.SERVER]
    device = EndpointProfile("device", Kind.DEVICE, rates, DEVICE, 20.0, energy=joules)
    server = EndpointProfile("server", Kind.SERVER, rates, ttft, 50.0, prices=usd)
    return Known((device, server), Lengths(PROMPTS), Lengths(ANSWERS), allowances)


def _bill(kind: Kind, prompt_tokens: float, answer_tokens: float) -> Bill:
    return {
        "usd": USD[kind].usd(prompt_tokens, answer_tokens),
        "joules": JOULES[kind].joules(prompt_tokens, answer_tokens),
        "prompt_tokens": int(prompt_tokens),
    }


def _answered(prompt_tokens: float, race: Race) -> Outcome:
    """The outcome, as far as a purse counts it."""
    return Outcome(
        request_id="",
        policy="",
        winner=race.winner.kind.value,
        ttft_s=race.winner.content_s,
        finish_reason=FinishReason.STOP,
        prompt_chars=0,
        prompt_tokens=int(prompt_tokens),
        completion_tokens=0,
        attempts=(),
        migrations=(),
        delivered_s=(),
        error=None,
    )


def judge(case: Case, seed: int, followed: bool) -> float:
    """One run of one case."""
    return realised(case.policy, case.constraint, case.budget, seed, followed=followed)


def judge_all(runs: int, jobs: int) -> dict[tuple[Case, bool], list[float]]:
    """All runs of all cases, planned by the budget (`False`) and by the allowance (`True`)."""
    found = defaultdict(list)
    with ProcessPoolExecutor(jobs) as pool:
        under_way = {
            pool.submit(judge, case, seed, followed): (case, followed)
            for case in reversed(CASES)
            for followed in (False, True)
            for seed in range(runs)
        }
        for done, run in enumerate(as_completed(under_way), start=1):
            found[under_way[run]].append(run.result())
            print(f"\r{done:,} of {len(under_way):,} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def table_of(found: dict[tuple[Case, bool], list[float]]) -> Iterator[str]:
    """What it comes to, as Markdown."""
    yield "| policy | budget | planned by the budget itself | | planned by the allowance | |"
    yield "|---|---|---|---|---|---|"
    for case in CASES:
        yield f"| {case.who} | {case.told} | {_figures(found[case, False])} | {_figures(found[case, True])} |"


def _figures(spends: list[float]) -> str:
    near = np.mean(np.abs(np.array(spends) - 1.0) <= NEAR)
    return f"{np.mean(spends):.3f} ± {np.std(spends, ddof=1):.3f} | {100 * near:.0f} %"


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    if chosen.runs < 2:
        parser.error("--runs: two at least, for a standard deviation")
    print("\n".join(table_of(judge_all(chosen.runs, chosen.jobs))))


if __name__ == "__main__":
    main()
