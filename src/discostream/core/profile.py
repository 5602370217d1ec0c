"""What is known of an endpoint, and of the requests: frozen values that grow by `observe`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from statistics import NormalDist, median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from discostream.core.budget import Allowance
from discostream.core.change import FASTEST, SLOWEST, Excursion, RankRange, Watch, rank_range, releveled
from discostream.core.cost import Energy, Prices, Rates
from discostream.core.distributions import Distribution
from discostream.core.survival import LearntDistribution
from discostream.types import Attempt, Kind

__all__ = ["READ_PARTS", "DeviceTtft", "EndpointProfile", "Known", "Lengths", "ServerTtft"]

JUDGED_ANEW_AFTER = 32
"""A server's observations are compared with what was known at most so many of them ago."""

STAND_INS = 512
"""How many prompt lengths stand for their distribution."""

DEVICE_PRIOR_WEIGHT = 8.0
"""How many observations the prior line counts for: a device shows its own soon."""

PRIOR_INFORMATION = (32.0**2 + 512.0**2) / 2, (32.0 + 512.0) / 2, 1.0
"""What each of them adds to the normal equations, as if half had 32 tokens and half 512."""

FINEST_S = 1e-3
"""No device is steadier than this: an event loop tells no less apart."""

FORGETTING = 0.98
"""What an observation of a device still counts for after the next one."""

OUTLIER = 3.0
"""Standard deviations from the line beyond which an observation counts as if it were no farther."""

READ_PARTS = 4
"""In how many parts a cancelled reading is judged: caches hold whole batches, and the line is only a line."""

UNREMARKABLE = 0.4
"""A standard deviation, as a part of the line, that makes no device suspect of change: other programs take
their share of the machine, and attention bends the line upwards.
"""

DEVICE_RECENT = 64
"""The most observations that a device's line is fitted to after a change."""

MEMORY = 0.9
"""What the old estimate of a pace or a span keeps when a new one has been measured."""


@dataclass(frozen=True, eq=False)
class ServerTtft(LearntDistribution):
    """A server's TTFT (seconds from start to first content), which hardly depends on the prompt.

    Attributes:
        changes: How often it has changed at once; the prior is then the old shape at the new level.
        watch: The evidence that it is changing now.
        judge: What new observations are compared with; the prior when `None`.
        unjudged: Observations since that was made.
    """

    changes: int = 0
    watch: Watch[Distribution] = field(default_factory=Watch)
    judge: Distribution | None = None
    unjudged: int = 0

    def observe(self, ttft_s: float, at_s: float, *, censored: bool = False) -> ServerTtft:
        """The same with one more observation.

        Args:
            ttft_s: Seconds; infinite for an attempt that failed.
            at_s: When it was settled (wall-clock seconds).
            censored: Whether the attempt was cancelled then, so that it would have taken longer.
        """
        watch = self.watch.observe(
            self.judge or self.prior, lambda judge: rank_range(judge, ttft_s, censored=censored)
        )
        seen = self.seen.add(ttft_s, at_s, censored=censored)
        after = replace(self, seen=seen, now_s=None, watch=watch, unjudged=self.unjudged + 1)
        if watch.alarm:
            return after._at_new_level(watch.alarm)
        return after if after.unjudged < JUDGED_ANEW_AFTER else after._judged_anew()

    def quantile(self, prompt_tokens: ArrayLike, probability: float) -> Any:
        """The start time that this share of requests stays below (seconds), whatever their length."""
        return float(self.distribution.quantile(probability))

    def _judged_anew(self) -> ServerTtft:
        return replace(self, judge=self.distribution, unjudged=0)

    def _at_new_level(self, excursion: Excursion[Distribution]) -> ServerTtft:
        """Forget what was seen before the excursion, but for the shape that it had."""
        assert excursion.reference is not None
        since = self.seen.latest(excursion.length)
        prior = releveled(excursion.reference, since)
        changed = replace(self, prior=prior, seen=since, changes=self.changes + 1, watch=Watch())
        return changed._judged_anew()


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds over tokens, with normal residuals around them."""

    slope: float
    constant: float
    spread_s: float

    def at(self, tokens: float) -> float:
        """Seconds on the line."""
        return max(self.slope * tokens + self.constant, FINEST_S)

    def rank(self, tokens: float, seconds: float) -> RankRange:
        """Where an observation stands among those of so many tokens, small differences left aside."""
        expected = self.at(tokens)
        deviation = (seconds - expected) / math.hypot(self.spread_s, UNREMARKABLE * expected)
        rank = NormalDist().cdf(deviation)
        return rank, rank


@dataclass(frozen=True, slots=True)
class DeviceTtft:
    """A device's TTFT: k x uncached prompt tokens + c, by recursive least squares that forget.

    As observations are forgotten, a little weight is added to what is left of them, on the line as it is: the
    fit stays sound and keeps its slope when all prompts are equally long (Salgado, Goodwin and Middleton,
    International Journal of Control 47, 1988).

    Attributes:
        slope: Seconds per token, as fitted.
        constant: Seconds, as fitted.
        information: The normal equations' matrix: weighted sums of tokens squared, of tokens and of ones.
        weight: How many observations the spread rests on.
        squares: Their weighted squared residuals (seconds squared), each against the line of its time.
        recent: The latest tokens and seconds.
        changes: How often the device has become slower or faster at once.
        watch: The evidence that it is doing so now.
    """

    slope: float
    constant: float
    information: tuple[float, float, float]
    weight: float
    squares: float
    recent: tuple[tuple[float, float], ...] = ()
    changes: int = 0
    watch: Watch[Line] = field(default_factory=Watch)

    @classmethod
    def believed(cls, s_per_token: float, startup_s: float, spread_s: float) -> DeviceTtft:
        """A prior line and the spread around it, as if requests of 32 and 512 tokens had been seen."""
        squared, tokens, ones = (DEVICE_PRIOR_WEIGHT * sum_of for sum_of in PRIOR_INFORMATION)
        squares = DEVICE_PRIOR_WEIGHT * spread_s**2
        return cls(s_per_token, startup_s, (squared, tokens, ones), DEVICE_PRIOR_WEIGHT, squares)

    def observe(self, uncached_tokens: int, ttft_s: float) -> DeviceTtft:
        """The same with one more observation.

        Args:
            uncached_tokens: How much of the prompt had to be prefilled.
            ttft_s: Seconds from start to first content.
        """
        watch = self.watch.observe(self._line, lambda line: line.rank(uncached_tokens, ttft_s))
        recent = (*self.recent, (float(uncached_tokens), ttft_s))[-DEVICE_RECENT:]
        after = replace(self._fitted(uncached_tokens, ttft_s), recent=recent, watch=watch)
        return after._at_new_level(watch.alarm) if watch.alarm else after

    def line(self) -> tuple[float, float]:
        """The slope k (seconds per token) and the constant c (seconds); neither is ever negative."""
        squared, tokens, ones = self.information
        if self.slope < 0.0:
            return 0.0, max(self.constant + self.slope * tokens / ones, 0.0)
        if self.constant < 0.0:
            return max(self.slope + self.constant * tokens / squared, 0.0), 0.0
        return self.slope, self.constant

    @property
    def spread_s(self) -> float:
        """The standard deviation around the line (seconds)."""
        return max(math.sqrt(self.squares / self.weight), FINEST_S)

    def quantile(self, prompt_tokens: ArrayLike, probability: float) -> Any:
        """The start time that this share of requests stays below (seconds), residuals taken as normal.

        Args:
            prompt_tokens: One length or an array of them; the result has its shape.
            probability: The share.
        """
        slope, constant = self.line()
        above = _above_mean(probability) * self.spread_s
        return np.maximum(np.multiply(slope, prompt_tokens) + (constant + above), 0.0)

    @property
    def _line(self) -> Line:
        return Line(*self.line(), self.spread_s)

    def _fitted(self, tokens: float, seconds: float) -> DeviceTtft:
        slope, constant = self.line()
        expected, farthest = slope * tokens + constant, OUTLIER * self.spread_s
        residual = min(max(seconds - expected, -farthest), farthest)
        error = expected + residual - (self.slope * tokens + self.constant)
        squared, first, ones = _with_one_more(self.information, tokens)
        determinant = squared * ones - first * first
        return replace(
            self,
            slope=self.slope + (ones * tokens - first) / determinant * error,
            constant=self.constant + (squared - first * tokens) / determinant * error,
            information=(squared, first, ones),
            weight=FORGETTING * self.weight + 1.0,
            squares=FORGETTING * self.squares + residual**2,
        )

    def _at_new_level(self, excursion: Excursion[Line]) -> DeviceTtft:
        """The old line stretched to what was seen since the excursion began, and fitted to that."""
        old = excursion.reference
        assert old is not None
        since = self.recent[-excursion.length :]
        factor = median(seconds / max(old.at(tokens), FINEST_S) for tokens, seconds in since)
        factor = min(max(factor, FASTEST), SLOWEST)
        fit = DeviceTtft.believed(factor * old.slope, factor * old.constant, factor * old.spread_s)
        for tokens, seconds in since:
            fit = fit._fitted(tokens, seconds)
        return replace(fit, recent=since, changes=self.changes + 1)


@lru_cache(maxsize=16)
def _above_mean(probability: float) -> float:
    """How many standard deviations above the mean this share of normal values stays below."""
    return NormalDist().inv_cdf(probability)


def _with_one_more(information: tuple[float, float, float], tokens: float) -> tuple[float, float, float]:
    """The normal equations' matrix with an observation more, the older ones counting a little less.

    What the prior knew goes on counting for one observation, so the matrix never becomes singular.
    """
    squared, first, ones = (
        FORGETTING * sum_of + (1.0 - FORGETTING) * per_observation
        for sum_of, per_observation in zip(information, PRIOR_INFORMATION, strict=True)
    )
    return squared + tokens * tokens, first + tokens, ones + 1.0


@dataclass(frozen=True, slots=True)
class EndpointProfile:
    """What is known of one endpoint.

    Attributes:
        rates: What its tokens cost, in dollars, energy converted.
        ttft: From an attempt's start to its first content.
        decode_tokens_per_s: Its pace once it streams.
        prices: What its tokens cost in dollars alone.
        energy: What they cost in joules alone.
        slots: How many attempts it serves at a time; `None` where it does not say, or has no limit.
        service_s: How long one holds its slot, on average (seconds); `None` until one has.
    """

    name: str
    kind: Kind
    rates: Rates
    ttft: ServerTtft | DeviceTtft
    decode_tokens_per_s: float
    prices: Prices = Prices()  # noqa: RUF009 - frozen
    energy: Energy = Energy()  # noqa: RUF009 - frozen
    slots: int | None = None
    service_s: float | None = None

    def observe(self, attempt: Attempt, at_s: float) -> EndpointProfile:
        """The same with one settled attempt more.

        One that had to queue says how long others took, so it leaves TTFT and service time alone.

        Args:
            attempt: At this endpoint.
            at_s: When it was settled (wall-clock seconds).
        """
        queued = self.slots is not None and attempt.ahead >= self.slots
        return replace(
            self,
            ttft=self.ttft if queued else _with_attempt(self.ttft, attempt, at_s),
            decode_tokens_per_s=self._pace_after(attempt),
            service_s=self.service_s if queued else self._service_s_after(attempt),
        )

    def reading_usd(self, tokens: Any, cached_tokens: Any) -> Any:
        """What reading so many tokens costs: a price holds for all of them, energy for those not in a cache.

        Args:
            tokens: How long the prompt is, the prefix included; a value or an array.
            cached_tokens: How many of them need not be computed; likewise.
        """
        return self.rates.prefill_usd * tokens - self.energy_usd_per_token * cached_tokens

    @property
    def energy_usd_per_token(self) -> float:
        """The part of what a prompt token costs that is energy."""
        return self.rates.prefill_usd - self.prices.usd(1, 0)

    def read_part(self, ran_s: Any, uncached_tokens: Any) -> Any:
        """What part of a prompt was read by an attempt that ran for so long, in whole `1 / READ_PARTS`.

        A device reads at the pace of its line; a server, of which nothing is known, counts as having read
        none.

        Args:
            ran_s: How long it could read (seconds); a value or an array, negative for not at all.
            uncached_tokens: How much it had to read, likewise.
        """
        if not isinstance(self.ttft, DeviceTtft):
            return np.zeros_like(ran_s, dtype=np.float64)
        s_per_token, startup_s = self.ttft.line()
        whole_s = np.maximum(np.multiply(s_per_token, uncached_tokens), FINEST_S)
        return np.floor(np.clip(np.subtract(ran_s, startup_s) / whole_s, 0.0, 1.0) * READ_PARTS) / READ_PARTS

    def wait_s(self, running: int) -> float:
        """How long an attempt is expected to queue behind so many others (seconds).

        Service times are taken as exponential: the first of `slots` of them ends after a `slots`-th of the
        mean. No wait is expected while slots or service times are not known.
        """
        if self.slots is None or self.service_s is None:
            return 0.0
        return self.service_s * max(running - self.slots + 1, 0) / self.slots

    @property
    def changes(self) -> int:
        """How often its TTFT has changed at once; a plan from before a change is out of date."""
        return self.ttft.changes

    def _pace_after(self, attempt: Attempt) -> float:
        if not attempt.mean_tbt_s:
            return self.decode_tokens_per_s
        return 1.0 / (MEMORY / self.decode_tokens_per_s + (1.0 - MEMORY) * attempt.mean_tbt_s)

    def _service_s_after(self, attempt: Attempt) -> float | None:
        if attempt.ttft_s is None or attempt.ran_s is None:
            return self.service_s
        if self.service_s is None:
            return attempt.ran_s
        return MEMORY * self.service_s + (1.0 - MEMORY) * attempt.ran_s


def _with_attempt(ttft: ServerTtft | DeviceTtft, attempt: Attempt, at_s: float) -> ServerTtft | DeviceTtft:
    """What is known of the time to first content once this attempt is settled.

    A cancelled one would have taken longer, and a failed one would have taken forever. A device's line learns
    from content alone: how long a prompt takes it is no matter of luck.
    """
    if attempt.ttft_s is not None:
        span_s = attempt.ttft_s - attempt.start_offset_s
        if isinstance(ttft, DeviceTtft):
            return ttft.observe(attempt.prompt_tokens - (attempt.cached_tokens or 0), span_s)
        return ttft.observe(span_s, at_s)
    if attempt.ran_s is None or isinstance(ttft, DeviceTtft):
        return ttft
    if attempt.error is not None:
        return ttft.observe(math.inf, at_s)
    return ttft.observe(attempt.ran_s, at_s, censored=True)


@dataclass(frozen=True, eq=False)
class Lengths(LearntDistribution):
    """Lengths in tokens."""

    @cached_property
    def samples(self) -> NDArray[np.float64]:
        """Whole token counts that stand for the distribution, sorted."""
        stand_ins = self.distribution.quantile((np.arange(STAND_INS) + 0.5) / STAND_INS)
        return np.asarray(np.maximum(np.rint(stand_ins), 1.0))

    def remaining(self, reached: float, max_tokens: int | None = None) -> float:
        """How many more tokens are to be expected after `reached`, of an answer of at most `max_tokens`."""
        return self.distribution.mean_residual(reached, np.inf if max_tokens is None else max_tokens)

    def most_remaining(self, reached: float, max_tokens: int | None = None) -> float:
        """What `remaining` is at most, now and for as long as the answer grows."""
        longest = self.distribution.longest_residual
        return longest if max_tokens is None else min(longest, max_tokens - reached)


@dataclass(frozen=True, slots=True)
class Known:
    """One frozen snapshot of all that a plan may rest on.

    Attributes:
        allowances: What an average request may use of each budget.
    """

    endpoints: tuple[EndpointProfile, ...]
    prompt_tokens: Lengths
    answer_tokens: Lengths
    allowances: tuple[Allowance, ...] = ()

    def of(self, name: str) -> EndpointProfile:
        """The profile of one endpoint."""
        return next(endpoint for endpoint in self.endpoints if endpoint.name == name)
