"""The contract of an endpoint: one verb, `generate`, and `aclose`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from discostream.config import EndpointSettings
from discostream.core.cost import Energy, Prices
from discostream.errors import EndpointError, Phase
from discostream.types import Carrier, Event, Feature, Kind, Prefix, Request

__all__ = ["Endpoint", "NoOptions"]


class NoOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dialect without keys of its own."""


class Endpoint(ABC):
    """A place that generates.

    An adapter's author writes `generate` and, where something must be closed, `aclose`. Keys of its own
    in `[[endpoint]]` are declared as a frozen msgspec struct in `Options`, those of them that have no
    bearing on how fast it is in `neutral_options`, what it can usually do beyond text in `usual_features`;
    slow starts go into `prepare`.

    Attributes:
        name: What the settings call it.
        kind: Whether it costs joules or dollars.
        prices: Dollars per token; the registry fills it in.
        energy: Joules per token; nothing for servers.
        cancel_stops_billing: Whether closing a stream ends its bill.
        continues: What a handoff may bring here; empty for an endpoint that can only start an answer.
        features: What it can do beyond text. A request that needs more is not brought here.
        models: Models of the catalogue that it will look for on this machine.
        vocabulary: A fingerprint of its token IDs; IDs may travel between endpoints whose fingerprints
            are equal. `None` until it is known.
        embedding_model: The model by which it embeds texts; empty where it embeds none.
        slots: How many requests it serves at a time; `None` where that is not known, or not bounded by us.
        base_url: Where its server listens; empty where it has none, or one of our own.
        identity: A short hash of what decides how fast it is: kind, dialect, model, and options. What was
            learnt of an endpoint holds for as long as this stays the same.
    """

    Options: ClassVar[type[Struct]] = NoOptions
    neutral_options: ClassVar[frozenset[str]] = frozenset()
    usual_features: ClassVar[frozenset[Feature]] = frozenset()

    def __init__(self, settings: EndpointSettings, options: Struct) -> None:
        self.settings = settings
        self.name = settings.name
        self.kind: Kind = settings.kind
        self.prices = Prices(settings.prompt_usd_per_mtok or 0.0, settings.completion_usd_per_mtok or 0.0)
        self.energy = Energy(
            settings.prefill_joules_per_token or 0.0, settings.decode_joules_per_token or 0.0
        )
        self.cancel_stops_billing = settings.cancel_stops_billing is not False
        self.continues: frozenset[Carrier] = frozenset()
        declared = settings.features
        self.features = self.usual_features if declared is None else frozenset(declared)
        self.vocabulary: str | None = None
        self.models: tuple[str, ...] = ()
        self.embedding_model = ""
        self.slots: int | None = None
        self.base_url: str = getattr(options, "base_url", "")
        self.identity = _identity(settings, options, self.neutral_options)

    @classmethod
    def defaults(cls, settings: EndpointSettings) -> Mapping[str, Any]:
        """Keys of `[[endpoint]]` that hold where these settings are silent, unlike the usual ones.

        Raises:
            ConfigError: The settings ask for what is not known.
        """
        return {}

    @property
    def energy_is_known(self) -> bool:
        """Whether it is known, of both phases, how many joules a token takes; servers take none."""
        stated = self.settings.prefill_joules_per_token, self.settings.decode_joules_per_token
        counted = self.energy.prefill_j_per_token, self.energy.decode_j_per_token
        known = (said is not None or joules > 0.0 for said, joules in zip(stated, counted, strict=True))
        return self.kind is Kind.SERVER or all(known)

    @abstractmethod
    def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        """Stream the answer to `request`, going on from `prefix`.

        The stream is perhaps a `Prompt`, and another once it knows more, then `Piece`s of whole characters,
        then exactly one `Finish`. Closing the generator early cancels the work at the endpoint for real. An
        empty prefix starts the answer; otherwise only the continuation is sent, never the prefix again, and
        `request.max_tokens` is what may still be generated.

        Raises:
            EndpointError: The endpoint refused or broke; the phase says how far it had come.
        """

    async def embed(self, fields: Mapping[str, Any]) -> bytes:
        """The body of the response to an embeddings request with these fields, under `embedding_model`.

        Only endpoints that name one are asked.

        Raises:
            EndpointError: The endpoint refused or broke.
        """
        raise EndpointError(self.name, Phase.REFUSED, "has no embeddings")

    async def prepare(self) -> None:
        """Do ahead what the first `generate` would otherwise wait for, such as loading a model.

        Safe to call again; `generate` calls it where it matters.

        Raises:
            EndpointError: It cannot be made ready.
        """

    async def inspect(self) -> None:
        """Learn what can be known without starting or asking anything, such as a local model's energy.

        Safe to call again, and instead of `prepare` where nothing is going to be generated.
        """

    async def aclose(self) -> None:
        """Release what the endpoint holds. Safe to call twice."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} ({self.kind.value})>"


def _identity(settings: EndpointSettings, options: Struct, neutral: Collection[str]) -> str:
    telling = {key: value for key, value in msgspec.to_builtins(options).items() if key not in neutral}
    what = [settings.kind, settings.dialect, settings.model, telling]
    return hashlib.sha256(msgspec.json.encode(what, order="sorted")).hexdigest()[:12]
