"""What every request of one connection shares."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from discostream.config import CostSettings, MigrationSettings, PacingSettings
from discostream.core.cost import constrained_kind, exchange_rate
from discostream.core.profile import Known
from discostream.endpoints.base import Endpoint
from discostream.session.conversations import Conversations
from discostream.session.knowledge import Knowledge
from discostream.session.live import Watched
from discostream.session.outlet import Outlet, PacedOutlet, Sink
from discostream.session.planner import Planner
from discostream.session.power import PowerSupply
from discostream.session.purse import Purse
from discostream.types import Kind, Outcome, Request

__all__ = ["House", "Recorder", "Surroundings", "WhenSettled"]

WhenSettled: TypeAlias = Callable[[Request, Outcome], None]
"""Is told of a request that was settled this moment, before its reader is."""


class Recorder(Protocol):
    """Keeps settled requests."""

    async def record(self, outcome: Outcome, at_s: float) -> None:
        """Return once the outcome, settled at this moment (seconds since the epoch), is safe."""


@dataclass(frozen=True)
class Surroundings:
    """All that plans are made from: what was learnt, what energy is worth, and what may be spent.

    Attributes:
        cost: `[cost]`.
        power: The machine's battery, if it has one.
        purse: What may be spent.
    """

    knowledge: Knowledge
    cost: CostSettings
    power: PowerSupply = field(default_factory=PowerSupply)
    purse: Purse = field(default_factory=Purse)

    def known(self) -> Known:
        """One frozen snapshot of this moment."""
        known = self.knowledge.known(self.usd_per_joule, now_s=time.time())
        return replace(known, allowances=self.purse.allowances(_dearer(known)))

    def version(self) -> object:
        """Changes when a service did, or when endpoints turned out to cost something else than they did."""
        energies = tuple(endpoint.energy for endpoint in self.knowledge.endpoints.values())
        return self.knowledge.changes, energies

    @property
    def usd_per_joule(self) -> float:
        """The exchange rate of this moment."""
        return exchange_rate(self.cost, self.power.charge())


def _dearer(known: Known) -> Kind:
    """The kind that prices say should be held back; the one there is, where there is only one."""
    rates = {endpoint.kind: endpoint.rates for endpoint in reversed(known.endpoints)}
    if len(rates) < len(Kind):
        return next(iter(rates), Kind.SERVER)
    return constrained_kind(rates[Kind.DEVICE], rates[Kind.SERVER])


@dataclass(frozen=True)
class House:
    """The endpoints, what is known of them, the planner in force, and the ledger.

    Attributes:
        running: How many attempts run at each endpoint.
        conversations: What each endpoint has read lately.
        purse: What may be spent.
        pacing: When tokens that have come are passed on.
        on_settled: Who is told of every request that was settled.
        live: The requests that are being answered, by their clients.
    """

    endpoints: Mapping[str, Endpoint]
    knowledge: Knowledge
    planner: Planner
    ledger: Recorder
    migration: MigrationSettings
    running: Counter[str]
    conversations: Conversations
    purse: Purse = field(default_factory=Purse)
    pacing: PacingSettings = field(default_factory=PacingSettings)
    on_settled: Sequence[WhenSettled] = ()
    live: dict[Sink, Watched] = field(default_factory=dict)

    def outlet(self, request: Request, client: Sink) -> Outlet:
        """The way out for one answer."""
        if self.pacing.mode == "immediate":
            return Outlet(request.arrived_at, client)
        rate = self.migration.consumption_tokens_per_s
        return PacedOutlet(request.arrived_at, client, rate, self.pacing.max_lag_s)
