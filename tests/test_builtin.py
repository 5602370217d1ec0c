from __future__ import annotations

import importlib.util
import json
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from discostream.builtin import builtin_output_lengths, builtin_profiles, builtin_prompt_lengths

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DISCO_SHARED_DATA", ROOT.parent / "shared" / "data"))
with_traces = pytest.mark.skipif(
    not (DATA / "whisper-leak").is_dir(), reason="the recorded traces are not here; set DISCO_SHARED_DATA"
)


@pytest.fixture(scope="module")
def maker():
    """The script that makes the tables."""
    spec = importlib.util.spec_from_file_location("maker", ROOT / "benchmarks" / "builtin_profiles.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shipped(name):
    return json.loads((files("discostream.builtin") / name).read_text(encoding="utf-8"))


@with_traces
def test_the_shipped_tables_are_what_the_traces_give(maker):
    """Recomputing both files from the recorded requests gives the same numbers and sources."""
    assert maker.ttft_tables(DATA) == shipped("ttft.json")
    assert maker.prompt_length_tables(DATA) == shipped("prompt_lengths.json")


@with_traces
def test_a_table_keeps_the_mean_and_the_tail_of_its_samples(maker):
    """GPT-4o's heavy tail survives the knots: mean within 3 %, P99 to a tenth of a millisecond."""
    samples = maker._whisper_leak(DATA, "GPT4o")["ttft_s"]
    ttft = builtin_profiles()["gpt-4o"].ttft
    assert ttft.mean == pytest.approx(samples.mean(), rel=0.03)
    assert ttft.quantile(0.99) == pytest.approx(np.quantile(samples, 0.99), abs=1e-4)


def test_every_profile_names_its_source_and_size():
    """Six services, each with origin, licence and number of requests."""
    profiles = builtin_profiles()
    assert list(profiles) == [
        "gpt-4o",
        "azure-gpt-4o",
        "claude-haiku",
        "gemini-flash",
        "llama-2-70b-replicate",
        "llama-2-13b-together",
    ]
    for name, profile in profiles.items():
        assert profile.name == name
        assert "github.com/" in profile.source
        assert "MIT" in profile.source or "Apache-2.0" in profile.source
        assert profile.samples >= 145
        assert profile.tokens_per_s > 10


def test_gpt_4o_is_as_published_in_the_collection():
    """Median 0.36 s, P99 2.8 s, the worst 131 s; 62.6 tokens a second."""
    gpt = builtin_profiles()["gpt-4o"]
    assert gpt.ttft.quantile([0.5, 0.99, 1.0]) == pytest.approx([0.359, 2.818, 131.144], abs=1e-3)
    assert gpt.tokens_per_s == 62.6
    assert gpt.samples == 5430


def test_answer_lengths_are_known_only_where_tokens_were_counted():
    """Events were recorded for OpenAI and Azure; elsewhere there is None, not a guess."""
    counted = {name for name, profile in builtin_profiles().items() if profile.output_tokens is not None}
    assert counted == {"gpt-4o", "azure-gpt-4o"}
    assert builtin_output_lengths().quantile(0.5) == 341.0


def test_prompt_lengths_are_those_of_conversations():
    """Median 1,020 tokens, from 2 to 14,050."""
    assert builtin_prompt_lengths().quantile([0.0, 0.5, 1.0]).tolist() == [2.0, 1020.0, 14050.0]
    assert "CC-BY 4.0" in shipped("prompt_lengths.json")["source"]


def test_the_profiles_of_one_caller_are_not_those_of_another():
    """Changing the returned dict changes nothing for others."""
    builtin_profiles().clear()
    assert len(builtin_profiles()) == 6
