"""What happened lately, added up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from ledgers import FAILED, LEFT, MOVED, PROBED, RESCUED, attempt, write_ledger

from discostream.errors import ConfigError
from discostream.ledger.activity import Activity, EndpointActivity, Ttft, activity
from discostream.ledger.store import Ledger
from discostream.types import AttemptOutcome, Kind

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_what_happened_is_added_up(path):
    """Requests, races, handoffs and spend from a moment on; probes cost and inform, but are no requests."""
    settled = [MOVED, MOVED, RESCUED, FAILED, LEFT, PROBED]
    write_ledger(path, [(NOON.timestamp() + number, one) for number, one in enumerate(settled)])
    found = activity(path, NOON + timedelta(seconds=1))
    assert found == Activity(
        requests=4,
        failed=1,
        cancelled=1,
        ttft_s=Ttft(p50=0.5, p99=pytest.approx(0.745)),
        migrations=2,
        rescues=1,
        usd=pytest.approx(0.016),
        joules=3.5,
        endpoints=(
            EndpointActivity("cloud", Kind.SERVER, 4, 0, 1, 1, Ttft(0.25, 0.25), pytest.approx(0.004), 0.0),
            EndpointActivity("laptop", Kind.DEVICE, 3, 2, 0, 1, Ttft(0.5, pytest.approx(0.745)), 0.0, 3.5),
            EndpointActivity("spare", Kind.SERVER, 2, 1, 0, 0, Ttft(0.5, 0.5), pytest.approx(0.012), 0.0),
        ),
    )


def test_nothing_happened_before_the_first_request(path):
    """An empty ledger has every count at zero, and no quantiles."""
    Ledger(path).close()
    assert activity(path, NOON) == Activity(0, 0, 0, None, 0, 0, 0.0, 0.0, ())


def test_who_was_let_go_after_the_start_lost_no_race(path):
    """A race is over with the first content; who starts after it and is dropped was asked to go on."""
    dropped = attempt("cloud", AttemptOutcome.LOST, start_offset_s=0.5, dropped="it was late")
    write_ledger(path, [(NOON.timestamp(), replace(MOVED, attempts=(*MOVED.attempts[:2], dropped)))])
    cloud, _ = activity(path, NOON).endpoints
    assert (cloud.attempts, cloud.lost) == (2, 1)


def test_a_ledger_that_is_not_there_is_named(tmp_path):
    """No file is created by looking."""
    with pytest.raises(ConfigError, match="no ledger yet"):
        activity(tmp_path / "none.db", NOON)
    assert not list(tmp_path.iterdir())
