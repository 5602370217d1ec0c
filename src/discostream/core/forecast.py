"""What a plan table would do: TTFT, lateness and spend, by computation and not by sampling.

A race is a minimum. Servers depend neither on each other nor on the prompt, so the time M of the first
content among them survives as the product of their survivals, each moved by its start offset. A device needs
k x tokens + c and a normal residual; a few atoms D_q of weight w_q stand for it (Gauss-Hermite). With G the
integral of M's survival from zero, E[min(M, D)] is the sum of w_q G(D_q): no samples, no noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.core.budget import Allowance, Resource
from discostream.core.distributions import Distribution
from discostream.core.plans import PlanTable
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, ServerTtft
from discostream.types import Kind

__all__ = ["SILENCE_S", "TINY_S", "Forecast", "Races", "forecast", "run_races"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.intp]

SILENCE_S = 120.0
"""What an attempt counts as that never brings content: the adapters' own limit on silence."""

BENDS_S = np.geomspace(0.01, 200.0, 96)
"""More points, between the knots, for products of survivals: these bend where their factors are straight."""

ATOMS, ATOM_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
ATOM_WEIGHTS = ATOM_WEIGHTS / ATOM_WEIGHTS.sum()

_SIGMAS = np.linspace(-6.0, 6.0, 1201)
NORMAL_SURVIVAL = _SIGMAS, np.array([0.5 * math.erfc(sigma / math.sqrt(2.0)) for sigma in _SIGMAS])
"""How likely a normal residual is larger, by standard deviations; between these, straight to five digits."""

FOREVER_S = 1e12
"""An infinite offset, to be reckoned with."""

TINY_S = 1e-9
"""How steep a jump is drawn, in place of vertical."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an average request may expect of a table.

    Attributes:
        lateness_s: Expected time past the deadline.
        usd: Dollars a request, on all endpoints together.
        joules: Joules a request, likewise.
        token_share: Prompt tokens that each kind processes, as a share of all prompt tokens; above one where
            prompts start on several endpoints of a kind.
    """

    mean_ttft_s: float
    p50_ttft_s: float
    p90_ttft_s: float
    p99_ttft_s: float
    lateness_s: float
    usd: float
    joules: float
    token_share: Mapping[Kind, float]

    def spend(self, allowance: Allowance) -> float:
        """What an average request takes of a budget, in the allowance's unit."""
        if allowance.resource is Resource.SHARE:
            return sum(share for kind, share in self.token_share.items() if kind is allowance.kind)
        return self.usd if allowance.resource is Resource.USD else self.joules


@dataclass(frozen=True, eq=False)
class Races:
    """What races come to. A cell is one prompt length under one action.

    Attributes:
        endpoints: Who races, one per column.
        prompt_tokens: Of each cell, shape (cells,).
        offsets: When each column starts in it, in seconds, infinite for never, shape (cells, columns).
    """

    endpoints: tuple[EndpointProfile, ...]
    prompt_tokens: Floats
    offsets: Floats
    _devices: _Devices
    _heats: tuple[_Heat, ...]

    @cached_property
    def ttft_s(self) -> Floats:
        """Expected time of the first content, shape (cells,)."""
        return self._devices.expected(self._reached)

    def lateness_s(self, *deadlines_s: float) -> Floats:
        """Expected time past each deadline, shape (deadlines, cells)."""
        by_deadline = np.empty((len(deadlines_s), self.prompt_tokens.size))
        for heat in self._heats:
            by_deadline[:, heat.cells] = heat.servers.area_to(np.array(deadlines_s))[:, None]
        return np.array(
            [
                self._devices.expected(np.maximum(self._reached - area_s[:, None], 0.0))
                for area_s in by_deadline
            ]
        )

    @cached_property
    def starts(self) -> Floats:
        """How likely nobody has spoken yet at each column's offset, shape (cells, columns)."""
        silent = np.empty(self.offsets.shape)
        for heat in self._heats:
            silent[heat.cells] = heat.servers.survival(self.offsets[heat.cells])
        for column, at in enumerate(self.offsets.T):
            silent[:, column] *= self._devices.silent_at(at)
        return silent

    @cached_property
    def wins(self) -> Floats:
        """How likely each column's content is the first, shape (cells, columns)."""
        serving = np.array([isinstance(one.ttft, ServerTtft) for one in self.endpoints])
        wins = np.empty(self.offsets.shape)
        for heat in self._heats:
            atoms_s, weights = self._devices.atoms_s[heat.cells], self._devices.weights[heat.cells]
            held = weights * heat.servers.survival(atoms_s)
            wins[np.ix_(heat.cells, ~serving)] = np.add.reduceat(held, self._devices.blocks, axis=1)
            for column, first in zip(np.flatnonzero(serving), heat.servers.first(), strict=True):
                before = np.interp(atoms_s, heat.servers.times_s, first)
                wins[heat.cells, column] = (before * weights).sum(axis=1)
        return wins

    def still_waiting(self, times_s: Floats, weights: Floats) -> Floats:
        """The share of requests without content at each time, cells being so frequent; shape (times,)."""
        waiting = np.zeros(times_s.size)
        for heat in self._heats:
            atoms_s = self._devices.atoms_s[heat.cells].ravel()
            order = np.argsort(atoms_s)
            shares = (self._devices.weights[heat.cells] * weights[heat.cells, None]).ravel()[order]
            beyond = np.append(np.cumsum(shares[::-1])[::-1], 0.0)
            later = np.searchsorted(atoms_s[order], times_s, side="right")
            waiting += beyond[later] * heat.servers.survival(times_s)
        return waiting

    def quantiles(self, probabilities: Floats, weights: Floats) -> Floats:
        """The times by which these shares of requests have content, cells being so frequent; same shape."""
        rows = np.arange(probabilities.size)
        after, before = np.full(probabilities.size, 1e-4), np.full(probabilities.size, 1e7)
        for _ in range(3):
            grid = np.geomspace(after, before, 64, axis=1)
            served = 1.0 - self.still_waiting(grid.ravel(), weights).reshape(grid.shape)
            reached = np.argmax(served >= probabilities[:, None] - 1e-12, axis=1)
            after, before = grid[rows, np.maximum(reached - 1, 0)], grid[rows, reached]
        return before

    @cached_property
    def _reached(self) -> Floats:
        """G at each of the devices' atoms, shape (cells, atoms)."""
        reached = np.empty(self._devices.atoms_s.shape)
        for heat in self._heats:
            reached[heat.cells] = heat.servers.area_to(self._devices.atoms_s[heat.cells])
        return reached

    def tokens(self, kind: Kind) -> Floats:
        """Prompt tokens that endpoints of a kind process, shape (cells,)."""
        ours = np.array([float(endpoint.kind is kind) for endpoint in self.endpoints])
        return np.asarray(self.prompt_tokens * (self.starts @ ours))

    def usd(self, answer_tokens: float) -> Floats:
        """Dollars of all attempts, the winner writing so long an answer, shape (cells,)."""
        prices = [endpoint.prices for endpoint in self.endpoints]
        return self._bill(
            [each.usd(1, 0) for each in prices], [each.usd(0, answer_tokens) for each in prices]
        )

    def joules(self, answer_tokens: float) -> Floats:
        """Joules of all attempts, likewise."""
        burns = [endpoint.energy for endpoint in self.endpoints]
        return self._bill(
            [each.joules(1, 0) for each in burns], [each.joules(0, answer_tokens) for each in burns]
        )

    def _bill(self, prompt_token: Sequence[float], answer: Sequence[float]) -> Floats:
        if not any(prompt_token) and not any(answer):
            return np.zeros(self.prompt_tokens.size)
        return np.asarray(self.prompt_tokens * (self.starts @ prompt_token) + self.wins @ answer)


def forecast(known: Known, table: PlanTable, *, deadline_s: float = 2.0) -> Forecast:
    """What requests like the known ones may expect of a table.

    Args:
        known: Profiles, and the lengths of prompts and answers.
        table: Its columns are endpoints of `known`.
        deadline_s: From when on a first content is late.
    """
    lengths, counts = np.unique(known.prompt_tokens.samples, return_counts=True)
    row_of = np.searchsorted(table.longest, lengths)
    length, choice = np.nonzero(table.weights[row_of] > 0)
    row = row_of[length]
    weights = counts[length] / counts.sum() * table.weights[row, choice]
    races = run_races(
        [known.of(name) for name in table.endpoints],
        lengths[length],
        _as_raced(table.offsets.reshape(-1, len(table.endpoints))),
        row * table.weights.shape[1] + choice,
    )
    answer_tokens = known.answer_tokens.distribution.mean
    p50_ttft_s, p90_ttft_s, p99_ttft_s = races.quantiles(np.array([0.5, 0.9, 0.99]), weights).tolist()
    return Forecast(
        mean_ttft_s=float(weights @ races.ttft_s),
        p50_ttft_s=p50_ttft_s,
        p90_ttft_s=p90_ttft_s,
        p99_ttft_s=p99_ttft_s,
        lateness_s=float(weights @ races.lateness_s(deadline_s)[0]),
        usd=float(weights @ races.usd(answer_tokens)),
        joules=float(weights @ races.joules(answer_tokens)),
        token_share={
            kind: float(weights @ races.tokens(kind) / (weights @ races.prompt_tokens)) for kind in Kind
        },
    )


def run_races(
    endpoints: Sequence[EndpointProfile],
    prompt_tokens: Floats,
    offsets: Floats,
    action: Integers,
    spread_tokens: Floats | None = None,
) -> Races:
    """Race every cell by computation.

    Args:
        endpoints: One per column; the same one twice is two attempts on it.
        prompt_tokens: Of each cell, shape (cells,).
        offsets: Start offsets in seconds, infinite for who does not start, shape (actions, columns).
        action: Which of them each cell takes, shape (cells,).
        spread_tokens: The standard deviation of the prompts that a cell stands for; none where left out.
    """
    spread_tokens = np.zeros(prompt_tokens.size) if spread_tokens is None else spread_tokens
    curves = [_curve(one.ttft.distribution) for one in endpoints if isinstance(one.ttft, ServerTtft)]
    devices = [one.ttft for one in endpoints if isinstance(one.ttft, DeviceTtft)]
    serving = np.array([isinstance(one.ttft, ServerTtft) for one in endpoints])
    patterns, pattern = np.unique(offsets[:, serving], axis=0, return_inverse=True)
    cells = _cells_of(pattern.ravel()[action], len(patterns))
    heats = tuple(_Heat(_Servers.of(curves, at), alike) for at, alike in zip(patterns, cells, strict=True))
    racing = _Devices.of(devices, prompt_tokens, spread_tokens, offsets[np.ix_(action, ~serving)])
    return Races(tuple(endpoints), prompt_tokens, offsets[action], racing, heats)


@dataclass(frozen=True, eq=False)
class _Servers:
    """When the first of some servers speaks, each started at its own offset; straight between knots.

    Attributes:
        times_s: Knots, rising from zero.
        each: The share of attempts without content at each, shape (servers, knots).
        left: The share of requests without any.
        area_s: The integral of `left` up to each.
    """

    times_s: Floats
    each: Floats
    left: Floats
    area_s: Floats

    @classmethod
    def of(cls, curves: Sequence[tuple[Floats, Floats]], offsets: Floats) -> _Servers:
        started = [times + at for (times, _), at in zip(curves, offsets, strict=True) if at < np.inf]
        bends = BENDS_S if len(started) > 1 else BENDS_S[:0]
        times = np.unique(np.concatenate(([0.0, SILENCE_S], bends, *started)))
        each = np.ones((len(curves), times.size))
        for row, (curve, at) in enumerate(zip(curves, offsets, strict=True)):
            each[row] = np.interp(times - at, *curve)
        left = each.prod(axis=0)
        area = np.cumsum(np.diff(times) * (left[1:] + left[:-1]) / 2)
        return cls(times, each, left, np.append(0.0, area))

    def survival(self, at_s: Floats) -> Floats:
        """The share without content at these times; none at infinity."""
        return np.where(np.isinf(at_s), 0.0, np.interp(at_s, self.times_s, self.left))

    def area_to(self, at_s: Floats) -> Floats:
        """G, the integral of the survival up to these times; up to `SILENCE_S` where nobody ever speaks."""
        inside = np.minimum(at_s, self.times_s[-1])
        below = np.searchsorted(self.times_s[1:-1], inside, side="right")
        into = inside - self.times_s[below]
        area: Floats = self.area_s[below] + into * (self.left[below] + into * self._half_slope[below])
        if self.left[-1] > 0.0:
            area += np.where(np.isinf(at_s), 0.0, at_s - inside) * self.left[-1]
        return area

    def first(self) -> Floats:
        """How likely each server has spoken by each knot, and before the others, shape (servers, knots).

        In a short time, every server causes its share of the fall of `left`, by hazard.
        """
        hazards = np.maximum(-np.diff(np.log(np.maximum(self.each, 1e-12)), axis=1), 0.0)
        shares = hazards / np.maximum(hazards.sum(axis=0), 1e-300)
        falls = np.cumsum(shares * -np.diff(self.left), axis=1)
        return np.hstack((np.zeros((len(self.each), 1)), falls))

    @cached_property
    def _half_slope(self) -> Floats:
        return np.diff(self.left) / np.diff(self.times_s) / 2


@dataclass(frozen=True, eq=False)
class _Devices:
    """When the first of some devices speaks, by cell: at one of a few atoms.

    Attributes:
        atoms_s: Infinite for never, shape (cells, atoms).
        weights: How likely each is the first content of all devices, shape (cells, atoms).
        blocks: Where each device's atoms begin, shape (devices,).
        spans_s: How long each device takes, without the residual, shape (cells, devices).
        spreads_s: The standard deviation of that, likewise.
        offsets: When each starts, likewise.
    """

    atoms_s: Floats
    weights: Floats
    blocks: Integers
    spans_s: Floats
    spreads_s: Floats
    offsets: Floats

    @classmethod
    def of(
        cls, devices: Sequence[DeviceTtft], prompt_tokens: Floats, spread_tokens: Floats, offsets: Floats
    ) -> _Devices:
        lines = np.array([(*device.line(), device.spread_s) for device in devices]).reshape(-1, 3)
        slopes, constants, residuals = lines.T
        spans_s = np.outer(prompt_tokens, slopes) + constants
        spreads_s = np.hypot(np.outer(spread_tokens, slopes), residuals)
        if not devices:
            atoms_s = np.full((prompt_tokens.size, 1), np.inf)
            return cls(atoms_s, np.ones(atoms_s.shape), np.empty(0, np.intp), spans_s, spreads_s, offsets)
        each = [
            np.maximum(spans_s[:, [one]] + spreads_s[:, [one]] * ATOMS, 0.0) + offsets[:, [one]]
            for one in range(len(devices))
        ]
        weights = np.hstack([_first_atoms(each, one) for one in range(len(devices))])
        weights /= weights.sum(axis=1, keepdims=True)
        blocks = np.arange(len(devices)) * ATOMS.size
        return cls(np.hstack(each), weights, blocks, spans_s, spreads_s, offsets)

    def silent_at(self, at_s: Floats) -> Floats:
        """How likely no device has spoken, by a moment for each cell, shape (cells,).

        Not by atoms but by the normal distribution: a plan that may choose moments would find the gaps.
        """
        running_s = np.minimum(at_s, FOREVER_S)[:, None] - np.minimum(self.offsets, FOREVER_S)
        later = np.interp((running_s - self.spans_s) / self.spreads_s, *NORMAL_SURVIVAL)
        return np.asarray(np.where(running_s > 0.0, later, 1.0).prod(axis=1))

    def expected(self, values: Floats) -> Floats:
        """The expectation over the atoms, shape (cells,)."""
        return np.asarray(np.einsum("ij,ij->i", values, self.weights))


class _Heat(NamedTuple):
    """The cells whose servers start alike, by their indices."""

    servers: _Servers
    cells: Integers


def _curve(distribution: Distribution) -> tuple[Floats, Floats]:
    """Knots of a server's survival function: times, and the share left at each."""
    thinned = distribution.thinned()
    probabilities, values = thinned.probabilities, thinned.values
    same = np.diff(values) == 0
    corner = ~(np.append(same, False) & np.append(False, same))
    times, left = values[corner], 1.0 - (1.0 - distribution.never) * probabilities[corner]
    if distribution.never:
        silence_s = max(SILENCE_S, float(times[-1]))
        times, left = np.append(times, (silence_s, silence_s)), np.append(left, (distribution.never, 0.0))
    return times + TINY_S * np.append(False, np.diff(times) == 0), left


def _first_atoms(atoms: Sequence[Floats], this: int) -> Floats:
    """How likely each atom of one device comes before any other device speaks, shape (cells, atoms).

    Ties are nobody's: both have half of them, more than two somewhat less, so that weights are to be normed.
    """
    weights = np.broadcast_to(ATOM_WEIGHTS, atoms[this].shape)
    for other in (*atoms[:this], *atoms[this + 1 :]):
        ours, theirs = atoms[this][:, :, None], other[:, None, :]
        weights = weights * (((theirs > ours) + 0.5 * (theirs == ours)) @ ATOM_WEIGHTS)
    return weights


def _cells_of(pattern: Integers, patterns: int) -> list[Integers]:
    order = np.argsort(pattern, kind="stable")
    return np.split(order, np.searchsorted(pattern[order], np.arange(1, patterns)))


def _as_raced(offsets: Floats) -> Floats:
    """What the race makes of planned offsets: whoever is first in line starts at once."""
    at = np.where(np.isnan(offsets), np.inf, offsets)
    in_line = np.where(np.isnan(offsets), np.inf, np.minimum(offsets, np.finfo(np.float64).max))
    at[np.arange(len(at)), in_line.argmin(axis=1)] = 0.0
    return at
