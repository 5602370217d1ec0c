"""A server that slows down while it is used."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from discostream.sim.online import EVERY, Follows, live_through
from discostream.sim.study import Case, judge
from discostream.sim.world import Handoff

CASE = Case(
    server_trace="builtin:gpt-4o",
    device="macbook-m4-qwen2.5-1.5b",
    policy="disco",
    share=0.3,
    constraint="device",
    requests=3000,
    handoff=Handoff.OFF,
)


def day(follows, slower=3.0, parts=(1, 3), **fields):
    return live_through(replace(CASE, **fields), follows, slower, *parts)


@pytest.mark.parametrize("policy", ["disco", "optimal", "stochastic", "server-only"])
@pytest.mark.parametrize("constraint", ["device", "server"])
def test_a_quiet_day_under_one_table_is_what_the_simulator_says(policy, constraint):
    """With nothing to follow, TTFT and spend are those of the same requests, simulated at once."""
    case = replace(CASE, policy=policy, constraint=constraint, requests=1000)
    ((whole,),) = live_through(case, Follows.NOTHING, 1.0, 1)
    figures, _ = judge(case)
    assert whole.n == 1000
    assert whole.mean_ttft_s == pytest.approx(figures.mean_ttft_s, rel=1e-12)
    assert whole.p99_ttft_s == pytest.approx(figures.p99_ttft_s, rel=1e-12)
    assert whole.spent_share == pytest.approx(figures.spent_share, rel=1e-12)


def test_parts_make_up_the_whole():
    """Means over stretches, by how many requests they have, are the mean over all."""
    (whole,), thirds, stretches = day(Follows.EVERYTHING, parts=(1, 3, 7), requests=1000)
    for parts in (thirds, stretches):
        assert sum(part.n for part in parts) == whole.n
        assert sum(part.n * part.mean_ttft_s for part in parts) / whole.n == pytest.approx(whole.mean_ttft_s)


def test_one_table_overspends_and_is_quick_by_that():
    """F is out of date: everybody has waited long enough for the device, which answers almost everything."""
    (whole,), (before, meanwhile, after) = day(Follows.NOTHING)
    assert before.spent_share == pytest.approx(0.3, abs=0.06)
    assert meanwhile.spent_share > 0.8
    assert after.spent_share == pytest.approx(0.3, abs=0.06)
    assert whole.spent_share > 0.45


@pytest.mark.parametrize("follows", [Follows.SPEND, Follows.EVERYTHING])
def test_plans_that_follow_the_spend_keep_the_budget(follows):
    """Over the day, and in each third of it."""
    (whole,), thirds = day(follows)
    assert whole.spent_share == pytest.approx(0.3, rel=0.03)
    assert [third.spent_share for third in thirds] == pytest.approx([0.3] * 3, abs=0.03)


def test_what_was_seen_is_worth_a_tail():
    """At the same spend, learning F halves the P99 of the slow hours and lowers their mean."""
    _, blind = day(Follows.SPEND)
    _, seeing = day(Follows.EVERYTHING)
    assert seeing[1].mean_ttft_s < blind[1].mean_ttft_s * 0.85
    assert seeing[1].p99_ttft_s < blind[1].p99_ttft_s / 2
    for slow, quick in ((blind[0], seeing[0]), (blind[2], seeing[2])):
        assert quick.mean_ttft_s < slow.mean_ttft_s * 1.05


def test_it_takes_no_longer_than_a_few_tables():
    """Three tables into the slow hours, the spend is back at what it may be."""
    follows, each = Follows.EVERYTHING, 1000 // EVERY
    (stretches,) = day(follows, parts=(3 * each,))
    slow = stretches[each + 3 : 2 * each]
    assert max(stretch.spent_share for stretch in stretches[each : each + 3]) > 0.3
    assert sum(stretch.spent_share for stretch in slow) / len(slow) == pytest.approx(0.3, abs=0.03)


def test_a_day_is_the_same_again():
    """Nothing in it depends on anything but its case."""
    assert day(Follows.EVERYTHING, requests=600) == day(Follows.EVERYTHING, requests=600)


def test_failures_are_insured_against(tmp_path):
    """A server of which one request in fifty falls silent is one with a tail: the device steps in."""
    trace = tmp_path / "failing.csv"
    rows = ["0.5,"] * 49 + [",timeout"]
    trace.write_text("ttft_s,error\n" + "\n".join(rows * 20) + "\n")
    failing = {"server_trace": str(trace), "requests": 1500}
    ((seeing,),) = live_through(replace(CASE, **failing), Follows.EVERYTHING, 1.0, 1)
    ((alone,),) = live_through(replace(CASE, **failing, policy="server-only"), Follows.EVERYTHING, 1.0, 1)
    assert alone.p99_ttft_s == 120.0
    assert seeing.p99_ttft_s < 10.0
    assert seeing.spent_share == pytest.approx(0.3, rel=0.05)
