"""Pacing: bursts leave evenly, nothing leaves late, and everything leaves."""

from __future__ import annotations

from dataclasses import replace

import anyio
import numpy as np
import pytest
from timetable import WORDS, AClient, Played, a_house, a_request, device, play, server

from discostream.config import MigrationSettings, PacingSettings
from discostream.core.qoe import tbt_as_read
from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.session.run import run
from discostream.types import Finish, FinishReason, Piece, Prefix, Request

pytestmark = pytest.mark.anyio

LONG = " ".join(f"word{n}" for n in range(120))


class Bursts(ScriptedEndpoint):
    """Sends its script in bursts of so many tokens, so far apart, each as one piece."""

    tokens, apart_s = 12, 0.3

    async def generate(self, request: Request, prefix: Prefix):
        words = [f" {word}" if n else word for n, word in enumerate(self.script.answer.split(" "))]
        for at in range(0, len(words), self.tokens):
            await anyio.sleep(self.apart_s if at else 0.0)
            burst = words[at : at + self.tokens]
            yield Piece("".join(burst), len(burst))
        yield Finish(FinishReason.STOP)


def bursting(answer: str = LONG) -> Bursts:
    plain = server(answer=answer)
    return Bursts(plain.settings, plain.script)


def paced(house, *, rate: float = 5.0, max_lag_s: float = 1.0):
    reader = MigrationSettings(enabled=False, consumption_tokens_per_s=rate)
    return replace(house, migration=reader, pacing=PacingSettings(mode="reading", max_lag_s=max_lag_s))


def gaps(played: Played) -> np.ndarray:
    return np.diff([piece.at_s for piece in played.pieces])


async def test_bursts_become_even():
    """Bursts of 12 tokens every 0.3 s, as Azure sends them, leave one by one, none of them at once."""
    plain = await play(a_house([bursting()]))
    assert len(plain.pieces) == 10
    played = await play(paced(a_house([bursting()])))
    assert played.text == LONG
    assert len(played.pieces) == 120
    middle = gaps(played)[40:80]
    assert middle.min() > 0.5 * 0.3 / 12
    assert middle.max() < 2.0 * 0.3 / 12


async def test_nothing_is_kept_back_longer_than_it_may():
    """However slow the reader, each word leaves within the bound after it came, and the first at once."""
    played = await play(paced(a_house([bursting()]), rate=0.1, max_lag_s=0.7))
    came_s = np.repeat(np.arange(10) * 0.3, 12)
    lag_s = np.array(played.outcome.delivered_s) - came_s
    assert lag_s[0] == 0.0
    assert lag_s.max() == pytest.approx(0.7)


async def test_a_fast_source_is_held_to_the_readers_pace():
    """A short answer that came at once leaves at five tokens a second, as long as none is late."""
    played = await play(paced(a_house([server()]), max_lag_s=60.0))
    assert gaps(played) == pytest.approx(0.2)
    assert played.outcome.delivered_s == pytest.approx(np.arange(16) * 0.2)


async def test_a_stall_is_covered_by_what_was_kept_back():
    """A source that falls silent for a second is not noticed by whoever is handed words from before."""

    class Stalling(Bursts):
        async def generate(self, request: Request, prefix: Prefix):
            async for event in super().generate(request, prefix):
                yield event
                if isinstance(event, Piece) and "word36" in event.text:
                    await anyio.sleep(1.0)

    plain = server(answer=LONG)
    played = await play(paced(a_house([Stalling(plain.settings, plain.script)]), rate=20.0, max_lag_s=2.0))
    assert gaps(played).max() < 0.06
    assert tbt_as_read(played.outcome.delivered_s, 20.0).max() == pytest.approx(0.05, rel=0.01)


async def test_an_error_comes_after_everything_that_was_said():
    """What had come before a stream broke is delivered in full, then the failure is told."""
    played = await play(paced(a_house([server(breaks_after=8)])))
    assert played.text == "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT"
    assert str(played.failure) == "cloud: connection reset (scripted)"
    assert played.outcome.completion_tokens == 8


async def test_a_handoff_is_paced_through():
    """Words of both endpoints leave in order, at the reader's pace, over the seam."""
    house = a_house([device(answer=WORDS.upper()), server(breaks_after=8)], {"cloud": 0.0})
    played = await play(paced(house, max_lag_s=9.0))
    assert played.text == WORDS.upper()
    assert [piece.endpoint for piece in played.pieces] == ["cloud"] * 8 + ["laptop"] * 8
    assert gaps(played) == pytest.approx(0.2)


async def test_who_leaves_is_settled_for_what_was_delivered():
    """A client that leaves in the middle was delivered what had left, however much had been written."""
    played = await play(paced(a_house([server()])), leaves_after=3)
    assert played.outcome.completion_tokens == 3
    assert played.outcome.finish_reason is None


async def test_a_client_that_breaks_at_the_last_word_is_no_failure_of_endpoints():
    """What it raises is told even where the source has ended and only what was held is left to write."""

    class Broken(AClient):
        def take(self, piece) -> None:
            super().take(piece)
            if piece.text.endswith("word11"):
                raise RuntimeError("no more paper")

    late, cloud = device(answer=LONG, ttft_s=9.0), server(answer=" ".join(LONG.split()[:12]), tbt_s=0.02)
    house = replace(a_house([late, cloud], {"cloud": 0.0}), migration=MigrationSettings())
    client = Broken()
    with pytest.raises(RuntimeError, match="no more paper"):
        await run(a_request(), house, client)
    assert [attempt.dropped for attempt in client.outcome.attempts] == [None, "the source had finished"]


@pytest.mark.parametrize("mode", ["immediate", "reading"])
async def test_a_client_whose_room_breaks_is_no_failure_of_endpoints(mode, monkeypatch):
    """Nor is an endpoint blamed for what is raised while it waits for the client."""
    monkeypatch.setattr("discostream.session.outlet.WORDS_WAITING", 2)

    class Broken(AClient):
        is_full = True

        async def room(self) -> None:
            raise RuntimeError("no more paper")

    client, cloud = Broken(), server()
    with pytest.raises(RuntimeError, match="no more paper"):
        await run(a_request(), replace(a_house([cloud]), pacing=PacingSettings(mode=mode)), client)
    assert client.outcome.attempts[0].error is None


@pytest.mark.parametrize("mode", ["immediate", "reading"])
async def test_a_client_that_breaks_is_told_apart_from_one_that_leaves(mode):
    """What a client raises comes out of the session as it is, and into the account, paced or not."""

    class Broken:
        is_full = False

        def __init__(self) -> None:
            self.left, self.outcome = anyio.CancelScope(), None

        def take(self, piece) -> None:
            raise RuntimeError("no more paper")

        def settled(self, outcome) -> None:
            self.outcome = outcome

    client, cloud = Broken(), server()
    with pytest.raises(RuntimeError, match="no more paper"):
        await run(a_request(), replace(a_house([cloud]), pacing=PacingSettings(mode=mode)), client)
    assert client.outcome.error == "RuntimeError('no more paper')"
    assert cloud.open == 0


@pytest.mark.parametrize(("words", "most"), [(["x"] * 5_000, 1_030), (["x" * 50_000] * 100, 6)])
async def test_a_client_that_does_not_read_stops_the_source(words, most):
    """What waits for a slow client is bounded, be it many words or long ones: then the source waits, too."""

    class Stuck:
        is_full = True

        def __init__(self) -> None:
            self.left, self.outcome = anyio.CancelScope(), None

        def take(self, piece) -> None:
            self.taken = piece

        async def room(self) -> None:
            await anyio.sleep_forever()

        def settled(self, outcome) -> None:
            self.outcome = outcome

    client, cloud = Stuck(), server(answer=" ".join(words))
    with anyio.move_on_after(30):
        await run(a_request(), paced(a_house([cloud])), client)
    (attempt,) = client.outcome.attempts
    assert attempt.completion_tokens < most
