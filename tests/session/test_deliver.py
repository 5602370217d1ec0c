"""Delivery: when an answer moves, what travels, and what happens when a side fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timetable import WORDS, AClient, Played, a_house, a_request, device, play, server
from trio.testing import MockClock

from discostream.config import MigrationSettings
from discostream.core.cost import Energy
from discostream.core.handoff import CAUTION
from discostream.core.qoe import tbt_as_read
from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.errors import EndpointError, Phase
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.session.purse import Purse
from discostream.session.run import run
from discostream.types import Event, Finish, FinishReason, Piece, Prefix, Prompt, Request

pytestmark = pytest.mark.anyio

LONG = " ".join(f"word{n}" for n in range(60))


def moved(played: Played) -> tuple[str, str, str, str]:
    (migration,) = played.outcome.migrations
    return migration.source, migration.target, migration.reason.value, migration.by.value


def joined(played: Played, source: str, target: str) -> str:
    (migration,) = played.outcome.migrations
    return source[: migration.at_char] + target[migration.at_char :]


async def test_moves_to_the_device_to_save_dollars():
    """A server's answer goes on at the device, by token IDs, as soon as the reader has enough unread."""
    laptop = device(ttft_s=0.15, tbt_s=0.02, answer=LONG)
    cloud = server(ttft_s=0.1, tbt_s=0.02, answer=LONG.upper())
    played = await play(a_house([laptop, cloud], {"cloud": 0.0, "laptop": 0.0}, migrate=True))
    assert moved(played) == ("cloud", "laptop", "cost", "tokens")
    assert played.text == joined(played, LONG.upper(), LONG)
    outcomes = [(attempt.endpoint, attempt.outcome.value) for attempt in played.outcome.attempts]
    assert outcomes == [("laptop", "lost"), ("cloud", "migrated_from"), ("laptop", "migrated_to")]
    assert played.outcome.finish_reason == "stop"
    assert played.outcome.winner == "cloud"


async def test_moves_to_the_server_to_save_joules():
    """With energy dear, a device's answer goes on at the server."""
    laptop = device(ttft_s=0.1, tbt_s=0.02, answer=LONG)
    cloud = server(ttft_s=0.3, tbt_s=0.02, answer=LONG.upper())
    laptop.energy = Energy(0.1, 0.1)
    house = a_house([laptop, cloud], {"laptop": 0.0}, migrate=True, usd_per_joule=1.0)
    played = await play(house)
    assert moved(played) == ("laptop", "cloud", "cost", "tokens")
    assert played.text == joined(played, LONG, LONG.upper())


async def test_waits_until_the_buffer_hides_the_handoff():
    """The handoff begins at the first piece before which the reader's unread tokens cover r_c x t_m."""
    laptop = device(ttft_s=0.45, tbt_s=0.1, answer=LONG)
    cloud = server(ttft_s=0.1, tbt_s=0.1, answer=LONG.upper())
    house = a_house([laptop, cloud], {"cloud": 0.0}, migrate=True)
    house = replace(house, migration=MigrationSettings(consumption_tokens_per_s=5.0))
    known = house.knowledge._profiles["laptop"]
    slow = known.ttft
    for _ in range(500):
        slow = slow.observe(10, 0.49 / CAUTION).observe(1000, 0.49 / CAUTION)
    house.knowledge._profiles["laptop"] = replace(known, ttft=slow)
    played = await play(house)
    (migration,) = played.outcome.migrations
    # Tokens come every 0.1 s and are read every 0.2 s: n delivered at 0.1 n leave n - 5 x 0.1 n = n / 2
    # unread before the next; 5 x 0.49 = 2.45 are needed, so the cut is after the fifth token.
    assert migration.at_token == 5
    assert migration.gap_s == pytest.approx(0.1 + 0.45)


async def test_stays_when_the_rest_is_not_cheaper():
    """An answer does not move to an endpoint that decodes at a higher cost."""
    played = await play(a_house([device(ttft_s=0.1), server(ttft_s=1.0)], {"laptop": 0.0}, migrate=True))
    assert played.outcome.migrations == ()
    assert played.text == WORDS


async def test_stays_when_pinned():
    """A request that forbids moving stays where it started, however dear."""
    house = a_house([device(answer=LONG), server(answer=LONG, tbt_s=0.02)], {"cloud": 0.0}, migrate=True)
    played = await play(house, a_request(pinned="stop strings"))
    assert played.outcome.migrations == ()


async def test_the_remaining_allowance_travels():
    """The target may write only what `max_tokens` leaves, so the whole never exceeds it."""
    house = a_house([device(answer=LONG), server(answer=LONG, tbt_s=0.02)], {"cloud": 0.0}, migrate=True)
    played = await play(house, a_request(max_tokens=30))
    assert len(played.outcome.migrations) == 1
    assert played.outcome.completion_tokens == 30
    assert played.outcome.finish_reason == "length"


async def test_a_target_that_fails_costs_nothing_of_the_answer():
    """When the target fails, the source's held tokens are delivered and the answer is the source's own."""
    house = a_house(
        [device(answer=LONG, breaks_after=0, ttft_s=0.05), server(answer=LONG.upper(), tbt_s=0.02)],
        {"cloud": 0.0},
        migrate=True,
    )
    played = await play(house)
    assert played.text == LONG.upper()
    assert played.outcomes == {"cloud": "won", "laptop": "failed"}


async def test_a_late_target_is_dropped_before_the_reader_waits():
    """A target that has not spoken when the reader runs dry is dropped; no piece comes later than that."""
    house = a_house(
        [device(answer=LONG, hangs_after=0), server(answer=LONG.upper(), tbt_s=0.02)],
        {"cloud": 0.0},
        migrate=True,
    )
    played = await play(house)
    assert played.text == LONG.upper()
    assert played.outcomes == {"cloud": "won", "laptop": "lost"}
    assert tbt_as_read(played.outcome.delivered_s, 4.8).max() == pytest.approx(1 / 4.8)


async def test_a_source_that_ends_first_ends_the_answer():
    """A source that finishes while the target prepares has written the answer; the target is cancelled."""
    laptop = device(answer=LONG, ttft_s=2.0)
    house = a_house([laptop, server(answer=LONG[:60].upper(), tbt_s=0.0)], {"cloud": 0.0}, migrate=True)
    played = await play(house)
    assert played.text == LONG[:60].upper()
    assert laptop.open == 0


@pytest.mark.parametrize("by", ["tokens", "text"])
async def test_rescues_a_broken_stream(by):
    """A stream that breaks in mid-answer is continued elsewhere from exactly what was delivered."""
    laptop = device(ttft_s=0.5, continues=(by,), answer=WORDS.upper())
    played = await play(a_house([laptop, server(ttft_s=0.1, tbt_s=0.1, breaks_after=4)], {"cloud": 0.0}))
    assert moved(played) == ("cloud", "laptop", "rescue", by)
    assert played.text == WORDS.upper()
    assert played.outcomes == {"cloud": "failed", "laptop": "migrated_to"}
    assert played.failure is None
    assert played.outcome.migrations[0].gap_s == pytest.approx(0.1 + 0.5)


async def test_a_source_that_breaks_while_a_target_prepares():
    """The target that was being prepared becomes the rescue; what was held past the seam is not repeated."""
    house = a_house(
        [device(answer=LONG, ttft_s=0.3), server(answer=LONG.upper(), tbt_s=0.02, breaks_after=10)],
        {"cloud": 0.0},
        migrate=True,
    )
    played = await play(house)
    assert moved(played)[2] == "rescue"
    assert played.text == joined(played, LONG.upper(), LONG)


async def test_a_broken_stream_that_nobody_can_continue():
    """When nothing can go on, what was delivered is settled and the error names the first cause."""
    house = a_house([device(continues=()), server(ttft_s=0.1, breaks_after=4)], {"cloud": 0.0})
    played = await play(house)
    assert played.text == "ONE TWO THREE FOUR"
    assert str(played.failure) == "cloud: connection reset (scripted)"
    assert played.outcome.finish_reason is None
    assert played.outcome.completion_tokens == 4
    assert played.outcome.error == "cloud: connection reset (scripted)"


async def test_a_rescuer_that_breaks_too():
    """A second break is reported behind the first, and nothing of what was delivered is lost."""
    house = a_house([device(ttft_s=0.1, breaks_after=2), server(breaks_after=4)], {"cloud": 0.0})
    played = await play(house)
    assert played.text == "ONE TWO THREE FOUR" + WORDS[len("ONE TWO THREE FOUR") :][: len(" five six")]
    assert played.failure is not None
    assert played.failure.first.endpoint == "cloud"


async def test_an_echoed_prefix_is_stripped():
    """A target that repeats the answer so far before it goes on does not make the reader read it twice."""

    class Echoing(type(device())):
        def generate(self, request, prefix):
            return super().generate(request, replace(prefix, text=""))

    echoing = Echoing(device(answer=WORDS.upper(), continues=("text",)).settings, device().script)
    echoing.script = device(answer=WORDS.upper(), continues=("text",)).script
    echoing.continues = device(continues=("text",)).continues
    played = await play(a_house([echoing, server(breaks_after=4)], {"cloud": 0.0}))
    assert played.text == WORDS.upper()


async def test_client_that_leaves_in_mid_answer_settles_what_it_got():
    """A client that leaves cancels source and target alike; the tokens it was given are on the bill."""
    laptop, cloud = device(ttft_s=0.1, tbt_s=0.1), server(ttft_s=0.1, tbt_s=0.1)
    played = await play(a_house([laptop, cloud], {"cloud": 0.0}), leaves_after=3)
    assert played.failure is None
    assert (laptop.open, cloud.open) == (0, 0)
    assert played.outcome.finish_reason is None
    assert played.outcome.completion_tokens == 3
    assert played.outcome.usd == pytest.approx((3 + 3) * 10 / 1e6)


async def test_a_source_that_never_waits_is_let_go_all_the_same():
    """What an adapter has in memory behind a stop string is neither gone through nor paid for."""

    class Ready(ScriptedEndpoint):
        async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
            for n in range(1000):
                yield Piece(f" {n}")
            yield Finish(FinishReason.STOP)

    plain = server()
    played = await play(a_house([Ready(plain.settings, plain.script)]), a_request(stop=(" 5",)))
    assert played.text == " 0 1 2 3 4"
    assert played.outcome.attempts[0].completion_tokens == 6


async def test_a_fault_on_the_way_out_is_not_the_endpoints():
    """What goes wrong while a source waits for the client is raised as it is, and nobody is blamed for it."""

    class Faulty(AClient):
        is_full = True

        async def room(self) -> None:
            raise OSError("no room")

    house, client = a_house([device(), server()], {"cloud": 0.0}), Faulty()
    with pytest.raises(OSError, match="no room"):
        await run(a_request(), house, client)
    assert client.outcome
    assert [each.error for each in client.outcome.attempts] == [None]


async def test_a_fault_at_what_waits_already_is_raised():
    """A listener that cannot hear what came before it listened is not left alone with that."""

    class Deaf:
        def hear(self, attempt: LiveAttempt, report: Event | EndpointError, at: float) -> None:
            raise ValueError("what?")

        def must_wait(self, attempt: LiveAttempt) -> bool:
            return False

        async def room(self) -> None:
            raise NotImplementedError

    async with Attempts({"laptop": device()}, 3, Counter(), Purse()) as attempts:
        attempts.start("laptop", a_request(), Prefix())
        await anyio.sleep(0.1)
        with pytest.raises(ValueError, match="what"):
            attempts.listen(Deaf())


class Telling(ScriptedEndpoint):
    """Sends the events it was given, then breaks or ends; notes what it was asked to continue."""

    events: Sequence[Event] = ()
    asked: Prefix | None = None

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        self.asked = prefix
        for event in self.events:
            await anyio.sleep(0.01)
            yield event
        if not isinstance(self.events[-1], Finish):
            raise EndpointError(self.name, Phase.DECODE, "connection reset")


def telling(name: str, *events: Event, continues: tuple[str, ...] = ("tokens", "text")) -> Telling:
    plain = device(name, continues=continues)
    endpoint = Telling(plain.settings, plain.script)
    endpoint.events = events
    return endpoint


STOP = Finish(FinishReason.STOP)


async def test_a_winner_that_breaks_at_once_has_failed():
    """A break before anybody heard the first content is settled as a failure, and rescued."""
    brittle = telling("brittle", Piece("one", 1, (1,)))
    played = await play(a_house([device(ttft_s=0.1, continues=("text",)), brittle], {"brittle": 0.0}))
    assert (played.outcome.winner, played.text) == ("brittle", WORDS)
    assert played.outcomes == {"brittle": "failed", "laptop": "migrated_to"}


async def test_a_source_that_breaks_at_its_limit_has_finished():
    """A stream that breaks after all the tokens that were asked for needs no rescue."""
    laptop = device()
    played = await play(a_house([laptop, server(breaks_after=4)], {"cloud": 0.0}), a_request(max_tokens=4))
    assert played.text == "ONE TWO THREE FOUR"
    assert played.outcome.finish_reason == "length"
    assert laptop.started == 0


async def test_an_answer_that_is_full_in_the_rescuers_tokens_is_whole():
    """A rescuer that may not write any more, because it counts more tokens, ends the answer by its length."""
    full = telling("full", Finish(FinishReason.LENGTH), continues=("text",))
    played = await play(a_house([full, server(breaks_after=4)], {"cloud": 0.0}), a_request(max_tokens=5))
    assert played.failure is None
    assert played.text == "ONE TWO THREE FOUR"
    assert played.outcome.finish_reason == "length"


async def test_words_that_are_said_again_count_once():
    """A rescuer is allowed what the beginning that it goes on from has left, repeated words included."""
    requests: list[Request] = []

    class Asked(Telling):
        def generate(self, request: Request, prefix: Prefix):
            requests.append(request)
            return super().generate(request, prefix)

    plain = telling("laptop", continues=("text",))
    laptop = Asked(plain.settings, plain.script)
    laptop.events = (Piece(" four five."), STOP)
    cloud = server(answer="one two three four", breaks_after=4)
    await play(a_house([laptop, cloud], {"cloud": 0.0}), a_request(max_tokens=20))
    assert laptop.asked == Prefix("one two three", None, 3)
    assert requests[0].max_tokens == 20 - 3


async def test_ids_of_a_character_in_several_tokens_travel_whole():
    """Tokens whose text comes later are handed on with it, and counted."""
    first = telling("first", Piece("x", 1, (1,)))
    second = telling("second", Piece("", 1, (2,)), Piece("é", 1, (3,)))
    third = telling("third", Piece("y.", 1, (4,)), STOP)
    played = await play(a_house([first, second, third], {"first": 0.0}))
    assert played.text == "xéy."
    assert third.asked == Prefix("xé", (1, 2, 3), 3)
    assert played.outcome.completion_tokens == 4


async def test_no_rescue_begins_inside_a_character():
    """Tokens that a broken source reported without their text are not handed on."""
    first = telling("first", Piece("x", 1, (120,)), Piece("", 1, (0xC3,)))
    second = telling("second", Piece("y.", 1, (121,)), STOP)
    played = await play(a_house([first, second], {"first": 0.0}))
    assert second.asked == Prefix("x", (120,), 1)
    assert played.text == "xy."


async def test_a_continuation_that_looks_like_an_echo_until_it_ends():
    """What a target said is delivered even if it could have been the beginning of an echo."""
    first = telling("first", Piece("A or B? "))
    second = telling("second", Piece("A"), STOP, continues=("text",))
    played = await play(a_house([first, second], {"first": 0.0}))
    assert played.text == "A or B? A"
    assert played.outcome.completion_tokens == 2


async def test_a_rescuer_that_hangs_gives_way_to_the_next():
    """While another endpoint is left, a rescuer that does not speak in its time is dropped."""
    endpoints = [server(breaks_after=4), device("mute", hangs_after=0), device("third", ttft_s=0.1)]
    played = await play(a_house(endpoints, {"cloud": 0.0}))
    assert played.failure is None
    assert played.text == joined(played, WORDS.upper(), WORDS)
    assert played.outcome.migrations[0].target == "third"


async def test_held_text_comes_out_when_the_prepared_target_is_late():
    """A source that broke while a target prepared had written text; it is delivered before anyone waits."""
    mute = device(answer=LONG, hangs_after=0)
    spare = device("spare", answer=LONG, ttft_s=0.1, continues=("text",))
    cloud = server(answer=LONG.upper(), tbt_s=0.02, breaks_after=30)
    played = await play(a_house([mute, spare, cloud], {"cloud": 0.0}, migrate=True))
    (migration,) = played.outcome.migrations
    assert (migration.at_token, migration.target) == (30, "spare")
    assert played.text == joined(played, LONG.upper(), LONG)


async def test_a_failure_report_has_the_races_failures_too():
    """All causes are told, those of the race first."""
    played = await play(a_house([device(refuses="out of memory"), server(breaks_after=4)]))
    assert str(played.failure) == "laptop: out of memory (also failed: cloud: connection reset (scripted))"


async def test_the_endpoints_own_count_is_the_usage():
    """Where one endpoint wrote the whole answer, its own token count is what the client is told."""
    only = telling("only", Piece("three words here", 4), Finish(FinishReason.STOP, 7, 3))
    played = await play(a_house([only]))
    assert played.outcome.completion_tokens == 3
    assert played.outcome.prompt_tokens == 7


async def test_a_long_prompt_that_nobody_counted_is_not_taken_for_none():
    """A server that does not count the prompt does not make a slow device look quick to take over."""
    plain = server(answer=LONG.upper(), ttft_s=0.1, tbt_s=0.02)
    cloud = telling("cloud", *[Piece(f" w{n}", 1, (n,)) for n in range(30)], STOP)
    cloud.prices = plain.prices
    laptop = device(answer=LONG, prefill_s_per_token=0.01)
    played = await play(a_house([laptop, cloud], {"cloud": 0.0}, migrate=True), a_request("word " * 4000))
    assert laptop.started == 0
    assert played.outcome.migrations == ()


async def test_a_prompt_of_more_tokens_than_estimated_is_not_taken_for_read():
    """A device with a cache that has read nothing is as cold as one without, whatever was estimated."""

    async def stayed(slots: int | None) -> str | None:
        cloud = telling("cloud", Prompt(4000), *[Piece(f" w{n}", 1, (n,)) for n in range(30)], STOP)
        cloud.prices = server().prices
        laptop = device(answer=LONG, slots=slots)
        house = a_house([laptop, cloud], {"cloud": 0.0}, migrate=True)
        return (await play(house, a_request("word " * 400))).outcome.stayed

    assert await stayed(slots=1) == await stayed(slots=None)


def numbered(text: str) -> str:
    """The text with a number at every word, so that each is there once."""
    return " ".join(f"{word}{n}" for n, word in enumerate(text.split(" ")))


words = st.text(
    st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]) | st.sampled_from("🙂漢é́👩‍👩‍👧"),
    min_size=1,
    max_size=8,
)
texts = st.lists(words, min_size=2, max_size=50).map(" ".join)


@given(
    source=texts,
    target=texts,
    tbt=st.sampled_from([0.0, 0.01, 0.05]),
    reading=st.floats(0.5, 300.0),
    start=st.floats(0.0, 2.0),
    by=st.sampled_from(["tokens", "text"]),
    breaks=st.none() | st.integers(1, 40),
)
@settings(max_examples=200, deadline=None)
def test_every_character_is_accounted_for(source, target, tbt, reading, start, by, breaks):
    """Wherever an answer moves, it is the source's prefix and the target's continuation, exactly."""

    source, target = f"{source}.", f"{target} " * (len(source) // len(target) + 2)
    if by == "text":
        source = target = numbered(source)

    async def session() -> Played:
        cloud = server(answer=source, tbt_s=tbt, breaks_after=breaks)
        laptop = device(answer=target, ttft_s=start, tbt_s=tbt, continues=(by,), vocabulary="utf-8")
        house = a_house([laptop, cloud], {"cloud": 0.0}, migrate=True)
        return await play(replace(house, migration=MigrationSettings(consumption_tokens_per_s=reading)))

    played = anyio.run(session, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})
    whole = source
    if played.outcome.migrations:
        whole = joined(played, source, target)
        assert played.outcome.migrations[0].by == by
    assert played.failure is None
    assert played.text == whole
    assert sum(piece.tokens for piece in played.pieces) == played.outcome.completion_tokens


@pytest.mark.parametrize("seed", range(200))
def test_two_hundred_sessions_lose_and_repeat_nothing(seed):
    """At a random handoff, for cost or as a rescue, by IDs or as text, no character is lost or repeated."""
    rng = np.random.default_rng(seed)
    alphabet = [
        "naïve",
        "漢字",
        "🙂",
        "e\u0301té",
        "👩\u200d👩\u200d👧",
        "rock-n-roll",
        "line\nbreak",
        "”quoted“",
        "x",
    ]
    source, target = (" ".join(rng.choice(alphabet, 80)) + "." for _ in range(2))
    by = rng.choice(["tokens", "text"])
    if by == "text":
        source = target = numbered(source)
    whole = target if by == "text" else target * 3
    rescue = {"breaks_after": int(rng.integers(1, 40))} if seed % 2 else {}
    reading = MigrationSettings(enabled=not rescue, consumption_tokens_per_s=float(rng.uniform(1.0, 20.0)))

    async def session() -> Played:
        cloud = server(answer=source, tbt_s=0.02, **rescue)
        laptop = device(answer=whole, ttft_s=0.05, tbt_s=0.02, continues=(by,))
        house = a_house([laptop, cloud], {"cloud": 0.0})
        return await play(replace(house, migration=reading))

    played = anyio.run(session, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})
    (migration,) = played.outcome.migrations
    assert (migration.reason, migration.by) == ("rescue" if rescue else "cost", by)
    assert played.text == source[: migration.at_char] + whole[migration.at_char :]
    assert sum(piece.tokens for piece in played.pieces) == played.outcome.completion_tokens
