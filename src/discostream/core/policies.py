"""Dispatch policies: who starts when, by prompt length.

The problem (arXiv 2502.11417, sections 3 and 4): a server's TTFT has a heavy tail whatever the prompt, a
device's TTFT is steady but grows with the prompt. Starting both for every request gives the lesser of the
two, and costs both. A budget b says which share of all prompt tokens the constrained kind may take.

The naive answer spends it at random: with probability b the constrained endpoint joins the race from the
start (`stochastic`). It wastes budget on requests that did not need it. The paper spends it where it helps:

- device constrained: the server starts at once and the device after a wait. A small part of the budget
  insures every request against the server's tail; the rest removes the wait for the shortest prompts, where
  the device is fastest.
- server constrained: short prompts stay on the device, long ones race both.

Every policy is a function `(known, settings) -> PlanTable` of frozen values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.config import PolicySettings
from discostream.core.cost import constrained_kind
from discostream.core.distributions import Distribution
from discostream.core.profile import EndpointProfile, Known, ServerTtft
from discostream.types import Kind, Plan, Start

__all__ = [
    "NEVER",
    "STANDBY",
    "PlanTable",
    "Policy",
    "device_only",
    "disco",
    "disco_d",
    "disco_s",
    "offsets",
    "server_only",
    "stochastic",
]

Floats: TypeAlias = NDArray[np.float64]

STANDBY = np.inf
"""An offset that never comes: the endpoint starts only when the others have failed."""

NEVER = np.nan
"""No offset at all: the endpoint is not part of the plan."""


@dataclass(frozen=True, eq=False)
class PlanTable:
    """Start offsets by prompt length; a row may mix several actions.

    Attributes:
        endpoints: Names, in the order of the last axis of `offsets`.
        longest: The longest prompt (tokens) of each row, rising; the last is infinite. Shape (rows,).
        offsets: Seconds after arrival, `STANDBY` or `NEVER`. Shape (rows, actions, endpoints).
        weights: How often each action of a row is taken; rows sum to one. Shape (rows, actions).
    """

    policy: str
    endpoints: tuple[str, ...]
    longest: Floats
    offsets: Floats
    weights: Floats

    def choose(self, prompt_tokens: float, draw: float) -> Plan:
        """The plan for one request; `draw`, uniform in [0, 1), picks among a row's actions."""
        row = int(np.searchsorted(self.longest, prompt_tokens))
        action = int(np.searchsorted(np.cumsum(self.weights[row]), draw, side="right"))
        action = min(action, self.weights.shape[1] - 1)
        starts = zip(self.endpoints, self.offsets[row, action].tolist(), strict=True)
        return Plan(
            self.policy,
            tuple(Start(name, None if at == STANDBY else at) for name, at in starts if not np.isnan(at)),
        )


Policy = Callable[[Known, PolicySettings], PlanTable]


def disco(known: Known, settings: PolicySettings) -> PlanTable:
    """The paper's policy for whichever kind the budget holds back."""
    device, server = _first(known, Kind.DEVICE), _first(known, Kind.SERVER)
    if device is None or server is None:
        return _first_alone(known, "disco")
    lengths = known.prompt_tokens.samples
    if _constraint(settings, device, server) is Kind.DEVICE:
        assert isinstance(server.ttft, ServerTtft)
        bounds, waits = disco_d(lengths, server.ttft.distribution, settings.share, settings.alpha)
        rows = [{server.name: 0.0, device.name: wait} for wait in waits]
    else:
        bounds = np.array([disco_s(lengths, settings.share), np.inf])
        rows = [{device.name: 0.0}, {device.name: 0.0, server.name: 0.0}]
    return _table("disco", known, bounds, [[row] for row in rows])


def disco_d(lengths: Floats, server: Distribution, share: float, alpha: float) -> tuple[Floats, Floats]:
    """How long the device waits for the server, by prompt length (the paper's DiSCo-D).

    Args:
        lengths: Prompt lengths in tokens, sorted, one per sample.
        server: F, the server's TTFT (seconds).
        share: b, the share of all prompt tokens the device may take.
        alpha: The most of it that insures the tail.

    Returns:
        The longest prompt of each row (tokens) and the row's wait (seconds): none up to a cut-off, one at the
        cut-off that uses the rest of the budget, and `F^-1(1 - min(alpha, b))` beyond.
    """
    tail = min(alpha, share)
    longest_wait = float(server.quantile(1.0 - tail)) if tail > 0 else STANDBY
    distinct, counts = np.unique(lengths, return_counts=True)
    tokens = distinct * counts / lengths.sum()
    spent = (1.0 - tail) * np.cumsum(tokens)
    left = share - tail
    unwaited = int(np.searchsorted(spent, left * (1 + 1e-12), side="right"))
    if unwaited == distinct.size:
        return np.array([np.inf]), np.array([0.0])
    rest = left - (float(spent[unwaited - 1]) if unwaited else 0.0)
    cut_off = distinct[unwaited]
    below = float(distinct[unwaited - 1]) if unwaited else 0.0
    wait = float(server.quantile(1.0 - tail - rest / tokens[unwaited])) if rest > 0 else longest_wait
    return np.array([below, cut_off, np.inf]), np.array([0.0, wait, longest_wait])


def disco_s(lengths: Floats, share: float) -> float:
    """The longest prompt that stays on the device (the paper's DiSCo-S), in tokens.

    Longer prompts hold at most `share` of all prompt tokens.
    """
    if share in (0.0, 1.0):
        return np.inf if share == 0.0 else 0.0
    distinct, counts = np.unique(lengths, return_counts=True)
    beyond = 1.0 - np.cumsum(distinct * counts) / lengths.sum()
    return float(distinct[int(np.argmax(beyond <= share + 1e-12))])


def stochastic(known: Known, settings: PolicySettings) -> PlanTable:
    """The baseline: a share of the requests, drawn at random, may use the constrained kind too."""
    device, server = _first(known, Kind.DEVICE), _first(known, Kind.SERVER)
    if device is None or server is None:
        return _first_alone(known, "stochastic")
    free = server if _constraint(settings, device, server) is Kind.DEVICE else device
    actions = [{free.name: 0.0}, {device.name: 0.0, server.name: 0.0}]
    return _table("stochastic", known, np.array([np.inf]), [actions], [1.0 - settings.share, settings.share])


def server_only(known: Known, settings: PolicySettings) -> PlanTable:
    """The first server, and nothing else."""
    return _only(known, Kind.SERVER, "server-only")


def device_only(known: Known, settings: PolicySettings) -> PlanTable:
    """The first device, and nothing else."""
    return _only(known, Kind.DEVICE, "device-only")


def offsets(known: Known, settings: PolicySettings) -> PlanTable:
    """Fixed start offsets from the settings; an endpoint without one stands by."""
    return _table("offsets", known, np.array([np.inf]), [[dict(settings.offsets)]])


def _constraint(settings: PolicySettings, device: EndpointProfile, server: EndpointProfile) -> Kind:
    if settings.constraint == "auto":
        return constrained_kind(device.rates, server.rates)
    return Kind(settings.constraint)


def _first(known: Known, kind: Kind) -> EndpointProfile | None:
    return next((endpoint for endpoint in known.endpoints if endpoint.kind is kind), None)


def _first_alone(known: Known, policy: str) -> PlanTable:
    first = known.endpoints[0]
    return _table(policy, known, np.array([np.inf]), [[{first.name: 0.0}]])


def _only(known: Known, kind: Kind, policy: str) -> PlanTable:
    endpoint = _first(known, kind)
    if endpoint is None:
        raise ValueError(f"policy {policy!r} needs an endpoint of kind {kind.value!r}")
    return _table(policy, known, np.array([np.inf]), [[{endpoint.name: 0.0}]], others=NEVER)


def _table(
    policy: str,
    known: Known,
    longest: Floats,
    rows: Sequence[Sequence[dict[str, float]]],
    weights: Sequence[float] = (1.0,),
    others: float = STANDBY,
) -> PlanTable:
    names = tuple(endpoint.name for endpoint in known.endpoints)
    table = np.array([[[action.get(name, others) for name in names] for action in row] for row in rows])
    return PlanTable(policy, names, longest, table, np.tile(weights, (len(rows), 1)))
