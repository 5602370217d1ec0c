"""What a request may ask for: a policy of its own, never to leave the device, more than text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import msgspec

from discostream.checks import KIND_NEEDED
from discostream.config import PolicySettings, Share, suggest
from discostream.core.plugins import policy_names
from discostream.core.policies import FIXED_POLICIES
from discostream.endpoints.base import Endpoint
from discostream.errors import AllEndpointsFailed, RequestRejected
from discostream.types import PROBE, Feature, Kind, Plan, Request, Start

__all__ = [
    "able",
    "explained",
    "narrowed",
    "pinned_by_needs",
    "refuse_impossible_pins",
    "refuse_impossible_plans",
    "refuse_unknown_policy",
    "share_in",
]

PINNING = {
    Feature.TOOLS: "it uses tools",
    Feature.JSON: "its answer keeps to a schema or a grammar",
    Feature.LOGPROBS: "it asks for log-probabilities",
}
"""What no other endpoint could go on with, and the reason in words."""

_FIELDS = {
    Feature.TOOLS: "tools",
    Feature.JSON: "response_format",
    Feature.LOGPROBS: "logprobs",
    Feature.IMAGES: "messages",
    Feature.AUDIO: "messages",
    Feature.COMPLETIONS: "prompt",
}


def refuse_impossible_pins(
    request: Request, endpoints: Mapping[str, Endpoint], settings: PolicySettings
) -> None:
    """Refuse a request that asks for what these endpoints cannot give, or for what contradicts itself.

    Raises:
        RequestRejected: Naming what was asked, and what would be right.
    """
    if request.policy is not None and not (request.policy == PROBE and request.endpoint):
        _refuse_impossible_policy(request.policy, endpoints, settings)
        _refuse_contradicting_model(request, request.policy, endpoints)
    if request.share is not None:
        policy = None if request.endpoint else request.policy or settings.name
        _refuse_impossible_share(request.share, policy)
    if request.private:
        _refuse_impossible_privacy(request, endpoints)
    if request.needs:
        _refuse_impossible_needs(request, endpoints, settings)


def refuse_unknown_policy(name: str, field: str) -> None:
    """Refuse the name of a policy that is not installed, as it was asked for in `field`.

    Raises:
        RequestRejected: Naming the field, and the policy that may have been meant.
    """
    if name not in policy_names():
        raise RequestRejected(
            f"`{field}`: there is no policy {name!r}; {suggest(name, policy_names())}", param=field
        )


def refuse_impossible_plans(
    policy: str | None, share: float | None, endpoints: Mapping[str, Endpoint], settings: PolicySettings
) -> None:
    """Refuse a policy that cannot be had here, and a share that it could not be planned by.

    Raises:
        RequestRejected: Naming what was asked, and what would be right.
    """
    if policy is not None:
        _refuse_impossible_policy(policy, endpoints, settings)
    if share is not None:
        _refuse_impossible_share(share, policy or settings.name)


def share_in(said: str, field: str) -> float:
    """The share that is written in `field`.

    Raises:
        RequestRejected: It is not a number from 0 to 1.
    """
    try:
        return msgspec.convert(said, Share, strict=False)
    except msgspec.ValidationError:
        raise _no_share(said, field) from None


def _no_share(said: object, field: str) -> RequestRejected:
    return RequestRejected(f"`{field}`: {said!r} is not a number from 0 to 1, such as 0.3", param=field)


def _refuse_impossible_share(share: float, policy: str | None) -> None:
    if not 0.0 <= share <= 1.0:
        raise _no_share(share, "share")
    if policy in FIXED_POLICIES:
        knowing = ", ".join(name for name in policy_names() if name not in FIXED_POLICIES)
        raise RequestRejected(
            f"share = {share}: policy {policy!r} knows no share; name one that does ({knowing}), or leave "
            f"the share out",
            param="share",
        )


def _refuse_impossible_policy(name: str, endpoints: Mapping[str, Endpoint], settings: PolicySettings) -> None:
    refuse_unknown_policy(name, "policy")
    needed = KIND_NEEDED.get(name)
    if needed and all(endpoint.kind is not needed for endpoint in endpoints.values()):
        raise RequestRejected(f"Policy {name!r} needs a {needed}, and there is none here", param="policy")
    if name == "offsets" and not settings.offsets:
        raise RequestRejected("Policy 'offsets' needs policy.offsets in the settings", param="policy")


def _refuse_contradicting_model(request: Request, policy: str, endpoints: Mapping[str, Endpoint]) -> None:
    needed = KIND_NEEDED.get(policy)
    if needed and request.endpoint is not None and endpoints[request.endpoint].kind is not needed:
        raise RequestRejected(
            f"Policy {policy!r} needs a {needed}, and {request.endpoint!r} is none; name one, or 'disco'",
            param="model",
        )


def _refuse_impossible_privacy(request: Request, endpoints: Mapping[str, Endpoint]) -> None:
    private = "The request is private, so it must not leave the device"
    if all(endpoint.kind is not Kind.DEVICE for endpoint in endpoints.values()):
        raise RequestRejected(f"{private}, and there is no device here", param="private")
    if request.endpoint is not None and endpoints[request.endpoint].kind is not Kind.DEVICE:
        raise RequestRejected(
            f"{private}, and {request.endpoint!r} is a server; name a device, or 'disco'", param="model"
        )
    if request.policy is not None and KIND_NEEDED.get(request.policy) is Kind.SERVER:
        raise RequestRejected(f"{private}, which policy {request.policy!r} does", param="policy")


def _refuse_impossible_needs(
    request: Request, endpoints: Mapping[str, Endpoint], settings: PolicySettings
) -> None:
    allowed = _allowed(request, endpoints, settings)
    if any(request.needs <= endpoints[name].features for name in allowed):
        return
    had = frozenset[Feature]().union(*(endpoints[name].features for name in allowed))
    lacking = sorted(request.needs - had or request.needs)
    listed = " and ".join(f'"{feature}"' for feature in lacking)
    raise RequestRejected(
        f"The request needs {listed}, which no endpoint that may answer it declares ({', '.join(allowed)}); "
        f"if one can do it, add {listed} to `features` in its [[endpoint]]",
        param=_FIELDS[lacking[0]],
        code="unsupported_parameter",
    )


def pinned_by_needs(request: Request) -> Request:
    """The request, bound to stay on the endpoint that starts it if what it needs cannot change hands."""
    reasons = (reason for feature, reason in PINNING.items() if feature in request.needs)
    return replace(request, pinned=request.pinned or next(reasons, None)) if request.needs else request


def able(request: Request, endpoints: Mapping[str, Endpoint], settings: PolicySettings) -> list[str]:
    """The endpoints that may answer a request, and can; all that may, if none turns out to be able."""
    allowed = _allowed(request, endpoints, settings)
    return [name for name in allowed if request.needs <= endpoints[name].features] or allowed


def _allowed(request: Request, endpoints: Mapping[str, Endpoint], settings: PolicySettings) -> list[str]:
    """Those that neither privacy, nor the policy, nor the request's model rules out."""
    if request.endpoint is not None:
        return [request.endpoint]
    kind = Kind.DEVICE if request.private else KIND_NEEDED.get(request.policy or settings.name)
    return [name for name, endpoint in endpoints.items() if kind is None or endpoint.kind is kind]


def narrowed(plan: Plan, able: Collection[str]) -> Plan:
    """The same plan on these endpoints alone; all of them stand by where it names none."""
    named = tuple(start for start in plan.starts if start.endpoint in able)
    return replace(plan, starts=named or tuple(Start(name, None) for name in able))


def explained(failure: Exception, request: Request) -> Exception:
    """The failure, with the reason why a private request was not tried elsewhere."""
    if not (request.private and isinstance(failure, AllEndpointsFailed)):
        return failure
    return AllEndpointsFailed(failure.causes, "the request is private, so no server was asked")
