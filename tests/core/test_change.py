"""Changes are noticed soon and seldom imagined, and what was known of the shape survives them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.builtin import builtin_profiles, builtin_prompt_lengths
from discostream.core.change import ALARM, Watch, rank_range, releveled
from discostream.core.distributions import Distribution
from discostream.core.profile import ServerTtft
from discostream.core.survival import LearntDistribution

UNIFORM = Distribution.of_table([0.0, 1.0], [0.0, 1.0])
SERVICES = tuple(builtin_profiles())


def watched(ranges, watch=None):
    """The watch after observations that stand in these ranges of ranks."""
    watch = watch or Watch()
    for low_high in ranges:
        watch = watch.observe(UNIFORM, lambda _, low_high=low_high: low_high)
    return watch


def seen(values, censored=()):
    learnt = LearntDistribution(UNIFORM)
    for at_s, value in enumerate(values):
        learnt = learnt.observe(value, at_s, censored=at_s in censored)
    return learnt.seen


def follow(ttft, spans_s, device_s):
    """Observe races against a device; says after which of them a change was noticed, too."""
    noticed = []
    for count, (span_s, limit_s) in enumerate(zip(spans_s.tolist(), device_s.tolist(), strict=True), start=1):
        before = ttft.changes
        ttft = ttft.observe(min(span_s, limit_s), float(count), censored=limit_s < span_s)
        if ttft.changes > before:
            noticed.append(count)
    return ttft, noticed


def test_evidence_by_hand():
    """The log of 3u^2 for slower and of 3(1-u)^2 for faster, never less than nothing in all."""
    slower = watched([(0.9, 0.9), (0.8, 0.8)])
    assert slower.slower.evidence == pytest.approx(math.log(3 * 0.9**2) + math.log(3 * 0.8**2))
    assert slower.slower.length == 2
    assert (slower.faster.evidence, slower.faster.length, slower.faster.reference) == (0.0, 0, None)
    faster = watched([(0.9, 0.9), (0.1, 0.1)])
    assert faster.slower.evidence == 0.0
    assert faster.faster.evidence == pytest.approx(math.log(3 * 0.9**2))
    assert faster.faster.length == 1


@given(st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_a_range_of_ranks_counts_with_its_mean(one, other):
    """Cut short at u: the ratio of survivals, (1 - u^3) / (1 - u), and likewise for any other range."""
    low, high = sorted((one, other))
    before = watched([(1.0, 1.0)] * 7).slower.evidence
    evidence = watched([*[(1.0, 1.0)] * 7, (low, high)]).slower.evidence - before
    mean = (high**3 - low**3) / (high - low) if high - low > 1e-6 else 3 * low**2
    assert evidence == pytest.approx(math.log(mean), abs=1e-4)


def test_what_says_nothing_is_no_evidence():
    """Cancelled at once, or any rank at all: neither slower nor faster has anything to go by."""
    assert watched([(0.0, 1.0)] * 100) == Watch()


def test_where_a_value_stands():
    """Between what is less and what is not more; beyond if cut short; at the top if it never came."""
    atoms = Distribution(np.array([0.0, 0.5, 0.5, 1.0]), np.array([1.0, 1.0, 3.0, 3.0]))
    assert rank_range(atoms, 1.0, censored=False) == (0.0, 0.5)
    assert rank_range(atoms, 2.0, censored=False) == (0.5, 0.5)
    assert rank_range(atoms, 1.0, censored=True) == (0.5, 1.0)
    assert rank_range(atoms, 9.0, censored=False) == (1.0, 1.0)
    failing = replace(UNIFORM, never=0.25)
    assert rank_range(failing, math.inf, censored=False) == (0.75, 1.0)
    assert rank_range(failing, 0.5, censored=False) == pytest.approx((0.375, 0.375))


def test_an_excursion_is_judged_by_what_was_believed_when_it_began():
    """What comes to be believed while evidence adds up does not explain it away."""
    before, during = UNIFORM, UNIFORM.scaled(100.0)
    watch = Watch()
    for believed in (before, during, during):
        watch = watch.observe(believed, lambda judge: rank_range(judge, 0.99, censored=False))
    assert watch.slower.reference is before
    assert watch.slower.evidence == pytest.approx(3 * math.log(3 * 0.99**2))
    assert watch.faster.reference is during


@pytest.mark.parametrize(("cut_short", "apart"), [(False, 7000), (True, 10_000)])
def test_false_alarms_are_thousands_of_requests_apart(cut_short, apart):
    """While nothing changes, one of the sums reaches the threshold once in 7,000 observations.

    Once in 10,000 where two in three are cut short. (300,000 observations: 43 and 30 are expected.)
    """
    rng = np.random.default_rng(12)
    count, alarms, watch = 300_000, 0, Watch()
    ranks = rng.random(count)
    limits = rng.beta(1, 2, count) if cut_short else np.full(count, 2.0)
    for rank, limit in zip(ranks.tolist(), limits.tolist(), strict=True):
        low_high = (limit, 1.0) if limit < rank else (rank, rank)
        watch = watched([low_high], watch)
        if watch.alarm:
            alarms, watch = alarms + 1, Watch()
    assert count / alarms == pytest.approx(apart, rel=0.3)


def test_eight_beyond_everything_are_a_change():
    """Seven observations above all that was ever seen may be chance, the eighth is not."""
    top = [(1.0, 1.0)]
    assert watched(top * 7).alarm is None
    alarm = watched(top * 8).alarm
    assert alarm is not None
    assert (alarm.length, alarm.reference) == (8, UNIFORM)
    assert 7 * math.log(3) < ALARM < 8 * math.log(3)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
@pytest.mark.parametrize("service", SERVICES)
def test_a_step_is_followed_within_thirty_requests(service, factor):
    """TTFT trebles, or goes back: noticed after a dozen requests on average, and by 30 the level is right.

    P50 is then within a quarter of the truth in the middle of ten runs, and within a half in each.
    """
    after = builtin_profiles()[service].ttft.scaled(max(factor, 1.0))
    before = after.scaled(1 / factor)
    delays, ratios = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        forever = np.full(300, np.inf)
        ttft, _ = follow(ServerTtft(before), before.sample(rng, 300), forever)
        ttft, noticed = follow(ttft, after.sample(rng, 30), forever[:30])
        delays.append(noticed[0])
        ratios.append(ttft.quantile(0, 0.5) / after.quantile(0.5))
    assert np.mean(delays) <= 15
    assert max(delays) <= 30
    assert np.median(ratios) == pytest.approx(1.0, abs=0.25)
    assert np.abs(np.log(ratios)).max() < math.log(1.5)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
@pytest.mark.parametrize("service", SERVICES)
def test_a_step_is_noticed_behind_a_device_that_wins(service, factor):
    """A device wins 70 % of the races before the step (or after it back): noticed within 30 on average."""
    quick = builtin_profiles()[service].ttft.scaled(1.0 if factor > 1 else 3.0)
    slow = quick.scaled(factor)
    rng = np.random.default_rng(1)
    raced, prompts = quick.sample(rng, 4000), builtin_prompt_lengths().sample(rng, 4000)
    s_per_token = np.quantile(raced / prompts, 0.3)
    delays = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        device_s = s_per_token * builtin_prompt_lengths().sample(rng, 500)
        spans_s = np.concatenate((quick.sample(rng, 400), slow.sample(rng, 100)))
        ttft, _ = follow(ServerTtft(quick), spans_s[:400], device_s[:400])
        _, noticed = follow(ttft, spans_s[400:], device_s[400:])
        delays.append(noticed[0] if noticed else 100)
    assert np.mean(delays) <= 30


def test_a_false_alarm_costs_little_and_is_seldom():
    """With all that is believed learnt, too: under one alarm in a thousand, and the level stays right."""
    alarms, count = 0, 4000
    for seed, service in enumerate(SERVICES):
        truth, rng = builtin_profiles()[service].ttft, np.random.default_rng(seed)
        ttft, noticed = follow(ServerTtft(truth), truth.sample(rng, count), np.full(count, np.inf))
        alarms += len(noticed)
        assert ttft.quantile(0, 0.5) == pytest.approx(truth.quantile(0.5), rel=0.15)
    assert alarms < count * len(SERVICES) / 1000


def test_an_outage_is_noticed_and_so_is_its_end():
    """After eight failures little is expected of a server; a dozen answers later all is well again."""
    service = builtin_profiles()["gpt-4o"].ttft
    rng, forever = np.random.default_rng(2), np.full(300, np.inf)
    ttft, _ = follow(ServerTtft(service), service.sample(rng, 300), forever)
    assert ttft.distribution.never < 0.01
    ttft, noticed = follow(ttft, np.full(8, np.inf), forever[:8])
    assert len(noticed) == 1
    assert ttft.distribution.never > 0.7
    ttft, noticed = follow(ttft, service.sample(rng, 12), forever[:12])
    assert len(noticed) == 1
    assert ttft.distribution.never < 0.15
    assert ttft.quantile(0, 0.5) == pytest.approx(service.quantile(0.5), rel=0.25)


def test_the_shape_is_remembered():
    """Ten observations at three times the level: the tail, where none of them lies, has trebled as well."""
    shape = builtin_profiles()["gpt-4o"].ttft
    middle = seen(3.0 * shape.quantile((np.arange(10) + 0.5) / 10))
    moved = releveled(shape, middle)
    stretch = moved.quantile([0.5, 0.9, 0.99, 0.999]) / shape.quantile([0.5, 0.9, 0.99, 0.999])
    assert stretch == pytest.approx(np.full(4, stretch[0]), rel=0.02)
    assert stretch[0] == pytest.approx(3.0, rel=0.1)


@given(st.floats(0.1, 10.0))
def test_many_observations_give_their_own_level(factor):
    """A thousand observations of a stretched shape: stretched by as much, within 2 %."""
    shape = builtin_profiles()["claude-haiku"].ttft
    level = releveled(shape, seen(factor * shape.quantile((np.arange(1000) + 0.5) / 1000)))
    assert level.quantile(0.5) == pytest.approx(factor * shape.quantile(0.5), rel=0.02)


def test_the_level_by_hand():
    """In U(0, s), with one more at the old median 1/2, mean ranks are 1/2 at a closed form's s.

    Nine at 1.5: (9 x 1.5 + 0.5) / s = 10 / 2. Cut short there: 9 / 2 x (1 + 1.5 / s) + 0.5 / s = 10 / 2.
    """
    assert releveled(UNIFORM, seen([1.5] * 9)).values[-1] == pytest.approx(14.0 / 5)
    assert releveled(UNIFORM, seen([1.5] * 9, censored=range(9))).values[-1] == pytest.approx(7.25 / 0.5)
    assert releveled(UNIFORM, seen([0.0] * 9, censored=range(9))).values[-1] == pytest.approx(1.0)


def test_failures_decide_how_much_never_comes_and_not_the_level():
    """Nine failures count with one observation more at the old share; the finite rest is left alone."""
    down = releveled(replace(UNIFORM, never=0.2), seen([math.inf] * 9))
    assert down.never == pytest.approx((9 + 0.2) / 10)
    assert replace(down, never=0.0).quantile(0.5) == pytest.approx(0.5, rel=1e-3)
    up = releveled(down, seen([0.5] * 9))
    assert up.never == pytest.approx(0.92 / 10)
