"""What is known of an endpoint, and of the requests: frozen values that grow by `observe`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from discostream.core.cost import Rates
from discostream.core.distributions import Distribution
from discostream.types import Kind

__all__ = ["DeviceTtft", "EndpointProfile", "Known", "Lengths", "ServerTtft"]

RECENT = 256
"""How many of the latest observations a profile keeps."""

PRIOR_WEIGHT = 32
"""How many observations the built-in knowledge counts for."""

PRIOR_KNOTS = 512
"""How finely that knowledge is cut up to be mixed with observations."""

DEVICE_PRIOR_WEIGHT = 8
"""The same for a device, which shows its line sooner."""

FORGETTING = 0.97
"""What an observation of a device still counts for after the next one."""


@dataclass(frozen=True)
class ServerTtft:
    """A server's TTFT: a distribution that hardly depends on the prompt's length.

    Attributes:
        prior: What is believed before anything was seen (seconds).
        seen: The latest spans from start to first content (seconds).
    """

    prior: Distribution
    seen: tuple[float, ...] = ()

    def observe(self, prompt_tokens: int, ttft_s: float) -> ServerTtft:
        """The same with one more observation."""
        return replace(self, seen=(*self.seen, ttft_s)[-RECENT:])

    @cached_property
    def distribution(self) -> Distribution:
        """F: the prior, fading, with what was seen."""
        prior_weight = PRIOR_WEIGHT - len(self.seen) / 2
        if not self.seen:
            return self.prior
        if prior_weight <= 0:
            return Distribution.of_samples(self.seen)
        prior = self.prior.quantile((np.arange(PRIOR_KNOTS) + 0.5) / PRIOR_KNOTS)
        weights = np.repeat((prior_weight / PRIOR_KNOTS, 1.0), (PRIOR_KNOTS, len(self.seen)))
        return Distribution.of_samples(np.concatenate((prior, self.seen)), weights)

    def quantile(self, prompt_tokens: float, probability: float) -> float:
        """The start time that this share of requests stays below (seconds)."""
        return float(self.distribution.quantile(probability))


@dataclass(frozen=True, slots=True)
class DeviceTtft:
    """A device's TTFT: k x prompt tokens + c, fitted by least squares that forget.

    Attributes:
        weight, tokens, seconds, tokens_squared, tokens_seconds: The sums of the normal equations.
        squares: The sum of squared residuals (seconds squared), each against the line of its time.
    """

    weight: float
    tokens: float
    seconds: float
    tokens_squared: float
    tokens_seconds: float
    squares: float

    @classmethod
    def believed(cls, s_per_token: float, startup_s: float, spread_s: float) -> DeviceTtft:
        """A prior line and the spread around it, as if requests of 32 and 512 tokens had been seen."""
        x = np.array([32.0, 512.0])
        y = s_per_token * x + startup_s
        each = DEVICE_PRIOR_WEIGHT / x.size
        return cls(
            weight=DEVICE_PRIOR_WEIGHT,
            tokens=float(each * x.sum()),
            seconds=float(each * y.sum()),
            tokens_squared=float(each * (x * x).sum()),
            tokens_seconds=float(each * (x * y).sum()),
            squares=DEVICE_PRIOR_WEIGHT * spread_s**2,
        )

    def observe(self, prompt_tokens: int, ttft_s: float) -> DeviceTtft:
        """The same with one more observation, the older ones counting a little less."""
        x, y, f = float(prompt_tokens), ttft_s, FORGETTING
        slope, constant = self.line()
        return DeviceTtft(
            f * self.weight + 1,
            f * self.tokens + x,
            f * self.seconds + y,
            f * self.tokens_squared + x * x,
            f * self.tokens_seconds + x * y,
            f * self.squares + (y - slope * x - constant) ** 2,
        )

    def line(self) -> tuple[float, float]:
        """The slope k (seconds per token) and the constant c (seconds); neither is ever negative."""
        spread = self.weight * self.tokens_squared - self.tokens**2
        rise = self.weight * self.tokens_seconds - self.tokens * self.seconds
        slope = max(rise / spread, 0.0) if spread > 0 else 0.0
        return slope, max((self.seconds - slope * self.tokens) / self.weight, 0.0)

    def quantile(self, prompt_tokens: float, probability: float) -> float:
        """The start time that this share of requests stays below (seconds), residuals taken as normal."""
        slope, constant = self.line()
        sigma = math.sqrt(self.squares / self.weight)
        return max(slope * prompt_tokens + constant + NormalDist().inv_cdf(probability) * sigma, 0.0)


@dataclass(frozen=True, slots=True)
class EndpointProfile:
    """What is known of one endpoint.

    Attributes:
        rates: What its tokens cost, in dollars, energy converted.
        ttft: From an attempt's start to its first content.
        decode_tokens_per_s: Its pace once it streams.
    """

    name: str
    kind: Kind
    rates: Rates
    ttft: ServerTtft | DeviceTtft
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens: a prior that fades behind the latest observations."""

    prior: Distribution
    seen: tuple[int, ...] = ()

    def observe(self, tokens: int) -> Lengths:
        """The same with one more observation."""
        return replace(self, seen=(*self.seen, tokens)[-RECENT:])

    @cached_property
    def samples(self) -> NDArray[np.float64]:
        """Whole token counts that stand for the distribution, sorted."""
        weight = max(0, RECENT - len(self.seen))
        prior = self.prior.quantile((np.arange(weight) + 0.5) / weight) if weight else np.empty(0)
        return np.sort(np.maximum(np.rint(np.concatenate((prior, self.seen))), 1.0))

    @cached_property
    def distribution(self) -> Distribution:
        """The same as a distribution."""
        return Distribution.of_samples(self.samples)


@dataclass(frozen=True, slots=True)
class Known:
    """One frozen snapshot of all that a plan may rest on."""

    endpoints: tuple[EndpointProfile, ...]
    prompt_tokens: Lengths
    answer_tokens: Lengths

    def of(self, name: str) -> EndpointProfile:
        """The profile of one endpoint."""
        return next(endpoint for endpoint in self.endpoints if endpoint.name == name)
