from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.builtin import builtin_profiles
from discostream.core.distributions import Distribution
from discostream.core.forecast import SILENCE_S
from discostream.errors import ConfigError
from discostream.traces.paces import strata
from discostream.traces.packets import Capture, token_times
from discostream.traces.servers import KINDS, ServerTrace, find_traces, read_trace
from discostream.traces.streams import Streams
from discostream.traces.tables import LONGEST_CELL, read_table

DATA = Path(os.environ.get("DISCO_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
with_traces = pytest.mark.skipif(
    not (DATA / "whisper-leak").is_dir(), reason="the recorded traces are not here; set DISCO_SHARED_DATA"
)
SERIES = ("GPT4o", "AzureGPT4o", "O1Mini", "GPT4o-2026-03-30")
HEADER_BYTES = 88


@pytest.fixture
def file(tmp_path):
    """Writes a file and gives its path."""

    def write(name, text):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return write


def events(*payloads):
    """Frames that carry so many bytes each."""
    return [payload + HEADER_BYTES for payload in payloads]


def capture(**more):
    """One line of a packet capture: four tokens of 100 bytes, two of them together, then a stall of 2.5 s."""
    line = {
        "prompt_chars": 40,
        "response_chars": 20,
        "response_chunks": 4,
        "first_content_idx": 2,
        "dt_ms": [3.0, 200.0, 50.0, 40.0, 2500.0, 0.0],
        "bytes": [2900, 700, *events(200, 100, 100, 5)],
    }
    return json.dumps(line | more)


def test_every_kind_of_file_is_documented():
    """docs/traces.md names the columns of every kind, and every built-in profile."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
    names = {column for kind in KINDS for column in kind.columns} | set(builtin_profiles())
    assert not {name for name in names if f"`{name}`" not in page}


# Our own files


def test_our_own_file_is_read_whole(file):
    """Every column comes out in its unit; arrivals count from the earliest."""
    trace = read_trace(
        file(
            "mine.csv",
            "ttft_s,arrived_at_s,prompt_tokens,output_tokens,tbt_s,error\n"
            "0.5,100.0,10,20,0.1,\n"
            "1.5,103.5,30,40,0.3,\n",
        )
    )
    assert trace.name == "mine"
    assert trace.ttft_s.tolist() == [0.5, 1.5]
    assert trace.failed_after_s.tolist() == [np.inf, np.inf]
    assert trace.arrived_at_s.tolist() == [0.0, 3.5]
    assert trace.prompt_tokens.tolist() == [10.0, 30.0]
    assert trace.output_tokens.tolist() == [20.0, 40.0]
    assert trace.streams.mean_gaps_s.tolist() == [0.1, 0.3]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("requests-x.csv.gz", "ttft_s,note\n0.25,a\n"),
        ("packets-y.jsonl", "\ufeffttft_ms\r\n250\r\n"),
        ("trace", '[{"ttft_s": 0.25, "error": null}]'),
        ("other.csv", '{"ttft_ms": "250"}\n'),
    ],
)
def test_columns_tell_what_a_file_is(file, name, text):
    """Gzip, CSV and JSON are told by what is in the file, whatever its name; unknown columns do no harm."""
    trace = read_trace(file(name, text))
    assert trace.ttft_s.tolist() == [0.25]
    assert trace.streams.tokens_per_s == pytest.approx(builtin_profiles()["gpt-4o"].tokens_per_s)
    assert "no pace recorded" in trace.note


def test_failures_take_as_long_as_is_known_of_them(file):
    """A recorded time holds; a refusal came as soon as the fastest answer; others were a silence."""
    trace = read_trace(
        file(
            "failing.csv",
            "ttft_s,error,failed_after_s,prompt_tokens\n"
            "0.7,,,5\n"
            ",429 too many requests,,5\n"
            ",connection reset,2.5,5\n"
            ",time-out,,\n"
            "0.4,stream broke off,,5\n"
            ",,,5\n",
        )
    )
    assert trace.ttft_s.tolist() == [0.7, np.inf, np.inf, np.inf, 0.4]
    assert trace.failed_after_s.tolist() == [np.inf, 0.4, 2.5, SILENCE_S, np.inf]
    assert np.isnan(trace.prompt_tokens).tolist() == [False, False, False, True, False]
    assert trace.output_tokens is None
    for remark in (
        "rows with neither a TTFT nor an error, left out: 1",
        "answers that broke off, taken as whole: 1",
        "refusals at an unknown time, taken to come at once: 1",
        "failures at an unknown time, taken to show after 120 s: 1",
    ):
        assert remark in trace.note


def test_a_file_of_several_models_wants_one_chosen(file):
    """`FILE#MODEL` takes the rows of one model; without it, or with another, the error names them."""
    path = file("probes.csv", "model,ttft_s\na/one,1\nb,2\na/one,3\n")
    trace = read_trace(f"{path}#a/one")
    assert (trace.name, trace.ttft_s.tolist()) == ("probes#a/one", [1.0, 3.0])
    with pytest.raises(ConfigError, match=r"several models; choose one as .*probes\.csv#a/one"):
        read_trace(path)
    with pytest.raises(ConfigError, match="nothing of model 'c'; there are: a/one, b"):
        read_trace(f"{path}#c")


def test_many_paces_are_thinned_and_keep_their_mean(file):
    """Of 2,000 recorded paces, 512 stand for all; their mean is the mean of all."""
    gaps_s = np.random.default_rng(5).exponential(0.05, 2000).round(6) + 1e-6
    rows = "".join(f"1,{gap}\n" for gap in gaps_s)
    streams = read_trace(file("paces.csv", f"ttft_s,tbt_s\n{rows}")).streams
    assert streams.lengths.size == 512
    assert streams.mean_gaps_s.mean() == pytest.approx(gaps_s.mean(), rel=1e-9)


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("ttft_s\n", "has no rows"),
        ("[]", "has no rows"),
        ("ttft_s\n1\n1e308\n", r"line 3, column 'ttft_s' = '1e308': must be a number of at most 1e\+15"),
        ("ttft_s\n1\n-2\n", r"line 3, column 'ttft_s' = '-2': must be a number of at least 0"),
        ("ttft_s\n1\nnan\n", r"line 3, column 'ttft_s' = 'nan'"),
        ("ttft_s\ninf\n", r"line 2, column 'ttft_s' = 'inf'"),
        ("ttft_s,tbt_s\n1,0.1\n1,quick\n", r"line 3, column 'tbt_s' = 'quick'"),
        ("ttft_s,output_tokens\n1,0\n", r"column 'output_tokens' = '0': must be a number of at least 1"),
        ("ttft_s,arrived_at_s\n1,5\n1,\n", r"line 3, column 'arrived_at_s' = ''"),
        ('[{"ttft_s": 1}, {"ttft_s": "x"}]', r"entry 2, column 'ttft_s' = 'x'"),
        ("ttft_s,error\n1,\n2\n", "line 3: has 1 cells under 2 columns"),
        ("ttft_s,ttft_s\n1,2\n", "two columns of one name"),
        ("ttft_s,error\n,429\n,time-out\n", "every request failed"),
        ("ttft_s\n\n", "has no rows"),
        ('ttft_s,error\n"",""\n', "no row that can be used"),
        ("[1, 2]", "entry 1: must be a JSON object"),
        ('[{"ttft_s": 1}', "is not JSON"),
        ('{"ttft_s": 1}\n{"ttft_s":', "line 2: is not JSON"),
        ("[" * 100_000, "is not JSON: maximum recursion depth exceeded"),
        (capture(dt_ms="[" * 100_000), "column 'dt_ms' = .*: must be a list of numbers"),
        (
            "latency,model\n1,a\n",
            r"it has the columns latency, model; wanted: ttft_s \(your own\); or ttft_ms",
        ),
        ("device,ttft_s,decode_tokens_per_s\nphone,1,10\n", "is no server trace: it has the columns device"),
        (capture(dt_ms=[1, 2]), r"column 'bytes' = .*: must be as many as in dt_ms, which has 2"),
        (capture(first_content_idx=6), "column 'first_content_idx' = '6': must be one of 6 packets"),
        (capture(first_content_idx=0), "column 'first_content_idx' = '0': must be a number of at least 1"),
        (capture(dt_ms=[3, 200, 50, -40, 2500, 0]), "column 'dt_ms' = .*: must be a list of numbers"),
        (capture(bytes="many"), "column 'bytes' = 'many': must be a list of numbers"),
        (capture(clock_step=True), "no row that can be used"),
    ],
)
def test_what_cannot_be_read_is_told(file, text, message):
    """The error names the file, the row, the column and what would be right."""
    path = file("wrong", text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_trace(path)
    assert "wrong" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (bytes(range(256)), "is not text"),
        (b"\x1f\x8b\x08 no gzip at all", "cannot be read"),
        (gzip.compress(b"ttft_s\n" + b"1.25\n" * 1000, mtime=0)[:-20], "cannot be read"),
        (b'ttft_s,error\n1,"' + b"x" * (LONGEST_CELL + 1) + b'"\n', "line 2: is not CSV"),
    ],
)
def test_damaged_files_are_told(tmp_path, raw, message):
    """Junk, and gzip that breaks off, are the user's to mend: no traceback."""
    (tmp_path / "damaged.csv").write_bytes(raw)
    with pytest.raises(ConfigError, match=message):
        read_trace(str(tmp_path / "damaged.csv"))


def test_what_is_not_there_is_told(tmp_path):
    """A missing file, a folder and a wrong name each get their own sentence, with the nearest right name."""
    with pytest.raises(ConfigError, match="did you mean 'builtin:gpt-4o'"):
        read_trace("gpt-4o")
    with pytest.raises(ConfigError, match="no such profile; did you mean 'builtin:gpt-4o'"):
        read_trace("builtin:gpt4o")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_trace(str(tmp_path))


# Built-in profiles


@pytest.mark.parametrize("name", builtin_profiles())
def test_a_built_in_trace_is_its_table(name):
    """Drawn requests have the table's mean exactly, its P99, and its pace."""
    profile, trace = builtin_profiles()[name], read_trace(f"builtin:{name}")
    assert trace.name == name
    assert trace.ttft_s.mean() == pytest.approx(profile.ttft.mean, rel=1e-9)
    for share in (0.01, 0.5, 0.9, 0.99):
        drawn_s = np.quantile(trace.ttft_s, share, method="hazen")
        assert drawn_s == pytest.approx(profile.ttft.quantile(share), rel=2e-3)
    assert trace.streams.tokens_per_s == pytest.approx(profile.tokens_per_s)
    assert (trace.output_tokens is None) == (profile.output_tokens is None)
    if trace.output_tokens is not None:
        assert trace.output_tokens.mean() == pytest.approx(profile.output_tokens.mean, rel=1e-3)
        assert abs(np.corrcoef(trace.ttft_s, trace.output_tokens)[0, 1]) < 0.03


def test_strata_keep_the_mean_of_an_exponential():
    """Ten tenths of a distribution of mean 1 average 1; the last is the mean of the slowest tenth."""
    samples = -np.log1p(-(np.arange(4000) + 0.5) / 4000)
    tenths = strata(Distribution.of_samples(samples), 10)
    assert tenths.mean() == pytest.approx(samples.mean(), rel=1e-12)
    assert tenths[-1] == pytest.approx(np.log(10.0) + 1.0, rel=2e-3)
    assert np.all(np.diff(tenths) > 0)


# Splitting


def numbered(requests):
    """A trace whose rows can be told apart by any column."""
    rows = np.arange(float(requests))
    return ServerTrace("t", rows, rows + 0.25, Streams.steady(1.0), rows + 0.5, None, rows + 0.75)


@given(st.integers(2, 50), st.floats(0.001, 0.999), st.integers(0, 10))
def test_a_split_loses_no_row(requests, fraction, seed):
    """Both parts hold something, together everything once, and a row's columns stay together."""
    parts = numbered(requests).split(fraction, np.random.default_rng(seed))
    assert min(len(part) for part in parts) >= 1
    assert abs(len(parts[0]) - fraction * requests) <= 1.0
    assert sorted(np.concatenate([part.ttft_s for part in parts])) == list(range(requests))
    for part in parts:
        assert np.all(np.diff(part.ttft_s) > 0)
        assert np.array_equal(part.failed_after_s, part.ttft_s + 0.25)
        assert np.array_equal(part.output_tokens, part.ttft_s + 0.5)
        assert np.array_equal(part.arrived_at_s, part.ttft_s + 0.75)
        assert part.prompt_tokens is None


def test_a_split_is_fixed_by_its_seed():
    """The same generator state gives the same parts; another gives others."""
    first, again, other = (numbered(100).split(0.5, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first.ttft_s, again.ttft_s)
    assert not np.array_equal(first.ttft_s, other.ttft_s)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, np.nan])
def test_a_split_in_nothing_and_all_is_refused(fraction):
    """A fraction lies between 0 and 1, and one request cannot be split."""
    with pytest.raises(ConfigError, match=r"train fraction = .*: must lie between 0 and 1"):
        numbered(9).split(fraction, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="has one request only"):
        numbered(1).split(0.5, np.random.default_rng(0))


# Packets


def test_tokens_come_with_the_packet_that_completes_them():
    """Two together, one cut in two by TLS, and a terminator that holds none: counts and gaps are exact."""
    at_s = token_times(np.array([0.0, 0.5, 0.5, 3.0, 3.25]), np.array([580.0, 33.0, 257.0, 290.0, 5.0]), 4)
    assert at_s.tolist() == [0.0, 0.0, 0.5, 3.0]


packets = st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(1, 1500)), min_size=1, max_size=40)


@given(packets, st.integers(1, 300))
def test_any_packets_hold_all_tokens(packets, tokens):
    """However packets are cut, every token comes once, the first at once, in order, at a packet's moment."""
    arrived_s = np.cumsum([0.0, *[gap for gap, _ in packets[1:]]])
    at_s = token_times(arrived_s, np.array([float(size) for _, size in packets]), tokens)
    assert at_s.shape == (tokens,)
    assert at_s[0] == 0.0
    assert np.all(np.diff(at_s) >= 0)
    assert set(at_s) <= set(arrived_s)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=20), st.floats(0.001, 60.0))
def test_a_stall_stays_as_long_as_it_was(bursts, stall_s):
    """Whatever the bursts around it, a silence of X seconds is a gap of X seconds between two tokens."""
    arrived_s = np.arange(len(bursts)) * stall_s
    at_s = token_times(arrived_s, np.array(bursts) * 290.0, sum(bursts))
    _, counts = np.unique(at_s, return_counts=True)
    assert counts.tolist() == bursts
    assert np.diff(np.unique(at_s)) == pytest.approx(np.full(len(bursts) - 1, stall_s))


def test_a_capture_is_read_whole(file):
    """TTFT runs from the handshake to the first content; a row in which the clock was set is left out."""
    lines = [capture(), capture(clock_step=True, dt_ms=[1, -9, 5, 1, 1, 1]), capture(prompt_chars=80)]
    trace = read_trace(file("packets-x.jsonl.gz", "\n".join(lines)))
    assert trace.ttft_s.tolist() == [0.25, 0.25]
    assert trace.prompt_tokens.tolist() == [10.0, 20.0]
    assert trace.output_tokens.tolist() == [4.0, 4.0]
    assert trace.streams.at_s == pytest.approx(np.array([[0.0, 0.0, 0.04, 2.54]] * 2))
    assert "rows in which the clock was set, left out: 1" in trace.note
    assert "TTFT without TCP and TLS set-up" in trace.note


def test_a_first_packet_with_headers_holds_little_text(file):
    """A first packet with the HTTP headers, as Gemini's, counts for what it has beyond the shortest."""
    quick = capture(first_content_idx=1, bytes=[900, *events(1200, 400, 400, 400, 0)], response_chunks=None)
    wordy = capture(first_content_idx=1, bytes=[900, *events(1600, 400, 400, 400, 0)], response_chunks=None)
    table = read_table(Path(file("packets-g.jsonl", f"{quick}\n{wordy}")))
    times = Capture.of(table).token_times(np.array([12.0, 16.0]))
    assert [np.count_nonzero(at_s == 0.0) for at_s in times] == [1, 4]


REQUESTS = "ttft_ms,total_ms,prompt_chars,response_chars,response_chunks\n"


def test_packets_beside_requests_give_their_gaps(file):
    """Requests say how long a first token takes, and the capture beside them how the others follow."""
    path = file("requests-x.csv.gz", f"{REQUESTS}300,4300,40,20,4\n500,2500,6,20,4\n")
    alone = read_trace(path)
    assert alone.streams.mean_gaps_s == pytest.approx([4.0 / 3, 2.0 / 3])
    file("packets-x.jsonl.gz", capture())
    beside = read_trace(path)
    assert beside.name == "requests-x"
    assert beside.ttft_s.tolist() == [0.3, 0.5]
    assert beside.prompt_tokens.tolist() == [10.0, 2.0]
    assert beside.streams.at_s == pytest.approx(np.array([[0.0, 0.0, 0.04, 2.54]]))


def test_what_lies_beside_requests_must_be_their_packets(file):
    """Another file by that name is not passed over in silence."""
    path = file("requests-x.csv", f"{REQUESTS}300,4300,40,20,4\n")
    beside = file("packets-x.jsonl", '{"dt_ms": [1, 2]}')
    with pytest.raises(ConfigError, match=f"{beside}: lies beside requests, but is no packet capture"):
        read_trace(path)


@pytest.mark.parametrize(
    ("chunks", "tokens", "remark"),
    [
        ("100", 100, "a content event counts as a token"),
        ("250", 97, "answer tokens estimated at 5.16 characters each"),
        ("", 97, "answer tokens estimated at 5.16 characters each"),
    ],
)
def test_events_count_as_tokens_where_they_are_like_them(file, chunks, tokens, remark):
    """Five characters an event is a token's; two are not, as of a model that thinks in between."""
    trace = read_trace(file("r.csv", f"{REQUESTS}300,4300,40,500,{chunks}\n"))
    assert trace.output_tokens.tolist() == [tokens]
    assert remark in trace.note


def test_short_answers_say_nothing_of_how_long_ones_go_on(file):
    """A burst of 20 tokens in a millisecond is 20,000 a second; beside a long answer it does not count."""
    rows = f"{REQUESTS}300,301,40,100,20\n300,2200,40,500,96\n"
    assert read_trace(file("r.csv", rows)).streams.mean_gaps_s == pytest.approx([0.02])


# Other people's


def test_llmperf_in_json(file):
    """Shorter than asked is usable, a refusal came at once, another failure when it says so or in silence."""

    def row(code, ttft_s, whole_s, tokens):
        return {
            "error_code": code,
            "ttft_s": ttft_s,
            "end_to_end_latency_s": whole_s,
            "inter_token_latency_s": 99.0,
            "number_input_tokens": 550,
            "number_output_tokens": tokens,
        }

    rows = [
        row(None, 0.5, 10.4, 100),
        row(-100, 0.3, 20.1, 100),
        row(429, 0, 0, 1),
        row(-1, 0, 0, 1),
        row(-1, 0, 7, 1),
    ]
    trace = read_trace(file("host.json", json.dumps(rows)))
    assert trace.ttft_s.tolist() == [0.5, 0.3, np.inf, np.inf, np.inf]
    assert trace.failed_after_s.tolist() == [np.inf, np.inf, 0.3, SILENCE_S, 7.0]
    assert trace.streams.mean_gaps_s == pytest.approx([0.1, 0.2])
    assert trace.output_tokens[:2].tolist() == [100.0, 100.0]
    assert np.isnan(trace.output_tokens[2:]).all()
    assert trace.prompt_tokens.tolist() == [550.0] * 5


def test_llmperf_as_csv(file):
    """The same by the names that its CSV has."""
    text = "run,error_code,input_tokens,output_tokens,ttft_s,end_to_end_latency_s\na,,538,101,0.5,10.5\n"
    trace = read_trace(file("nano.csv", text))
    assert (trace.ttft_s.tolist(), trace.prompt_tokens.tolist()) == ([0.5], [538.0])
    assert trace.streams.mean_gaps_s == pytest.approx([0.1])


def test_latencylab(file):
    """Chunks are tokens from the first with text on; what came before is no gap, and zeros are failures."""
    header = (
        "timestamp,success,input_characters,output_characters,first_token_time_seconds,"
        "total_request_time_seconds,chunks_time_seconds\n"
    )
    path = file(
        "lab.csv",
        f'{header}2024-04-12 10:32:28.5,True,250,20,2.0,5.0,"[0.1, 1.4, 0.5, 0.0, 2.5]"\n'
        "2024-04-12 10:33:28.5,False,0,0,0.0,0.0,[]\n"
        '2024-04-12 10:34:30.0,True,500,10,1.0,2.0,"[0.25, 0.75]"\n',
    )
    trace = read_trace(path)
    assert trace.ttft_s.tolist() == [2.0, np.inf, 1.0]
    assert trace.failed_after_s.tolist() == [np.inf, SILENCE_S, np.inf]
    assert trace.arrived_at_s.tolist() == [0.0, 60.0, 121.5]
    assert np.array_equal(trace.prompt_tokens, [62.0, np.nan, 125.0], equal_nan=True)
    assert np.array_equal(trace.output_tokens, [4.0, np.nan, 3.0], equal_nan=True)
    assert trace.streams.reaching(4).at_s == pytest.approx(
        np.array([[0.0, 0.5, 0.5, 3.0], [0.0, 0.25, 1.0, 1.5]])
    )


def test_a_folder_is_searched_for_traces(file, tmp_path):
    """Traces are found in any format and depth; workloads, devices, several models, junk are passed over."""
    (tmp_path / "deeper").mkdir()
    found = [
        file("a.csv", "ttft_s\n1\n"),
        file("b.json.gz", json.dumps([{"ttft_s": 1}])),
        file("deeper/one-model.csv", "ttft_ms,model\n1,a\n2,a\n"),
        file("packets-alone.jsonl", capture()),
        file("requests-x.csv", f"{REQUESTS}300,4300,40,20,4\n"),
    ]
    file("packets-x.jsonl.gz", capture())
    file("models.csv", "ttft_ms,model\n1,a\n2,b\n")
    file("devices.csv", "device,ttft_s,prefill_tokens_per_s\np,1,2\n")
    file("lengths.csv", "prompt_tokens\n1\n")
    file("broken.json", "[1,")
    file("nested.json", "[" * 100_000)
    file("SOURCE.md", "# ttft_s\n")
    (tmp_path / "junk.gz").write_bytes(b"\x1f\x8b\xff")
    (tmp_path / "empty").touch()
    assert [str(path) for path in find_traces(tmp_path)] == sorted(found)
    with pytest.raises(ConfigError, match="is no folder"):
        find_traces(tmp_path / "a.csv")


# Real ones


@with_traces
def test_every_recorded_trace_can_be_read():
    """All 30 request traces are found; each has content and a pace that a service can have."""
    paths = find_traces(DATA)
    names = [path.name for path in paths]
    assert len(names) == 30
    assert sum(name.startswith("requests-") for name in names) == 9
    assert not {"2026-07-15.csv", "request_observations.csv", "device_speed_energy.csv"} & set(names)
    for path in paths:
        trace = read_trace(str(path))
        failed = np.isinf(trace.ttft_s)
        assert np.count_nonzero(~failed) > 0
        assert np.array_equal(failed, np.isfinite(trace.failed_after_s))
        assert 5.0 < trace.streams.tokens_per_s < 300.0
        assert (1.0 / trace.streams.mean_gaps_s).max() < 1000.0
        assert np.nanmin(trace.prompt_tokens) >= 1.0


@with_traces
@pytest.mark.parametrize(
    ("name", "requests", "failed"),
    [
        ("whisper-leak/requests-GPT4o.csv.gz", 5430, 0),
        ("whisper-leak/requests-GPT4o-2026-03-30.csv", 160, 0),
        ("llmperf/lepton_13b.json", 150, 130),
        ("llmperf/together_13b.json", 150, 1),
        ("llmperf-openai-2026/gpt-4.1-nano.csv", 1089, 0),
        ("latencylab/Azure_gpt-4-1106-preview.csv.gz", 51, 9),
        ("hourly-probe-2026/2026-07-15.csv#openai/gpt-5.5", 21, 3),
    ],
)
def test_no_request_gets_lost(name, requests, failed):
    """Rows and failures are as many as the files hold, but for those in which a clock was set."""
    trace = read_trace(str(DATA / name))
    assert (len(trace), np.count_nonzero(np.isinf(trace.ttft_s))) == (requests, failed)


def packets_of(series):
    """A capture's rows but for those in which the clock was set."""
    table = read_table(DATA / "whisper-leak" / f"packets-{series}.jsonl.gz")
    steps = table.columns.get("clock_step", [False] * len(table))
    return table.where(np.array([not step for step in steps]))


@with_traces
@pytest.mark.parametrize("series", SERIES)
def test_captured_answers_have_all_their_tokens(series):
    """Token for token: every answer of a capture has as many as the client saw events."""
    table = packets_of(series)
    seen = table.numbers("response_chunks")
    times = Capture.of(table).token_times(seen)
    assert [at_s.size for at_s in times] == seen.tolist()
    assert all(at_s[0] == 0.0 and np.all(np.diff(at_s) >= 0) for at_s in times)


@with_traces
@pytest.mark.parametrize("series", SERIES)
def test_a_capture_agrees_with_its_requests(series):
    """The TTFT of packets is that of the same request in the summary, which others computed."""
    (path,) = (DATA / "whisper-leak").glob(f"requests-{series}.csv*")
    summary = read_table(path)
    ids = zip(summary.columns["prompt_id"], summary.columns["trial"], strict=True)
    told_ms = dict(zip(ids, summary.columns["ttft_ms"], strict=True))
    table = packets_of(series)
    ids = zip(table.columns["prompt_id"], map(str, table.columns["trial"]), strict=True)
    told_s = np.array([float(told_ms[each]) for each in ids]) / 1000
    assert np.abs(Capture.of(table).ttft_s - told_s).max() < 2e-3


@with_traces
def test_gpt_4o_stalls_as_often_as_was_counted():
    """4.3 % of GPT-4o's answers hold a gap of more than a second, and so do its streams."""
    streams = read_trace(str(DATA / "whisper-leak" / "requests-GPT4o.csv.gz")).streams
    stalled = [
        np.diff(row[:length]).max() > 1.0
        for row, length in zip(streams.recordings, streams.lengths, strict=True)
    ]
    assert np.mean(stalled) == pytest.approx(0.043, abs=0.002)


@with_traces
@pytest.mark.parametrize(
    ("series", "name"),
    [
        ("GPT4o", "gpt-4o"),
        ("AzureGPT4o", "azure-gpt-4o"),
        ("ClaudeHaikuOpenRouter", "claude-haiku"),
        ("GeminiFlash", "gemini-flash"),
    ],
)
def test_packets_keep_the_pace_of_the_built_in_profile(series, name):
    """The median pace of replayed gaps is that of the profile, made without packets, to 4 %."""
    streams = read_trace(str(DATA / "whisper-leak" / f"requests-{series}.csv.gz")).streams
    assert streams.tokens_per_s == pytest.approx(builtin_profiles()[name].tokens_per_s, rel=0.04)


def test_a_prompt_of_a_long_context_fits_a_cell(tmp_path):
    """A CSV's cell may hold more than Python's 131,072 characters, and other readers keep theirs."""
    limit = csv.field_size_limit()
    (tmp_path / "long.csv").write_text('ttft_s,error\n1,"' + "x" * 200_000 + '"\n')
    assert len(read_trace(str(tmp_path / "long.csv"))) == 1
    assert csv.field_size_limit() == limit
