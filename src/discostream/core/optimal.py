"""The optimal plan: who starts when, for every prompt length, under all budgets at once.

The problem (arXiv 2502.11417, section 4.2, has one device, one server and one budget): of every race we can
compute, for every prompt length, what TTFT to expect and what it takes of every budget. Choose races so that
the mean TTFT is least while the *sum* over all requests keeps each budget.

The naive answer ranks single decisions by a rule of thumb, as the paper does: insure everybody's tail with a
fixed part of the budget, then spare the shortest prompts the wait. Where the tail is heavy that is too little
insurance, where it is light too much; a second budget, endpoint or hedge needs another rule.

But expectations are linear in how often each race is run. With x[l, a] the share of the prompts of length l
that take action a (start offsets for everybody), p(l) how frequent they are, T the expected TTFT and c_j the
expected spend of budget j,

    minimise  sum p(l) x[l, a] T(l, a)   so that   sum p(l) x[l, a] c_j(l, a) <= b_j   for every j,
                                                   sum over a of x[l, a] = 1, x >= 0.

A basic solution mixes actions at no more lengths than there are budgets, and the dual values say what one
more unit of each budget would buy.

An optimum believes what it is told, so F is told with caution: of n recorded requests none was slower than
the slowest, but the next one will be, with probability 1/(n+1) by the rule of succession. Without that, plans
made from 75 requests of a service with rare cold starts leave long prompts uninsured against the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.config import PolicySettings
from discostream.core.budget import Allowance, Resource
from discostream.core.distributions import Distribution
from discostream.core.forecast import SILENCE_S, TINY_S, Forecast, Races, forecast, run_races
from discostream.core.plans import NEVER, STANDBY, PlanTable
from discostream.core.policies import allowances_of
from discostream.core.profile import EndpointProfile, Known, ServerTtft
from discostream.types import Kind

__all__ = ["ShadowPrice", "Solution", "Spend", "optimal", "solve"]

Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.intp]

BUCKETS = 60
"""How many buckets of prompt lengths there are, about."""

MOMENTS = (129, 65, 33, 17, 9, 5, 3, 2)
"""How many moments there are to choose from for one more attempt: the more, the fewer ways to make it."""

STILL_WAITING = np.array([1.0, 0.1])
"""In races of three limited attempts, the later ones start when this share of requests is without content."""

EARLIEST, FINE = 0.002, 1024
"""The share of requests that have content at the first of those moments; what they are chosen from."""

MOST_ACTIONS = 270
"""The most actions of one further attempt, however many endpoints; half of that of two further attempts."""

LATE = (1.0, 5.0, 25.0)
"""The multiples of the deadline past which lateness breaks ties, so that minutes weigh more than seconds."""

TAIL, THRIFT, SILENCE = 1e-3, 1e-5, 1e-9
"""What breaks ties, in seconds of mean TTFT: a second of lateness; all of a budget that could be spent; and a
second's wait for one more attempt, in case that others stay silent longer than they ever did."""

SIMPLEX: dict[str, bool | int | float | str] = {
    "output_flag": False,
    "threads": 1,
    "presolve": "off",
    "simplex_scale_strategy": 0,
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
}
"""HiGHS's options. What it is given is scaled already."""

PRIMAL, DUAL = 4, 1
"""HiGHS's simplex strategies. Rows are few, so the primal takes a quarter of the dual's time; but once in a
thousand times, where budgets can only just be kept, it does not make up its mind."""

ROUNDING = 1e-8
"""What a sum of spends may be off by, as a part of the most that could be spent."""

MOST_UNSEEN = 0.05
"""The most that is feared of what was never seen, from a distribution of hardly any requests."""

LEAST = 1e-6
"""A smaller part of a bucket is none: it would not be taken once in a million requests."""


@dataclass(frozen=True, slots=True)
class Spend:
    """What a plan takes of one budget.

    Attributes:
        budget: Its name.
        allowed: A request, in the unit of the allowance.
        expected: A request, likewise.
    """

    budget: str
    resource: Resource
    allowed: float
    expected: float


@dataclass(frozen=True, slots=True)
class ShadowPrice:
    """What more of one budget would buy.

    Attributes:
        budget: Its name.
        s_per_unit: Seconds of mean TTFT (and of weighted lateness) that one more unit a request would save.
    """

    budget: str
    resource: Resource
    s_per_unit: float


@dataclass(frozen=True, slots=True)
class Solution:
    """The optimal table, and what it comes to.

    Attributes:
        spends: One for every allowance, in their order.
        shadow_prices: Likewise; at the least possible spend where the budgets cannot be kept.
        feasible: Whether any plan keeps all budgets; if none does, this one overshoots least.
    """

    table: PlanTable
    forecast: Forecast
    spends: tuple[Spend, ...]
    shadow_prices: tuple[ShadowPrice, ...]
    feasible: bool


def optimal(known: Known, settings: PolicySettings) -> PlanTable:
    """The table with the least mean TTFT that keeps all budgets."""
    return solve(known, settings).table


def solve(known: Known, settings: PolicySettings, *, hedge: bool = True) -> Solution:
    """The same table, what to expect of it, and what its budgets are worth.

    Args:
        known: Profiles, lengths, and the allowances of all budgets.
        settings: The paper's share, the deadline and the weight of lateness.
        hedge: Whether a server with a budget may be started a second time for the same request.
    """
    allowances = allowances_of(known, settings)
    columns = _Columns.of(known, allowances, hedge)
    buckets = _Buckets.of(known.prompt_tokens.samples)
    actions = _actions(columns, buckets)
    races = _run_all(columns, buckets, actions)
    shape = (len(allowances), buckets.share.size, len(actions))
    spends = np.array([_spend(known, buckets, races, each) for each in allowances]).reshape(shape)
    seconds = _seconds(settings, races).reshape(spends.shape[1:])
    seconds = seconds + SILENCE * np.minimum(actions, SILENCE_S).sum(axis=1)
    best = _minimise(buckets.share[:, None] * seconds, spends, allowances)
    if best.feasible:
        actions = np.where(_barred(columns, allowances), np.inf, actions)
    table = _table(columns, buckets, actions, best.taken)
    expected = forecast(known, table, deadline_s=settings.deadline_s)
    return Solution(
        table,
        expected,
        tuple(
            Spend(each.budget, each.resource, each.per_request, expected.spend(each)) for each in allowances
        ),
        tuple(
            ShadowPrice(each.budget, each.resource, float(price))
            for each, price in zip(allowances, best.prices, strict=True)
        ),
        best.feasible,
    )


class _Columns(NamedTuple):
    """Who may start: every endpoint, and limited servers once more.

    Attributes:
        limited: Whether some allowance counts it, shape (columns,).
        first: The column of the first attempt on the same endpoint, shape (columns,).
    """

    endpoints: tuple[EndpointProfile, ...]
    limited: Bools
    first: Integers

    @classmethod
    def of(cls, known: Known, allowances: Sequence[Allowance], hedge: bool) -> _Columns:
        limited = [any(_counts(each, endpoint) for each in allowances) for endpoint in known.endpoints]
        endpoints = tuple(_cautious(endpoint) for endpoint in known.endpoints)
        again = [
            index
            for index, endpoint in enumerate(endpoints)
            if hedge and limited[index] and endpoint.kind is Kind.SERVER
        ]
        return cls(
            (*endpoints, *(endpoints[index] for index in again)),
            np.array(limited + [True] * len(again)),
            np.array([*range(len(known.endpoints)), *again]),
        )

    def may_follow(self, action: Floats) -> list[int]:
        """Who may be started on top: a second attempt on an endpoint only after the first."""
        started = np.isfinite(action)
        is_first = self.first == np.arange(self.first.size)
        return np.flatnonzero(self.limited & ~started & (is_first | started[self.first])).tolist()


class _Buckets(NamedTuple):
    """Prompt lengths in buckets of about as many requests and tokens, and of about the same magnitude.

    Attributes:
        longest: The longest prompt of each, in tokens; of the last, infinite.
        tokens: The mean length.
        spread: The standard deviation of the lengths.
        share: How many of the requests.
    """

    longest: Floats
    tokens: Floats
    spread: Floats
    share: Floats

    @classmethod
    def of(cls, samples: Floats) -> _Buckets:
        lengths, counts = np.unique(samples, return_counts=True)
        share = counts / samples.size
        weight = (share + share * lengths / samples.mean()) / 2
        magnitude = np.log(lengths / lengths[0]) / max(float(np.log(lengths[-1] / lengths[0])), 1.0)
        part = np.floor((np.cumsum(weight) - weight / 2 + magnitude) * BUCKETS / 2)
        begins = np.append(0, np.flatnonzero(np.diff(part)) + 1)
        shares = np.add.reduceat(share, begins)
        tokens = np.add.reduceat(share * lengths, begins) / shares
        squares = np.add.reduceat(share * lengths**2, begins) / shares
        return cls(
            np.append(lengths[begins[1:] - 1], np.inf),
            tokens,
            np.sqrt(np.maximum(squares - tokens**2, 0.0)),
            shares,
        )


def _cautious(endpoint: EndpointProfile) -> EndpointProfile:
    """The same, if a server, with a tail beyond the slowest request that was ever seen."""
    if not isinstance(endpoint.ttft, ServerTtft):
        return endpoint
    return replace(endpoint, ttft=ServerTtft(_with_slower(endpoint.ttft.distribution)))


def _with_slower(seen: Distribution) -> Distribution:
    """A distribution, and the next request that is slower than all before it, up to as long as silence lasts.

    How many requests it was made from follows from its last step: that is half of one.
    """
    one = 2.0 * (1.0 - float(seen.probabilities[-2]))
    slower = min(one / (1.0 + one), MOST_UNSEEN)
    slowest = max(float(seen.values[-1]), TINY_S)
    return Distribution(
        np.append(seen.probabilities * (1.0 - slower), 1.0 - slower * np.linspace(1.0, 0.0, 9)[1:]),
        np.append(seen.values, np.geomspace(slowest, max(slowest, SILENCE_S), 9)[1:]),
        seen.never,
    )


def _counts(allowance: Allowance, endpoint: EndpointProfile) -> bool:
    """Whether the budget is charged for what this endpoint does."""
    if allowance.resource is Resource.SHARE:
        return endpoint.kind is allowance.kind
    if allowance.resource is Resource.USD:
        return endpoint.prices.usd(1.0, 1.0) > 0
    return endpoint.energy.joules(1.0, 1.0) > 0


def _barred(columns: _Columns, allowances: Sequence[Allowance]) -> Bools:
    """Whom nothing at all is allowed: not even a start that should never be needed. Shape (columns,)."""
    nothing = [each for each in allowances if each.per_request <= 0.0]
    return np.array([any(_counts(each, endpoint) for each in nothing) for endpoint in columns.endpoints])


def _actions(columns: _Columns, buckets: _Buckets) -> Floats:
    """All start offsets worth a thought, infinite for who does not start; shape (actions, columns).

    Who is not limited starts at once, always: that costs no budget. Where nobody is free, somebody limited
    does. One or two more follow, in any order, each when a certain share of the requests is left without
    content. Then there is everybody at once, for budgets that can pay for that.
    """
    nobody = np.where(columns.limited, np.inf, 0.0)
    is_first = columns.first == np.arange(columns.first.size)
    starters = np.flatnonzero(is_first & columns.limited).tolist()
    first = [nobody] if not columns.limited.all() else [_and(nobody, column, 0.0) for column in starters]
    at_once = [
        np.where(columns.limited & ~(is_first & (np.arange(is_first.size) <= last)), np.inf, 0.0)
        for last in starters
    ]
    ways = sum(len(columns.may_follow(action)) for action in first)
    finest = next((count for count in MOMENTS if ways * count <= MOST_ACTIONS), MOMENTS[-1])
    second = _with_one_more(columns, buckets, first, lambda races: _moments(races, buckets, finest))
    few = _with_one_more(columns, buckets, first, lambda races: _late_moments(races, buckets))
    third = _with_one_more(
        columns, buckets, _thinned(few, MOST_ACTIONS // 8), lambda races: _late_moments(races, buckets)
    )
    return np.unique(
        [*first, *at_once, *_thinned(second, MOST_ACTIONS), *_thinned(third, MOST_ACTIONS // 2)], axis=0
    )


def _thinned(actions: Iterable[Floats], most: int) -> list[Floats]:
    """So many of them at most, evenly."""
    every = list(actions)
    return every[:: -(-len(every) // most) or 1]


def _with_one_more(
    columns: _Columns,
    buckets: _Buckets,
    actions: Sequence[Floats],
    moments: Callable[[Races], Floats],
) -> Iterator[Floats]:
    """Every action with everybody who may follow, at each of some moments of its race."""
    for action in actions:
        following = columns.may_follow(action)
        if not following:
            continue
        times = moments(_run_all(columns, buckets, action[None, :]))
        for at in times[times >= action[np.isfinite(action)].max()]:
            yield from (_and(action, column, at) for column in following)


def _moments(races: Races, buckets: _Buckets, count: int) -> Floats:
    """At once, and until everybody has content: evenly by requests answered and by the logarithm of time.

    The first is where budget is saved, and the second where a tail that has hardly any requests is long.
    """
    ends = races.quantiles(np.array([EARLIEST, 1.0]), buckets.share)
    begin, end = np.minimum(ends, SILENCE_S).tolist()
    times, gone_by = np.geomspace(begin, end, FINE), np.linspace(0.0, 1.0, FINE)
    progress = gone_by + 1.0 - races.still_waiting(times, buckets.share)
    return np.append(0.0, np.interp(np.linspace(0.0, progress[-1], count), progress, times))


def _late_moments(races: Races, buckets: _Buckets) -> Floats:
    waited = races.quantiles(1.0 - STILL_WAITING, buckets.share)
    return np.where(STILL_WAITING < 1.0, np.minimum(waited, SILENCE_S), 0.0)


def _and(action: Floats, column: int, at: float) -> Floats:
    """The same action, or actions, with one column starting at this moment."""
    return np.where(np.arange(action.shape[-1]) == column, at, action)


def _run_all(columns: _Columns, buckets: _Buckets, actions: Floats) -> Races:
    """Every bucket under every action, bucket by bucket."""
    return run_races(
        columns.endpoints,
        np.repeat(buckets.tokens, len(actions)),
        actions,
        np.tile(np.arange(len(actions)), buckets.tokens.size),
        np.repeat(buckets.spread, len(actions)),
    )


def _spend(known: Known, buckets: _Buckets, races: Races, allowance: Allowance) -> Floats:
    """What each bucket adds to the spend of an average request, if it takes one action; shape (cells,)."""
    shares: Floats = np.repeat(buckets.share, races.prompt_tokens.size // buckets.share.size)
    if allowance.resource is Resource.SHARE:
        assert allowance.kind is not None
        return np.asarray(races.tokens(allowance.kind) * shares / (buckets.share @ buckets.tokens))
    bill = races.usd if allowance.resource is Resource.USD else races.joules
    return np.asarray(bill(known.answer_tokens.distribution.mean) * shares)


def _seconds(settings: PolicySettings, races: Races) -> Floats:
    """Mean TTFT with what lateness adds to it, shape (cells,)."""
    late = races.lateness_s(*(multiple * settings.deadline_s for multiple in LATE))
    return np.asarray(races.ttft_s + settings.lateness_weight * late[0] + TAIL * late.sum(axis=0))


class _Optimum(NamedTuple):
    """What the solver found.

    Attributes:
        taken: The share of each bucket that takes each action, shape (buckets, actions).
        prices: Seconds that one more unit of each budget would save, shape (budgets,).
        feasible: Whether the budgets can be kept.
    """

    taken: Floats
    prices: Floats
    feasible: bool


def _minimise(seconds: Floats, spends: Floats, allowances: Sequence[Allowance]) -> _Optimum:
    """The least seconds that keep the allowances, or that overshoot them least.

    Args:
        seconds: What each choice adds to the mean, shape (buckets, actions).
        spends: What it adds to the spend of each budget, shape (budgets, buckets, actions).
        allowances: One for every budget.
    """
    most = spends.max(axis=2).sum(axis=1)
    most[most == 0.0] = 1.0
    spends = spends / most[:, None, None]
    allowed = np.array([each.per_request for each in allowances]) / most
    milliseconds = 1e3 * (seconds + THRIFT * spends.sum(axis=0))
    found = _run_simplex(milliseconds, spends, allowed)
    if found is not None:
        return _Optimum(found[0], found[1] / 1e3 / most, feasible=True)
    least = _run_simplex(np.zeros(seconds.shape), spends, allowed, overshoot_price=1.0)
    assert least is not None, "there is always a plan that overshoots"
    spent = (spends * least[0]).sum(axis=(1, 2))
    found = _run_simplex(milliseconds, spends, np.maximum(allowed, spent) + ROUNDING)
    assert found is not None, "what overshoots least keeps what it spends"
    return _Optimum(found[0], found[1] / 1e3 / most, feasible=bool(np.all(spent <= allowed + ROUNDING)))


def _run_simplex(
    costs: Floats, spends: Floats, allowed: Floats, overshoot_price: float | None = None
) -> tuple[Floats, Floats] | None:
    """Shares that minimise the costs, and the price of each budget; `None` where the budgets cannot be kept.

    With a price on overshoot, every budget may be exceeded at that price a unit.
    """
    import highspy

    buckets, actions = costs.shape
    budgets, choices = allowed.size, costs.size
    budget_rows = buckets + np.arange(budgets)
    rows = np.empty((choices, 1 + budgets), np.int32)
    rows[:, 0], rows[:, 1:] = np.repeat(np.arange(buckets), actions), budget_rows
    values = np.column_stack((np.ones(choices), *spends.reshape(budgets, choices)))
    at_least, unlimited = np.zeros(choices + budgets), np.full(choices + budgets, np.inf)
    if overshoot_price is None:
        unlimited[choices:] = 0.0
    solver = _quiet_solver()
    for option, setting in SIMPLEX.items():
        solver.setOptionValue(option, setting)
    solver.passModel(
        choices + budgets,
        buckets + budgets,
        rows.size + budgets,
        int(highspy.MatrixFormat.kColwise),
        int(highspy.ObjSense.kMinimize),
        0.0,
        np.append(costs.ravel(), np.full(budgets, overshoot_price or 0.0)),
        at_least,
        unlimited,
        np.append(np.ones(buckets), np.full(budgets, -np.inf)),
        np.append(np.ones(buckets), allowed),
        np.append(np.arange(choices) * (1 + budgets), rows.size + np.arange(budgets)).astype(np.int32),
        np.append(rows.ravel(), budget_rows).astype(np.int32),
        np.append(values.ravel(), np.full(budgets, -1.0)),
        np.zeros(choices + budgets, np.int32),
    )
    for strategy in (PRIMAL, DUAL):
        solver.setOptionValue("simplex_strategy", strategy)
        solver.clearSolver()
        solver.run()
        if solver.getModelStatus() == highspy.HighsModelStatus.kOptimal:
            solution = solver.getSolution()
            taken = np.asarray(solution.col_value)[:choices].reshape(buckets, actions)
            return taken, np.maximum(-np.asarray(solution.row_dual)[buckets:], 0.0)
        if solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
            break
    return None


def _quiet_solver() -> Any:
    """A solver that prints nothing, not even while it is made: from 1.16 on HiGHS greets on stdout."""
    import highspy

    class Quiet(highspy.Highs):
        def enableCallbacks(self) -> None:  # noqa: N802 - the constructor calls it before it greets
            self.setOptionValue("output_flag", False)
            super().enableCallbacks()  # type: ignore[no-untyped-call]

    return Quiet()  # type: ignore[no-untyped-call]


def _table(columns: _Columns, buckets: _Buckets, actions: Floats, taken: Floats) -> PlanTable:
    """The choices as a table, neighbouring buckets that choose alike in one row."""
    taken = np.where(taken > LEAST, taken, 0.0)
    ends = np.append(np.abs(np.diff(taken, axis=0)).max(axis=1) > LEAST, True)
    taken = taken[ends] / taken[ends].sum(axis=1, keepdims=True)
    order = np.argsort(-taken, axis=1, kind="stable")[:, : np.count_nonzero(taken, axis=1).max()]
    again = columns.first != np.arange(columns.first.size)
    others = np.where(again, NEVER, STANDBY)
    return PlanTable(
        "optimal",
        tuple(endpoint.name for endpoint in columns.endpoints),
        buckets.longest[ends],
        np.where(np.isinf(actions), others, actions)[order],
        np.take_along_axis(taken, order, axis=1),
    )
