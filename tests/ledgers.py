"""Ledgers with known requests in them, written by the ledger itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from discostream.ledger.store import Ledger
from discostream.types import (
    PROBE,
    Attempt,
    AttemptOutcome,
    Carrier,
    FinishReason,
    Kind,
    Migration,
    MigrationReason,
    Outcome,
)


def attempt(endpoint: str, outcome: AttemptOutcome, **fields: Any) -> Attempt:
    """An attempt on a device called laptop or on a server called anything else."""
    usual: dict[str, Any] = {
        "kind": Kind.DEVICE if endpoint == "laptop" else Kind.SERVER,
        "start_offset_s": 0.0,
        "ttft_s": None,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "usd": 0.0,
        "joules": 0.0,
    }
    return Attempt(endpoint=endpoint, outcome=outcome, **usual | fields)


MOVED = Outcome(
    request_id="5eed0001cafe",
    policy="optimal",
    winner="laptop",
    ttft_s=0.25,
    finish_reason=FinishReason.STOP,
    prompt_chars=48,
    prompt_tokens=12,
    completion_tokens=30,
    attempts=(
        attempt(
            "laptop",
            AttemptOutcome.MIGRATED_FROM,
            ttft_s=0.25,
            prompt_tokens=12,
            completion_tokens=10,
            joules=1.5,
            ran_s=1.0,
            cached_tokens=7,
        ),
        attempt("cloud", AttemptOutcome.LOST, start_offset_s=0.125, prompt_tokens=12, usd=0.001, ran_s=0.125),
        attempt(
            "cloud",
            AttemptOutcome.MIGRATED_TO,
            start_offset_s=0.75,
            ttft_s=1.0,
            prompt_tokens=22,
            completion_tokens=20,
            usd=0.003,
            ran_s=1.25,
            ahead=1,
        ),
        attempt("spare", AttemptOutcome.NOT_STARTED, start_offset_s=1.5),
    ),
    migrations=(
        Migration(
            source="laptop",
            target="cloud",
            at_token=10,
            at_char=41,
            reason=MigrationReason.COST,
            gap_s=0.125,
            by=Carrier.TEXT,
            why="saves $0.0004",
            at_s=1.0,
        ),
    ),
    delivered_s=(0.25, 0.5, 1.0),
)
"""The laptop won and the cloud went on; two seconds, so that times fall on whole cells."""

RESCUED = replace(
    MOVED,
    request_id="5eed0002cafe",
    policy="optimal, private",
    attempts=(
        attempt(
            "laptop",
            AttemptOutcome.FAILED,
            ttft_s=0.75,
            joules=2.0,
            prompt_tokens=12,
            ran_s=1.0,
            error="laptop: the engine\n\x1b[31mdied",
        ),
        attempt("spare", AttemptOutcome.MIGRATED_TO, start_offset_s=1.0, ttft_s=1.5, usd=0.002, ran_s=1.0),
    ),
    migrations=(
        replace(
            MOVED.migrations[0], target="spare", reason=MigrationReason.RESCUE, why="it broke", at_s=None
        ),
    ),
    ttft_s=0.75,
    stayed="nothing is cheaper",
)
"""The laptop broke within its answer, and the spare went on."""

FAILED = replace(
    MOVED,
    request_id="5eed0003cafe",
    policy="disco",
    winner=None,
    ttft_s=None,
    finish_reason=None,
    completion_tokens=0,
    attempts=(attempt("cloud", AttemptOutcome.FAILED, error="cloud: 503"),),
    migrations=(),
    delivered_s=(),
    error="cloud: 503",
)
"""Nobody answered."""

LEFT = replace(
    FAILED,
    request_id="left",
    error=None,
    attempts=(attempt("laptop", AttemptOutcome.LOST, ran_s=0.1), attempt("cloud", AttemptOutcome.LOST)),
)
"""Its client did not wait."""

PROBED = replace(
    MOVED,
    request_id="probe",
    policy=PROBE,
    winner="spare",
    attempts=(attempt("spare", AttemptOutcome.WON, start_offset_s=0.5, ttft_s=1.0, usd=0.01, ran_s=1.0),),
    migrations=(),
)
"""No request: an endpoint was measured."""


def write_ledger(path: Path, settled: Iterable[tuple[float, Outcome]]) -> Path:
    """Record outcomes, each under its moment (seconds since the epoch)."""

    async def record() -> None:
        for at_s, outcome in settled:
            await ledger.record(outcome, at_s)

    with Ledger(path) as ledger:
        anyio.run(record)
    return path
