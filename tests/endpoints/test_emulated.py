from __future__ import annotations

import gzip
import json
import os
import re
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

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
from discostream.traces.servers import read_trace
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
WHISPER_LEAK = (
    Path(os.environ.get("DISCO_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    / "whisper-leak"
)


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
    """What came out, and when, in seconds since the start; so is when it was over."""

    events: list[tuple[float, Event]] = field(default_factory=list)
    error: EndpointError | None = None
    over_s: float = 0.0

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
    seen.over_s = round(anyio.current_time() - start, 9)
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


@pytest.fixture
def file(tmp_path):
    """Writes a file and gives its path."""

    def write(name, text):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return write


PACKETS = json.dumps(
    {
        "prompt_chars": 40,
        "response_chars": 20,
        "response_chunks": 4,
        "first_content_idx": 2,
        "dt_ms": [3.0, 200.0, 50.0, 40.0, 2500.0, 0.0],
        "bytes": [2900, 700, 288, 188, 188, 93],
    }
)
"""A capture: after 0.25 s two tokens at once, one after 40 ms more, and the fourth after a stall of 2.5 s."""

REQUESTS = "ttft_ms,total_ms,prompt_chars,response_chars,response_chunks\n750,9000,40,20,4\n"

LLMPERF = json.dumps(
    [
        {
            "error_code": None,
            "ttft_s": 0.5,
            "end_to_end_latency_s": 10.4,
            "number_input_tokens": 550,
            "number_output_tokens": 100,
        }
    ]
)

LATENCYLAB = (
    "timestamp,success,input_characters,first_token_time_seconds,total_request_time_seconds,"
    'chunks_time_seconds\n2024-04-12 10:32:28.5,True,250,2.0,5.0,"[0.5, 0.0, 2.5]"\n'
)

FAILING = "ttft_s,tbt_s,error,failed_after_s\n1,0.1,,\n2,0.2,,\n3,0.3,,\n,,reset,1.5\n,,reset,2.5\n"


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


async def test_a_piece_of_many_tokens_comes_when_its_last_one_has(two_seconds):
    """Three tokens together come half a second after the first of them would have come by itself."""
    inner = Inner((0.0, Piece("a b c", 3)), (0.0, Piece("d")), (0.0, END))
    seen = await watch(around(inner, ttft=two_seconds, tokens_per_s=4.0))
    assert seen.times == [2.5, 2.75, 3.0]


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


async def test_a_trace_without_pace_has_the_one_that_the_simulator_assumes(two_seconds):
    """Where nothing was recorded of decoding, tokens come at the even pace of built-in GPT-4o."""
    inner = Inner(*words(0.0, "a", "b"), (0.0, END))
    gap_s = 1 / builtin_profiles()["gpt-4o"].tokens_per_s
    seen = await watch(around(inner, ttft=two_seconds))
    assert seen.times == pytest.approx([2.0, 2.0 + gap_s, 2.0 + 2 * gap_s])


async def test_a_profile_brings_its_own_pace():
    """Built-in GPT-4o decodes at its measured median."""
    seen = await watch(around(Inner(*words(0.0, "a", "b"), (0.0, END)), ttft="gpt-4o", seed=1))
    gap_s = seen.events[1][0] - seen.events[0][0]
    assert gap_s == pytest.approx(1 / builtin_profiles()["gpt-4o"].tokens_per_s)


async def test_bursts_and_stalls_come_as_they_were_recorded(file):
    """To the millisecond, and once more from the start, a mean gap of 2.54 / 3 s behind the last token."""
    inner = Inner(*words(0.0, "a", "b", "c", "d", "e", "f", "g"), (0.0, END))
    seen = await watch(around(inner, ttft=file("packets-x.jsonl.gz", PACKETS)))
    recorded = [0.25, 0.25, 0.29, 2.79]
    assert seen.times == pytest.approx([*recorded, *(at + 4 * 2.54 / 3 for at in recorded)], abs=1e-6)


async def test_a_piece_that_spans_a_stall_comes_after_it(file):
    """Two tokens of a burst come with it; a piece that ends behind the stall of 2.5 s waits for its end."""
    inner = Inner((0.0, Piece("a b", 2)), (0.0, Piece("c d", 2)))
    seen = await watch(around(inner, ttft=file("packets-x.jsonl", PACKETS)))
    assert seen.times == pytest.approx([0.25, 2.79])


async def test_an_even_pace_may_take_the_place_of_what_was_recorded(file):
    """`tokens_per_s` leaves a recorded TTFT, and nothing of bursts and stalls."""
    inner = Inner(*words(0.0, "a", "b", "c", "d"), (0.0, END))
    seen = await watch(around(inner, ttft=file("packets-x.jsonl", PACKETS), tokens_per_s=2.0))
    assert seen.times == [0.25, 0.75, 1.25, 1.75, 2.25]


async def test_an_answer_follows_one_recording_throughout(file):
    """Of two recorded paces each answer has either, never both; both come, about as often."""
    endpoint = around(
        Inner(*words(0.0, "a", "b", "c"), (0.0, END)),
        ttft=file("paces.csv", "ttft_s,tbt_s\n2,0.125\n2,0.5\n"),
        seed=4,
    )
    gaps_s = [tuple(np.diff((await watch(endpoint)).times)) for _ in range(60)]
    assert set(gaps_s) == {(0.125,) * 3, (0.5,) * 3}
    assert 20 <= gaps_s.count((0.5,) * 3) <= 40


@pytest.mark.parametrize(
    ("name", "text", "model", "times"),
    [
        ("mine.json", '[{"ttft_ms": 500, "tbt_s": 0.25}]', "", [0.5, 0.75, 1.0]),
        ("probes.csv", "model,ttft_s,tbt_s\na/b,1,0.5\nc,9,9\n", "#a/b", [1.0, 1.5, 2.0]),
        ("requests-x.csv.gz", REQUESTS, "", [0.75, 0.75, 0.79]),
        ("host.json", LLMPERF, "", [0.5, 0.6, 0.7]),
        ("lab.csv", LATENCYLAB, "", [2.0, 2.5, 2.5]),
    ],
)
async def test_whatever_the_simulator_reads_can_be_emulated(file, name, text, model, times):
    """Our own files, one model of several, requests with packets beside them, LLMPerf and LatencyLab."""
    file("packets-x.jsonl.gz", PACKETS)
    inner = Inner(*words(0.0, "a", "b", "c"))
    assert (await watch(around(inner, ttft=file(name, text) + model))).times == pytest.approx(times)


@pytest.mark.parametrize("name", ["gpt-4o", "builtin:gpt-4o"])
async def test_a_profile_draws_a_delay_and_two_chances_for_each_request(name):
    """The draws of a seed stay what they were before anything could be replayed: `disco demo` shows them."""
    rng, ttft = np.random.default_rng(7), builtin_profiles()["gpt-4o"].ttft
    drawn = [(float(ttft.sample(rng)), rng.random(2))[0] for _ in range(5)]
    endpoint = around(Inner((0.0, END)), ttft=name, seed=7)
    assert [(await watch(endpoint)).over_s for _ in range(5)] == pytest.approx(drawn, abs=1e-9)


@pytest.mark.skipif(
    not WHISPER_LEAK.is_dir(), reason="the recorded traces are not here; set DISCO_SHARED_DATA"
)
@pytest.mark.parametrize("series", ["GPT4o", "AzureGPT4o"])
async def test_answers_come_as_those_of_a_real_service(series):
    """To the microsecond, each of 30 answers is one of the recordings, and the longer ones go on like it."""
    path = str(WHISPER_LEAK / f"packets-{series}.jsonl.gz")
    trace = read_trace(path)
    endpoint = around(Inner(*words(0.0, *["a"] * 400)), ttft=path, seed=2)
    followed = set()
    for _ in range(30):
        at_s = np.array((await watch(endpoint)).times)
        off_s = np.abs(trace.streams.reaching(400).at_s - (at_s - at_s[0])).max(axis=1)
        followed.add(int(off_s.argmin()))
        assert off_s.min() < 1e-6
        assert trace.ttft_s.min() <= at_s[0] <= trace.ttft_s.max()
    assert len(followed) > 20


@pytest.mark.skipif(
    not WHISPER_LEAK.is_dir(), reason="the recorded traces are not here; set DISCO_SHARED_DATA"
)
async def test_azure_sends_in_bursts():
    """Tokens of its GPT-4o come some thirty at once, a fifth to a half of a second apart."""
    path = str(WHISPER_LEAK / "packets-AzureGPT4o.jsonl.gz")
    endpoint = around(Inner(*words(0.0, *["a"] * 300)), ttft=path, seed=5)
    gaps_s = np.concatenate([np.diff((await watch(endpoint)).times) for _ in range(40)])
    bursts = np.count_nonzero(gaps_s > 0.1)
    assert 20 <= gaps_s.size / bursts <= 45
    assert 0.175 <= np.median(gaps_s[gaps_s > 0.1]) <= 0.43


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


@pytest.mark.parametrize("trace", ["", FAILING], ids=["profile", "trace"])
async def test_failures_do_not_shift_the_delays(file, trace):
    """Turning refusals on takes requests away, and leaves the others' TTFT as it was."""
    ttft = file("failing.csv", trace) if trace else "gpt-4o"

    async def ttft_s(refuse_rate):
        inner = Inner((0.0, Piece("a")), (0.0, END))
        endpoint = around(inner, ttft=ttft, seed=9, refuse_rate=refuse_rate)
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


@pytest.mark.parametrize(
    ("failure", "after_s", "phase", "status"),
    [
        (",connection reset,1.5", 1.5, Phase.REFUSED, 503),
        (",429,", 2.0, Phase.REFUSED, 503),
        (",time-out,", 120.0, Phase.PREFILL, None),
    ],
)
async def test_recorded_failures_fail_again(file, failure, after_s, phase, status):
    """As often and as late as the simulator has it: refused, or silent as long as adapters wait."""
    inner = Inner((0.0, Piece("a")), (0.0, END))
    trace = file("failing.csv", f"ttft_s,error,failed_after_s\n2,,\n2,,\n2,,\n{failure}\n")
    endpoint = around(inner, ttft=trace, seed=1)
    seen = [await watch(endpoint) for _ in range(80)]
    failed = [each for each in seen if each.error]
    assert {(each.over_s, each.error.phase, each.error.status) for each in failed} == {
        (after_s, phase, status)
    }
    assert all(each.times[0] == 2.0 for each in seen if not each.error)
    assert 10 <= len(failed) <= 30
    assert len(inner.asked) == 80 - len(failed)


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
    assert around(Inner(), ttft=str(tmp_path / name))._service.ttft.quantile([0.0, 0.5, 1.0]).tolist() == [
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
        ({"ttft": "builtin:gpt4o"}, "ttft = 'builtin:gpt4o': .*did you mean 'gpt-4o'"),
        ({"tokens_per_s": 0}, "tokens_per_s = 0"),
        ({"tokens_per_s": np.inf}, "tokens_per_s = inf: must be a number above zero"),
        ({"break_after_tokens": 0}, "break_after_tokens = 0"),
        ({"tft": "gpt-4o"}, "unknown key `tft`; did you mean 'ttft'"),
    ],
)
def test_wrong_options_are_refused_with_the_fix(options, complaint):
    """One sentence that names the endpoint, the key and what would be right."""
    with pytest.raises(ConfigError, match=f"endpoint 'cloud': {complaint}"):
        around(Inner(), **options)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "is empty; a file needs at least one row"),
        (b"ttft_s\n", "has no rows; a file needs at least one"),
        (
            b"latency\n1.0\n",
            r"is no server trace: it has the columns latency; wanted: ttft_s \(your own\); or ",
        ),
        (b"ttft_s\nsoon\n", "line 2, column 'ttft_s' = 'soon': must be a number of at least 0"),
        (b"ttft_s\n1\n-1\n", "line 3, column 'ttft_s' = '-1': must be a number of at least 0"),
        (b"ttft_s\nnan\n", "line 2, column 'ttft_s' = 'nan': must be a number of at least 0"),
        (b"ttft_s,error\n,429\n", "every request failed; some must have brought content"),
        (b"ttft_s,model\n1,a\n2,b\n", r"has several models; choose one as .*wrong\.csv#a"),
        (b"\xff\xfe", "is not text; give a CSV or JSON file, gzipped or not"),
        (gzip.compress(b"ttft_s\n1.0\n", mtime=0)[:-6], "cannot be read: "),
    ],
)
def test_a_file_that_holds_no_ttft_is_refused(tmp_path, content, wanted):
    """An empty, wrong or damaged trace is a wrong setting, not a crash at the first request."""
    path = tmp_path / "wrong.csv"
    path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=f"^endpoint 'cloud': ttft = {re.escape(repr(str(path)))}: .*{wanted}"
    ):
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
