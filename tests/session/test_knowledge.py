"""What is known is a fold over what was settled: live, or recalled from the ledger."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest
from timetable import a_house, a_request, device, play, server

from discostream.builtin import builtin_profiles
from discostream.config import ProfileSettings
from discostream.core.budget import Allowance, Resource
from discostream.core.cost import Rates
from discostream.errors import ConfigError
from discostream.ledger.store import Ledger
from discostream.session.knowledge import SERVER_PRIOR, Knowledge
from discostream.types import PROBE, Attempt, AttemptOutcome, FinishReason, Kind, Outcome

pytestmark = pytest.mark.anyio

START_S = 1_800_000_000.0


def told(value: Any) -> Any:
    """Everything a value holds, as plain values that can be compared."""
    if dataclasses.is_dataclass(value):
        return {field.name: told(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [told(item) for item in value] if isinstance(value, tuple) else value


def all_of(knowledge: Knowledge) -> dict[str, Any]:
    return {
        "known": told(knowledge.known(1e-6)),
        "chars_per_token": knowledge.chars_per_token,
        "experience": {name: told(knowledge.experience(name)) for name in knowledge.endpoints},
    }


def attempt(endpoint, **fields: Any) -> Attempt:
    settled = {
        "endpoint": endpoint.name,
        "kind": endpoint.kind,
        "start_offset_s": 0.0,
        "ttft_s": 0.5,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "usd": 0.0,
        "joules": 0.0,
        "outcome": AttemptOutcome.WON,
        "ran_s": 2.0,
        "identity": endpoint.identity,
    }
    return Attempt(**settled | fields)


def outcome(*attempts: Attempt, **fields: Any) -> Outcome:
    settled = {
        "request_id": "r",
        "policy": "disco",
        "winner": None,
        "ttft_s": 0.5,
        "finish_reason": FinishReason.STOP,
        "prompt_chars": 400,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "migrations": (),
        "delivered_s": (),
    }
    return Outcome(**settled | fields, attempts=attempts)


async def test_knowledge_recalled_from_the_ledger_is_the_knowledge_that_was(tmp_path: Path):
    """Races won, lost, broken, refused and left early: a restart knows to the last bit what was known."""
    rng = np.random.default_rng(5)
    laptop, cloud = device(prefill_s_per_token=0.01), server()
    laptop.slots = 2
    house = a_house([laptop, cloud], {"laptop": 0.1, "cloud": 0.0}, migrate=True)
    live = Knowledge(house.endpoints)
    with Ledger(tmp_path / "ledger.db") as ledger:
        for n in range(90):
            cloud.script = msgspec.structs.replace(
                cloud.script,
                ttft_s=float(rng.lognormal(-0.5, 0.6)) * (1 if n < 50 else 4),
                tbt_s=float(rng.uniform(0.01, 0.2)),
                refuses="overloaded" if rng.random() < 0.1 else "",
                breaks_after=3 if rng.random() < 0.1 else None,
            )
            request = a_request("word " * int(rng.integers(1, 200)))
            played = await play(house, request, leaves_after=2 if rng.random() < 0.1 else None)
            at_s = START_S + 7.125 * n
            await ledger.record(played.outcome, at_s)
            live.observe(played.outcome, at_s)
    recalled = Knowledge(house.endpoints)
    assert all_of(recalled) != all_of(live)
    recalled.recall(tmp_path / "ledger.db")
    assert all_of(recalled) == all_of(live)
    assert live.changes >= 1
    assert live.experience("cloud").attempts == 90
    seen = live.known(0.0).of("cloud").ttft.seen
    assert seen.censored.any()
    assert np.isinf(seen.values).any()


async def test_a_device_is_timed_by_what_it_had_to_read_and_only_when_it_was_free():
    """A cached beginning is not counted, and who queued says nothing: every point is on the device's line."""
    laptop = device(slots=1, prefill_s_per_token=0.01, ttft_s=0.2)
    house = a_house([laptop])
    for words in (20, 60, 200):
        await play(house, a_request(" word" * words))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play, house, a_request(" left" * 50))
        await anyio.sleep(0.1)
        tasks.start_soon(play, house, a_request(" right" * 50))
    recent = house.knowledge.known(0.0).of("laptop").ttft.recent
    assert [tokens for tokens, _ in recent] == [20, 40, 140, 50]
    assert [seconds for _, seconds in recent] == pytest.approx([0.4, 0.6, 1.6, 0.7])


async def test_a_loser_tells_what_it_found_in_its_cache():
    """A device that is cancelled in its prefill had said by then how much it need not read."""
    laptop, cloud = device(slots=1, prefill_s_per_token=0.01), server(ttft_s=5.0)
    house = a_house([laptop, cloud])
    await play(house, a_request(" word" * 100))
    cloud.script = msgspec.structs.replace(cloud.script, ttft_s=0.1)
    played = await play(house, a_request(" word" * 150))
    settled = {attempt.endpoint: attempt for attempt in played.outcome.attempts}
    assert played.outcome.winner == "cloud"
    assert (settled["laptop"].cached_tokens, settled["cloud"].cached_tokens) == (100, None)


async def test_what_an_endpoint_was_before_teaches_nothing_of_what_it_is(tmp_path: Path):
    """With another model under the same name everything starts anew, but for what is known of requests."""
    before, after = server(), server(answer="other")
    with Ledger(tmp_path / "ledger.db") as ledger:
        for n in range(20):
            await ledger.record(outcome(attempt(before, ttft_s=9.0)), START_S + n)
    recalled = Knowledge({"cloud": after})
    recalled.recall(tmp_path / "ledger.db")
    assert told(recalled.known(0.0).endpoints) == told(Knowledge({"cloud": after}).known(0.0).endpoints)
    assert len(recalled.prompt_tokens.seen) == 20


async def test_an_endpoint_that_is_gone_is_passed_over(tmp_path: Path):
    """The ledger may tell of endpoints that the settings no longer have."""
    laptop, cloud = device(), server()
    with Ledger(tmp_path / "ledger.db") as ledger:
        await ledger.record(outcome(attempt(cloud), attempt(laptop)), START_S)
    recalled = Knowledge({"laptop": laptop})
    recalled.recall(tmp_path / "ledger.db")
    assert recalled.experience("laptop").attempts == 1


def test_recalling_from_nowhere_says_so(tmp_path: Path):
    """Without a ledger there is nothing to learn from, which is the caller's to know."""
    with pytest.raises(ConfigError, match="no ledger yet"):
        Knowledge({}).recall(tmp_path / "none.db")


def test_before_anything_was_seen():
    """A server is believed to be like the built-in profile, and nothing is older than it is."""
    knowledge = Knowledge({"cloud": server()})
    believed = knowledge.known(0.0).of("cloud").ttft
    assert told(believed.distribution) == told(builtin_profiles()[SERVER_PRIOR].ttft)
    assert (knowledge.experience("cloud").attempts, knowledge.experience("cloud").newest_at_s) == (0, None)


def test_probes_teach_of_endpoints_and_not_of_requests():
    """What was asked only to measure says nothing about how people ask, nor how long they are answered."""
    cloud = server()
    knowledge = Knowledge({"cloud": cloud})
    knowledge.observe(outcome(attempt(cloud), policy=PROBE), START_S)
    assert knowledge.experience("cloud").attempts == 1
    assert len(knowledge.known(0.0).of("cloud").ttft.seen) == 1
    assert (len(knowledge.prompt_tokens.seen), len(knowledge.answer_tokens.seen)) == (0, 0)
    assert knowledge.chars_per_token == 4.0


def test_attempts_that_never_started_are_no_experience():
    """A planned start that was not needed says nothing."""
    cloud = server()
    idle = attempt(cloud, outcome=AttemptOutcome.NOT_STARTED, identity="", ttft_s=None, ran_s=None)
    knowledge = Knowledge({"cloud": cloud})
    knowledge.observe(outcome(idle), START_S)
    assert knowledge.experience("cloud").attempts == 0


def test_a_token_has_the_characters_of_long_prompts():
    """Counted together: what a template adds to short prompts hardly matters beside a long one."""
    knowledge = Knowledge({})
    for chars, tokens in [(2, 30), (10_000, 2_030), (2, 30)] * 20:
        knowledge.observe(outcome(prompt_chars=chars, prompt_tokens=tokens), START_S)
    assert knowledge.chars_per_token == pytest.approx(10_000 / 2_030, rel=0.05)
    assert knowledge.estimate_tokens(10_000) == pytest.approx(2_030, rel=0.05)


def test_forgetting_is_as_the_settings_say():
    """After `half_life_requests` an old prompt counts for half, after `half_life_s` for a quarter."""
    knowledge = Knowledge(
        {"cloud": (cloud := server())}, ProfileSettings(half_life_requests=4, half_life_s=60)
    )
    for n in range(5):
        knowledge.observe(outcome(attempt(cloud)), START_S if n == 0 else START_S + 60.0)
    weights = [(1 / 2) ** 2, 2**-0.75, 2**-0.5, 2**-0.25, 1.0]
    assert knowledge.prompt_tokens.weights == pytest.approx(weights)
    assert knowledge.answer_tokens.weights == pytest.approx(weights)
    assert knowledge.known(0.0).of("cloud").ttft.weights == pytest.approx(weights)


def test_what_was_seen_ages_until_the_moment_that_is_asked_for():
    """A day without a request halves what yesterday's observations count for, of prompts and of servers."""
    knowledge = Knowledge({"cloud": (cloud := server()), "laptop": (laptop := device())})
    knowledge.observe(outcome(attempt(cloud), attempt(laptop)), START_S)
    today = knowledge.known(0.0, now_s=START_S + 86_400)
    assert today.of("cloud").ttft.sample_size == pytest.approx(0.5)
    assert today.prompt_tokens.sample_size == pytest.approx(0.5)
    knowledge.observe(outcome(attempt(cloud)), START_S + 86_400)
    assert knowledge.known(0.0).prompt_tokens.sample_size == pytest.approx(0.5 * 2 ** (-1 / 500) + 1)


def test_a_snapshot_has_the_prices_energy_and_slots_of_its_moment():
    """What endpoints tell of themselves may change while they start; allowances are passed on."""
    laptop, cloud = device(), server(usd_per_mtok=3.0)
    knowledge = Knowledge({"laptop": laptop, "cloud": cloud})
    laptop.slots = 3
    allowances = (Allowance("share", Resource.SHARE, Kind.SERVER, 0.3),)
    known = knowledge.known(1e-3, allowances)
    assert known.allowances == allowances
    assert (known.of("laptop").slots, known.of("cloud").slots) == (3, None)
    assert known.of("cloud").prices.prompt_usd_per_mtok == 3.0
    assert known.of("cloud").rates == Rates(3e-6, 3e-6)


def test_a_queued_attempt_is_known_for_one_by_slots_learnt_late():
    """A server that tells its slots only once it runs is taken at its word from then on."""
    laptop = device()
    knowledge = Knowledge({"laptop": laptop})
    laptop.slots = 1
    before = told(knowledge.known(0.0).of("laptop").ttft)
    knowledge.observe(outcome(attempt(laptop, ahead=1, ttft_s=30.0)), START_S)
    assert told(knowledge.known(0.0).of("laptop").ttft) == before
    knowledge.observe(outcome(attempt(laptop, ahead=0, ttft_s=0.5)), START_S)
    assert told(knowledge.known(0.0).of("laptop").ttft) != before


def test_unfinished_answers_would_have_been_longer():
    """An answer cut off by its limit or by its reader counts as at least that long."""
    knowledge = Knowledge({})
    for reason in (FinishReason.STOP, FinishReason.LENGTH, None):
        knowledge.observe(outcome(finish_reason=reason), START_S)
    assert knowledge.answer_tokens.seen.censored.tolist() == [False, True, True]
    knowledge.observe(replace(outcome(), completion_tokens=0), START_S)
    assert len(knowledge.answer_tokens.seen) == 3
