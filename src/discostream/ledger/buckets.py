"""What the ledger says of a span of time, added up by SQLite.

What must be sorted comes as one text for each group, and not as rows: each row that crosses into Python waits
for the interpreter, which running answers may be keeping busy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from discostream.ledger.queries import Wanted, columns_of, conditions, damaged, kind_of
from discostream.types import PROBE, Kind, MigrationReason

__all__ = ["Bucket", "Moved", "Settled", "Started", "bucket", "joined", "refuse_damaged_dates"]

Floats = NDArray[np.float64]


class Settled(NamedTuple):
    """Requests that one endpoint won, or none; probes are none, but cost dollars and joules all the same.

    Attributes:
        wins: How many there are, probes included.
        first: The key of the first of them,
        last: and that of the last.
        raced: `None` in the file of an older version.
        ttfts_s: From arrival to the first content delivered, where any was.
        max_tbts_s: The longest gap of each answer of more than one token.
    """

    winner: str | None
    wins: int
    first: int
    last: int
    requests: int
    failed: int
    cancelled: int
    raced: int | None
    migrations: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    joules: float
    ttfts_s: Floats
    max_tbts_s: Floats


class Started(NamedTuple):
    """Attempts that were started at one endpoint; probes included.

    Attributes:
        request: The key of the first of their requests.
        lost: Those that lost a race; whoever starts after the first content was delivered is in none.
        ttfts_s: From an attempt's start to its first content, where any came.
    """

    endpoint: str
    kind: Kind
    request: int
    attempts: int
    lost: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    joules: float
    ttfts_s: Floats


class Moved(NamedTuple):
    """Handoffs from one endpoint to another."""

    source: str
    target: str
    handoffs: int
    rescues: int


@dataclass(frozen=True)
class Bucket:
    """What a span of time holds, in groups."""

    settled: tuple[Settled, ...]
    started: tuple[Started, ...]
    moved: tuple[Moved, ...]


def bucket(connection: sqlite3.Connection, path: str | Path, wanted: Wanted) -> Bucket:
    """What became of the requests that are wanted.

    Args:
        connection: To the ledger.
        path: Its file, for errors.
        wanted: Which, with `since` at least.

    Raises:
        ConfigError: A row is damaged.
    """
    condition, asked = conditions(wanted)
    raced = "sum(raced)" if columns_of(connection, "request", ["raced"]) else "NULL"
    values = {**asked, "probe": PROBE, "rescue": MigrationReason.RESCUE.value}
    rows = connection.execute(_SETTLED.format(condition=condition, raced=raced), values).fetchall()
    if not rows:
        return Bucket((), (), ())
    values |= {"first": min(row[2] for row in rows), "last": max(row[3] for row in rows)}
    try:
        started = connection.execute(_STARTED.format(condition=condition), values)
        moved = connection.execute(_MOVED.format(condition=condition), values)
        return Bucket(
            tuple(Settled._make([*row[:-2], *map(_floats, row[-2:])]) for row in rows),
            tuple(_started(path, *row) for row in started),
            tuple(map(Moved._make, moved)),
        )
    except ValueError as error:
        raise damaged(path, values["first"], error) from None


def _started(path: str | Path, endpoint: str, kind: str, request: int, *sums: Any) -> Started:
    *added, ttfts_s = sums
    return Started._make([endpoint, kind_of(path, request, kind), request, *added, _floats(ttfts_s)])


_SETTLED = """
SELECT winner, count(*), min(request.id), max(request.id),
       count(*) FILTER (WHERE policy != :probe),
       count(*) FILTER (WHERE policy != :probe AND request.outcome = 'failed'),
       count(*) FILTER (WHERE policy != :probe AND request.outcome = 'cancelled'),
       {raced}, sum(migrations),
       coalesce(sum(prompt_tokens) FILTER (WHERE policy != :probe), 0),
       coalesce(sum(completion_tokens) FILTER (WHERE policy != :probe), 0),
       total(usd), total(joules),
       group_concat(ttft_s) FILTER (WHERE policy != :probe),
       group_concat(max_tbt_s) FILTER (WHERE policy != :probe)
FROM request WHERE {condition} GROUP BY winner
"""
_STARTED = """
SELECT endpoint, kind, min(attempt.request), count(*),
       count(*) FILTER (WHERE attempt.outcome = 'lost' AND start_offset_s < request.ttft_s),
       count(*) FILTER (WHERE attempt.outcome = 'failed'),
       sum(attempt.prompt_tokens), sum(attempt.completion_tokens),
       total(attempt.usd), total(attempt.joules),
       group_concat(attempt.ttft_s - start_offset_s)
FROM attempt CROSS JOIN request ON request.id = attempt.request
WHERE attempt.request BETWEEN :first AND :last AND attempt.outcome != 'not_started' AND {condition}
GROUP BY endpoint, kind
"""
"""In the order of their keys, among which those of the span are: half the time of looking each up."""
_MOVED = """
SELECT source, target, count(*), count(*) FILTER (WHERE reason = :rescue)
FROM migration CROSS JOIN request ON request.id = migration.request
WHERE migration.request BETWEEN :first AND :last AND {condition}
GROUP BY source, target
"""


def joined(parts: Iterable[Floats]) -> Floats:
    """All of them, in rising order."""
    return np.sort(np.concatenate([np.empty(0), *parts]))


def _floats(listed: str | None) -> Floats:
    return np.array(_FLOATS.decode(f"[{listed or ''}]"))


_FLOATS = msgspec.json.Decoder(list[float])


def refuse_damaged_dates(connection: sqlite3.Connection, path: str | Path) -> None:
    """What is no date sorts before or behind all dates, so that no span would ever have it.

    Raises:
        ConfigError: Naming one.
    """
    if found := connection.execute(_NO_DATES).fetchone():
        key, recorded_at = found
        raise damaged(path, key, ValueError(f"recorded_at = {recorded_at!r} is no date"))


_NO_DATES = "SELECT id, recorded_at FROM request WHERE recorded_at < '1970' OR recorded_at >= ':' LIMIT 1"
