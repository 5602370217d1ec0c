from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.errors import ConfigError
from discostream.sim.arrivals import ArrivalKind, Arrivals, sample
from discostream.traces.workloads import Workload

NONE, TRACE = Arrivals(ArrivalKind.NONE), Arrivals(ArrivalKind.TRACE)


@pytest.mark.parametrize(
    ("text", "arrivals"),
    [("trace", TRACE), ("none", NONE), ("poisson:0.5", Arrivals(ArrivalKind.POISSON, 0.5))],
)
def test_arrivals_that_can_be_asked_for(text, arrivals):
    """Three words, one of them with a rate."""
    assert Arrivals.parse(text) == arrivals


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("", "must be trace, none, or poisson:RATE, as in poisson:0.5"),
        ("traces", "must be trace, none, or poisson:RATE"),
        ("poisson", "must be trace, none, or poisson:RATE"),
        ("none:2", "must be trace, none, or poisson:RATE"),
        ("poisson:", "the rate must be a number above zero"),
        ("poisson:fast", "the rate must be a number above zero"),
        ("poisson:0", "the rate must be a number above zero"),
        ("poisson:-1", "the rate must be a number above zero"),
        ("poisson:inf", "the rate must be a number above zero"),
        ("poisson:nan", "the rate must be a number above zero"),
    ],
)
def test_other_arrivals_are_refused(text, fix):
    """The error names the field, the value and the fix."""
    with pytest.raises(ConfigError, match=f"--arrivals '{text}': {fix}"):
        Arrivals.parse(text)


# Sampling


def numbered(rows, arrived_at_s=None):
    """A workload whose rows can be told apart by any column."""
    lengths = np.arange(rows) + 1.0
    return Workload("w", lengths, lengths + 1000, arrived_at_s, lengths / 2)


@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 5))
def test_a_sample_keeps_rows_together(rows, requests, seed):
    """A prompt comes with its own answer and cache; no row twice where there are enough of them."""
    drawn = sample(numbered(rows), requests, NONE, np.random.default_rng(seed))
    assert drawn.prompt_tokens.size == requests
    assert np.array_equal(drawn.output_tokens, drawn.prompt_tokens + 1000)
    assert np.array_equal(drawn.cached_tokens, drawn.prompt_tokens / 2)
    assert drawn.arrived_at_s is None
    if requests <= rows:
        assert np.unique(drawn.prompt_tokens).size == requests


def test_a_sample_has_the_mean_of_its_workload():
    """200,000 draws from 1,000 rows: the mean to four standard errors, and every row about 200 times."""
    workload = numbered(1000)
    drawn = sample(workload, 200_000, NONE, np.random.default_rng(7)).prompt_tokens
    error = workload.prompt_tokens.std() / np.sqrt(drawn.size)
    assert drawn.mean() == pytest.approx(workload.prompt_tokens.mean(), abs=4 * error)
    assert np.unique(drawn, return_counts=True)[1] == pytest.approx(np.full(1000, 200), abs=5 * np.sqrt(200))


def test_a_sample_is_fixed_by_its_seed():
    """The same generator state gives the same requests; another gives others."""
    first, again, other = (
        sample(numbered(50), 30, Arrivals.parse("poisson:2"), np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first.prompt_tokens, again.prompt_tokens)
    assert np.array_equal(first.arrived_at_s, again.arrived_at_s)
    assert not np.array_equal(first.prompt_tokens, other.prompt_tokens)


@pytest.mark.parametrize("rate_per_s", [0.02, 5.0, 300.0])
def test_poisson_arrivals_have_their_rate(rate_per_s):
    """Gaps average 1 / rate and vary as much, to four standard errors; a fifth is longer than ln 5 / rate."""
    requests = 100_000
    arrivals = Arrivals(ArrivalKind.POISSON, rate_per_s)
    drawn = sample(numbered(10), requests, arrivals, np.random.default_rng(11))
    gaps = np.diff(drawn.arrived_at_s, prepend=0.0) * rate_per_s
    assert np.all(gaps > 0)
    assert gaps.mean() == pytest.approx(1.0, abs=4 / np.sqrt(requests))
    assert gaps.std() == pytest.approx(1.0, abs=4 * np.sqrt(2 / requests))
    assert np.mean(gaps > np.log(5.0)) == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / requests))


@given(
    st.lists(st.floats(0.0, 100.0), min_size=2, max_size=20).map(sorted),
    st.integers(1, 100),
    st.integers(0, 5),
)
def test_recorded_arrivals_go_on_end_to_end(arrived_at_s, requests, seed):
    """A stretch keeps its rows, gaps and bursts; at the end it begins anew, a mean gap after the last row."""
    workload = numbered(len(arrived_at_s), np.array(arrived_at_s))
    drawn = sample(workload, requests, TRACE, np.random.default_rng(seed))
    assert drawn.arrived_at_s[0] == 0.0
    row = drawn.prompt_tokens.astype(int) - 1
    assert np.array_equal(np.diff(row) % len(workload), np.full(requests - 1, 1 % len(workload)))
    gaps = np.diff(workload.arrived_at_s)
    gap_after = np.append(gaps, gaps.mean())
    assert np.diff(drawn.arrived_at_s) == pytest.approx(gap_after[row[:-1]], abs=1e-9)


def test_recorded_arrivals_begin_anywhere():
    """Seeds begin at different rows, so that they differ where there is one recording only."""
    workload = numbered(100, np.arange(100.0))
    starts = {sample(workload, 1, TRACE, np.random.default_rng(seed)).prompt_tokens[0] for seed in range(20)}
    assert len(starts) > 10


@pytest.mark.parametrize("workload", [numbered(5), numbered(1, np.zeros(1))])
def test_arrivals_that_were_not_recorded_are_refused(workload):
    """A workload without arrival times, or with one row, has no arrivals to replay."""
    with pytest.raises(
        ConfigError, match=r"--arrivals trace: workload 'w' .*does not say.*poisson:RATE or none"
    ):
        sample(workload, 3, TRACE, np.random.default_rng(0))


def test_no_requests_are_refused():
    """At least one request is drawn."""
    with pytest.raises(ConfigError, match="--requests 0: must be at least 1"):
        sample(numbered(5), 0, NONE, np.random.default_rng(0))
