"""A cell of an evaluation: planned by one part, judged on the other, and the same for the same seed."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from discostream.core.cost import Rates
from discostream.errors import ConfigError
from discostream.sim.devices import device_named
from discostream.sim.study import DEVICE, PART, SERVER, Case, Stage, judge
from discostream.sim.world import Handoff
from discostream.traces.servers import read_trace
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


def test_the_halves_and_the_requests_are_drawn_apart(spike):
    """The numbers that decide which rows are judged are not used again for what is drawn from them."""
    stage = Stage.of(replace(CASE, server_trace=spike))
    _, by_the_same = read_trace(spike).split(CASE.train_fraction, np.random.default_rng([CASE.seed, 0]))
    assert sorted(stage.judged.ttft_s) != sorted(by_the_same.ttft_s)


def test_lengths_that_one_half_lacks_are_the_built_in_ones(tmp_path):
    """A trace with one answer's length only, and prompts without any, is judged all the same."""
    trace, prompts = tmp_path / "trace.csv", tmp_path / "prompts.csv"
    trace.write_text("ttft_s,output_tokens\n0.4,10\n" + "0.5,\n" * 9)
    prompts.write_text("prompt_tokens\n" + "20\n" * 10)
    case = replace(CASE, server_trace=str(trace), workload=str(prompts), requests=50)
    stages = [Stage.of(replace(case, seed=seed)) for seed in range(4)]
    lengths = [stage.draw(500, np.random.default_rng(1))[0].output_tokens for stage in stages]
    assert {len(np.unique(each)) > 100 for each in lengths} == {True, False}
    assert all(stage.world.known.answer_tokens.distribution.mean > 1 for stage in stages)


def test_more_slots_than_requests_are_as_many():
    """A trillion slots take no memory, and nobody waits for one."""
    many = replace(CASE, arrivals="poisson:1", device_slots=10**12)
    assert judge(many)[0] == judge(replace(many, device_slots=CASE.requests))[0]


def test_answers_longer_than_any_model_writes_are_refused(tmp_path):
    """A billion tokens are a mistake in a file, and are told of before they fill the memory."""
    path = tmp_path / "workload.csv"
    path.write_text("prompt_tokens,output_tokens\n" + "10,1000000000\n" * 4)
    with pytest.raises(ConfigError, match=r"an answer of 1,000,000,000 tokens .* at most 131,072; correct"):
        judge(replace(CASE, workload=str(path)))


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


@pytest.fixture
def paired(tmp_path):
    """Prompts of 2, 4, ... tokens, half of them cached, whose answers are ten times as long, one a second."""
    path = tmp_path / "paired.csv"
    rows = "\n".join(f"{2 * n},{20 * n},{n},{n}" for n in range(1, 101))
    path.write_text(f"prompt_tokens,output_tokens,cached_tokens,arrived_at_s\n{rows}\n")
    return str(path)


def test_a_row_is_drawn_whole(paired):
    """A prompt comes with its own answer and with what of it is cached, which it is looked up without."""
    requests, _ = Stage.of(replace(CASE, workload=paired)).draw(50, np.random.default_rng(2))
    assert (requests.output_tokens == 10 * requests.prompt_tokens).all()
    assert (requests.cached_tokens == requests.prompt_tokens / 2).all()
    assert (requests.felt_tokens == requests.prompt_tokens / 2).all()


def test_lengths_are_learnt_from_the_first_part_alone(paired):
    """Plans know the prompts and answers of one half; where arrivals count, that half came before."""
    for arrivals in ("none", "trace"):
        stage = Stage.of(replace(CASE, workload=paired, arrivals=arrivals))
        learnt = [set(each.distribution.values) for each in _lengths(stage)]
        assert [len(each) for each in learnt] == [50, 50]
        assert not learnt[0] & set(stage.workload.prompt_tokens)
        assert not learnt[1] & set(stage.workload.output_tokens)
        before = bool(max(learnt[0]) < stage.workload.prompt_tokens.min())
        assert before is (arrivals == "trace")


def _lengths(stage):
    return stage.world.known.prompt_tokens, stage.world.known.answer_tokens


def test_all_that_a_case_says_is_simulated(paired):
    """The reader, the handoffs, what is misjudged, the slots, and how long one is held on average."""
    case = replace(
        CASE,
        workload=paired,
        device="snapdragon-8-elite-npu-llama-3.2-3b",
        handoff=Handoff.STOP_THEN_START,
        consumption_tokens_per_s=9.0,
        warm_standby=False,
        t_m_factor=2.0,
        remaining_factor=3.0,
        arrivals="poisson:1",
        device_slots=2,
    )
    stage, chip = Stage.of(case), device_named(case.device)
    world, (prompts, answers) = stage.world, _lengths(stage)
    assert (world.handoff, world.warm_standby) == (Handoff.STOP_THEN_START, False)
    assert (world.consumption_tokens_per_s, world.t_m_factor, world.remaining_factor) == (9.0, 2.0, 3.0)
    device, service = world.known.of(DEVICE), world.services[DEVICE]
    line = 1 / chip.prefill_tokens_per_s, chip.constant_s
    assert device.ttft.line() == pytest.approx(line)
    assert (service.s_per_token, service.startup_s) == pytest.approx(line)
    assert device.slots == 2
    held_s = line[0] * prompts.distribution.mean + line[1]
    assert device.service_s == pytest.approx(held_s + answers.distribution.mean / chip.decode_tokens_per_s)


def test_the_tail_stage_is_as_large_as_the_case_says():
    """Without it, `disco` lets nobody wait: a device starts at once or stands by, but for one cut-off."""
    waits = [
        Stage.of(replace(CASE, constraint="device", alpha=alpha)).table.offsets[-1, 0, 0]
        for alpha in (0, 0.05)
    ]
    assert waits[0] == np.inf
    assert 0 < waits[1] < np.inf


def test_a_stated_constraint_holds_whatever_prices_say():
    """A device with dear energy is not held back where the server is to be."""
    assert Stage.of(replace(CASE, constraint="server", usd_per_joule=1.0)).constrained is Kind.SERVER


def test_every_try_and_every_part_has_luck_of_its_own(tmp_path):
    """A second attempt is another draw, tokens follow other recordings, and parts are no copies."""
    path = tmp_path / "paces.csv"
    path.write_text("ttft_s,tbt_s\n" + "".join(f"{n / 100},{n / 1000}\n" for n in range(1, 101)))
    case = replace(CASE, server_trace=str(path), policy="server-only", handoff=Handoff.OFF)
    _, luck = Stage.of(case).draw(1000, np.random.default_rng(3))
    assert all((luck[SERVER].ttft_s[0] == luck[SERVER].ttft_s[n]).mean() < 0.1 for n in (1, 2))
    assert len(np.unique(luck[SERVER].recording)) == 100
    ttft_s = judge(replace(case, requests=2 * PART))[1].ttft_s
    assert (ttft_s[:PART] != ttft_s[PART:]).mean() > 0.9
