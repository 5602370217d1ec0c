"""Races on arrays: the rules of the live path, in exact numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.sim.race import NOBODY, run_race

NEVER, STANDBY = np.nan, np.inf


def race(offsets, ttft_s, failed_after_s=None):
    failed = np.full(len(offsets), np.inf) if failed_after_s is None else failed_after_s
    return run_race(*(np.array([each], np.float64) for each in (offsets, ttft_s, failed)))


@pytest.mark.parametrize(
    ("offsets", "ttft_s", "winner", "at_s", "start_s"),
    [
        ([0.0, 0.0], [0.3, 0.2], 1, 0.2, [0.0, 0.0]),
        ([0.0, 0.5], [0.3, 0.1], 0, 0.3, [0.0, np.inf]),
        ([0.0, 0.5], [0.9, 0.1], 1, 0.6, [0.0, 0.5]),
        ([0.0, STANDBY], [9.0, 0.1], 0, 9.0, [0.0, np.inf]),
        ([NEVER, 0.0], [0.1, 0.2], 1, 0.2, [np.inf, 0.0]),
        ([0.7, 0.9], [1.0, 0.2], 0, 1.0, [0.0, 0.9]),
        ([STANDBY, STANDBY], [0.4, 0.1], 0, 0.4, [0.0, np.inf]),
        ([0.0, 0.0, STANDBY], [0.4, 0.0, 0.0], 1, 0.0, [0.0, 0.0, np.inf]),
    ],
)
def test_the_first_content_wins(offsets, ttft_s, winner, at_s, start_s):
    """Whoever speaks first wins; later starts never happen, and the first start never waits."""
    held = race(offsets, ttft_s)
    assert held.winner[0] == winner
    assert held.ttft_s[0] == held.ended_s[0] == pytest.approx(at_s)
    assert held.start_s[0].tolist() == start_s


FAILS = np.inf


@pytest.mark.parametrize(
    ("offsets", "ttft_s", "failed_after_s", "winner", "at_s", "start_s"),
    [
        ([0.0, 2.0], [FAILS, 0.3], [0.4, np.inf], 1, 0.7, [0.0, 0.4]),
        ([0.0, STANDBY], [FAILS, 0.3], [0.4, np.inf], 1, 0.7, [0.0, 0.4]),
        ([0.0, 0.1, STANDBY], [FAILS, 5.0, 0.1], [0.4, np.inf, np.inf], 1, 5.1, [0.0, 0.1, np.inf]),
        ([0.0, 0.1, STANDBY], [FAILS, FAILS, 0.1], [0.4, 0.5, np.inf], 2, 0.7, [0.0, 0.1, 0.6]),
        ([0.0, 1.0, 3.0], [FAILS, 9.0, 0.1], [0.2, np.inf, np.inf], 2, 3.1, [0.0, 0.2, 3.0]),
        ([0.0, 9.0, 9.0], [FAILS, FAILS, 0.1], [0.2, 0.3, np.inf], 2, 0.6, [0.0, 0.2, 0.5]),
        ([0.0, 0.0], [FAILS, 0.3], [0.4, np.inf], 1, 0.3, [0.0, 0.0]),
    ],
    ids=["hurried", "standby", "others run", "nobody runs", "one at a time", "twice", "too late to matter"],
)
def test_a_failure_brings_the_next_start_forward(offsets, ttft_s, failed_after_s, winner, at_s, start_s):
    """One failure, one start: the next that is planned, or whoever stands by when nobody runs any more."""
    held = race(offsets, ttft_s, failed_after_s)
    assert held.winner[0] == winner
    assert held.ttft_s[0] == pytest.approx(at_s)
    assert held.start_s[0] == pytest.approx(start_s)


def test_a_race_in_which_all_fail_has_no_winner():
    """It ends with the last failure, and every attempt was made."""
    held = race([0.0, 5.0, NEVER], [FAILS, FAILS, 0.1], [0.4, 0.5, np.inf])
    assert (held.winner[0], held.ttft_s[0]) == (NOBODY, np.inf)
    assert held.ended_s[0] == pytest.approx(0.9)
    assert held.started[0].tolist() == [True, True, False]
    assert held.failed[0].tolist() == [True, True, False]


def by_hand(offsets, ttft_s, failed_after_s):
    """The same, one event after another."""
    waiting = sorted((at, column) for column, at in enumerate(offsets) if not np.isnan(at))
    start_s, now_s, failed = {}, 0.0, set()
    start_s[waiting.pop(0)[1]] = 0.0
    while True:
        running = [column for column in start_s if column not in failed]
        events = [(start_s[column] + ttft_s[column], 1, column) for column in running]
        events += [(start_s[column] + failed_after_s[column], 0, column) for column in running]
        events += [(at, 2, column) for at, column in waiting if at < np.inf]
        events = [event for event in events if event[0] < np.inf]
        if not events:
            return None, start_s
        now_s, what, column = min(events)
        if what == 1:
            return (column, now_s), start_s
        if what == 2:
            waiting.remove((offsets[column], column))
            start_s[column] = now_s
            continue
        failed.add(column)
        if waiting and (waiting[0][0] < np.inf or len(failed) == len(start_s)):
            start_s[waiting.pop(0)[1]] = now_s


TIMES = st.integers(1, 10_000).map(lambda thousandths: thousandths / 1000)


@given(
    st.lists(
        st.tuples(TIMES | st.just(STANDBY) | st.just(NEVER), TIMES, st.booleans()), min_size=1, max_size=4
    )
)
def test_arrays_race_as_events_do(columns):
    """For any plan and any luck, arrays come to what following event after event comes to."""
    offsets = [at + column * 1e-5 for column, (at, _, _) in enumerate(columns)]
    if np.isnan(offsets).all():
        offsets[0] = 0.0
    ttft_s = [np.inf if fails else span + 1e-7 for _, span, fails in columns]
    failed_after_s = [span + 1e-7 if fails else np.inf for _, span, fails in columns]
    held, (won, start_s) = race(offsets, ttft_s, failed_after_s), by_hand(offsets, ttft_s, failed_after_s)
    assert (held.winner[0], held.ttft_s[0]) == ((NOBODY, np.inf) if won is None else pytest.approx(won))
    for column in range(len(columns)):
        assert held.start_s[0][column] == pytest.approx(start_s.get(column, np.inf))
