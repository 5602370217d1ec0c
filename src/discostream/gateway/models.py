"""The models that clients may name: `disco`, behind which the policy chooses, and every endpoint."""

from __future__ import annotations

from collections.abc import Iterator

from discostream.errors import RequestRejected
from discostream.library import Disco
from discostream.wire.openai_schema import DEFAULT_MODEL

__all__ = ["endpoint_named", "model_names"]


def model_names(disco: Disco) -> list[str]:
    """All of them, each once: endpoints go by their own name and by their model's."""
    return list(dict.fromkeys(_names(disco)))


def endpoint_named(model: str, disco: Disco) -> str | None:
    """The one endpoint that a model's name pins; `None` where the policy may choose.

    Raises:
        RequestRejected: There is no such model.
    """
    if model not in model_names(disco):
        raise RequestRejected(
            f"There is no model {model!r}; there are: {', '.join(model_names(disco))}",
            param="model",
            status=404,
            code="model_not_found",
        )
    if model in disco.endpoints:
        return model
    meant = [name for name, endpoint in disco.endpoints.items() if endpoint.settings.model == model]
    return meant[0] if len(meant) == 1 else None


def _names(disco: Disco) -> Iterator[str]:
    yield DEFAULT_MODEL
    yield from disco.endpoints
    yield from (endpoint.settings.model for endpoint in disco.endpoints.values() if endpoint.settings.model)
