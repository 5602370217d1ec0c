from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.core.distributions import Distribution

samples = st.lists(st.integers(0, 10**9).map(lambda micros: micros / 1e5), min_size=1, max_size=50)
shares = st.floats(0.0, 1.0)

UNIFORM = Distribution.of_table([0.0, 1.0], [0.0, 10.0])


def exponential(mean: float, knots: int = 200_001) -> Distribution:
    """An exponential distribution cut where one in a hundred million lies beyond."""
    probabilities = np.linspace(0.0, 1.0, knots)
    heights = -mean * np.log1p(-np.minimum(probabilities, 1.0 - 1e-8))
    return Distribution.of_table(probabilities.tolist(), heights.tolist())


def test_a_uniform_table_is_a_straight_line():
    """Quantile, share, mean and what is left of U(0, 10) are its textbook values."""
    assert UNIFORM.quantile(0.3) == 3.0
    assert UNIFORM.cdf(2.5) == 0.25
    assert UNIFORM.mean == 5.0
    assert UNIFORM.mean_residual(4.0) == pytest.approx(3.0)


def test_values_and_arrays_are_answered_alike():
    """An array of any shape comes back in its own shape."""
    grid = np.array([[0.0, 0.25], [0.5, 1.0]])
    assert UNIFORM.quantile(grid).tolist() == [[0.0, 2.5], [5.0, 10.0]]
    assert UNIFORM.cdf(grid * 10).tolist() == grid.tolist()


def test_outside_the_support_nothing_or_everything_lies_below():
    """The share is 0 before the least value and 1 after the greatest."""
    assert UNIFORM.cdf([-1.0, 11.0]).tolist() == [0.0, 1.0]
    assert Distribution.of_samples([5.0]).cdf([4.9, 5.0, 5.1]).tolist() == [0.0, 1.0, 1.0]


def test_an_exponential_has_its_closed_forms():
    """Mean m, median m ln 2, and no memory: what is left is m wherever one stands."""
    distribution = exponential(2.0)
    assert distribution.mean == pytest.approx(2.0, rel=1e-4)
    assert distribution.quantile(0.5) == pytest.approx(2.0 * math.log(2.0), rel=1e-6)
    assert distribution.cdf(3.0) == pytest.approx(1.0 - math.exp(-1.5), rel=1e-6)
    for reached in (0.5, 2.0, 5.0):
        assert distribution.mean_residual(reached) == pytest.approx(2.0, rel=2e-3)


def test_the_least_of_two_exponentials_is_exponential_again():
    """Racing means of 2 s and 3 s gives a mean of 1/(1/2 + 1/3) = 1.2 s."""
    rng = np.random.default_rng(1)
    race = np.minimum(exponential(2.0).sample(rng, 100_000), exponential(3.0).sample(rng, 100_000))
    assert race.mean() == pytest.approx(1.2, rel=0.01)


@given(samples, shares)
def test_empirical_quantiles_are_hazens(values, share):
    """`of_samples` puts a sample in the middle of its share, which is Hazen's definition."""
    expected = np.quantile(values, share, method="hazen")
    assert Distribution.of_samples(values).quantile(share) == pytest.approx(expected, abs=1e-6)


@given(samples, shares)
def test_share_and_quantile_undo_each_other(values, share):
    """Going from a value to its share and back ends at the same value, atoms included."""
    distribution = Distribution.of_samples(values)
    reached = distribution.quantile(share)
    assert distribution.quantile(distribution.cdf(reached)) == pytest.approx(reached, abs=1e-6)


@given(samples, st.floats(-10.0, 2e4), st.floats(0.0, 100.0))
def test_the_share_never_falls(values, value, more):
    """F is monotone and stays in [0, 1]."""
    distribution = Distribution.of_samples(values)
    assert 0.0 <= distribution.cdf(value) <= distribution.cdf(value + more) <= 1.0


def test_an_atom_counts_in_full_at_its_value():
    """Three of five samples are 2: the share jumps there from 0.3 to 0.7, the middles of first and last."""
    distribution = Distribution.of_samples([1.0, 2.0, 2.0, 2.0, 3.0])
    assert distribution.cdf(2.0) == pytest.approx(0.7)
    assert distribution.cdf(np.nextafter(2.0, 0.0)) == pytest.approx(0.3)
    assert distribution.quantile([0.3, 0.5, 0.7]).tolist() == [2.0, 2.0, 2.0]


def test_what_is_left_before_the_support_is_the_way_there_and_the_mean():
    """Having reached -1 of U(0, 10), 6 are to be expected still."""
    assert UNIFORM.mean_residual(-1.0) == pytest.approx(6.0)
    assert UNIFORM.mean_residual(0.0) == pytest.approx(5.0)


def test_nothing_is_left_beyond_the_greatest_value():
    """Past everything ever seen, no more is expected; never a negative amount."""
    assert UNIFORM.mean_residual(10.0) == 0.0
    assert UNIFORM.mean_residual(99.0) == 0.0


@given(samples, st.floats(0.0, 1e4))
def test_what_is_left_is_never_negative(values, reached):
    """The expectation of a positive amount is one."""
    assert Distribution.of_samples(values).mean_residual(reached) >= -1e-6


def test_samples_have_the_distribution_they_are_drawn_from():
    """100,000 draws agree with the mean within four standard errors, and with the seed exactly."""
    drawn = UNIFORM.sample(np.random.default_rng(7), 100_000)
    assert drawn.mean() == pytest.approx(5.0, abs=4 * (10 / math.sqrt(12)) / math.sqrt(100_000))
    assert drawn[0] == UNIFORM.sample(np.random.default_rng(7))


def test_no_samples_are_no_distribution():
    """There is no quantile of nothing."""
    with pytest.raises(ValueError, match="at least one sample"):
        Distribution.of_samples([])


@pytest.mark.parametrize(
    ("probabilities", "values"),
    [
        ([0.0, 1.0], [1.0]),
        ([0.0], [1.0]),
        ([0.1, 1.0], [1.0, 2.0]),
        ([0.0, 0.9], [1.0, 2.0]),
        ([0.0, 0.5, 0.5, 1.0], [1.0, 2.0, 3.0, 4.0]),
        ([0.0, 0.5, 1.0], [1.0, 3.0, 2.0]),
    ],
)
def test_a_table_that_is_no_quantile_function_is_refused(probabilities, values):
    """Probabilities rise from 0 to 1, values never fall, and there are as many of both."""
    with pytest.raises(ValueError, match="quantile table"):
        Distribution.of_table(probabilities, values)


@given(samples)
def test_the_mean_is_the_samples_mean(values):
    """Cutting a distribution out of samples does not move its mean, however heavy the tail."""
    assert Distribution.of_samples(values).mean == pytest.approx(np.mean(values), abs=1e-6)


def test_weights_move_the_middle():
    """The median lies with the heavier sample; equal weights are as good as none."""
    assert Distribution.of_samples([4.0, 1.0], [1.0, 9.0]).quantile(0.5) < 1.5
    equal = Distribution.of_samples([4.0, 1.0, 2.0], [3.0, 3.0, 3.0])
    assert equal.values.tolist() == Distribution.of_samples([1.0, 2.0, 4.0]).values.tolist()


def test_what_is_no_number_is_refused():
    """A sample that is not a number would poison every quantile."""
    with pytest.raises(ValueError, match="numbers only"):
        Distribution.of_samples([1.0, math.nan])


def test_what_never_comes_lies_at_infinity():
    """Of four samples one is infinite: quantiles beyond three quarters are, and so is the mean."""
    distribution = Distribution.of_samples([1.0, math.inf, 2.0, 3.0])
    assert distribution.never == 0.25
    assert distribution.quantile([0.375, 0.75, 0.76]).tolist() == [2.0, 3.0, math.inf]
    assert distribution.cdf([3.0, math.inf]).tolist() == [0.75, 0.75]
    assert distribution.mean == math.inf
    assert distribution.mean_residual(2.0) == pytest.approx(
        Distribution.of_samples([1, 2, 3]).mean_residual(2.0)
    )


def test_nothing_that_ever_comes_is_a_distribution_too():
    """Only failures were seen: every share above none lies at infinity."""
    distribution = Distribution.of_samples([math.inf, math.inf])
    assert (distribution.never, distribution.cdf(1e9)) == (1.0, 0.0)
    assert distribution.quantile([0.1, 1.0]).tolist() == [math.inf, math.inf]


def test_what_is_left_can_be_capped():
    """Having reached 4 of U(0, 10), at most up to 8: (4 + 8)/2 - 4 = 2 for two in three, 4 for the third."""
    assert UNIFORM.mean_residual(4.0, up_to=8.0) == pytest.approx(2 / 3 * 2.0 + 1 / 3 * 4.0)
    assert UNIFORM.mean_residual(4.0, up_to=99.0) == pytest.approx(3.0)
    assert UNIFORM.mean_residual(4.0, up_to=4.0) == 0.0
    assert UNIFORM.mean_residual(-2.0, up_to=-1.0) == pytest.approx(1.0)


@given(samples, st.floats(0.0, 1e4), st.floats(0.0, 1e4), st.floats(0.0, 1e4))
def test_a_higher_cap_never_leaves_less(values, reached, cap, more):
    """What is left grows with the cap, from nothing to all there is, and never past the cap."""
    distribution = Distribution.of_samples(values)
    capped = distribution.mean_residual(reached, up_to=cap)
    assert -1e-6 <= capped <= max(cap - reached, 0.0) + 1e-6
    assert capped <= distribution.mean_residual(reached, up_to=cap + more) + 1e-6
    assert distribution.mean_residual(reached, up_to=1e5) == pytest.approx(
        distribution.mean_residual(reached)
    )


@given(st.lists(st.integers(0, 9) | st.integers(0, 10**6), min_size=1, max_size=20), st.data())
def test_nowhere_is_more_left_than_the_most(values, data):
    """Wherever one stands, on a value that is there many times or between two, and whatever the cap."""
    distribution = Distribution.of_samples(values)
    reached = data.draw(st.sampled_from(values) | st.floats(0.0, 2e6))
    cap = data.draw(st.just(math.inf) | st.floats(0.0, 2e6))
    assert distribution.mean_residual(reached, cap) <= distribution.longest_residual * (1 + 1e-9)


def test_what_is_left_leaps_over_a_gap():
    """Nothing lies between two atoms: past the first, the second is to be expected."""
    atoms = Distribution(np.array([0.0, 0.5, 0.5, 1.0]), np.array([1.0, 1.0, 3.0, 3.0]))
    assert atoms.mean_residual(1.0) == pytest.approx(2.0)
    assert atoms.mean_residual(2.0) == pytest.approx(1.0)
    assert atoms.mean_residual(2.0, up_to=2.5) == pytest.approx(0.5)
    assert atoms.mean_residual(2.0, up_to=3.0) == pytest.approx(1.0)


def test_scaled_is_the_distribution_of_so_many_times_as_much():
    """Quantiles and mean are stretched; the share that never comes is not."""
    distribution = Distribution.of_samples([1.0, 2.0, 3.0, math.inf]).scaled(3.0)
    assert distribution.quantile(0.375) == pytest.approx(6.0)
    assert distribution.never == 0.25
    assert UNIFORM.scaled(0.5).mean == 2.5


def test_thinned_keeps_the_middle_and_the_tails():
    """A hundred thousand knots become some hundred; quantiles to 1 in 10,000 and the mean stay."""
    rng = np.random.default_rng(5)
    thick = Distribution.of_samples(rng.lognormal(0.0, 1.0, 100_000))
    thin = thick.thinned()
    assert thin.probabilities.size < 300
    shares = np.array([1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
    assert thin.quantile(shares) == pytest.approx(thick.quantile(shares), rel=0.02)
    assert thin.quantile([0.0, 1.0]).tolist() == thick.quantile([0.0, 1.0]).tolist()
    assert thin.mean == pytest.approx(thick.mean, rel=1e-3)
    assert UNIFORM.thinned() is UNIFORM
