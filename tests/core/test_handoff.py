"""The handoff table, and the decision to migrate."""

from __future__ import annotations

import itertools

import pytest

from discostream.core.cost import Rates
from discostream.core.handoff import FINAL, TABLE, Signal, State, advance, should_migrate
from discostream.errors import InvalidTransition


@pytest.mark.parametrize(("state", "signal"), list(itertools.product(State, Signal)))
def test_only_the_table_moves_a_delivery(state, signal):
    """Every pair of state and signal follows its row, and raises where there is none."""
    if (state, signal) in TABLE:
        assert advance(state, signal) is TABLE[state, signal]
    else:
        with pytest.raises(InvalidTransition, match=signal.value):
            advance(state, signal)


def test_every_state_can_be_reached_and_left_unless_it_is_final():
    """No state is unreachable, none but the final ones is a trap, and every signal occurs."""
    assert {state for state, _ in TABLE} == set(State) - FINAL
    assert set(TABLE.values()) == set(State)
    assert {signal for _, signal in TABLE} == set(Signal)


def weigh(**changed):
    values = {
        "source": Rates(0.0, 10e-6),
        "target": Rates(1e-6, 2e-6),
        "prefill_tokens": 100,
        "remaining_tokens": 200,
        "unread_tokens": 5.0,
        "handoff_s": 1.0,
        "overlap_s": 1.0,
        "source_tokens_per_s": 20.0,
        "consumption_tokens_per_s": 5.0,
    }
    return should_migrate(**{**values, **changed})


def test_decision_in_numbers():
    """Saving is the price gap times the rest; overhead is the target's prefill and the wasted overlap."""
    decision = weigh()
    assert decision.saving_usd == pytest.approx(8e-6 * 200)
    assert decision.overhead_usd == pytest.approx(1e-6 * 100 + 10e-6 * 20)
    assert decision.needed_tokens == 5.0
    assert decision.migrate


@pytest.mark.parametrize(
    "changed",
    [
        {"unread_tokens": 4.99},
        {"remaining_tokens": 30},
        {"target": Rates(0.0, 10e-6)},
        {"prefill_tokens": 1500},
    ],
    ids=["reader would notice", "too little left", "not cheaper", "prefill too dear"],
)
def test_reasons_to_stay(changed):
    """Either condition alone, pay or hide, keeps an answer where it is."""
    assert not weigh(**changed).migrate
