from __future__ import annotations

import gzip
from contextlib import aclosing
from dataclasses import dataclass, field

import anyio
import numpy as np
import pytest
from trio.testing import MockClock

from discostream.builtin import builtin_profiles
from discostream.config import EndpointSettings, convert_options
from discostream.core.cost import Energy
from discostream.endpoints import emulated
from discostream.endpoints.base import Endpoint, NoOptions
from discostream.endpoints.emulated import EmulatedEndpoint, EmulatedOptions
from discostream.errors import ConfigError, EndpointError, Phase
from discostream.types import (
    Carrier,
    Event,
    Finish,
    FinishReason,
    Kind,
    Message,
    Piece,
    Prefix,
    Prompt,
    Request,
)

pytestmark = pytest.mark.anyio

ASK = Request(messages=(Message("user", "Why?"),), arrived_at=0.0, request_id="r-1")
FRESH = Prefix()
END = Finish(FinishReason.STOP, 5, 4)


@pytest.fixture
def anyio_backend():
    """Virtual time: sleeping costs nothing and moments are exact."""
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Inner(Endpoint):
    """Sends each event after its own delay, and remembers what was done to it."""

    def __init__(self, *events: tuple[float, Event], kind: Kind = Kind.SERVER) -> None:
        super().__init__(EndpointSettings(name="cloud", kind=kind, dialect="inner"), NoOptions())
        self.events = events
        self.asked: list[tuple[Request, Prefix]] = []
        self.open = self.prepared = self.closed = 0

    async def generate(self, request, prefix):
        self.asked.append((request, prefix))
        self.open += 1
        try:
            for delay_s, event in self.events:
                await anyio.sleep(delay_s)
                yield event
        finally:
            self.open -= 1

    async def prepare(self):
        self.prepared += 1
        self.vocabulary = "known now"
        self.continues = frozenset({Carrier.TEXT})
        self.energy = Energy(1.0, 2.0)

    async def aclose(self):
        self.closed += 1


@dataclass
class Seen:
    """What came out, and when, in seconds since the start."""

    events: list[tuple[float, Event]] = field(default_factory=list)
    error: EndpointError | None = None

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.events]


async def watch(endpoint: Endpoint, prefix: Prefix = FRESH) -> Seen:
    seen, start = Seen(), anyio.current_time()
    try:
        async with aclosing(endpoint.generate(ASK, prefix)) as events:
            async for event in events:
                seen.events.append((round(anyio.current_time() - start, 9), event))
    except EndpointError as error:
        seen.error = error
    return seen


def around(inner: Endpoint, **options) -> EmulatedEndpoint:
    settings = EndpointSettings(name="cloud", kind=inner.kind, dialect="emulated", options=options)
    return EmulatedEndpoint(settings, convert_options(settings, EmulatedOptions), inner)


@pytest.fixture
def two_seconds(tmp_path) -> str:
    """A trace in which every TTFT is two seconds."""
    path = tmp_path / "steady.csv"
    path.write_text("prompt_id,ttft_ms\na,2000\nb,2000\n")
    return str(path)


def words(delay_s: float, *texts: str) -> list[tuple[float, Event]]:
    return [(delay_s, Piece(text)) for text in texts]


async def test_content_waits_for_the_ttft_and_then_follows_the_pace(two_seconds):
    """Fast events leave at 2 s and every quarter second after; the prompt's length is not held."""
    inner = Inner((0.1, Prompt(5)), *words(0.01, "a", "b", "c"), (0.0, END))
    seen = await watch(around(inner, ttft=two_seconds, tokens_per_s=4.0))
    assert seen.events == [
        (0.1, Prompt(5)),
        (2.0, Piece("a")),
        (2.25, Piece("b")),
        (2.5, Piece("c")),
        (2.75, END),
    ]


async def test_a_piece_of_many_tokens_is_followed_by_as_long_a_pause(two_seconds):
    """Three tokens at once are paid for by the piece after them."""
    inner = Inner((0.0, Piece("a b c", 3)), (0.0, Piece("d")), (0.0, END))
    seen = await watch(around(inner, ttft=two_seconds, tokens_per_s=4.0))
    assert seen.times == [2.0, 2.75, 3.0]


async def test_the_inner_prefill_hides_behind_the_ttft(two_seconds):
    """An endpoint that needs 1.5 s for its first token still shows it at 2 s."""
    seen = await watch(around(Inner((1.5, Piece("a")), (0.0, END)), ttft=two_seconds))
    assert seen.times[0] == 2.0


async def test_a_slow_endpoint_comes_late_and_catches_up(two_seconds):
    """Nothing is shown before it exists: 3 s instead of 2, and then whatever is overdue at once."""
    inner = Inner((3.0, Piece("a")), *words(0.0, "b", "c"), (0.0, END))
    seen = await watch(around(inner, ttft=two_seconds, tokens_per_s=2.0))
    assert seen.times == [3.0, 3.0, 3.0, 3.5]


async def test_an_empty_answer_ends_after_the_ttft(two_seconds):
    """Even an end without content takes a service its time."""
    seen = await watch(around(Inner((0.0, END)), ttft=two_seconds))
    assert seen.events == [(2.0, END)]


async def test_a_trace_without_pace_delivers_as_fast_as_it_comes(two_seconds):
    """A CSV file says nothing about decoding, so nothing is held after the first piece."""
    inner = Inner(*words(0.0, "a", "b"), (0.0, END))
    assert (await watch(around(inner, ttft=two_seconds))).times == [2.0, 2.0, 2.0]


async def test_a_profile_brings_its_own_pace():
    """Built-in GPT-4o decodes at its measured median."""
    seen = await watch(around(Inner(*words(0.0, "a", "b"), (0.0, END)), ttft="gpt-4o", seed=1))
    gap_s = seen.events[1][0] - seen.events[0][0]
    assert gap_s == pytest.approx(1 / builtin_profiles()["gpt-4o"].tokens_per_s)


async def test_delays_have_the_profiles_distribution():
    """Over 400 requests the median TTFT is that of the profile within a tenth."""
    endpoint = around(Inner((0.0, Piece("a")), (0.0, END)), ttft="claude-haiku", seed=3)
    ttft_s = [(await watch(endpoint)).times[0] for _ in range(400)]
    assert np.median(ttft_s) == pytest.approx(builtin_profiles()["claude-haiku"].ttft.quantile(0.5), rel=0.1)


async def test_a_seed_fixes_delays_and_failures():
    """Two endpoints of one seed behave alike, request by request; a third of another seed does not."""

    async def story(seed):
        inner = Inner(*words(0.0, "a", "b"), (0.0, END))
        endpoint = around(inner, seed=seed, refuse_rate=0.3, break_rate=0.3, break_after_tokens=1)
        runs = [await watch(endpoint) for _ in range(20)]
        return [(run.times, str(run.error)) for run in runs]

    first = await story(5)
    assert await story(5) == first
    assert await story(6) != first


async def test_failures_do_not_shift_the_delays():
    """Turning refusals on takes requests away, and leaves the others' TTFT as it was."""

    async def ttft_s(refuse_rate):
        endpoint = around(Inner((0.0, Piece("a")), (0.0, END)), seed=9, refuse_rate=refuse_rate)
        runs = [await watch(endpoint) for _ in range(30)]
        return [run.times[0] if run.times else None for run in runs]

    calm, stormy = await ttft_s(0.0), await ttft_s(0.5)
    assert 5 <= stormy.count(None) <= 25
    assert all(after in (None, before) for before, after in zip(calm, stormy, strict=True))


async def test_a_refusal_comes_at_once_and_never_reaches_the_inner_endpoint():
    """Status 503 in phase `refused`, with nothing generated for it."""
    inner = Inner((0.0, Piece("a")), (0.0, END))
    seen = await watch(around(inner, refuse_rate=1.0))
    assert (seen.error.phase, seen.error.status, seen.error.endpoint) == (Phase.REFUSED, 503, "cloud")
    assert (seen.events, inner.asked) == ([], [])


async def test_a_break_resets_the_connection_after_so_many_tokens(two_seconds):
    """Two tokens arrive, the third never does, and the inner stream is closed."""
    inner = Inner(*words(0.0, "a", "b", "c"), (0.0, END))
    seen = await watch(around(inner, ttft=two_seconds, break_rate=1.0, break_after_tokens=2))
    assert [event.text for _, event in seen.events] == ["a", "b"]
    assert (seen.error.phase, seen.error.message) == (Phase.DECODE, "connection reset (emulated)")
    assert inner.open == 0


async def test_an_answer_shorter_than_its_break_is_whole(two_seconds):
    """What ends before the reset cannot be reset."""
    inner = Inner(*words(0.0, "a", "b"), (0.0, END))
    seen = await watch(around(inner, ttft=two_seconds, break_rate=1.0, break_after_tokens=3))
    assert seen.error is None
    assert seen.events[-1][1] == END


async def test_closing_early_closes_the_inner_stream(two_seconds):
    """A loser of a race is cancelled for real, while its first piece is still held back."""
    inner = Inner((0.0, Piece("a")), (0.0, END))
    with anyio.move_on_after(1.0):
        await watch(around(inner, ttft=two_seconds))
    assert inner.open == 0


async def test_request_and_prefix_reach_the_inner_endpoint_as_they_are(two_seconds):
    """Continuing an answer is the inner endpoint's business."""
    inner = Inner((0.0, END))
    await watch(around(inner, ttft=two_seconds), Prefix("Because", (1, 2)))
    assert inner.asked == [(ASK, Prefix("Because", (1, 2)))]


async def test_what_the_inner_endpoint_can_do_is_followed_as_it_becomes_known():
    """Preparing and closing are delegated; carriers and vocabulary follow."""
    inner = Inner()
    endpoint = around(inner)
    assert (endpoint.continues, endpoint.vocabulary) == (frozenset(), None)
    await endpoint.prepare()
    assert (endpoint.continues, endpoint.vocabulary) == (frozenset({Carrier.TEXT}), "known now")
    await endpoint.aclose()
    assert (inner.prepared, inner.closed) == (1, 1)


@pytest.mark.parametrize(("kind", "energy"), [(Kind.SERVER, Energy()), (Kind.DEVICE, Energy(1.0, 2.0))])
async def test_a_server_costs_no_joules_whatever_generates_for_it(kind, energy):
    """Energy follows the inner endpoint only where a device is emulated."""
    endpoint = around(Inner(kind=kind))
    await endpoint.prepare()
    assert endpoint.energy == energy


def test_the_inner_endpoint_is_built_from_the_same_settings(monkeypatch):
    """Name, kind and model stay; the dialect and its keys come from `around` and `inner`."""
    built = []
    monkeypatch.setattr(emulated, "build_endpoint", lambda settings: built.append(settings) or Inner())
    settings = EndpointSettings(
        name="cloud",
        kind=Kind.SERVER,
        dialect="emulated",
        model="small",
        options={"around": "openai", "inner": {"base_url": "http://localhost"}},
    )
    EmulatedEndpoint(settings, convert_options(settings, EmulatedOptions))
    assert built == [
        EndpointSettings(
            name="cloud",
            kind=Kind.SERVER,
            dialect="openai",
            model="small",
            options={"base_url": "http://localhost"},
        )
    ]


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_a_trace_may_be_compressed_and_have_gaps(tmp_path, name):
    """Seconds or milliseconds, rows without a TTFT left out."""
    text = b"ttft_s,note\n1.0,a\n,failed\n3.0,b\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert around(Inner(), ttft=str(tmp_path / name))._ttft.quantile([0.0, 0.5, 1.0]).tolist() == [
        1.0,
        2.0,
        3.0,
    ]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"ttft": "gpt4o"}, "ttft = 'gpt4o': .*did you mean 'gpt-4o'"),
        ({"ttft": "nowhere.csv"}, "ttft = .*no built-in profile, nor a file"),
        ({"refuse_rate": 1.5}, "refuse_rate = 1.5: expected `float` <= 1.0"),
        ({"tokens_per_s": 0}, "tokens_per_s = 0"),
        ({"break_after_tokens": 0}, "break_after_tokens = 0"),
        ({"tft": "gpt-4o"}, "unknown key `tft`; did you mean 'ttft'"),
    ],
)
def test_wrong_options_are_refused_with_the_fix(options, complaint):
    """One sentence that names the endpoint, the key and what would be right."""
    with pytest.raises(ConfigError, match=f"endpoint 'cloud': {complaint}"):
        around(Inner(), **options)


@pytest.mark.parametrize(
    "content",
    [b"", b"ttft_s\n", b"latency\n1.0\n", b"ttft_s\nsoon\n", b"ttft_s\n-1\n", b"ttft_s\nnan\n", b"\xff\xfe"],
)
def test_a_file_that_holds_no_ttft_is_refused(tmp_path, content):
    """An empty, wrong or unreadable trace is a wrong setting, not a crash at the first request."""
    path = tmp_path / "wrong.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"endpoint 'cloud': ttft = .*wrong\.csv"):
        around(Inner(), ttft=str(path))


def test_a_file_that_only_looks_compressed_is_refused(tmp_path):
    """Damaged gzip is reported, not raised."""
    path = tmp_path / "wrong.csv.gz"
    path.write_bytes(gzip.compress(b"ttft_s\n1.0\n")[:-6])
    with pytest.raises(ConfigError, match="cannot be read as CSV"):
        around(Inner(), ttft=str(path))


async def test_what_is_known_of_the_prompt_is_passed_on_at_once(two_seconds):
    """Its length and what was cached of it come when the inner endpoint tells, not when content may."""
    events = (0.1, Prompt(5)), (0.2, Prompt(5, 3)), *words(0.0, "a"), (0.0, END)
    seen = await watch(around(Inner(*events), ttft=two_seconds))
    assert seen.events[:2] == [(0.1, Prompt(5)), (0.3, Prompt(5, 3))]
    assert seen.times[2] == 2.0


@pytest.mark.parametrize(("kind", "slots"), [(Kind.DEVICE, 3), (Kind.SERVER, None)])
async def test_only_a_device_has_the_slots_of_what_is_inside(kind, slots, two_seconds):
    """An emulated service takes any number of requests; an emulated device is no bigger than it is."""
    inner = Inner(kind=kind)
    inner.slots = 3
    endpoint = around(inner, ttft=two_seconds)
    await endpoint.prepare()
    assert endpoint.slots == slots
