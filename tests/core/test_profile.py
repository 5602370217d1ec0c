"""Profiles learn from what happened, and forget."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.builtin import builtin_output_lengths, builtin_profiles, builtin_prompt_lengths
from discostream.core.cost import Rates
from discostream.core.distributions import Distribution
from discostream.core.profile import (
    FINEST_S,
    FORGETTING,
    DeviceTtft,
    EndpointProfile,
    Lengths,
    ServerTtft,
    _with_one_more,
)
from discostream.types import Attempt, AttemptOutcome, Kind

ONE_SECOND = Distribution.of_samples([1.0])
UNIFORM = Distribution.of_table([0.0, 1.0], [0.0, 1000.0])


def an_attempt(kind=Kind.SERVER, **fields):
    settled = {
        "endpoint": "one",
        "kind": kind,
        "start_offset_s": 0.0,
        "ttft_s": None,
        "prompt_tokens": 100,
        "completion_tokens": 0,
        "usd": 0.0,
        "joules": 0.0,
        "outcome": AttemptOutcome.LOST,
    }
    return Attempt(**{**settled, **fields})


def a_server(**fields):
    return EndpointProfile("one", Kind.SERVER, Rates(0.0, 0.0), ServerTtft(ONE_SECOND), 50.0, **fields)


def a_device(**fields):
    ttft = DeviceTtft.believed(0.01, 0.1, 0.05)
    return EndpointProfile("one", Kind.DEVICE, Rates(0.0, 0.0), ttft, 50.0, **fields)


def fed(ttft, rng, count, *, s_per_token, constant_s, noise=0.05):
    """A device's TTFT after requests with the prompt lengths of conversations, and what was noticed when."""
    noticed = []
    tokens = np.maximum(np.rint(builtin_prompt_lengths().sample(rng, count)), 1)
    spans_s = (s_per_token * tokens + constant_s) * (1 + noise * rng.standard_normal(count))
    for index, (length, span_s) in enumerate(zip(tokens.tolist(), spans_s.tolist(), strict=True), start=1):
        before = ttft.changes
        ttft = ttft.observe(int(length), span_s)
        if ttft.changes > before:
            noticed.append(index)
    return ttft, noticed


def test_a_device_learns_its_line():
    """After some dozens of requests, the fit is the device's own line, whatever was believed before."""
    ttft, rng = DeviceTtft.believed(0.1, 3.0, 1.0), np.random.default_rng(1)
    for tokens in rng.integers(10, 1000, 300):
        ttft = ttft.observe(int(tokens), 0.004 * tokens + 0.2)
    slope, constant = ttft.line()
    assert slope == pytest.approx(0.004, rel=0.01)
    assert constant == pytest.approx(0.2, abs=0.01)


def test_a_devices_line_before_anything_was_seen():
    """The prior line is returned exactly, and its spread widens the upper quantiles."""
    ttft = DeviceTtft.believed(0.01, 0.5, 0.1)
    assert ttft.line() == pytest.approx((0.01, 0.5))
    assert ttft.spread_s == pytest.approx(0.1)
    assert ttft.quantile(100, 0.5) == pytest.approx(1.5)
    assert ttft.quantile(100, 0.9) == pytest.approx(1.5 + 1.2816 * 0.1, rel=1e-4)


def test_the_spread_is_learnt():
    """Residuals of 0.2 s make a spread of 0.2 s, however sure one was before."""
    ttft, rng = DeviceTtft.believed(0.01, 0.1, 0.0), np.random.default_rng(4)
    assert ttft.spread_s == FINEST_S
    for tokens in rng.integers(10, 1000, 600):
        ttft = ttft.observe(int(tokens), 0.01 * tokens + 1.0 + 0.2 * rng.standard_normal())
    assert ttft.spread_s == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_device_that_changes_is_followed_within_thirty_requests(factor):
    """Its power is cut to a third, or comes back: noticed soon, and by 30 requests the line is right."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        ttft, _ = fed(DeviceTtft.believed(0.01, 0.1, 0.1), rng, 300, s_per_token=0.0125, constant_s=0.2)
        after, constant = 0.0125 * factor, 0.2 * factor
        ttft, noticed = fed(ttft, rng, 30, s_per_token=after, constant_s=constant)
        assert noticed
        assert noticed[0] <= 15
        assert ttft.quantile(1000, 0.5) == pytest.approx(1000 * after + constant, rel=0.15)


def test_a_device_that_does_not_change_is_left_in_peace():
    """Five thousand requests with 5 % of noise and every thirtieth five times as slow: one line, no alarm."""
    rng = np.random.default_rng(3)
    ttft, _ = fed(DeviceTtft.believed(0.0125, 0.2, 0.1), rng, 100, s_per_token=0.0125, constant_s=0.2)
    known = ttft.changes
    for index, tokens in enumerate(builtin_prompt_lengths().sample(rng, 5000).tolist()):
        span_s = (0.0125 * tokens + 0.2) * (1 + 0.05 * rng.standard_normal())
        ttft = ttft.observe(int(tokens), 5 * span_s if index % 30 == 0 else span_s)
        assert ttft.quantile(1000, 0.5) == pytest.approx(12.7, rel=0.15)
    assert ttft.changes == known


def test_a_line_that_bends_is_no_change():
    """Attention makes the 2,000th token cost a quarter more than the first: no alarm in 2,000 requests."""
    rng = np.random.default_rng(7)
    ttft = DeviceTtft.believed(0.0125, 0.2, 0.1)
    for tokens in np.clip(builtin_prompt_lengths().sample(rng, 2000), 1, 2000).tolist():
        ttft = ttft.observe(int(tokens), 0.0125 * tokens * (1 + tokens / 16_000) + 0.2)
    assert ttft.changes == 0


def test_a_slope_that_is_not_asked_about_is_kept():
    """Ten thousand prompts of one length: the device is followed there, and its slope is not forgotten."""
    rng = np.random.default_rng(6)
    ttft, _ = fed(DeviceTtft.believed(0.01, 0.1, 0.1), rng, 400, s_per_token=0.0125, constant_s=0.2)
    slope, _ = ttft.line()
    for _ in range(10_000):
        ttft = ttft.observe(500, 6.6 * (1 + 0.05 * rng.standard_normal()))
    assert ttft.line()[0] == pytest.approx(slope, rel=0.1)
    assert ttft.quantile(500, 0.5) == pytest.approx(6.6, rel=0.02)


def test_the_fit_is_sound_after_a_million_observations():
    """The normal equations stay bounded and well-conditioned, whether prompts are all alike or never."""
    information, rng = DeviceTtft.believed(0.01, 0.1, 0.1).information, np.random.default_rng(8)
    for tokens in (14_000, None, 1, None, 700):
        lengths = rng.integers(1, 14_000, 200_000) if tokens is None else np.full(200_000, tokens)
        for length in lengths.tolist():
            information = _with_one_more(information, length)
        squared, first, ones = information
        assert ones == pytest.approx(1 + 1 / (1 - FORGETTING))
        assert squared <= ones * 14_000**2
        assert squared * ones - first**2 > 1e-3 * squared * ones


@given(
    st.lists(
        st.tuples(st.integers(0, 30_000), st.floats(0.0, 600.0), st.integers(1, 40)), min_size=1, max_size=30
    )
)
def test_no_history_breaks_the_fit(history):
    """Whatever came, however often: a finite line that never falls, and a spread above none."""
    ttft = DeviceTtft.believed(0.01, 0.1, 0.1)
    for tokens, seconds, times in history:
        for _ in range(times):
            ttft = ttft.observe(tokens, seconds)
    slope, constant = ttft.line()
    assert 0.0 <= slope < 1e6
    assert 0.0 <= constant < 1e6
    assert FINEST_S <= ttft.spread_s < 1e6
    assert ttft.quantile(30_000, 0.9) >= ttft.quantile(0, 0.9) >= 0.0


def test_a_line_that_would_fall_is_level():
    """Short prompts took long and long ones short: the best line that does not fall is their mean."""
    ttft = DeviceTtft.believed(0.0, 1.0, 0.3)
    for _ in range(400):
        ttft = ttft.observe(100, 1.2).observe(1000, 0.8)
    assert ttft.slope < 0.0
    assert ttft.line() == (0.0, pytest.approx(1.0, abs=0.02))


def test_a_line_that_would_start_below_nothing_starts_at_nothing():
    """A constant below zero is cut off, and the slope is the best one without it."""
    ttft = DeviceTtft.believed(0.01, 0.0, 0.3)
    for _ in range(400):
        ttft = ttft.observe(100, 0.5).observe(1000, 10.0)
    slope, constant = ttft.line()
    assert ttft.constant < 0.0
    assert constant == 0.0
    assert slope == pytest.approx((100 * 0.5 + 1000 * 10.0) / (100**2 + 1000**2), rel=0.01)


def test_a_servers_prior_fades():
    """What was seen outweighs the prior, and in the end all but replaces it."""
    ttft = ServerTtft(ONE_SECOND)
    assert ttft.quantile(50, 0.9) == pytest.approx(1.0)
    ttft = ttft.observe(0.2, at_s=0.0)
    assert ttft.distribution.mean == pytest.approx((31.5 * 1.0 + 0.2) / 32.5, rel=1e-6)
    for _ in range(100):
        ttft = ttft.observe(0.2, at_s=0.0)
    assert ttft.quantile(50, 0.98) == pytest.approx(0.2)


def test_a_server_is_known_by_the_races_it_loses():
    """The device wins 70 % of the races; what profiles have learnt of P50 and P95 is right within 10 %.

    That is the middle of a dozen histories of a thousand races, which begin with another service's profile.
    Those that the server won alone would put P95 a fifth too low.
    """
    server, prior = builtin_profiles()["claude-haiku"].ttft, builtin_profiles()["azure-gpt-4o"].ttft
    truth, found, naive = server.quantile([0.5, 0.95]), [], []
    for seed in range(12):
        rng, won = np.random.default_rng(seed), []
        profile = EndpointProfile("one", Kind.SERVER, Rates(0.0, 0.0), ServerTtft(prior), 50.0)
        spans_s = server.sample(rng, 1000).tolist()
        device_s = (300 * np.exp(1.5 * rng.standard_normal(1000)) / 880 + 0.02).tolist()
        for at_s, (span_s, limit_s) in enumerate(zip(spans_s, device_s, strict=True)):
            lost = limit_s < span_s
            attempt = an_attempt(ttft_s=None if lost else span_s, ran_s=limit_s if lost else 9.0)
            profile = profile.observe(attempt, float(at_s))
            won += [] if lost else [span_s]
        found.append(profile.ttft.distribution.quantile([0.5, 0.95]) / truth)
        naive.append(np.quantile(won, [0.5, 0.95]) / truth)
    assert np.median(found, axis=0) == pytest.approx([1.0, 1.0], abs=0.1)
    assert np.all(np.median(naive, axis=0) < [0.87, 0.8])


def test_what_an_attempt_tells_of_a_server():
    """Content: its own span. Cancelled: more than that. Failed: never. Not started or at fault: nothing."""
    told = {
        "content": an_attempt(ttft_s=1.75, start_offset_s=0.5, ran_s=4.0),
        "broke later": an_attempt(ttft_s=1.75, start_offset_s=0.5, ran_s=4.0, error="broke"),
        "cancelled": an_attempt(start_offset_s=0.5, ran_s=0.75),
        "failed": an_attempt(ran_s=0.1, error="overloaded", outcome=AttemptOutcome.FAILED),
        "refused for what it said": an_attempt(ran_s=None, error="too long", outcome=AttemptOutcome.FAILED),
        "never started": an_attempt(outcome=AttemptOutcome.NOT_STARTED, start_offset_s=9.0),
    }
    seen = {name: a_server().observe(attempt, 7.0).ttft.seen for name, attempt in told.items()}
    assert {name: rows.rows.T.tolist() for name, rows in seen.items()} == {
        "content": [[1.25, 7.0, 0.0]],
        "broke later": [[1.25, 7.0, 0.0]],
        "cancelled": [[0.75, 7.0, 1.0]],
        "failed": [[math.inf, 7.0, 0.0]],
        "refused for what it said": [],
        "never started": [],
    }


def test_what_an_attempt_tells_of_a_device():
    """Its line learns from content alone, over the tokens that had to be prefilled."""
    device = a_device()
    content = an_attempt(Kind.DEVICE, ttft_s=3.0, start_offset_s=0.5, prompt_tokens=300, cached_tokens=60)
    assert device.observe(content, 7.0).ttft == device.ttft.observe(240, 2.5)
    uncounted = an_attempt(Kind.DEVICE, ttft_s=3.0, prompt_tokens=300)
    assert device.observe(uncounted, 7.0).ttft == device.ttft.observe(300, 3.0)
    for silent in (
        an_attempt(Kind.DEVICE, ran_s=0.5),
        an_attempt(Kind.DEVICE, ran_s=0.5, error="crashed"),
        an_attempt(Kind.DEVICE),
    ):
        assert device.observe(silent, 7.0) == device


@pytest.mark.parametrize("profile", [a_device(slots=2, service_s=3.0), a_server(slots=2, service_s=3.0)])
def test_an_attempt_that_queued_tells_only_its_pace(profile):
    """With both slots taken when it started, its wait was the others' doing."""
    queued = an_attempt(profile.kind, ttft_s=9.0, ran_s=20.0, ahead=2, mean_tbt_s=0.05)
    after = profile.observe(queued, 7.0)
    assert (after.ttft, after.service_s) == (profile.ttft, 3.0)
    assert after.decode_tokens_per_s < 50.0
    free = an_attempt(profile.kind, ttft_s=9.0, ran_s=20.0, ahead=1)
    assert profile.observe(free, 7.0).ttft != profile.ttft


def test_a_wait_is_expected_once_the_slots_are_taken():
    """With two slots and 3 s each: none for two, then 1.5 s for each that must end before."""
    profile = a_device(slots=2, service_s=3.0)
    assert [profile.wait_s(running) for running in range(5)] == [0.0, 0.0, 1.5, 3.0, 4.5]
    assert a_device(slots=2).wait_s(9) == 0.0
    assert a_device(service_s=3.0).wait_s(9) == 0.0


def test_service_times_and_pace_are_learnt():
    """The first service time is taken as it is, further ones and paces count for a tenth each."""
    profile = a_device().observe(an_attempt(Kind.DEVICE, ttft_s=1.0, ran_s=4.0, mean_tbt_s=0.03), 7.0)
    assert profile.service_s == 4.0
    assert profile.decode_tokens_per_s == pytest.approx(1 / (0.9 / 50 + 0.1 * 0.03))
    profile = profile.observe(an_attempt(Kind.DEVICE, ttft_s=1.0, ran_s=6.0), 7.0)
    assert profile.service_s == pytest.approx(0.9 * 4.0 + 0.1 * 6.0)
    assert profile.observe(an_attempt(Kind.DEVICE, ran_s=0.1), 7.0).service_s == profile.service_s


def test_changes_show_in_the_endpoints_profile():
    """The counter rises with each change of its TTFT, so that plans can follow at once."""
    for profile in (a_server(), a_device()):
        assert profile.changes == 0
        for _ in range(40):
            profile = profile.observe(an_attempt(profile.kind, ttft_s=30.0, ran_s=31.0), 7.0)
        assert profile.changes >= 1


@pytest.mark.parametrize("kind", list(Kind))
def test_memory_is_bounded(kind):
    """A profile is no larger after 12,000 requests, and dozens of changes, than it can be after 4,000."""
    profile = a_server() if kind is Kind.SERVER else a_device()
    rng, sizes = np.random.default_rng(9), []
    for count in range(12_000):
        level = 3.0 if count // 200 % 2 else 1.0
        span_s = level * float(rng.lognormal(0.0, 0.3))
        profile = profile.observe(an_attempt(kind, ttft_s=span_s, ran_s=9.0, mean_tbt_s=0.02), float(count))
        sizes.append(len(pickle.dumps(profile)) if count % 500 == 499 else 0)
    assert profile.changes > 40
    assert max(sizes[8000:]) <= 1.2 * max(sizes[:4000])


def test_lengths_stand_ins_are_whole_tokens():
    """Prior and observations together are whole, positive token counts, sorted."""
    lengths = Lengths(Distribution.of_samples([0.2, 10.7])).observe(5, at_s=0.0)
    assert lengths.samples.min() >= 1.0
    assert np.all(lengths.samples == np.rint(lengths.samples))
    assert np.all(np.diff(lengths.samples) >= 0)
    assert 5.0 in lengths.samples
    assert Lengths(builtin_prompt_lengths()).samples.mean() == pytest.approx(
        builtin_prompt_lengths().mean, rel=0.01
    )


def test_lengths_follow_what_is_sent():
    """Prompts ten times as long as believed: after some hundred the distribution is theirs."""
    lengths, rng = Lengths(builtin_prompt_lengths()), np.random.default_rng(2)
    longer = builtin_prompt_lengths().scaled(10.0)
    for at_s, tokens in enumerate(longer.sample(rng, 1000).tolist()):
        lengths = lengths.observe(round(tokens), float(at_s))
    assert np.median(lengths.samples) == pytest.approx(longer.quantile(0.5), rel=0.15)
    assert lengths.samples.mean() == pytest.approx(longer.mean, rel=0.1)


def test_what_is_left_of_an_answer():
    """Of U(0, 1000): after 400 tokens, 300 are expected; at most 600 in all leave 200 x 2/3 + 100 / 3."""
    lengths = Lengths(UNIFORM)
    assert lengths.remaining(400) == pytest.approx(300.0)
    assert lengths.remaining(400, max_tokens=600) == pytest.approx(200 * 2 / 3 + 100 / 3)
    assert lengths.remaining(400, max_tokens=400) == 0.0
    assert lengths.remaining(1200) == 0.0


def test_an_answer_that_was_cut_off_was_longer():
    """Every answer is cut at 200 tokens: their lengths beyond are believed as before, not taken for 200."""
    believed = builtin_output_lengths()
    honest = hasty = Lengths(believed)
    for at_s, tokens in enumerate(believed.sample(np.random.default_rng(5), 800).tolist()):
        cut = tokens > 200
        honest = honest.observe(round(min(tokens, 200)), float(at_s), censored=cut)
        hasty = hasty.observe(round(min(tokens, 200)), float(at_s))
    assert honest.remaining(100) == pytest.approx(believed.mean_residual(100), rel=0.1)
    assert honest.remaining(100, max_tokens=200) == pytest.approx(hasty.remaining(100), rel=0.1)
    assert hasty.remaining(100) < 0.5 * honest.remaining(100)
