"""What the ledger says of a span of time, added up by SQLite.

What must be sorted comes as one text for each group, and not as rows: each row that crosses into Python waits
for the interpreter, which running answers may be keeping busy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from discostream.ledger.queries import Wanted, conditions
from discostream.ledger.reading import columns_of, damaged, kind_of
from discostream.types import Kind, MigrationReason

__all__ = ["Bucket", "Buckets", "MovedSums", "SettledSums", "StartedSums", "joined"]

Floats = NDArray[np.float64]


class SettledSums(NamedTuple):
    """Requests with the same policy and the same winner, or none.

    Attributes:
        first: The key of the first of them,
        last: and that of the last.
        raced: `None` in the file of an older version.
        ttfts_s: From arrival to the first content delivered, where any was.
        max_tbts_s: The longest gap of each answer of more than one token.
    """

    policy: str
    winner: str | None
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


class StartedSums(NamedTuple):
    """Attempts that were started at one endpoint.

    Attributes:
        lost: Those that lost a race; whoever starts after the first content was delivered is in none.
        ttfts_s: From an attempt's start to its first content, where any came.
    """

    endpoint: str
    kind: Kind
    attempts: int
    lost: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    joules: float
    ttfts_s: Floats


class MovedSums(NamedTuple):
    """Handoffs from one endpoint to another."""

    source: str
    target: str
    handoffs: int
    rescues: int


@dataclass(frozen=True)
class Bucket:
    """What a span of time holds, in groups."""

    settled: tuple[SettledSums, ...]
    started: tuple[StartedSums, ...]
    moved: tuple[MovedSums, ...]


class Buckets:
    """Adds up the requests of one span after another.

    Args:
        connection: To the ledger; in a transaction, if all is to be of one instant.
        path: Its file, for errors.

    Raises:
        ConfigError: A row is damaged.
    """

    def __init__(self, connection: sqlite3.Connection, path: str | Path) -> None:
        self._connection = connection
        self._path = path
        self._raced = "sum(raced)" if columns_of(connection, "request", ["raced"]) else "NULL"
        self._endpoints = tuple(self._find_endpoints())
        self._refuse_damaged_dates()

    def of(self, wanted: Wanted) -> Bucket:
        """What became of the requests that are wanted.

        Raises:
            ConfigError: A row is damaged.
        """
        condition, asked = conditions(wanted)
        settled = tuple(self._settled(condition, asked))
        if not settled:
            return Bucket((), (), ())
        keys = {"first": min(row.first for row in settled), "last": max(row.last for row in settled)}
        started = tuple(self._started(condition, {**asked, **keys}))
        return Bucket(settled, started, tuple(self._moved(condition, {**asked, **keys})))

    def _settled(self, condition: str, values: Mapping[str, Any]) -> Iterator[SettledSums]:
        for row in self._connection.execute(_SETTLED.format(raced=self._raced, condition=condition), values):
            *counted, ttfts_s, max_tbts_s = row
            yield SettledSums._make([*counted, _floats(ttfts_s), _floats(max_tbts_s)])

    def _started(self, condition: str, values: Mapping[str, Any]) -> Iterator[StartedSums]:
        query = _STARTED.format(condition=condition)
        for name, kind in self._endpoints:
            at = {**values, "at": name, "kind": kind}
            *counted, ttfts_s = self._connection.execute(query, at).fetchone()
            if counted[0]:
                yield StartedSums._make([name, kind, *counted, _floats(ttfts_s)])

    def _moved(self, condition: str, values: Mapping[str, Any]) -> Iterator[MovedSums]:
        asked = {**values, "rescue": MigrationReason.RESCUE.value}
        yield from map(MovedSums._make, self._connection.execute(_MOVED.format(condition=condition), asked))

    def _find_endpoints(self) -> Iterator[tuple[str, Kind]]:
        """All there ever were, each with the kind that it had, found one after the other by the index."""
        found = self._connection.execute(_NEXT_ENDPOINT, ("", "")).fetchone()
        while found is not None:
            key, name, kind = found
            yield name, kind_of(self._path, key, kind)
            found = self._connection.execute(_NEXT_ENDPOINT, (name, kind)).fetchone()

    def _refuse_damaged_dates(self) -> None:
        """What is no date sorts before or behind all dates, so that no span would ever have it."""
        if found := self._connection.execute(_NO_DATE).fetchone():
            key, recorded_at = found
            raise damaged(self._path, key, ValueError(f"recorded_at = {recorded_at!r} is no date"))


_SETTLED = """
SELECT policy, winner, min(id), max(id), count(*),
       count(*) FILTER (WHERE outcome = 'failed'), count(*) FILTER (WHERE outcome = 'cancelled'),
       {raced}, sum(migrations), sum(prompt_tokens), sum(completion_tokens), total(usd), total(joules),
       group_concat(CAST(ttft_s * 1e14 AS INTEGER)), group_concat(CAST(max_tbt_s * 1e14 AS INTEGER))
FROM request WHERE {condition} GROUP BY policy, winner
"""
_STARTED = """
SELECT count(*), count(*) FILTER (WHERE attempt.outcome = 'lost' AND start_offset_s < request.ttft_s),
       count(*) FILTER (WHERE attempt.outcome = 'failed'),
       sum(attempt.prompt_tokens), sum(attempt.completion_tokens),
       total(attempt.usd), total(attempt.joules),
       group_concat(CAST((attempt.ttft_s - start_offset_s) * 1e14 AS INTEGER))
FROM attempt CROSS JOIN request ON request.id = attempt.request
WHERE attempt.endpoint = :at AND attempt.kind = :kind AND attempt.request BETWEEN :first AND :last
  AND attempt.outcome != 'not_started' AND {condition}
"""
"""All that is asked of an attempt is in the index, in which those of the span are found by their keys."""
_NEXT_ENDPOINT = """
SELECT * FROM (
    SELECT request, endpoint, kind FROM attempt WHERE endpoint = ?1 AND kind > ?2 ORDER BY kind LIMIT 1
)
UNION ALL SELECT * FROM (
    SELECT request, endpoint, kind FROM attempt WHERE endpoint > ?1 ORDER BY endpoint, kind LIMIT 1
)
LIMIT 1
"""
_NO_DATE = "SELECT id, recorded_at FROM request WHERE recorded_at < '1970' OR recorded_at >= ':' LIMIT 1"
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
    """Seconds. They come as whole numbers, which SQLite writes down in half the time that fractions take it.

    In units of 1e-14 s a wait of a millisecond has eleven digits, and one of a day still fits.
    """
    return np.array(_INTEGERS.decode(f"[{listed or ''}]"), np.float64) / 1e14


_INTEGERS = msgspec.json.Decoder(list[int])
