"""Plans without waits: they spend what they did, and nobody in them waits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NEVER, STANDBY, a_table, a_world

from discostream.config import PolicySettings
from discostream.core.forecast import forecast
from discostream.core.optimal import optimal
from discostream.core.plans import PlanTable
from discostream.core.policies import disco, stochastic
from discostream.core.profile import Distribution, Lengths, ServerTtft
from discostream.sim.lots import without_waits
from discostream.types import Kind


def known(server_s=None, prompts=None):
    """What a device of 100 tokens/s and a server know of each other."""
    rng = np.random.default_rng(0)
    server_s = rng.lognormal(-0.4, 0.8, 400) if server_s is None else server_s
    prompts = rng.integers(5, 300, 200) if prompts is None else prompts
    world = a_world()
    device, server = world.known.endpoints
    server = replace(server, ttft=ServerTtft(Distribution.of_samples(server_s)))
    return replace(
        world.known,
        endpoints=(device, server),
        prompt_tokens=Lengths(Distribution.of_samples(np.asarray(prompts, float))),
    )


def waits(table):
    used = table.offsets[table.weights > 0]
    return used[(used > 0) & (used < STANDBY)]


@settings(deadline=None, max_examples=25)
@given(share=st.floats(0.02, 0.98), alpha=st.floats(0.0, 0.3), policy=st.sampled_from([disco, optimal]))
def test_the_spend_is_kept(share, alpha, policy):
    """Whatever the plan, as many prompt tokens go to the device as went before."""
    facts = known()
    table = policy(facts, PolicySettings(constraint="device", share=share, alpha=alpha))
    lots = without_waits(facts, table)
    assert waits(lots).size == 0
    assert lots.weights.sum(axis=1) == pytest.approx(np.ones(len(lots.weights)))
    before, after = (forecast(facts, each).token_share[Kind.DEVICE] for each in (table, lots))
    assert after == pytest.approx(before, abs=1e-3)


def test_a_wait_becomes_a_lot_of_the_same_price():
    """The server takes longer than 4 s one time in five; who waited so long starts at once as often."""
    facts = known(server_s=np.linspace(0.0, 5.0, 501), prompts=[1000.0] * 10)
    table = without_waits(facts, a_table(4.0, 0.0))
    assert table.weights[0] == pytest.approx([0.8, 0.2], abs=1e-3)
    assert table.offsets[0].tolist() == [[STANDBY, 0.0], [0.0, 0.0]]


def test_two_who_wait_start_together_or_the_earlier_alone():
    """The later of two starts only where the earlier does; a second attempt that does not is left out."""
    facts = known(server_s=[0.5] * 50 + [1.5] * 30 + [9.0] * 20, prompts=[100_000.0] * 10)
    table = without_waits(facts, a_table(1.0, 0.0, ("server", 4.0)))
    assert table.endpoints == ("device", "server", "server")
    assert table.offsets[0][0][:2].tolist() == [STANDBY, 0.0]
    assert np.isnan(table.offsets[0][0][2])
    assert table.offsets[0][1][0] == 0.0
    assert np.isnan(table.offsets[0][1][2])
    assert table.offsets[0][2].tolist() == [0.0, 0.0, 0.0]
    assert table.weights[0] == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


def test_a_plan_that_never_waits_stays_as_it_is():
    """So do those of policies that know no waits."""
    facts = known()
    for table in (
        a_table(0.0, 0.0),
        a_table(NEVER, 0.0),
        stochastic(facts, PolicySettings(constraint="device", share=0.4)),
        disco(facts, PolicySettings(constraint="server", share=0.4)),
    ):
        assert without_waits(facts, table) is table


def test_a_row_without_prompts_of_its_own_is_told_by_the_nearest():
    """Beyond the longest prompt that was seen, and between two that were, a row has lots, too."""
    facts = known(server_s=[0.5, 2.0] * 50, prompts=[10.0, 1000.0])
    table = PlanTable(
        "test",
        ("device", "server"),
        np.array([10.0, 500.0, 1000.0, np.inf]),
        np.array([[[1.0, 0.0]]] * 4),
        np.ones((4, 1)),
    )
    lots = without_waits(facts, table)
    assert lots.weights == pytest.approx(np.array([[0.5, 0.5]] * 4), abs=0.02)
