"""What a plan of this moment rests on.

That is what the live path knows, and budgets as they are when a window begins: what is left of one at noon
would say less about the settings than about the morning. Nothing is started, and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from discostream.cli.plan.prospects import report_on
from discostream.cli.plan.report import (
    BudgetNow,
    ExchangeRate,
    Findings,
    RateBasis,
    Report,
    Traffic,
    TrafficBasis,
)
from discostream.config import CostSettings, Settings
from discostream.core.budget import POLICY_SHARE, Allowance, Budget, Resource, Window, budgets_from
from discostream.core.cost import exchange_rate
from discostream.endpoints.base import Endpoint
from discostream.ledger.queries import spent_since
from discostream.ledger.store import default_ledger_path
from discostream.library import connect
from discostream.session.house import Surroundings
from discostream.session.knowledge import Knowledge
from discostream.session.localtime import local_now
from discostream.session.power import PowerSupply, battery_wh
from discostream.session.purse import Purse

__all__ = ["survey"]

ASSUMED_REQUESTS_PER_DAY = 1000.0
"""Where neither the user nor the ledger says how many there are."""

LOOKED_BACK_DAYS = (1, 7, 30)
"""The ledger's latest days in which requests are counted: the first of these that has any."""

WINDOW_DAYS = {Window.HOUR: 1 / 24, Window.DAY: 1.0, Window.MONTH: 365.25 / 12}


async def survey(settings: Settings, requests_per_day: float | None = None) -> Report:
    """The report of this moment.

    Args:
        settings: What to report on.
        requests_per_day: What to plan for; as many as in the ledger's latest days when `None`.

    Raises:
        ConfigError: The settings do not fit together, or the policy in force makes no plan.
    """
    endpoints = connect(settings).endpoints
    for endpoint in endpoints.values():
        await endpoint.inspect()
    return report_on(settings, _findings(settings, endpoints, requests_per_day))


def _findings(settings: Settings, endpoints: dict[str, Endpoint], requests_per_day: float | None) -> Findings:
    now = local_now()
    ledger = _ledger(settings)
    knowledge = Knowledge(endpoints, settings.profile)
    if ledger:
        knowledge.recall(ledger)
    power, traffic = PowerSupply(), _traffic(requests_per_day, ledger, now)
    budgets = budgets_from(settings, battery_wh())
    known = Surroundings(knowledge, settings.cost, power, Purse(budgets)).known()
    return Findings(
        replace(known, allowances=_whole_windows(known.allowances, budgets, traffic)),
        {name: knowledge.experience(name).attempts for name in endpoints},
        _rate_now(settings.cost, power),
        traffic,
        tuple(_spent_now((each for each in budgets if each.name != POLICY_SHARE), ledger, now)),
    )


def _whole_windows(
    allowances: Iterable[Allowance], budgets: Iterable[Budget], traffic: Traffic
) -> tuple[Allowance, ...]:
    """What an average request of a whole window may take, in place of one of this window's rest."""
    return tuple(
        replace(allowance, per_request=budget.amount / _requests_in(budget.window, traffic))
        for allowance, budget in zip(allowances, budgets, strict=True)
    )


def _requests_in(window: Window | None, traffic: Traffic) -> float:
    """At least the one that is planned for: it cannot take what several windows may."""
    return max(traffic.requests_per_day * WINDOW_DAYS[window], 1.0) if window else 1.0


def _ledger(settings: Settings) -> Path | None:
    path = Path(settings.ledger.path or default_ledger_path()).expanduser()
    return path if path.is_file() else None


def _rate_now(cost: CostSettings, power: PowerSupply) -> ExchangeRate:
    charge = power.charge()
    usd_per_joule = exchange_rate(cost, charge)
    if cost.usd_per_joule is not None:
        return ExchangeRate(usd_per_joule, RateBasis.FIXED, None)
    return ExchangeRate(usd_per_joule, RateBasis.SOCKET if charge is None else RateBasis.BATTERY, charge)


def _traffic(told: float | None, ledger: Path | None, now: datetime) -> Traffic:
    if told is not None:
        return Traffic(told, TrafficBasis.OPTION)
    if ledger:
        for days in LOOKED_BACK_DAYS:
            if requests := spent_since(ledger, now - timedelta(days=days)).requests:
                return Traffic(requests / days, TrafficBasis.LEDGER)
    return Traffic(ASSUMED_REQUESTS_PER_DAY, TrafficBasis.ASSUMED)


def _spent_now(budgets: Iterable[Budget], ledger: Path | None, now: datetime) -> Iterable[BudgetNow]:
    for budget in budgets:
        if budget.window is None:
            yield BudgetNow(budget, None)
        elif ledger is None:
            yield BudgetNow(budget, 0.0)
        else:
            spent = spent_since(ledger, budget.window.start(now))
            yield BudgetNow(budget, spent.usd if budget.resource is Resource.USD else spent.joules)
