"""What can be seen of a request while it runs, moment by moment."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest
from timetable import WORDS, AClient, a_house, a_request, device, server

from discostream.config import MigrationSettings, PacingSettings
from discostream.core.qoe import Gap
from discostream.session.house import House
from discostream.session.live import AttemptNow, RequestNow, Seam
from discostream.session.run import run
from discostream.types import Kind, Outcome, Request

pytestmark = pytest.mark.anyio

LONG = " ".join(f"word{n}" for n in range(60))


async def looked_at(
    house: House, request: Request, *moments_s: float
) -> tuple[list[RequestNow], Outcome | None]:
    """How a request stands at each of these moments after it arrived, and the outcome once it has left."""
    client, seen = AClient(), []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, request, house, client)
        for at_s in moments_s:
            await anyio.sleep_until(request.arrived_at + at_s)
            seen.append(house.live[client].as_of(anyio.current_time()))
        client.left.cancel()
    return seen, client.outcome


def states(seen: RequestNow) -> list[tuple[str, str]]:
    return [(attempt.endpoint, attempt.state.value) for attempt in seen.attempts]


async def test_a_race_is_seen_as_it_runs():
    """Who has started and since when; then who speaks, who was let go, and the stall that lasts."""
    laptop, cloud = device(ttft_s=0.5, hangs_after=2, tbt_s=0.2), server(ttft_s=9.0)
    house = a_house([laptop, cloud], {"cloud": 0.0, "laptop": 0.25})
    house = replace(house, migration=MigrationSettings(rescue=False))
    seen, _ = await looked_at(house, a_request(), 0.125, 0.5, 0.875, 2.0)
    waits, races, streams, stalls = seen
    assert (waits.state, waits.attempts) == (
        "racing",
        (AttemptNow("cloud", Kind.SERVER, 0.0, None, None, "waiting"),),
    )
    assert states(races) == [("cloud", "waiting"), ("laptop", "waiting")]
    assert (races.delivered_tokens, races.unread_tokens, races.stalls) == (0, 0.0, ())
    assert streams.state == "streaming"
    assert streams.attempts == (
        AttemptNow("cloud", Kind.SERVER, 0.0, None, pytest.approx(0.75), "lost"),
        AttemptNow("laptop", Kind.DEVICE, 0.25, pytest.approx(0.75), None, "delivering"),
    )
    assert (streams.policy, streams.age_s, streams.prompt_tokens) == ("offsets", pytest.approx(0.875), 3)
    assert (streams.delivered_tokens, streams.unread_tokens) == (1, pytest.approx(1 - 0.125 * 4.8))
    assert (stalls.state, stalls.delivered_tokens) == ("streaming", 2)
    assert stalls.stalls == (Gap(pytest.approx(0.95), pytest.approx(1.05)),)


async def test_a_move_is_seen_from_the_target_to_the_seam():
    """While the target reads, both are there; afterwards the seam is, where and when it was delivered."""
    laptop, cloud = device(answer=LONG, ttft_s=0.3, tbt_s=0.3), server(answer=LONG, tbt_s=0.02)
    house = a_house([laptop, cloud], {"cloud": 0.0}, migrate=True)
    (hands_off, moved), outcome = await looked_at(house, a_request(), 0.3, 2.0)
    assert hands_off.state == "handing off"
    assert states(hands_off) == [("cloud", "delivering"), ("laptop", "target")]
    assert moved.state == "streaming"
    assert states(moved) == [("cloud", "done"), ("laptop", "delivering")]
    (move,) = outcome.migrations
    assert moved.seams == (
        Seam(move.at_token, outcome.delivered_s[move.at_token], "cloud", "laptop", move.reason, move.gap_s),
    )
    assert move.at_s == outcome.delivered_s[move.at_token] > outcome.delivered_s[move.at_token - 1]
    assert max(gap.for_s for gap in moved.stalls) == pytest.approx(move.gap_s)


async def test_a_rescue_is_seen():
    """A source that broke has failed; whoever goes on is the target until it speaks."""
    house = a_house([device(ttft_s=0.5), server(breaks_after=3)], {"cloud": 0.0})
    (rescues, moved), _ = await looked_at(house, a_request(), 0.25, 0.75)
    assert rescues.state == "handing off"
    assert states(rescues) == [("cloud", "failed"), ("laptop", "target")]
    assert [seam.reason for seam in moved.seams] == ["rescue"]


async def test_a_request_that_nothing_runs_for_is_being_settled():
    """Once its attempts have ended it waits for the ledger, and shows no stall while it does."""

    class SlowBook:
        async def record(self, outcome: Outcome, at_s: float) -> None:
            await anyio.sleep(5.0)

    house = replace(a_house([device(ttft_s=0.1)]), ledger=SlowBook())
    (settles,), _ = await looked_at(house, a_request(), 3.0)
    assert (settles.state, states(settles)) == ("settling", [("laptop", "done")])
    assert (settles.delivered_tokens, settles.stalls) == (len(WORDS.split()), ())


async def test_a_seam_that_never_left_us_has_no_moment():
    """A client that leaves before a paced answer has come to its seam got nothing behind it."""
    laptop, cloud = device(answer=LONG, ttft_s=0.1), server(answer=LONG, tbt_s=0.02)
    house = a_house([laptop, cloud], {"cloud": 0.0}, migrate=True)
    slowly = MigrationSettings(consumption_tokens_per_s=1.0)
    house = replace(house, migration=slowly, pacing=PacingSettings(mode="reading", max_lag_s=60.0))
    (left,), outcome = await looked_at(house, a_request(), 0.5)
    assert [seam.at_s for seam in left.seams] == [move.at_s for move in outcome.migrations] == [None]


async def test_a_private_request_is_told_as_it_will_be_recorded():
    """The policy says that it was."""
    seen, outcome = await looked_at(a_house([device(ttft_s=1.0)]), a_request(private=True), 0.5)
    assert seen[0].policy == outcome.policy == "offsets, private"
