"""Profiles learn from what happened, and forget."""

from __future__ import annotations

import numpy as np
import pytest

from discostream.core.distributions import Distribution
from discostream.core.profile import DeviceTtft, Lengths, ServerTtft


def test_device_learns_its_line():
    """After some dozens of requests, the fit is the device's own line, whatever was believed before."""
    ttft, rng = DeviceTtft.believed(0.1, 3.0, 1.0), np.random.default_rng(1)
    for tokens in rng.integers(10, 1000, 300):
        ttft = ttft.observe(int(tokens), 0.004 * tokens + 0.2)
    slope, constant = ttft.line()
    assert slope == pytest.approx(0.004, rel=0.01)
    assert constant == pytest.approx(0.2, abs=0.01)


def test_device_line_before_anything_was_seen():
    """The prior line is returned exactly, and its spread widens the upper quantiles."""
    ttft = DeviceTtft.believed(0.01, 0.5, 0.1)
    assert ttft.line() == pytest.approx((0.01, 0.5))
    assert ttft.quantile(100, 0.5) == pytest.approx(1.5)
    assert ttft.quantile(100, 0.9) == pytest.approx(1.5 + 1.2816 * 0.1, rel=1e-4)


def test_server_prior_fades():
    """What was seen outweighs the prior, and in the end replaces it."""
    ttft = ServerTtft(Distribution.of_samples([1.0]))
    assert ttft.quantile(50, 0.9) == pytest.approx(1.0)
    ttft = ttft.observe(50, 0.2)
    assert ttft.distribution.mean == pytest.approx((31.5 * 1.0 + 0.2) / 32.5, rel=0.01)
    for _ in range(100):
        ttft = ttft.observe(50, 0.2)
    assert ttft.quantile(50, 1.0) == pytest.approx(0.2)


def test_lengths_are_whole_tokens():
    """Prior and observations together are whole, positive token counts, sorted."""
    lengths = Lengths(Distribution.of_samples([0.2, 10.7])).observe(5)
    assert lengths.samples.min() >= 1.0
    assert np.all(lengths.samples == np.rint(lengths.samples))
    assert np.all(np.diff(lengths.samples) >= 0)
    assert 5.0 in lengths.samples
