"""Endpoints whose races have closed forms, and what is known when there are such."""

from __future__ import annotations

import numpy as np

from discostream.core.cost import Energy, Prices, Rates
from discostream.core.distributions import Distribution
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.types import Kind

EXACTLY = 1e-9
"""How wide a step is in a table of quantiles."""


def exponential(mean_s, knots=200_001):
    """An exponential distribution, cut where one in a hundred million lies beyond."""
    shares = np.linspace(0.0, 1.0, knots)
    return Distribution.of_table(shares, -mean_s * np.log1p(-np.minimum(shares, 1.0 - 1e-8)))


def steps(shares):
    """A distribution of a few values, each with its share."""
    ends = np.cumsum(list(shares.values()))
    knots = np.column_stack((np.append(0.0, ends[:-1] + EXACTLY), np.append(ends[:-1], 1.0)))
    return Distribution.of_table(knots.ravel(), np.repeat(list(shares), 2))


def device(
    name="laptop", *, s_per_token=0.01, startup_s=0.1, spread_s=0.0, prices=(0, 0), energy=(0, 0), usd=1e-9
):
    """A device that takes so long for a token, and burns so many joules for one of prompt and answer."""
    ttft = DeviceTtft.believed(s_per_token, startup_s, spread_s)
    return EndpointProfile(name, Kind.DEVICE, Rates(usd, usd), ttft, 20.0, Prices(*prices), Energy(*energy))


def server(ttft, name="cloud", *, prices=(0, 0), usd=1e-6):
    """A server with this TTFT, and these dollars for a million tokens of prompt and answer."""
    return EndpointProfile(name, Kind.SERVER, Rates(usd, usd), ServerTtft(ttft), 50.0, Prices(*prices))


def known_of(*endpoints, prompts, answer=100.0, allowances=()):
    """What is known when prompts have this distribution, or this one length."""
    if not isinstance(prompts, Distribution):
        prompts = steps({float(prompts): 1.0})
    return Known(endpoints, Lengths(prompts), Lengths(steps({answer: 1.0})), tuple(allowances))
