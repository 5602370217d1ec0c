"""A cell of an evaluation: planned by one part, judged on the other, and the same for the same seed."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from discostream.core.cost import Rates
from discostream.errors import ConfigError
from discostream.sim.study import DEVICE, PART, SERVER, Case, Stage, judge
from discostream.sim.world import Handoff
from discostream.types import Kind

CASE = Case(
    server_trace="builtin:gpt-4o", device="xiaomi-14-qwen1.5-0.5b", policy="disco", share=0.3, requests=2000
)


@pytest.fixture
def spike(tmp_path):
    """A trace in which each TTFT is another one, so that halves can be told apart."""
    path = tmp_path / "trace.csv"
    rows = "\n".join(f"{1 + index / 1000}" for index in range(1000))
    path.write_text(f"ttft_s\n{rows}\n")
    return str(path)


def test_plans_know_one_part_and_are_judged_on_the_other(spike):
    """No TTFT that a plan has seen is among those that are drawn."""
    stage = Stage.of(replace(CASE, server_trace=spike, train_fraction=0.3))
    learnt = stage.world.known.of(SERVER).ttft.distribution
    _, luck = stage.draw(500, np.random.default_rng(1))
    drawn = set(luck[SERVER].ttft_s.ravel().round(3))
    assert len(stage.judged) == 700
    assert drawn <= set(stage.judged.ttft_s.round(3))
    assert learnt.values[0] >= 1.0
    assert len(np.unique(learnt.values)) == 300
    assert not drawn & set(learnt.values.round(3))


def test_the_same_seed_gives_the_same_bytes():
    """Twice the same case is the same text; another seed is another."""
    first, again, other = (
        msgspec.json.encode(judge(case)[0]) for case in (CASE, CASE, replace(CASE, seed=1))
    )
    assert first == again != other


def test_policies_are_compared_on_the_same_requests():
    """Prompts, answers and luck are equal for all policies and shares of one seed."""
    stages = [
        Stage.of(replace(CASE, policy=policy, share=share))
        for policy, share in (("disco", 0.3), ("stochastic", 0.9))
    ]
    drawn = [stage.draw(300, np.random.default_rng(5)) for stage in stages]
    (one, his), (other, hers) = drawn
    assert (one.prompt_tokens == other.prompt_tokens).all()
    assert (one.output_tokens == other.output_tokens).all()
    assert (his[SERVER].ttft_s == hers[SERVER].ttft_s).all()


@pytest.mark.parametrize("constraint", ["device", "server"])
def test_the_exchange_rate_suits_the_constraint(constraint):
    """Unless it is stated, energy is so dear that the device is to be held back, or costs what it does."""
    stage = Stage.of(replace(CASE, constraint=constraint))
    device, server = (stage.world.known.of(name).rates for name in (DEVICE, SERVER))
    assert stage.constrained is Kind(constraint)
    assert (min(device.prefill_usd, device.decode_usd) > max(server.prefill_usd, server.decode_usd)) is (
        constraint == "device"
    )


@pytest.mark.parametrize(("usd_per_joule", "kind"), [(1.0, Kind.DEVICE), (1e-9, Kind.SERVER)])
def test_auto_takes_the_dearer_kind(usd_per_joule, kind):
    """As in the paper, by converted prices."""
    stage = Stage.of(replace(CASE, constraint="auto", usd_per_joule=usd_per_joule))
    assert stage.constrained is kind
    assert isinstance(stage.world.known.of(DEVICE).rates, Rates)


def test_long_runs_are_simulated_in_parts():
    """Every part is told of, and together they are all requests."""
    told = []
    figures, tally = judge(replace(CASE, requests=PART + 10, handoff=Handoff.OFF), told.append)
    assert told == [PART, 10]
    assert figures.n == tally.ttft_s.size == PART + 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"device_slots": 1}, "--device-slots 1: nobody queues"),
        ({"arrivals": "often"}, "--arrivals 'often'"),
        ({"arrivals": "trace"}, "--arrivals trace: workload 'chat' does not say"),
        ({"device": "toaster"}, "--device 'toaster'"),
        ({"server_trace": "builtin:gpt"}, "no built-in|builtin:gpt"),
        ({"policy": "dico"}, "no such policy"),
        ({"train_fraction": 1.0}, "train fraction = 1"),
    ],
)
def test_what_cannot_be_is_refused(changed, message):
    """The message names the value, and what would be right."""
    with pytest.raises(ConfigError, match=message):
        judge(replace(CASE, **changed))


def test_queues_make_a_busy_device_slower():
    """With one slot and a request each 100 s, waiting adds to TTFT, and to nothing else that is drawn."""
    busy = replace(CASE, policy="device-only", constraint="server", arrivals="poisson:0.01", device_slots=1)
    free = replace(busy, device_slots=None)
    assert judge(busy)[0].mean_ttft_s > 1.05 * judge(free)[0].mean_ttft_s
    assert judge(busy)[0].joules == judge(free)[0].joules
