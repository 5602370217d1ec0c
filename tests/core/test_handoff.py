"""The handoff table, and the decision to migrate."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from discostream.core.cost import Prices, Rates
from discostream.core.distributions import Distribution
from discostream.core.handoff import FINAL, RISK, TABLE, Signal, State, advance, handoff_s, weigh_move
from discostream.core.profile import DeviceTtft, EndpointProfile, ServerTtft
from discostream.errors import InvalidTransition
from discostream.types import Kind


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


def profile(prefill_usd=0.0, decode_usd=0.0, start_s=1.0, pace=20.0, kind=Kind.SERVER):
    return EndpointProfile(
        "one",
        kind,
        Rates(prefill_usd, decode_usd),
        DeviceTtft.believed(0.0, start_s, 0.0),
        pace,
        Prices() if kind is Kind.DEVICE else Prices(1e6 * prefill_usd, 1e6 * decode_usd),
    )


DEAR = profile(0.0, 10e-6)
CHEAP = profile(1e-6, 2e-6)


def weigh(source=DEAR, target=CHEAP, **changed):
    values = {
        "prefill_tokens": 100,
        "cached_tokens": 0,
        "remaining_tokens": 200,
        "unread_tokens": 5.0,
        "handoff_s": 1.0,
        "consumption_tokens_per_s": 5.0,
    }
    return weigh_move(source, target, **{**values, **changed})


def test_decision_in_numbers():
    """Saving is the price gap times the rest; against it stand reading, overlap and risk."""
    decision = weigh()
    assert decision.saving_usd == pytest.approx(8e-6 * 200)
    assert decision.overhead_usd == pytest.approx(1e-6 * 100 + 10e-6 * 20)
    assert decision.risk_usd == pytest.approx(RISK * 8e-6 * 200)
    assert decision.gain_usd == pytest.approx((0.9 * 8 * 200 - 100 - 200) * 1e-6)
    assert decision.needed_tokens == 5.0
    assert decision.migrate


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"unread_tokens": 4.9}, "4.9 tokens unread where 5.0 hide it: would be noticed"),
        ({"remaining_tokens": 30}, "does not pay"),
        ({"target": profile(0.0, 10e-6)}, "there is nothing to save"),
        ({"remaining_tokens": 0}, "there is nothing to save"),
        ({"prefill_tokens": 1500}, "does not pay"),
        ({"moves": 8}, "does not pay"),
    ],
    ids=[
        "reader would notice",
        "too little left",
        "not cheaper",
        "at its end",
        "prefill too dear",
        "has moved often",
    ],
)
def test_reasons_to_stay(changed, words):
    """Each condition alone keeps an answer where it is, and says so."""
    decision = weigh(**changed)
    assert not decision.migrate
    assert words in decision.in_words()


def test_what_a_device_has_read_takes_no_energy_and_no_time():
    """A warm device has less to read: its overhead and t_m shrink by as much; a server's price stays."""
    warm = {"prefill_tokens": 1500, "cached_tokens": 1480}
    slow = DeviceTtft.believed(0.01, 0.0, 0.0)
    device = replace(profile(1e-6, 2e-6, kind=Kind.DEVICE), ttft=slow)
    assert weigh(target=device, **warm).overhead_usd == pytest.approx((20 + 0.2 * 20 * 10) * 1e-6)
    assert weigh(**warm).overhead_usd == weigh(prefill_tokens=1500).overhead_usd
    assert handoff_s(device, 20) == pytest.approx(handoff_s(device, 2000) / 100, rel=0.05)


def test_a_reading_stops_where_its_attempt_was_cut():
    """A device that was cancelled after a second has read what its line says, in whole quarters."""
    device = replace(profile(kind=Kind.DEVICE), ttft=DeviceTtft.believed(0.01, 0.2, 0.0))
    assert device.read_part(1.0, 160) == 0.5
    assert device.read_part(1.0, 161) == 0.25
    assert device.read_part(10.0, 500) == 1.0
    assert device.read_part(0.1, 500) == device.read_part(-np.inf, 500) == 0.0
    assert replace(device, ttft=ServerTtft(Distribution.of_samples([1.0]))).read_part(9.0, 500) == 0.0
