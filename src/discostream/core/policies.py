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

Every policy is a function `(known, settings) -> PlanTable` of frozen values. The paper's know one number, the
share b; budgets of dollars and joules become the largest b that keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.config import PolicySettings
from discostream.core.budget import DEFAULT_SHARE, POLICY_SHARE, Allowance, Resource
from discostream.core.cost import constrained_kind
from discostream.core.distributions import Distribution
from discostream.core.forecast import forecast
from discostream.core.plans import NEVER, STANDBY, PlanTable
from discostream.core.profile import EndpointProfile, Known, ServerTtft
from discostream.types import Kind

__all__ = [
    "FIXED_POLICIES",
    "Policy",
    "allowances_of",
    "cheap",
    "device_only",
    "disco",
    "disco_d",
    "disco_s",
    "fast",
    "offsets",
    "server_only",
    "stochastic",
]

Floats: TypeAlias = NDArray[np.float64]

FIXED_POLICIES = frozenset({"cheap", "device-only", "fast", "offsets", "server-only"})
"""Those that start what they name, whatever a share says."""

HALVINGS = 12
"""How often the range of b is halved in search of what a budget allows: to 1/4096."""

Policy = Callable[[Known, PolicySettings], PlanTable]


def allowances_of(known: Known, settings: PolicySettings) -> tuple[Allowance, ...]:
    """Everything that a plan has to keep: the budgets, and the paper's share as `policy.share`.

    The share limits the constrained kind where there are both kinds; without any budget it is one half. Where
    the allowances have one already, it follows actual spend and stands for the settings' own.
    """
    follows = any(each.budget == POLICY_SHARE for each in known.allowances)
    if follows or (settings.share is None and known.allowances) or not _has_both_kinds(known):
        return known.allowances
    share = DEFAULT_SHARE if settings.share is None else settings.share
    held_back = Allowance(POLICY_SHARE, Resource.SHARE, _constrained(known, settings), share)
    return (*known.allowances, held_back)


def disco(known: Known, settings: PolicySettings) -> PlanTable:
    """The paper's policy for whichever kind the budget holds back, with the first endpoint of each."""
    if not _has_both_kinds(known):
        return _first_alone(known, "disco")
    if _constrained(known, settings) is Kind.DEVICE:
        return _spending_all(known, settings, _device_waiting)
    return _spending_all(known, settings, _short_prompts_local)


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
    distinct, tokens = _tokens_by_length(lengths)
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


def disco_s(lengths: Floats, share: float) -> tuple[Floats, Floats]:
    """Which prompts the server takes too, by prompt length (the paper's DiSCo-S).

    Args:
        lengths: Prompt lengths in tokens, sorted, one per sample.
        share: b, the share of all prompt tokens the server may take.

    Returns:
        The longest prompt of each row (tokens) and the share of the row's requests that race: none up to a
        threshold, as many at it as use up the budget, and all beyond.
    """
    if share in (0.0, 1.0):
        return np.array([np.inf]), np.array([share])
    distinct, tokens = _tokens_by_length(lengths)
    beyond = np.append(np.cumsum(tokens[::-1])[-2::-1], 0.0)
    threshold = int(np.argmax(beyond <= share))
    below = float(distinct[threshold - 1]) if threshold else 0.0
    racing = min((share - beyond[threshold]) / tokens[threshold], 1.0)
    return np.array([below, distinct[threshold], np.inf]), np.array([0.0, racing, 1.0])


def _tokens_by_length(lengths: Floats) -> tuple[Floats, Floats]:
    """The distinct lengths, which are sorted already, and each one's share of all tokens."""
    last = np.append(np.flatnonzero(np.diff(lengths)), lengths.size - 1)
    distinct = lengths[last]
    return distinct, distinct * np.diff(last, prepend=-1) / lengths.sum()


def stochastic(known: Known, settings: PolicySettings) -> PlanTable:
    """The baseline: a share of the requests, drawn at random, may use the constrained kind too."""
    if not _has_both_kinds(known):
        return _first_alone(known, "stochastic")
    return _spending_all(known, settings, _joining_at_random)


def server_only(known: Known, settings: PolicySettings) -> PlanTable:
    """The first server, and nothing else."""
    return _only(known, Kind.SERVER, "server-only")


def device_only(known: Known, settings: PolicySettings) -> PlanTable:
    """The first device, and nothing else."""
    return _only(known, Kind.DEVICE, "device-only")


def offsets(known: Known, settings: PolicySettings) -> PlanTable:
    """Fixed start offsets from the settings; an endpoint without one stands by."""
    return _table("offsets", known, np.array([np.inf]), [[dict(settings.offsets)]])


def fast(known: Known, settings: PolicySettings) -> PlanTable:
    """Everybody at once: nobody's first token can come sooner."""
    everybody = {endpoint.name: 0.0 for endpoint in known.endpoints}
    return _table("fast", known, np.array([np.inf]), [[everybody]])


def cheap(known: Known, settings: PolicySettings) -> PlanTable:
    """Whoever is expected to cost least for the prompt and an average answer, energy at the exchange rate.

    What an endpoint costs is a straight line over the prompt's length, so the cheapest one changes only
    where two lines cross. Of those that cost the same, it is the first in the settings.
    """
    rates = [endpoint.rates for endpoint in known.endpoints]
    slopes = np.array([rate.prefill_usd for rate in rates])
    answers = np.array([rate.decode_usd for rate in rates]) * known.answer_tokens.distribution.mean
    crossings = _crossings(slopes, answers)
    shortest = np.append(0.0, crossings)
    inside = (shortest + np.append(crossings, shortest[-1] + 1.0)) / 2
    cheapest = (slopes[:, None] * inside + answers[:, None]).argmin(axis=0)
    rows = [[{known.endpoints[index].name: 0.0}] for index in cheapest]
    return _table("cheap", known, np.append(crossings, np.inf), rows)


def _crossings(slopes: Floats, heights: Floats) -> Floats:
    """Where any two of these lines cross to the right of zero, rising."""
    one, other = np.triu_indices(slopes.size, k=1)
    differ = slopes[one] != slopes[other]
    one, other = one[differ], other[differ]
    crossings = (heights[other] - heights[one]) / (slopes[one] - slopes[other])
    return np.unique(crossings[crossings > 0])


def _device_waiting(known: Known, settings: PolicySettings, share: float) -> PlanTable:
    device, server = _first(known, Kind.DEVICE), _first(known, Kind.SERVER)
    assert isinstance(server.ttft, ServerTtft)
    lengths = known.prompt_tokens.samples
    bounds, waits = disco_d(lengths, server.ttft.distribution, share, settings.alpha)
    return _table("disco", known, bounds, [[{server.name: 0.0, device.name: wait}] for wait in waits])


def _short_prompts_local(known: Known, settings: PolicySettings, share: float) -> PlanTable:
    device, server = _first(known, Kind.DEVICE), _first(known, Kind.SERVER)
    bounds, racing = disco_s(known.prompt_tokens.samples, share)
    actions = [{device.name: 0.0}, {device.name: 0.0, server.name: 0.0}]
    return _table("disco", known, bounds, [actions] * racing.size, np.column_stack((1.0 - racing, racing)))


def _joining_at_random(known: Known, settings: PolicySettings, share: float) -> PlanTable:
    device, server = _first(known, Kind.DEVICE), _first(known, Kind.SERVER)
    free = server if _constrained(known, settings) is Kind.DEVICE else device
    actions = [{free.name: 0.0}, {device.name: 0.0, server.name: 0.0}]
    return _table("stochastic", known, np.array([np.inf]), [actions], np.array([[1.0 - share, share]]))


def _has_both_kinds(known: Known) -> bool:
    return {endpoint.kind for endpoint in known.endpoints} == set(Kind)


def _first(known: Known, kind: Kind) -> EndpointProfile:
    return next(endpoint for endpoint in known.endpoints if endpoint.kind is kind)


def _constrained(known: Known, settings: PolicySettings) -> Kind:
    """The kind that the settings hold back, or the only one with a budget, or the dearer one."""
    if settings.constraint != "auto":
        return Kind(settings.constraint)
    budgeted = {_kind_that_spends(allowance) for allowance in known.allowances}
    if len(budgeted) == 1:
        return budgeted.pop()
    return constrained_kind(_first(known, Kind.DEVICE).rates, _first(known, Kind.SERVER).rates)


def _kind_that_spends(allowance: Allowance) -> Kind:
    if allowance.kind is not None:
        return allowance.kind
    return Kind.SERVER if allowance.resource is Resource.USD else Kind.DEVICE


def _spending_all(
    known: Known,
    settings: PolicySettings,
    plan: Callable[[Known, PolicySettings, float], PlanTable],
) -> PlanTable:
    """The plan for the largest b that keeps every budget on the constrained kind; for 0, where none does."""
    kind = _constrained(known, settings)
    ours = [each for each in allowances_of(known, settings) if _kind_that_spends(each) is kind]
    most = min((each.per_request for each in ours if each.resource is Resource.SHARE), default=1.0)
    billed = [each for each in ours if each.resource is not Resource.SHARE]
    affordable, unaffordable = 0.0, min(most, 1.0)
    if _keeps(known, billed, plan(known, settings, unaffordable)):
        return plan(known, settings, unaffordable)
    for _ in range(HALVINGS):
        middle = (affordable + unaffordable) / 2
        if _keeps(known, billed, plan(known, settings, middle)):
            affordable = middle
        else:
            unaffordable = middle
    return plan(known, settings, affordable)


def _keeps(known: Known, allowances: Sequence[Allowance], table: PlanTable) -> bool:
    if not allowances:
        return True
    expected = forecast(known, table)
    return all(expected.spend(allowance) <= allowance.per_request for allowance in allowances)


def _first_alone(known: Known, policy: str) -> PlanTable:
    first = known.endpoints[0]
    return _table(policy, known, np.array([np.inf]), [[{first.name: 0.0}]])


def _only(known: Known, kind: Kind, policy: str) -> PlanTable:
    endpoint = next((endpoint for endpoint in known.endpoints if endpoint.kind is kind), None)
    if endpoint is None:
        raise ValueError(f"policy {policy!r} needs an endpoint of kind {kind.value!r}")
    return _table(policy, known, np.array([np.inf]), [[{endpoint.name: 0.0}]], others=NEVER)


def _table(
    policy: str,
    known: Known,
    longest: Floats,
    rows: Sequence[Sequence[dict[str, float]]],
    weights: Floats | None = None,
    others: float = STANDBY,
) -> PlanTable:
    names = tuple(endpoint.name for endpoint in known.endpoints)
    table = np.array([[[action.get(name, others) for name in names] for action in row] for row in rows])
    return PlanTable(policy, names, longest, table, np.ones((len(rows), 1)) if weights is None else weights)
