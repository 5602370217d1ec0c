"""Silence: a source that says nothing for too long is hedged, and whoever speaks first goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace

import anyio
import pytest
from timetable import WORDS, Played, a_house, a_request, device, play, server

from discostream.config import MigrationSettings
from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.errors import EndpointError, Phase
from discostream.session.run import run
from discostream.types import Delivered, Event, Finish, FinishReason, Outcome, Piece, Prefix, Request

pytestmark = pytest.mark.anyio

TOKENS = WORDS.upper().replace(" ", "  ").split(" ")
LONG = " ".join(f"word{n}" for n in range(60))
READER = MigrationSettings(consumption_tokens_per_s=5.0)


class Timed(ScriptedEndpoint):
    """Says each of its pieces at its own moment after the start; breaks or ends at the last."""

    plan: Sequence[tuple[float, Event | None]] = ()

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        began_at = anyio.current_time()
        with self._counted():
            for at_s, event in self.plan:
                await anyio.sleep_until(began_at + at_s)
                if event is None:
                    raise EndpointError(self.name, Phase.DECODE, "connection reset")
                yield event
            await anyio.sleep_forever()


def timed(*plan: tuple[float, Event | None]) -> Timed:
    plain = server()
    endpoint = Timed(plain.settings, plain.script)
    endpoint.plan = plan
    return endpoint


def words(*moments: float) -> list[tuple[float, Event | None]]:
    return [
        (at_s, a_piece(f" {word}" if n else word))
        for n, (at_s, word) in enumerate(zip(moments, WORDS.upper().split(" "), strict=False))
    ]


def a_piece(text: str) -> Piece:
    """One token, with the ID that scripted endpoints know it by."""
    return Piece(text, 1, (int.from_bytes(b"\x01" + text.encode(), "big"),))


def a_pair(cloud: ScriptedEndpoint, **laptop: object):
    house = a_house([device(answer=WORDS, **laptop), cloud], {"cloud": 0.0})
    return replace(house, migration=READER)


def what_moved(played: Played) -> list[tuple[int, str, str]]:
    return [(each.at_token, each.target, each.reason.value) for each in played.outcome.migrations]


async def test_a_silent_source_is_replaced_when_the_reader_runs_low():
    """Four tokens by 0.3 s last until 0.8 s; after one second of silence the device starts."""
    house = a_pair(timed(*words(0.0, 0.1, 0.2, 0.3)), ttft_s=0.5)
    played = await play(house)
    assert what_moved(played) == [(4, "laptop", "rescue")]
    (migration,) = played.outcome.migrations
    assert migration.gap_s == pytest.approx(1.0 + 0.5)
    assert migration.why == "cloud: silent for 1.0 s"
    assert played.outcomes == {"cloud": "migrated_from", "laptop": "migrated_to"}
    assert played.outcome.finish_reason == "stop"
    assert house.endpoints["cloud"].open == 0


async def test_a_late_start_is_no_gap():
    """However long the first content took, a second of silence in mid-answer is too long."""
    played = await play(a_pair(timed(*words(5.0, 5.1, 5.2, 5.3)), ttft_s=0.5))
    (migration,) = played.outcome.migrations
    assert migration.gap_s == pytest.approx(1.0 + 0.5)


async def test_a_reader_with_enough_unread_gives_a_source_time():
    """Sixteen tokens at once last 3.2 s; the device is asked only its start time before they are read."""
    cloud = timed(*words(*[0.0] * 15), (3.0, a_piece(" SIXTEEN")), (3.0, Finish(FinishReason.STOP)))
    house = a_pair(cloud, ttft_s=0.5)
    for _ in range(300):
        known = house.knowledge._profiles["laptop"]
        house.knowledge._profiles["laptop"] = replace(known, ttft=known.ttft.observe(10, 0.1))
    played = await play(house)
    assert played.text == WORDS.upper()
    started = {attempt.endpoint: attempt.start_offset_s for attempt in played.outcome.attempts}
    assert started == {"cloud": 0.0, "laptop": pytest.approx(2.7, abs=0.02)}


async def test_a_source_that_speaks_again_goes_on():
    """The hedge is let go, nothing is said twice, and the source is given more time from then on."""
    gaps = [0.0, 0.1, 1.5, 1.6, 4.5, 4.6]
    cloud = timed(*words(*gaps), (4.7, Finish(FinishReason.STOP)))
    house = a_pair(cloud, ttft_s=1.0)
    played = await play(house)
    assert played.text == " ".join(WORDS.upper().split(" ")[:6])
    assert played.outcome.migrations == ()
    dropped = [(each.start_offset_s, each.dropped) for each in played.outcome.attempts if each.dropped]
    assert [why for _, why in dropped] == ["the source spoke again"]
    assert dropped[0][0] == pytest.approx(1.1)


async def test_a_hedge_that_was_let_go_is_no_rescue():
    """A source that falls silent twice and comes back may still be rescued twice when it breaks."""
    played = await play(a_pair(timed(*words(0.0, 1.5, 6.5), (6.6, None)), ttft_s=2.0))
    dropped = [each.dropped for each in played.outcome.attempts if each.dropped]
    assert dropped == ["the source spoke again"] * 2
    assert what_moved(played) == [(3, "laptop", "rescue")]
    assert played.text == "ONE TWO THREE" + WORDS[len("one two three") :]


async def test_a_source_that_breaks_while_it_is_hedged():
    """The hedge becomes the rescue; it is not started twice."""
    house = a_pair(timed(*words(0.0, 0.1), (1.3, None)), ttft_s=0.5)
    played = await play(house)
    assert what_moved(played) == [(2, "laptop", "rescue")]
    assert house.endpoints["laptop"].started == 1
    assert played.outcome.migrations[0].why == "cloud: connection reset"
    assert played.outcomes == {"cloud": "failed", "laptop": "migrated_to"}


async def test_a_source_that_finishes_while_it_is_hedged():
    """A source that only took its time to say that it is done has written the answer."""
    house = a_pair(timed(*words(0.0, 0.1), (1.3, Finish(FinishReason.STOP))), ttft_s=0.5)
    played = await play(house)
    assert played.text == "ONE TWO"
    assert played.outcome.finish_reason == "stop"
    assert house.endpoints["laptop"].open == 0


async def test_a_hedge_that_fails_leaves_the_source_its_time():
    """When nobody else is left, a silent source is waited for, whatever the reader feels."""
    cloud = timed(*words(0.0, 0.1, 9.0), (9.1, Finish(FinishReason.STOP)))
    house = a_pair(cloud, ttft_s=0.1, breaks_after=0)
    played = await play(house)
    assert played.text == "ONE TWO THREE"
    assert played.outcomes["cloud"] == "won"


async def test_a_target_that_was_late_is_asked_again_by_a_silent_source():
    """What was held is delivered when the reader runs dry; if the source says no more, late is in time."""
    cloud = timed(*words(0.0, 0.01, 0.02, 0.03, 0.04, 0.05))
    laptop = device(answer=WORDS, ttft_s=3.0)
    house = a_house([laptop, cloud], {"cloud": 0.0}, migrate=True)
    cloud.prices = server().prices
    played = await play(replace(house, migration=READER))
    (migration,) = played.outcome.migrations
    assert migration.reason.value == "rescue"
    assert migration.at_token == 6
    assert laptop.started == 2
    assert played.text == WORDS.upper()[: migration.at_char] + WORDS[migration.at_char :]


async def test_a_full_answer_is_not_hedged():
    """Nobody is asked for the rest of an answer that has all its tokens and only waits for its finish."""
    cloud = timed(*words(0.0, 0.1, 0.2), (3.0, Finish(FinishReason.LENGTH)))
    house = a_pair(cloud, ttft_s=0.1)
    played = await play(house, a_request(max_tokens=3))
    assert played.text == "ONE TWO THREE"
    assert house.endpoints["laptop"].started == 0


async def test_who_must_not_be_rescued_waits():
    """With rescues switched off, in the settings or by the request, nobody else is started for silence."""
    cloud = timed(*words(0.0, 0.1, 5.0), (5.1, Finish(FinishReason.STOP)))
    for house, asked in (
        (replace(a_pair(cloud), migration=MigrationSettings(rescue=False)), {}),
        (a_pair(cloud), {"rescue": False}),
        (a_pair(cloud), {"pinned": "it uses tools"}),
    ):
        played = await play(house, a_request(**asked))
        assert played.text == "ONE TWO THREE"
        assert house.endpoints["laptop"].started == 0


class Slow:
    """Takes five seconds over every piece."""

    is_full = True

    def __init__(self) -> None:
        self.left, self.text, self.outcome = anyio.CancelScope(), "", None

    def take(self, piece: Delivered) -> None:
        self.text += piece.text

    async def room(self) -> None:
        await anyio.sleep(5.0)

    def settled(self, outcome: Outcome) -> None:
        self.outcome = outcome


async def test_a_slow_client_is_no_silent_source():
    """Time that the client takes to read is not held against the source."""
    house, client = a_pair(server(tbt_s=0.1), ttft_s=0.1), Slow()
    await run(a_request(), house, client)
    assert client.text == WORDS.upper()
    assert house.endpoints["laptop"].started == 0


async def test_a_slow_client_is_no_silent_target():
    """Nor is it against a rescuer, whose next words wait already when the client has read the first."""
    rescuers = [device(name, answer=WORDS.upper(), tbt_s=0.1) for name in ("laptop", "third")]
    house, client = a_house([server(breaks_after=4), *rescuers], {"cloud": 0.0}), Slow()
    await run(a_request(), house, client)
    assert client.text == WORDS.upper()
    assert [endpoint.started for endpoint in rescuers] == [1, 0]


class Behind(Slow):
    """Is slow from the moment that an endpoint is asked to go on until it does."""

    def __init__(self, running: Mapping[str, int], successor: str) -> None:
        super().__init__()
        self.running, self.successor, self.heard = running, successor, False

    def take(self, piece: Delivered) -> None:
        super().take(piece)
        self.heard = self.heard or piece.endpoint == self.successor

    @property
    def is_full(self) -> bool:
        return self.running[self.successor] > 0 and not self.heard


async def test_a_successor_is_hedged_although_the_client_was_slow_when_the_answer_moved():
    """A source that was let go while it waited for the client leaves nobody waiting for a silent one."""
    laptop = device(answer=LONG.upper(), hangs_after=3)
    house = a_house([laptop, server(answer=LONG.upper(), tbt_s=0.02)], {"cloud": 0.0})
    house = replace(house, migration=MigrationSettings(mode="stop-then-start"))
    client = Behind(house.running, "laptop")
    with anyio.fail_after(120.0):
        await run(a_request(), house, client)
    assert client.text == LONG.upper()
    assert [move.reason.value for move in client.outcome.migrations] == ["cost", "rescue"]
