"""The product-limit estimate: by hand, by closed form, and against what ignores those that were cut short."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.builtin import builtin_profiles
from discostream.core.distributions import Distribution
from discostream.core.survival import LATEST, LearntDistribution, product_limit

UNIFORM = Distribution.of_table([0.0, 1.0], [0.0, 10.0])

# Weeks in remission of the 21 patients on 6-mercaptopurine; a star marks those still in remission when the
# study ended (Freireich et al., Blood 21, 1963): the example in most textbooks.
REMISSION = "6 6 6 6* 7 9* 10 10* 11* 13 16 17* 19* 20* 22 23 25* 32* 32* 34* 35*"

observed = st.tuples(
    st.integers(0, 1000).map(lambda tenths: tenths / 10) | st.just(math.inf),
    st.booleans(),
    st.integers(1, 32).map(lambda parts: parts / 32),
)
several = st.lists(observed, min_size=1, max_size=40)
priors = st.sampled_from([UNIFORM, replace(UNIFORM, never=0.2)])
shares = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=8).map(sorted)


def columns(rows):
    values, censored, weights = zip(*rows, strict=True)
    return np.array(values), np.array(censored), np.array(weights)


def test_a_textbook_example_by_hand():
    """Remission under 6-MP: one factor (at risk - ended) / (at risk) for each week in which it ended."""
    weeks = REMISSION.split(" ")
    estimate = product_limit([float(week.rstrip("*")) for week in weeks], [week[-1] == "*" for week in weeks])
    survival = Fraction(1)
    for week, at_risk, ended in [(6, 21, 3), (7, 17, 1), (10, 15, 1), (13, 12, 1), (16, 11, 1), (22, 7, 1)]:
        survival *= Fraction(at_risk - ended, at_risk)
        assert estimate.cdf(week) == pytest.approx(float(1 - survival), abs=1e-15)
    survival *= Fraction(5, 6)
    assert estimate.cdf(34.9) == pytest.approx(float(1 - survival), abs=1e-15)
    assert round(float(survival), 3) == 0.448


def test_what_outlasts_all_others_ends_where_it_was_cut_short():
    """Without a prior, the share that nobody was seen to reach lies at the greatest value."""
    estimate = product_limit([1.0, 2.0, 3.0], [False, True, True])
    assert estimate.never == 0.0
    assert estimate.cdf([0.9, 1.0, 2.9, 3.0]) == pytest.approx([0.0, 1 / 3, 1 / 3, 1.0])


@given(st.lists(st.integers(0, 100).map(float), min_size=1, max_size=40), st.floats(-1.0, 101.0))
def test_it_is_the_empirical_distribution_when_nothing_was_cut_short(values, value):
    """No prior and nobody censored: the share at or below a value is simply counted."""
    estimate = product_limit(values, np.zeros(len(values)))
    assert estimate.cdf(value) == pytest.approx(np.mean(np.array(values) <= value))
    assert estimate.mean == pytest.approx(np.mean(values))


@given(st.lists(st.floats(0.0, 12.0), min_size=1, max_size=20), st.floats(0.5, 50.0), st.floats(0.0, 12.0))
def test_it_is_a_weighted_mean_with_the_prior_when_nothing_was_cut_short(values, strength, value):
    """The Dirichlet process's posterior mean: (c F0 + n Fn) / (c + n)."""
    estimate = product_limit(values, np.zeros(len(values)), prior=UNIFORM, strength=strength)
    counted = np.sum(np.array(values) <= value)
    expected = (strength * UNIFORM.cdf(value) + counted) / (strength + len(values))
    assert estimate.cdf(value) == pytest.approx(expected, abs=1e-9)


def test_a_prior_and_one_that_was_cut_short_by_hand():
    """One cut short at 2 and one that ended at 4, under a uniform prior on (0, 10) worth two observations."""
    estimate = product_limit([2.0, 4.0], [True, False], prior=UNIFORM, strength=2.0)
    believed = [2 * (1 - value / 10) for value in range(11)]
    at_2 = (believed[2] + 2) / (2 + 2)
    before_4 = at_2 * (believed[4] + 1) / (believed[2] + 1)
    at_4 = before_4 * believed[4] / (believed[4] + 1)
    assert 1 - estimate.cdf(1.0) == pytest.approx((believed[1] + 2) / 4)
    assert 1 - estimate.cdf(3.0) == pytest.approx(at_2 * (believed[3] + 1) / (believed[2] + 1))
    assert 1 - estimate.cdf(np.nextafter(4.0, 0.0)) == pytest.approx(before_4)
    assert 1 - estimate.cdf(4.0) == pytest.approx(at_4)
    assert 1 - estimate.cdf(7.0) == pytest.approx(at_4 * believed[7] / believed[4])


def test_nobody_at_risk_leaves_the_priors_own_tail():
    """Beyond the last observation, the rest is spread as the prior would have it."""
    prior = builtin_profiles()["gpt-4o"].ttft
    estimate = product_limit([0.3, 0.4, 0.5], [False, True, True], prior=prior, strength=1.0)
    for value in (0.6, 1.0, 5.0, 50.0):
        left = (1 - estimate.cdf(value)) / (1 - estimate.cdf(0.5))
        assert left == pytest.approx((1 - prior.cdf(value)) / (1 - prior.cdf(0.5)))


def test_nothing_seen_that_counts_leaves_the_prior():
    """The estimate from next to no weight is the prior at every quantile, tail and extremes included."""
    prior = builtin_profiles()["claude-haiku"].ttft
    estimate = product_limit([0.4], [False], [1e-12], prior, 32.0)
    grid = np.linspace(0.0, 1.0, 1001)
    assert estimate.quantile(grid) == pytest.approx(prior.quantile(grid), rel=1e-6)


def test_failures_are_mass_at_infinity():
    """Three failures in ten: seven quantiles in ten are finite, and the rest never come."""
    estimate = product_limit([*range(1, 8), math.inf, math.inf, math.inf], np.zeros(10))
    assert estimate.never == pytest.approx(0.3)
    assert estimate.quantile(0.69) == 7.0
    assert estimate.quantile(0.71) == math.inf
    assert estimate.mean == math.inf


def test_failures_outlast_those_that_were_cut_short():
    """Content at 1 and 3, cancelled at 2, one failure: 3/4 get past 1, and half of those past 3 for good."""
    estimate = product_limit([1.0, 2.0, 3.0, math.inf], [False, True, False, False])
    assert estimate.cdf([1.0, 2.5, 3.0]) == pytest.approx([1 / 4, 1 / 4, 1 - 3 / 4 * 1 / 2])
    assert estimate.never == pytest.approx(3 / 8)


def test_only_failures_are_a_service_that_never_answers():
    """Nothing ever came: every quantile above zero is infinite, with a prior nearly so."""
    assert product_limit([math.inf, math.inf], [False, False]).never == 1.0
    dead = product_limit(np.full(100, math.inf), np.zeros(100), prior=UNIFORM, strength=1.0)
    assert dead.never == pytest.approx(100 / 101)


@given(several, priors, st.floats(0.0, 40.0), shares)
def test_survival_never_rises_and_quantiles_never_fall(rows, prior, strength, probabilities):
    """Whatever was seen, cut short or never came: the result is a distribution."""
    values, censored, weights = columns(rows)
    estimate = product_limit(values, censored, weights, prior, strength)
    assert 0.0 <= estimate.never <= 1.0
    assert (estimate.probabilities[0], estimate.probabilities[-1]) == (0.0, 1.0)
    assert np.all(np.diff(estimate.probabilities) >= 0.0)
    assert np.all(np.diff(estimate.values) >= 0.0)
    assert all(low <= high for low, high in pairwise(estimate.quantile(probabilities)))


@given(several, priors, st.floats(0.0, 40.0))
def test_being_cut_short_never_makes_it_look_faster(rows, prior, strength):
    """At no value has a larger share come than if the moment of cancelling had been that of content."""
    values, censored, weights = columns(rows)
    honest = product_limit(values, censored, weights, prior, strength)
    hasty = product_limit(values, np.zeros(len(rows)), weights, prior, strength)
    grid = np.linspace(0.0, 101.0, 203)
    assert np.all(honest.cdf(grid) <= hasty.cdf(grid) + 1e-12)


@given(st.lists(st.tuples(st.integers(0, 20).map(float), st.booleans(), st.integers(1, 4)), min_size=1))
def test_a_weight_of_three_is_three_of_a_kind(rows):
    """Whole weights count like repetitions."""
    values, censored, weights = columns(rows)
    each_value, each_censored = np.repeat(values, weights), np.repeat(censored, weights)
    repeated = product_limit(each_value, each_censored, prior=UNIFORM, strength=1.0)
    weighted = product_limit(values, censored, weights, UNIFORM, 1.0)
    grid = np.linspace(-1.0, 21.0, 89)
    assert weighted.cdf(grid) == pytest.approx(repeated.cdf(grid))


@pytest.mark.parametrize("seed", range(8))
def test_races_against_a_device_hide_nothing(seed):
    """The device wins 70 % of the races; the server's P50 and P95 are found within 10 % all the same.

    Neither those that the server won alone nor the moments of cancelling give that.
    """
    server, rng = builtin_profiles()["claude-haiku"].ttft, np.random.default_rng(seed)
    ttft_s = server.sample(rng, 20_000)
    prompt_tokens = 300 * np.exp(1.5 * rng.standard_normal(20_000))
    device_s = prompt_tokens / 880 + 0.02
    lost = device_s < ttft_s
    assert lost.mean() == pytest.approx(0.7, abs=0.02)

    spans = np.minimum(ttft_s, device_s)
    truth = server.quantile([0.5, 0.95])
    found = product_limit(spans, lost).quantile([0.5, 0.95]) / truth
    assert found == pytest.approx([1.0, 1.0], abs=0.1)
    winners_alone = np.quantile(spans[~lost], [0.5, 0.95]) / truth
    taken_for_content = np.quantile(spans, [0.5, 0.95]) / truth
    assert np.all(winners_alone < [0.87, 0.8])
    assert np.all(taken_for_content < [0.6, 0.65])


def test_the_prior_fades_and_returns():
    """It counts for 32 observations at first, for 16 after 32, for one from 64 on; for more as they age."""
    learnt = LearntDistribution(UNIFORM, half_life_requests=1e9, half_life_s=3600.0)
    strengths = [learnt.prior_strength]
    for _ in range(80):
        learnt = learnt.observe(5.0, at_s=0.0)
        strengths.append(learnt.prior_strength)
    assert strengths[0] == 32.0
    assert strengths[32] == pytest.approx(16.0)
    assert strengths[64:] == [1.0] * 17
    assert learnt.as_of(2 * 3600.0).sample_size == pytest.approx(20.0)
    assert learnt.as_of(2 * 3600.0).prior_strength == pytest.approx(22.0)
    assert learnt.as_of(1e9).distribution is UNIFORM


def test_weights_halve_with_requests_and_with_time():
    """Three requests at a half-life of two and four hours at one of two leave 2^-1.5 x 2^-2."""
    learnt = LearntDistribution(UNIFORM, half_life_requests=2.0, half_life_s=7200.0)
    for _ in range(3):
        learnt = learnt.observe(1.0, at_s=0.0)
    learnt = learnt.observe(1.0, at_s=4 * 3600.0)
    assert learnt.weights == pytest.approx([2**-1.5 / 4, 2**-1 / 4, 2**-0.5 / 4, 1.0])
    assert learnt.sample_size == pytest.approx(1.0 + (2**-1.5 + 2**-1 + 2**-0.5) / 4)


def test_a_clock_that_is_set_back_forgets_nothing():
    """An observation from the future counts for as much as one of now."""
    learnt = LearntDistribution(UNIFORM).observe(1.0, at_s=1000.0).observe(1.0, at_s=10.0)
    assert learnt.newest_at_s == 1000.0
    assert np.all(learnt.weights <= 1.0)
    assert learnt.as_of(0.0) is learnt


def test_age_is_looked_at_only_when_it_matters():
    """A hundredth of a half-life later nothing is worked out anew; a day later it is."""
    learnt = LearntDistribution(UNIFORM, half_life_s=86_400.0).observe(1.0, at_s=0.0)
    assert LearntDistribution(UNIFORM).as_of(1e9).now_s is None
    assert learnt.as_of(600.0) is learnt
    assert learnt.as_of(86_400.0).weights == pytest.approx([0.5])
    assert learnt.as_of(86_400.0).as_of(86_700.0).now_s == 86_400.0


def test_only_the_latest_are_kept():
    """The oldest goes when a new one comes, so memory is bounded."""
    learnt = LearntDistribution(UNIFORM)
    for value in range(LATEST + 10):
        learnt = learnt.observe(value, at_s=value, censored=value % 2 == 0)
    assert len(learnt.seen) == LATEST
    assert learnt.seen.values.tolist() == list(range(10, LATEST + 10))
    assert learnt.seen.censored.tolist() == [True, False] * (LATEST // 2)
    assert learnt.seen.latest(2).values.tolist() == [LATEST + 8, LATEST + 9]
    assert len(learnt.seen.latest(10 * LATEST)) == LATEST


def test_what_is_learnt_replaces_a_wrong_prior():
    """After some hundred observations the prior's quantiles are gone, whatever they were."""
    rng = np.random.default_rng(3)
    learnt = LearntDistribution(builtin_profiles()["llama-2-70b-replicate"].ttft)
    for at_s, value in enumerate(rng.uniform(1.0, 2.0, 1000)):
        learnt = learnt.observe(float(value), float(at_s))
    found = learnt.distribution.quantile([0.05, 0.5, 0.95])
    assert found == pytest.approx([1.05, 1.5, 1.95], abs=0.06)
