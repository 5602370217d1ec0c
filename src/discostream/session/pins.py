"""What a request may ask for itself: a policy of its own, and never to leave the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from discostream.checks import KIND_NEEDED
from discostream.config import PolicySettings, suggest
from discostream.core.plugins import policy_names
from discostream.endpoints.base import Endpoint
from discostream.errors import AllEndpointsFailed, RequestRejected
from discostream.types import PROBE, Kind, Plan, Request, Start

__all__ = ["explained", "kept_private", "refuse_impossible_pins", "refuse_unknown_policy"]


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
    if request.private:
        _refuse_impossible_privacy(request, endpoints)


def refuse_unknown_policy(name: str, field: str) -> None:
    """Refuse the name of a policy that is not installed, as it was asked for in `field`.

    Raises:
        RequestRejected: Naming the field, and the policy that may have been meant.
    """
    if name not in policy_names():
        raise RequestRejected(
            f"`{field}`: there is no policy {name!r}; {suggest(name, policy_names())}", param=field
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


def kept_private(plan: Plan, endpoints: Mapping[str, Endpoint]) -> Plan:
    """The same plan on devices alone; every device stands by where it names none."""
    devices = [name for name, endpoint in endpoints.items() if endpoint.kind is Kind.DEVICE]
    named = tuple(start for start in plan.starts if start.endpoint in devices)
    return replace(plan, starts=named or tuple(Start(name, None) for name in devices))


def explained(failure: Exception, request: Request) -> Exception:
    """The failure, with the reason why a private request was not tried elsewhere."""
    if not (request.private and isinstance(failure, AllEndpointsFailed)):
        return failure
    return AllEndpointsFailed(failure.causes, "the request is private, so no server was asked")
