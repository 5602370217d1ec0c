"""What came of the requests of a span of time: how many, how soon, where, and for how much."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

import numpy as np

from discostream.ledger.buckets import Bucket, Buckets, Floats, StartedSums, joined
from discostream.ledger.queries import Wanted, conditions
from discostream.ledger.reading import damaged, reading, utc
from discostream.types import PROBE, Kind

__all__ = [
    "Cdf",
    "Cdfs",
    "EndpointOverTime",
    "EndpointSums",
    "OverTime",
    "Overview",
    "Sums",
    "TbtFigures",
    "TtftFigures",
    "TtftOverTime",
    "endpoint_sums",
    "overview",
    "sums",
]

MOST_BUCKETS = 120
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
WIDTHS_S = (
    *(1, 2, 5, 10, 15, 30),
    *(minutes * MINUTE_S for minutes in (1, 2, 5, 10, 15, 30)),
    *(hours * HOUR_S for hours in (1, 2, 3, 6, 12)),
    *(DAY_S << doubled for doubled in range(20)),
)
"""Widths of a bucket; days are doubled until even the longest span fits."""

MOST_POINTS = 200
"""Of a distribution, which are more than a screen can show apart."""

TICK = timedelta(milliseconds=1)
"""Moments are kept so exactly."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TtftFigures:
    """Waits for a first token, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class TbtFigures:
    """Quantiles of the longest gaps between two tokens of an answer, in seconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Sums:
    """What came of all requests; probes are none, but cost dollars and joules like everything else.

    Attributes:
        raced: Those for which several attempts were started before any brought content; `None` in the file of
            an older version.
        migrations: How often answers moved, rescues included.
        prompt_tokens: The lengths of their prompts, each counted once.
        completion_tokens: Tokens delivered.
        ttft_s: From arrival to the first content delivered; `None` where none was.
        max_tbt_s: Of each answer's longest gap; `None` where none has two tokens.
    """

    requests: int
    ok: int
    failed: int
    cancelled: int
    raced: int | None
    migrations: int
    rescues: int
    usd: float
    joules: float
    prompt_tokens: int
    completion_tokens: int
    ttft_s: TtftFigures | None
    max_tbt_s: TbtFigures | None


@dataclass(frozen=True, slots=True)
class EndpointSums:
    """What one endpoint did and cost, over the attempts that were started; probes included.

    Attributes:
        wins: Answers that it began.
        lost: Races that it lost.
        migrated_from: Answers that moved away from it.
        migrated_to: Answers that moved to it.
        prompt_tokens: Tokens that it read, prefixes and what losers read included.
        completion_tokens: Tokens that it wrote, likewise.
        ttft_s: From an attempt's start to its first content, where any came; `None` where none did.
    """

    endpoint: str
    kind: Kind
    attempts: int
    wins: int
    lost: int
    failed: int
    migrated_from: int
    migrated_to: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    joules: float
    ttft_s: TtftFigures | None


@dataclass(frozen=True, slots=True)
class Cdf:
    """A distribution of waits: which `share` of all `count` was over within each of the times `s`.

    Attributes:
        s: Seconds, rising; at most 200 of them, the shortest and the longest among them.
    """

    count: int
    s: Sequence[float]
    share: Sequence[float]


@dataclass(frozen=True, slots=True)
class Cdfs:
    """TTFT as delivered, and of each endpoint from its attempts' starts."""

    delivered: Cdf
    endpoints: Mapping[str, Cdf]


@dataclass(frozen=True, slots=True)
class TtftOverTime:
    """Quantiles of the TTFT as delivered, by bucket; `None` where there was none."""

    p50: Sequence[float | None]
    p90: Sequence[float | None]
    p99: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class EndpointOverTime:
    """What one endpoint won and cost, by bucket."""

    wins: Sequence[int]
    usd: Sequence[float]
    joules: Sequence[float]


@dataclass(frozen=True, slots=True)
class OverTime:
    """The same by bucket: so wide is each, and so they start. The first and the last may be cut off."""

    bucket_s: int
    starts: Sequence[str]
    requests: Sequence[int]
    failed: Sequence[int]
    cancelled: Sequence[int]
    migrations: Sequence[int]
    rescues: Sequence[int]
    usd: Sequence[float]
    joules: Sequence[float]
    ttft_s: TtftOverTime
    endpoints: Mapping[str, EndpointOverTime]


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it, as the ledger was at one instant.

    Attributes:
        since: The span that was looked at: from this moment on (UTC, ISO 8601 with milliseconds),
        until: and before this one.
        endpoints: Those that were started, in order of name.
        policies: All that planned in that span, whichever are wanted.
    """

    since: str
    until: str
    totals: Sums
    endpoints: tuple[EndpointSums, ...]
    policies: tuple[str, ...]
    ttft_cdf: Cdfs
    over_time: OverTime


def overview(path: str | Path, wanted: Wanted) -> Overview:
    """What came of the requests that are wanted.

    Without `since` it begins with the first of all requests; without `until` it ends now, or with the last
    one should that be later.

    Raises:
        ConfigError: There is no ledger that could be read, or a row of it is damaged.
    """
    with reading(path) as connection:
        connection.execute("BEGIN")
        summed = Buckets(connection, path)
        since, until = _span(connection, path, wanted)
        width_s, starts = _starts(since, until)
        spans = zip([since, *starts[1:]], [*starts[1:], until], strict=True)
        buckets = [summed.of(replace(wanted, since=start, until=end)) for start, end in spans]
        policies = _policies(connection, replace(wanted, since=since, until=until), buckets)
    return Overview(
        since=utc(since),
        until=utc(until),
        totals=sums(buckets),
        endpoints=tuple(endpoint_sums(buckets)),
        policies=policies,
        ttft_cdf=_cdfs(buckets),
        over_time=_over_time(width_s, starts, buckets),
    )


def _policies(connection: sqlite3.Connection, wanted: Wanted, buckets: Sequence[Bucket]) -> tuple[str, ...]:
    """All that planned in a span, in order of name; looked for only where not all of them are wanted."""
    span = Wanted(since=wanted.since, until=wanted.until)
    if wanted == span:
        return tuple(sorted({row.policy for each in buckets for row in each.settled}))
    condition, asked = conditions(span)
    found = connection.execute(f"SELECT DISTINCT policy FROM request WHERE {condition}", asked)  # noqa: S608
    return tuple(sorted(name for (name,) in found))


_FIRST = "SELECT id, recorded_at FROM request ORDER BY recorded_at LIMIT 1"
_LAST = "SELECT id, recorded_at FROM request ORDER BY recorded_at DESC LIMIT 1"


def _span(connection: sqlite3.Connection, path: str | Path, wanted: Wanted) -> tuple[datetime, datetime]:
    """From which moment on, and before which."""
    now = datetime.now(UTC)
    until = wanted.until or max(now, _moment(connection, path, _LAST) or now) + TICK
    until = max(until, EPOCH + TICK)
    since = wanted.since or min(_moment(connection, path, _FIRST) or now, until - TICK)
    return max(since, EPOCH), until


def _moment(connection: sqlite3.Connection, path: str | Path, query: str) -> datetime | None:
    key, recorded_at = connection.execute(query).fetchone() or (0, None)
    try:
        return None if recorded_at is None else datetime.fromisoformat(recorded_at).astimezone(UTC)
    except ValueError as error:
        raise damaged(path, key, error) from None


def _starts(since: datetime, until: datetime) -> tuple[int, list[datetime]]:
    """How wide buckets are (seconds), and when each that is part of a span starts."""
    for width_s in WIDTHS_S:
        width = timedelta(seconds=width_s)
        first, last = (since - EPOCH) // width, (until - TICK - EPOCH) // width
        if last - first < MOST_BUCKETS:
            break
    return width_s, [EPOCH + number * width for number in range(first, max(first, last) + 1)]


def sums(buckets: Sequence[Bucket]) -> Sums:
    """What came of all requests."""
    paid = [row for each in buckets for row in each.settled]
    rows = [row for row in paid if row.policy != PROBE]
    requests, failed, cancelled = (
        sum(getattr(row, name) for row in rows) for name in ("requests", "failed", "cancelled")
    )
    raced = [row.raced for row in rows if row.raced is not None]
    return Sums(
        requests=requests,
        ok=requests - failed - cancelled,
        failed=failed,
        cancelled=cancelled,
        raced=sum(raced) if len(raced) == len(rows) else None,
        migrations=sum(row.migrations for row in paid),
        rescues=sum(moved.rescues for each in buckets for moved in each.moved),
        usd=sum((row.usd for row in paid), 0.0),
        joules=sum((row.joules for row in paid), 0.0),
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        completion_tokens=sum(row.completion_tokens for row in rows),
        ttft_s=_ttft_figures(_ttfts(buckets)),
        max_tbt_s=_tbt_figures(joined(row.max_tbts_s for row in rows)),
    )


def endpoint_sums(buckets: Sequence[Bucket]) -> Iterator[EndpointSums]:
    """What each endpoint did and cost, in order of name."""
    wins = _by_name((row.winner, row.requests) for each in buckets for row in each.settled)
    away = _by_name((row.source, row.handoffs) for each in buckets for row in each.moved)
    arrived = _by_name((row.target, row.handoffs) for each in buckets for row in each.moved)
    for name, rows in _started(buckets).items():
        yield EndpointSums(
            endpoint=name,
            kind=max(row.kind for row in rows),
            attempts=sum(row.attempts for row in rows),
            wins=wins[name],
            lost=sum(row.lost for row in rows),
            failed=sum(row.failed for row in rows),
            migrated_from=away[name],
            migrated_to=arrived[name],
            prompt_tokens=sum(row.prompt_tokens for row in rows),
            completion_tokens=sum(row.completion_tokens for row in rows),
            usd=sum((row.usd for row in rows), 0.0),
            joules=sum((row.joules for row in rows), 0.0),
            ttft_s=_ttft_figures(joined(row.ttfts_s for row in rows)),
        )


def _started(buckets: Sequence[Bucket]) -> dict[str, list[StartedSums]]:
    """The rows of each endpoint, in order of name."""
    rows = sorted((row for each in buckets for row in each.started), key=lambda row: row.endpoint)
    return {name: list(its) for name, its in groupby(rows, key=lambda row: row.endpoint)}


def _by_name(counts: Iterable[tuple[str | None, int]]) -> Counter[str | None]:
    added: Counter[str | None] = Counter()
    for name, count in counts:
        added[name] += count
    return added


def _ttfts(buckets: Sequence[Bucket]) -> Floats:
    """As delivered, in rising order."""
    return joined(row.ttfts_s for each in buckets for row in each.settled if row.policy != PROBE)


def _ttft_figures(ordered_s: Floats) -> TtftFigures | None:
    if not ordered_s.size:
        return None
    return TtftFigures(float(np.mean(ordered_s)), *_quantiles(ordered_s, 0.5, 0.9, 0.99))


def _tbt_figures(ordered_s: Floats) -> TbtFigures | None:
    return TbtFigures(*_quantiles(ordered_s, 0.5, 0.99)) if ordered_s.size else None


def _quantiles(ordered: Floats, *shares: float) -> list[float]:
    """As np.quantile has them, which does not know that they are in order."""
    places = np.array(shares) * (ordered.size - 1)
    found: list[float] = np.interp(places, np.arange(ordered.size), ordered).tolist()
    return found


def _cdfs(buckets: Sequence[Bucket]) -> Cdfs:
    return Cdfs(
        delivered=_cdf(_ttfts(buckets)),
        endpoints={
            name: _cdf(joined(row.ttfts_s for row in rows)) for name, rows in _started(buckets).items()
        },
    )


def _cdf(ordered_s: Floats) -> Cdf:
    count = ordered_s.size
    places = np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int)
    return Cdf(count, ordered_s[places].tolist(), ((places + 1) / max(count, 1)).tolist())


def _over_time(width_s: int, starts: Sequence[datetime], buckets: Sequence[Bucket]) -> OverTime:
    each = [sums([bucket]) for bucket in buckets]
    ttfts = [one.ttft_s for one in each]
    return OverTime(
        bucket_s=width_s,
        starts=[utc(start) for start in starts],
        requests=[one.requests for one in each],
        failed=[one.failed for one in each],
        cancelled=[one.cancelled for one in each],
        migrations=[one.migrations for one in each],
        rescues=[one.rescues for one in each],
        usd=[one.usd for one in each],
        joules=[one.joules for one in each],
        ttft_s=TtftOverTime(
            p50=[waits.p50 if waits else None for waits in ttfts],
            p90=[waits.p90 if waits else None for waits in ttfts],
            p99=[waits.p99 if waits else None for waits in ttfts],
        ),
        endpoints={name: _endpoint_over_time(name, buckets) for name in _started(buckets)},
    )


def _endpoint_over_time(name: str, buckets: Sequence[Bucket]) -> EndpointOverTime:
    return EndpointOverTime(
        wins=[sum(row.requests for row in each.settled if row.winner == name) for each in buckets],
        usd=[sum((row.usd for row in each.started if row.endpoint == name), 0.0) for each in buckets],
        joules=[sum((row.joules for row in each.started if row.endpoint == name), 0.0) for each in buckets],
    )
