"""What the policies come to on recorded servers: planned on one half of the data, judged on the other."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

from discostream.core.forecast import forecast
from discostream.types import Kind

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("DISCO_SHARED_DATA", ROOT.parent / "shared" / "data"))
FOLDERS = ("whisper-leak", "llmperf", "workload-self-instruct")
pytestmark = pytest.mark.skipif(
    not all((DATA / folder).is_dir() for folder in FOLDERS),
    reason="the recorded traces are not here; set DISCO_SHARED_DATA",
)

REPLICATE = "Llama-2-70B, Replicate"


@pytest.fixture(scope="module")
def experiment():
    """The script that writes docs/policies-on-traces.md."""
    return load_script("policies_on_traces")


@pytest.fixture(scope="module")
def traces(experiment):
    return experiment.Traces.read(DATA, "self-instruct")


def changes(experiment, traces, service, device, constraint, splits):
    """How `optimal` changes mean and P99 TTFT against `disco`, at each realised spend."""
    frontiers = experiment.compare(
        service,
        device,
        constraint,
        traces,
        splits=splits,
        shares=np.linspace(0.0, 1.0, 11),
        policies=("disco", "optimal"),
    )
    return experiment.Case(constraint, service, device, frontiers).change("optimal", "disco")


@pytest.mark.slow
def test_optimal_is_never_worse_than_the_papers_policy(experiment, traces):
    """In every cell of five services, three devices and both constraints, its mean is at most 2 % above."""
    worst = {}
    for constraint, service, device in product(Kind, experiment.SERVICES, experiment.DEVICES):
        splits = 3 if traces.ttft_s[service].size < 1000 else 1
        mean, _ = changes(experiment, traces, service, device, constraint, splits)
        worst[constraint, service, device] = mean.max()
    assert len(worst) == 30
    assert {case: change for case, change in worst.items() if change > 0.02} == {}


@pytest.mark.slow
def test_optimal_cuts_cold_starts(experiment, traces):
    """With 0.1 to 0.3 of any device, replicate_70b's mean falls by a quarter and its P99 by two fifths."""
    for device in experiment.DEVICES:
        mean, p99 = changes(experiment, traces, REPLICATE, device, Kind.DEVICE, splits=12)
        assert np.all(mean[:3] < -0.25), device
        assert np.all(p99[:3] < -0.40), device


@pytest.mark.parametrize("constraint", list(Kind))
def test_the_judge_agrees_with_the_forecast(experiment, traces, constraint):
    """Judged on the very data that it was made from, a plan does what it was forecast to do."""
    half, _ = traces.halves("GPT-4o", np.random.default_rng(0))
    known = half.known(51.80)
    table = experiment.optimal(known, experiment.PolicySettings(constraint=constraint.value, share=0.3))
    verdict, expected = experiment.judge(table, half, 51.80), forecast(known, table)
    assert verdict.mean_s == pytest.approx(expected.mean_ttft_s, rel=0.02)
    assert verdict.p99_s == pytest.approx(expected.p99_ttft_s, rel=0.05)
    assert verdict.share[constraint] == pytest.approx(0.3, abs=0.015)
