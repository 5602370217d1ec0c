"""What the ledger says, read over connections that cannot write."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from discostream.errors import ConfigError
from discostream.ledger.migrations import ForeignDatabase, check
from discostream.types import (
    PROBE,
    Attempt,
    AttemptOutcome,
    Carrier,
    FinishReason,
    Kind,
    Migration,
    MigrationReason,
    Outcome,
)

__all__ = [
    "EndpointTotals",
    "RecordedRequest",
    "Spent",
    "Totals",
    "history",
    "recent",
    "spent_since",
    "totals",
]


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


def totals(path: str | Path) -> Totals:
    """Sums over everything recorded.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    with _reading(path) as connection:
        sums = connection.execute("SELECT count(*), total(usd), total(joules) FROM request")
        requests, usd, joules = sums.fetchone()
        by_endpoint = connection.execute(
            """
            SELECT endpoint, count(*), sum(prompt_tokens), sum(completion_tokens), total(usd), total(joules)
            FROM attempt WHERE outcome != 'not_started' GROUP BY endpoint ORDER BY endpoint
            """
        )
        return Totals(requests, usd, joules, tuple(EndpointTotals(*row) for row in by_endpoint))


def recent(path: str | Path, n: int = 20) -> list[RecordedRequest]:
    """The last `n` requests, newest first.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    columns = ", ".join(RecordedRequest.__slots__)
    newest_first = f"SELECT {columns} FROM request ORDER BY id DESC LIMIT ?"  # noqa: S608
    with _reading(path) as connection:
        return [RecordedRequest(*row) for row in connection.execute(newest_first, (n,))]


def spent_since(path: str | Path, since: datetime) -> Spent:
    """What was spent from a moment on.

    Args:
        path: The ledger's file.
        since: With its time zone.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    span = {"start": since.astimezone(UTC).isoformat(timespec="milliseconds"), "probe": PROBE}
    with _reading(path) as connection:
        usd, joules, prompts, requests = connection.execute(_SPENT, span).fetchone()
        by_kind = connection.execute(_SPENT_PROMPT_TOKENS, span)
        tokens = dict.fromkeys(Kind, 0) | {Kind(kind): count for kind, count in by_kind}
    return Spent(usd, joules, tokens, prompts, requests)


_SPENT = """
SELECT total(usd), total(joules),
       coalesce(sum(prompt_tokens) FILTER (WHERE policy != :probe AND winner IS NOT NULL), 0),
       count(*) FILTER (WHERE policy != :probe)
FROM request WHERE recorded_at >= :start
"""
_SPENT_PROMPT_TOKENS = """
SELECT attempt.kind, sum(attempt.prompt_tokens)
FROM request JOIN attempt ON attempt.request = request.id
WHERE recorded_at >= :start AND policy != :probe GROUP BY attempt.kind
"""


def history(path: str | Path, requests: int) -> Iterator[tuple[float, Outcome]]:
    """The last requests, oldest first: when each was settled (seconds since the epoch), and its outcome.

    The ledger does not keep when each token was delivered, so `delivered_s` is empty. What was recorded
    before schema 2 is left out, since it does not say enough.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    with _reading(path) as connection:
        if check(connection) < 2:
            return
        columns = _kept(connection, "request", _REQUEST)
        newest = f"SELECT id, recorded_at, {', '.join(columns)} FROM request ORDER BY id DESC LIMIT ?"  # noqa: S608
        rows = connection.execute(newest, (requests,)).fetchall()[::-1]
        span = (rows[0][0], rows[-1][0]) if rows else (0, 0)
        attempts = _by_request(connection, "attempt", _ATTEMPT, span)
        migrations = _by_request(connection, "migration", _MIGRATION, span)
    for key, recorded_at, *row in rows:
        told = dict(zip(columns, row, strict=True))
        if told["prompt_chars"] is not None:
            try:
                at_s = datetime.fromisoformat(recorded_at).timestamp()
                outcome = _outcome(told, attempts.get(key, ()), migrations.get(key, ()))
            except ValueError as error:
                raise ConfigError(f"ledger.path = {str(path)!r}: request {key} is damaged: {error}") from None
            yield at_s, outcome


_ATTEMPT = tuple(field.name for field in fields(Attempt))
_MIGRATION = tuple(field.name for field in fields(Migration))
_REQUEST = (
    "request_id",
    "policy",
    "winner",
    "ttft_s",
    "finish_reason",
    "prompt_chars",
    "prompt_tokens",
    "completion_tokens",
    "error",
    "stayed",
)


def _kept(connection: sqlite3.Connection, table: str, columns: Sequence[str]) -> list[str]:
    """Those of the columns that the file has; an older one, which nobody has written to since, lacks some."""
    there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    return [column for column in columns if column in there]


def _by_request(
    connection: sqlite3.Connection, table: str, columns: Sequence[str], span: tuple[int, int]
) -> dict[int, list[dict[str, Any]]]:
    """The rows of a table that belong to a span of requests, by request; names are ours."""
    columns = _kept(connection, table, columns)
    wanted = f"SELECT request, {', '.join(columns)} FROM {table} WHERE request BETWEEN ? AND ? "  # noqa: S608
    grouped: dict[int, list[dict[str, Any]]] = {}
    for request, *row in connection.execute(f"{wanted} ORDER BY request, position", span):
        grouped.setdefault(request, []).append(dict(zip(columns, row, strict=True)))
    return grouped


def _outcome(
    told: dict[str, Any], attempts: Iterable[dict[str, Any]], migrations: Iterable[dict[str, Any]]
) -> Outcome:
    reason = told.pop("finish_reason")
    return Outcome(
        **told,
        finish_reason=None if reason is None else FinishReason(reason),
        attempts=tuple(map(_attempt, attempts)),
        migrations=tuple(map(_migration, migrations)),
        delivered_s=(),
    )


def _attempt(told: dict[str, Any]) -> Attempt:
    kind, outcome = Kind(told.pop("kind")), AttemptOutcome(told.pop("outcome"))
    return Attempt(**told, kind=kind, outcome=outcome)


def _migration(told: dict[str, Any]) -> Migration:
    reason, by = MigrationReason(told.pop("reason")), Carrier(told.pop("by"))
    return Migration(**told, reason=reason, by=by)


@contextmanager
def _reading(path: str | Path) -> Iterator[sqlite3.Connection]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"ledger.path = {str(path)!r}: no ledger yet; it begins with the first request")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            check(connection)
            yield connection
    except (ForeignDatabase, sqlite3.Error) as error:
        raise ConfigError(f"ledger.path = {str(path)!r}: {error}") from None
