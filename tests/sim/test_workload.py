from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.builtin import builtin_output_lengths, builtin_prompt_lengths
from discostream.errors import ConfigError
from discostream.sim.workload import KINDS, ArrivalKind, Arrivals, Workload, read_workload, sample

DATA = Path(os.environ.get("DISCO_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
with_workloads = pytest.mark.skipif(
    not (DATA / "azure-llm-2023").is_dir(), reason="the recorded traces are not here; set DISCO_SHARED_DATA"
)
NONE, TRACE = Arrivals(ArrivalKind.NONE), Arrivals(ArrivalKind.TRACE)


@pytest.fixture
def file(tmp_path):
    """Writes a file and gives its path."""

    def write(name, text):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return write


def lines(*objects):
    return "\n".join(json.dumps(each) for each in objects)


def test_every_kind_of_file_is_documented():
    """docs/traces.md names the columns of every kind."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
    assert not {name for kind in KINDS for name in kind.columns if f"`{name}`" not in page}


# Files


def test_our_own_file_is_read_whole_and_in_order(file):
    """Every column comes out; rows go by arrival, which counts from the first."""
    text = "prompt_tokens,output_tokens,arrived_at_s,cached_tokens\n30,3,12.5,10\n20,2,10,0\n"
    workload = read_workload(file("mine.csv", text))
    assert workload.name == "mine"
    assert workload.prompt_tokens.tolist() == [20.0, 30.0]
    assert workload.output_tokens.tolist() == [2.0, 3.0]
    assert workload.arrived_at_s.tolist() == [0.0, 2.5]
    assert workload.cached_tokens.tolist() == [0.0, 10.0]


def test_only_prompts_need_be_known(file):
    """What a file does not have is None, and not a guess."""
    workload = read_workload(file("short.csv", "prompt_tokens\n7\n"))
    assert workload.prompt_tokens.tolist() == [7.0]
    assert (workload.output_tokens, workload.arrived_at_s, workload.cached_tokens) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "arrived_at_s"),
    [
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 23:59:59.5000000,100,10\n2023-11-17 00:00:01.2500000,200,20\n",
            [0.0, 1.75],
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2024-05-12T00:00:00.000000+00:00,100,10\n2024-05-12T02:00:03+02:00,200,20\n",
            [0.0, 3.0],
        ),
        ("timestamp_ms,input_length,output_length,n_hash_blocks\n500,100,10,1\n3000,200,20,1\n", [0.0, 2.5]),
        ("num_prefill_tokens,num_decode_tokens,pd_ratio\n100,10,10\n200,20,10\n", None),
    ],
)
def test_workloads_of_others(file, text, arrived_at_s):
    """Azure's dates, with time zones or without, Mooncake's milliseconds, and Vidur's lengths alone."""
    workload = read_workload(file("lengths.csv.gz", text))
    assert workload.prompt_tokens.tolist() == [100.0, 200.0]
    assert workload.output_tokens.tolist() == [10.0, 20.0]
    told = None if workload.arrived_at_s is None else workload.arrived_at_s.tolist()
    assert told == arrived_at_s


@pytest.mark.parametrize(
    ("text", "prompt_tokens", "output_tokens"),
    [
        (lines({"prompt": "x" * 40}, {"prompt": "y"}), [10.0, 1.0], None),
        (
            lines(
                {"prompt": "x" * 40, "outputs": {"a": {"chars": 80, "words": 9}, "b": {"chars": 4}}},
                {"prompt": "x" * 8, "outputs": {"c": {"chars": 80, "tokens": 33}}},
            ),
            [10.0, 2.0],
            [20.0, 33.0],
        ),
        (lines({"prompt": "x" * 40, "outputs": {"a": {"chars": 80}}}, {"prompt": "y"}), [10.0, 1.0], None),
        (
            lines({"instruction": "x" * 32, "instances": [{"input": "y" * 8, "output": "z" * 12}, {}]}),
            [10.0],
            [3.0],
        ),
        (
            lines(
                {
                    "messages": [
                        {"role": "system", "content": "x" * 8},
                        {"role": "user", "content": [{"type": "text", "text": "y" * 12}, {"type": "image"}]},
                        {"role": "assistant", "content": "z" * 16},
                    ]
                }
            ),
            [5.0],
            [4.0],
        ),
        (lines({"messages": [{"role": "assistant"}, {"role": "user", "content": "y" * 12}]}), [3.0], None),
    ],
)
def test_texts_are_counted_at_four_characters_a_token(file, text, prompt_tokens, output_tokens):
    """Prompts, instructions and chats; answers count where every prompt has one; the note says so."""
    workload = read_workload(file("texts.jsonl", text))
    assert workload.prompt_tokens.tolist() == prompt_tokens
    assert (None if workload.output_tokens is None else workload.output_tokens.tolist()) == output_tokens
    assert workload.note == "tokens estimated at 4 characters each"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("prompt_tokens\n0\n", r"line 2, column 'prompt_tokens' = '0': must be a number of at least 1"),
        ("prompt_tokens,output_tokens\n5,\n", r"line 2, column 'output_tokens' = ''"),
        (
            "prompt_tokens,cached_tokens\n9,9\n5,6\n",
            r"line 3, column 'cached_tokens' = '6': must be at most the 5",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n",
            "column 'TIMESTAMP' = 'noon': must be a date",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-01-01 00:00:00,1,1\n2023-01-01 00:00:00Z,1,1\n",
            "must name a time zone",
        ),
        ("ttft_s\n1\n", r"it has the columns ttft_s; wanted: prompt_tokens \(your own\); or TIMESTAMP"),
        (lines({"prompt": "x"}, {"prompt": 3}), "line 2, prompt: Expected `str`, got `int`"),
        (lines({"prompt": "x"}, {"text": "y"}), "line 2, .*missing required field `prompt`"),
        (lines({"messages": []}), "line 1, messages: Expected `array` of length >= 1"),
        (lines({"prompt": "x", "outputs": {"m": {"chars": -1}}}), "line 1, outputs.*: Expected `float` >= 0"),
    ],
)
def test_what_cannot_be_read_is_told(file, text, message):
    """The error names the file, the row, the field and what would be right."""
    path = file("wrong", text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_workload(path)
    assert "wrong" in str(caught.value)


@pytest.mark.parametrize("source", ["builtin:chats", "nowhere.csv"])
def test_what_is_not_there_is_told(source):
    """An unknown name and a missing file say which workload is built in."""
    with pytest.raises(ConfigError, match=f"workload '{source}': .*builtin:chat"):
        read_workload(source)


def test_the_built_in_chat_has_the_lengths_of_its_tables():
    """Means to a thousandth, medians to a token; prompts and answers have nothing to do with each other."""
    chat = read_workload("builtin:chat")
    for drawn, table in (
        (chat.prompt_tokens, builtin_prompt_lengths()),
        (chat.output_tokens, builtin_output_lengths()),
    ):
        assert drawn.mean() == pytest.approx(table.mean, rel=1e-3)
        assert np.median(drawn) == pytest.approx(table.quantile(0.5), abs=1.0)
        assert drawn.min() >= 1.0
        assert np.all(drawn == np.rint(drawn))
    assert abs(np.corrcoef(chat.prompt_tokens, chat.output_tokens)[0, 1]) < 0.03
    assert np.array_equal(chat.prompt_tokens, read_workload("builtin:chat").prompt_tokens)


# Arrivals


@pytest.mark.parametrize(
    ("text", "arrivals"),
    [("trace", TRACE), ("none", NONE), ("poisson:0.5", Arrivals(ArrivalKind.POISSON, 0.5))],
)
def test_arrivals_that_can_be_asked_for(text, arrivals):
    """Three words, one of them with a rate."""
    assert Arrivals.parse(text) == arrivals


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("", "must be trace, none, or poisson:RATE, as in poisson:0.5"),
        ("traces", "must be trace, none, or poisson:RATE"),
        ("poisson", "must be trace, none, or poisson:RATE"),
        ("none:2", "must be trace, none, or poisson:RATE"),
        ("poisson:", "the rate must be a number above zero"),
        ("poisson:fast", "the rate must be a number above zero"),
        ("poisson:0", "the rate must be a number above zero"),
        ("poisson:-1", "the rate must be a number above zero"),
        ("poisson:inf", "the rate must be a number above zero"),
        ("poisson:nan", "the rate must be a number above zero"),
    ],
)
def test_other_arrivals_are_refused(text, fix):
    """The error names the field, the value and the fix."""
    with pytest.raises(ConfigError, match=f"--arrivals '{text}': {fix}"):
        Arrivals.parse(text)


# Sampling


def numbered(rows, arrived_at_s=None):
    """A workload whose rows can be told apart by any column."""
    lengths = np.arange(rows) + 1.0
    return Workload("w", lengths, lengths + 1000, arrived_at_s, lengths / 2)


@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 5))
def test_a_sample_keeps_rows_together(rows, requests, seed):
    """A prompt comes with its own answer and cache; no row twice where there are enough of them."""
    drawn = sample(numbered(rows), requests, NONE, np.random.default_rng(seed))
    assert drawn.prompt_tokens.size == requests
    assert np.array_equal(drawn.output_tokens, drawn.prompt_tokens + 1000)
    assert np.array_equal(drawn.cached_tokens, drawn.prompt_tokens / 2)
    assert drawn.arrived_at_s is None
    if requests <= rows:
        assert np.unique(drawn.prompt_tokens).size == requests


def test_a_sample_has_the_mean_of_its_workload():
    """200,000 draws from 1,000 rows: the mean to four standard errors, and every row about 200 times."""
    workload = numbered(1000)
    drawn = sample(workload, 200_000, NONE, np.random.default_rng(7)).prompt_tokens
    error = workload.prompt_tokens.std() / np.sqrt(drawn.size)
    assert drawn.mean() == pytest.approx(workload.prompt_tokens.mean(), abs=4 * error)
    assert np.unique(drawn, return_counts=True)[1] == pytest.approx(np.full(1000, 200), abs=5 * np.sqrt(200))


def test_a_sample_is_fixed_by_its_seed():
    """The same generator state gives the same requests; another gives others."""
    first, again, other = (
        sample(numbered(50), 30, Arrivals.parse("poisson:2"), np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first.prompt_tokens, again.prompt_tokens)
    assert np.array_equal(first.arrived_at_s, again.arrived_at_s)
    assert not np.array_equal(first.prompt_tokens, other.prompt_tokens)


@pytest.mark.parametrize("rate_per_s", [0.02, 5.0, 300.0])
def test_poisson_arrivals_have_their_rate(rate_per_s):
    """Gaps average 1 / rate and vary as much, to four standard errors; a fifth is longer than ln 5 / rate."""
    requests = 100_000
    arrivals = Arrivals(ArrivalKind.POISSON, rate_per_s)
    drawn = sample(numbered(10), requests, arrivals, np.random.default_rng(11))
    gaps = np.diff(drawn.arrived_at_s, prepend=0.0) * rate_per_s
    assert np.all(gaps > 0)
    assert gaps.mean() == pytest.approx(1.0, abs=4 / np.sqrt(requests))
    assert gaps.std() == pytest.approx(1.0, abs=4 * np.sqrt(2 / requests))
    assert np.mean(gaps > np.log(5.0)) == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / requests))


@given(
    st.lists(st.floats(0.0, 100.0), min_size=2, max_size=20).map(sorted),
    st.integers(1, 100),
    st.integers(0, 5),
)
def test_recorded_arrivals_go_on_end_to_end(arrived_at_s, requests, seed):
    """A stretch keeps its rows, gaps and bursts; at the end it begins anew, a mean gap after the last row."""
    workload = numbered(len(arrived_at_s), np.array(arrived_at_s))
    drawn = sample(workload, requests, TRACE, np.random.default_rng(seed))
    assert drawn.arrived_at_s[0] == 0.0
    row = drawn.prompt_tokens.astype(int) - 1
    assert np.array_equal(np.diff(row) % len(workload), np.full(requests - 1, 1 % len(workload)))
    gaps = np.diff(workload.arrived_at_s)
    gap_after = np.append(gaps, gaps.mean())
    assert np.diff(drawn.arrived_at_s) == pytest.approx(gap_after[row[:-1]], abs=1e-9)


def test_recorded_arrivals_begin_anywhere():
    """Seeds begin at different rows, so that they differ where there is one recording only."""
    workload = numbered(100, np.arange(100.0))
    starts = {sample(workload, 1, TRACE, np.random.default_rng(seed)).prompt_tokens[0] for seed in range(20)}
    assert len(starts) > 10


@pytest.mark.parametrize("workload", [numbered(5), numbered(1, np.zeros(1))])
def test_arrivals_that_were_not_recorded_are_refused(workload):
    """A workload without arrival times, or with one row, has no arrivals to replay."""
    with pytest.raises(
        ConfigError, match=r"--arrivals trace: workload 'w' .*does not say.*poisson:RATE or none"
    ):
        sample(workload, 3, TRACE, np.random.default_rng(0))


def test_no_requests_are_refused():
    """At least one request is drawn."""
    with pytest.raises(ConfigError, match="--requests 0: must be at least 1"):
        sample(numbered(5), 0, NONE, np.random.default_rng(0))


# Real ones


@with_workloads
@pytest.mark.parametrize(
    ("name", "rows", "median_prompt", "median_output", "span_s"),
    [
        ("azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz", 19366, 1020, 129, 3501.721937),
        ("azure-llm-2023/AzureLLMInferenceTrace_code.csv.gz", 8819, 1469, 13, 3435.948056),
        ("workload-mooncake/conversation_trace.csv.gz", 12031, 6909, 350, 3536.999),
        ("workload-mooncake/synthetic_trace.csv.gz", 3993, 11587, 69, 1022.025),
        ("workload-vidur-arxiv/arxiv_summarization_llama2_lengths.csv.gz", 28257, 2730, 167, None),
        ("workload-arena-hard/prompts_and_output_lengths.jsonl.gz", 1250, 50, 569, None),
        ("workload-self-instruct/seed_tasks.jsonl", 175, 28, 30, None),
        ("workload-self-instruct/user_oriented_instructions.jsonl", 252, 34, 40, None),
    ],
)
def test_every_recorded_workload_can_be_read(name, rows, median_prompt, median_output, span_s):
    """All rows, their medians, and how long they took to arrive."""
    workload = read_workload(str(DATA / name))
    assert len(workload) == rows
    assert np.median(workload.prompt_tokens) == median_prompt
    assert np.median(workload.output_tokens) == median_output
    assert (workload.arrived_at_s is None) == (span_s is None)
    if span_s is not None:
        assert workload.arrived_at_s[-1] == pytest.approx(span_s, abs=1e-6)
