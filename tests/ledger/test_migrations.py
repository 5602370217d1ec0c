from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from discostream.ledger import migrations
from discostream.ledger.migrations import ForeignDatabase, check, migrate


@pytest.fixture
def connection():
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        yield opened


def test_a_new_file_is_brought_to_the_newest_schema(connection):
    """An empty file has version 0 and no tables; a migrated one has them all."""
    assert check(connection) == 0
    migrate(connection)
    assert check(connection) == len(migrations.MIGRATIONS)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"request", "attempt", "migration"}


def test_only_missing_migrations_are_applied(connection, monkeypatch):
    """A file of version n gets entry n and later, and keeps its rows."""
    migrate(connection)
    connection.execute(
        "INSERT INTO migration VALUES (1, 0, 'laptop', 'cloud', 2, 9, 'cost', 0.4, 'text', 'cheap', 1.5)"
    )
    later = ("ALTER TABLE migration ADD COLUMN regretted INTEGER",)
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, later))
    migrate(connection)
    assert check(connection) == len(migrations.MIGRATIONS)
    assert connection.execute("SELECT target, regretted FROM migration").fetchall() == [("cloud", None)]


def test_a_migration_that_fails_changes_nothing(connection, monkeypatch):
    """All statements and the version are one transaction."""
    broken = ("CREATE TABLE half (done)", "SELECT * FROM nowhere")
    monkeypatch.setattr(migrations, "MIGRATIONS", (broken,))
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        migrate(connection)
    assert not connection.in_transaction
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    assert check(connection) == 0


def test_another_programs_file_is_refused(connection):
    """A database that carries somebody else's mark is not ours, even when it is empty."""
    connection.execute("PRAGMA application_id = 7")
    with pytest.raises(ForeignDatabase, match="another program's"):
        migrate(connection)
