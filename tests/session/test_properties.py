"""What holds for every answer, however it is split, delayed, broken and handed on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from random import Random

import anyio
import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timetable import Played, a_house, a_request, device, play, server
from trio.testing import MockClock

from discostream.config import MigrationSettings, PacingSettings
from discostream.core.seam import ECHO_CHARS, ends_sentence
from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.errors import EndpointError, Phase
from discostream.types import Carrier, Event, Finish, FinishReason, Kind, Piece, Prefix, Request

CASES = 5000
"""A test; there are four."""

READ_TIMEOUT_S = 120.0

WORDS = [
    " word",
    "ing",
    "\r\n",
    "\n\n- ",
    "漢字",
    "🙂",
    "👩\u200d👩\u200d👧",
    "e\u0301",
    "\u0301",
    "</think>",
    " END",
    "EN",
    "D",
    ", ",
    "?! ",
    "\t",
    " ",
    "ﬁ",
]


@dataclass(frozen=True)
class Part:
    """How one endpoint plays its part: what it says, when, and what goes wrong."""

    text: str
    sizes: list[int]
    start_s: float
    gap_s: float
    fault: str
    after: int


class Player(ScriptedEndpoint):
    """Says its text from where the prefix ends, in pieces of the given sizes, until its fault happens."""

    part: Part

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        part, said = self.part, 0
        rest = part.text if prefix.token_ids is not None else part.text[len(prefix.text) :]
        with self._counted():
            await anyio.sleep(part.start_s)
            if (
                part.fault == "echoes"
                and len(prefix.text.lstrip()) >= ECHO_CHARS
                and prefix.token_ids is None
            ):
                rest = prefix.text + rest
            if part.fault == "says nothing" and prefix.text and not ends_sentence(prefix.text):
                rest = ""
            for number, piece in enumerate(pieces_of(rest, part.sizes)):
                if number == part.after and part.fault == "breaks":
                    raise EndpointError(self.name, Phase.DECODE, "connection reset")
                if number == part.after and part.fault == "hangs":
                    await anyio.sleep(READ_TIMEOUT_S)
                    raise EndpointError(self.name, Phase.DECODE, "silent for too long")
                if number == part.after and part.fault == "pauses":
                    await anyio.sleep(3.0)
                said += 1
                yield Piece(piece, 1, (number,))
                await anyio.sleep(part.gap_s)
            if part.fault == "forgets to finish":
                return
            yield Finish(FinishReason.STOP, 10, said)


def pieces_of(text: str, sizes: list[int]) -> list[str]:
    """The text in pieces; the sizes are used over and over."""
    cuts, at = [], 0
    while at < len(text):
        cuts.append(text[at : at + sizes[len(cuts) % len(sizes)]])
        at += len(cuts[-1])
    return cuts


def player(kind: Kind, name: str, part: Part, carriers: list[str]) -> Player:
    plain = (device if kind is Kind.DEVICE else server)(name, continues=tuple(carriers))
    endpoint = Player(plain.settings, plain.script)
    endpoint.part, endpoint.prices = part, plain.prices
    return endpoint


SOUND = ["", "", "pauses"]
BROKEN = ["breaks", "hangs", "forgets to finish"]
WRONG = ["echoes", "says nothing", *BROKEN]

chance = st.randoms(use_true_random=True)
"""One draw for what is long and has no corners; a draw costs as much as a token's whole way."""


def an_answer(luck: Random) -> str:
    words = luck.choices(WORDS, k=luck.randint(1, luck.randint(1, 25)))
    return "".join(f"{word}{chr(97 + n)}" for n, word in enumerate(words)) + "."


answers = chance.map(an_answer)


def parts(faults: list[str]) -> st.SearchStrategy[Part]:
    """Parts that still want a text."""
    return st.builds(
        Part,
        text=st.just(""),
        sizes=chance.map(lambda luck: luck.choices(range(1, 10), k=luck.randint(1, 4))),
        start_s=st.sampled_from([0.0, 0.05, 0.5, 2.0]),
        gap_s=st.sampled_from([0.0, 0.01, 0.1, 0.4]),
        fault=st.sampled_from(faults),
        after=st.integers(0, 12),
    )


@dataclass(frozen=True)
class Case:
    """A session: who says what, how it may move, and where it has to stop."""

    source: Part
    target: Part
    spare: Part
    carrier: str
    migration: MigrationSettings
    pacing: PacingSettings
    stops: tuple[str, ...] = ()
    limits: list[str] = field(default_factory=list)

    @property
    def by(self) -> Carrier:
        return Carrier(self.carrier)


migrations = st.sampled_from(
    [
        MigrationSettings(
            enabled=enabled,
            mode=mode,
            consumption_tokens_per_s=speed,
            max_moves=moves,
            rescue=rescue,
            max_rescues=rescues,
        )
        for enabled in (False, True)
        for mode in ("make-before-break", "make-before-break", "stop-then-start")
        for speed in (0.5, 4.8, 50.0)
        for moves in range(3)
        for rescue in (True, True, True, False)
        for rescues in range(4)
    ]
)
pacings = st.sampled_from(
    [PacingSettings(mode=mode, max_lag_s=lag) for mode in ("immediate", "reading") for lag in (0.2, 1.0, 5.0)]
)


@st.composite
def cases(
    draw, source: st.SearchStrategy[Part], target: st.SearchStrategy[Part], carrier: str, stops: bool
) -> Case:
    text = draw(answers)
    other = (lambda: text) if carrier == "text" else (lambda: draw(answers))
    case = Case(
        replace(draw(source), text=text),
        replace(draw(target), text=other()),
        replace(draw(target), text=other()),
        carrier,
        draw(migrations),
        draw(pacings),
    )
    if not stops:
        return case
    whole = case.source.text + case.target.text
    begin = draw(st.integers(0, len(whole) - 2))
    end = draw(st.integers(begin + 1, min(begin + 8, len(whole))))
    return replace(case, stops=(whole[begin:end], "never"))


def play_case(case: Case) -> tuple[Played, list[Player]]:
    endpoints = [
        player(Kind.SERVER, "source", case.source, [case.carrier]),
        player(Kind.DEVICE, "target", case.target, [case.carrier]),
        player(Kind.DEVICE, "spare", case.spare, [case.carrier]),
    ]

    async def session() -> Played:
        house = replace(a_house(endpoints, {"source": 0.0}), migration=case.migration, pacing=case.pacing)
        with anyio.fail_after(600.0):
            return await play(house, a_request(stop=case.stops))

    clock = MockClock(autojump_threshold=0)
    return anyio.run(session, backend="trio", backend_options={"clock": clock}), endpoints


def expected(case: Case, played: Played) -> str:
    """The answer that these handoffs make, up to a stop string if that is how it ended."""
    text = {"source": case.source.text, "target": case.target.text, "spare": case.spare.text}
    whole, begun_at = "", 0
    speaker = played.outcome.winner or "source"
    for move in played.outcome.migrations:
        whole += part_of(case, text[speaker], begun_at, move.at_char - len(whole))
        speaker, begun_at = move.target, move.at_char
    whole += part_of(case, text[speaker], begun_at, None)
    ends = [at for stop in case.stops if (at := whole.find(stop)) >= 0]
    return whole if played.failure else whole[: min(ends, default=len(whole))]


def part_of(case: Case, text: str, begun_at: int, length: int | None) -> str:
    """What an endpoint adds that took over after so many characters: its own text by IDs, else the rest."""
    rest = text[begun_at:] if case.by is Carrier.TEXT or not begun_at else text
    return rest if length is None else rest[:length]


def check(case: Case) -> None:
    played, endpoints = play_case(case)
    outcome, whole = played.outcome, expected(case, played)
    if played.failure is None:
        assert played.text == whole
        assert outcome.finish_reason is not None
    else:
        assert whole.startswith(played.text)
        assert outcome.finish_reason is None
        assert str(played.failure) == outcome.error
        stopped = any(move.source == move.target for move in outcome.migrations)  # for a move that failed
        moved = stopped or any(move.reason == "cost" for move in outcome.migrations)
        assert moved or str(played.failure).startswith("source: ")
    assert sum(piece.tokens for piece in played.pieces) == outcome.completion_tokens
    assert len(outcome.delivered_s) == outcome.completion_tokens
    assert list(outcome.delivered_s) == sorted(outcome.delivered_s)
    assert sum(attempt.completion_tokens for attempt in outcome.attempts) >= outcome.completion_tokens
    assert [endpoint.open for endpoint in endpoints] == [0, 0, 0]
    moves = [(0, outcome.winner), *((move.at_char, move.target) for move in outcome.migrations)]
    for piece, end in zip(played.pieces, accumulate(len(each.text) for each in played.pieces), strict=True):
        assert piece.endpoint == [name for at_char, name in moves if at_char < end or not at_char][-1]
    assert sum(move.reason == "cost" for move in outcome.migrations) <= case.migration.max_moves
    rescues = [move for move in outcome.migrations if move.reason == "rescue" and move.source != move.target]
    assert len(rescues) <= case.migration.max_rescues


thoroughly = settings(
    max_examples=CASES,
    deadline=None,
    phases=[hypothesis.Phase.generate],  # a case tells enough, and shrinking one takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@given(cases(parts(SOUND), parts(SOUND), "tokens", stops=False))
@thoroughly
def test_sound_streams_by_tokens(case: Case):
    """Wherever an answer moves by IDs, it is the source's prefix and the target's text, exactly."""
    check(case)


@pytest.mark.slow
@given(cases(parts(SOUND), parts(SOUND + WRONG), "text", stops=True))
@thoroughly
def test_wrong_targets_by_text(case: Case):
    """Echoes, silence and breaks of targets never show, nor does a stop string across the seam."""
    check(case)


@pytest.mark.slow
@given(cases(parts(SOUND + BROKEN), parts(SOUND + BROKEN), "tokens", stops=True))
@thoroughly
def test_broken_streams_by_tokens(case: Case):
    """A source that breaks, hangs or ends without a finish is rescued exactly, or the answer fails once."""
    check(case)


@pytest.mark.slow
@given(cases(parts(SOUND + BROKEN), parts(SOUND + WRONG), "text", stops=False))
@thoroughly
def test_broken_streams_by_text(case: Case):
    """The same by text, where a rescuer says the last word again, and may be wrong itself."""
    check(case)
