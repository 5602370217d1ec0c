"""`benchmarks/soak.py` works in small, and finds what leaks or does not add up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from scripts import BENCHMARKS, load_script

from discostream.types import Attempt, AttemptOutcome, FinishReason, Kind, Outcome

soak = load_script("soak")
load = soak.load

IDLE = soak.Count(tasks=1, descriptors=20, threads=4, children=2, busy_slots=0, running=0, rss_mb=70.0)


def an_attempt(endpoint: str, outcome: AttemptOutcome, tokens: int) -> Attempt:
    return Attempt(
        endpoint=endpoint,
        kind=Kind.SERVER,
        start_offset_s=0.0,
        ttft_s=0.1,
        prompt_tokens=9,
        completion_tokens=tokens,
        usd=0.0,
        joules=0.0,
        outcome=outcome,
    )


WON = an_attempt(load.STEADY, AttemptOutcome.WON, 12)
LOST = an_attempt(load.FLAKY, AttemptOutcome.LOST, 2)
OUTCOME = Outcome(
    request_id="0",
    policy="offsets",
    winner=load.STEADY,
    ttft_s=0.1,
    finish_reason=FinishReason.STOP,
    prompt_chars=20,
    prompt_tokens=9,
    completion_tokens=12,
    attempts=(WON, LOST),
    migrations=(),
    delivered_s=(),
)
TOLD = soak.Told(
    asked=(
        load.Asked(load.STEADY, 0, prompt_tokens=9, words=12, told=12),
        load.Asked(load.FLAKY, 0, prompt_tokens=9, words=3),
    ),
    answered=(load.Answered(0, "disco", "whole", words=12),),
    outcomes=(OUTCOME,),
)


def failing(told):
    return {check.what.split(" of the ")[0] for check in soak.compared(told) if not check.holds}


def with_attempts(*attempts):
    return replace(TOLD, outcomes=(replace(OUTCOME, attempts=attempts),))


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.skipif(os.name == "nt", reason="counts descriptors as POSIX has them")
def test_a_short_soak_leaves_nothing_and_adds_up():
    """Ten streams for some seconds, with breaks, clients that leave and an engine that is killed."""
    command = [sys.executable, str(BENCHMARKS / "soak.py"), "--minutes", "0.16", "--streams", "10", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] >= 1
    assert told["requests"]["whole"] > told["requests"]["left"] > 0
    assert len(told["faults"]) >= 4
    assert told["attempts"]["migrated_to"] > 0


@pytest.mark.parametrize("name", ["tasks", "descriptors", "threads", "children", "busy_slots", "running"])
def test_one_that_is_left_behind_is_found(name):
    """One more of anything that is counted fails its check, and no other."""
    after = replace(IDLE, **{name: getattr(IDLE, name) + 1})
    assert [check.holds for check in soak.left_behind(IDLE, IDLE)] == [True] * 7
    assert [check.holds for check in soak.left_behind(IDLE, after)].count(False) == 1


def test_memory_may_grow_a_little():
    """Twenty megabytes more are too many."""
    assert all(check.holds for check in soak.left_behind(IDLE, replace(IDLE, rss_mb=89.9)))
    assert not all(check.holds for check in soak.left_behind(IDLE, replace(IDLE, rss_mb=90.0)))


def test_sums_that_are_right_hold():
    """The account of one race is what its upstreams and its client saw."""
    assert failing(TOLD) == set()


@pytest.mark.parametrize(
    ("told", "what"),
    [
        (with_attempts(replace(WON, prompt_tokens=8), LOST), {"prompt_tokens"}),
        (with_attempts(replace(WON, completion_tokens=13), LOST), {"completion_tokens"}),
        (with_attempts(WON, replace(LOST, completion_tokens=4)), {"completion_tokens"}),
        (with_attempts(WON), {"upstream requests that no attempt accounts for"}),
        (replace(TOLD, asked=TOLD.asked[:1]), {"attempts that reached no upstream"}),
        (
            replace(TOLD, outcomes=(OUTCOME, OUTCOME)),
            {"attempts that reached no upstream", "requests that are settled"},
        ),
        (
            replace(TOLD, answered=(replace(TOLD.answered[0], sound=False),)),
            {"words of whole answers, all in order"},
        ),
        (replace(TOLD, answered=(replace(TOLD.answered[0], words=11),)), {"tokens of whole answers"}),
    ],
)
def test_whatever_does_not_add_up_is_found(told, what):
    """Other tokens than told, more than on the wire, attempts or requests that are lost or doubled."""
    assert failing(told) == what
