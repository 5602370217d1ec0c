"""Rows of the ledger as what was settled: outcomes, their attempts and their handoffs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from discostream.ledger.migrations import check
from discostream.ledger.reading import columns_of, damaged, reading
from discostream.types import (
    Attempt,
    AttemptOutcome,
    Carrier,
    FinishReason,
    Kind,
    Migration,
    MigrationReason,
    Outcome,
)

__all__ = ["attempt_of", "history", "migration_of", "rows_by_request"]


def history(path: str | Path, requests: int) -> Iterator[tuple[float, Outcome]]:
    """The last requests, oldest first: when each was settled (seconds since the epoch), and its outcome.

    The ledger does not keep when each token was delivered, so `delivered_s` is empty. What was recorded
    before schema 2 is left out, since it does not say enough.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    with reading(path) as connection:
        if check(connection) < 2:
            return
        columns = columns_of(connection, "request", _REQUEST)
        newest = f"SELECT id, recorded_at, {', '.join(columns)} FROM request ORDER BY id DESC LIMIT ?"  # noqa: S608
        rows = connection.execute(newest, (requests,)).fetchall()[::-1]
        span = (rows[0][0], rows[-1][0]) if rows else (0, 0)
        attempts = rows_by_request(connection, "attempt", span)
        migrations = rows_by_request(connection, "migration", span)
    for key, recorded_at, *row in rows:
        told = dict(zip(columns, row, strict=True))
        if told["prompt_chars"] is not None:
            try:
                at_s = datetime.fromisoformat(recorded_at).timestamp()
                outcome = _outcome(told, attempts.get(key, ()), migrations.get(key, ()))
            except ValueError as error:
                raise damaged(path, key, error) from None
            yield at_s, outcome


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
_COLUMNS = {
    "attempt": [field.name for field in fields(Attempt)],
    "migration": [field.name for field in fields(Migration)],
}


def rows_by_request(
    connection: sqlite3.Connection, table: str, span: tuple[int, int]
) -> dict[int, list[dict[str, Any]]]:
    """The rows of `attempt` or `migration` that belong to a span of requests, by their keys."""
    columns = columns_of(connection, table, _COLUMNS[table])
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
        attempts=tuple(map(attempt_of, attempts)),
        migrations=tuple(map(migration_of, migrations)),
        delivered_s=(),
    )


def attempt_of(told: dict[str, Any]) -> Attempt:
    """The attempt in a row.

    Raises:
        ValueError: The row is damaged.
    """
    kind, outcome = Kind(told.pop("kind")), AttemptOutcome(told.pop("outcome"))
    return Attempt(**told, kind=kind, outcome=outcome)


def migration_of(told: dict[str, Any]) -> Migration:
    """The handoff in a row.

    Raises:
        ValueError: The row is damaged.
    """
    reason, by = MigrationReason(told.pop("reason")), Carrier(told.pop("by"))
    return Migration(**told, reason=reason, by=by)
