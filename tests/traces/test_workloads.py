from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from discostream.builtin import builtin_output_lengths, builtin_prompt_lengths
from discostream.errors import ConfigError
from discostream.traces.workloads import KINDS, read_workload

DATA = Path(os.environ.get("DISCO_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
with_workloads = pytest.mark.skipif(
    not (DATA / "azure-llm-2023").is_dir(), reason="the recorded traces are not here; set DISCO_SHARED_DATA"
)


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
