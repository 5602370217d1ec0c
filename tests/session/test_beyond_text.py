"""What an answer may hold beside text: who is asked for it, in what order it leaves, and when it moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from timetable import WORDS, Played, a_house, a_request, device, play, server

from discostream.config import PacingSettings, Settings, settings_from
from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.errors import AllEndpointsFailed, RequestRejected
from discostream.library import connect
from discostream.session.pins import pinned_by_needs
from discostream.types import Extra, Feature, FinishReason, Message, Piece, Request

pytestmark = pytest.mark.anyio

THOUGHT = "Let me think about it first."
LONG = " ".join(f"word{n}" for n in range(60))
WEATHER = {"name": "weather", "arguments": {"city": "Paris"}}


def reasoning(played: Played) -> str:
    return "".join(piece.extra.reasoning for piece in played.pieces if piece.extra)


def with_tools(**fields: object) -> Request:
    return pinned_by_needs(a_request(needs=frozenset({Feature.TOOLS}), **fields))


def unable(endpoint: ScriptedEndpoint) -> ScriptedEndpoint:
    endpoint.features = frozenset()
    return endpoint


def speechless(*pieces: Piece, **script: object) -> ScriptedEndpoint:
    """A server that says exactly these pieces, then what its script says."""

    class Speaker(ScriptedEndpoint):
        async def generate(self, request, prefix):
            for piece in pieces:
                yield piece
            async for event in super().generate(request, prefix):
                yield event

    plain = server(**script)
    return Speaker(plain.settings, plain.script)


async def test_only_those_start_that_have_what_is_needed():
    """An endpoint without tools is never asked, however early it was planned; the others race."""
    laptop, cloud, other = unable(device()), server(ttft_s=0.5), server("other", ttft_s=0.2)
    house = a_house([laptop, cloud, other], {"laptop": 0.0, "cloud": 0.1, "other": 0.1})
    played = await play(house, with_tools())
    assert (laptop.started, cloud.started, other.started) == (0, 1, 1)
    assert played.outcomes == {"cloud": "lost", "other": "won"}


async def test_who_can_steps_in_where_the_plan_names_none():
    """A plan for endpoints that all cannot is the others' turn, at once."""
    house = a_house([unable(device()), server(ttft_s=0.1)], {"laptop": 0.0})
    assert (await play(house, with_tools())).outcome.ttft_s == pytest.approx(0.1)


def settings(folder: Path, features: Sequence[str], **policy: str) -> Settings:
    cloud = {"name": "cloud", "kind": "server", "dialect": "scripted", "features": features}
    pair = [{"name": "laptop", "kind": "device", "dialect": "scripted"}, cloud]
    return settings_from({"endpoint": pair, "policy": policy, "ledger": {"path": str(folder / "l.db")}})


@pytest.mark.parametrize(
    ("needs", "fields", "policy", "words"),
    [
        ({Feature.IMAGES}, {}, {}, r'needs "images", which no .* declares \(laptop, cloud\)'),
        ({Feature.TOOLS}, {"endpoint": "cloud"}, {}, r'needs "tools", .* \(cloud\)'),
        ({Feature.TOOLS}, {}, {"name": "server-only"}, r'"tools", .* \(cloud\)'),
        ({Feature.AUDIO}, {"private": True}, {}, r'"audio", .* \(laptop\)'),
        ({Feature.TOOLS, Feature.AUDIO}, {}, {}, r'add "audio" and "tools" to `features`'),
    ],
)
async def test_what_nobody_can_do_is_refused_by_name(tmp_path, needs, fields, policy, words):
    """The error says what is needed, who was considered, and the setting that would declare it."""
    request = Request(
        messages=(Message("user", "x"),), arrived_at=0.0, request_id="r", needs=frozenset(needs), **fields
    )
    async with connect(settings(tmp_path, ["audio"], **policy)) as disco:
        with pytest.raises(RequestRejected, match=words) as caught:
            disco.submit(request)
    assert caught.value.status == 400
    assert caught.value.param in ("tools", "messages")


async def test_a_tool_call_wins_a_race_and_ends_it():
    """The call is content: its first part wins, and every part is delivered as it came."""
    cloud = server(tool_calls=[WEATHER], ttft_s=0.1)
    played = await play(a_house([device(ttft_s=0.3), cloud]), with_tools())
    assert played.outcomes == {"cloud": "won", "laptop": "lost"}
    assert played.outcome.finish_reason is FinishReason.TOOL_CALLS
    assert played.outcome.ttft_s == pytest.approx(0.1)
    parts = [piece.extra.delta["tool_calls"][0] for piece in played.pieces if piece.extra]
    assert [part["function"]["arguments"] for part in parts] == ["", '{"city":"Paris"}']
    assert [part.get("id") for part in parts] == ["call_0", None]


@pytest.mark.parametrize(
    ("need", "why"),
    [
        (Feature.TOOLS, "it uses tools"),
        (Feature.JSON, "its answer keeps to a schema or a grammar"),
        (Feature.LOGPROBS, "it asks for log-probabilities"),
        (Feature.COMPLETIONS, None),
    ],
)
async def test_what_cannot_change_hands_stays(need, why):
    """Where half of the answer means nothing to another endpoint, it does not move, and says why."""
    house = a_house([device(answer=LONG), server(answer=LONG, tbt_s=0.02)], {"cloud": 0.0}, migrate=True)
    played = await play(house, pinned_by_needs(a_request(needs=frozenset({need}))))
    assert played.outcome.stayed == why
    assert len(played.outcome.migrations) == (why is None)


async def test_the_first_cause_of_staying_wins():
    """What was said to pin the request before is not overwritten."""
    assert with_tools(pinned="because").pinned == "because"
    assert pinned_by_needs(a_request()).pinned is None


async def test_a_raw_completion_moves_to_whoever_completes():
    """An endpoint that cannot go on with a chat can go on with a text."""
    laptop = device(answer=LONG, continues=(), ttft_s=0.05)
    house = a_house([laptop, server(answer=LONG, tbt_s=0.02)], {"cloud": 0.0}, migrate=True)
    assert (await play(house)).outcome.migrations == ()
    played = await play(house, a_request(needs=frozenset({Feature.COMPLETIONS})))
    (move,) = played.outcome.migrations
    assert (move.target, move.by.value, played.text) == ("laptop", "text", LONG)


async def test_reasoning_is_content_but_no_text():
    """It wins the race and is delivered first, under its own name; the text is the answer's alone."""
    played = await play(a_house([device(ttft_s=0.1, reasoning=THOUGHT), server(ttft_s=0.2)]))
    assert (played.outcome.winner, played.outcome.ttft_s) == ("laptop", pytest.approx(0.1))
    assert (reasoning(played), played.text) == (THOUGHT, WORDS)
    assert [bool(piece.text) for piece in played.pieces] == [False] * 6 + [True] * 16
    assert played.outcome.completion_tokens == 22


async def test_stop_strings_are_looked_for_in_the_answer_alone():
    """One that stands in the reasoning, or half in it, ends nothing; text that waits keeps its place."""
    laptop = device(reasoning="one two three", answer="zero one two three four")
    played = await play(a_house([laptop]), a_request(stop=(" three",)))
    assert (reasoning(played), played.text) == ("one two three", "zero one two")
    thought = Piece("", extra=Extra(reasoning="hm"))
    cloud = speechless(Piece("a th"), thought, Piece("b"), answer="")
    played = await play(a_house([cloud]), a_request(stop=(" three",)))
    said = [piece.extra.reasoning if piece.extra else piece.text for piece in played.pieces]
    assert said == ["a", " th", "hm", "b"]


async def test_an_answer_does_not_move_while_it_is_reasoning():
    """Cheaper or not, nobody can go on from half a thought; from the text behind it somebody can."""
    laptop = device(answer=LONG, ttft_s=0.05)
    house = a_house([laptop, server(answer=LONG, tbt_s=0.02, reasoning=LONG)], {"cloud": 0.0}, migrate=True)
    played = await play(house)
    (move,) = played.outcome.migrations
    assert (reasoning(played), played.text) == (LONG, LONG)
    assert (move.source, move.by.value, move.at_char > 0) == ("cloud", "tokens", True)
    assert laptop.started == 1


@pytest.mark.parametrize(("breaks_after", "rescued"), [(3, False), (10, True)])
async def test_an_answer_is_rescued_only_once_it_has_begun(breaks_after, rescued):
    """A stream that breaks in its reasoning breaks the answer; one that breaks in its text does not."""
    cloud = server(reasoning=THOUGHT, breaks_after=breaks_after, answer=WORDS)
    played = await play(a_house([device(), cloud], {"cloud": 0.0, "laptop": 9.0}))
    assert bool(played.outcome.migrations) is rescued
    assert isinstance(played.failure, AllEndpointsFailed) is not rescued
    assert played.text == (WORDS if rescued else "")


async def test_a_target_that_thinks_aloud_is_refused():
    """Going on by text, reasoning is a new beginning; the next one takes the answer over."""
    thinker = device("thinker", reasoning=THOUGHT, vocabulary="other", answer=WORDS)
    cloud, laptop = server(answer=WORDS, breaks_after=5), device(ttft_s=3.0, vocabulary="third")
    played = await play(a_house([cloud, thinker, laptop], {"cloud": 0.0}))
    assert [move.target for move in played.outcome.migrations] == ["laptop"]
    (dropped,) = {attempt.dropped for attempt in played.outcome.attempts if attempt.endpoint == "thinker"}
    assert dropped == "began to think aloud"
    assert (reasoning(played), played.text) == ("", WORDS)


async def test_log_probabilities_come_with_their_tokens():
    """Every piece carries its own."""
    played = await play(a_house([device()]), a_request(needs=frozenset({Feature.LOGPROBS})))
    told = [piece.extra.logprobs["content"][0]["token"] for piece in played.pieces if piece.extra]
    assert told == [piece.text for piece in played.pieces]
    assert "".join(told) == WORDS


async def test_nobody_takes_over_before_what_is_no_text():
    """A target is asked to go on where the source goes on with text, and not where it says something else."""
    house = a_house([device(answer=LONG), server(answer=LONG, tbt_s=0.02)], {"cloud": 0.0}, migrate=True)
    assert (await play(house)).outcome.migrations
    annotated = a_request(needs=frozenset({Feature.LOGPROBS}))
    assert (await play(house, annotated)).outcome.migrations == ()


async def test_pacing_keeps_the_order():
    """Words wait for their time, and nothing overtakes them: thought, text and call leave as they came."""
    call = Piece("", extra=Extra(delta={"tool_calls": [{"index": 0}]}))
    thought = Piece("", 4, extra=Extra(reasoning="a long thought"))
    pieces = thought, Piece("one two three", 3), call, Piece(" four")
    house = replace(a_house([speechless(*pieces, answer="")]), pacing=PacingSettings(mode="reading"))
    played = await play(house)
    assert [piece.text or piece.extra for piece in played.pieces] == [
        pieces[0].extra,
        "one",
        " two",
        " three",
        call.extra,
        " four",
    ]
    assert played.pieces[-1].at_s > played.pieces[0].at_s
