from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from discostream.core.qoe import Gap
from discostream.errors import ConfigError
from discostream.ledger import migrations, queries
from discostream.ledger.activity import activity
from discostream.ledger.outcomes import history
from discostream.ledger.overview import overview
from discostream.ledger.queries import (
    EndpointTotals,
    Settled,
    Spent,
    Wanted,
    find,
    page,
    recent,
    settled_as,
    shortest_beginnings,
    spent_since,
    totals,
)
from discostream.ledger.store import Ledger
from discostream.types import PROBE, AttemptOutcome, Kind, MigrationReason

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOBODY = 65534

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


async def test_totals_add_up_requests_and_started_attempts(path, outcome):
    """Sums by endpoint count losers and targets too, and leave out what was never started."""
    with Ledger(path) as ledger:
        await ledger.record(outcome())
        await ledger.record(outcome(request_id="r-2", attempts=outcome().attempts[:1]))
        found = totals(path)
    assert (found.requests, found.usd, found.joules) == (2, 0.002, 3.0)
    assert found.endpoints == (
        EndpointTotals("cloud", 1, 14, 1, 0.002, 0.0),
        EndpointTotals("laptop", 2, 24, 4, 0.0, 3.0),
    )


async def test_an_empty_ledger_has_totals_of_zero(path):
    """Before the first request nothing was spent."""
    with Ledger(path):
        found = totals(path)
    assert (found.requests, found.usd, found.joules, found.endpoints) == (0, 0.0, 0.0, ())


async def test_recent_requests_come_newest_first(path, outcome):
    """The last n rows, also after the gateway has gone."""
    with Ledger(path) as ledger:
        for number in range(5):
            await ledger.record(outcome(request_id=f"r-{number}"))
    found = recent(path, 2)
    assert [request.request_id for request in found] == ["r-4", "r-3"]
    assert (found[0].winner, found[0].outcome, found[0].migrations) == ("laptop", "ok", 1)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), ["down", "left", "alone", "race"]),
        (Wanted(since=NOON + timedelta(seconds=2)), ["down", "left"]),
        (
            Wanted(since=(NOON + timedelta(seconds=2)).astimezone(timezone(timedelta(hours=9)))),
            ["down", "left"],
        ),
        (Wanted(policy="disco"), ["left", "alone", "race"]),
        (Wanted(policy="disco, private"), ["alone"]),
        (Wanted(endpoint="cloud"), ["down", "race"]),
        (Wanted(endpoint="spare"), []),
        (Wanted(outcome="ok"), ["alone", "race"]),
        (Wanted(outcome="cancelled"), ["left"]),
        (Wanted(outcome="failed", endpoint="cloud", policy="fast", since=NOON), ["down"]),
        (Wanted(outcome="failed", endpoint="laptop"), []),
    ],
)
async def test_recent_requests_can_be_chosen(path, outcome, wanted, found):
    """By moment in any zone, by policy, private or not, by endpoint if it was started, and by outcome."""
    laptop, cloud, _ = outcome().attempts
    settled = [
        outcome(request_id="race"),
        outcome(request_id="alone", policy="disco, private", attempts=(laptop,)),
        outcome(request_id="left", attempts=(laptop,), finish_reason=None),
        outcome(request_id="down", policy="fast", attempts=(cloud,), finish_reason=None, error="503"),
    ]
    with Ledger(path) as ledger:
        for number, one in enumerate(settled):
            await ledger.record(one, NOON.timestamp() + number)
    assert [request.request_id for request in recent(path, 20, wanted)] == found
    assert [request.request_id for request in recent(path, 1, wanted)] == found[:1]


async def test_pages_follow_each_other(path, outcome):
    """Each goes on where the one before ended, also among requests of one moment, and the last says so."""
    with Ledger(path) as ledger:
        for number in range(7):
            await ledger.record(outcome(request_id=f"r-{number}"), NOON.timestamp() + number // 3)
    seen, before = [], None
    for _ in range(3):
        requests, before = page(path, 3, Wanted(policy="disco"), before)
        seen += [request.request_id for request in requests]
    assert seen == [f"r-{number}" for number in range(6, -1, -1)]
    assert before is None
    assert page(path, 7) == (recent(path, 7), None)
    assert page(path, 3, before=1) == page(path, 3, before=99) == ([], None)


async def test_a_page_is_found_by_an_index(path):
    """However many there are, no more are looked at than are told."""
    with Ledger(path), closing(sqlite3.connect(path)) as connection:
        query = f"SELECT id FROM request WHERE {queries._BEFORE} ORDER BY recorded_at DESC, id DESC LIMIT 3"
        steps = [step for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {query}", {"before": 1})]
    assert any("INDEX request_by_recorded_at (recorded_at<?)" in step for step in steps)
    assert not any("TEMP" in step for step in steps)


async def test_exactly_this_id_is_found(path, outcome):
    """Every request that has it, the newest first; not one whose ID only begins so, and none is no error."""
    with Ledger(path) as ledger:
        for request_id in ("ab", "abc", "ab"):
            await ledger.record(outcome(request_id=request_id))
    assert settled_as(path, "ab") == find(path, "ab")
    assert len(settled_as(path, "ab")) == 2
    assert settled_as(path, "a") == []


async def test_a_request_is_found_by_the_beginning_of_its_id(path, outcome):
    """With its attempts and migrations; a rescue is counted among the migrations, and by itself."""
    rescue = replace(outcome().migrations[0], reason=MigrationReason.RESCUE)
    rescued = outcome(request_id="abcd", migrations=(*outcome().migrations, rescue), stayed="dear")
    with Ledger(path) as ledger:
        await ledger.record(outcome(request_id="abce"))
        await ledger.record(rescued)
        (found,) = find(path, "abcd")
        assert find(path, "abce") == find(path, "abce")[:1] != [found]
    assert found == Settled(recent(path, 1)[0], rescued.attempts, rescued.migrations, (Gap(0.35, 0.4),))
    assert (found.request.migrations, found.request.rescues) == (2, 1)
    assert (found.request.prompt_chars, found.request.stayed) == (48, "dear")


async def test_an_id_that_is_no_longer_goes_before_those_that_go_on(path, outcome):
    """Every ID can be asked for, even one that others begin with, and one that was used again has all."""
    with Ledger(path) as ledger:
        for number, request_id in enumerate(("ab", "abc", "ab", "b")):
            await ledger.record(outcome(request_id=request_id, prompt_tokens=number))
    assert [settled.request.prompt_tokens for settled in find(path, "ab")] == [2, 0]
    assert [settled.request.prompt_tokens for settled in find(path, "b")] == [3]
    with pytest.raises(ConfigError, match=r"ID 'a': several begin so \(ab, abc\); write more"):
        find(path, "a")
    with pytest.raises(ConfigError, match="ID 'abcd': no settled request's begins so"):
        find(path, "abcd")


async def test_a_beginning_that_fits_many_tells_some_of_them(path, outcome):
    """The first few are enough to see what is missing."""
    with Ledger(path) as ledger:
        for number in range(9):
            await ledger.record(outcome(request_id=f"r-{number}"))
    with pytest.raises(ConfigError, match=re.escape("(r-0, r-1, r-2, r-3, r-4, …)")):
        find(path, "")


async def test_ids_are_shortened_as_far_as_they_are_found(path, outcome):
    """Eight characters, more where another ID begins with those, and all where one goes on from it."""
    ids = ["0123456789ab", "0123456789cd", "aaaaaaaa0000", "aaaaaaab0000", "twice", "whole-id", "whole-id-2"]
    with Ledger(path) as ledger:
        for request_id in (*ids, "twice"):
            await ledger.record(outcome(request_id=request_id))
    called = shortest_beginnings(path, ids)
    short = ["0123456789a", "0123456789c", "aaaaaaaa", "aaaaaaab", "twice", "whole-id", "whole-id-"]
    assert called == dict(zip(ids, short, strict=True))
    assert all(find(path, short)[0].request.request_id == request_id for request_id, short in called.items())


async def test_a_damaged_row_that_is_asked_for_is_named(path, outcome):
    """The file, the request, and what is wrong with it."""
    with Ledger(path) as ledger:
        await ledger.record(outcome())
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE attempt SET kind = 'abacus'")
    with pytest.raises(ConfigError, match="request 1 is damaged: 'abacus' is not a valid Kind"):
        find(path, "r-1")


async def test_reading_a_ledger_that_is_not_there_says_so(tmp_path):
    """No file is created by looking."""
    with pytest.raises(ConfigError, match="no ledger yet"):
        totals(tmp_path / "none.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users as POSIX has them")
async def test_another_user_may_read(outcome):
    """Without leave to write the file or beside it, the ledger is read while it is open and afterwards."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.db"
        with Ledger(path) as ledger:
            await ledger.record(outcome())
            with another_user(path.parent):
                assert totals(path).requests == 1
        with another_user(path.parent):
            assert totals(path).requests == 1
            assert not os.access(name, os.W_OK, effective_ids=True)
        assert os.listdir(name) == ["ledger.db"]


@contextmanager
def another_user(folder):
    """Somebody who may look into the folder, and not write to it."""
    ourselves = os.geteuid()
    folder.chmod(0o555)
    if ourselves == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(ourselves)
        folder.chmod(0o755)


async def test_reading_another_programs_file_is_refused(tmp_path):
    """A foreign database is named as what it is."""
    path = tmp_path / "recipes.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(ConfigError, match="another program's"):
        recent(path)


async def test_what_was_spent_since_a_moment(path, outcome):
    """Requests from that moment on count, to the millisecond and in any time zone, losers included."""
    with Ledger(path) as ledger:
        for seconds in (-0.001, 0.0, 60.0):
            await ledger.record(outcome(), NOON.timestamp() + seconds)
    tokens = {Kind.DEVICE: 24, Kind.SERVER: 28}
    assert spent_since(path, NOON) == Spent(0.004, 3.0, tokens, all_prompt_tokens=24, requests=2)
    elsewhere = NOON.astimezone(timezone(timedelta(hours=-7)))
    assert spent_since(path, elsewhere) == spent_since(path, NOON)


async def test_nothing_was_spent_before_the_first_request(path):
    """An empty ledger has every sum at zero."""
    with Ledger(path):
        found = spent_since(path, NOON)
    assert found == Spent(0.0, 0.0, {Kind.DEVICE: 0, Kind.SERVER: 0}, all_prompt_tokens=0, requests=0)


async def test_a_share_is_of_the_prompts_that_were_answered(path, outcome):
    """A request that nobody could answer was one, and cost what it cost, but adds nothing to share out."""
    with Ledger(path) as ledger:
        await ledger.record(outcome())
        await ledger.record(outcome(winner=None, finish_reason=None, error="cloud: down"))
    found = spent_since(path, NOON)
    assert (found.requests, found.all_prompt_tokens) == (2, 12)
    assert found.prompt_tokens == {Kind.DEVICE: 24, Kind.SERVER: 28}


async def test_probes_cost_money_but_no_share(path, outcome):
    """A probe's dollars and joules are spent like any others; shares are of real requests' prompts."""
    with Ledger(path) as ledger:
        await ledger.record(outcome())
        await ledger.record(outcome(policy=PROBE))
    found = spent_since(path, NOON)
    assert (found.usd, found.joules, found.requests, found.all_prompt_tokens) == (0.004, 3.0, 1, 12)
    assert found.prompt_tokens == {Kind.DEVICE: 12, Kind.SERVER: 14}


@pytest.mark.parametrize("query", [queries._SPENT, queries._SPENT_PROMPT_TOKENS])
async def test_a_span_of_time_is_found_by_an_index(path, query):
    """However many requests there are, only those of the span are looked at."""
    with Ledger(path), closing(sqlite3.connect(path)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {query}", {"start": "2026", "probe": PROBE})
        steps = [step for *_, step in plan]
    assert steps[0] == "SEARCH request USING INDEX request_by_recorded_at (recorded_at>?)"
    assert not any(step.startswith("SCAN") for step in steps)


async def test_history_gives_the_outcomes_back(path, outcome):
    """The last requests come back oldest first, whole but for the moments of delivery."""
    settled = [
        outcome(),
        outcome(request_id="r-2", attempts=(), migrations=(), winner=None, ttft_s=None, finish_reason=None),
        outcome(request_id="r-3", error="cloud: connection reset", migrations=outcome().migrations * 2),
    ]
    with Ledger(path) as ledger:
        for number, one in enumerate(settled):
            await ledger.record(one, NOON.timestamp() + number + 0.5)
        found = list(history(path, 2))
    assert found == [
        (NOON.timestamp() + number + 0.5, replace(settled[number], delivered_s=())) for number in (1, 2)
    ]


async def test_an_empty_ledger_has_no_history(path):
    """No request, no outcome."""
    with Ledger(path):
        assert list(history(path, 5)) == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("UPDATE request SET recorded_at = 'noon' WHERE id = 2", "isoformat string: 'noon'"),
        ("UPDATE request SET finish_reason = 'tired' WHERE id = 2", "'tired' is not a valid FinishReason"),
        ("UPDATE attempt SET kind = 'abacus' WHERE request = 2", "'abacus' is not a valid Kind"),
        ("UPDATE attempt SET outcome = 'drew' WHERE request = 2", "'drew' is not a valid AttemptOutcome"),
        ("UPDATE migration SET reason = 'whim' WHERE request = 2", "'whim' is not a valid MigrationReason"),
        ("UPDATE migration SET by = 'pigeon' WHERE request = 2", "'pigeon' is not a valid Carrier"),
    ],
)
async def test_a_damaged_row_is_named(path, outcome, damage, told):
    """What comes before it is given back; then the file, the request and what is wrong with it are told."""
    with Ledger(path) as ledger:
        for number in range(3):
            await ledger.record(outcome(request_id=f"r-{number}"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(damage)
    rows = history(path, 3)
    assert next(rows)[1].request_id == "r-0"
    where = re.escape(f"ledger.path = {str(path)!r}: request 2 is damaged: ")
    with pytest.raises(ConfigError, match=f"{where}.*{re.escape(told)}"):
        next(rows)


def write_version(number, path, monkeypatch):
    """A ledger as an older version left it, with one request that a laptop answered."""
    with monkeypatch.context() as then:
        then.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:number])
        path.parent.mkdir()
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            migrations.migrate(connection)
            connection.execute(
                "INSERT INTO request (id, request_id, recorded_at, policy, outcome, winner, ttft_s, "
                "finish_reason, prompt_tokens, completion_tokens, usd, joules, mean_tbt_s, p99_tbt_s, "
                "max_tbt_s, migrations) VALUES (1, 'old', '2026-03-01T12:00:00.000+00:00', 'disco', 'ok', "
                "'laptop', 0.25, 'stop', 12, 3, 0.002, 1.5, 0.1, 0.1, 0.1, 0)"
            )
            connection.execute(
                "INSERT INTO attempt (request, position, endpoint, kind, start_offset_s, ttft_s, "
                "prompt_tokens, completion_tokens, usd, joules, outcome, mean_tbt_s) "
                "VALUES (1, 0, 'laptop', 'device', 0.0, 0.25, 12, 3, 0.002, 1.5, 'won', 0.1)"
            )
            if number > 1:
                connection.execute("UPDATE request SET prompt_chars = 48")


async def test_a_file_of_version_1_is_read_as_it_is(path, monkeypatch):
    """Looking at an old ledger does not change it, and what it can tell is told."""
    write_version(1, path, monkeypatch)
    before = path.read_bytes()
    assert spent_since(path, NOON).usd == 0.002
    assert list(history(path, 5)) == []
    ((settled,), (listed,)) = find(path, "o"), recent(path, 5, Wanted(endpoint="laptop", since=NOON))
    assert settled.request == listed
    assert (listed.prompt_chars, listed.stayed, settled.attempts[0].ran_s) == (None, None, None)
    assert activity(path, NOON).endpoints[0].wins == 1
    assert path.read_bytes() == before


async def test_a_file_of_version_2_is_read_as_it_is(path, monkeypatch):
    """What a later version also keeps is left at its default where an older one kept nothing of the kind."""
    write_version(2, path, monkeypatch)
    ((_, old),) = history(path, 5)
    assert (old.request_id, old.stayed) == ("old", None)
    assert [(attempt.endpoint, attempt.dropped) for attempt in old.attempts] == [("laptop", None)]


async def test_a_file_of_version_3_is_read_as_it_is(path, monkeypatch):
    """It does not say who raced, nor how the answer went on; what it does say is added up."""
    write_version(3, path, monkeypatch)
    (old,) = find(path, "old")
    assert (old.request.raced, old.request.ended_s, old.longest_gaps) == (None, None, None)
    totals = overview(path, Wanted()).totals
    assert (totals.requests, totals.raced, totals.usd) == (1, None, 0.002)


async def test_an_upgrade_works_out_who_raced(path, outcome):
    """Of requests that an older version recorded, too, as if this one had recorded them."""
    laptop, cloud, spare = outcome().attempts
    early, content = replace(cloud, start_offset_s=0.125), {"start_offset_s": 0.0, "ttft_s": 0.5}
    settled = [
        outcome(attempts=attempts)
        for attempts in (
            (laptop, cloud, spare),
            (laptop, early),
            (laptop, replace(early, outcome=AttemptOutcome.NOT_STARTED)),
            (replace(laptop, ttft_s=None), replace(cloud, start_offset_s=9.0)),
            (replace(laptop, **content), replace(cloud, **content), replace(cloud, start_offset_s=1.0)),
            (),
        )
    ]
    with Ledger(path) as ledger:
        for one in settled:
            await ledger.record(one)
    recorded = [request.raced for request in recent(path)][::-1]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE request SET raced = NULL")
        connection.execute(migrations.MIGRATIONS[3][-1])
        connection.commit()
    assert recorded == [request.raced for request in recent(path)][::-1] == [one.raced for one in settled]
    assert recorded == [False, True, False, True, True, False]


async def test_a_file_of_version_1_is_upgraded_and_read(path, monkeypatch, outcome):
    """Opening it to write adds what is missing: old rows keep their figures, new ones have them all."""
    write_version(1, path, monkeypatch)
    with Ledger(path) as ledger:
        await ledger.record(outcome(request_id="new"))
    assert [request.request_id for request in recent(path)] == ["new", "old"]
    assert totals(path).usd == 0.004
    assert [one.request_id for _, one in history(path, 5)] == ["new"]
    with closing(sqlite3.connect(path)) as connection:
        old = "SELECT ran_s, cached_tokens, ahead, identity FROM attempt WHERE request = 1"
        assert connection.execute(old).fetchall() == [(None, None, 0, "")]


async def test_the_ledger_of_a_newer_version_is_refused(path, monkeypatch, outcome):
    """What a newer discostream wrote is not guessed at; the way out is named."""
    with monkeypatch.context() as later:
        later.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, ("CREATE TABLE later (x)",)))
        Ledger(path).close()
    for ask in (lambda: list(history(path, 5)), lambda: spent_since(path, NOON)):
        with pytest.raises(ConfigError, match=r"newer discostream .* upgrade discostream"):
            ask()
