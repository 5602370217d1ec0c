"""Real sockets: whatever an upstream does to its stream, no character of the answer is lost or doubled."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import anyio
import pytest
from misbehaving import ANSWER, Fault, Manner, Place, Script, Upstream, misbehaving

from discostream.config import Settings, settings_from
from discostream.errors import AllEndpointsFailed
from discostream.gateway.app import serve
from discostream.ledger.outcomes import history
from discostream.library import connect
from discostream.types import Outcome

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.alone]

AT_ONCE = 50
SILENCE_S = 0.7
"""Less than a byte a second leaves between two, and so short that a hedge hardly ever comes first."""

CELLS = tuple(itertools.product(Fault, Place))
SILENT = rf"silent for ({SILENCE_S}|[1-9]\.\d) s"
CUT_OFF = "the connection broke|ended the stream without a finish_reason"
CAUSES: Mapping[Fault, str] = {
    Fault.RESET: CUT_OFF,
    Fault.HALF_CLOSE: CUT_OFF,
    Fault.STALL: SILENT,
    Fault.DRIP: SILENT,
    Fault.ERROR_FRAME: "overloaded|finish_reason 'error'",
    Fault.BARE_DONE: "ended the stream without a finish_reason",
    Fault.INVALID_UTF8: "sent a chunk that is not JSON",
    Fault.INVALID_JSON: "sent a chunk that is not (a )?JSON",
    Fault.LONG_LINE: "a line is longer than|the connection broke",
    Fault.HTML: f"text/html.* instead of an event stream|{CUT_OFF}",
}
"""What an endpoint is said to have died of."""


@dataclass(frozen=True)
class Case:
    """One answer: what goes wrong on the way, and where."""

    number: int
    fault: Fault
    place: Place

    @property
    def prompt(self) -> str:
        return f"Case {self.number}: {self.fault}, {self.place}."

    @property
    def breaks(self) -> bool:
        """Whether the answer is cut short by it."""
        return self.place is not Place.AFTER_THE_FINISH


def cases(rounds: int) -> list[Case]:
    """Every fault at every place, so many times."""
    return [Case(number, *cell) for number, cell in enumerate(CELLS * rounds)]


@dataclass(frozen=True)
class Told:
    """What a client was told: text, and then either a finish or the one error that ended it."""

    request_id: str
    text: str
    error: str | None = None


@dataclass(frozen=True)
class Played:
    """What came of one case.

    Attributes:
        outcome: The only one that the ledger has of it.
        asked: How often each endpoint was asked.
    """

    case: Case
    told: Told
    outcome: Outcome
    asked: Mapping[str, int]

    def assert_whole(self) -> None:
        assert self.told.text == ANSWER
        assert self.told.error is None
        assert (self.outcome.finish_reason, self.outcome.error) == ("stop", None)

    def assert_cut_short(self) -> None:
        """There is one error, which names what went wrong first."""
        assert ANSWER.startswith(self.told.text)
        assert self.told.error is not None
        assert re.match(f"broken: .*({CAUSES[self.case.fault]})", self.told.error)
        assert (self.outcome.finish_reason, self.outcome.error) == (None, self.told.error)


Tell = Callable[[Case], Awaitable[Told]]
Face = Callable[[Settings], AbstractAsyncContextManager[Tell]]


@asynccontextmanager
async def library(settings: Settings) -> AsyncIterator[Tell]:
    """Asks through the library."""
    async with connect(settings) as disco:

        async def tell(case: Case) -> Told:
            answer = disco.stream(case.prompt)
            text, error = "", None
            try:
                async for piece in answer:
                    text += piece.text
            except AllEndpointsFailed as failure:
                error = str(failure)
            return Told(answer.request.request_id, text, error)

        yield tell


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[Tell]:
    """Asks over HTTP, every fourth time for the whole answer at once."""
    async with anyio.create_task_group() as tasks, aiohttp.ClientSession() as client:
        base_url = await tasks.start(serve, settings)

        async def tell(case: Case) -> Told:
            streamed = case.number % 4 > 0
            body = {"messages": [{"role": "user", "content": case.prompt}], "stream": streamed}
            async with client.post(f"{base_url}/chat/completions", json=body) as response:
                request_id, content = response.headers["x-request-id"], await response.read()
            if response.status != 200:
                assert response.status == 502
                return Told(request_id, "", json.loads(content)["error"]["message"])
            return Told(request_id, *(read_events(content) if streamed else read_completion(content)))

        yield tell
        tasks.cancel_scope.cancel()


def read_completion(content: bytes) -> tuple[str, None]:
    (choice,) = json.loads(content)["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"], None


def read_events(content: bytes) -> tuple[str, str | None]:
    """The text and the error in a stream, which has one role, one id, and one finish or one error."""
    *events, done, rest = content.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    *told, last = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert len({chunk["id"] for chunk in told}) == 1
    choices = [chunk["choices"][0] for chunk in told]
    assert {choice["finish_reason"] for choice in choices} == {None}
    assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * (len(told) - 1)
    text = "".join(choice["delta"]["content"] for choice in choices)
    if "error" in last:
        return text, last["error"]["message"]
    assert (last["id"], last["choices"][0]["finish_reason"]) == (told[0]["id"], "stop")
    return text, None


def endpoint(name: str, kind: str, manner: Manner = Manner.EXACT, **options: Any) -> dict[str, Any]:
    repeats = manner is Manner.REPEATS
    return {
        "name": name,
        "kind": kind,
        "dialect": "openai",
        "continuation": "prefix" if repeats else "trailing_assistant",
        "repeats_prefix": repeats,
        "read_timeout_s": 30.0,
        **options,
    }


async def play(
    folder: Path,
    face: Face,
    asked: Sequence[Case],
    endpoints: Sequence[dict[str, Any]],
    script_of: Callable[[str, Case], Script],
    late_s: float = 60.0,
    **tables: Any,
) -> list[Played]:
    """Ask for every case, many at once, and see that no connection to the upstream outlives its use.

    The first endpoint starts at once, the last would start `late_s` later, any between stand by.
    """
    offsets = {endpoints[-1]["name"]: late_s, endpoints[0]["name"]: 0.0}
    async with misbehaving() as upstream:
        for name, case in itertools.product((table["name"] for table in endpoints), asked):
            upstream.scripts[name, case.prompt] = script_of(name, case)
        settings = settings_from(
            {
                "endpoint": [{**table, "base_url": upstream.base_url(table["name"])} for table in endpoints],
                "policy": {"name": "offsets", "offsets": offsets},
                "gateway": {"port": 0},
                "ledger": {"path": str(folder / "ledger.db")},
                **tables,
            }
        )
        async with face(settings) as tell:
            told = await tell_all(asked, tell, upstream)
        await upstream.deserted()
    assert upstream.strays == []
    recorded = [outcome for _, outcome in history(folder / "ledger.db", 10 * len(asked))]
    assert len(recorded) == len(asked)
    outcomes = {outcome.request_id: outcome for outcome in recorded}
    return [
        Played(
            case,
            told[case],
            outcomes[told[case].request_id],
            {table["name"]: upstream.asked[table["name"], case.prompt] for table in endpoints},
        )
        for case in asked
    ]


async def tell_all(asked: Sequence[Case], tell: Tell, upstream: Upstream) -> dict[Case, Told]:
    """What the client of every case was told; when it has been, nothing goes on behind its back."""
    told: dict[Case, Told] = {}
    limit = anyio.CapacityLimiter(AT_ONCE)

    async def follow(case: Case) -> None:
        async with limit:
            told[case] = await tell(case)
            await upstream.quiet(case.prompt)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for case in asked:
                tasks.start_soon(follow, case)
    return told


def broken_or_sound(kind: str, manner: Manner = Manner.EXACT, **fields: Any) -> Callable[[str, Case], Script]:
    """Scripts by which "broken" goes wrong as the case says, and all others answer soundly."""

    def script_of(name: str, case: Case) -> Script:
        luck = Random(f"{name} {case.prompt} {kind}")
        in_words = manner is Manner.TRIMS
        if name == "broken":
            return Script.drawn(luck, in_words=in_words, fault=case.fault, place=case.place)
        return Script.drawn(luck, in_words=in_words, manner=manner, **fields)

    return script_of


def shaky_or_sound(name: str, case: Case) -> Script:
    """The same, but "shaky" goes wrong, too, in a way of its own."""
    if name == "shaky":
        luck = Random(case.prompt)
        fault, place = luck.choice(CELLS)
        return Script.drawn(luck, fault=fault, place=place)
    return broken_or_sound("server")(name, case)


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


@pytest.fixture(autouse=True)
def no_defects(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What an adapter did not translate, and what no task expected, is in the log as an error."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


BOTH_DIRECTIONS = pytest.mark.parametrize(("source", "rescuer"), [("server", "device"), ("device", "server")])
FACES = pytest.mark.parametrize("face", [library, gateway])


async def assert_rescued(
    folder: Path, face: Face, source: str, rescuer: str, rounds: int, manner: Manner
) -> None:
    endpoints = [
        endpoint("broken", source, read_timeout_s=SILENCE_S),
        endpoint("sound", rescuer, manner),
    ]
    played = await play(folder, face, cases(rounds), endpoints, broken_or_sound(source, manner))
    for one in played:
        one.assert_whole()
        assert one.asked["broken"] == 1
        assert bool(one.asked["sound"]) == one.case.breaks
        if one.case.breaks:
            cause = one.outcome.attempts[0].error or one.outcome.migrations[0].why
            assert re.search(CAUSES[one.case.fault], cause)
    begun = [one for one in played if one.case.place in (Place.AFTER_ONE_TOKEN, Place.MID_ANSWER)]
    moved = [one for one in begun if [move.reason for move in one.outcome.migrations] == ["rescue"]]
    assert len(moved) > 0.9 * len(begun)


@BOTH_DIRECTIONS
@pytest.mark.parametrize("manner", Manner)
async def test_an_answer_outlives_its_source(
    tmp_path: Path, source: str, rescuer: str, manner: Manner
) -> None:
    """An answer whose source goes wrong is completed by another endpoint, exactly."""
    await assert_rescued(tmp_path, library, source, rescuer, 2, manner)


@BOTH_DIRECTIONS
async def test_the_gateways_client_does_not_notice(tmp_path: Path, source: str, rescuer: str) -> None:
    """Over HTTP there is one role, one id and one finish, whatever went wrong behind the gateway."""
    await assert_rescued(tmp_path, gateway, source, rescuer, 2, Manner.EXACT)


@FACES
@pytest.mark.parametrize("kind", ["server", "device"])
async def test_alone_it_ends_in_one_clear_error(tmp_path: Path, face: Face, kind: str) -> None:
    """Where nobody else is, one error says why, after what was told until then."""
    endpoints = [endpoint("broken", kind, read_timeout_s=SILENCE_S)]
    played = await play(tmp_path, face, cases(1), endpoints, broken_or_sound(kind))
    for one in played:
        if one.case.breaks:
            one.assert_cut_short()
        else:
            one.assert_whole()
        assert one.asked == {"broken": 1}
    assert {one.case.place for one in played if one.told.text} == set(Place) - {Place.BEFORE_CONTENT}


@BOTH_DIRECTIONS
async def test_who_cannot_go_on_is_not_asked_to(tmp_path: Path, source: str, rescuer: str) -> None:
    """An endpoint that can only start answers stands in before content, and never after it."""
    endpoints = [
        endpoint("broken", source, read_timeout_s=SILENCE_S),
        endpoint("sound", rescuer, continuation="none"),
    ]
    for one in await play(tmp_path, library, cases(1), endpoints, broken_or_sound(source)):
        stands_in = one.case.place is Place.BEFORE_CONTENT
        if stands_in or not one.case.breaks:
            one.assert_whole()
        else:
            one.assert_cut_short()
        assert one.asked["sound"] == stands_in


async def test_a_rescuer_may_break_as_well(tmp_path: Path) -> None:
    """An answer whose rescuer goes wrong, too, is completed by a third endpoint, exactly."""
    endpoints = [
        endpoint("broken", "server", read_timeout_s=SILENCE_S),
        endpoint("shaky", "device", read_timeout_s=SILENCE_S),
        endpoint("sound", "server"),
    ]
    for one in await play(tmp_path, library, cases(2), endpoints, shaky_or_sound):
        one.assert_whole()


@FACES
async def test_when_all_break_the_first_cause_is_told(tmp_path: Path, face: Face) -> None:
    """Where rescuers go wrong until nobody is left, the one error names what went wrong first."""
    endpoints = [
        endpoint("broken", "device", read_timeout_s=SILENCE_S),
        endpoint("shaky", "server", read_timeout_s=SILENCE_S),
    ]
    for one in await play(tmp_path, face, cases(1), endpoints, shaky_or_sound):
        if one.told.error is None:  # what goes wrong after a finish breaks nothing
            one.assert_whole()
        else:
            one.assert_cut_short()
            assert "also failed: shaky: " in one.told.error


@BOTH_DIRECTIONS
async def test_an_answer_outlives_whom_it_moved_to(tmp_path: Path, source: str, rescuer: str) -> None:
    """An answer that moves for cost, to an endpoint that goes wrong, is completed where it was, exactly."""
    dear = {"server": {"completion_usd_per_mtok": 100.0}, "device": {"decode_joules_per_token": 100.0}}
    endpoints = [
        endpoint("sound", source, **dear[source]),
        endpoint("broken", rescuer, read_timeout_s=SILENCE_S),
    ]
    script_of = broken_or_sound(rescuer, pause_s=0.02)
    played = await play(tmp_path, library, cases(1), endpoints, script_of)
    for one in played:
        one.assert_whole()
    assert sum(one.asked["broken"] for one in played) > 0.9 * len(played)


FAST_READER = {"consumption_tokens_per_s": 1000.0}
"""Who has read what there is at once, so that no silence is hidden."""


@BOTH_DIRECTIONS
async def test_silence_is_not_waited_out(tmp_path: Path, source: str, rescuer: str) -> None:
    """A source that falls silent, or all but silent, is replaced long before its connection times out."""
    silent = [case for case in cases(4) if case.fault in (Fault.STALL, Fault.DRIP) and case.breaks]
    pair = [endpoint("broken", source), endpoint("sound", rescuer)]
    with anyio.fail_after(10):
        script_of = broken_or_sound(source)
        played = await play(tmp_path, library, silent, pair, script_of, late_s=0.3, migration=FAST_READER)
    for one in played:
        one.assert_whole()


@BOTH_DIRECTIONS
async def test_only_one_of_two_speaks(tmp_path: Path, source: str, rescuer: str) -> None:
    """A source that speaks again just as it is given up, and who takes over, never both add to an answer."""

    def script_of(name: str, case: Case) -> Script:
        luck = Random(f"{name} {case.prompt}")
        hiccup_s = luck.uniform(0.95, 1.1) if name == "hesitant" else 0.0
        return Script.drawn(luck, place=Place.MID_ANSWER, hiccup_s=hiccup_s, pause_s=0.001)

    pair = [endpoint("hesitant", source), endpoint("sound", rescuer)]
    played = await play(tmp_path, library, cases(2), pair, script_of, migration=FAST_READER)
    for one in played:
        one.assert_whole()
    assert {len(one.outcome.migrations) for one in played} == {0, 1}
