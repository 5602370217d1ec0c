"""The linear programme against optima that are known by hand, and what must hold of any."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import device, exponential, known_of, server, steps

from discostream.config import PolicySettings
from discostream.core.budget import Allowance, Resource
from discostream.core.distributions import Distribution
from discostream.core.forecast import SILENCE_S, forecast
from discostream.core.optimal import (
    BUCKETS,
    MOST_ACTIONS,
    _actions,
    _Buckets,
    _Columns,
    _moments,
    _run_all,
    optimal,
    solve,
)
from discostream.core.plans import NEVER, STANDBY
from discostream.core.policies import disco
from discostream.types import Kind, Start

MEMORYLESS = exponential(1.0)
DEFAULTS = PolicySettings()
CHATS = Distribution.of_samples(np.random.default_rng(2).lognormal(4.0, 1.0, 2000))


def share(kind, b):
    return Allowance(f"{kind} tokens", Resource.SHARE, kind, b)


def dollars(usd):
    return Allowance("dollars", Resource.USD, None, usd)


def joules(j):
    return Allowance("joules", Resource.JOULES, None, j)


def saved_by(price):
    return [pytest.approx(each, rel=0.01) for each in price]


def prices_of(solution):
    return [price.s_per_unit for price in solution.shadow_prices]


def constant_device(startup_s, ttft, *allowances, spread_s=0.0):
    """Prompts of one length, a device that takes the same time for all of them, and a server."""
    laptop = device(s_per_token=0.0, startup_s=startup_s, spread_s=spread_s)
    return known_of(laptop, server(ttft), prompts=10, allowances=allowances)


def chats(ttft, *allowances):
    """Prompts of all lengths, a device and a server."""
    return known_of(device(), server(ttft), prompts=CHATS, allowances=allowances)


@pytest.mark.parametrize("b", [0.05, 0.3, 0.7])
def test_one_length_and_a_memoryless_server(b):
    """Starting the device after w saves e^-w e^-d for e^-w of spend: the optimum is 1 - b e^-d."""
    best = solve(constant_device(0.5, MEMORYLESS, share(Kind.DEVICE, b)), DEFAULTS)
    assert best.forecast.mean_ttft_s == pytest.approx(1 - b * math.exp(-0.5), rel=0.01)
    assert prices_of(best) == saved_by([math.exp(-0.5)])
    assert best.spends[0].expected == pytest.approx(b, rel=0.005)
    assert best.spends[0].expected <= b * (1 + 1e-6)


@pytest.mark.parametrize("b", [0.1, 0.19, 0.5, 0.9])
def test_two_lengths_are_a_knapsack(b):
    """The device takes prompts by what they save for a token, e^-kl / l: short ones before long."""
    tokens, k = np.array([20.0, 80.0]), 0.01
    known = known_of(
        device(s_per_token=k, startup_s=0.0),
        server(MEMORYLESS),
        prompts=steps({20.0: 0.5, 80.0: 0.5}),
        allowances=[share(Kind.DEVICE, b)],
    )
    weight = tokens / tokens.sum()
    taken = np.clip((b - np.append(0.0, weight[:1])) / weight, 0.0, 1.0)
    marginal = int(taken[0] == 1.0)
    best = solve(known, DEFAULTS)
    assert best.forecast.mean_ttft_s == pytest.approx(1 - taken @ np.exp(-k * tokens) / 2, rel=0.01)
    assert prices_of(best) == saved_by([math.exp(-k * tokens[marginal]) * 50 / tokens[marginal]])


@pytest.mark.parametrize("part", [0.2, 0.6, 0.9])
def test_two_exponentials_and_dollars_for_one(part):
    """A paid server of rate b beside a free one of rate a saves 1/a - 1/(a + b), and bills its wins."""
    a, b, tokens, answer = 1.0, 2.0, 10.0, 100.0
    bill = (2.0 * tokens + 4.0 * answer * b / (a + b)) / 1e6
    known = known_of(
        server(exponential(1 / a), "free"),
        server(exponential(1 / b), "paid", prices=(2.0, 4.0)),
        prompts=tokens,
        answer=answer,
        allowances=[dollars(part * bill)],
    )
    saved = 1 / a - 1 / (a + b)
    best = solve(known, DEFAULTS)
    assert best.forecast.mean_ttft_s == pytest.approx(1 / a - part * saved, rel=0.01)
    assert prices_of(best) == saved_by([saved / bill])
    assert best.table.endpoints == ("free", "paid", "paid")


def test_two_budgets_bind_at_once():
    """With b_d = 0.3 and b_s = 0.9, the device is alone with a tenth of the prompts and races for a fifth."""
    known = two_budgets(0.3, 0.9)
    best = solve(known, DEFAULTS, hedge=False)
    race = math.exp(-0.5)
    assert best.forecast.mean_ttft_s == pytest.approx(0.1 * 0.5 + 0.9 - 0.2 * race, rel=0.01)
    assert prices_of(best) == saved_by([race, 0.5 + race - 1.0])
    assert [spend.expected for spend in best.spends] == [pytest.approx(b, rel=0.005) for b in (0.3, 0.9)]


def test_two_budgets_buy_hedges_where_those_are_worth_more():
    """A second attempt saves half a second: the device alone frees 0.3 of the server, and 0.2 are hedges."""
    best = solve(two_budgets(0.3, 0.9), DEFAULTS)
    assert best.forecast.mean_ttft_s == pytest.approx(0.3 * 0.5 + 0.7 - 0.2 * 0.5, rel=0.01)
    assert prices_of(best) == saved_by([1.0, 0.5])


def two_budgets(b_device, b_server):
    allowances = share(Kind.DEVICE, b_device), share(Kind.SERVER, b_server)
    return constant_device(0.5, MEMORYLESS, *allowances)


def test_the_shadow_price_is_the_slope_of_the_optimum():
    """On a heavy tail, one more token in a thousand saves what the price says, to a few per cent of it."""
    less, best, more = (
        solve(chats(heavy_tailed(), share(Kind.DEVICE, b)), DEFAULTS) for b in (0.295, 0.3, 0.305)
    )
    slope = (less.forecast.mean_ttft_s - more.forecast.mean_ttft_s) / 0.01
    assert prices_of(best) == [pytest.approx(slope, rel=0.05)]


def heavy_tailed(seed=1):
    """Mostly below two seconds, and one request in ten up to a minute."""
    rng = np.random.default_rng(seed)
    return Distribution.of_samples(np.append(rng.lognormal(0.0, 0.2, 900), rng.uniform(5.0, 60.0, 100)))


def test_a_heavy_tail_is_insured_for_more_than_alpha():
    """DiSCo-D insures a twentieth of the tail whatever F says; the programme all of it, at the same spend."""
    known = chats(heavy_tailed(), share(Kind.DEVICE, 0.2))
    best = solve(known, DEFAULTS).forecast
    papers = forecast(known, disco(known, PolicySettings(constraint="device")))
    assert best.mean_ttft_s < 0.75 * papers.mean_ttft_s
    assert best.p99_ttft_s < 0.5 * papers.p99_ttft_s
    assert best.token_share[Kind.DEVICE] <= papers.token_share[Kind.DEVICE] * 1.001


def test_ties_go_to_the_tail():
    """All waits do the same for the mean of a memoryless server: everybody waits -ln b, nobody draws lots."""
    best = solve(constant_device(0.1, MEMORYLESS, share(Kind.DEVICE, 0.1)), DEFAULTS)
    waits = best.table.offsets[best.table.weights > 0, 0]
    assert waits.min() > 0.7 * -math.log(0.1)
    assert waits.max() < 1.7 * -math.log(0.1)
    lottery = 0.9 * math.exp(-2.0)
    assert best.forecast.lateness_s < 0.7 * lottery


BOUNDED = Distribution.of_table(np.linspace(0.0, 1.0, 2001), np.linspace(1.0, 3.0, 2001))


def test_budget_that_cannot_lower_the_mean_buys_insurance():
    """A device slower than the server ever was saves nothing that was seen, but starts for what was not."""
    best = solve(constant_device(5.0, BOUNDED, share(Kind.DEVICE, 0.01)), DEFAULTS)
    assert best.forecast.mean_ttft_s == pytest.approx(2.0, rel=1e-3)
    assert np.all(best.table.offsets[best.table.weights > 0, 0] <= 3.0)
    assert best.spends[0].expected == pytest.approx(0.01, rel=0.1)


def test_budget_is_left_where_nothing_gains():
    """A device that needs longer than any silence lasts helps neither mean nor tail: it spends nothing."""
    best = solve(constant_device(200.0, BOUNDED, share(Kind.DEVICE, 0.5)), DEFAULTS)
    assert best.spends[0].expected < 1e-3
    assert prices_of(best) == [0.0]


def test_a_server_insures_a_device_for_nothing():
    """A device that is later than it ever was is not waited for: that takes nothing of the server budget."""
    best = solve(constant_device(0.5, BOUNDED, share(Kind.SERVER, 0.3), spread_s=0.01), DEFAULTS)
    assert best.spends[0].expected < 1e-3
    (start,) = [start for start in best.table.choose(10, 0.0).starts if start.endpoint == "cloud"]
    assert 0.5 < start.offset_s < 1.0


def test_nothing_allowed_is_nothing_started():
    """An allowance of zero leaves whom it counts standing by, even for starts that should never be needed."""
    known = known_of(
        device(spread_s=0.05), server(MEMORYLESS), prompts=CHATS, allowances=[share(Kind.SERVER, 0.0)]
    )
    best = solve(known, DEFAULTS)
    assert best.feasible
    assert best.forecast.token_share[Kind.SERVER] == 0.0
    assert best.table.choose(50, 0.5).starts == (Start("laptop", 0.0), Start("cloud", None))
    assert prices_of(best)[0] > 0.0


@pytest.mark.parametrize(
    ("allowances", "shares"),
    [
        ([share(Kind.DEVICE, 0.2), share(Kind.SERVER, 0.4)], {Kind.DEVICE: 0.2, Kind.SERVER: 0.8}),
        ([share(Kind.DEVICE, 0.0), share(Kind.SERVER, 0.0)], None),
    ],
)
def test_budgets_that_nothing_keeps_are_overshot_least(allowances, shares):
    """Somebody has to read every prompt: the least of the missing tokens is taken, and it is said so."""
    best = solve(chats(MEMORYLESS, *allowances), DEFAULTS)
    assert not best.feasible
    assert sum(best.forecast.token_share.values()) == pytest.approx(1.0, abs=0.01)
    if shares is not None:
        assert best.forecast.token_share == {kind: pytest.approx(b, abs=0.01) for kind, b in shares.items()}


def test_the_cheapest_is_taken_when_money_is_short():
    """With dollars for less than the cheapest answer, the cheapest server answers alone."""
    known = known_of(
        server(MEMORYLESS, "dear", prices=(10.0, 10.0)),
        server(exponential(2.0), "cheap", prices=(1.0, 1.0)),
        prompts=100,
        allowances=[dollars(1e-5)],
    )
    best = solve(known, DEFAULTS)
    assert not best.feasible
    assert best.forecast.usd == pytest.approx(2e-4, rel=1e-3)
    assert best.table.choose(100, 0.5).starts == (Start("dear", None), Start("cheap", 0.0))


def test_who_costs_no_budget_starts_at_once():
    """Endpoints that no allowance counts start at once, and once each; only the others are held back."""
    known = known_of(
        device(energy=(1.0, 1.0)),
        server(MEMORYLESS, "east", prices=(1.0, 1.0)),
        server(MEMORYLESS, "west", prices=(1.0, 1.0)),
        prompts=CHATS,
        allowances=[joules(30.0)],
    )
    table = optimal(known, DEFAULTS)
    assert table.endpoints == ("laptop", "east", "west")
    assert np.all(table.offsets[table.weights > 0][:, 1:] == 0.0)


def test_only_servers_with_a_budget_are_asked_twice():
    """A hedge has a column of its own; unused it is no part of the plan, while endpoints stand by."""
    known = chats(heavy_tailed(), share(Kind.SERVER, 0.6))
    table = optimal(known, DEFAULTS)
    assert table.endpoints == ("laptop", "cloud", "cloud")
    unused = np.isinf(table.offsets[table.weights > 0]).any(axis=0)
    assert not unused[2]
    assert np.isnan(table.offsets[..., 2]).any()
    assert not np.isnan(table.offsets[..., :2]).any()
    assert solve(known, DEFAULTS, hedge=False).table.endpoints == ("laptop", "cloud")
    assert (STANDBY, math.isnan(NEVER)) == (math.inf, True)


def test_hedges_cut_what_is_stuck():
    """A tenth more dollars than one attempt costs take a stuck server's P99 from 31 s to under 2 s."""
    rng = np.random.default_rng(4)
    stuck = Distribution.of_samples(np.append(rng.lognormal(-1.0, 0.3, 970), np.full(30, 31.5)))
    known = known_of(server(stuck, prices=(1.0, 0.0)), prompts=100, allowances=[dollars(1.1e-4)])
    best = solve(known, DEFAULTS)
    assert solve(known, DEFAULTS, hedge=False).forecast.p99_ttft_s > 31.0
    assert best.forecast.p99_ttft_s < 2.0
    assert best.forecast.usd <= 1.1e-4 * (1 + 1e-6)


def test_lateness_can_be_weighed():
    """With a weight on it, expected time past the deadline falls, and the mean pays for it."""
    known = known_of(
        device(s_per_token=0.02), server(heavy_tailed()), prompts=CHATS, allowances=[share(Kind.DEVICE, 0.1)]
    )
    plain = solve(known, PolicySettings(deadline_s=20.0))
    weighed = solve(known, PolicySettings(deadline_s=20.0, lateness_weight=20.0))
    assert weighed.forecast.lateness_s < 0.9 * plain.forecast.lateness_s
    assert weighed.forecast.mean_ttft_s > plain.forecast.mean_ttft_s


def many_endpoints(devices, servers):
    endpoints = [device(f"device{i}", s_per_token=0.01 * (i + 1), energy=(0.5, 1.0)) for i in range(devices)]
    for i in range(servers):
        ttft = exponential(0.6 + 0.2 * i, knots=2001)
        endpoints.append(server(ttft, f"server{i}", prices=(2.0 / (i + 1), 8.0 / (i + 1))))
    return endpoints


CROWDS = [(1, 0), (0, 1), (1, 1), (2, 0), (0, 3), (1, 3), (2, 3), (2, 10)]


@pytest.mark.parametrize(("devices", "servers"), CROWDS)
def test_any_number_of_endpoints(devices, servers):
    """From one endpoint to a dozen, budgets on all are kept, and the number of actions stays bounded."""
    allowances = [joules(150.0), dollars(1.2e-3)]
    known = known_of(*many_endpoints(devices, servers), prompts=CHATS, allowances=allowances)
    best = solve(known, DEFAULTS)
    columns = _Columns.of(known, known.allowances, hedge=True)
    actions = _actions(columns, _Buckets.of(known.prompt_tokens.samples))
    assert best.feasible
    assert all(spend.expected <= spend.allowed * 1.001 for spend in best.spends)
    assert len(actions) <= 1.5 * MOST_ACTIONS + 2 * len(known.endpoints)
    assert best.table.weights.sum(axis=1) == pytest.approx(np.ones(len(best.table.weights)))
    assert np.all(np.nanmin(best.table.offsets[best.table.weights > 0], axis=1) == 0.0)


@pytest.mark.parametrize("slow", [device(s_per_token=0.0, startup_s=600.0), device(s_per_token=5.0)])
def test_the_moments_to_choose_from_end_with_silence(slow):
    """Beside a device that may take many minutes, the moments for one more attempt end after two."""
    known = known_of(slow, server(MEMORYLESS), prompts=CHATS, allowances=[share(Kind.SERVER, 0.3)])
    columns = _Columns.of(known, known.allowances, hedge=False)
    buckets = _Buckets.of(known.prompt_tokens.samples)
    races = _run_all(columns, buckets, np.array([[0.0, np.inf]]))
    moments = _moments(races, buckets, 9)
    assert races.quantiles(np.array([1.0]), buckets.share)[0] > 4 * SILENCE_S
    assert (moments[0], moments.max()) == (0.0, pytest.approx(SILENCE_S))


def test_buckets_hold_whole_lengths():
    """About sixty buckets of even weight, in which no length stands in two; few lengths have one each."""
    samples = np.sort(np.rint(np.random.default_rng(1).lognormal(4.5, 1.0, 20_000)))
    buckets = _Buckets.of(samples)
    assert 0.8 * BUCKETS <= buckets.share.size <= BUCKETS
    assert buckets.share.sum() == pytest.approx(1.0)
    assert buckets.share @ buckets.tokens == pytest.approx(samples.mean())
    assert np.all(np.diff(buckets.longest) > 0)
    few = _Buckets.of(np.array([3.0, 3.0, 9.0]))
    assert (few.longest.tolist(), few.tokens.tolist()) == ([3.0, math.inf], [3.0, 9.0])
    assert few.spread.tolist() == [0.0, 0.0]


def test_rows_that_say_the_same_are_one():
    """Neighbouring buckets that choose alike make one row, and no row mixes more than budgets can explain."""
    table = optimal(chats(heavy_tailed(), share(Kind.DEVICE, 0.2)), DEFAULTS)
    rows = [
        (offsets[weights > 0].tolist(), weights[weights > 0].tolist())
        for offsets, weights in zip(table.offsets, table.weights, strict=True)
    ]
    assert all(one != other for one, other in pairwise(rows))
    assert np.count_nonzero(table.weights) <= len(rows) + 1
    assert table.longest[-1] == math.inf


servers_ttft = st.tuples(st.floats(-1.0, 0.7), st.floats(0.05, 1.2), st.integers(0, 2**16)).map(
    lambda drawn: Distribution.of_samples(np.random.default_rng(drawn[2]).lognormal(drawn[0], drawn[1], 300))
)
"""Log-normal services, from steady to very heavy-tailed."""

speeds = st.floats(0.001, 0.05)


@settings(max_examples=25, deadline=None)
@given(servers_ttft, speeds, st.floats(0.02, 1.0), st.sampled_from(list(Kind)))
def test_it_is_never_worse_than_the_papers_policy(ttft, s_per_token, b, kind):
    """Whatever the service, the device and the share: a mean at most DiSCo's, at b within half a per cent."""
    laptop = device(s_per_token=s_per_token, spread_s=0.02)
    known = known_of(laptop, server(ttft), prompts=CHATS, allowances=[share(kind, b)])
    best = solve(known, DEFAULTS, hedge=False).forecast
    papers = forecast(known, disco(known, PolicySettings(constraint=kind.value)))
    assert best.mean_ttft_s <= papers.mean_ttft_s * 1.001
    assert best.token_share[kind] <= b * 1.005


@settings(max_examples=10, deadline=None)
@given(servers_ttft, servers_ttft, speeds, st.floats(0.2, 1.0), st.floats(0.3, 1.0), st.floats(1.0, 3.0))
def test_more_of_anything_never_raises_the_optimum(ttft, other, s_per_token, b_device, b_server, more):
    """More of a budget, or one more endpoint under the same budgets, never makes the optimum worse."""

    def mean(b_device, *endpoints):
        allowances = [share(Kind.DEVICE, min(b_device, 1.0)), share(Kind.SERVER, b_server)]
        best = solve(known_of(*endpoints, prompts=CHATS, allowances=allowances), DEFAULTS)
        return best.forecast.mean_ttft_s if best.feasible else math.inf

    pair = device(s_per_token=s_per_token), server(ttft)
    before = mean(b_device, *pair)
    assert mean(b_device * more, *pair) <= before * 1.002
    assert mean(b_device, *pair, server(other, "other")) <= before * 1.005
    assert mean(b_device, *pair, device("phone", s_per_token=0.02)) <= before * 1.005


@st.composite
def situations(draw):
    """Endpoints of any speed, prices and silence, prompts of any lengths, and any budgets."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    endpoints = [
        device(
            f"device{index}",
            s_per_token=10 ** rng.uniform(-4, 0),
            startup_s=rng.choice([0.0, 0.1, 1.0]),
            spread_s=rng.choice([0.0, 0.05, 1.0]),
            energy=tuple(rng.choice([0.0, 0.5, 2.0], 2)),
        )
        for index in range(draw(st.integers(0, 2)))
    ]
    for index in range(draw(st.integers(0 if endpoints else 1, 3))):
        spans = rng.lognormal(rng.uniform(-2, 2), rng.choice([0.01, 0.5, 2.0]), rng.integers(1, 300))
        spans[: draw(st.sampled_from([0, 0, 1, spans.size // 2, spans.size]))] = np.inf
        prices = tuple(rng.choice([0.0, 0.5, 2.0], 2))
        endpoints.append(server(Distribution.of_samples(spans), f"server{index}", prices=prices))
    amounts = st.sampled_from([0.0, 1e-9, 0.05, 0.3, 0.9, 1.0])
    allowances = draw(
        st.lists(
            st.one_of(
                amounts.map(lambda b: share(Kind.DEVICE, b)),
                amounts.map(lambda b: share(Kind.SERVER, b)),
                amounts.map(lambda part: dollars(2e-4 * part)),
                amounts.map(lambda part: joules(100.0 * part)),
            ),
            max_size=3,
        )
    )
    lengths = rng.lognormal(rng.uniform(1, 7), rng.choice([0.01, 0.5, 1.5]), rng.integers(1, 400))
    return known_of(*endpoints, prompts=Distribution.of_samples(lengths), allowances=allowances)


@settings(max_examples=40, deadline=None)
@given(situations())
def test_there_is_always_a_plan(known):
    """Silent servers, hopeless devices, impossible budgets: a plan comes out, within what can be kept."""
    best = solve(known, DEFAULTS)
    assert math.isfinite(best.forecast.mean_ttft_s)
    assert best.table.weights.sum(axis=1) == pytest.approx(np.ones(len(best.table.weights)))
    assert all(price.s_per_unit >= 0.0 for price in best.shadow_prices)
    if best.feasible:
        assert all(spend.expected <= 1.05 * spend.allowed + 1e-5 for spend in best.spends)
