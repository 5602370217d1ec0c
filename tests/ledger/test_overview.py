"""What came of the requests of a span: totals, distributions, and how they came about over time."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from ledgers import FAILED, LEFT, MOVED, PROBED, RESCUED, write_ledger

from discostream.errors import ConfigError
from discostream.ledger import buckets
from discostream.ledger.activity import activity
from discostream.ledger.overview import (
    EPOCH,
    WIDTHS_S,
    Cdf,
    EndpointSums,
    TbtFigures,
    TtftFigures,
    _starts,
    overview,
)
from discostream.ledger.queries import Wanted, conditions, page, spent_since
from discostream.ledger.store import Ledger
from discostream.types import PROBE, Kind, Outcome

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SETTLED = (MOVED, MOVED, RESCUED, FAILED, LEFT, PROBED)
ALL = Wanted(since=NOON, until=NOON + timedelta(minutes=10))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six requests, a minute apart."""
    path = tmp_path_factory.mktemp("overview") / "ledger.db"
    return write_ledger(path, [(NOON.timestamp() + 60 * n, one) for n, one in enumerate(SETTLED)])


def test_totals_add_up_requests(mixed):
    """Probes are none, but cost like everything else; quantiles are those of the answers there were."""
    totals = overview(mixed, ALL).totals
    assert (totals.requests, totals.ok, totals.failed, totals.cancelled, totals.raced) == (5, 3, 1, 1, 3)
    assert (totals.migrations, totals.rescues) == (3, 1)
    assert (totals.prompt_tokens, totals.completion_tokens) == (5 * 12, 3 * 30)
    assert totals.usd == pytest.approx(0.004 + 0.004 + 0.002 + 0.01, rel=1e-12)
    assert totals.joules == pytest.approx(1.5 + 1.5 + 2.0, rel=1e-12)
    ttfts = [0.25, 0.25, 0.75]
    expected = (np.mean(ttfts), *np.quantile(ttfts, (0.5, 0.9, 0.99)))
    assert totals.ttft_s == TtftFigures(*map(pytest.approx, expected))
    assert totals.max_tbt_s == TbtFigures(0.5, 0.5)


def test_endpoints_are_told_apart(mixed):
    """Each with its attempts, probes included, what became of them, and where answers went."""
    cloud, laptop, spare = overview(mixed, ALL).endpoints
    assert cloud == EndpointSums(
        endpoint="cloud",
        kind=Kind.SERVER,
        attempts=6,
        wins=0,
        lost=2,
        failed=1,
        migrated_from=0,
        migrated_to=2,
        prompt_tokens=2 * (12 + 22),
        completion_tokens=2 * 20,
        usd=pytest.approx(0.008),
        joules=0.0,
        ttft_s=TtftFigures(0.25, 0.25, 0.25, 0.25),
    )
    assert (laptop.kind, laptop.wins, laptop.failed, laptop.migrated_from) == (Kind.DEVICE, 3, 1, 3)
    assert (spare.attempts, spare.wins, spare.migrated_to) == (2, 1, 1)


def test_the_distribution_of_waits_is_a_curve(mixed):
    """By which time which share had its first content; of an endpoint nobody heard from there is none."""
    cdf = overview(mixed, ALL).ttft_cdf
    assert cdf.delivered == Cdf(3, [0.25, 0.25, 0.75], pytest.approx([1 / 3, 2 / 3, 1.0]))
    assert cdf.endpoints["spare"] == Cdf(2, [0.5, 0.5], [0.5, 1.0])
    failed = overview(mixed, replace(ALL, outcome="failed")).ttft_cdf
    assert failed.delivered == failed.endpoints["cloud"] == Cdf(0, [], [])


def test_buckets_are_whole_and_in_order(mixed):
    """Ten minutes have one for each five seconds: what they hold is there, and what they lack is null."""
    told = overview(mixed, ALL).over_time
    assert (told.bucket_s, len(told.starts)) == (5, 120)
    assert (told.starts[0], told.starts[12]) == (
        "2026-03-01T12:00:00.000+00:00",
        "2026-03-01T12:01:00.000+00:00",
    )
    filled = [place for place, requests in enumerate(told.requests) if requests]
    assert filled == [0, 12, 24, 36, 48]
    assert [told.failed[36], told.cancelled[48], told.rescues[24], told.migrations[12]] == [1, 1, 1, 1]
    assert (told.ttft_s.p50[24], told.ttft_s.p99[23], told.ttft_s.p50[60]) == (0.75, None, None)
    assert (told.usd[60], told.endpoints["spare"].wins[60]) == (0.01, 1)
    assert {len(each.usd) for each in told.endpoints.values()} == {120}


@pytest.mark.parametrize(
    ("chosen", "requests", "endpoints"),
    [
        ({"policy": "optimal"}, 3, ["cloud", "laptop", "spare"]),
        ({"policy": "optimal, private"}, 1, ["laptop", "spare"]),
        ({"endpoint": "cloud"}, 4, ["cloud", "laptop"]),
        ({"outcome": "cancelled"}, 1, ["cloud", "laptop"]),
        ({"outcome": "ok", "endpoint": "spare"}, 1, ["laptop", "spare"]),
        ({"policy": "nobody's"}, 0, []),
    ],
)
def test_what_is_chosen_is_the_same_as_in_the_list(mixed, chosen, requests, endpoints):
    """The same filters leave the same requests; whatever is chosen, the span's policies are all named."""
    wanted = replace(ALL, **chosen)
    found = overview(mixed, wanted)
    listed = [one for one in page(mixed, 20, wanted)[0] if one.policy != PROBE]
    assert found.totals.requests == requests == len(listed)
    assert found.totals.usd == pytest.approx(sum(one.usd for one in page(mixed, 20, wanted)[0]))
    assert [each.endpoint for each in found.endpoints] == endpoints
    assert found.policies == ("disco", "optimal", "optimal, private", "probe")


def test_a_span_begins_with_its_first_moment_and_ends_before_its_last(mixed):
    """So that spans that follow each other share nothing and leave out nothing."""
    second, third = NOON + timedelta(minutes=1), NOON + timedelta(minutes=2)
    assert overview(mixed, Wanted(since=second, until=third)).totals.requests == 1
    assert overview(mixed, Wanted(since=second, until=third + timedelta(milliseconds=1))).totals.requests == 2


def test_without_bounds_everything_is_in_it(mixed):
    """From the first request until now."""
    found = overview(mixed, Wanted())
    assert (found.since, found.totals.requests) == ("2026-03-01T12:00:00.000+00:00", 5)
    assert abs(datetime.fromisoformat(found.until) - datetime.now(UTC)) < timedelta(seconds=10)
    assert sum(found.over_time.requests) == 5
    assert len(found.over_time.starts) <= 120


def test_an_empty_ledger_has_an_overview(path):
    """Every count is zero, and there is one moment to show."""
    Ledger(path).close()
    found = overview(path, Wanted())
    assert (found.totals.requests, found.totals.ttft_s, found.endpoints, found.policies) == (0, None, (), ())
    assert found.over_time.requests == [0]


def test_what_happened_lately_is_the_same(mixed):
    """`disco top` has the figures of the overview."""
    lately, found = activity(mixed, NOON), overview(mixed, Wanted(since=NOON))
    for name in ("requests", "failed", "cancelled", "migrations", "rescues", "usd", "joules"):
        assert getattr(lately, name) == pytest.approx(getattr(found.totals, name), rel=1e-12)
    for one, other in zip(lately.endpoints, found.endpoints, strict=True):
        told = asdict(one)
        assert told.pop("ttft_s") == pytest.approx({q: asdict(other.ttft_s)[q] for q in ("p50", "p99")})
        assert told == {name: pytest.approx(asdict(other)[name]) for name in told}


@how(max_examples=50, deadline=None)
@given(st.integers(0, 10**14), st.integers(1, 10**13))
def test_any_span_has_at_most_120_round_buckets(since_ms, length_ms):
    """The first holds its beginning and the last its end; all have one width, the narrowest that will do."""
    since = EPOCH + timedelta(milliseconds=since_ms)
    until = since + timedelta(milliseconds=length_ms)
    width_s, starts = _starts(since, until)
    width = timedelta(seconds=width_s)
    assert starts[0] <= since < starts[0] + width
    assert starts[-1] < until <= starts[-1] + width
    assert {after - before for before, after in pairwise(starts)} <= {width}
    assert (starts[0] - EPOCH) % width == timedelta()
    narrower = max((each for each in WIDTHS_S if each < width_s), default=0)
    assert len(starts) <= 120 < (until - since) / timedelta(seconds=narrower or 1e-6) + 2


@how(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 330_000), min_size=1, max_size=3).map(sorted))
def test_parts_of_a_span_add_up_to_the_whole(mixed, cuts_ms):
    """However a span is cut, nothing is counted twice, and nothing is lost between."""
    edges = [NOON, *(NOON + timedelta(milliseconds=cut) for cut in cuts_ms), NOON + timedelta(minutes=10)]
    spans = [each for each in pairwise(edges) if each[0] < each[1]]
    whole = overview(mixed, ALL)
    parts = [overview(mixed, Wanted(since=since, until=until)) for since, until in spans]
    for name in ("requests", "ok", "failed", "cancelled", "raced", "migrations", "rescues", "usd", "joules"):
        added = sum(getattr(part.totals, name) for part in parts)
        assert added == pytest.approx(getattr(whole.totals, name), rel=1e-9)
    assert sum(part.ttft_cdf.delivered.count for part in parts) == whole.ttft_cdf.delivered.count
    for endpoint in whole.endpoints:
        its = [each for part in parts for each in part.endpoints if each.endpoint == endpoint.endpoint]
        for name in ("attempts", "wins", "lost", "failed", "migrated_to", "prompt_tokens", "usd", "joules"):
            assert sum(getattr(each, name) for each in its) == pytest.approx(
                getattr(endpoint, name), rel=1e-9
            )


def test_a_long_curve_keeps_its_ends(tmp_path):
    """Of a thousand waits there are 200 points, the shortest and the longest too; the P99 is exact."""
    waits_s = np.random.default_rng(1).lognormal(-1.0, 0.8, 1000)
    settled = [(NOON.timestamp() + n, waited(float(wait_s))) for n, wait_s in enumerate(waits_s)]
    found = overview(write_ledger(tmp_path / "ledger.db", settled), Wanted(since=NOON))
    curve = found.ttft_cdf.delivered
    assert (curve.count, len(curve.s), curve.share[-1]) == (1000, 200, 1.0)
    assert (curve.s[0], curve.s[-1]) == pytest.approx((waits_s.min(), waits_s.max()))
    assert curve.s == sorted(curve.s)
    assert np.interp(0.5, curve.share, curve.s) == pytest.approx(np.median(waits_s), rel=0.01)
    assert found.totals.ttft_s.p99 == pytest.approx(np.quantile(waits_s, 0.99), rel=1e-9)
    assert found.totals.ttft_s.mean == pytest.approx(waits_s.mean(), rel=1e-9)


def waited(ttft_s: float) -> Outcome:
    """An answer whose first content took so long."""
    return replace(MOVED, ttft_s=ttft_s, attempts=MOVED.attempts[:1], migrations=(), delivered_s=(ttft_s,))


@pytest.mark.parametrize("look", [overview, page, activity, spent_since])
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            "UPDATE attempt SET kind = 'abacus' WHERE request = 2",
            "request 2 is damaged: 'abacus' is not a valid",
        ),
        ("UPDATE request SET recorded_at = 'noon' WHERE id = 2", "request 2 is damaged: .*'noon'"),
        ("UPDATE request SET recorded_at = '' WHERE id = 2", "request 2 is damaged: .*''"),
        ("UPDATE request SET recorded_at = '2027-13' WHERE id = 2", "request 2 is damaged: .*'2027-13'"),
    ],
)
def test_a_damaged_row_is_named(path, look, damage, told):
    """The file, the request, and what is wrong with it, for whoever looks at what is damaged."""
    write_ledger(path, [(NOON.timestamp() + n, MOVED) for n in range(3)])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(damage)
    asked = {overview: (Wanted(),), page: (5,)}.get(look, (NOON,))
    overlooked = {page: ("kind",), spent_since: ("recorded_at",), activity: ("2027",)}
    if any(word in damage for word in overlooked.get(look, ())):
        look(path, *asked)
        return
    with pytest.raises(ConfigError, match=f"^ledger.path = {re.escape(repr(str(path)))}: {told}"):
        look(path, *asked)


@pytest.mark.parametrize("query", [buckets._SETTLED, buckets._STARTED, buckets._MOVED])
@pytest.mark.parametrize("until", [None, NOON])
def test_only_the_span_is_looked_at(path, query, until):
    """However many requests there are, those of a span are found by an index, their attempts by another."""
    condition, asked = conditions(Wanted(since=NOON, until=until))
    values = {**asked, "first": 1, "last": 9, "at": "laptop", "kind": "device", "rescue": "rescue"}
    with Ledger(path), closing(sqlite3.connect(path)) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN {query.format(condition=condition, raced='NULL')}", values
        )
        steps = [step for *_, step in plan]
    by_index = "INDEX request_by_recorded_at", "INTEGER PRIMARY KEY", "request>? AND request<?"
    assert all(any(way in step for way in by_index) or "TEMP B-TREE" in step for step in steps)
    assert not any("attempt" in step and "COVERING INDEX attempt_by_endpoint" not in step for step in steps)


def test_every_endpoint_is_found_by_the_index(mixed):
    """One step for each; those that were only planned are found too, and have nothing to tell."""
    with closing(sqlite3.connect(mixed)) as connection:
        found = list(buckets.Buckets(connection, mixed)._endpoints)
        steps = [
            step for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {buckets._NEXT_ENDPOINT}", ("", ""))
        ]
    assert found == [("cloud", "server"), ("laptop", "device"), ("spare", "server")]
    assert sum("COVERING INDEX attempt_by_endpoint (endpoint" in step for step in steps) == 2


@pytest.mark.parametrize(
    "wanted",
    [Wanted(endpoint="cloud"), Wanted(endpoint="cloud", outcome="ok"), replace(ALL, endpoint="cloud")],
    ids=["ever", "outcome", "span"],
)
def test_a_filter_looks_at_what_each_request_started(mixed, wanted):
    """To go through all of an endpoint's attempts for every request would take minutes in a long ledger."""
    condition, asked = conditions(wanted)
    with closing(sqlite3.connect(mixed)) as connection:
        query = f"EXPLAIN QUERY PLAN SELECT count(*) FROM request WHERE {condition}"
        plan = [row[3] for row in connection.execute(query, asked)]
    assert "SEARCH started USING PRIMARY KEY (request=?)" in plan
