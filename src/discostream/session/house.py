"""What every request of one connection shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from discostream.config import MigrationSettings
from discostream.endpoints.base import Endpoint
from discostream.session.knowledge import Knowledge
from discostream.session.planner import Planner
from discostream.types import Outcome

__all__ = ["House", "Recorder"]


class Recorder(Protocol):
    """Keeps settled requests."""

    async def record(self, outcome: Outcome) -> None:
        """Return once the outcome is safe."""


@dataclass(frozen=True)
class House:
    """The endpoints, what is known of them, the planner in force, and the ledger.

    Attributes:
        usd_per_joule: The exchange rate.
    """

    endpoints: Mapping[str, Endpoint]
    knowledge: Knowledge
    planner: Planner
    ledger: Recorder
    migration: MigrationSettings
    usd_per_joule: float
