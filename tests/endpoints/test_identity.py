"""What makes an endpoint another one, so that what was learnt of it no longer holds."""

from __future__ import annotations

from typing import Any

import pytest

from discostream.config import EndpointSettings
from discostream.endpoints.base import Endpoint
from discostream.endpoints.registry import build_endpoint
from discostream.types import Kind

CLOUD = {"dialect": "openai", "kind": Kind.SERVER, "model": "big", "base_url": "http://127.0.0.1:9/v1"}
LAPTOP = {"dialect": "llamacpp", "kind": Kind.DEVICE, "model": "smollm2-135m-instruct", "threads": 2}
EMULATED = {"dialect": "emulated", "kind": Kind.SERVER, "around": "scripted", "ttft": "gpt-4o", "seed": 1}

PRICED = {"prompt_usd_per_mtok": 0.0, "completion_usd_per_mtok": 0.0}


def build(name: str = "e", **keys: Any) -> Endpoint:
    common = {key: keys.pop(key) for key in list(keys) if key in EndpointSettings.__struct_fields__}
    return build_endpoint(EndpointSettings(name=name, **PRICED | common, options=keys))


@pytest.mark.parametrize(
    ("endpoint", "change"),
    [
        (CLOUD, {"model": "bigger"}),
        (CLOUD, {"base_url": "http://127.0.0.1:10/v1"}),
        (CLOUD, {"kind": Kind.DEVICE}),
        (CLOUD, {"dialect": "llamacpp", "model": "big"}),
        (LAPTOP, {"threads": 1}),
        (LAPTOP, {"slots": 1}),
        (EMULATED, {"ttft": "azure-gpt-4o"}),
        (EMULATED, {"inner": {"ttft_s": 0.5}}),
    ],
)
def test_what_decides_its_speed_makes_another_endpoint(endpoint, change):
    """Another kind, dialect, model or address, other threads or delays: what was learnt no longer holds."""
    assert build(**endpoint).identity != build(**endpoint | change).identity


@pytest.mark.parametrize(
    ("endpoint", "change"),
    [
        (CLOUD, {"prompt_usd_per_mtok": 7.0}),
        (CLOUD, {"read_timeout_s": 9.0, "continuation": "prefix", "include_usage": False}),
        (LAPTOP, {"context_tokens": 2048, "decode_joules_per_token": 0.5}),
        (LAPTOP, {"slots": 2}),
        (EMULATED, {"seed": 2}),
    ],
)
def test_prices_patience_and_names_do_not(endpoint, change):
    """What has no bearing on speed may change, as may the name; a default may be stated or left out."""
    assert build(**endpoint).identity == build("other", **endpoint | change).identity


def test_slots_are_known_where_we_run_the_engine():
    """The embedded engine has those of its settings; a server, emulated or real, is not counted."""
    assert build(**LAPTOP, slots=3).slots == 3
    assert build(**CLOUD).slots is None
    around = {"dialect": "emulated", "model": LAPTOP["model"], "inner": {"slots": 3}}
    assert build(**around, kind=Kind.SERVER).slots is None
    assert build(**around, kind=Kind.DEVICE).slots == 3
