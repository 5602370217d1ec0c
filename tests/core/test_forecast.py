"""Forecasts against closed forms, and against the same races drawn at random."""

from __future__ import annotations

import math

import numpy as np
import pytest
from plans import device, exponential, known_of, server

from discostream.config import PolicySettings
from discostream.core.budget import Allowance, Resource
from discostream.core.distributions import Distribution
from discostream.core.forecast import SILENCE_S, forecast
from discostream.core.plans import NEVER, STANDBY, PlanTable
from discostream.core.policies import disco, stochastic
from discostream.types import Kind

DRAWS = 400_000
PROMPTS = Distribution.of_samples(np.random.default_rng(3).lognormal(4.5, 1.0, 5000))


def one_action(*names, offsets):
    """A table that does the same for every prompt."""
    return PlanTable("test", names, np.array([np.inf]), np.array([[offsets]]), np.ones((1, 1)))


def raced(known, table, rng):
    """Draw requests and race them: TTFT, prompt tokens, who won, and who had started."""
    tokens = rng.choice(known.prompt_tokens.samples, DRAWS)
    row = np.searchsorted(table.longest, tokens)
    action = (rng.random(DRAWS)[:, None] >= np.cumsum(table.weights[row], axis=1)).sum(axis=1)
    at = np.where(np.isnan(table.offsets[row, action]), np.inf, table.offsets[row, action])
    spans = np.empty(at.shape)
    for column, name in enumerate(table.endpoints):
        endpoint = known.of(name)
        if endpoint.kind is Kind.SERVER:
            spans[:, column] = endpoint.ttft.distribution.sample(rng, DRAWS)
        else:
            slope, constant = endpoint.ttft.line()
            noise = endpoint.ttft.spread_s * rng.standard_normal(DRAWS)
            spans[:, column] = np.maximum(slope * tokens + constant + noise, 0.0)
    spoken = at + np.minimum(spans, SILENCE_S)
    ttft = spoken.min(axis=1)
    return ttft, tokens, spoken.argmin(axis=1), at <= ttft[:, None]


def standard_errors(draws, expected):
    """How many of them lie between a mean of draws and what was expected."""
    return abs(draws.mean() - expected) / (draws.std() / math.sqrt(draws.size))


def everything_at_once():
    """Two devices, two servers of which one is often silent, a hedge, and rows that mix actions."""
    rng = np.random.default_rng(5)
    often_silent = np.append(rng.lognormal(-0.4, 0.6, 970), np.full(30, np.inf))
    known = known_of(
        device("laptop", spread_s=0.1, startup_s=0.2, energy=(0.5, 1.0)),
        device("phone", spread_s=0.3, s_per_token=0.02, startup_s=0.05, energy=(0.2, 0.4)),
        server(Distribution.of_samples(often_silent), "east", prices=(2.0, 10.0)),
        server(Distribution.of_samples(rng.lognormal(0.0, 0.3, 500)), "west", prices=(1.0, 4.0)),
        prompts=PROMPTS,
    )
    offsets = [
        [[0.0, STANDBY, 0.5, STANDBY, NEVER], [0.3, 0.2, 0.0, 0.6, 1.5]],
        [[0.5, 0.4, 0.0, 0.2, 0.7], [0.0, 0.1, 0.1, STANDBY, NEVER]],
        [[STANDBY, STANDBY, 0.0, 0.7, 0.4], [2.0, STANDBY, 0.0, STANDBY, 0.5]],
    ]
    table = PlanTable(
        "test",
        ("laptop", "phone", "east", "west", "east"),
        np.array([60.0, 200.0, np.inf]),
        np.array(offsets),
        np.array([[0.4, 0.6], [0.5, 0.5], [0.3, 0.7]]),
    )
    return known, table


def tables_to_draw():
    yield pytest.param(*everything_at_once(), id="everything at once")
    pair = known_of(device(spread_s=0.05), server(exponential(1.0, 20_001)), prompts=PROMPTS)
    for constraint in ("device", "server"):
        settings = PolicySettings(constraint=constraint, share=0.4)
        yield pytest.param(pair, disco(pair, settings), id=f"disco, {constraint}")
        yield pytest.param(pair, stochastic(pair, settings), id=f"stochastic, {constraint}")


@pytest.mark.parametrize(("known", "table"), list(tables_to_draw()))
def test_a_forecast_is_what_drawn_races_come_to(known, table):
    """Means, quantiles, lateness, tokens, dollars and joules lie within four standard errors of the draws."""
    expected = forecast(known, table, deadline_s=1.0)
    ttft, tokens, winner, started = raced(known, table, np.random.default_rng(11))
    assert standard_errors(ttft, expected.mean_ttft_s) < 4
    assert standard_errors(np.maximum(ttft - 1.0, 0.0), expected.lateness_s) < 4
    for share, quantile in (
        (0.5, expected.p50_ttft_s),
        (0.9, expected.p90_ttft_s),
        (0.99, expected.p99_ttft_s),
    ):
        assert np.mean(ttft <= quantile) == pytest.approx(
            share, abs=4 * math.sqrt(share * (1 - share) / DRAWS) + 1e-4
        )
    endpoints = [known.of(name) for name in table.endpoints]
    for kind in Kind:
        ours = np.array([endpoint.kind is kind for endpoint in endpoints])
        taken = started[:, ours].sum(axis=1) * tokens / known.prompt_tokens.samples.mean()
        assert standard_errors(taken, expected.token_share[kind]) < 4
    usd = (started * [each.prices.usd(1, 0) for each in endpoints]).sum(axis=1) * tokens
    usd += np.array([each.prices.usd(0, 100) for each in endpoints])[winner]
    joules = (started * [each.energy.joules(1, 0) for each in endpoints]).sum(axis=1) * tokens
    joules += np.array([each.energy.joules(0, 100) for each in endpoints])[winner]
    for bill, amount in ((usd, expected.usd), (joules, expected.joules)):
        assert amount == bill.mean() == 0 or standard_errors(bill, amount) < 4


def test_two_exponential_servers_race_like_one():
    """Rates add: mean 1/(a + b), lateness e^-(a + b)t/(a + b), and each wins, and bills, by its share."""
    a, b = 1 / 2, 1 / 3
    known = known_of(
        server(exponential(2.0), "east", prices=(0.0, 1e6)),
        server(exponential(3.0), "west", prices=(1e6, 0.0)),
        prompts=10,
        answer=7.0,
    )
    expected = forecast(known, one_action("east", "west", offsets=[0.0, 0.0]), deadline_s=1.5)
    assert expected.mean_ttft_s == pytest.approx(1 / (a + b), rel=1e-3)
    assert expected.lateness_s == pytest.approx(math.exp(-1.5 * (a + b)) / (a + b), rel=1e-3)
    assert expected.p99_ttft_s == pytest.approx(math.log(100) / (a + b), rel=1e-3)
    assert expected.usd == pytest.approx(10.0 + 7.0 * a / (a + b), rel=1e-3)
    assert expected.token_share == {Kind.DEVICE: 0.0, Kind.SERVER: pytest.approx(2.0)}


def test_a_hedge_starts_only_if_the_first_is_silent():
    """After w a memoryless server is asked again: mean (1 - e^-w/2), and e^-w more prompts are read."""
    known = known_of(server(exponential(1.0)), prompts=10)
    expected = forecast(known, one_action("cloud", "cloud", offsets=[0.0, 0.7]))
    assert expected.mean_ttft_s == pytest.approx(1 - math.exp(-0.7) / 2, rel=1e-3)
    assert expected.token_share[Kind.SERVER] == pytest.approx(1 + math.exp(-0.7), rel=1e-3)


def test_a_device_after_a_wait_cuts_the_servers_tail():
    """min(S, w + d) has the mean 1 - e^-(w + d) and no quantile beyond w + d."""
    known = known_of(device(s_per_token=0.01, startup_s=0.0), server(exponential(1.0)), prompts=50)
    expected = forecast(known, one_action("laptop", "cloud", offsets=[1.0, 0.0]), deadline_s=1.2)
    assert expected.mean_ttft_s == pytest.approx(1 - math.exp(-1.5), rel=1e-3)
    assert expected.lateness_s == pytest.approx(math.exp(-1.2) - math.exp(-1.5), rel=2e-3)
    assert expected.p99_ttft_s == pytest.approx(1.5, abs=0.005)
    assert expected.token_share[Kind.DEVICE] == pytest.approx(math.exp(-1.0), rel=1e-3)


def test_what_never_comes_counts_as_the_adapters_limit():
    """A server that is silent for a tenth of the requests has a finite mean: 0.9 x 1 + 0.1 x 120 seconds."""
    often_silent = Distribution(np.array([0.0, 1.0]), np.array([1.0, 1.0]), never=0.1)
    expected = forecast(known_of(server(often_silent), prompts=10), one_action("cloud", offsets=[0.0]))
    assert expected.mean_ttft_s == pytest.approx(0.9 + 0.1 * SILENCE_S)
    assert (expected.p50_ttft_s, expected.p99_ttft_s) == (
        pytest.approx(1.0, rel=1e-3),
        pytest.approx(SILENCE_S, rel=1e-3),
    )


@pytest.mark.parametrize("names", [("east",), ("east", "west")])
def test_every_race_has_one_winner(names):
    """However often servers are silent, one answer is billed: roundings of their survival win nothing."""
    for never in np.linspace(0.01, 0.99, 99).tolist():
        ttft = Distribution(np.array([0.0, 1.0]), np.array([1.0, 1.0]), never)
        known = known_of(*(server(ttft, name, prices=(0.0, 1e6)) for name in names), prompts=10, answer=7.0)
        expected = forecast(known, one_action(*names, offsets=[0.0] * len(names)))
        assert expected.usd == pytest.approx(7.0, rel=1e-6), never


def test_a_slow_device_alone_takes_its_time():
    """A device that needs longer than the limit on silence is not cut there, since it will answer."""
    known = known_of(device(s_per_token=1.0, startup_s=0.0), prompts=500)
    expected = forecast(known, one_action("laptop", offsets=[0.0]))
    assert expected.mean_ttft_s == pytest.approx(500.0)
    assert expected.p50_ttft_s == pytest.approx(500.0, rel=1e-3)


@pytest.mark.parametrize("offsets", [[STANDBY, 3.0], [STANDBY, STANDBY], [NEVER, STANDBY]])
def test_the_first_in_line_starts_at_once(offsets):
    """As in the race, nobody waits for an offset, or stands by, while nobody runs."""
    known = known_of(
        device(startup_s=0.4, s_per_token=0.0), device("phone", startup_s=0.8, s_per_token=0.0), prompts=9
    )
    first = 0.8 if math.isnan(offsets[0]) or offsets[1] < STANDBY else 0.4
    expected = forecast(known, one_action("laptop", "phone", offsets=offsets))
    assert expected.mean_ttft_s == pytest.approx(first, abs=1e-3)


def test_two_devices_of_one_speed_share_the_wins():
    """The least of two normal times lies sigma/sqrt(pi) below their mean, and each burns for half."""
    devices = [
        device(name, startup_s=2.0, s_per_token=0.0, spread_s=0.3, energy=(0.0, burns))
        for name, burns in (("laptop", 1.0), ("phone", 3.0))
    ]
    expected = forecast(known_of(*devices, prompts=9), one_action("laptop", "phone", offsets=[0.0, 0.0]))
    assert expected.mean_ttft_s == pytest.approx(2.0 - 0.3 / math.sqrt(math.pi), abs=0.01)
    assert expected.joules == pytest.approx(100 * (1.0 + 3.0) / 2, rel=1e-6)


def test_every_budget_is_told_its_own_spend():
    """An allowance finds its own number in a forecast: a kind's tokens, dollars, or joules."""
    known, table = everything_at_once()
    expected = forecast(known, table)
    spends = {
        Allowance("a", Resource.SHARE, Kind.DEVICE, 1.0): expected.token_share[Kind.DEVICE],
        Allowance("b", Resource.SHARE, Kind.SERVER, 1.0): expected.token_share[Kind.SERVER],
        Allowance("c", Resource.USD, None, 1.0): expected.usd,
        Allowance("d", Resource.JOULES, None, 1.0): expected.joules,
    }
    assert [expected.spend(allowance) for allowance in spends] == list(spends.values())
    assert len(set(spends.values())) == 4
