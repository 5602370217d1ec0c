"""The ledger: every settled request in SQLite, written by the one thread that owns the write connection."""

from __future__ import annotations

import json
import os
import queue
import sqlite3
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import platformdirs
from anyio.lowlevel import EventLoopToken

from discostream.core.qoe import gap_figures, longest_gaps
from discostream.errors import ConfigError
from discostream.ledger.migrations import ForeignDatabase, check, migrate
from discostream.types import Attempt, Migration, Outcome

__all__ = ["Ledger", "default_ledger_path"]

LOCKED_S = 15.0
"""How long to wait for another program that has locked the file."""

MOST_LOG_BYTES = 64 << 20
"""How large the write-ahead log may grow before it is begun anew, for which writing waits."""

READERS_S = 5.0
"""How long it waits for those who read just then; the dashboard takes seconds for a million requests."""


def default_ledger_path() -> Path:
    """Where the ledger is kept when the settings name no file."""
    return platformdirs.user_data_path("discostream", appauthor=False) / "ledger.db"


class Ledger:
    """Settled requests, kept in one SQLite file.

    What `record` has returned for survives `kill -9` of the process; a power cut may take the last few
    requests, never the file (write-ahead log, `synchronous = NORMAL`). No prompt or answer text is kept.

    Args:
        path: The file; it and its folder are created when missing.

    Raises:
        ConfigError: The file cannot be opened, is no ledger, or is a newer version's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _expanded(path)
        self._inbox: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._open = True
        self._gate = Lock()
        opened: Future[None] = Future()
        self._writer = Thread(
            target=_write, args=(self.path, opened, self._inbox), name="disco-ledger", daemon=True
        )
        self._writer.start()
        opened.result()
        weakref.finalize(self, self._inbox.put, None)  # whoever gave up waiting for it cannot close it

    async def record(self, outcome: Outcome, at_s: float | None = None) -> None:
        """Return once the outcome and its attempts are committed.

        An outcome handed over is written even if the waiting task is cancelled.

        Args:
            outcome: What was settled.
            at_s: When (seconds since the epoch, kept to the millisecond); this moment when left out.

        Raises:
            ConfigError: The file could not be written.
            anyio.ClosedResourceError: The ledger is closed.
        """
        at = datetime.now(UTC) if at_s is None else datetime.fromtimestamp(at_s, UTC)
        entry = _Entry(outcome, at)
        with self._gate:
            if not self._open:
                raise anyio.ClosedResourceError
            self._inbox.put(entry)
        await entry.over.wait()
        if entry.error is not None:
            raise entry.error

    def close(self) -> None:
        """Write what waits and close the file. Safe to call twice; blocks for as long as the disk does."""
        with self._gate:
            if self._open:
                self._open = False
                self._inbox.put(None)
        self._writer.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(slots=True)
class _Entry:
    """An outcome on its way to the file, from whichever event loop."""

    outcome: Outcome
    at: datetime
    error: Exception | None = None
    over: anyio.Event = field(default_factory=anyio.Event)
    _token: EventLoopToken = field(default_factory=anyio.lowlevel.current_token)

    def settle(self, error: Exception | None = None) -> None:
        """Let the waiting task go on, without waiting for its loop: that may wait for this thread."""
        self.error = error
        loop: Any = self._token.native_token
        soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        with suppress(RuntimeError):  # its loop is gone, and nobody waits
            soon(self.over.set)


def _write(path: Path, opened: Future[None], inbox: queue.SimpleQueue[_Entry | None]) -> None:
    """Be the writer thread: open the file, then commit groups until the inbox is closed."""
    with closing(_File(path)) as file:
        try:
            file.connection()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        for group in _groups(inbox):
            _commit(file, group)
            file.keep_log_short()


class _File:
    """The ledger's file. It is opened anew once somebody has removed it, or put another in its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._opened: os.stat_result
        self._most_log_bytes = MOST_LOG_BYTES

    def connection(self) -> sqlite3.Connection:
        """To the file that is there now.

        Raises:
            ConfigError: It cannot be opened.
        """
        if self._connection is None or not self._is_there():
            self._part()
            connection = _open(self.path)
            self._opened, self._connection = self.path.stat(), connection
        return self._connection

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(self._opened, self.path.stat())
        except OSError:
            return False

    def _part(self) -> None:
        """Let go of a file that is elsewhere now, or nowhere; its journal stays here, and will be lost."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint")
        self.close()

    def keep_log_short(self) -> None:
        """Begin the write-ahead log anew where it is larger than it may be.

        SQLite does that by itself whenever nobody reads. Where somebody always does, it would grow for ever,
        so they are waited for; one who reads for long is left alone until it has grown as much again.
        """
        if self._connection is None or _log_bytes(self.path) <= self._most_log_bytes:
            return
        self._connection.execute(f"PRAGMA busy_timeout = {READERS_S * 1000:.0f}")
        try:
            is_busy = bool(self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        except sqlite3.Error:  # what is wrong with the file, the next commit will tell
            is_busy = True
        self._connection.execute(f"PRAGMA busy_timeout = {LOCKED_S * 1000:.0f}")
        self._most_log_bytes = MOST_LOG_BYTES + (self._most_log_bytes if is_busy else 0)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, timeout=LOCKED_S)
    except (OSError, ValueError, sqlite3.Error) as error:
        raise _unusable(path, error) from None
    try:
        migrate(connection)
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        check(connection)  # opens the log: with the first request there may be no descriptor left for it
    except (ForeignDatabase, sqlite3.Error) as error:
        connection.close()
        raise _unusable(path, error) from None
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch the file's journal, waiting for others who are opening it; SQLite itself does not wait here."""
    give_up_at = time.monotonic() + LOCKED_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)


def _log_bytes(path: Path) -> int:
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except OSError:
        return 0


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise _unusable(Path(path), error) from None


def _unusable(path: Path, error: Exception) -> ConfigError:
    what = (error.strerror if isinstance(error, OSError) else None) or str(error)
    fix = "" if isinstance(error, ForeignDatabase) else "; make it a writable ledger or name another file"
    if "locked" in what:
        what, fix = "another program has locked it", "; end that program, or name another file"
    return ConfigError(f"ledger.path = {str(path)!r}: {what}{fix}")


def _groups(inbox: queue.SimpleQueue[_Entry | None]) -> Iterator[list[_Entry]]:
    """Whatever waits in the inbox, together, until `None` closes it."""
    entry = inbox.get()
    while entry is not None:
        group = [entry]
        with suppress(queue.Empty):
            while (entry := inbox.get_nowait()) is not None:
                group.append(entry)
        yield group
        if entry is not None:
            entry = inbox.get()


def _commit(file: _File, group: list[_Entry]) -> None:
    """Write a group in one transaction; where one outcome spoils it, one by one, so that only it fails."""
    try:
        _insert_all(file.connection(), group)
    except Exception as error:
        fault = _fault(file.path, error)
        if len(group) > 1 and not isinstance(fault, ConfigError):
            for entry in group:
                _commit(file, [entry])
            return
        for entry in group:
            entry.settle(fault)
    else:
        for entry in group:
            entry.settle()


def _fault(path: Path, error: Exception) -> Exception:
    """What the file is to blame for, told as such; a value that the schema refuses is a bug of ours."""
    if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
        return _unusable(path, error)
    return error


def _insert_all(connection: sqlite3.Connection, group: list[_Entry]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for entry in group:
            _insert(connection, entry.outcome, entry.at)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _insert(connection: sqlite3.Connection, outcome: Outcome, at: datetime) -> None:
    key = _insert_row(connection, "request", _request_row(outcome, at))
    for position, attempt in enumerate(outcome.attempts):
        _insert_row(connection, "attempt", {"request": key, "position": position, **_values(attempt)})
    for position, migration in enumerate(outcome.migrations):
        _insert_row(connection, "migration", {"request": key, "position": position, **_values(migration)})


def _values(settled: Attempt | Migration) -> dict[str, object]:
    """What it holds, which is nothing but numbers and text, so that no copies are needed."""
    return {name: getattr(settled, name) for name in settled.__slots__}


def _insert_row(connection: sqlite3.Connection, table: str, row: Mapping[str, object]) -> int | None:
    """The new row's key. Table and columns are ours, only the values come from outside."""
    return connection.execute(_statement(table, tuple(row)), row).lastrowid


@cache
def _statement(table: str, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES (:{', :'.join(columns)})"  # noqa: S608


def _request_row(outcome: Outcome, at: datetime) -> dict[str, object]:
    gaps = gap_figures(outcome.delivered_s)
    return {
        "request_id": outcome.request_id,
        "recorded_at": at.isoformat(timespec="milliseconds"),
        "policy": outcome.policy,
        "outcome": outcome.verdict,
        "winner": outcome.winner,
        "ttft_s": outcome.ttft_s,
        "finish_reason": outcome.finish_reason,
        "prompt_chars": outcome.prompt_chars,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "usd": outcome.usd,
        "joules": outcome.joules,
        "raced": outcome.raced,
        "ended_s": outcome.delivered_s[-1] if outcome.delivered_s else None,
        "longest_gaps": _longest_gaps(outcome.delivered_s),
        "mean_tbt_s": gaps and gaps.mean_s,
        "p99_tbt_s": gaps and gaps.p99_s,
        "max_tbt_s": gaps and gaps.max_s,
        "migrations": len(outcome.migrations),
        "error": outcome.error,
        "stayed": outcome.stayed,
    }


def _longest_gaps(delivered_s: Sequence[float]) -> str:
    """As a list of lists: from when, and for how long; to the microsecond."""
    gaps = [[round(gap.at_s, 6), round(gap.for_s, 6)] for gap in longest_gaps(delivered_s)]
    return json.dumps(gaps, separators=(",", ":"))
