"""Budgets: calendars, bounds on prompts, and what allowances answer to."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.config import settings_from
from discostream.core.budget import (
    HORIZON_REQUESTS,
    MESSAGE_TOKENS,
    MOST_TIMES,
    POLICY_SHARE,
    TEMPLATE_TOKENS,
    Budget,
    Resource,
    Window,
    allowed_per_request,
    allowed_share,
    arrivals_per_s,
    budgets_from,
    may_start_at_once,
    most_prompt_tokens,
)
from discostream.errors import ConfigError
from discostream.types import Feature, Kind, Message, Prefix, Request

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [
    "Europe/Berlin",
    "America/Havana",  # clocks change at midnight
    "Africa/Cairo",  # and so they do here, forwards
    "Asia/Kathmandu",  # a quarter of an hour off
    "Pacific/Apia",  # had no 30 December 2011
    "UTC",
]
MOMENTS = st.integers(
    int(datetime(2010, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2030, 1, 1, tzinfo=UTC).timestamp())
)


@pytest.mark.parametrize(
    ("window", "start", "renewal"),
    [
        ("hour", "2026-10-25T13:00:00+01:00", "2026-10-25T14:00:00+01:00"),
        ("day", "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00"),
        ("month", "2026-10-01T00:00:00+02:00", "2026-11-01T00:00:00+01:00"),
    ],
)
def test_windows_follow_the_local_calendar(window, start, renewal):
    """Hours, midnights and firsts of the month are local ones, also on a day of 25 hours."""
    at = datetime(2026, 10, 25, 13, 37, 5, 6, tzinfo=BERLIN)
    assert Window(window).start(at).isoformat() == start
    assert Window(window).renewal(at).isoformat() == renewal


@pytest.mark.parametrize(
    ("month", "days"), [("2026-01-31", 31), ("2026-02-10", 28), ("2028-02-29", 29), ("2026-12-01", 31)]
)
def test_months_have_their_own_lengths(month, days):
    """A month renews on the first of the next, however many days it has."""
    at = datetime.fromisoformat(month).replace(hour=9, tzinfo=UTC)
    assert Window.MONTH.renewal(at) - Window.MONTH.start(at) == timedelta(days=days)
    assert Window.MONTH.renewal(at).day == 1


@given(st.sampled_from(ZONES), MOMENTS, st.sampled_from(Window))
def test_every_moment_is_in_one_window(zone, timestamp, window):
    """A window has begun, is not over, and the next begins where it ends, whatever clocks do."""
    at = datetime.fromtimestamp(timestamp, ZoneInfo(zone))
    start, renewal = window.start(at), window.renewal(at)
    assert start.timestamp() <= timestamp < renewal.timestamp()
    assert window.start(renewal).timestamp() == renewal.timestamp()
    assert window.start(start).timestamp() == start.timestamp()


def test_an_hour_that_comes_twice_is_two_windows():
    """When clocks are put back, the hour between two and three is had twice, and budgeted twice."""
    first = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)
    second = first.replace(fold=1)
    assert Window.HOUR.renewal(first).timestamp() == Window.HOUR.start(second).timestamp()


def test_a_half_hour_shift_leaves_windows_sane():
    """Where clocks move by half an hour, a moment is still in a window of an hour."""
    zone = ZoneInfo("Australia/Lord_Howe")
    for minutes in range(0, 600, 7):
        at = datetime(2026, 4, 4, 12, tzinfo=UTC) + timedelta(minutes=minutes)
        start, renewal = Window.HOUR.start(at.astimezone(zone)), Window.HOUR.renewal(at.astimezone(zone))
        assert start.timestamp() <= at.timestamp() < renewal.timestamp()
        assert renewal.timestamp() - start.timestamp() == 3600


PAIR = [
    {"name": "laptop", "kind": "device", "dialect": "scripted"},
    {"name": "cloud", "kind": "server", "dialect": "scripted"},
]


def budgets(*tables, battery_wh=None, endpoints=PAIR, **settings):
    tree = {"endpoint": endpoints, "budget": list(tables), **settings}
    return budgets_from(settings_from(tree), battery_wh)


def test_the_papers_share_is_a_soft_budget_of_the_constrained_kind():
    """Without any table the share is one half; what is stated stands, and waits for prices to say whose."""
    assert budgets() == (Budget(name=POLICY_SHARE, resource=Resource.SHARE, amount=0.5),)
    (stated,) = budgets(policy={"share": 0.2, "constraint": "device"})
    assert (stated.amount, stated.kind, stated.hard) == (0.2, Kind.DEVICE, False)


def test_a_share_needs_both_kinds():
    """With one kind of endpoint there is nothing to take a share of."""
    assert budgets(endpoints=PAIR[:1]) == ()


def test_tables_become_budgets():
    """Every amount has its resource, window, kind and mode; a name is made from what it says."""
    made = budgets(
        {"usd": 2, "per": "day", "mode": "hard"},
        {"share": 0.3, "of": "server"},
        {"joules": 5000, "per": "hour", "name": "battery"},
        {"usd": 40, "per": "month"},
    )
    assert made == (
        Budget(name="2 usd per day", resource=Resource.USD, amount=2, window=Window.DAY, hard=True),
        Budget(name="0.3 share of server", resource=Resource.SHARE, amount=0.3, kind=Kind.SERVER),
        Budget(name="battery", resource=Resource.JOULES, amount=5000, window=Window.HOUR),
        Budget(name="40 usd per month", resource=Resource.USD, amount=40, window=Window.MONTH),
    )


def test_a_part_of_the_battery_is_joules():
    """Twenty per cent of 50 Wh are 36,000 J; the settings' own figure goes before the system's."""
    table = {"battery_percent": 20, "per": "day"}
    (of_system,) = budgets(table, battery_wh=50.0)
    (of_settings,) = budgets(table, battery_wh=50.0, cost={"battery_wh": 100.0})
    assert (of_system.name, of_system.resource, of_system.amount) == (
        "20 % of the battery per day",
        "joules",
        36_000,
    )
    assert of_settings.amount == 72_000


def test_a_battery_of_unknown_size_is_refused():
    """A part of something unknown is no budget; the message names the setting that helps."""
    with pytest.raises(ConfigError, match=r"budget\[1\].battery_percent = 20: .* set cost.battery_wh"):
        budgets({"usd": 1, "per": "day"}, {"battery_percent": 20, "per": "day"})


@given(
    share=st.floats(0, 1),
    spent=st.floats(0, 1e12),
    tokens=st.integers(0, 10**12),
    requests=st.integers(0, 10**9),
)
def test_a_share_is_never_nonsense(share, spent, tokens, requests):
    """Whatever has happened, the share to plan by is between none and four times the budget, at most all."""
    allowed = allowed_share(share, spent_tokens=spent, all_tokens=tokens, requests=requests)
    assert 0 <= allowed <= min(MOST_TIMES * share, 1)


def test_a_share_pays_a_debt_back_within_the_horizon():
    """A debt is taken off over the horizon and what is under way; on target, the share is the budget."""
    one = {"all_tokens": 1000 * 200, "requests": 200}
    assert allowed_share(0.3, spent_tokens=60_000, **one) == 0.3
    debt = allowed_share(0.3, spent_tokens=64_000, **one)
    assert debt == pytest.approx(0.3 - 4 / HORIZON_REQUESTS)
    assert allowed_share(0.3, spent_tokens=64_000, **one, under_way=32) == pytest.approx((0.3 + debt) / 2)
    assert allowed_share(0.2, spent_tokens=0, **one) == 0.8
    assert allowed_share(0.3, spent_tokens=0, **one) == 1.0
    assert allowed_share(0.3, spent_tokens=0, all_tokens=0, requests=0) == 0.3


@pytest.mark.parametrize(("requests", "part"), [(199, 32 / 200), (9_999, 0.02)])
def test_a_share_owes_no_more_than_it_soon_pays_back(requests, part):
    """A prompt is given at once if the debt stays that of 32 requests, or 2 % of the share's worth."""
    before = {"all_tokens": 1000.0 * (requests + 1), "requests": requests}
    spent = 0.1 * (before["all_tokens"] + 5000) * (1 + part) - 5000
    assert may_start_at_once(0.1, 5000, spent_tokens=spent - 0.01, **before)
    assert not may_start_at_once(0.1, 5000, spent_tokens=spent + 0.01, **before)


def test_the_first_prompt_is_given_by_any_share_worth_a_thirtieth():
    """Before anything was spent, a share of 0.04 may give any prompt, and one of 0.01 earns it first."""
    nothing = {"spent_tokens": 0, "all_tokens": 0, "requests": 0}
    assert may_start_at_once(0.04, 5000, **nothing)
    assert not may_start_at_once(0.01, 5000, **nothing)


@given(amount=st.floats(0, 1e9), spent=st.floats(0, 1e12), expected=st.floats(0, 1e12, allow_nan=False))
def test_an_amount_is_never_nonsense(amount, spent, expected):
    """A request may never take more than what is left, nor less than nothing."""
    assert 0 <= allowed_per_request(amount, spent=spent, expected_requests=expected) <= max(amount - spent, 0)


@given(
    seen=st.integers(0, 10**9),
    watched=st.floats(0, 1e8),
    believed=st.none() | st.floats(1e-9, 1e6),
    window=st.sampled_from([3600.0, 86_400.0, 31 * 86_400.0]),
)
def test_arrivals_are_never_nonsense(seen, watched, believed, window):
    """Requests are expected even where none was seen, and a burst in no time is no infinite rate."""
    rate = arrivals_per_s(seen, watched_s=watched, window_s=window, believed_per_s=believed)
    assert 0 < rate < np.inf


def test_arrivals_follow_what_is_seen():
    """At first 200 requests a window are believed; after a tenth of it, what was seen counts more."""
    day = 86_400.0
    assert arrivals_per_s(0, watched_s=0.0, window_s=day) == pytest.approx(200 / day)
    assert arrivals_per_s(1000, watched_s=day / 10, window_s=day) == pytest.approx(10_000 / day, rel=0.3)
    assert arrivals_per_s(20, watched_s=day / 100, window_s=day, believed_per_s=2000 / day) == pytest.approx(
        2000 / day
    )


def a_request(*contents: str) -> Request:
    return Request(messages=tuple(Message("user", text) for text in contents), arrived_at=0.0, request_id="r")


def test_the_bound_on_prompt_tokens_counts_bytes_and_templates():
    """Every byte may be a token, a message has its markers, and a partial answer is a message more."""
    fresh = most_prompt_tokens(a_request("añb", "c"), Prefix())
    assert fresh == TEMPLATE_TOKENS + 2 * MESSAGE_TOKENS + 2 * len("user") + 5
    assert most_prompt_tokens(a_request("añb", "c"), Prefix("éé")) == fresh + MESSAGE_TOKENS + 4
    assert most_prompt_tokens(a_request("añb", "c"), Prefix("é", (1, 2, 3))) == fresh + MESSAGE_TOKENS + 3


def test_the_bound_on_prompt_tokens_counts_what_is_no_text():
    """Tools may be indented and come with rules of their own; pictures count for themselves."""
    plain = a_request("abc")
    fresh = most_prompt_tokens(plain, Prefix())
    tools = replace(plain, fields={"tools": b"[{}]"}, needs=frozenset({Feature.TOOLS}))
    assert most_prompt_tokens(tools, Prefix()) == fresh + 4 * 4 + TEMPLATE_TOKENS
    kept = replace(plain, messages=(Message("user", "abc", b'{"role":"user","content":[{}]}'),))
    assert most_prompt_tokens(kept, Prefix()) == fresh - len("userabc") + 30
    pictured = replace(kept, needs=frozenset({Feature.IMAGES}))
    assert most_prompt_tokens(pictured, Prefix()) == most_prompt_tokens(kept, Prefix()) + 4096
