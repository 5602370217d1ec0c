"""Settings: what is wrong with them is told by field name, when they are read."""

from __future__ import annotations

from typing import Any

import pytest

from discostream.config import BudgetSettings, PolicySettings, Settings, check_settings, settings_from
from discostream.core.budget import warning_of
from discostream.errors import ConfigError

LAPTOP = {"name": "laptop", "kind": "device", "dialect": "scripted"}
CLOUD = {"name": "cloud", "kind": "server", "dialect": "scripted"}
FREE = {**CLOUD, "name": "nas", "prompt_usd_per_mtok": 0, "completion_usd_per_mtok": 0}
NO_MONEY = {"usd": 0, "per": "day", "mode": "hard"}
NO_ENERGY = {"joules": 0, "per": "hour", "mode": "hard"}
NO_BATTERY = {"battery_percent": 0, "per": "day", "mode": "hard"}


def settings(
    *budgets: dict[str, Any], endpoints: tuple[dict[str, Any], ...] = (LAPTOP, CLOUD), **policy: Any
) -> Settings:
    return settings_from({"endpoint": list(endpoints), "budget": list(budgets), "policy": policy})


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"share": 1.5, "of": "server"}, r"budget\[0\].share = 1.5: expected `float` <= 1.0"),
        ({"share": -0.1, "of": "server"}, r"budget\[0\].share = -0.1: expected `float` >= 0.0"),
        ({"share": float("nan"), "of": "server"}, r"budget\[0\].share = nan"),
        ({"usd": -1, "per": "day"}, r"budget\[0\].usd = -1"),
        ({"usd": float("inf"), "per": "day"}, r"budget\[0\].usd = inf"),
        ({"battery_percent": 101, "per": "day"}, r"budget\[0\].battery_percent = 101"),
        ({"per": "day"}, r"budget\[0\]: must set one of .*, and sets none"),
        ({"usd": 1, "joules": 2, "per": "day"}, r"budget\[0\]: must set one of .*, and sets usd and joules"),
        ({"usd": 1}, r"budget\[0\].per: is missing; say hour, day or month"),
        ({"joules": 1}, r"budget\[0\].per: is missing; say hour, day$"),
        ({"usd": 1, "per": "week"}, r"budget\[0\].per = 'week': must be one of hour, day, month"),
        ({"joules": 1, "per": "month"}, r"budget\[0\].per = 'month': energy is budgeted per hour or day"),
        ({"battery_percent": 1, "per": "month"}, r"budget\[0\].per = 'month'"),
        ({"share": 0.3}, r"budget\[0\].of: is missing; say whose share it is"),
        ({"share": 0.3, "of": "cloud"}, r"budget\[0\].of = 'cloud': must be one of device, server"),
        ({"share": 0.3, "of": "server", "per": "day"}, r"budget\[0\].per = 'day': a share has no window"),
        ({"usd": 1, "per": "day", "of": "server"}, r"budget\[0\].of = 'server': belongs to a share"),
        ({"usd": 1, "per": "day", "mode": "harsh"}, r"budget\[0\].mode = 'harsh': must be one of soft, hard"),
        ({"usd": 1, "pre": "day"}, r"budget\[0\]: unknown key `pre`; did you mean 'per'"),
    ],
)
def test_a_wrong_budget_is_refused_by_its_field(budget: dict[str, Any], message: str) -> None:
    """Every mistake in a `[[budget]]` is told with the field, the value, and what would be right."""
    with pytest.raises(ConfigError, match=message):
        settings(budget)


def test_a_share_and_prices_have_their_ranges() -> None:
    """`policy.share` is in [0, 1], and no price is negative."""
    with pytest.raises(ConfigError, match=r"policy.share = 1.01"):
        settings(share=1.01)
    with pytest.raises(ConfigError, match=r"endpoint\[0\].prompt_usd_per_mtok = -1"):
        settings(endpoints=({**CLOUD, "prompt_usd_per_mtok": -1},))
    with pytest.raises(ConfigError, match=r"cost.usd_per_kwh = -0.1"):
        settings_from({"cost": {"usd_per_kwh": -0.1}})


def test_settings_made_in_code_have_the_same_ranges() -> None:
    """What Python code states is checked like a file."""
    with pytest.raises(ConfigError, match=r"policy.share = 2"):
        check_settings(Settings(policy=PolicySettings(share=2.0)))
    with pytest.raises(ConfigError, match=r"budget\[0\].usd = -3"):
        check_settings(Settings(budget=(BudgetSettings(usd=-3.0, per="day"),)))


def test_budgets_have_names_of_their_own() -> None:
    """Two budgets that are called the same, be it by default, are refused; a name tells them apart."""
    twice = {"usd": 2, "per": "day"}
    with pytest.raises(ConfigError, match=r"budget\[1\].name = '2 usd per day': is taken"):
        settings(twice, {**twice, "mode": "hard"})
    with pytest.raises(ConfigError, match=r"budget\[0\].name = 'policy.share': is taken"):
        settings({**twice, "name": "policy.share"})
    assert len(settings(twice, {**twice, "mode": "hard", "name": "the last of it"}).budget) == 2


@pytest.mark.parametrize(
    ("budget", "endpoints", "message"),
    [
        ({"share": 0.3, "of": "server"}, (LAPTOP,), "budget.0..share: there is no endpoint of kind 'server'"),
        ({"usd": 1, "per": "day"}, (LAPTOP,), "budget.0..usd: there is no endpoint of kind 'server'"),
        ({"joules": 1, "per": "day"}, (CLOUD,), "budget.0..joules: there is no endpoint of kind 'device'"),
        (NO_BATTERY, (CLOUD,), "budget.0..battery_percent: there is no endpoint of kind 'device'"),
    ],
)
def test_a_budget_that_limits_nobody_is_refused(
    budget: dict[str, Any], endpoints: tuple[dict[str, Any], ...], message: str
) -> None:
    """A budget on a kind that no endpoint has would never do anything."""
    with pytest.raises(ConfigError, match=message):
        settings(budget, endpoints=endpoints)


def test_a_device_with_a_price_may_be_limited_in_dollars() -> None:
    """Dollars are for whoever charges them."""
    assert settings({"usd": 1, "per": "day"}, endpoints=({**LAPTOP, "prompt_usd_per_mtok": 1},)).budget


@pytest.mark.parametrize(
    ("budgets", "policy", "message"),
    [
        (
            [NO_ENERGY],
            {"private": True},
            r"budget\[0\].joules = 0 \(hard\): contradicts policy.private = true",
        ),
        (
            [NO_BATTERY],
            {"private": True},
            r"budget\[0\].battery_percent = 0 \(hard\): contradicts policy.private",
        ),
        (
            [{"share": 0, "of": "device", "mode": "hard"}],
            {"private": True},
            r"budget\[0\].share = 0 \(hard\): contradicts policy.private = true",
        ),
        ([], {"private": True, "name": "server-only"}, "policy.private = true: contradicts policy.name"),
        ([NO_MONEY], {"name": "server-only"}, r"usd = 0 \(hard\): contradicts policy.name = 'server-only'"),
        (
            [NO_ENERGY],
            {"name": "device-only"},
            r"joules = 0 \(hard\): contradicts policy.name = 'device-only'",
        ),
        (
            [{"share": 0.3, "of": "server", "mode": "hard"}],
            {"name": "server-only"},
            r"budget\[0\].share = 0.3 \(hard\): contradicts policy.name = 'server-only'",
        ),
        (
            [NO_MONEY, NO_ENERGY],
            {},
            r"joules = 0 and .*usd = 0 \(hard\): would leave no endpoint that could start",
        ),
        (
            [{"share": 0.6, "of": kind, "mode": "hard"} for kind in ("device", "server")],
            {},
            "would leave no endpoint that could start",
        ),
    ],
)
def test_contradictions_are_refused(
    budgets: list[dict[str, Any]], policy: dict[str, Any], message: str
) -> None:
    """Settings under which no request could ever start are refused at once, and not when one comes."""
    with pytest.raises(ConfigError, match=message):
        settings(*budgets, **policy)


def test_privacy_needs_a_device() -> None:
    """Requests cannot be kept on a device that is not there."""
    with pytest.raises(ConfigError, match=r"policy.private = true: needs an endpoint of kind 'device'"):
        settings(endpoints=(CLOUD,), private=True)


@pytest.mark.parametrize(
    ("budgets", "endpoints", "policy"),
    [
        ([NO_MONEY], (LAPTOP, CLOUD), {}),
        ([NO_ENERGY], (LAPTOP, CLOUD), {}),
        ([NO_MONEY], (FREE,), {"name": "server-only"}),
        ([NO_MONEY, NO_ENERGY], (LAPTOP, CLOUD, FREE), {}),
        ([{**NO_ENERGY, "mode": "soft"}], (LAPTOP, CLOUD), {"private": True}),
        ([{"share": 1, "of": "server", "mode": "hard"}], (CLOUD,), {}),
        ([{"share": 0.3, "of": "server", "mode": "hard"}], (LAPTOP, CLOUD), {"private": True}),
    ],
)
def test_what_leaves_somebody_to_start_is_accepted(
    budgets: list[dict[str, Any]], endpoints: tuple[dict[str, Any], ...], policy: dict[str, Any]
) -> None:
    """A hard zero is in order while an endpoint is left that it does not concern."""
    assert settings(*budgets, endpoints=endpoints, **policy)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"migration": {"mode": "break"}},
            "migration.mode = 'break': must be one of make-before-break, stop-then-start",
        ),
        ({"migration": {"max_rescues": -1}}, r"migration.max_rescues = -1: expected `int` >= 0"),
        ({"migration": {"rescues": 1}}, r"migration: unknown key `rescues`; did you mean 'rescue'"),
        ({"pacing": {"mode": "slow"}}, "pacing.mode = 'slow': must be one of immediate, reading"),
        ({"pacing": {"max_lag_s": 0}}, r"pacing.max_lag_s = 0: expected `float` > 0.0"),
        ({"pace": {}}, "unknown key `pace`"),
    ],
)
def test_wrong_handoffs_and_paces_are_refused(tree: dict[str, Any], message: str) -> None:
    """What is wrong in `[migration]` and `[pacing]` is told by field name, with what would be right."""
    with pytest.raises(ConfigError, match=message):
        settings_from({"endpoint": [LAPTOP, CLOUD], **tree})


MONEY, ENERGY = {"usd": 2, "per": "day"}, {"joules": 9, "per": "day"}


@pytest.mark.parametrize(
    ("budgets", "policy", "missed"),
    [
        ([MONEY], {"name": "server-only"}, "2 usd per day"),
        ([ENERGY], {"name": "server-only"}, ""),
        ([ENERGY], {"name": "device-only"}, "9 joules per day"),
        ([MONEY], {"name": "offsets", "offsets": {"laptop": 0}}, "2 usd per day"),
        ([MONEY], {"name": "fast"}, "2 usd per day"),
        ([MONEY, ENERGY], {"name": "cheap"}, "2 usd per day, 9 joules per day"),
        ([MONEY], {"name": "disco"}, ""),
        ([MONEY], {"name": "disco", "constraint": "device"}, "2 usd per day"),
        ([MONEY, ENERGY], {"name": "stochastic"}, "2 usd per day, 9 joules per day"),
        ([MONEY, ENERGY], {"name": "stochastic", "constraint": "server"}, "9 joules per day"),
        ([MONEY, ENERGY], {"name": "optimal"}, ""),
        ([{**MONEY, "mode": "hard"}], {"name": "server-only"}, ""),
        ([{"share": 0.2, "of": "device"}], {"name": "disco", "constraint": "server"}, "0.2 share of device"),
    ],
)
def test_a_policy_that_cannot_hold_a_budget_is_warned_of(
    budgets: list[dict[str, Any]], policy: dict[str, Any], missed: str
) -> None:
    """A soft budget on the kind that a policy starts anyway is named, with the policy that can hold it."""
    warning = warning_of(settings(*budgets, **policy))
    assert bool(warning) is bool(missed)
    if missed:
        assert f"is not made to hold the budget{'s' * (', ' in missed)} {missed};" in warning
        assert "policy.name = 'optimal' holds all" in warning
