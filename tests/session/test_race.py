"""The race, as timetables: who starts when, who wins, who is closed, what it costs."""

from __future__ import annotations

import anyio
import pytest
from timetable import a_house, a_request, device, play, server

from discostream.session.run import run

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("device_ttft", "server_ttft", "device_offset", "winner", "ttft"),
    [
        (0.3, 0.5, 0.0, "laptop", 0.3),
        (0.3, 0.2, 0.0, "cloud", 0.2),
        (0.1, 0.5, 0.3, "laptop", 0.4),
        (0.1, 0.35, 0.3, "cloud", 0.35),
    ],
)
async def test_first_content_wins(device_ttft, server_ttft, device_offset, winner, ttft):
    """The endpoint whose start offset plus TTFT is least wins, at exactly that moment."""
    house = a_house(
        [device(ttft_s=device_ttft), server(ttft_s=server_ttft)], {"laptop": device_offset, "cloud": 0.0}
    )
    played = await play(house)
    assert played.outcome.winner == winner
    assert played.outcome.ttft_s == pytest.approx(ttft)


async def test_loser_is_closed_and_counted():
    """A loser's stream is closed, and its prompt is on the bill although nothing of it was used."""
    laptop, cloud = device(ttft_s=0.1), server(ttft_s=5.0)
    played = await play(a_house([laptop, cloud]))
    assert (laptop.open, cloud.open) == (0, 0)
    lost = next(attempt for attempt in played.outcome.attempts if attempt.endpoint == "cloud")
    assert lost.outcome == "lost"
    assert lost.ttft_s is None
    assert lost.usd == pytest.approx(3 * 10 / 1e6)


async def test_late_start_is_spared_when_an_early_one_wins():
    """An endpoint whose offset has not come when another wins is never started, and costs nothing."""
    laptop, cloud = device(ttft_s=0.1), server(ttft_s=0.1)
    played = await play(a_house([laptop, cloud], {"laptop": 0.0, "cloud": 0.5}))
    assert cloud.started == 0
    assert played.outcomes == {"laptop": "won", "cloud": "not_started"}
    assert played.outcome.usd == 0
    assert played.outcome.attempts[1].start_offset_s == 0.5


async def test_failure_brings_the_next_start_forward():
    """A failed attempt starts the next one at once instead of waiting for its offset."""
    played = await play(
        a_house([device(ttft_s=0.2), server(refuses="overloaded")], {"cloud": 0.0, "laptop": 9.0})
    )
    assert played.outcome.winner == "laptop"
    assert played.outcome.ttft_s == pytest.approx(0.2)
    assert played.outcomes == {"cloud": "failed", "laptop": "won"}


async def test_failure_does_not_hurry_while_another_runs():
    """While one attempt still runs, a failure of another leaves the later starts as planned."""
    endpoints = [device(ttft_s=1.0), server(refuses="overloaded"), server("spare", ttft_s=0.1)]
    played = await play(a_house(endpoints, {"laptop": 0.0, "cloud": 0.0, "spare": 0.5}))
    assert played.outcome.winner == "spare"
    assert played.outcome.ttft_s == pytest.approx(0.6)


async def test_standby_starts_only_after_failure():
    """An endpoint without an offset stands by, and answers when all the others have failed."""
    laptop, cloud = device(ttft_s=0.2), server(breaks_after=0, ttft_s=0.1)
    played = await play(a_house([laptop, cloud], {"cloud": 0.0}))
    assert played.outcome.winner == "laptop"
    assert played.outcome.ttft_s == pytest.approx(0.3)


async def test_a_refused_attempt_is_free_but_a_broken_one_is_not():
    """Nothing is owed where nothing was accepted; a stream that broke before content has read the prompt."""
    refused = await play(a_house([device(), server(refuses="no")]))
    broken = await play(a_house([device(ttft_s=1.0), server(breaks_after=0)]))
    assert refused.outcome.usd == 0
    assert broken.outcome.usd == pytest.approx(3 * 10 / 1e6)


async def test_all_fail_before_content():
    """When nobody brings content, one error names the first cause and every endpoint, and it is settled."""
    house = a_house([device(refuses="out of memory", ttft_s=0.0), server(breaks_after=0, ttft_s=0.4)])
    played = await play(house)
    assert played.outcome.winner is None
    assert played.outcome.ttft_s is None
    assert played.failure is not None
    assert played.failure.first.endpoint == "laptop"
    assert str(played.failure) == "laptop: out of memory (also failed: cloud: connection reset (scripted))"
    assert house.ledger.outcomes == [played.outcome]


async def test_an_empty_answer_is_an_answer():
    """An endpoint that ends without a word wins when nobody else has anything to say."""
    played = await play(a_house([device(answer=""), server(refuses="no")]))
    assert played.text == ""
    assert played.outcome.winner == "laptop"
    assert played.outcome.finish_reason == "stop"
    assert played.failure is None


async def test_an_empty_answer_does_not_beat_content():
    """An endpoint that ends without a word loses to one that speaks later."""
    played = await play(a_house([device(answer=""), server(ttft_s=3.0)]))
    assert played.outcome.winner == "cloud"


async def test_client_that_leaves_before_content_cancels_everyone():
    """A client that leaves during the race leaves no stream open, and the request is settled."""
    laptop, cloud = device(ttft_s=5.0), server(ttft_s=5.0)
    house, client = a_house([laptop, cloud]), anyio.CancelScope()

    async def emit(piece):
        raise AssertionError("nothing can be delivered")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, a_request(), house, emit, client)
        await anyio.sleep(1.0)
        assert (laptop.open, cloud.open) == (1, 1)
        client.cancel()
    assert (laptop.open, cloud.open) == (0, 0)
    (outcome,) = house.ledger.outcomes
    assert (outcome.finish_reason, outcome.error) == (None, None)
    assert outcome.usd == pytest.approx(3 * 10 / 1e6)


async def test_billing_that_goes_on_after_a_cancel():
    """A server that bills on after a cancel is charged for the answer that was to be expected."""
    cloud = server(ttft_s=5.0)
    cloud.cancel_stops_billing = False
    played = await play(a_house([device(ttft_s=0.1), cloud]), a_request(max_tokens=10))
    assert played.outcome.usd == pytest.approx((3 + 10) * 10 / 1e6)
