"""The contract of an endpoint: one verb, `generate`, and `aclose`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import ClassVar

from msgspec import Struct

from discostream.config import EndpointSettings
from discostream.core.cost import Energy, Prices
from discostream.types import Carrier, Event, Kind, Prefix, Request

__all__ = ["Endpoint", "NoOptions"]


class NoOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dialect without keys of its own."""


class Endpoint(ABC):
    """A place that generates.

    An adapter's author writes `generate` and, where something must be closed, `aclose`. Keys of its own
    in `[[endpoint]]` are declared as a frozen msgspec struct in `Options`; slow starts go into `prepare`.

    Attributes:
        name: What the settings call it.
        kind: Whether it costs joules or dollars.
        prices: Dollars per token; the registry fills it in.
        energy: Joules per token; nothing for servers.
        cancel_stops_billing: Whether closing a stream ends its bill.
        continues: What a handoff may bring here; empty for an endpoint that can only start an answer.
        models: Models of the catalogue that it will look for on this machine.
        vocabulary: A fingerprint of its token IDs; IDs may travel between endpoints whose fingerprints
            are equal. `None` until it is known.
    """

    Options: ClassVar[type[Struct]] = NoOptions

    def __init__(self, settings: EndpointSettings, options: Struct) -> None:
        self.settings = settings
        self.name = settings.name
        self.kind: Kind = settings.kind
        self.prices = Prices(settings.prompt_usd_per_mtok or 0.0, settings.completion_usd_per_mtok or 0.0)
        self.energy = Energy(
            settings.prefill_joules_per_token or 0.0, settings.decode_joules_per_token or 0.0
        )
        self.cancel_stops_billing = settings.cancel_stops_billing
        self.continues: frozenset[Carrier] = frozenset()
        self.vocabulary: str | None = None
        self.models: tuple[str, ...] = ()

    @abstractmethod
    def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        """Stream the answer to `request`, going on from `prefix`.

        The stream is at most one `Prompt`, then `Piece`s of whole characters, then exactly one `Finish`.
        Closing the generator early cancels the work at the endpoint for real. An empty prefix starts the
        answer; otherwise only the continuation is sent, never the prefix again, and `request.max_tokens`
        is what may still be generated.

        Raises:
            EndpointError: The endpoint refused or broke; the phase says how far it had come.
        """

    async def prepare(self) -> None:
        """Do ahead what the first `generate` would otherwise wait for, such as loading a model.

        Safe to call again; `generate` calls it where it matters.

        Raises:
            EndpointError: It cannot be made ready.
        """

    async def aclose(self) -> None:
        """Release what the endpoint holds. Safe to call twice."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} ({self.kind.value})>"
