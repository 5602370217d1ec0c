"""The models that clients may name: virtual ones, behind which we choose, and every real one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from discostream.endpoints.base import Endpoint
from discostream.errors import ConfigError, RequestRejected
from discostream.types import Kind, Request

__all__ = ["VIRTUAL", "Choice", "choice_of", "model_names", "refuse_taken_names"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a model's name decides about a request.

    Attributes:
        endpoint: The one endpoint that may answer; `None` where the policy may choose.
        policy: The policy to plan by; `None` is the one in the settings.
        private: Whether it must never leave the device.
    """

    endpoint: str | None = None
    policy: str | None = None
    private: bool = False

    def applied(self, request: Request) -> Request:
        """The request under this choice; a policy and a privacy of its own hold on."""
        return replace(
            request,
            endpoint=self.endpoint,
            policy=request.policy or self.policy,
            private=request.private or self.private,
        )


VIRTUAL: Final[Mapping[str, Choice]] = {
    "disco": Choice(),
    "disco-private": Choice(private=True),
    "disco-fast": Choice(policy="fast"),
    "disco-cheap": Choice(policy="cheap"),
}
"""The virtual models; the private one is only there where a device is."""


def model_names(endpoints: Mapping[str, Endpoint]) -> list[str]:
    """All of them, each once: endpoints go by their own name and by their model's."""
    return list(dict.fromkeys(_names(endpoints)))


def choice_of(model: str, endpoints: Mapping[str, Endpoint]) -> Choice:
    """What the name of a model decides.

    Raises:
        RequestRejected: There is no such model.
    """
    if model not in model_names(endpoints):
        raise RequestRejected(
            f"There is no model {model!r}; there are: {', '.join(model_names(endpoints))}",
            param="model",
            status=404,
            code="model_not_found",
        )
    if model in VIRTUAL:
        return VIRTUAL[model]
    if model in endpoints:
        return Choice(model)
    meant = [name for name, endpoint in endpoints.items() if endpoint.settings.model == model]
    return Choice(meant[0] if len(meant) == 1 else None)


def refuse_taken_names(endpoints: Mapping[str, Endpoint]) -> None:
    """Refuse endpoints that no request could name.

    Raises:
        ConfigError: One is called as a virtual model is.
    """
    for name in VIRTUAL:
        if name in endpoints:
            raise ConfigError(
                f"endpoint.name = {name!r}: is the name of a virtual model; give the endpoint another"
            )


def _names(endpoints: Mapping[str, Endpoint]) -> Iterator[str]:
    device = any(endpoint.kind is Kind.DEVICE for endpoint in endpoints.values())
    yield from (name for name, choice in VIRTUAL.items() if device or not choice.private)
    yield from endpoints
    yield from (endpoint.settings.model for endpoint in endpoints.values() if endpoint.settings.model)
