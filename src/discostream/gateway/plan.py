"""`GET /dashboard/api/plan` and `/dashboard/api/budgets`: who starts when and why, and what may be spent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from discostream.core.profile import DeviceTtft, EndpointProfile
from discostream.core.rows import Action, Row, in_line
from discostream.core.survival import LearntDistribution
from discostream.gateway.chat import DISCO
from discostream.gateway.query import json_response, parameters
from discostream.ledger.reading import utc
from discostream.session.in_force import PlanInForce
from discostream.session.knowledge import Experience
from discostream.session.pins import refuse_unknown_policy, share_in
from discostream.session.purse import Balance

__all__ = ["plan_routes"]

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
TTFT_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def plan_routes() -> list[web.RouteDef]:
    """The routes of both."""
    return [web.get("/dashboard/api/plan", _plan), web.get("/dashboard/api/budgets", _budgets)]


async def _plan(http: web.Request) -> web.Response:
    """The plan in force, or the one that a policy or a share would have."""
    asked = parameters(http, "policy", "share")
    policy, share = asked.get("policy"), asked.get("share")
    if policy is not None:
        refuse_unknown_policy(policy, "policy")
    plan = await http.app[DISCO].plan_in_force(policy, None if share is None else share_in(share, "share"))
    return json_response(msgspec.json.encode(_plan_as_json(plan)))


async def _budgets(http: web.Request) -> web.Response:
    """Every budget, and what energy is worth."""
    parameters(http)
    disco = http.app[DISCO]
    balances = await disco.appraise()
    told = {
        "budgets": [_balance(balance) for balance in balances],
        "usd_per_joule": disco.usd_per_joule,
        "battery_charge": disco.charge,
    }
    return json_response(msgspec.json.encode(told))


def _plan_as_json(plan: PlanInForce) -> dict[str, Any]:
    known = plan.outlook.known
    return {
        "policy": plan.settings.name,
        "share": plan.share and plan.share.per_request,
        "of": plan.share and plan.share.kind,
        "made_at": _moment(plan.outlook.made_at_s),
        "requests_since": plan.requests,
        "endpoints": [profile.name for profile in known.endpoints],
        "rows": [_row(row) for row in plan.rows],
        "prompt_tokens": _lengths(known.prompt_tokens),
        "answer_tokens": _lengths(known.answer_tokens),
        "chars_per_token": plan.chars_per_token,
        "forecast": {
            "mean_ttft_s": plan.forecast.mean_ttft_s,
            "p99_ttft_s": plan.forecast.p99_ttft_s,
        },
        "profiles": [
            _profile(
                profile, plan.experience[profile.name], float(known.prompt_tokens.distribution.quantile(0.5))
            )
            for profile in known.endpoints
        ],
    }


def _moment(at_s: float) -> str:
    return utc(datetime.fromtimestamp(at_s, UTC))


def _row(row: Row) -> dict[str, Any]:
    return {"longest_tokens": row.longest, "actions": [_action(action) for action in row.actions]}


def _action(action: Action) -> dict[str, Any]:
    starts = [{"endpoint": start.endpoint, "offset_s": start.offset_s} for start in in_line(action)]
    return {"weight": action.share, "starts": starts}


def _lengths(lengths: LearntDistribution) -> dict[str, float]:
    return {name: float(lengths.distribution.quantile(share)) for name, share in QUANTILES.items()}


def _profile(profile: EndpointProfile, seen: Experience, prompt_tokens: float) -> dict[str, Any]:
    ttft = profile.ttft
    return {
        "endpoint": profile.name,
        "kind": profile.kind,
        "attempts_seen": seen.attempts,
        "newest_at": None if seen.newest_at_s is None else _moment(seen.newest_at_s),
        "ttft_s": {
            name: float(ttft.quantile(prompt_tokens, share)) for name, share in TTFT_QUANTILES.items()
        },
        "s_per_prompt_token": ttft.line()[0] if isinstance(ttft, DeviceTtft) else None,
        "decode_tokens_per_s": profile.decode_tokens_per_s,
        "prompt_usd_per_mtok": profile.prices.prompt_usd_per_mtok,
        "completion_usd_per_mtok": profile.prices.completion_usd_per_mtok,
        "prefill_joules_per_token": profile.energy.prefill_j_per_token,
        "decode_joules_per_token": profile.energy.decode_j_per_token,
        "slots": profile.slots,
    }


def _balance(balance: Balance) -> dict[str, Any]:
    budget, allowance = balance.budget, balance.allowance
    return {
        "name": budget.name,
        "resource": budget.resource,
        "of": budget.kind,
        "amount": budget.amount,
        "hard": budget.hard,
        "per": budget.window,
        "renews_at": balance.renews_at and utc(balance.renews_at),
        "spent": balance.spent,
        "held": balance.held,
        "allowance_per_request": allowance and allowance.per_request,
        "multiplier": allowance and allowance.multiplier,
        "shadow_price_s_per_unit": balance.shadow_price_s_per_unit,
    }
