"""Connections to the ledger that cannot write, whatever version wrote it, and what is wrong with a row."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from discostream.errors import ConfigError
from discostream.ledger.migrations import ForeignDatabase, check
from discostream.types import Kind

__all__ = ["columns_of", "damaged", "kind_of", "reading", "utc"]

CANNOT_SHARE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
"""How SQLite says that it may not write beside a file, which it does to share one with a write-ahead log."""


@contextmanager
def reading(path: str | Path) -> Iterator[sqlite3.Connection]:
    """A connection to the ledger's file that cannot write.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"ledger.path = {str(path)!r}: no ledger yet; it begins with the first request")
    try:
        with closing(_open(path)) as connection:
            check(connection)
            yield connection
    except (ForeignDatabase, sqlite3.Error) as error:
        raise ConfigError(f"ledger.path = {str(path)!r}: {error}") from None


def _open(path: Path) -> sqlite3.Connection:
    """Shared with whoever writes to the file; or, where that takes more than we may do, while nobody does."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True)
    try:
        connection.execute("SELECT 1 FROM sqlite_master")
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF in CANNOT_SHARE and not path.with_name(f"{path.name}-wal").exists():
            connection.close()
            return sqlite3.connect(f"{uri}&immutable=1", uri=True)
    return connection


def columns_of(connection: sqlite3.Connection, table: str, columns: Sequence[str]) -> list[str]:
    """Those of the columns that the file has; an older one, which nobody has written to since, lacks some."""
    there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    return [column for column in columns if column in there]


def kind_of(path: str | Path, key: int, kind: str) -> Kind:
    """The kind of an endpoint, as a row of this request has it.

    Raises:
        ConfigError: There is no such kind.
    """
    try:
        return Kind(kind)
    except ValueError as error:
        raise damaged(path, key, error) from None


def damaged(path: str | Path, key: int, error: ValueError) -> ConfigError:
    """The error for a row that says what it cannot say."""
    return ConfigError(f"ledger.path = {str(path)!r}: request {key} is damaged: {error}")


def utc(at: datetime) -> str:
    """A moment, told with its time zone, as `recorded_at` has it."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")
