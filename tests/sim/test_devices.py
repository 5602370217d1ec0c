from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from discostream.core.cost import JOULES_PER_FLOP
from discostream.errors import ConfigError
from discostream.sim.devices import DEVICES, device_named

DATA = Path(os.environ.get("DISCO_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
with_tables = pytest.mark.skipif(
    not (DATA / "device-edge-llm-bench").is_dir(),
    reason="the recorded traces are not here; set DISCO_SHARED_DATA",
)


def bloom(width, layers, vocabulary):
    """Bloom's weights: attention and a fourfold MLP with biases, layer norms, a tied embedding with its."""
    return layers * (12 * width**2 + 13 * width) + vocabulary * width + 4 * width


def qwen(width, layers, vocabulary, inner):
    """Qwen 1.5's weights: biases on queries, keys and values only, a gated MLP, root-mean-square norms."""
    return layers * (4 * width**2 + 3 * width * inner + 5 * width) + vocabulary * width + width


@pytest.mark.parametrize(
    ("name", "prefill", "decode", "weights", "width", "vocabulary"),
    [
        ("pixel-7-pro-bloom-1.1b", 31.32, 13.93, bloom(1536, 24, 250_880), 1536, 250_880),
        ("pixel-7-pro-bloom-560m", 51.80, 20.14, bloom(1024, 24, 250_880), 1024, 250_880),
        ("xiaomi-14-qwen1.5-0.5b", 79.99, 21.47, qwen(1024, 24, 151_936, 2816), 1024, 151_936),
    ],
)
def test_the_devices_of_the_paper(name, prefill, decode, weights, width, vocabulary):
    """Speeds as the paper has them; energy is FLOPs times joules, weights counted from the architecture."""
    device = device_named(name)
    assert (device.prefill_tokens_per_s, device.decode_tokens_per_s) == (prefill, decode)
    attention = 4 * 24 * width * 512
    assert device.energy.decode_j_per_token == pytest.approx((2 * weights + attention) * JOULES_PER_FLOP)
    read = 2 * (weights - vocabulary * width) + attention / 2
    assert device.energy.prefill_j_per_token == pytest.approx(read * JOULES_PER_FLOP)


def test_every_device_says_where_its_figures_come_from():
    """Five devices, each with a source for speed and for energy, drawing what such a device can draw."""
    assert len(DEVICES) == 5
    for name, device in DEVICES.items():
        assert device.name == name
        assert "speeds: " in device.source
        assert "energy: " in device.source
        for joules, speed in (
            (device.energy.prefill_j_per_token, device.prefill_tokens_per_s),
            (device.energy.decode_j_per_token, device.decode_tokens_per_s),
        ):
            assert 1.0 < joules * speed < 15.0


def test_every_device_is_documented():
    """docs/traces.md names every device with its figures."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
    for name, device in DEVICES.items():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        told = [float(cell.replace(",", "")) for cell in row.split("|")[2:4]]
        joules = [float(cell) for cell in row.split("|")[4].split(",")]
        energy = device.energy
        assert told == pytest.approx((device.prefill_tokens_per_s, device.decode_tokens_per_s), rel=1e-3)
        assert joules == pytest.approx((energy.prefill_j_per_token, energy.decode_j_per_token), abs=5e-4)


@with_tables
def test_the_laptop_is_as_measured():
    """Medians over all rows of Qwen2.5-1.5B in 4 bits on the M4's GPU in which prefill was measured."""
    path = DATA / "device-edge-llm-bench" / "m4_inference.csv"
    with path.open(newline="") as rows:
        chosen = [
            (float(row["prefill_tps"]), float(row["decode_tps"]))
            for row in csv.DictReader(rows)
            if (row["backend"], row["model"], row["variant"]) == ("Metal", "Qwen2.5-1.5B-Instruct", "Q4_K_M")
            and float(row["prefill_tps"] or 0)
        ]
    laptop = DEVICES["macbook-m4-qwen2.5-1.5b"]
    assert len(chosen) == 13
    told = (laptop.prefill_tokens_per_s, laptop.decode_tokens_per_s)
    assert np.median(chosen, axis=0) == pytest.approx(told, rel=1e-3)


@with_tables
def test_the_laptop_draws_what_one_drew():
    """10.5 W: a MacBook M2 that writes 500 words with a model of 7 or 8 billion parameters, median run."""
    with (DATA / "device-vs-remote-energy-cain2025" / "run_table.csv").open(newline="") as rows:
        watts = [
            float(row["energy_usage_J"]) / float(row["execution_time"])
            for row in csv.DictReader(rows)
            if row["method"] == "on_device"
            and row["length"] == "500"
            and row["model"].endswith((":7b", ":8b"))
        ]
    laptop = DEVICES["macbook-m4-qwen2.5-1.5b"]
    assert len(watts) == 120
    assert np.median(watts) == pytest.approx(10.5, abs=0.1)
    assert laptop.energy.decode_j_per_token * laptop.decode_tokens_per_s == pytest.approx(10.5)


@with_tables
def test_the_phone_is_as_published():
    """Blocks of 128 tokens: a prompt of a few reads one, a full context as many as it has, on one line."""
    with (DATA / "device-qualcomm-aihub" / "llm_perf.csv").open(newline="") as rows:
        (row,) = (
            row
            for row in csv.DictReader(rows)
            if (row["model_id"], row["precision"], row["device"])
            == ("llama_v3_2_3b_instruct", "w4a16", "Snapdragon 8 Elite QRD")
        )
    phone = DEVICES["snapdragon-8-elite-npu-llama-3.2-3b"]
    blocks = np.ceil(np.arange(1, 4097) / 128) * float(row["ttft_min_ms"]) / 1000
    line = np.arange(1, 4097) / phone.prefill_tokens_per_s + phone.constant_s
    assert (line - blocks).mean() == pytest.approx(0.0, abs=1e-6)
    assert np.abs(line - blocks).max() < float(row["ttft_min_ms"]) / 2000
    assert phone.decode_tokens_per_s == pytest.approx(float(row["decode_tokens_per_s"]), abs=0.01)


def test_a_device_of_given_speed():
    """Two numbers are tokens read and written a second; it draws 5 W while it does either."""
    device = device_named("25,10.5")
    assert (device.name, device.constant_s) == ("25,10.5", 0.0)
    assert (device.prefill_tokens_per_s, device.decode_tokens_per_s) == (25.0, 10.5)
    assert device.energy.joules(25.0, 0.0) == pytest.approx(5.0)
    assert device.energy.joules(0.0, 10.5) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("xiaomi-14-qwen1.5-0.5", "did you mean 'xiaomi-14-qwen1.5-0.5b'"),
        ("toaster", "as in 31.3,13.9; there are: macbook-m4-qwen2.5-1.5b, pixel"),
        ("30", "nor two speeds"),
        ("30,", "must be two numbers above zero"),
        ("30,fast", "must be two numbers above zero"),
        ("30,10,5", "must be two numbers above zero"),
        ("0,10", "must be two numbers above zero"),
        ("30,-1", "must be two numbers above zero"),
        ("nan,10", "must be two numbers above zero"),
        ("inf,10", "must be two numbers above zero"),
    ],
)
def test_other_devices_are_refused(text, fix):
    """The error names the field, the value and the fix, or the nearest device."""
    with pytest.raises(ConfigError, match=f"--device '{text}': .*{fix}"):
        device_named(text)
