"""Handoffs: how often, in which way, by whom, and why not."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

import anyio
import pytest
from timetable import Played, a_house, a_request, device, play, server

from discostream.config import MigrationSettings
from discostream.core.cost import Energy
from discostream.core.handoff import CAUTION
from discostream.endpoints.scripted import TOKEN, ScriptedEndpoint
from discostream.types import Extra, Finish, FinishReason, Kind, Piece, Prefix, Prompt, Request

pytestmark = pytest.mark.anyio

LONG = " ".join(f"word{n}" for n in range(60))


def a_pair(laptop: ScriptedEndpoint, cloud: ScriptedEndpoint, **settings: object):
    house = a_house([laptop, cloud], {"cloud": 0.0})
    return replace(house, migration=MigrationSettings(**settings))


class Saying(ScriptedEndpoint):
    """Goes on with the same words, whatever the answer so far."""

    says: tuple[str, ...] = ()

    async def generate(self, request: Request, prefix: Prefix):
        self.started += 1
        for word in self.says:
            await anyio.sleep(0.01)
            yield Piece(word)
        yield Finish(FinishReason.STOP)


def saying(*words: str, name: str = "laptop") -> Saying:
    plain = device(name, continues=("text",))
    endpoint = Saying(plain.settings, plain.script)
    endpoint.says = words
    return endpoint


def dropped(played: Played) -> list[tuple[str, str]]:
    return [(each.endpoint, each.dropped) for each in played.outcome.attempts if each.dropped]


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (("WORD0", " WORD1", " WORD2", " WORD3", " anew"), "began the answer anew"),
        (("Sure!", " Here"), "left out the space before its first word"),
        ((), "it ended the answer at once"),
        (("\n", "\n"), "it ended the answer at once"),
    ],
)
async def test_a_wrong_target_is_dropped_and_nothing_lost(says, why):
    """Whoever begins anew, introduces itself or has nothing to say never reaches the reader."""
    cloud = server(answer=LONG.upper(), tbt_s=0.05)
    played = await play(a_pair(saying(*says), cloud, consumption_tokens_per_s=12.0))
    assert played.text == LONG.upper()
    assert dropped(played) == [("laptop", why)]
    assert played.outcomes == {"cloud": "won", "laptop": "lost"}
    assert played.outcome.stayed == f"laptop was asked to go on, and let go: {why}"


async def test_words_that_are_said_again_are_left_out():
    """A target that repeats the end of the answer goes on behind it, and its repetition is not counted."""
    cloud = server(answer=LONG.upper(), tbt_s=0.05)

    class Repeating(Saying):
        def generate(self, request: Request, prefix: Prefix):
            last = prefix.text.split(" ")[-3:]
            self.says = (*(f" {word}" for word in last), " and", " so.")
            return super().generate(request, prefix)

    plain = saying()
    repeating = Repeating(plain.settings, plain.script)
    played = await play(a_pair(repeating, cloud, consumption_tokens_per_s=12.0))
    (migration,) = played.outcome.migrations
    assert played.text == LONG.upper()[: migration.at_char] + " and so."
    assert played.outcome.completion_tokens == migration.at_token + 2


async def test_a_target_that_was_wrong_may_still_rescue():
    """One that went on badly from an earlier seam is asked once more when the source breaks."""
    cloud = server(answer="one two three fo and more", breaks_after=4)
    played = await play(a_pair(saying("fo", "ur five."), cloud))
    assert played.text == "one two three four five."
    assert [each.reason for each in played.outcome.migrations] == ["rescue"]


async def test_a_rescuer_that_adds_nothing_does_not_end_what_the_source_went_on_with():
    """Words that were held while a target prepared reach the reader, whatever the target thinks of them."""

    class Ending(Saying):
        async def generate(self, request: Request, prefix: Prefix):
            await anyio.sleep(0.3)
            async with aclosing(super().generate(request, prefix)) as events:
                async for event in events:
                    yield event

    plain = saying()
    sentences = LONG.replace(" ", ". ") + "."
    cloud = server(answer=sentences, tbt_s=0.02, breaks_after=12)
    played = await play(a_pair(Ending(plain.settings, plain.script), cloud))
    assert played.text == " ".join(sentences.split(" ")[:12])
    assert played.outcome.finish_reason == "stop"


async def test_another_last_word_is_asked_for_once_more():
    """A rescuer that does not say the broken word again is asked to go on from the exact text."""
    asked: list[str] = []

    class Choosing(Saying):
        def generate(self, request: Request, prefix: Prefix):
            asked.append(prefix.text)
            self.says = (" other",) if len(asked) == 1 else ("ly", " so.")
            return super().generate(request, prefix)

    plain = saying()
    played = await play(a_pair(Choosing(plain.settings, plain.script), server(breaks_after=3)))
    assert asked == ["ONE TWO", "ONE TWO THREE"]
    assert played.text == "ONE TWO THREEly so."
    assert dropped(played) == [("laptop", "did not say the last word again")]


async def test_stop_strings_hold_across_the_seam():
    """Half a stop string from the source and half from the target end the answer before it, and once."""
    cloud = server(answer="one two three fo and more", breaks_after=4)
    house = a_pair(saying("fo", "ur five"), cloud, enabled=False)
    played = await play(house, a_request(stop=("four", "never")))
    assert played.text == "one two three "
    assert played.outcome.finish_reason == "stop"
    assert played.outcomes == {"cloud": "failed", "laptop": "migrated_to"}


async def test_what_looks_like_a_stop_string_is_delivered_in_the_end():
    """Text that was held back because it could have been a stop string comes out with the answer's end."""
    played = await play(a_house([server(answer="one two th")]), a_request(stop=("three",)))
    assert played.text == "one two th"
    assert played.outcome.completion_tokens == 3


async def test_answers_with_stop_strings_may_move():
    """A stop string keeps nothing where it is; both endpoints are told of it."""
    laptop = device(answer=LONG, ttft_s=0.05)
    played = await play(a_pair(laptop, server(answer=LONG.upper(), tbt_s=0.05)), a_request(stop=("word40",)))
    (migration,) = played.outcome.migrations
    assert played.text == LONG.upper()[: migration.at_char] + LONG[migration.at_char : LONG.index("word40")]
    assert played.outcome.finish_reason == "stop"
    assert laptop.open == 0


async def test_stop_then_start_leaves_a_gap():
    """The paper's way: the source stops when the target is asked, and the reader has what was unread."""
    laptop, cloud = device(answer=LONG, ttft_s=0.5), server(answer=LONG.upper(), tbt_s=0.05)
    played = await play(a_pair(laptop, cloud, mode="stop-then-start"))
    (migration,) = played.outcome.migrations
    assert played.text == LONG.upper()[: migration.at_char] + LONG[migration.at_char :]
    assert migration.reason == "cost"
    assert migration.gap_s == pytest.approx(0.05 + 0.5)
    spent = {each.endpoint: each.completion_tokens for each in played.outcome.attempts}
    assert spent["cloud"] == migration.at_token + 1
    assert played.outcomes["cloud"] == "migrated_from"


async def test_a_stopped_source_can_be_asked_again():
    """When the target that a source was stopped for fails, the source goes on itself."""
    laptop, cloud = device(breaks_after=0), server(answer=LONG.upper(), tbt_s=0.05)
    played = await play(a_pair(laptop, cloud, mode="stop-then-start"))
    assert played.text == LONG.upper()
    assert [each.target for each in played.outcome.migrations] == ["cloud"]
    assert played.failure is None


@pytest.mark.parametrize(
    ("settings", "asked", "why"),
    [
        ({"enabled": False}, {}, "migration is switched off"),
        ({}, {"migrate": False}, "the request asks to stay where it starts"),
        ({}, {"pinned": "it uses tools"}, "it uses tools"),
        ({"max_moves": 0}, {}, "migration is switched off"),
        ({"consumption_tokens_per_s": 1000.0}, {}, "would be noticed"),
    ],
)
async def test_why_an_answer_stayed(settings, asked, why):
    """The account of an answer that did not move says what kept it."""
    house = a_pair(device(answer=LONG), server(answer=LONG.upper(), tbt_s=0.05), **settings)
    played = await play(house, a_request(**asked))
    assert played.outcome.migrations == ()
    assert why in played.outcome.stayed
    assert played.outcome.as_disco()["stayed"] == played.outcome.stayed


async def test_an_answer_that_cannot_be_cut_says_so():
    """Where a move would pay and go unnoticed, but there is no place for a seam, that is the reason."""
    plain = server()
    cloud = Saying(plain.settings, plain.script)
    cloud.says = ("字",) * 60
    played = await play(a_pair(device(continues=("text",)), cloud))
    assert played.text == "字" * 60
    assert played.outcome.stayed.endswith("hide it: cannot be cut there")


async def test_a_change_that_comes_with_what_cannot_be_followed_is_not_forgotten():
    """Whoever becomes able to go on just before a piece that forbids a move is asked after that piece."""
    laptop = device(answer=LONG)
    able, laptop.continues = laptop.continues, frozenset()

    class Cloud(ScriptedEndpoint):
        async def generate(self, request: Request, prefix: Prefix):
            for n, word in enumerate(TOKEN.findall(LONG)):
                await anyio.sleep(0.05)
                if n == 5:
                    laptop.continues = able
                yield Piece(word, extra=Extra(logprobs={}) if n == 5 else None)
            yield Finish(FinishReason.STOP)

    plain = server()
    played = await play(a_pair(laptop, Cloud(plain.settings, plain.script)))
    assert [move.target for move in played.outcome.migrations] == ["laptop"]


async def test_an_answer_of_one_piece_is_over_before_it_could_move():
    """Of an answer that came at once nobody says that others were dearer; they were not looked at."""
    played = await play(a_pair(device(answer="Yes."), server(answer="YES.")))
    assert played.outcome.stayed == "it was over before it could move"


async def test_an_answer_that_moved_says_why():
    """The account of a move has the figures that decided it, and nothing says that it stayed."""
    played = await play(a_pair(device(answer=LONG), server(answer=LONG.upper(), tbt_s=0.05)))
    (migration,) = played.outcome.as_disco()["migrations"]
    assert "saves $" in migration["why"]
    assert "unread" in migration["why"]
    assert played.outcome.stayed is None


async def test_reasoning_stays_where_it_began():
    """While a model thinks aloud its answer does not move; nor is it rescued."""
    thinking = "<think> " + LONG
    played = await play(a_pair(device(answer=thinking), server(answer=thinking, tbt_s=0.05)))
    assert played.outcome.stayed == "the model is still reasoning"
    broken = await play(a_pair(device(answer=thinking), server(answer=thinking, breaks_after=9)))
    assert str(broken.failure) == "cloud: connection reset (scripted)"
    done = thinking.replace("word1 ", "word1 </think> ")
    played = await play(a_pair(device(answer=done), server(answer=done, tbt_s=0.05)))
    assert len(played.outcome.migrations) == 1


class Thinker(ScriptedEndpoint):
    """One whose prompts end in an open thought."""

    async def generate(self, request, prefix):
        async with aclosing(super().generate(request, prefix)) as events:
            async for event in events:
                opens = isinstance(event, Prompt) and not prefix.text
                yield replace(event, opens_thought=True) if opens else event


async def test_reasoning_that_the_prompt_opened_stays_where_it_began():
    """An answer that begins in the middle of a thought does not move, nor is it rescued, before its end."""
    thinking = a_pair(device(answer=LONG), Thinker.of("cloud", Kind.SERVER, answer=LONG, usd_per_mtok=10.0))
    played = await play(thinking)
    assert played.outcome.stayed == "the model is still reasoning"
    breaking = Thinker.of("cloud", Kind.SERVER, answer=LONG, usd_per_mtok=10.0, breaks_after=9)
    broken = await play(a_pair(device(answer=LONG), breaking))
    assert str(broken.failure) == "cloud: connection reset (scripted)"
    done = LONG.replace("word1 ", "word1 </think> ")
    closing = Thinker.of("cloud", Kind.SERVER, answer=done, usd_per_mtok=10.0, tbt_s=0.05)
    played = await play(a_pair(device(answer=done), closing))
    assert len(played.outcome.migrations) == 1


class Reading(ScriptedEndpoint):
    """Reads a prompt of 100 tokens in batches, 8 s each, and says so; goes on with an answer at once."""

    async def generate(self, request, prefix):
        if not prefix.text:
            for read in (0, 50):
                yield Prompt(100, 0, read)
                await anyio.sleep(8.0)
            await anyio.sleep_forever()
        async with aclosing(super().generate(request, prefix)) as events:
            async for event in events:
                yield event


async def test_a_loser_in_the_middle_of_a_batch_is_not_asked_to_go_on_before_its_end():
    """An engine computes a batch to its end, so a handoff is hidden only by what is unread until then."""
    laptop = Reading.of("laptop", Kind.DEVICE, answer=LONG)
    cloud = server(answer=LONG, ttft_s=8.5, tbt_s=0.1)
    house = a_house([laptop, cloud], {"laptop": 0.0, "cloud": 0.0})
    house = replace(house, migration=MigrationSettings(consumption_tokens_per_s=4.0))
    played = await play(house)
    (migration,) = played.outcome.migrations
    unread = migration.at_token - 4.0 * 0.1 * migration.at_token
    still_reads_s = 16.0 - (8.5 + 0.1 * migration.at_token)
    assert unread >= 4.0 * still_reads_s > 0.0
    assert played.text == LONG


async def test_rescues_are_counted():
    """An answer is rescued as often as it may, and then ends with the first cause."""
    names = ["first", "second", "third", "fourth"]
    house = a_house([device(name, breaks_after=3, answer=LONG) for name in names], {"first": 0.0})
    played = await play(replace(house, migration=MigrationSettings(max_rescues=2)))
    assert len(played.outcome.migrations) == 2
    assert str(played.failure).startswith("first: connection reset")
    assert played.text == " ".join(LONG.split(" ")[:9])


@pytest.mark.parametrize("asked", [{"rescue": False}, {}])
async def test_rescue_can_be_refused(asked):
    """With rescues off, for a request or in the settings, a broken stream ends in its error."""
    house = a_pair(device(), server(breaks_after=4), enabled=False, rescue=bool(asked))
    played = await play(house, a_request(**asked))
    assert played.text == "ONE TWO THREE FOUR"
    assert str(played.failure) == "cloud: connection reset (scripted)"
    assert house.endpoints["laptop"].started == 0


async def test_an_answer_that_moved_moves_again_only_for_more():
    """Each earlier move makes a move dearer: what paid once does not pay to and fro."""
    laptop, cloud = device(answer=LONG, tbt_s=0.05), server(answer=LONG.upper(), tbt_s=0.05)
    played = await play(a_pair(laptop, cloud, max_moves=9))
    assert len(played.outcome.migrations) == 1


async def test_a_loser_that_has_read_the_prompt_is_warm():
    """The device that lost the race need not read again what it read, so t_m is short and it moves sooner."""
    prompt = "word " * 400
    seams = {}
    for slots in (1, None):
        laptop = device(answer=LONG, prefill_s_per_token=0.01, slots=slots)
        cloud = server(answer=LONG.upper(), ttft_s=3.9, tbt_s=0.1)
        laptop.energy = Energy(1e-9, 1e-9)
        house = a_house([laptop, cloud], {"cloud": 0.0, "laptop": 0.0}, migrate=True, usd_per_joule=1.0)
        known = house.knowledge._profiles["laptop"]
        ttft = known.ttft
        for tokens in (10, 400, 800) * 200:
            ttft = ttft.observe(tokens, 0.01 * tokens)
        house.knowledge._profiles["laptop"] = replace(known, ttft=ttft)
        played = await play(house, a_request(prompt))
        seams[slots] = [each.at_token for each in played.outcome.migrations]
    cold_s = CAUTION * 0.01 * 400
    assert seams[1][0] < 0.7 * 4.8 * cold_s
    assert seams[None] == []


async def test_what_a_cache_held_takes_no_energy():
    """A prompt that a device has read before is not paid for in joules again."""
    laptop = device(slots=1)
    laptop.energy = Energy(1.0, 0.0)
    house = a_house([laptop])
    first, second = [await play(house, a_request(" ".join(["word"] * 50))) for _ in range(2)]
    assert first.outcome.joules == pytest.approx(50)
    assert second.outcome.joules == pytest.approx(0)
    assert second.outcome.attempts[0].prompt_tokens == 50
