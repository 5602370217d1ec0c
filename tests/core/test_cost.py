from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.config import CostSettings
from discostream.core.cost import (
    JOULES_PER_FLOP,
    Energy,
    ModelShape,
    Prices,
    Rates,
    constrained_kind,
    energy_of,
    exchange_rate,
)
from discostream.types import Kind

LLAMA_2_7B = ModelShape(
    parameters=6_738_415_616, vocabulary=32_000, width=4096, layers=32, context_tokens=4096
)


def test_dollars_are_counted_per_million_tokens():
    """1,000 prompt tokens at 2.50 $ and 200 completion tokens at 10 $ a million are 0.45 cents."""
    assert Prices(2.5, 10.0).usd(1000, 200) == pytest.approx(0.0045)
    assert Prices().usd(1000, 200) == 0.0


def test_joules_are_counted_per_phase():
    """Ten tokens read at 0.1 J and five written at 0.4 J are 3 J."""
    assert Energy(0.1, 0.4).joules(10, 5) == pytest.approx(3.0)
    assert Energy().joules(10, 5) == 0.0


def test_decoding_does_two_flops_per_weight_and_attention():
    """Without context only the weights count; 512 tokens of it add 4 x layers x width x 512."""
    assert LLAMA_2_7B.decode_flops(0) == 2 * 6_738_415_616
    assert LLAMA_2_7B.decode_flops(512) - LLAMA_2_7B.decode_flops(0) == 4 * 32 * 4096 * 512


def test_prefill_leaves_out_the_vocabulary_and_attends_to_half_the_context():
    """A prompt token needs no output projection, and on average half of the prompt lies before it."""
    assert LLAMA_2_7B.output_parameters == 32_000 * 4096
    assert LLAMA_2_7B.decode_flops(256) - LLAMA_2_7B.prefill_flops(512) == 2 * LLAMA_2_7B.output_parameters


def test_the_energy_of_llama_2_7b_is_what_was_measured():
    """The joules per FLOP give back the 2.12 J a token they were taken from, attention included."""
    energy = energy_of(LLAMA_2_7B)
    assert energy.decode_j_per_token == pytest.approx(2.12, rel=0.05)
    assert energy.prefill_j_per_token < energy.decode_j_per_token
    assert energy_of(LLAMA_2_7B, 2 * JOULES_PER_FLOP).decode_j_per_token == pytest.approx(
        2 * energy.decode_j_per_token
    )


def test_an_exchange_rate_puts_energy_and_money_on_one_scale():
    """A server's rates are its prices per token; a device's are joules at dollars per joule."""
    assert Rates.of(Prices(2.5, 10.0), Energy(), 1.0) == Rates(2.5e-6, 10e-6)
    assert Rates.of(Prices(), Energy(0.5, 2.0), 1e-6) == Rates(0.5e-6, 2e-6)


@pytest.mark.parametrize(
    ("device", "server", "held_back"),
    [
        (Rates(3.0, 4.0), Rates(1.0, 2.0), Kind.DEVICE),
        (Rates(2.0, 4.0), Rates(1.0, 2.0), Kind.SERVER),
        (Rates(1.5, 4.0), Rates(1.0, 2.0), Kind.SERVER),
        (Rates(4.0, 3.0), Rates(2.0, 1.0), Kind.DEVICE),
        (Rates(0.1, 0.2), Rates(1.0, 2.0), Kind.SERVER),
    ],
)
def test_the_device_is_held_back_only_where_both_its_phases_are_dearer(device, server, held_back):
    """Its cheaper phase must cost more than the server's dearer one; a tie holds the server back."""
    assert constrained_kind(device, server) is held_back


@pytest.mark.parametrize(
    ("charge", "usd_per_joule"), [(None, 5e-8), (1.0, 5e-8), (0.5, 5e-8 + (1e-3 - 5e-8) / 8), (0.0, 1e-3)]
)
def test_a_joule_is_dearer_the_less_there_are(charge, usd_per_joule):
    """From a socket and on a full battery a joule costs what electricity does; on an empty one far more."""
    settings = CostSettings(usd_per_kwh=0.18, usd_per_joule_empty=1e-3)
    assert exchange_rate(settings, charge) == pytest.approx(usd_per_joule)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_exchange_rate_never_falls_with_the_charge(one, other):
    """The emptier the battery, the dearer the joule."""
    low, high = sorted((one, other))
    assert exchange_rate(CostSettings(), low) >= exchange_rate(CostSettings(), high)


def test_a_fixed_exchange_rate_ignores_the_battery():
    """Whoever states a rate gets it, on battery and off."""
    settings = CostSettings(usd_per_joule=2e-6)
    assert {exchange_rate(settings, charge) for charge in (None, 0.0, 0.5, 1.0)} == {2e-6}
