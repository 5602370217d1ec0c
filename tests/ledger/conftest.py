from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discostream.types import (
    Attempt,
    AttemptOutcome,
    Carrier,
    FinishReason,
    Kind,
    Migration,
    MigrationReason,
    Outcome,
)

RACE = Outcome(
    request_id="r-1",
    policy="disco",
    winner="laptop",
    ttft_s=0.25,
    finish_reason=FinishReason.STOP,
    prompt_chars=48,
    prompt_tokens=12,
    completion_tokens=3,
    attempts=(
        Attempt(
            endpoint="laptop",
            kind=Kind.DEVICE,
            start_offset_s=0.0,
            ttft_s=0.25,
            prompt_tokens=12,
            completion_tokens=2,
            usd=0.0,
            joules=1.5,
            outcome=AttemptOutcome.MIGRATED_FROM,
            mean_tbt_s=0.1,
            ran_s=0.75,
            cached_tokens=7,
            identity="1a97",
        ),
        Attempt(
            endpoint="cloud",
            kind=Kind.SERVER,
            start_offset_s=0.5,
            ttft_s=None,
            prompt_tokens=14,
            completion_tokens=1,
            usd=0.002,
            joules=0.0,
            outcome=AttemptOutcome.MIGRATED_TO,
            error="slow",
            dropped="it was late",
            ran_s=2.5,
            ahead=1,
            identity="c10d",
            ended_s=3.0,
            error_type="decode",
        ),
        Attempt(
            endpoint="spare",
            kind=Kind.SERVER,
            start_offset_s=2.0,
            ttft_s=None,
            prompt_tokens=0,
            completion_tokens=0,
            usd=0.0,
            joules=0.0,
            outcome=AttemptOutcome.NOT_STARTED,
        ),
    ),
    migrations=(
        Migration(
            source="laptop",
            target="cloud",
            at_token=2,
            at_char=9,
            reason=MigrationReason.COST,
            gap_s=0.4,
            by=Carrier.TEXT,
            why="cheaper there",
            at_s=0.75,
        ),
    ),
    delivered_s=(0.25, 0.35, 0.75),
)
"""A race that the laptop won and the cloud finished."""


@pytest.fixture
def outcome() -> Callable[..., Outcome]:
    """The outcome of a race, with any field changed."""

    def changed(**fields: Any) -> Outcome:
        return replace(RACE, **fields)

    return changed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ledger.db"
