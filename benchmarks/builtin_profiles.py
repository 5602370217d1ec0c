"""Make the quantile tables in `src/discostream/builtin` from recorded traces.

    python benchmarks/builtin_profiles.py --data ../shared/data

Each folder of the data holds a SOURCE.md with its origin, licence and caveats. The tables are rounded to
0.1 ms and 0.1 tokens. Their knots lie dense in the tail, where a server's TTFT has most of its mean.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
BUILTIN = ROOT / "src" / "discostream" / "builtin"

PROBABILITIES = (
    *(0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.985),
    *(0.99, 0.9925, 0.995, 0.996, 0.997, 0.998, 0.999, 0.9995, 0.9999, 1.0),
)

WHISPER_LEAK = (
    "whisper_leak (github.com/MatthewELucio/whisper_leak_data_privacy, commit de31073, MIT, copyright 2025 "
    "Jonathan Bar Or), {series}: short questions, March 2025, a client's packet capture. TTFT is without TCP "
    "and TLS set-up; failed requests were not kept."
)
COUNTED = " Tokens are content events, which are close to tokens."
FROM_CHARACTERS = " Pace from characters, at the {chars:.2f} a token of GPT-4o in the same collection."
LLMPERF = (
    "LLMPerf leaderboard (github.com/ray-project/llmperf-leaderboard, commit 27aa9b6, Apache-2.0, Anyscale), "
    "{series}: December 2023, five requests at a time, prompts of 550 tokens. Cold starts included, failures "
    "left out."
)
AZURE = (
    "Azure LLM inference trace 2023 (github.com/Azure/AzurePublicDataset, commit b469a11, CC-BY 4.0; Patel "
    "et al., Splitwise, ISCA 2024), conversation: ContextTokens, history included."
)

Floats = NDArray[np.float64]


def ttft_tables(data: Path) -> dict[str, Any]:
    """The content of `ttft.json`: TTFT, answer lengths and decode pace of six services."""
    return {
        "probabilities": list(PROBABILITIES),
        "profiles": {
            "gpt-4o": _counted(data, "GPT4o"),
            "azure-gpt-4o": _counted(data, "AzureGPT4o"),
            "claude-haiku": _uncounted(data, "ClaudeHaikuOpenRouter"),
            "gemini-flash": _uncounted(data, "GeminiFlash"),
            "llama-2-70b-replicate": _llmperf(data, "replicate_70b"),
            "llama-2-13b-together": _llmperf(data, "together_13b"),
        },
    }


def prompt_length_tables(data: Path) -> dict[str, Any]:
    """The content of `prompt_lengths.json`."""
    rows = _rows(data / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv.gz")
    tokens = np.array([float(row["ContextTokens"]) for row in rows])
    return {
        "probabilities": list(PROBABILITIES),
        "tokens": _quantiles(tokens, 1),
        "samples": tokens.size,
        "source": AZURE,
    }


def _counted(data: Path, series: str) -> dict[str, Any]:
    columns = _whisper_leak(data, series)
    tokens = columns["response_chunks"]
    return _profile(
        columns["ttft_s"],
        tokens / columns["decode_s"],
        WHISPER_LEAK.format(series=series) + COUNTED,
        output_tokens=tokens,
    )


def _uncounted(data: Path, series: str) -> dict[str, Any]:
    columns = _whisper_leak(data, series)
    reference = _whisper_leak(data, "GPT4o")
    chars_per_token = float(np.median(reference["response_chars"] / reference["response_chunks"]))
    return _profile(
        columns["ttft_s"],
        columns["response_chars"] / chars_per_token / columns["decode_s"],
        WHISPER_LEAK.format(series=series) + FROM_CHARACTERS.format(chars=chars_per_token),
    )


def _llmperf(data: Path, series: str) -> dict[str, Any]:
    rows = json.loads((data / "llmperf" / f"{series}.json").read_text())
    usable = [row for row in rows if row["error_code"] in (None, -100)]  # -100: shorter than asked
    ttft = _column(usable, "ttft_s")
    decode = _column(usable, "end_to_end_latency_s") - ttft
    tokens = _column(usable, "number_output_tokens")
    return _profile(ttft, (tokens - 1) / decode, LLMPERF.format(series=series))


def _profile(ttft: Floats, pace: Floats, source: str, output_tokens: Floats | None = None) -> dict[str, Any]:
    return {
        "ttft_s": _quantiles(ttft, 4),
        "output_tokens": None if output_tokens is None else _quantiles(output_tokens, 1),
        "tokens_per_s": round(float(np.median(pace)), 1),
        "samples": ttft.size,
        "source": source,
    }


def _whisper_leak(data: Path, series: str) -> dict[str, Floats]:
    rows = list(_rows(data / "whisper-leak" / f"requests-{series}.csv.gz"))
    ttft = _column(rows, "ttft_ms") / 1000
    return {
        "ttft_s": ttft,
        "decode_s": _column(rows, "total_ms") / 1000 - ttft,
        "response_chars": _column(rows, "response_chars"),
        "response_chunks": _column(rows, "response_chunks"),
    }


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as lines:
        yield from csv.DictReader(lines)


def _column(rows: list[dict[str, Any]], name: str) -> Floats:
    return np.array([float("nan" if row[name] == "" else row[name]) for row in rows])


def _quantiles(samples: Floats, decimals: int) -> list[float]:
    return [round(value, decimals) for value in np.quantile(samples, PROBABILITIES).tolist()]


def main() -> None:
    """Write both tables and say what they hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=BUILTIN)
    chosen = parser.parse_args()
    ttft = ttft_tables(chosen.data)
    for name, tables in (("ttft.json", ttft), ("prompt_lengths.json", prompt_length_tables(chosen.data))):
        (chosen.out / name).write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
    for name, profile in ttft["profiles"].items():
        print(f"{name:24}{_summary(profile)}")


def _summary(profile: dict[str, Any]) -> str:
    quantile = dict(zip(PROBABILITIES, profile["ttft_s"], strict=True))
    return (
        f"{profile['samples']:6} requests, TTFT p50 {quantile[0.5]:.3f} s, p99 {quantile[0.99]:.3f} s, "
        f"{profile['tokens_per_s']} tokens/s"
    )


if __name__ == "__main__":
    main()
