"""Scripted endpoints to try gateways with: a device, a server that is quicker, and one that breaks."""

from __future__ import annotations

__all__ = ["CLOUD", "LAPTOP", "SHAKY", "WORDS"]

WORDS = [f"word{n}" for n in range(60)]

LAPTOP = {
    "name": "laptop",
    "kind": "device",
    "dialect": "scripted",
    "model": "small",
    "answer": " ".join(WORDS),
    "ttft_s": 0.1,
    "prefill_joules_per_token": 0.1,
    "decode_joules_per_token": 0.5,
}
CLOUD = {
    "name": "cloud",
    "kind": "server",
    "dialect": "scripted",
    "model": "big",
    "answer": " ".join(WORDS),
    "ttft_s": 0.03,
    "tbt_s": 0.005,
    "prompt_usd_per_mtok": 2.5,
    "completion_usd_per_mtok": 9.0,
}
SHAKY = {**CLOUD, "name": "shaky", "model": "worse", "ttft_s": 0.0, "breaks_after": 3}
