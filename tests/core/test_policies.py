"""Policies in closed form: what they spend, and who starts when."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import device, exponential, known_of, server

from discostream.config import PolicySettings
from discostream.core.budget import Allowance, Resource
from discostream.core.cost import Rates
from discostream.core.distributions import Distribution
from discostream.core.forecast import forecast
from discostream.core.plans import STANDBY, PlanTable
from discostream.core.policies import (
    allowances_of,
    cheap,
    device_only,
    disco,
    disco_d,
    disco_s,
    fast,
    offsets,
    server_only,
    stochastic,
)
from discostream.types import Kind, Start

EXPONENTIAL = exponential(1.0, knots=20_001)
LENGTHS = np.sort(np.maximum(np.rint(np.random.default_rng(7).lognormal(4.5, 1.0, 100_000)), 1.0))
SHARES = [0.0, 0.02, 0.05, 0.1, 0.3, 0.5, 0.77, 0.9, 1.0]

USD = Allowance("pocket money", Resource.USD, None, 2e-4)
JOULES = Allowance("battery", Resource.JOULES, None, 30.0)


def known(*more, device_usd=1e-9, server_usd=1e-6, allowances=()):
    return known_of(
        device(spread_s=0.05, usd=device_usd, energy=(0.5, 1.0)),
        server(EXPONENTIAL, usd=server_usd, prices=(2.0, 8.0)),
        *more,
        prompts=Distribution.of_samples(LENGTHS),
        allowances=allowances,
    )


def spend_d(share: float, alpha: float) -> float:
    """The share of prompt tokens that the device reads, S being exponential with mean one."""
    bounds, waits = disco_d(LENGTHS, EXPONENTIAL, share, alpha)
    wait = waits[np.searchsorted(bounds, LENGTHS)]
    starts = np.where(np.isinf(wait), 0.0, 1.0 - EXPONENTIAL.cdf(np.minimum(wait, 1e9)))
    return float((starts * LENGTHS).sum() / LENGTHS.sum())


@pytest.mark.parametrize("share", SHARES)
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


def test_disco_d_stands_by_where_the_tail_never_comes():
    """Insurance against answers that never come is a standby: it starts when the server has failed."""
    often_silent = Distribution(EXPONENTIAL.probabilities, EXPONENTIAL.values, never=0.1)
    _, waits = disco_d(LENGTHS, often_silent, 0.3, 0.05)
    assert waits[0] == 0.0
    assert waits[-1] == STANDBY
    rare = Distribution(EXPONENTIAL.probabilities, EXPONENTIAL.values, never=0.01)
    assert disco_d(LENGTHS, rare, 0.3, 0.05)[1][-1] == pytest.approx(-math.log(1 - 0.95 / 0.99), rel=1e-3)


@pytest.mark.parametrize("share", SHARES)
def test_disco_s_threshold_satisfies_its_integral(share):
    """Prompts up to the threshold, and a part of those at it, keep (1 - b) E[l] to themselves."""
    bounds, racing = disco_s(LENGTHS, share)
    local = 1.0 - racing[np.searchsorted(bounds, LENGTHS)]
    assert (local * LENGTHS).mean() == pytest.approx((1 - share) * LENGTHS.mean(), rel=1e-12)
    assert np.all(np.diff(racing) >= 0)


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=60), st.floats(0, 1))
def test_disco_s_spends_its_budget_however_lumpy(lengths, share):
    """With any lengths, what races holds the share b of all tokens exactly; longer ones go first."""
    array = np.sort(np.array(lengths, dtype=float))
    bounds, racing = disco_s(array, share)
    taken = racing[np.searchsorted(bounds, array)]
    assert taken @ array == pytest.approx(share * array.sum(), rel=1e-9, abs=1e-9)
    assert np.all(np.diff(taken) >= 0)


@pytest.mark.parametrize("policy", [disco, stochastic])
@pytest.mark.parametrize("constraint", ["device", "server"])
@pytest.mark.parametrize("share", [0.03, 0.4, 0.95])
def test_tables_spend_their_share(policy, constraint, share):
    """What a table is expected to spend is b within half a per cent, for both kinds and both policies."""
    table = policy(known(), PolicySettings(constraint=constraint, share=share))
    assert forecast(known(), table).token_share[Kind(constraint)] == pytest.approx(share, rel=0.005)


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
    alone = replace(known(), endpoints=known().endpoints[:1])
    assert disco(alone, PolicySettings()).choose(10, 0.0).starts == (Start("laptop", 0.0),)
    assert stochastic(alone, PolicySettings()).choose(10, 0.0).starts == (Start("laptop", 0.0),)


def test_the_first_of_each_kind_races():
    """The paper has one device and one server; others stand by."""
    two_of_each = known(device("phone"), server(EXPONENTIAL, "spare"))
    for policy in (disco, stochastic):
        plan = policy(two_of_each, PolicySettings(constraint="device", share=1.0)).choose(9, 0.0)
        assert plan.starts[2:] == (Start("phone", None), Start("spare", None))


def test_the_share_is_a_half_only_where_there_is_no_budget():
    """`policy.share` joins the budgets if set, and limits the constrained kind; alone it is one half."""
    assert allowances_of(known(), PolicySettings()) == (
        Allowance("policy.share", Resource.SHARE, Kind.SERVER, 0.5),
    )
    assert allowances_of(known(allowances=(USD,)), PolicySettings()) == (USD,)
    assert allowances_of(known(allowances=(USD,)), PolicySettings(share=0.2, constraint="device")) == (
        USD,
        Allowance("policy.share", Resource.SHARE, Kind.DEVICE, 0.2),
    )


def test_a_share_that_follows_spend_stands_for_the_settings_own():
    """A share among the allowances, raised or lowered by what was spent, is not limited once more."""
    lowered = Allowance("policy.share", Resource.SHARE, Kind.SERVER, 0.1)
    learnt = known(allowances=(lowered,))
    assert allowances_of(learnt, PolicySettings(share=0.3)) == (lowered,)
    spent = forecast(learnt, disco(learnt, PolicySettings(share=0.3))).token_share[Kind.SERVER]
    assert spent == pytest.approx(0.1, rel=0.005)


def test_without_a_pair_there_is_no_share():
    """Where there is one kind only it reads every prompt, whatever a share says."""
    alone = replace(known(), endpoints=known().endpoints[:1])
    assert allowances_of(alone, PolicySettings(share=0.3)) == ()


@pytest.mark.parametrize(
    ("allowances", "kind"),
    [
        ((USD,), Kind.SERVER),
        ((JOULES,), Kind.DEVICE),
        ((Allowance("tokens", Resource.SHARE, Kind.DEVICE, 0.3),), Kind.DEVICE),
        ((USD, JOULES), Kind.SERVER),
    ],
)
def test_auto_holds_back_the_only_kind_with_a_budget(allowances, kind):
    """Dollars hold back servers and joules devices; with budgets on both, prices decide."""
    *_, share = allowances_of(known(allowances=allowances), PolicySettings(share=0.5))
    assert share.kind is kind
    dear_device = known(allowances=allowances, device_usd=1e-3)
    *_, share = allowances_of(dear_device, PolicySettings(share=0.5))
    assert share.kind is (kind if len(allowances) == 1 else Kind.DEVICE)


@pytest.mark.parametrize("policy", [disco, stochastic])
@pytest.mark.parametrize("allowance", [USD, JOULES])
def test_dollars_and_joules_become_the_largest_share_that_keeps_them(policy, allowance):
    """The expected bill, the answer included, is the allowance, to a thousandth of the largest bill."""
    learnt = known(allowances=(allowance,))
    unlimited = replace(allowance, per_request=math.inf)
    most = forecast(learnt, policy(known(allowances=(unlimited,)), PolicySettings())).spend(allowance)
    assert allowance.per_request < most
    spent = forecast(learnt, policy(learnt, PolicySettings())).spend(allowance)
    assert spent <= allowance.per_request
    assert spent == pytest.approx(allowance.per_request, abs=1e-3 * most)


def test_the_tightest_of_several_budgets_counts():
    """Two shares and dollars on one kind: whichever leaves least is spent, and none is exceeded."""
    shares = [Allowance(name, Resource.SHARE, Kind.SERVER, b) for name, b in (("half", 0.5), ("fifth", 0.2))]
    for usd, tightest in ((1.0, shares[1]), (5e-5, replace(USD, per_request=5e-5))):
        learnt = known(allowances=(*shares, replace(USD, per_request=usd)))
        spent = forecast(learnt, disco(learnt, PolicySettings()))
        assert spent.spend(tightest) == pytest.approx(tightest.per_request, rel=0.005)
        assert all(spent.spend(each) <= each.per_request * (1 + 1e-9) for each in learnt.allowances)


def test_what_no_share_can_keep_is_not_spent_at_all():
    """An allowance that is used up leaves the constrained kind standing by."""
    broke = known(allowances=(replace(USD, per_request=0.0),))
    assert disco(broke, PolicySettings()).choose(4000, 0.0).starts == (
        Start("laptop", 0.0),
        Start("cloud", None),
    )


def test_a_draw_picks_actions_by_their_weights():
    """Draws in [0, 1) fall on a row's actions in turn; what is never taken is not, whatever rounding says."""
    table = PlanTable(
        "mixed",
        ("one",),
        np.array([100.0, np.inf]),
        np.array([[[0.0], [1.0], [2.0]], [[3.0], [4.0], [5.0]]]),
        np.array([[0.25, 0.75, 0.0], [0.1, 0.2, 0.7 - 1e-12]]),
    )
    chosen = [table.choose(100, draw).starts[0].offset_s for draw in (0.0, 0.249, 0.25, 1.0 - 1e-16)]
    assert chosen == [0.0, 0.0, 1.0, 1.0]
    assert table.choose(101, 1.0 - 1e-16).starts[0].offset_s == 5.0


@given(st.integers(0, 10_000))
def test_many_plans_are_chosen_as_one_is(seed):
    """Arrays of requests get the offsets that `choose` gives each, at every edge of rows and of weights."""
    rng = np.random.default_rng(seed)
    rows, actions = rng.integers(1, 4), rng.integers(1, 6)
    taken = rng.random((rows, actions)) < 0.6
    taken[:, rng.integers(actions)] = True
    weights = rng.dirichlet(np.ones(actions), rows) * taken
    weights /= weights.sum(axis=1, keepdims=True)
    longest = np.append(np.sort(rng.integers(1, 9, rows - 1)), np.inf)
    table = PlanTable("any", ("a", "b"), longest, rng.random((rows, actions, 2)), weights)
    edges = np.clip(np.cumsum(weights, axis=1).ravel(), 0.0, np.nextafter(1.0, 0.0))
    draws = np.concatenate((rng.random(10), edges, [0.0, np.nextafter(1.0, 0.0)]))
    prompts = rng.integers(1, 12, draws.size).astype(float)
    plans = [table.choose(*each) for each in zip(prompts.tolist(), draws.tolist(), strict=True)]
    assert table.offsets_of(prompts, draws).tolist() == [
        [start.offset_s for start in plan.starts] for plan in plans
    ]


def test_the_fast_policy_starts_everybody_whatever_the_budgets_say():
    """Every endpoint starts at once for a prompt of any length, under soft budgets of nothing, too."""
    nothing = Allowance("pocket money", Resource.USD, None, 0.0)
    table = fast(known(server(EXPONENTIAL, "other"), allowances=(nothing,)), PolicySettings(share=0.0))
    for length in (1, 1e6):
        plan = table.choose(length, 0.99)
        assert plan.starts == (Start("laptop", 0.0), Start("cloud", 0.0), Start("other", 0.0))


def priced(prefill_usd, decode_usd, name):
    return replace(server(EXPONENTIAL, name), rates=Rates(prefill_usd, decode_usd))


def test_the_cheap_policy_starts_whoever_costs_least_at_each_length():
    """With answers of 100 tokens, lines cross at 50 and at 200 tokens; a dearer one is never on top."""
    endpoints = (
        priced(1.0, 4.0, "flat"),  # 400 + L
        priced(2.0, 2.0, "middle"),  # 200 + 2 L
        priced(4.0, 1.0, "steep"),  # 100 + 4 L
        priced(4.0, 4.0, "dear"),
    )
    table = cheap(known_of(*endpoints, prompts=10.0), PolicySettings())
    winners = {length: alone(table, length) for length in (1, 49, 51, 199, 201, 1e6)}
    assert winners == {1: "steep", 49: "steep", 51: "middle", 199: "middle", 201: "flat", 1e6: "flat"}


@given(st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 2), min_size=1, max_size=4), st.data())
def test_the_cheap_policy_agrees_with_a_comparison_at_any_length(rates, data):
    """Whatever the rates, ties and free endpoints included, nobody else would have cost less."""
    endpoints = [priced(*rate, f"e{index}") for index, rate in enumerate(rates)]
    table = cheap(known_of(*endpoints, prompts=10.0, answer=7.0), PolicySettings())
    length = data.draw(st.integers(1, 10_000))
    cost = {f"e{index}": prefill * length + decode * 7.0 for index, (prefill, decode) in enumerate(rates)}
    assert cost[alone(table, length)] == pytest.approx(min(cost.values()))


def alone(table, length):
    """The one endpoint that starts, all others standing by."""
    starts = table.choose(length, 0.5).starts
    (first,) = [start.endpoint for start in starts if start.offset_s == 0.0]
    assert all(start.offset_s is None for start in starts if start.endpoint != first)
    return first
