"""What happened lately: races, waits, handoffs and spend of all requests since a moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from discostream.ledger.queries import reading, utc
from discostream.types import PROBE, Kind

__all__ = ["Activity", "EndpointActivity", "Ttft", "activity"]


@dataclass(frozen=True, slots=True)
class Ttft:
    """Two quantiles of TTFT, in seconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class EndpointActivity:
    """What one endpoint did and cost, over the attempts that were started; probes included.

    Attributes:
        wins: Answers that it began.
        lost: Races that it lost.
        ttft_s: From an attempt's start to its first content, where any came; `None` where none did.
    """

    endpoint: str
    kind: Kind
    attempts: int
    wins: int
    lost: int
    failed: int
    ttft_s: Ttft | None
    usd: float
    joules: float


@dataclass(frozen=True, slots=True)
class Activity:
    """What came of all requests; probes are none, but cost dollars and joules like everything else.

    Attributes:
        ttft_s: From arrival to the first content delivered; `None` where none was.
        migrations: How often answers moved, rescues included.
        endpoints: Those that were started, in order of name.
    """

    requests: int
    failed: int
    cancelled: int
    ttft_s: Ttft | None
    migrations: int
    rescues: int
    usd: float
    joules: float
    endpoints: tuple[EndpointActivity, ...]


def activity(path: str | Path, since: datetime) -> Activity:
    """What happened from a moment on, all of it as the ledger was at one instant.

    Args:
        path: The ledger's file.
        since: With its time zone.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    span = {"start": utc(since), "probe": PROBE}
    with reading(path) as connection:
        connection.execute("BEGIN")
        requests, failed, cancelled, migrations, usd, joules = connection.execute(_REQUESTS, span).fetchone()
        (rescues,) = connection.execute(_RESCUES, span).fetchone()
        ttfts_s = [ttft_s for (ttft_s,) in connection.execute(_TTFTS, span)]
        endpoints = tuple(_endpoints(connection, span))
    return Activity(requests, failed, cancelled, _ttft(ttfts_s), migrations, rescues, usd, joules, endpoints)


_REQUESTS = """
SELECT count(*) FILTER (WHERE policy != :probe),
       count(*) FILTER (WHERE policy != :probe AND outcome = 'failed'),
       count(*) FILTER (WHERE policy != :probe AND outcome = 'cancelled'),
       coalesce(sum(migrations), 0), total(usd), total(joules)
FROM request WHERE recorded_at >= :start
"""
_RESCUES = """
SELECT count(*) FROM migration CROSS JOIN request ON request.id = migration.request
WHERE migration.request >= (SELECT min(+id) FROM request WHERE recorded_at >= :start)
  AND recorded_at >= :start AND reason = 'rescue'
"""
_TTFTS = """
SELECT ttft_s FROM request WHERE recorded_at >= :start AND policy != :probe AND ttft_s IS NOT NULL
"""
_WINS = "SELECT winner, count(*) FROM request WHERE recorded_at >= :start GROUP BY winner"
_STARTED = """
FROM attempt CROSS JOIN request ON request.id = attempt.request
WHERE attempt.request >= (SELECT min(+id) FROM request WHERE recorded_at >= :start)
  AND recorded_at >= :start AND attempt.outcome != 'not_started'
"""
"""In the order of their keys, from the first that can be of the span: half the time of looking each up.

The `+` has SQLite look for that one by the index on `recorded_at`, not from the first request on.
"""
_BY_ENDPOINT = f"""
SELECT endpoint, max(kind), count(*),
       count(*) FILTER (WHERE attempt.outcome = 'lost' AND start_offset_s < request.ttft_s),
       count(*) FILTER (WHERE attempt.outcome = 'failed'),
       total(attempt.usd), total(attempt.joules)
{_STARTED} GROUP BY endpoint ORDER BY endpoint
"""
"""Whoever starts after the first content was delivered is in no race."""
_TTFTS_BY_ENDPOINT = (
    f"SELECT endpoint, attempt.ttft_s - start_offset_s {_STARTED} AND attempt.ttft_s IS NOT NULL"
)


def _endpoints(connection: sqlite3.Connection, span: Mapping[str, str]) -> Iterator[EndpointActivity]:
    wins = dict(connection.execute(_WINS, span).fetchall())
    ttfts_s: dict[str, list[float]] = {}
    for endpoint, ttft_s in connection.execute(_TTFTS_BY_ENDPOINT, span):
        ttfts_s.setdefault(endpoint, []).append(ttft_s)
    for endpoint, kind, attempts, lost, failed, usd, joules in connection.execute(_BY_ENDPOINT, span):
        yield EndpointActivity(
            endpoint=endpoint,
            kind=Kind(kind),
            attempts=attempts,
            wins=wins.get(endpoint, 0),
            lost=lost,
            failed=failed,
            ttft_s=_ttft(ttfts_s.get(endpoint, ())),
            usd=usd,
            joules=joules,
        )


def _ttft(ttfts_s: Sequence[float]) -> Ttft | None:
    return Ttft(*np.quantile(ttfts_s, (0.5, 0.99)).tolist()) if ttfts_s else None
