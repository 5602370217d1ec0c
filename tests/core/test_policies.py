"""Policies in closed form: what they spend, and who starts when."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.config import PolicySettings
from discostream.core.cost import Rates
from discostream.core.distributions import Distribution
from discostream.core.policies import (
    STANDBY,
    device_only,
    disco,
    disco_d,
    disco_s,
    offsets,
    server_only,
    stochastic,
)
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.types import Kind, Start

EXPONENTIAL = Distribution.of_table(
    np.linspace(0, 1, 20_001), [*-np.log(1 - np.linspace(0, 1, 20_001)[:-1]), 12.0]
)
LENGTHS = np.sort(np.maximum(np.rint(np.random.default_rng(7).lognormal(4.5, 1.0, 100_000)), 1.0))


def known(*, device_usd=1e-9, server_usd=1e-6) -> Known:
    return Known(
        (
            EndpointProfile(
                "laptop",
                Kind.DEVICE,
                Rates(device_usd, device_usd),
                DeviceTtft.believed(0.01, 0.1, 0.05),
                20.0,
            ),
            EndpointProfile(
                "cloud", Kind.SERVER, Rates(server_usd, server_usd), ServerTtft(EXPONENTIAL), 50.0
            ),
        ),
        Lengths(Distribution.of_samples(LENGTHS)),
        Lengths(Distribution.of_samples([100.0])),
    )


def spend_d(share: float, alpha: float) -> float:
    """The share of prompt tokens that the device reads, S being exponential with mean one."""
    bounds, waits = disco_d(LENGTHS, EXPONENTIAL, share, alpha)
    wait = waits[np.searchsorted(bounds, LENGTHS)]
    starts = np.where(np.isinf(wait), 0.0, 1.0 - EXPONENTIAL.cdf(np.minimum(wait, 1e9)))
    return float((starts * LENGTHS).sum() / LENGTHS.sum())


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.1, 0.3, 0.5, 0.77, 0.9, 1.0])
def test_disco_d_spends_its_budget(share):
    """DiSCo-D's expected spend equals b within half a per cent, on 100,000 samples."""
    assert spend_d(share, 0.05) == pytest.approx(share, rel=0.005, abs=1e-6)


def test_disco_d_insures_the_tail_first():
    """A budget within alpha makes every request wait F^-1(1 - b), whatever its length."""
    bounds, waits = disco_d(LENGTHS, EXPONENTIAL, 0.03, 0.05)
    assert waits[np.searchsorted(bounds, [1, 50, 5000])] == pytest.approx([-math.log(0.03)] * 3, rel=1e-3)


def test_disco_d_waits_longer_for_longer_prompts():
    """Short prompts race at once, the cut-off waits in between, long ones wait for the tail."""
    bounds, waits = disco_d(LENGTHS, EXPONENTIAL, 0.5, 0.05)
    assert waits[0] == 0.0
    assert 0.0 < waits[1] < waits[2] == pytest.approx(-math.log(0.05), rel=1e-3)
    assert list(bounds) == sorted(bounds)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_disco_s_threshold_satisfies_its_integral(share):
    """The prompts that may race hold the share b of all tokens, up to one length's worth."""
    threshold = disco_s(LENGTHS, share)
    racing = LENGTHS[threshold < LENGTHS].sum() / LENGTHS.sum()
    assert racing <= share + 1e-9
    assert racing == pytest.approx(share, abs=0.005)


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=60), st.floats(0, 1))
def test_disco_s_never_overspends(lengths, share):
    """However lumpy the lengths, the prompts beyond the threshold never hold more than b."""
    array = np.sort(np.array(lengths, dtype=float))
    assert array[array > disco_s(array, share)].sum() <= share * array.sum() * (1 + 1e-9)


def test_disco_plans_by_constraint():
    """A server budget keeps short prompts on the device; a device budget lets the device wait."""
    held_server = disco(known(), PolicySettings(constraint="server", share=0.5))
    assert held_server.choose(3, 0.0).starts == (Start("laptop", 0.0), Start("cloud", None))
    assert held_server.choose(4000, 0.0).starts == (Start("laptop", 0.0), Start("cloud", 0.0))
    held_device = disco(known(), PolicySettings(constraint="device", share=0.5))
    assert held_device.choose(3, 0.0).starts == (Start("laptop", 0.0), Start("cloud", 0.0))
    laptop, cloud = held_device.choose(4000, 0.0).starts
    assert laptop.offset_s == pytest.approx(-math.log(0.05), rel=1e-3)
    assert cloud.offset_s == 0.0


def test_auto_constraint_follows_converted_prices():
    """The device is held back when its cheaper phase costs more than the server's dearer one."""
    dear_device = disco(known(device_usd=1e-3), PolicySettings(constraint="auto"))
    held_device = disco(known(), PolicySettings(constraint="device"))
    assert dear_device.choose(4000, 0.0) == held_device.choose(4000, 0.0)
    assert disco(known(), PolicySettings()).choose(3, 0.0).starts[1] == Start("cloud", None)


@pytest.mark.parametrize(("constraint", "free"), [("server", "laptop"), ("device", "cloud")])
def test_stochastic_spends_at_random(constraint, free):
    """The unconstrained endpoint always starts; the other joins for the share b of draws."""
    table = stochastic(known(), PolicySettings(constraint=constraint, share=0.3))
    draws = np.linspace(0, 1, 1000, endpoint=False)
    plans = [table.choose(100, draw) for draw in draws]
    both = [plan for plan in plans if all(start.offset_s == 0.0 for start in plan.starts)]
    assert len(both) / len(plans) == pytest.approx(0.3, abs=0.002)
    alone = next(plan for plan in plans if plan not in both)
    assert [start.endpoint for start in alone.starts if start.offset_s == 0.0] == [free]


def test_single_policies_name_nobody_else():
    """With a pinned kind the other endpoint is not even standing by."""
    assert server_only(known(), PolicySettings()).choose(9, 0.0).starts == (Start("cloud", 0.0),)
    assert device_only(known(), PolicySettings()).choose(9, 0.0).starts == (Start("laptop", 0.0),)


def test_offsets_are_taken_as_they_are():
    """Fixed offsets apply to every prompt; an endpoint without one stands by."""
    plan = offsets(known(), PolicySettings(name="offsets", offsets={"cloud": 0.25})).choose(10, 0.9)
    assert plan.starts == (Start("laptop", None), Start("cloud", 0.25))
    assert math.inf == STANDBY


def test_one_endpoint_needs_no_plan():
    """Without a pair there is nothing to race: the first endpoint starts at once."""
    alone = Known(known().endpoints[:1], known().prompt_tokens, known().answer_tokens)
    assert disco(alone, PolicySettings()).choose(10, 0.0).starts == (Start("laptop", 0.0),)
