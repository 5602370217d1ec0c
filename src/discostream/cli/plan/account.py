"""What `disco plan` tells programs: one object of plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from discostream.cli.plan.report import Findings, Price, Prospect, Report, Spending
from discostream.cli.plan.words import constraint_in_words, headline, prices_in_words
from discostream.core.profile import DeviceTtft, EndpointProfile
from discostream.core.rows import Row
from discostream.core.survival import LearntDistribution

__all__ = ["as_json"]

QUANTILES = (0.1, 0.5, 0.9, 0.99)


def as_json(report: Report) -> dict[str, Any]:
    """All figures, per request; `None` for what is infinite or unknown."""
    told = {
        "policy": report.settings.policy.name,
        "headline": headline(report),
        "rests_on": _rests_on(report),
        "table": [_row(row) for row in report.rows],
        "policies": [
            *map(_prospect, report.prospects),
            *({"policy": failure.policy, "error": failure.error} for failure in report.failures),
        ],
        "shadow_prices": [
            _price(price, words) for price, words in zip(report.prices, prices_in_words(report), strict=True)
        ],
        "frontier": None
        if report.constraint is None
        else {"kind": report.constraint.kind.value, "curves": [asdict(curve) for curve in report.curves]},
    }
    finite: dict[str, Any] = _finite(told)
    return finite


def _rests_on(report: Report) -> dict[str, Any]:
    findings, constraint = report.findings, report.constraint
    return {
        "endpoints": [
            _endpoint(profile, findings.attempts[profile.name]) for profile in findings.known.endpoints
        ],
        "prompt_tokens": _lengths(findings.known.prompt_tokens),
        "answer_tokens": _lengths(findings.known.answer_tokens),
        "exchange_rate": {
            "usd_per_joule": findings.rate.usd_per_joule,
            "basis": findings.rate.basis.value,
            "charge": findings.rate.charge,
        },
        "constraint": None
        if constraint is None
        else {
            "kind": constraint.kind.value,
            "basis": constraint.basis.value,
            "words": constraint_in_words(report),
        },
        "requests_per_day": findings.traffic.requests_per_day,
        "requests_per_day_basis": findings.traffic.basis.value,
        "budgets": _budgets(findings),
    }


def _endpoint(profile: EndpointProfile, attempts: int) -> dict[str, Any]:
    ttft: dict[str, float]
    if isinstance(profile.ttft, DeviceTtft):
        s_per_token, startup_s = profile.ttft.line()
        ttft = {"s_per_token": s_per_token, "startup_s": startup_s, "spread_s": profile.ttft.spread_s}
    else:
        ttft = {f"p{100 * share:.0f}_s": profile.ttft.quantile(0.0, share) for share in QUANTILES}
    return {
        "name": profile.name,
        "kind": profile.kind.value,
        "prompt_usd_per_mtok": profile.prices.prompt_usd_per_mtok,
        "completion_usd_per_mtok": profile.prices.completion_usd_per_mtok,
        "prefill_j_per_token": profile.energy.prefill_j_per_token,
        "decode_j_per_token": profile.energy.decode_j_per_token,
        "decode_tokens_per_s": profile.decode_tokens_per_s,
        "ttft": ttft,
        "attempts": attempts,
    }


def _lengths(lengths: LearntDistribution) -> dict[str, Any]:
    distribution = lengths.distribution
    quantiles = {f"p{100 * share:.0f}": float(distribution.quantile(share)) for share in QUANTILES}
    return {"mean": distribution.mean, **quantiles, "requests": len(lengths.seen)}


def _budgets(findings: Findings) -> list[dict[str, Any]]:
    return [
        {
            "name": now.budget.name,
            "resource": now.budget.resource.value,
            "kind": now.budget.kind,
            "amount": now.budget.amount,
            "per": now.budget.window,
            "hard": now.budget.hard,
            "spent": now.spent,
        }
        for now in findings.budgets
    ]


def _row(row: Row) -> dict[str, Any]:
    return {
        "from_tokens": row.shortest,
        "to_tokens": row.longest,
        "prompts": row.prompts,
        "mean_ttft_s": row.mean_ttft_s,
        "actions": [asdict(action) for action in row.actions],
    }


def _prospect(prospect: Prospect) -> dict[str, Any]:
    return {
        "policy": prospect.policy,
        "error": None,
        **asdict(prospect.forecast),
        "spends": [_spending(spending) for spending in prospect.spendings],
    }


def _spending(spending: Spending) -> dict[str, Any]:
    allowance = spending.allowance
    return {
        "budget": allowance.budget,
        "resource": allowance.resource.value,
        "kind": allowance.kind,
        "allowed": allowance.per_request,
        "expected": spending.expected,
        "exceeded": spending.exceeds,
    }


def _price(price: Price, words: str) -> dict[str, Any]:
    return {**_spending(price.spending), "s_per_unit": price.s_per_unit, "words": words}


def _finite(told: Any) -> Any:
    """The same with `None` for every number that JSON has no word for."""
    match told:
        case float():
            return told if math.isfinite(told) else None
        case list() | tuple():
            return [_finite(each) for each in told]
        case Mapping():
            return {key: _finite(value) for key, value in told.items()}
    return told
