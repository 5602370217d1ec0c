"""What clients send to `/v1/embeddings`: read only as far as needed to know whom to ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from discostream.errors import RequestRejected

__all__ = ["EmbeddingsCall", "decode_embeddings_request"]


@dataclass(frozen=True, slots=True)
class EmbeddingsCall:
    """One decoded `POST /v1/embeddings`.

    Attributes:
        model: The model the client named.
        fields: Everything it sent, each field as it was written.
    """

    model: str
    fields: Mapping[str, msgspec.Raw]


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MODEL = msgspec.json.Decoder(str)


def decode_embeddings_request(body: bytes) -> EmbeddingsCall:
    """The call that a request body makes.

    Raises:
        RequestRejected: The body is no JSON object, has no input, or its model is no name.
    """
    try:
        fields = _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRejected(f"The body is no JSON object: {error}", code="invalid_json") from None
    if "input" not in fields:
        raise RequestRejected("`input`: is missing; it holds the text, or a list of texts", param="input")
    try:
        model = _MODEL.decode(fields.get("model", b'"disco"'))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RequestRejected("`model`: must be a name", param="model") from None
    return EmbeddingsCall(model, fields)
