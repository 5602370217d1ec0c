"""What the ledger says, read over connections that cannot write."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec

from discostream.core.qoe import Gap
from discostream.errors import ConfigError
from discostream.ledger.outcomes import attempt_of, migration_of, rows_by_request
from discostream.ledger.reading import columns_of, damaged, kind_of, reading, utc
from discostream.types import PROBE, Attempt, Kind, Migration

__all__ = [
    "OUTCOMES",
    "EndpointTotals",
    "RecordedRequest",
    "Settled",
    "Spent",
    "Totals",
    "Wanted",
    "conditions",
    "find",
    "page",
    "recent",
    "settled_as",
    "shortest_beginnings",
    "spent_since",
    "totals",
]

OUTCOMES = ("ok", "failed", "cancelled")
"""How a request can have ended; the last is that its client left."""

SHORTEST_BEGINNING = 8
"""Characters of a request's ID by which it is called at least, so that those of a list are of one length."""

MOST_TOLD = 5
"""How many IDs are told, at most, where the beginning of one fits several."""


@dataclass(frozen=True, slots=True)
class EndpointTotals:
    """What one endpoint did and cost, over the attempts that were started."""

    endpoint: str
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    joules: float


@dataclass(frozen=True, slots=True)
class Totals:
    """What all recorded requests cost, and on which endpoints (in order of name)."""

    requests: int
    usd: float
    joules: float
    endpoints: tuple[EndpointTotals, ...]


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used up in some span of time.

    Attributes:
        usd: Dollars, on all attempts.
        joules: Joules, likewise.
        prompt_tokens: Prompt tokens that each kind processed, attempts that lost included.
        all_prompt_tokens: The lengths of all prompts that were answered, each counted once.
        requests: How many there were.

    Probes cost dollars and joules like everything else, but are no requests that a share is taken of.
    """

    usd: float
    joules: float
    prompt_tokens: Mapping[Kind, int]
    all_prompt_tokens: int
    requests: int


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One row of the ledger.

    Attributes:
        recorded_at: UTC, ISO 8601 with milliseconds.
        outcome: `ok`, `failed` or `cancelled` (the client left).
        mean_tbt_s: Over the gaps between delivered tokens; `None` below two tokens.
        p99_tbt_s: Likewise.
        max_tbt_s: Likewise.
        migrations: How often it moved, rescues included.
        prompt_chars: `None` where an older version recorded it.
        stayed: Why it did not move for cost; `None` if it did.
        raced: Whether several attempts were started before any of them brought content; `None` in the file
            of an older version.
        ended_s: From its arrival until its last token was delivered; `None` if there was none, or where an
            older version recorded it.
    """

    request_id: str
    recorded_at: str
    policy: str
    outcome: str
    winner: str | None
    ttft_s: float | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    usd: float
    joules: float
    mean_tbt_s: float | None
    p99_tbt_s: float | None
    max_tbt_s: float | None
    migrations: int
    error: str | None
    prompt_chars: int | None = None
    stayed: str | None = None
    raced: bool | None = None
    ended_s: float | None = None
    rescues: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """All that the ledger has of one request, its attempts in the order in which they were made.

    Attributes:
        longest_gaps: When its reader got nothing between two tokens, the longest first (`core.qoe`); `None`
            where an older version recorded it.
    """

    request: RecordedRequest
    attempts: tuple[Attempt, ...]
    migrations: tuple[Migration, ...]
    longest_gaps: tuple[Gap, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it as one object, by the ledger's names."""
        told = asdict(self)
        return {**told.pop("request"), **told}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which requests are looked for; `None` leaves something open.

    Attributes:
        since: Settled at this moment or later, told with its time zone.
        until: Settled before this moment, likewise.
        policy: Under this policy, private or not.
        endpoint: With an attempt that was started here, whatever came of it.
        outcome: `ok`, `failed` or `cancelled`.
    """

    since: datetime | None = None
    until: datetime | None = None
    policy: str | None = None
    endpoint: str | None = None
    outcome: str | None = None


def totals(path: str | Path) -> Totals:
    """Sums over everything recorded.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    with reading(path) as connection:
        sums = connection.execute("SELECT count(*), total(usd), total(joules) FROM request")
        requests, usd, joules = sums.fetchone()
        by_endpoint = connection.execute(
            """
            SELECT endpoint, count(*), sum(prompt_tokens), sum(completion_tokens), total(usd), total(joules)
            FROM attempt WHERE outcome != 'not_started' GROUP BY endpoint ORDER BY endpoint
            """
        )
        return Totals(requests, usd, joules, tuple(EndpointTotals(*row) for row in by_endpoint))


def recent(path: str | Path, n: int = 20, wanted: Wanted | None = None) -> list[RecordedRequest]:
    """The last `n` requests of those that are wanted, newest first.

    Raises:
        ConfigError: There is no ledger that could be read, or a row of it is damaged.
    """
    return page(path, n, wanted)[0]


def page(
    path: str | Path, n: int, wanted: Wanted | None = None, before: int | None = None
) -> tuple[list[RecordedRequest], int | None]:
    """The last `n` requests of those that are wanted, and what to go on before; `None` if there are no more.

    Args:
        path: The ledger's file.
        n: So many, at most.
        wanted: Which.
        before: Where an earlier page said to go on.

    Raises:
        ConfigError: There is no ledger that could be read, or a row of it is damaged.
    """
    condition, asked = conditions(wanted or Wanted())
    if before is not None:
        condition, asked = f"{condition} AND {_BEFORE}", {**asked, "before": before}
    with reading(path) as connection:
        found = list(_requests(connection, path, condition, asked, n + 1))
    requests = [request for _, request in found[:n]]
    return requests, found[n - 1][0] if len(found) > n else None


def conditions(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """Which rows of `request` are wanted, in SQL, and the values for it."""
    asked = {name: getattr(wanted, name) for name in _CONDITIONS if getattr(wanted, name) is not None}
    told = {name: utc(value) if isinstance(value, datetime) else value for name, value in asked.items()}
    return " AND ".join(_CONDITIONS[name] for name in asked) or "true", told


_CONDITIONS = {
    "since": "request.recorded_at >= :since",
    "until": "request.recorded_at < :until",
    "policy": "request.policy IN (:policy, :policy || ', private')",
    "endpoint": "EXISTS (SELECT 1 FROM attempt AS started WHERE started.request = request.id "
    # The plus hides an index from SQLite, by which it would go through all attempts of the endpoint.
    "AND +started.endpoint = :endpoint AND started.outcome != 'not_started')",
    "outcome": "request.outcome = :outcome",
}
_BEFORE = "(recorded_at, id) < (SELECT recorded_at, id FROM request WHERE id = :before)"


def find(path: str | Path, beginning: str) -> list[Settled]:
    """What was settled under the one request ID that begins so, newest first: clients may use one again.

    Raises:
        ConfigError: No ID begins so, or several do; or there is no ledger that could be read.
    """
    with reading(path) as connection:
        return _settled_as(connection, path, _only_id(connection, beginning))


def settled_as(path: str | Path, request_id: str) -> list[Settled]:
    """What was settled under exactly this request ID, newest first; nothing where it is unknown.

    Raises:
        ConfigError: There is no ledger that could be read, or a row of it is damaged.
    """
    with reading(path) as connection:
        return _settled_as(connection, path, request_id)


def _settled_as(connection: sqlite3.Connection, path: str | Path, request_id: str) -> list[Settled]:
    asked = {"request_id": request_id}
    found = list(_requests(connection, path, "request_id = :request_id", asked, -1))
    return [_settled(connection, path, key, request) for key, request in found]


def shortest_beginnings(path: str | Path, request_ids: Iterable[str]) -> dict[str, str]:
    """The beginning by which `find` knows each of these IDs of the ledger.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    with reading(path) as connection:
        return {request_id: _shortest_beginning(connection, request_id) for request_id in request_ids}


def _shortest_beginning(connection: sqlite3.Connection, request_id: str) -> str:
    neighbours = connection.execute(_NEIGHBOURS, {"id": request_id}).fetchone()
    shared = max(_shared(request_id, other or "") for other in neighbours)
    return request_id[: max(shared + 1, SHORTEST_BEGINNING)]


def _shared(one: str, other: str) -> int:
    """With how many same characters two texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


_NEIGHBOURS = """
SELECT (SELECT max(request_id) FROM request WHERE request_id < :id),
       (SELECT min(request_id) FROM request WHERE request_id > :id)
"""


def _only_id(connection: sqlite3.Connection, beginning: str) -> str:
    """The ID that begins so; one that is no longer goes before those that go on."""
    asked = {"beginning": beginning, "most": MOST_TOLD + 1}
    ids: list[str] = [request_id for (request_id,) in connection.execute(_BEGINNING_SO, asked)]
    if not ids:
        raise ConfigError(f"ID {beginning!r}: no settled request's begins so; `disco requests` lists them")
    if len(ids) > 1 and ids[0] != beginning:
        told = ", ".join(ids[:MOST_TOLD]) + (", …" if len(ids) > MOST_TOLD else "")
        raise ConfigError(f"ID {beginning!r}: several begin so ({told}); write more of the one that is meant")
    return ids[0]


_BEGINNING_SO = """
SELECT DISTINCT request_id FROM request
WHERE request_id >= :beginning AND request_id < :beginning || char(0x10FFFF)
ORDER BY request_id LIMIT :most
"""


def _requests(
    connection: sqlite3.Connection, path: str | Path, condition: str, asked: Mapping[str, Any], most: int
) -> Iterator[tuple[int, RecordedRequest]]:
    """The requests that meet a condition of ours, newest first, by their keys; all of them for -1."""
    columns = columns_of(connection, "request", [field.name for field in fields(RecordedRequest)])
    chosen = f"SELECT id, {_RESCUES}, {', '.join(columns)} FROM request WHERE {condition} "  # noqa: S608
    newest_first = f"{chosen} ORDER BY recorded_at DESC, id DESC LIMIT :most"
    for key, rescues, *row in connection.execute(newest_first, {**asked, "most": most}):
        told = dict(zip(columns, row, strict=True))
        if told.get("raced") is not None:
            told["raced"] = bool(told["raced"])
        request = RecordedRequest(**told, rescues=rescues)
        try:
            datetime.fromisoformat(request.recorded_at)
        except ValueError as error:
            raise damaged(path, key, error) from None
        yield key, request


_RESCUES = "(SELECT count(*) FROM migration WHERE migration.request = request.id AND reason = 'rescue')"


def _settled(connection: sqlite3.Connection, path: str | Path, key: int, request: RecordedRequest) -> Settled:
    attempts = rows_by_request(connection, "attempt", (key, key)).get(key, ())
    migrations = rows_by_request(connection, "migration", (key, key)).get(key, ())
    try:
        gaps = _longest_gaps(connection, key)
        return Settled(request, tuple(map(attempt_of, attempts)), tuple(map(migration_of, migrations)), gaps)
    except ValueError as error:
        raise damaged(path, key, error) from None


def _longest_gaps(connection: sqlite3.Connection, key: int) -> tuple[Gap, ...] | None:
    if not columns_of(connection, "request", ["longest_gaps"]):
        return None
    (told,) = connection.execute("SELECT longest_gaps FROM request WHERE id = ?", (key,)).fetchone()
    return None if told is None else tuple(Gap(*gap) for gap in _GAPS.decode(told))


_GAPS = msgspec.json.Decoder(list[tuple[float, float]])


def spent_since(path: str | Path, since: datetime) -> Spent:
    """What was spent from a moment on.

    Args:
        path: The ledger's file.
        since: With its time zone.

    Raises:
        ConfigError: There is no ledger that could be read, or a row of it is damaged.
    """
    span = {"start": utc(since), "probe": PROBE}
    with reading(path) as connection:
        usd, joules, prompts, requests = connection.execute(_SPENT, span).fetchone()
        by_kind = connection.execute(_SPENT_PROMPT_TOKENS, span)
        told = {kind_of(path, key, kind): count for kind, key, count in by_kind}
        tokens = dict.fromkeys(Kind, 0) | told
    return Spent(usd, joules, tokens, prompts, requests)


_SPENT = """
SELECT total(usd), total(joules),
       coalesce(sum(prompt_tokens) FILTER (WHERE policy != :probe AND winner IS NOT NULL), 0),
       count(*) FILTER (WHERE policy != :probe)
FROM request WHERE recorded_at >= :start
"""
_SPENT_PROMPT_TOKENS = """
SELECT attempt.kind, min(request.id), sum(attempt.prompt_tokens)
FROM request JOIN attempt ON attempt.request = request.id
WHERE recorded_at >= :start AND policy != :probe GROUP BY attempt.kind
"""
