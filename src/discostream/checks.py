"""Settings that contradict each other, refused by field name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from discostream.errors import ConfigError
from discostream.types import Kind

if TYPE_CHECKING:
    from discostream.config import BudgetSettings, EndpointSettings, PolicySettings, Settings

__all__ = ["KIND_NEEDED", "refuse_contradictions"]

KIND_NEEDED = {"server-only": Kind.SERVER, "device-only": Kind.DEVICE}
"""Policies that use one kind alone, and of that the first endpoint."""


def refuse_contradictions(settings: Settings) -> None:
    """Refuse settings that are each in order, but not together.

    Raises:
        ConfigError: Naming the field, the value and what would be right.
    """
    names = [endpoint.name for endpoint in settings.endpoint]
    _refuse_repeated_names(names)
    _refuse_wrong_offsets(settings.policy, names)
    for index, budget in enumerate(settings.budget):
        _refuse_unclear_budget(budget, f"budget[{index}]")
    _refuse_repeated_labels(settings.budget)
    if settings.endpoint:
        for index, budget in enumerate(settings.budget):
            _refuse_idle_budget(budget, f"budget[{index}]", settings.endpoint)
        _refuse_impossible_privacy(settings)
        _refuse_standstill(settings)


def _refuse_repeated_names(names: Collection[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"endpoint.name = {name!r}: used twice; every endpoint needs a name of its own")
        seen.add(name)


def _refuse_wrong_offsets(policy: PolicySettings, names: Collection[str]) -> None:
    for name in policy.offsets:
        if name not in names:
            raise ConfigError(
                f"policy.offsets: no endpoint is called {name!r}; there are: {', '.join(names)}"
            )
    if policy.name == "offsets" and not policy.offsets:
        raise ConfigError('policy.offsets: must name at least one endpoint for policy.name = "offsets"')


def _refuse_unclear_budget(budget: BudgetSettings, where: str) -> None:
    """It limits one thing, and says of which kind, or after what it renews."""
    amounts = budget.amounts
    if len(amounts) != 1:
        said = f"sets {' and '.join(amounts)}" if amounts else "sets none"
        raise ConfigError(f"{where}: must set one of share, usd, joules and battery_percent, and {said}")
    (resource,) = amounts
    if resource == "share":
        if budget.of is None:
            raise ConfigError(f"{where}.of: is missing; say whose share it is, device or server")
        if budget.per is not None:
            raise ConfigError(f"{where}.per = {budget.per!r}: a share has no window; leave it out")
        return
    if budget.of is not None:
        raise ConfigError(f"{where}.of = {str(budget.of)!r}: belongs to a share; leave it out")
    if budget.per is None:
        raise ConfigError(f"{where}.per: is missing; say hour, day{' or month' * (resource == 'usd')}")
    if budget.per == "month" and resource != "usd":
        raise ConfigError(f"{where}.per = 'month': energy is budgeted per hour or day")


def _refuse_repeated_labels(budgets: Collection[BudgetSettings]) -> None:
    seen = {"policy.share"}
    for index, budget in enumerate(budgets):
        if budget.label in seen:
            raise ConfigError(
                f"budget[{index}].name = {budget.label!r}: is taken; give every budget a name of its own"
            )
        seen.add(budget.label)


def _refuse_idle_budget(budget: BudgetSettings, where: str, endpoints: Collection[EndpointSettings]) -> None:
    """It limits something that some endpoint uses."""
    (resource,) = budget.amounts
    kind = budget.of or (Kind.SERVER if resource == "usd" else Kind.DEVICE)
    priced = resource == "usd" and any(map(_has_price, endpoints))
    if not priced and all(endpoint.kind is not kind for endpoint in endpoints):
        raise ConfigError(f"{where}.{resource}: there is no endpoint of kind {str(kind)!r} for it to limit")


def _refuse_impossible_privacy(settings: Settings) -> None:
    policy = settings.policy
    if not policy.private:
        return
    if all(endpoint.kind is not Kind.DEVICE for endpoint in settings.endpoint):
        raise ConfigError("policy.private = true: needs an endpoint of kind 'device', and there is none")
    if KIND_NEEDED.get(policy.name) is Kind.SERVER:
        raise ConfigError(f"policy.private = true: contradicts policy.name = {policy.name!r}")


def _refuse_standstill(settings: Settings) -> None:
    """Some endpoint that the policy may use could start a first request under all hard budgets."""
    usable = list(_usable(settings))
    off = [_what_turns_off(endpoint, settings.budget) for endpoint in usable]
    if usable and None not in off:
        blamed = " and ".join(dict.fromkeys(filter(None, off)))
        raise ConfigError(f"{blamed} (hard): {_what_it_stops(settings.policy)}; {_way_out(blamed)}")


def _way_out(blamed: str) -> str:
    free = ", or state prices of 0 for a server that is free" if ".usd" in blamed else ""
    return f"raise it, or make it soft{free}"


def _usable(settings: Settings) -> Iterator[EndpointSettings]:
    """The endpoints that may start, before any budget is asked."""
    policy = settings.policy
    kind = Kind.DEVICE if policy.private else KIND_NEEDED.get(policy.name)
    fitting = (endpoint for endpoint in settings.endpoint if kind in (None, endpoint.kind))
    return islice(fitting, 1) if policy.name in KIND_NEEDED else fitting


def _what_turns_off(endpoint: EndpointSettings, budgets: Iterable[BudgetSettings]) -> str | None:
    """The hard budget, as its field and value, of which this endpoint can have nothing."""
    for index, budget in enumerate(budgets):
        if budget.mode == "hard" and _leaves_nothing(budget, endpoint):
            ((resource, amount),) = budget.amounts.items()
            return f"budget[{index}].{resource} = {amount:g}"
    return None


def _leaves_nothing(budget: BudgetSettings, endpoint: EndpointSettings) -> bool:
    """Whether the endpoint could not answer the first request, going by what it is known to use."""
    if budget.share is not None:  # of no tokens at all, until an endpoint of the other kind has answered some
        return budget.share < 1 and endpoint.kind is budget.of
    if any(budget.amounts.values()):
        return False
    if budget.usd is not None:
        prices = endpoint.prompt_usd_per_mtok, endpoint.completion_usd_per_mtok
        return _has_price(endpoint) or (endpoint.kind is Kind.SERVER and prices != (0, 0))
    energy = endpoint.prefill_joules_per_token, endpoint.decode_joules_per_token
    return endpoint.kind is Kind.DEVICE and energy != (0, 0)


def _has_price(endpoint: EndpointSettings) -> bool:
    return bool(endpoint.prompt_usd_per_mtok or endpoint.completion_usd_per_mtok)


def _what_it_stops(policy: PolicySettings) -> str:
    if policy.private:
        return "contradicts policy.private = true, which leaves only the device"
    if policy.name in KIND_NEEDED:
        return f"contradicts policy.name = {policy.name!r}"
    return "would leave no endpoint that could start"
