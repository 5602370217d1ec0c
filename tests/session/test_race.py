"""The race, as timetables: who starts when, who wins, who is closed, what it costs."""

from __future__ import annotations

import anyio
import numpy as np
import pytest
from timetable import AClient, a_house, a_request, device, play, server

from discostream.core.plans import PlanTable
from discostream.errors import ConfigError
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


async def test_failure_hurries_the_next_planned_start_only():
    """While another attempt runs, a failure starts the next planned one, but nobody who stands by."""
    endpoints = [
        device(ttft_s=1.0),
        server(refuses="overloaded"),
        server("spare", ttft_s=0.1),
        server("third"),
    ]
    played = await play(a_house(endpoints, {"laptop": 0.0, "cloud": 0.0, "spare": 0.5}))
    assert played.outcome.winner == "spare"
    assert played.outcome.ttft_s == pytest.approx(0.1)
    assert "third" not in played.outcomes


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
    house, client = a_house([laptop, cloud]), AClient()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, a_request(), house, client)
        await anyio.sleep(1.0)
        assert (laptop.open, cloud.open) == (1, 1)
        client.left.cancel()
    assert (laptop.open, cloud.open) == (0, 0)
    (outcome,) = house.ledger.outcomes
    assert client.outcome == outcome
    assert (outcome.finish_reason, outcome.error) == (None, None)
    assert outcome.usd == pytest.approx(3 * 10 / 1e6)


async def test_a_client_that_has_left_already_costs_nothing():
    """Whoever leaves while the plan is still to be made is settled, and no endpoint is asked for anything."""
    laptop, client = device(), AClient()
    client.left.cancel()
    await run(a_request(), a_house([laptop]), client)
    assert laptop.started == 0
    assert client.outcome.verdict == "cancelled"


async def test_billing_that_goes_on_after_a_cancel():
    """A server that bills on after a cancel is charged for the answer that was to be expected."""
    cloud = server(ttft_s=5.0)
    cloud.cancel_stops_billing = False
    played = await play(a_house([device(ttft_s=0.1), cloud]), a_request(max_tokens=10))
    assert played.outcome.usd == pytest.approx((3 + 10) * 10 / 1e6)


async def test_a_filtered_answer_is_a_verdict():
    """An endpoint that ends without a word because of its content filter ends the race."""
    from discostream.types import Finish, FinishReason

    class Filtering(type(device())):
        async def generate(self, request, prefix):
            yield Finish(FinishReason.CONTENT_FILTER)

    filtering = Filtering(server().settings, server().script)
    spare = device()
    played = await play(a_house([filtering, spare], {"cloud": 0.0}))
    assert played.outcome.finish_reason == "content_filter"
    assert spare.started == 0


async def test_a_pinned_request_starts_nobody_else():
    """A request for one endpoint is answered there or not at all."""
    laptop, cloud = device(), server(refuses="overloaded")
    played = await play(a_house([laptop, cloud]), a_request(endpoint="cloud"))
    assert laptop.started == 0
    assert str(played.failure) == "cloud: overloaded"


async def test_an_adapters_defect_is_one_failed_attempt(caplog):
    """An exception that an adapter should have translated fails that attempt and is logged; others go on."""

    class Defective(type(device())):
        async def generate(self, request, prefix):
            raise RuntimeError("a bug")
            yield

    played = await play(a_house([Defective(device().settings, device().script), server(ttft_s=0.1)]))
    assert played.outcomes == {"laptop": "failed", "cloud": "won"}
    assert "should have translated" in caplog.text


async def test_a_policys_defect_is_named():
    """A policy that plans nobody is a mistake in the policy, told by its name."""
    house = a_house([device()], {"laptop": 0.0})
    house.planner._policy = lambda known, settings: PlanTable(
        "empty", ("laptop",), np.array([np.inf]), np.full((1, 1, 1), np.nan), np.ones((1, 1))
    )
    with pytest.raises(ConfigError, match="plans nobody"):
        await run(a_request(), house, AClient())


async def test_a_ledger_that_cannot_write_costs_no_answer(caplog):
    """The reader has the answer already; what could not be recorded is logged in full."""
    house = a_house([device()])

    async def refuse(outcome):
        raise OSError("disk full")

    house.ledger.record = refuse
    played = await play(house)
    assert played.failure is None
    assert played.outcome.finish_reason == "stop"
    assert '"laptop"' in caplog.text or "'laptop'" in caplog.text


async def test_a_slow_reader_does_not_make_an_endpoint_slow():
    """The pace that is learnt is the endpoint's own, not that of whoever reads."""

    class Slow(AClient):
        is_full = True

        async def room(self):
            await anyio.sleep(1.0)

    client = Slow()
    await run(a_request(), a_house([device(tbt_s=0.1)]), client)
    assert client.outcome.attempts[0].mean_tbt_s == pytest.approx(0.1, rel=0.2)
