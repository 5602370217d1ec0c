from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from discostream.errors import ConfigError
from discostream.ledger.queries import EndpointTotals, recent, totals
from discostream.ledger.store import Ledger

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


async def test_reading_a_ledger_that_is_not_there_says_so(tmp_path):
    """No file is created by looking."""
    with pytest.raises(ConfigError, match="no ledger yet"):
        totals(tmp_path / "none.db")
    assert not list(tmp_path.iterdir())


async def test_reading_another_programs_file_is_refused(tmp_path):
    """A foreign database is named as what it is."""
    path = tmp_path / "recipes.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(ConfigError, match="another program's"):
        recent(path)
