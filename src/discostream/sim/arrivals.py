"""Requests drawn from a workload, and when they come."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from discostream.errors import ConfigError
from discostream.traces.workloads import Workload

__all__ = ["ArrivalKind", "Arrivals", "sample"]


class ArrivalKind(StrEnum):
    """Where arrival times come from."""

    TRACE = "trace"
    """The workload's own."""
    POISSON = "poisson"
    """Drawn, at a mean rate."""
    NONE = "none"
    """Nowhere: no request waits for another."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests come.

    Attributes:
        kind: Where that comes from.
        rate_per_s: Requests a second, for `POISSON` alone.
    """

    kind: ArrivalKind
    rate_per_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> Arrivals:
        """What `trace`, `poisson:RATE` or `none` says.

        Raises:
            ConfigError: The text says something else.
        """
        kind, colon, rate = text.partition(":")
        if kind not in list(ArrivalKind) or bool(colon) != (kind == ArrivalKind.POISSON):
            raise ConfigError(f"--arrivals {text!r}: must be trace, none, or poisson:RATE, as in poisson:0.5")
        if not colon:
            return cls(ArrivalKind(kind))
        try:
            rate_per_s = float(rate)
        except ValueError:
            rate_per_s = math.nan
        if not 0.0 < rate_per_s < math.inf:
            raise ConfigError(
                f"--arrivals {text!r}: the rate must be a number above zero, of requests a second"
            )
        return cls(ArrivalKind.POISSON, rate_per_s)


def sample(workload: Workload, requests: int, arrivals: Arrivals, rng: np.random.Generator) -> Workload:
    """So many requests of a workload, each with its own answer length, and when they arrive.

    With `trace` arrivals they are those of a stretch that begins at a random row, in their order; at its end
    the recording begins anew, a mean gap after its last row. Otherwise rows are drawn at random, each at most
    once if there are enough, and with replacement if not.

    Args:
        workload: What they are taken from.
        requests: How many.
        arrivals: When they come; for `none`, `arrived_at_s` is `None`.
        rng: What decides.

    Raises:
        ConfigError: No request, or `trace` arrivals of a workload without arrival times.
    """
    if requests < 1:
        raise ConfigError(f"--requests {requests}: must be at least 1")
    if arrivals.kind is ArrivalKind.TRACE:
        return _stretch(workload, requests, rng)
    drawn = workload.rows(rng.choice(len(workload), requests, replace=requests > len(workload)))
    if arrivals.rate_per_s is None:
        return replace(drawn, arrived_at_s=None)
    return replace(drawn, arrived_at_s=np.cumsum(rng.exponential(1.0 / arrivals.rate_per_s, requests)))


def _stretch(workload: Workload, requests: int, rng: np.random.Generator) -> Workload:
    at_s, size = workload.arrived_at_s, len(workload)
    if at_s is None:
        raise ConfigError(
            f"--arrivals trace: workload {workload.name!r} does not say when its requests came; "
            "use poisson:RATE or none"
        )
    if size < 2:
        raise ConfigError(
            f"--arrivals trace: workload {workload.name!r} has one request only to be judged by, which does "
            f"not say how often they come; use more requests, or poisson:RATE or none"
        )
    rounds, row = np.divmod(rng.integers(size) + np.arange(requests), size)
    period_s = (at_s[-1] - at_s[0]) * size / (size - 1)
    arrived_at_s = rounds * period_s + at_s[row]
    return replace(workload.rows(row), arrived_at_s=arrived_at_s - arrived_at_s[0])
