"""Handoffs on the real engine as `benchmarks/handoff.py` measures them, a few prompts of it."""

from __future__ import annotations

import pytest
from scripts import load_script

from discostream.types import Attempt, AttemptOutcome, Carrier, FinishReason, Kind, Outcome

handoff = load_script("handoff")

PROMPTS = (
    "Tell me how bread is made, from the grain to the loaf.",
    "Tell the story of a lighthouse keeper who wrote down the weather for forty years.",
)
DELAYED_TOKENS = 3
ROUTES = [(0, 2, Carrier.TOKENS), (1, 1, Carrier.TEXT), (2, 1, Carrier.TEXT)]


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize(("number", "prompts", "by"), ROUTES, ids=["tokens", "text", "text and back"])
async def test_no_reader_notices_a_handoff(number, prompts, by):
    """Answers move, by what travels between these models; no defect shows, and hardly a token is late."""
    route = handoff.routes()[number]
    design = handoff.Design(PROMPTS[:prompts], "gpt-4o", max_tokens=96, temperature=0.7, seed=1)
    pairs = await handoff.answer_pairs(design, route, lambda: None)
    row = handoff.read(route, pairs)
    assert row.moved == prompts
    assert row.by == by.value
    assert row.defective == []
    assert row.delayed_tokens <= DELAYED_TOKENS
    assert all(told.outcome.error is None for pair in pairs for told in (pair.moved, pair.stayed))
    assert not any(pair.stayed.outcome.migrations for pair in pairs)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.anyio
async def test_a_warm_device_goes_on_at_once():
    """A device that has read a prompt of 600 tokens goes on in a tenth of the time of one that has not."""
    row = await handoff.stand_by(runs=1, seed=1)
    assert row.warm_s <= row.cold_s / 10


def answered(usd, *, device_until=None):
    """An answer of three tokens that took so many dollars, beside a device that was asked when told."""
    server = Attempt(
        endpoint="server",
        kind=Kind.SERVER,
        start_offset_s=0.0,
        ttft_s=0.5,
        prompt_tokens=10,
        completion_tokens=3,
        usd=usd,
        joules=0.0,
        outcome=AttemptOutcome.WON,
    )
    device = [
        Attempt(
            endpoint="device",
            kind=Kind.DEVICE,
            start_offset_s=device_until,
            ttft_s=None,
            prompt_tokens=10,
            completion_tokens=0,
            usd=1.0,
            joules=1.0,
            outcome=AttemptOutcome.LOST,
        )
        for device_until in [device_until]
        if device_until is not None
    ]
    return Outcome(
        request_id="",
        policy="",
        winner="server",
        ttft_s=0.5,
        finish_reason=FinishReason.STOP,
        prompt_chars=40,
        prompt_tokens=10,
        completion_tokens=3,
        attempts=(server, *device),
        migrations=(),
        delivered_s=(0.5, 0.6, 0.7),
    )


def test_money_is_the_servers():
    """Servers alone take money; plans are alike if the same endpoints were asked before the first content."""
    moved = [answered(1.0, device_until=0.1), answered(2.0, device_until=0.9)]
    row = handoff.money(moved, [answered(4.0, device_until=0.2), answered(2.0)])
    assert (row.usd, row.usd_unmoved, row.saved[0]) == (3.0, 6.0, 0.5)
    assert (row.served, row.planned_alike) == (2, 2)
    assert row.saved[1] <= 0.5 <= row.saved[2]
    assert handoff.money(moved, [answered(4.0), answered(2.0)]).planned_alike == 1
    assert row.qoe == row.qoe_unmoved
    assert row.qoe_change == (0.0, 0.0, 0.0)


def test_what_stays_where_it_is_excuses_what_moves():
    """A defect that the unmigrated answer shows at the same place is its writer's own."""
    moved = handoff.Told("The lamp  is lit.", answered(0.0))
    assert handoff.Pair("", moved, moved).seam_defects(frozenset()) == []


def test_an_interval_is_around_the_mean():
    """It is as wide as the normal distribution says."""
    middle, low, high = handoff.interval([1.0, 3.0, 1.0, 3.0])
    assert middle == 2.0
    assert high - middle == pytest.approx(middle - low) == pytest.approx(1.96 * (4 / 3) ** 0.5 / 2, rel=1e-3)
