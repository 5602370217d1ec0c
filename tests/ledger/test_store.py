from __future__ import annotations

import os
import queue
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent

import anyio
import pytest
import trio.testing

from discostream.errors import ConfigError
from discostream.ledger import store
from discostream.ledger.migrations import APPLICATION_ID, MIGRATIONS
from discostream.ledger.store import Ledger, _groups, default_ledger_path
from discostream.types import Attempt, Migration

on_both = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
in_virtual_time = pytest.mark.parametrize(
    "anyio_backend", [("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})], ids=["virtual"]
)
pytestmark = pytest.mark.anyio


def rows(path, sql):
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql)]


def written(path):
    return {row["request_id"] for row in rows(path, "SELECT request_id FROM request")}


@on_both
async def test_a_recorded_outcome_is_in_the_file_as_one_row_per_request_attempt_and_migration(path, outcome):
    """When `record` returns, another connection reads every figure back."""
    with Ledger(path) as ledger:
        await ledger.record(outcome())
        (request,) = rows(path, "SELECT * FROM request")
        attempts = rows(path, "SELECT * FROM attempt ORDER BY position")
        (migration,) = rows(path, "SELECT * FROM migration")

    assert request.pop("recorded_at").endswith("+00:00")
    assert request.pop("p99_tbt_s") == pytest.approx(0.1 + 0.99 * 0.3)
    assert request.pop("mean_tbt_s") == pytest.approx(0.25)
    assert request.pop("max_tbt_s") == pytest.approx(0.4)
    assert request == {
        "id": 1,
        "request_id": "r-1",
        "policy": "disco",
        "outcome": "ok",
        "winner": "laptop",
        "ttft_s": 0.25,
        "finish_reason": "stop",
        "prompt_chars": 48,
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "usd": 0.002,
        "joules": 1.5,
        "migrations": 1,
        "error": None,
        "stayed": None,
        "raced": 0,
        "ended_s": 0.75,
        "longest_gaps": "[[0.35,0.4]]",
    }
    assert [attempt["endpoint"] for attempt in attempts] == ["laptop", "cloud", "spare"]
    assert attempts[1] == {
        "request": 1,
        "position": 1,
        "endpoint": "cloud",
        "kind": "server",
        "start_offset_s": 0.5,
        "ttft_s": None,
        "prompt_tokens": 14,
        "completion_tokens": 1,
        "usd": 0.002,
        "joules": 0.0,
        "outcome": "migrated_to",
        "error": "slow",
        "mean_tbt_s": None,
        "ran_s": 2.5,
        "cached_tokens": None,
        "ahead": 1,
        "identity": "c10d",
        "dropped": "it was late",
        "ended_s": 3.0,
        "error_type": "decode",
    }
    assert migration == {
        "request": 1,
        "position": 0,
        "source": "laptop",
        "target": "cloud",
        "at_token": 2,
        "at_char": 9,
        "reason": "cost",
        "gap_s": 0.4,
        "by": "text",
        "why": "cheaper there",
        "at_s": 0.75,
    }


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_outcome_is_recorded_under_the_moment_it_is_given(path, outcome):
    """Whoever settles says when, to the millisecond and in UTC; otherwise it is the present."""
    with Ledger(path) as ledger:
        await ledger.record(outcome(), 1_700_000_000.125)
        await ledger.record(outcome())
    told, present = (row["recorded_at"] for row in rows(path, "SELECT recorded_at FROM request ORDER BY id"))
    assert told == "2023-11-14T22:13:20.125+00:00"
    assert abs(datetime.fromisoformat(present) - datetime.now(UTC)) < timedelta(minutes=1)


@on_both
async def test_outcomes_recorded_at_the_same_time_are_all_kept(path, outcome):
    """A hundred tasks record at once and none is lost; the same request ID twice makes two rows."""
    with Ledger(path) as ledger:
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(ledger.record, outcome(request_id=f"r-{number % 50}"))
        assert len(rows(path, "SELECT 1 FROM request")) == 100
    assert written(path) == {f"r-{number}" for number in range(50)}


@pytest.mark.parametrize(("table", "value"), [("attempt", Attempt), ("migration", Migration)])
def test_every_figure_has_a_column(path, table, value):
    """Whoever adds a field to these values also adds a migration."""
    with Ledger(path):
        columns = {row["name"] for row in rows(path, f"PRAGMA table_info({table})")}
    assert columns == {"request", "position", *(field.name for field in fields(value))}


def test_what_waits_in_the_inbox_becomes_one_group():
    """The writer takes everything that waits, and stops at the closing mark."""
    inbox = queue.SimpleQueue()
    for entry in ("a", "b", "c", None):
        inbox.put(entry)
    assert list(_groups(inbox)) == [["a", "b", "c"]]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_outcome_that_cannot_be_written_fails_alone(path, outcome):
    """A figure that the schema refuses is reported to its own task; what waited with it is committed."""
    failed = []

    async def record(ledger, one):
        try:
            await ledger.record(one)
        except sqlite3.IntegrityError:
            failed.append(one.request_id)

    with Ledger(path) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as tasks:
            for name, gap_s in (("held", 0.0), ("good", 0.0), ("bad", float("nan")), ("fine", 0.0)):
                migration = replace(outcome().migrations[0], gap_s=gap_s)
                tasks.start_soon(record, ledger, outcome(request_id=name, migrations=(migration,)))
            await anyio.sleep(0.05)
            other.execute("ROLLBACK")
    assert failed == ["bad"]
    assert written(path) == {"held", "good", "fine"}
    assert len(rows(path, "SELECT * FROM migration")) == 3


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_file_that_stops_being_writable_fails_every_outcome_that_waits(path, outcome):
    """Each task is told which file it was and why, and the ledger goes on once the file is well again."""
    complaints = []

    async def record(ledger, name):
        try:
            await ledger.record(outcome(request_id=name))
        except ConfigError as error:
            complaints.append(str(error))

    with Ledger(path) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("ALTER TABLE migration RENAME TO lost")
        async with anyio.create_task_group() as tasks:
            for name in ("a", "b", "c"):
                tasks.start_soon(record, ledger, name)
        other.execute("ALTER TABLE lost RENAME TO migration")
        await record(ledger, "d")
    assert len(complaints) == 3
    assert all("ledger.path" in complaint and "migration" in complaint for complaint in complaints)
    assert written(path) == {"d"}


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
@pytest.mark.parametrize("leftovers", [False, True])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_ledger_that_was_removed_begins_anew(path, outcome, leftovers):
    """Who removes the file, its journal with it or not, removes what it held and nothing that comes after."""
    with Ledger(path) as ledger:
        await ledger.record(outcome(request_id="old"))
        for file in [path] if leftovers else path.parent.glob(f"{path.name}*"):
            file.unlink()
        await ledger.record(outcome(request_id="new"))
        assert written(path) == {"new"}
    assert rows(path, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be moved there")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_ledger_that_was_put_away_is_whole(path, outcome):
    """A file that was renamed keeps what it held; that none can be made there is told, until one can be."""
    away = path.with_name("away.db")
    with Ledger(path) as ledger:
        await ledger.record(outcome(request_id="old"))
        path.rename(away)
        path.mkdir()
        with pytest.raises(ConfigError, match=r"ledger\.path = .*unable to open"):
            await ledger.record(outcome(request_id="lost"))
        path.rmdir()
        await ledger.record(outcome(request_id="new"))
    assert (written(away), written(path)) == ({"old"}, {"new"})


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_write_ahead_log_stays_short_while_somebody_always_reads(path, outcome, monkeypatch):
    """Readers who relieve each other keep SQLite from beginning it anew; they are waited for."""
    monkeypatch.setattr(store, "MOST_LOG_BYTES", 200_000)
    over, longest = threading.Event(), 0

    def read_in_turns():
        reader = reads = None
        while not over.wait(0.02):
            reader, reads = reads, sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            reads.execute("BEGIN")
            reads.execute("SELECT count(*) FROM request").fetchone()
            if reader is not None:
                reader.close()
        reads.close()

    with Ledger(path) as ledger, ThreadPoolExecutor() as threads:
        threads.submit(read_in_turns)
        for _ in range(200):
            await ledger.record(outcome())
            longest = max(longest, path.with_name("ledger.db-wal").stat().st_size)
        over.set()
    assert 200_000 < longest < 300_000
    assert len(rows(path, "SELECT id FROM request")) == 200


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_one_who_reads_for_long_holds_up_writing_seldom(path, outcome, monkeypatch):
    """After a vain wait the log may grow as much again; once the reader is gone it is emptied."""
    monkeypatch.setattr(store, "MOST_LOG_BYTES", 200_000)
    monkeypatch.setattr(store, "READERS_S", 0.1)
    log = path.with_name("ledger.db-wal")
    with Ledger(path) as ledger:
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM request").fetchone()
            began = time.monotonic()
            while log.stat().st_size < 500_000:
                await ledger.record(outcome())
            assert 0.2 <= time.monotonic() - began < 10.0
        while log.stat().st_size > 200_000:
            await ledger.record(outcome())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_recording_opens_no_files(path, outcome):
    """When clients have taken every descriptor there is, what was spent is still recorded."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Ledger(path) as ledger:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            await ledger.record(outcome())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert written(path) == {"r-1"}


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({}, "ok"),
        ({"finish_reason": None, "error": "cloud: connection reset"}, "failed"),
        ({"finish_reason": None}, "cancelled"),
    ],
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_outcome_is_one_word(path, outcome, changed, word):
    """An answer that ended is ok, one that broke failed, one without either was cancelled by its client."""
    with Ledger(path) as ledger:
        await ledger.record(outcome(**changed))
    assert rows(path, "SELECT outcome FROM request") == [{"outcome": word}]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_answer_of_one_token_has_no_tbt(path, outcome):
    """Figures that do not exist are NULL, not zero."""
    with Ledger(path) as ledger:
        await ledger.record(outcome(delivered_s=(0.25,)))
    (figures,) = rows(path, "SELECT mean_tbt_s, p99_tbt_s, max_tbt_s FROM request")
    assert set(figures.values()) == {None}


@in_virtual_time
async def test_recording_works_in_virtual_time(path, outcome):
    """Waiting for the writer thread neither hangs nor fails under trio's autojumping clock."""
    with Ledger(path) as ledger:
        await ledger.record(outcome())
    assert written(path) == {"r-1"}


@on_both
async def test_a_cancelled_task_still_has_its_outcome_written(path, outcome):
    """Cancellation reaches the waiting task only; the ledger keeps what it was given."""
    with Ledger(path) as ledger:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ledger.record(outcome())
        assert scope.cancelled_caught
    assert written(path) == {"r-1"}


@on_both
async def test_closing_twice_is_safe_and_recording_after_it_is_refused(path, outcome):
    """`close` may be called again; a late `record` is told that the ledger is closed."""
    ledger = Ledger(path)
    ledger.close()
    ledger.close()
    with pytest.raises(anyio.ClosedResourceError):
        await ledger.record(outcome())


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_ledger_is_continued_by_the_next_one(path, outcome):
    """Opening an existing file keeps its rows and applies no migration twice."""
    for name in ("first", "second"):
        with Ledger(path) as ledger:
            await ledger.record(outcome(request_id=name))
    assert written(path) == {"first", "second"}
    assert rows(path, "PRAGMA user_version") == [{"user_version": len(MIGRATIONS)}]
    assert rows(path, "PRAGMA application_id") == [{"application_id": APPLICATION_ID}]
    assert rows(path, "PRAGMA journal_mode") == [{"journal_mode": "wal"}]


def test_the_default_path_is_a_file_in_a_folder_of_our_own():
    """Without a setting the ledger lies in the platform's data folder for discostream."""
    assert default_ledger_path().name == "ledger.db"
    assert default_ledger_path().parent.name == "discostream"


def _corrupt(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)


def _newer(path: Path) -> None:
    with Ledger(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_corrupt, "file is not a database"),
        (_newer, "written by a newer discostream .* upgrade discostream or name another file"),
        (_foreign, "another program's database; name another file"),
        (Path.mkdir, "unable to open database file"),
    ],
)
def test_a_file_that_cannot_be_the_ledger_is_refused_and_left_alone(tmp_path, spoil, complaint):
    """A wrong file is one clear error that names the setting, the path and the fix; no byte of it changes."""
    path = tmp_path / "wrong.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ConfigError, match=rf"ledger\.path = {re.escape(repr(str(path)))}: .*{complaint}"):
        Ledger(path)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    """A file where the folder should be is reported as what it is."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"ledger.path = .*file.*(exists|[Dd]irectory)"):
        Ledger(tmp_path / "file" / "ledger.db")


RECORD_UNTIL_KILLED = dedent(
    """
    import sys
    import anyio
    from discostream.ledger.store import Ledger
    from discostream.types import FinishReason, Outcome

    def outcome(name):
        return Outcome(request_id=name, policy="disco", winner="cloud", ttft_s=0.2,
                       finish_reason=FinishReason.STOP, prompt_chars=36, prompt_tokens=9, completion_tokens=2,
                       attempts=(), migrations=(), delivered_s=(0.2, 0.3))

    async def write(ledger, writer):
        for number in range(1_000_000):
            await ledger.record(outcome(f"{writer}-{number}"))
            print(f"{writer}-{number}", flush=True)

    async def main():
        ledger = Ledger(sys.argv[1])
        async with anyio.create_task_group() as tasks:
            for writer in range(4):
                tasks.start_soon(write, ledger, writer)

    anyio.run(main)
    """
)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this platform")
def test_what_was_acknowledged_survives_kill_9(path):
    """A process is killed in the middle of writing; every outcome it had seen recorded is in the file."""
    command = [sys.executable, "-c", RECORD_UNTIL_KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        acknowledged = [process.stdout.readline() for _ in range(200)]
        process.kill()
        acknowledged += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    complete = {line.strip() for line in acknowledged if line.endswith("\n")}
    assert len(complete) >= 200
    assert complete <= written(path)
    assert rows(path, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


def test_many_may_open_a_new_ledger_at_once(tmp_path):
    """Whoever comes first makes the file; the others find it made, and nobody is turned away."""
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(5):
            path = tmp_path / f"{round_}.db"
            for ledger in pool.map(lambda _, path=path: Ledger(path), range(8)):
                ledger.close()


@pytest.mark.parametrize("path", ["~nobody-of-this-name/ledger.db", "led\0ger.db"])
def test_what_is_no_path_is_refused(path):
    """A path that means nothing on this machine is a mistake in the settings."""
    with pytest.raises(ConfigError, match=r"ledger\.path"):
        Ledger(path)
