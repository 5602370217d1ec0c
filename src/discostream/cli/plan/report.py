"""What `disco plan` tells, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from discostream.config import Settings
from discostream.core.budget import Allowance, Budget
from discostream.core.forecast import Forecast
from discostream.core.plans import PlanTable
from discostream.core.profile import Known
from discostream.core.rows import Row
from discostream.types import Kind

__all__ = [
    "BudgetNow",
    "Constraint",
    "ConstraintBasis",
    "Curve",
    "ExchangeRate",
    "Failure",
    "Findings",
    "Point",
    "Price",
    "Prospect",
    "RateBasis",
    "Report",
    "Spending",
    "Traffic",
    "TrafficBasis",
]

MISSED_BY = 1e-3
"""By how much, relatively, a policy may miss an allowance that it was made to meet."""


class TrafficBasis(StrEnum):
    """Where the number of requests comes from."""

    OPTION = "option"
    LEDGER = "ledger"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Traffic:
    """How many requests a day are planned for."""

    requests_per_day: float
    basis: TrafficBasis


class RateBasis(StrEnum):
    """Why a joule is worth what it is."""

    FIXED = "fixed"
    SOCKET = "socket"
    BATTERY = "battery"


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """What a joule is worth now.

    Attributes:
        charge: How full the battery is that the machine runs on, in [0, 1]; `None` where that has no bearing.
    """

    usd_per_joule: float
    basis: RateBasis
    charge: float | None


@dataclass(frozen=True, slots=True)
class BudgetNow:
    """A budget, and what the ledger says was spent of it in its present window; `None` for a share."""

    budget: Budget
    spent: float | None


@dataclass(frozen=True, slots=True)
class Findings:
    """What a plan rests on.

    Attributes:
        known: With the allowances of `budgets`.
        attempts: How many were seen at each endpoint.
        budgets: Those of `[[budget]]`.
    """

    known: Known
    attempts: Mapping[str, int]
    rate: ExchangeRate
    traffic: Traffic
    budgets: tuple[BudgetNow, ...] = ()


class ConstraintBasis(StrEnum):
    """Why a kind is the one held back."""

    SETTINGS = "settings"
    BUDGETS = "budgets"
    PRICES = "prices"


@dataclass(frozen=True, slots=True)
class Constraint:
    """The kind that `policy.share` limits, and why it is that one."""

    kind: Kind
    basis: ConstraintBasis


@dataclass(frozen=True, slots=True)
class Spending:
    """What an average request would take of an allowance."""

    allowance: Allowance
    expected: float

    @property
    def exceeds(self) -> bool:
        """Whether that is more than it may."""
        return self.expected > self.allowance.per_request * (1.0 + MISSED_BY) + 1e-12

    @property
    def leaves_some(self) -> bool:
        """Whether it is less than it may."""
        return self.expected < self.allowance.per_request * (1.0 - MISSED_BY) - 1e-12


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a policy would do.

    Attributes:
        spendings: Of everything that plans have to keep.
    """

    policy: str
    table: PlanTable
    forecast: Forecast
    spendings: tuple[Spending, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A policy that makes no plan, and why."""

    policy: str
    error: str


@dataclass(frozen=True, slots=True)
class Price:
    """What more of a budget would buy.

    Attributes:
        spending: What the best plan takes of it.
        s_per_unit: By how much mean TTFT falls for one unit more of the allowance.
    """

    spending: Spending
    s_per_unit: float


@dataclass(frozen=True, slots=True)
class Point:
    """What a policy makes of a share.

    Attributes:
        share: What the constrained kind may take of all prompt tokens.
        taken: What it would.
    """

    share: float
    taken: float
    mean_ttft_s: float
    p99_ttft_s: float


@dataclass(frozen=True, slots=True)
class Curve:
    """What a policy makes of every share."""

    policy: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All that `disco plan` tells.

    Attributes:
        constraint: `None` where there is one kind of endpoint only, or every request is private.
        rows: The table of the policy in force.
        prospects: The policy in force first, the others by mean TTFT.
        prices: What more of each budget would buy the best plan; none where every request is private.
        curves: What policies make of every share of the constrained kind, other budgets aside; none without
            one.
    """

    settings: Settings
    findings: Findings
    constraint: Constraint | None
    rows: tuple[Row, ...]
    prospects: tuple[Prospect, ...]
    failures: tuple[Failure, ...]
    prices: tuple[Price, ...]
    curves: tuple[Curve, ...]
