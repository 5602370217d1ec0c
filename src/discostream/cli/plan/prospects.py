"""What the policies would make of what is known: tables, forecasts, prices and frontiers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from msgspec.structs import replace as with_changed
from numpy.typing import NDArray

from discostream.cli.plan.report import (
    Constraint,
    ConstraintBasis,
    Curve,
    Failure,
    Findings,
    Point,
    Price,
    Prospect,
    Report,
    Spending,
)
from discostream.config import PolicySettings, Settings, check_settings
from discostream.core.budget import POLICY_SHARE
from discostream.core.forecast import Forecast, Races, forecast, run_races
from discostream.core.optimal import solve
from discostream.core.plans import PlanTable
from discostream.core.plugins import load_policy, policy_names
from discostream.core.policies import Policy, allowances_of
from discostream.core.profile import Known
from discostream.core.rows import Action, Row, merged_rows, without_servers
from discostream.errors import ConfigError
from discostream.session.planner import Planner
from discostream.types import Kind

__all__ = ["curves_of", "prospects_of", "report_on", "rows_of", "served_by"]

Floats: TypeAlias = NDArray[np.float64]

FRONTIER = ("stochastic", "disco", "optimal")
SHARES = np.linspace(0.0, 1.0, 21).tolist()


def report_on(settings: Settings, findings: Findings) -> Report:
    """All that follows.

    Raises:
        ConfigError: The policy in force makes no plan.
    """
    known, policy = findings.known, settings.policy
    prospects, failures = prospects_of(known, settings)
    constraint = None if policy.private else _constraint(known, policy)
    return Report(
        settings,
        findings,
        constraint,
        rows_of(known, prospects[0].table),
        prospects,
        failures,
        () if policy.private else _prices(known, policy),
        curves_of(known, policy, constraint.kind) if constraint else (),
    )


def prospects_of(known: Known, settings: Settings) -> tuple[tuple[Prospect, ...], tuple[Failure, ...]]:
    """What every installed policy would do: the one in force first, then by mean TTFT; and those that fail.

    Raises:
        ConfigError: The one in force fails.
    """
    in_force = settings.policy.name
    try:
        first = _prospect(known, settings, in_force)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"policy.name = {in_force!r}: makes no plan: {error or repr(error)}") from error
    others: list[Prospect] = []
    failures: list[Failure] = []
    for name in policy_names():
        try:
            others += [_prospect(known, settings, name)] if name != in_force else []
        except Exception as error:  # a policy may be anybody's code
            failures.append(Failure(name, str(error) or repr(error)))
    others.sort(key=lambda prospect: prospect.forecast.mean_ttft_s)
    return (first, *others), tuple(failures)


def rows_of(known: Known, table: PlanTable) -> tuple[Row, ...]:
    """A plan table by whole prompt lengths, rows that say the same in one, and what they may expect."""
    lengths, counts = np.unique(known.prompt_tokens.samples, return_counts=True)
    return tuple(_with_expectation(known, row, lengths, counts / counts.sum()) for row in merged_rows(table))


def served_by(known: Known, table: PlanTable, times_s: Floats) -> Floats:
    """The share of requests that have content by each of these times, shape (times,)."""
    lengths, counts = np.unique(known.prompt_tokens.samples, return_counts=True)
    waiting = np.zeros(times_s.size)
    for row in merged_rows(table):
        ours = _inside(row, lengths)
        for action in row.actions if ours.any() else ():
            weights = action.share * counts[ours] / counts.sum()
            waiting += _race(known, action, lengths[ours]).still_waiting(times_s, weights)
    return 1.0 - waiting


def curves_of(known: Known, settings: PolicySettings, kind: Kind) -> tuple[Curve, ...]:
    """What the paper's policies and the optimal one make of every share of a kind, other budgets aside."""
    unbudgeted = replace(known, allowances=())
    policies = {name: load_policy(name) for name in FRONTIER}
    return tuple(
        Curve(name, tuple(_point(unbudgeted, settings, policy, kind, share) for share in SHARES))
        for name, policy in policies.items()
    )


@dataclass(frozen=True, slots=True)
class _Moment:
    """A source of plans that stands still."""

    snapshot: Known

    def known(self) -> Known:
        return self.snapshot

    def version(self) -> object:
        return None


def _prospect(known: Known, settings: Settings, name: str) -> Prospect:
    theirs = with_changed(settings, policy=with_changed(settings.policy, name=name))
    check_settings(theirs)
    table = Planner(theirs.policy, _Moment(known)).outlook(0.0).table
    if theirs.policy.private:
        table = without_servers(known, table)
    expected = forecast(known, table, deadline_s=settings.policy.deadline_s)
    return Prospect(name, table, expected, _spendings(known, theirs.policy, expected))


def _spendings(known: Known, policy: PolicySettings, expected: Forecast) -> tuple[Spending, ...]:
    return tuple(Spending(each, expected.spend(each)) for each in allowances_of(known, policy))


def _prices(known: Known, policy: PolicySettings) -> tuple[Price, ...]:
    solution = solve(known, policy)
    spendings = _spendings(known, policy, solution.forecast)
    return tuple(
        Price(spending, float(price.s_per_unit))
        for spending, price in zip(spendings, solution.shadow_prices, strict=True)
    )


def _point(known: Known, settings: PolicySettings, policy: Policy, kind: Kind, share: float) -> Point:
    table = policy(known, with_changed(settings, constraint=kind.value, share=share))
    expected = forecast(known, table)
    return Point(share, expected.token_share[kind], expected.mean_ttft_s, expected.p99_ttft_s)


def _with_expectation(known: Known, row: Row, lengths: Floats, shares: Floats) -> Row:
    ours = _inside(row, lengths)
    prompts = float(shares[ours].sum())
    if not prompts:
        return row
    total_s = sum(
        action.share * float(shares[ours] @ _race(known, action, lengths[ours]).ttft_s)
        for action in row.actions
    )
    return replace(row, prompts=prompts, mean_ttft_s=total_s / prompts)


def _inside(row: Row, lengths: Floats) -> NDArray[np.bool_]:
    return (lengths >= row.shortest) & (lengths <= (math.inf if row.longest is None else row.longest))


def _race(known: Known, action: Action, lengths: Floats) -> Races:
    """The action's race for each of these lengths; whoever is first in line starts at once."""
    at = np.array([math.inf if start.offset_s is None else start.offset_s for start in action.starts])
    at[at.argmin()] = 0.0
    racing = [known.of(start.endpoint) for start in action.starts]
    return run_races(racing, lengths, at[None, :], np.zeros(lengths.size, np.intp))


def _constraint(known: Known, policy: PolicySettings) -> Constraint | None:
    if {endpoint.kind for endpoint in known.endpoints} != set(Kind):
        return None
    if policy.constraint != "auto":
        return Constraint(Kind(policy.constraint), ConstraintBasis.SETTINGS)
    kind, by_prices = _limited_kind(known, policy), _limited_kind(replace(known, allowances=()), policy)
    return Constraint(kind, ConstraintBasis.PRICES if kind is by_prices else ConstraintBasis.BUDGETS)


def _limited_kind(known: Known, policy: PolicySettings) -> Kind:
    """The kind that `policy.share` limits, or would if it were set."""
    kept = allowances_of(known, with_changed(policy, share=1.0))
    (kind,) = [allowance.kind for allowance in kept if allowance.budget == POLICY_SHARE]
    assert kind is not None
    return kind
