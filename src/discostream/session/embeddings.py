"""Who embeds texts: vectors of two models do not mix, so nobody races and nobody stands in."""

from __future__ import annotations

from collections.abc import Mapping

from discostream.endpoints.base import Endpoint
from discostream.errors import RequestRejected
from discostream.session.models import VIRTUAL
from discostream.types import Kind

__all__ = ["embedder_named"]


def embedder_named(model: str, endpoints: Mapping[str, Endpoint], *, private: bool) -> Endpoint:
    """The endpoint to ask: the first of that name or embedding model; behind a virtual model, of all.

    Args:
        model: A virtual model, an endpoint's name or the embedding model of one.
        endpoints: By name.
        private: Whether the texts must never leave the device.

    Raises:
        RequestRejected: Nobody embeds, or nobody on the device, or there is no such model.
    """
    private = private or (model in VIRTUAL and VIRTUAL[model].private)
    able = [endpoint for endpoint in endpoints.values() if endpoint.embedding_model]
    if private:
        able = [endpoint for endpoint in able if endpoint.kind is Kind.DEVICE]
    if not able:
        where = "device that the texts may not leave" if private else "endpoint"
        raise RequestRejected(
            f"No {where} embeds; set `embedding_model` in an [[endpoint]] of dialect openai", param="model"
        )
    for endpoint in able:
        if model in (endpoint.name, endpoint.embedding_model) or model in VIRTUAL:
            return endpoint
    there = dict.fromkeys(name for endpoint in able for name in (endpoint.name, endpoint.embedding_model))
    raise RequestRejected(
        f"There is no embedding model {model!r}; there are: {', '.join(['disco', *there])}",
        param="model",
        status=404,
        code="model_not_found",
    )
