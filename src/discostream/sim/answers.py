"""What became of simulated requests, and every figure that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.core.profile import EndpointProfile
from discostream.sim.race import NOBODY
from discostream.sim.world import TAKEOVER, Luck, Requests, World

__all__ = ["Answers"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Answers:
    """What became of every request; endpoints are numbered as in `World.known`.

    Attributes:
        source: Whose content came first, or `NOBODY`, shape (requests,).
        ttft_s: Infinite where everybody failed, shape (requests,).
        read_tokens: Prompt tokens that each endpoint processed, prefixes included, (requests, endpoints).
        cached_tokens: How many of them came out of its cache and took no energy, same shape.
        wrote_tokens: Tokens that it generated, same shape.
        seam: How many tokens were delivered when the answer was to move, 0 where it was not, (requests,).
        moved: Whether it did, shape (requests,).
        resumed_s: When tokens past the seam could be delivered, infinite without a seam, (requests,).
        delayed_tokens: How many came later than the reader wanted them because of the move, (requests,).
        late_s: How late all tokens were read, summed, for a reader who begins at once, (requests,).
        waits_s: Every wait of a reader in mid-answer, beyond the time for a token; in no order.
        waits: How often each of them occurred.
    """

    world: World
    requests: Requests
    luck: Mapping[str, Luck]
    source: Integers
    ttft_s: Floats
    recording: Integers
    read_tokens: Floats
    cached_tokens: Floats
    wrote_tokens: Floats
    seam: Integers
    moved: Flags
    resumed_s: Floats
    delayed_tokens: Integers
    late_s: Floats
    waits_s: Floats
    waits: Integers

    @property
    def delivered_tokens(self) -> Integers:
        """How long each answer became, shape (requests,)."""
        return np.asarray(np.where(self.source == NOBODY, 0, self.requests.output_tokens))

    @cached_property
    def usd(self) -> Floats:
        """Dollars of all attempts, shape (requests,)."""
        return self._charged(
            [each.prices.usd(1, 0) for each in self._endpoints],
            [each.prices.usd(0, 1) for each in self._endpoints],
        )

    @cached_property
    def joules(self) -> Floats:
        """Joules of all attempts, shape (requests,)."""
        per_token = [each.energy.joules(1, 0) for each in self._endpoints]
        charged = self._charged(per_token, [each.energy.joules(0, 1) for each in self._endpoints])
        return np.asarray(charged - self.cached_tokens @ np.array(per_token))

    @cached_property
    def cost(self) -> Floats:
        """Dollars of all attempts, energy converted, shape (requests,)."""
        charged = self._charged(
            [each.rates.prefill_usd for each in self._endpoints],
            [each.rates.decode_usd for each in self._endpoints],
        )
        energy_usd = [each.energy_usd_per_token for each in self._endpoints]
        return np.asarray(charged - self.cached_tokens @ np.array(energy_usd))

    @cached_property
    def qoe(self) -> Floats:
        """Andes' quality of experience (`core/qoe.py`), 0 where nobody answered, shape (requests,)."""
        tokens = self.delivered_tokens
        steady_s = tokens * (tokens - 1) / 2 / self.world.consumption_tokens_per_s
        span_s = self.late_s + steady_s
        good = 1.0 - self.late_s / np.where(span_s > 0, span_s, 1.0)
        return np.asarray(np.where(tokens > 0, good, 0.0))

    def delivered_s(self, index: int) -> Floats:
        """When each token of one answer was delivered, seconds after arrival."""
        tokens, seam = int(self.delivered_tokens[index]), int(self.seam[index])
        if not tokens:
            return np.empty(0)
        own = self._endpoints[self.source[index]].name
        came_s: Floats = self.ttft_s[index] + self._at_s(own, self.recording[index])[:tokens]
        if not seam:
            return came_s
        if not self.moved[index]:
            return np.concatenate((came_s[:seam], np.maximum(came_s[seam:], self.resumed_s[index])))
        target = self.world.other_than(own)
        assert target is not None
        rest_s = self._at_s(target.name, self.luck[target.name].recording[TAKEOVER, index])[: tokens - seam]
        return np.concatenate((came_s[:seam], self.resumed_s[index] + rest_s))

    def _at_s(self, name: str, recording: int) -> Floats:
        return np.asarray(self.world.services[name].reading.at_s[recording])

    @property
    def _endpoints(self) -> Sequence[EndpointProfile]:
        return self.world.known.endpoints

    def _charged(self, prompt_token: Sequence[float], token: Sequence[float]) -> Floats:
        return np.asarray(self.read_tokens @ np.array(prompt_token) + self.wrote_tokens @ np.array(token))
