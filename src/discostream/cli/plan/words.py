"""What a plan says, in figures and in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from discostream.cli.plan.report import (
    BudgetNow,
    ConstraintBasis,
    Findings,
    Price,
    Prospect,
    RateBasis,
    Report,
    Spending,
    Traffic,
    TrafficBasis,
)
from discostream.core.budget import POLICY_SHARE, Allowance, Resource, Window
from discostream.core.profile import DeviceTtft, EndpointProfile
from discostream.core.rows import Action, Row, in_line
from discostream.session.knowledge import SERVER_PRIOR
from discostream.types import Kind, Start

__all__ = [
    "actions_in_words",
    "amount",
    "constraint_in_words",
    "costs_in_words",
    "energy",
    "excesses_in_words",
    "headline",
    "lengths_in_words",
    "money",
    "percent",
    "prices_in_words",
    "rests_on",
    "seconds",
    "source_in_words",
    "ttft_in_words",
    "worth_in_words",
]

STANDS_BY = "stands by"

TINY_S = 5e-5
"""Less of a gain is none."""


class _Step(NamedTuple):
    """One more of a budget: in words, and how much that is (dollars a day, joules a day, or a share)."""

    words: str
    size: float


STEPS = {
    Resource.USD: (
        _Step("One more dollar a day", 1.0),
        _Step("One more cent a day", 0.01),
        _Step("A hundredth of a cent more a day", 1e-4),
    ),
    Resource.JOULES: (
        _Step("One more megajoule a day", 1e6),
        _Step("One more kilojoule a day", 1e3),
        _Step("One more joule a day", 1.0),
    ),
    Resource.SHARE: (
        _Step("One more per cent of prompt tokens", 0.01),
        _Step("A tenth of a per cent more of prompt tokens", 1e-3),
    ),
}

AT_MOST = 0.1
"""The largest step in words, as a part of the budget: a shadow price holds near it only."""


def seconds(span_s: float) -> str:
    """A span for a column of spans in seconds."""
    if math.isinf(span_s):
        return "never"
    return f"{span_s:.3f}" if span_s < 10 else f"{span_s:.1f}"


def span(span_s: float) -> str:
    """A span with its unit."""
    return f"{span_s:.2f} s" if span_s >= 0.995 else f"{_two_digits(1000 * span_s)} ms"


def money(usd: float) -> str:
    """Dollars, two digits of them where they are few."""
    if usd >= 0.1 or usd == 0:
        return f"${usd:,.2f}"
    return f"${_two_digits(usd)}" if usd >= 1e-6 else f"${usd:.1e}"


def energy(joules: float) -> str:
    """Joules."""
    for size, unit in ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ")):
        if joules >= 0.9995 * size:
            return f"{joules / size:.3g} {unit}"
    return f"{joules:.3g} J"


def percent(share: float) -> str:
    """A share."""
    if 0.0 < share < 1e-6:
        return "under 0.0001 %"
    return f"{100 * share:.3g} %" if share >= 1e-3 else f"{_two_digits(100 * share)} %"


def amount(allowance: Allowance, per_request: float, traffic: Traffic) -> str:
    """So much of a budget per request, as its owner counts it: a share, or dollars or joules a day."""
    if allowance.resource is Resource.SHARE:
        return f"{percent(per_request)} of prompt tokens on the {allowance.kind}"
    return f"{_spendable(allowance.resource, per_request * traffic.requests_per_day)} a day"


def headline(report: Report) -> str:
    """The policy in force, and what it has to keep."""
    in_force = report.prospects[0]
    kept = [_whole(each.allowance, report.findings.traffic) for each in in_force.spendings]
    return f"Policy {in_force.policy}" + (f" under {_listed(kept)}" if kept else ", without a budget")


def ttft_in_words(profile: EndpointProfile) -> str:
    """What is known of an endpoint's TTFT."""
    if isinstance(profile.ttft, DeviceTtft):
        s_per_token, startup_s = profile.ttft.line()
        return f"TTFT {span(startup_s)} + {span(s_per_token)} a token"
    middle, tail = (profile.ttft.quantile(0.0, share) for share in (0.5, 0.99))
    return f"TTFT P50 {span(middle)}, P99 {span(tail) if math.isfinite(tail) else 'never'}"


def source_in_words(profile: EndpointProfile, attempts: int) -> str:
    """Where that is known from."""
    if attempts:
        return _counted(f"{attempts:,}", "attempt")
    return "built-in" if isinstance(profile.ttft, DeviceTtft) else f"built-in: {SERVER_PRIOR}"


def costs_in_words(profile: EndpointProfile) -> str:
    """What an endpoint's tokens cost."""
    prices, burns = profile.prices, profile.energy
    told = []
    if prices.usd(1, 1):
        told.append(
            f"{money(prices.prompt_usd_per_mtok)} in and {money(prices.completion_usd_per_mtok)} out "
            f"a million tokens"
        )
    if burns.joules(1, 1):
        told.append(f"{burns.prefill_j_per_token:.3g} J in and {burns.decode_j_per_token:.3g} J out a token")
    return _listed(told) or ("free" if profile.kind is Kind.SERVER else "energy not known before it has run")


def lengths_in_words(row: Row) -> str:
    """The prompts of a row."""
    if row.longest is None:
        return f"{row.shortest:,} and more"
    return f"{row.shortest:,} to {row.longest:,}" if row.longest > row.shortest else f"{row.shortest:,}"


def actions_in_words(actions: Sequence[Action]) -> str:
    """Who starts when."""
    if len(actions) == 1:
        return _starts_in_words(actions[0])
    return "; ".join(f"{percent(action.share)}: {_starts_in_words(action)}" for action in actions)


def rests_on(report: Report) -> Iterator[str]:
    """What holds for all endpoints."""
    findings = report.findings
    yield _prompts_in_words(findings)
    yield _rate_in_words(report)
    if report.constraint:
        yield constraint_in_words(report)
    if report.settings.policy.private:
        yield "Every request is private, as policy.private says: no server is ever asked."
    if any(spending.allowance.resource is not Resource.SHARE for spending in report.prospects[0].spendings):
        yield _traffic_in_words(findings.traffic)
    yield from filter(None, (_spent_in_words(each) for each in findings.budgets))


def constraint_in_words(report: Report) -> str:
    """Which kind is held back, and why."""
    assert report.constraint
    kind = report.constraint.kind
    match report.constraint.basis:
        case ConstraintBasis.SETTINGS:
            return f"The {kind} is held back, as policy.constraint says."
        case ConstraintBasis.BUDGETS:
            return f"The {kind} is held back: the budgets are about it alone."
        case ConstraintBasis.PRICES:
            return f"The {kind} is held back: {_comparison(report.findings)}."


def excesses_in_words(prospect: Prospect, findings: Findings) -> Iterator[str]:
    """Which budgets a policy breaks, and by how much."""
    hard = {now.budget.name for now in findings.budgets if now.budget.hard}
    for spending in prospect.spendings:
        if spending.exceeds:
            allowance = spending.allowance
            taken, allowed = (
                amount(allowance, each, findings.traffic)
                for each in (spending.expected, allowance.per_request)
            )
            ever = ", and never more" if allowance.budget in hard else ""
            yield f"{prospect.policy} takes {taken}; {_named(allowance.budget)} allows {allowed}{ever}."


def worth_in_words(report: Report) -> Iterator[str]:
    """What budgets are worth."""
    if report.prices:
        yield from prices_in_words(report)
    elif report.settings.policy.private:
        yield "Nothing: private requests go to the device, whatever they cost there."
    else:
        yield "There is no budget."


def prices_in_words(report: Report) -> Iterator[str]:
    """What more of each budget would buy the best plan: a sentence for each of the prices."""
    traffic = report.findings.traffic
    kept = not any(price.spending.exceeds for price in report.prices)
    what = "mean TTFT and weighted lateness" if report.settings.policy.lateness_weight else "mean TTFT"
    for price in report.prices:
        yield _price_in_words(price, traffic, what) if kept else _overdraft_in_words(price.spending, traffic)


def _price_in_words(price: Price, traffic: Traffic, what: str) -> str:
    allowance = price.spending.allowance
    whole = _whole(allowance, traffic)
    used = amount(allowance, price.spending.expected, traffic)
    per_day = 1.0 if allowance.resource is Resource.SHARE else traffic.requests_per_day
    step = _step(allowance, per_day)
    gained_s = price.s_per_unit * step.size / per_day
    if gained_s < TINY_S:
        if price.spending.leaves_some:
            return f"More of {whole} would not help: it is not used up ({used})."
        return f"More of {whole} would hardly help, though it is used up."
    where = f" on the {allowance.kind}" if allowance.kind else ""
    so_far = f", of which {used} is expected to be used" if price.spending.leaves_some else " is used up"
    return f"{step.words}{where} would cut {what} by {span(gained_s)}: {whole}{so_far}."


def _overdraft_in_words(spending: Spending, traffic: Traffic) -> str:
    whole, used = _whole(spending.allowance, traffic), amount(spending.allowance, spending.expected, traffic)
    if spending.exceeds:
        return f"No plan keeps all budgets; the best takes {used} of {whole}."
    return f"It keeps {whole}, of which it takes {used}."


def _whole(allowance: Allowance, traffic: Traffic) -> str:
    return f"{_named(allowance.budget)} ({amount(allowance, allowance.per_request, traffic)})"


def _named(budget: str) -> str:
    return budget if budget == POLICY_SHARE else f"budget {budget!r}"


def _step(allowance: Allowance, per_day: float) -> _Step:
    steps = STEPS[allowance.resource]
    within = (step for step in steps if step.size <= AT_MOST * allowance.per_request * per_day)
    return next(within, steps[-1])


def _prompts_in_words(findings: Findings) -> str:
    lengths = findings.known.prompt_tokens
    short, middle, long = lengths.distribution.quantile([0.1, 0.5, 0.9])
    seen = len(lengths.seen)
    source = _counted(f"{seen:,}", "request") if seen else "built-in, from a public service"
    half = f"Half of all prompts are below {middle:,.0f} tokens"
    return f"{half}, eight in ten from {short:,.0f} to {long:,.0f} ({source})."


def _rate_in_words(report: Report) -> str:
    rate, cost = report.findings.rate, report.settings.cost
    worth = f"A joule is worth {money(rate.usd_per_joule)}"
    match rate.basis:
        case RateBasis.FIXED:
            return f"{worth}, as cost.usd_per_joule says."
        case RateBasis.SOCKET:
            return (
                f"{worth}, the price of electricity ({money(cost.usd_per_kwh)} a kWh): no battery is in use."
            )
        case RateBasis.BATTERY:
            assert rate.charge is not None
            return f"{worth}: the machine runs on a battery that is {percent(rate.charge)} full."


def _comparison(findings: Findings) -> str:
    device, server = (
        next(each.rates for each in findings.known.endpoints if each.kind is kind)
        for kind in (Kind.DEVICE, Kind.SERVER)
    )
    cheaper = 1e6 * min(device.prefill_usd, device.decode_usd)
    dearer = 1e6 * max(server.prefill_usd, server.decode_usd)
    than = "more than" if cheaper > dearer else "no more than"
    return (
        f"a million tokens in the device's cheaper phase cost {money(cheaper)}, "
        f"{than} in the server's dearer one ({money(dearer)})"
    )


def _traffic_in_words(traffic: Traffic) -> str:
    requests = (
        f"{traffic.requests_per_day:,.3g}"
        if traffic.requests_per_day < 100
        else f"{traffic.requests_per_day:,.0f}"
    )
    planned = f"Planned for {_counted(requests, 'request')} a day"
    match traffic.basis:
        case TrafficBasis.OPTION:
            return f"{planned}."
        case TrafficBasis.LEDGER:
            return f"{planned}, as the ledger has them lately."
        case TrafficBasis.ASSUMED:
            return f"{planned}, a guess: say how many with --requests-per-day."


def _spent_in_words(now: BudgetNow) -> str:
    budget = now.budget
    if now.spent is None:
        return ""
    spent, whole = (_spendable(budget.resource, each) for each in (now.spent, budget.amount))
    when = "today" if budget.window is Window.DAY else f"this {budget.window}"
    ever = ", never exceeded" if budget.hard else ""
    return f"Budget {budget.name!r}{ever}: {spent} of {whole} spent {when}."


def _starts_in_words(action: Action) -> str:
    """In order of time."""
    clauses: dict[str, list[str]] = {}
    named: set[str] = set()
    for start in in_line(action):
        when = _when(start)
        again = " again" if start.endpoint in named else ""
        clauses.setdefault(when, []).append(start.endpoint + again)
        named.add(start.endpoint)
    return ", ".join(f"{_listed(names)} {_agreeing(when, names)}" for when, names in clauses.items())


def _agreeing(when: str, names: Sequence[str]) -> str:
    return "stand by" if when == STANDS_BY and len(names) > 1 else when


def _when(start: Start) -> str:
    if start.offset_s is None:
        return STANDS_BY
    return f"after {span(start.offset_s)}" if start.offset_s else "at once"


def _spendable(resource: Resource, quantity: float) -> str:
    """Dollars or joules."""
    return money(quantity) if resource is Resource.USD else energy(quantity)


def _counted(number: str, what: str) -> str:
    """So many of something."""
    return f"{number} {what}{'s' * (number != '1')}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _two_digits(value: float) -> str:
    """At least two significant digits, without an exponent; nothing behind the point from ten on."""
    if value == 0:
        return "0"
    places = max(0, 1 - math.floor(math.log10(value)))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
