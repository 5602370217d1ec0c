"""The ledger's schema as an append-only list: a change is a new entry, never an edit of an old one."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

__all__ = ["APPLICATION_ID", "MIGRATIONS", "ForeignDatabase", "check", "migrate"]

APPLICATION_ID = 0x44495343
"""Marks a SQLite file as a ledger of ours: `DISC` in the file's header."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE request (
            id                INTEGER PRIMARY KEY,
            request_id        TEXT NOT NULL,
            recorded_at       TEXT NOT NULL,
            policy            TEXT NOT NULL,
            outcome           TEXT NOT NULL CHECK (outcome IN ('ok', 'failed', 'cancelled')),
            winner            TEXT,
            ttft_s            REAL,
            finish_reason     TEXT,
            prompt_tokens     INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            usd               REAL NOT NULL,
            joules            REAL NOT NULL,
            mean_tbt_s        REAL,
            p99_tbt_s         REAL,
            max_tbt_s         REAL,
            migrations        INTEGER NOT NULL,
            error             TEXT
        )
        """,
        "CREATE INDEX request_by_request_id ON request (request_id)",
        """
        CREATE TABLE attempt (
            request           INTEGER NOT NULL REFERENCES request (id),
            position          INTEGER NOT NULL,
            endpoint          TEXT NOT NULL,
            kind              TEXT NOT NULL,
            start_offset_s    REAL NOT NULL,
            ttft_s            REAL,
            prompt_tokens     INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            usd               REAL NOT NULL,
            joules            REAL NOT NULL,
            outcome           TEXT NOT NULL,
            error             TEXT,
            mean_tbt_s        REAL,
            PRIMARY KEY (request, position)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE migration (
            request  INTEGER NOT NULL REFERENCES request (id),
            position INTEGER NOT NULL,
            source   TEXT NOT NULL,
            target   TEXT NOT NULL,
            at_token INTEGER NOT NULL,
            at_char  INTEGER NOT NULL,
            reason   TEXT NOT NULL,
            gap_s    REAL NOT NULL,
            by       TEXT NOT NULL,
            PRIMARY KEY (request, position)
        ) WITHOUT ROWID
        """,
    ),
    (
        "ALTER TABLE request ADD COLUMN prompt_chars INTEGER",
        "CREATE INDEX request_by_recorded_at ON request (recorded_at)",
        "ALTER TABLE attempt ADD COLUMN ran_s REAL",
        "ALTER TABLE attempt ADD COLUMN cached_tokens INTEGER",
        "ALTER TABLE attempt ADD COLUMN ahead INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE attempt ADD COLUMN identity TEXT NOT NULL DEFAULT ''",
    ),
    (
        "ALTER TABLE request ADD COLUMN stayed TEXT",
        "ALTER TABLE attempt ADD COLUMN dropped TEXT",
        "ALTER TABLE migration ADD COLUMN why TEXT NOT NULL DEFAULT ''",
    ),
    (
        "ALTER TABLE request ADD COLUMN raced INTEGER",
        "ALTER TABLE request ADD COLUMN ended_s REAL",
        "ALTER TABLE request ADD COLUMN longest_gaps TEXT",
        "ALTER TABLE attempt ADD COLUMN ended_s REAL",
        "ALTER TABLE attempt ADD COLUMN error_type TEXT",
        "ALTER TABLE migration ADD COLUMN at_s REAL",
        """
        CREATE INDEX attempt_by_endpoint ON attempt (
            endpoint, kind, request, outcome, start_offset_s, ttft_s,
            prompt_tokens, completion_tokens, usd, joules
        )
        """,
        """
        UPDATE request SET raced = 1 < (
            SELECT count(*) FROM attempt
            WHERE attempt.request = request.id AND outcome != 'not_started' AND start_offset_s < coalesce(
                (
                    SELECT min(spoken.ttft_s) FROM attempt AS spoken
                    WHERE spoken.request = request.id AND spoken.outcome != 'not_started'
                ),
                9e999
            )
        )
        """,
    ),
)
"""Entry n takes a file from version n to n + 1; the version is kept in `PRAGMA user_version`."""


class ForeignDatabase(Exception):  # noqa: N818 - says what was found
    """The file is a SQLite database, but not one that this version can keep a ledger in."""


def check(connection: sqlite3.Connection) -> int:
    """The schema version of the file behind `connection`; 0 for an empty one.

    Raises:
        ForeignDatabase: Another program's file, or one that a newer discostream wrote.
    """
    owner: int = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if owner != APPLICATION_ID and (owner or version or tables):
        raise ForeignDatabase("is another program's database; name another file")
    if version > len(MIGRATIONS):
        raise ForeignDatabase(
            f"was written by a newer discostream (schema {version}, this one knows {len(MIGRATIONS)}); "
            "upgrade discostream or name another file"
        )
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file up to the newest schema in one transaction, whoever else opens it at this moment.

    Args:
        connection: In autocommit mode (`isolation_level=None`).

    Raises:
        ForeignDatabase: See `check`; the file is left as it was.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        _apply(connection, MIGRATIONS[check(connection) :])
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _apply(connection: sqlite3.Connection, missing: Sequence[Sequence[str]]) -> None:
    if not missing:
        return
    for statements in missing:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
