from __future__ import annotations

import threading

import pytest
from genai_prices import Usage, calc_price

from discostream.core.cost import Prices
from discostream.endpoints.prices import price_of


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini"])
def test_a_known_model_costs_what_the_library_says(model):
    """The same dollars as the library counts for 1,000 tokens each way."""
    expected = calc_price(Usage(input_tokens=1000, output_tokens=1000), model_ref=model)
    assert price_of(model).usd(1000, 1000) == pytest.approx(float(expected.total_price))


def test_a_tiered_price_is_that_of_short_prompts():
    """Gemini 2.5 Pro costs more beyond 200,000 tokens; ours is the price before."""
    tiers = calc_price(Usage(input_tokens=1, output_tokens=1), model_ref="gemini-2.5-pro").model_price
    assert price_of("gemini-2.5-pro") == Prices(float(tiers.input_mtok.base), float(tiers.output_mtok.base))


@pytest.mark.parametrize("model", ["", "smollm2-135m-instruct", "whisper-1"])
def test_a_model_without_a_price_per_token_has_none(model):
    """Unknown is None, never free."""
    assert price_of(model) is None


def test_looking_a_price_up_starts_nothing():
    """No updater thread, so no network."""
    before = threading.enumerate()
    price_of("gpt-4o")
    assert threading.enumerate() == before
