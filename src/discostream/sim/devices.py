"""Devices as others measured them: how fast they read and write, and what it takes out of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from discostream.config import suggest
from discostream.core.cost import Energy, ModelShape, energy_of
from discostream.errors import ConfigError

__all__ = ["DEVICES", "Device", "device_named"]

BLOOM_1B1 = ModelShape(1_065_314_304, 250_880, 1_536, 24, 2_048)
BLOOM_560M = ModelShape(559_214_592, 250_880, 1_024, 24, 2_048)
QWEN_0B5 = ModelShape(463_987_712, 151_936, 1_024, 24, 32_768)
"""From the models' own configurations (bigscience/bloom-1b1, bigscience/bloom-560m, Qwen/Qwen1.5-0.5B)."""

EDGE_FM = (
    "speeds: Li et al., EdgeFM 2024, llama.cpp at 4 bits, as quoted by arXiv 2502.11417; energy: FLOPs of "
    "the model times the joules a FLOP of llama.cpp on a CPU (T-MAC)"
)

EDGE_LLM_BENCH = (
    "speeds: Edge LLM Bench (github.com/KrisDcosta/edge-llm-bench, commit 2d1f24b, CC-BY 4.0, KrisDcosta), "
    "Metal, Q4_K_M, medians over 13 contexts of 1,024 to 2,048 tokens; energy: the 10.5 W of a MacBook M2 "
    "that answers in 500 words with models of 7 and 8 billion parameters (github.com/S2-group/"
    "cain-2025-device-remote-llm-energy-rep-pkg, commit e2457e3, MIT; Nguyen et al., CAIN 2025)"
)

BLOCK_TOKENS, BLOCK_S = 128, 0.088195
"""Qualcomm's runtime reads prompts in whole blocks, each of which takes so long."""

AI_HUB = (
    "speeds: Qualcomm AI Hub (github.com/quic/ai-hub-models, commit 52c080d, BSD-3-Clause), Snapdragon 8 "
    "Elite QRD, w4a16, Genie: the vendor's, on a reference board; half a block of 128 tokens is read in vain "
    "on average; energy: the same model on AMD's XDNA2, 1.10 W to read and 0.086 J a token to write "
    "(github.com/FastFlowLM/FastFlowLM, llama3_results.md, commit 2cc36e2, MIT), chip only, without memory"
)

BUSY_W = 5.0
"""What a device draws for a model on its CPU, if nothing is known of it.

The paper's phones come to 3.4 to 4.9 W by the FLOPs they decode, and a laptop's processor was published at
4.5 to 4.9 W for Llama 3.2 and 3.1 (github.com/FastFlowLM/FastFlowLM, llama3_results.md, commit 2cc36e2).
"""

OF_GIVEN_SPEED = f"speeds as given; energy: {BUSY_W:g} W while it works"


@dataclass(frozen=True, slots=True)
class Device:
    """A device with a model on it.

    Attributes:
        name: What `--device` calls it.
        prefill_tokens_per_s: How fast it reads a prompt.
        decode_tokens_per_s: How fast it writes.
        constant_s: What its TTFT has besides, however short the prompt.
        energy: What a token of each phase takes (joules).
        source: Where the figures come from.
    """

    name: str
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    constant_s: float
    energy: Energy
    source: str


def device_named(text: str) -> Device:
    """A device by its name, or one of a given speed.

    Args:
        text: A name in `DEVICES`, or `K_PER_S,DECODE_PER_S`: prompt tokens read and tokens written a second.

    Raises:
        ConfigError: It is neither.
    """
    if text in DEVICES:
        return DEVICES[text]
    if "," not in text:
        hint = suggest(text, DEVICES)
        raise ConfigError(f"--device {text!r}: no such device, nor two speeds as in 31.3,13.9; {hint}")
    speeds = [_speed(part) for part in text.split(",")]
    if len(speeds) != 2 or not all(speeds):
        raise ConfigError(
            f"--device {text!r}: must be two numbers above zero, tokens read and written a second, "
            "as in 31.3,13.9"
        )
    prefill, decode = speeds
    return Device(text, prefill, decode, 0.0, _drawing(BUSY_W, prefill, decode), OF_GIVEN_SPEED)


def _speed(text: str) -> float:
    """0 where it is none."""
    try:
        speed = float(text)
    except ValueError:
        return 0.0
    return speed if 0.0 < speed < math.inf else 0.0


def _drawing(watts: float, prefill_tokens_per_s: float, decode_tokens_per_s: float) -> Energy:
    """The energy of a device that draws so much while it works."""
    return Energy(watts / prefill_tokens_per_s, watts / decode_tokens_per_s)


DEVICES = {
    device.name: device
    for device in (
        Device("pixel-7-pro-bloom-1.1b", 31.32, 13.93, 0.0, energy_of(BLOOM_1B1), EDGE_FM),
        Device("pixel-7-pro-bloom-560m", 51.80, 20.14, 0.0, energy_of(BLOOM_560M), EDGE_FM),
        Device("xiaomi-14-qwen1.5-0.5b", 79.99, 21.47, 0.0, energy_of(QWEN_0B5), EDGE_FM),
        Device("macbook-m4-qwen2.5-1.5b", 646.8, 48.26, 0.0, _drawing(10.5, 646.8, 48.26), EDGE_LLM_BENCH),
        Device(
            "snapdragon-8-elite-npu-llama-3.2-3b",
            BLOCK_TOKENS / BLOCK_S,
            23.47,
            (BLOCK_TOKENS - 1) / 2 * BLOCK_S / BLOCK_TOKENS,
            Energy(1.10 * BLOCK_S / BLOCK_TOKENS, 0.086),
            AI_HUB,
        ),
    )
}
"""The three of the paper, a laptop, and the neural processor of a phone."""
