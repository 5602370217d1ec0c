"""How long the dashboard's questions take on 100,000 requests over 30 days, and what they hold up.

A gateway is asked over HTTP while its event loop ticks; the longest tick says how long a running answer would
have waited for a question. Processor time is that of client and gateway together. Run it alone on a machine:

    python benchmarks/dashboard.py [--json] [--runs 30] [--requests 100000] [--ledger FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import anyio

from discostream.config import Settings, settings_from
from discostream.gateway.app import serve
from discostream.ledger.store import Ledger
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

DAYS = 30
AT_A_TIME = 1000
"""Requests that are recorded together, so that making a ledger takes no longer than it has to."""
TICK_S = 0.005
OVERVIEW, REQUESTS = "/dashboard/api/overview", "/dashboard/api/requests"
QUESTIONS = {
    "overview of everything": (f"{OVERVIEW}?since=all", 400.0),
    "overview of a day": (f"{OVERVIEW}?since=1d", None),
    "overview of an hour": (OVERVIEW, None),
    "overview of everything under one policy": (f"{OVERVIEW}?since=all&policy=disco", None),
    "the latest 50 requests": (f"{REQUESTS}?since=all", 30.0),
    "50 requests from the middle": (f"{REQUESTS}?since=all&before=50000", 30.0),
    "the latest 50 that failed": (f"{REQUESTS}?since=all&outcome=failed", 30.0),
    "requests of an endpoint that never was": (f"{REQUESTS}?since=all&endpoint=nobody", None),
}
"""What is asked, and how many milliseconds it may take."""


@dataclass(frozen=True)
class Row:
    """One question: the least, the median and the most of its runs, and what it has to stay under.

    Attributes:
        cpu_ms: The least processor time of a run, which other work on the machine adds little to.
        longest_tick_ms: By how much the event loop was late, at most.
    """

    what: str
    least_ms: float
    median_ms: float
    most_ms: float
    limit_ms: float | None
    cpu_ms: float
    longest_tick_ms: float


def main() -> None:
    """Make a ledger, unless there is one, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--ledger", type=Path, help="keeps it, and takes it again if it is there")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ledger = chosen.ledger or Path(folder, "ledger.db")
        if not ledger.exists():
            anyio.run(fill, ledger, chosen.requests)
        rows = anyio.run(measure, ledger, chosen.runs)
    print(as_json(rows) if chosen.json else as_table(rows))


async def fill(path: Path, requests: int) -> None:
    """A ledger of so many requests, evenly over the last days, by the ledger's own writer."""
    rng, span_s = random.Random(1), DAYS * 86_400.0
    began_s = time.time() - span_s
    with Ledger(path) as ledger:
        for first in range(0, requests, AT_A_TIME):
            async with anyio.create_task_group() as tasks:
                for number in range(first, min(first + AT_A_TIME, requests)):
                    at_s = began_s + span_s * (number + rng.random()) / requests
                    tasks.start_soon(ledger.record, raced(rng), at_s)


def raced(rng: random.Random) -> Outcome:
    """A request for which two endpoints raced; one in five answers moved, one in fifty failed."""
    waits_s = {"laptop": rng.lognormvariate(-1.0, 0.4), "cloud": rng.lognormvariate(-1.0, 0.8)}
    winner = min(waits_s, key=lambda name: waits_s[name])
    ttft_s, prompt, answer = waits_s[winner], rng.randrange(20, 2000), rng.randrange(10, 400)
    failed = rng.random() < 0.02
    return Outcome(
        request_id=f"{rng.getrandbits(128):032x}",
        policy=rng.choice(["optimal", "optimal, private", "disco", "fast"]),
        winner=None if failed else winner,
        ttft_s=None if failed else ttft_s,
        finish_reason=None if failed else FinishReason.STOP,
        prompt_chars=4 * prompt,
        prompt_tokens=prompt,
        completion_tokens=0 if failed else answer,
        attempts=tuple(
            Attempt(
                endpoint=name,
                kind=Kind.DEVICE if name == "laptop" else Kind.SERVER,
                start_offset_s=0.001,
                ttft_s=ttft_s if name == winner and not failed else None,
                prompt_tokens=prompt,
                completion_tokens=answer if name == winner else 0,
                usd=0.0 if name == "laptop" else 2.5e-6 * prompt,
                joules=0.1 * prompt if name == "laptop" else 0.0,
                outcome=outcome_of(name == winner, failed),
                ran_s=ttft_s + (0.02 * answer if name == winner else 0.0),
                identity="0123456789ab",
            )
            for name in waits_s
        ),
        migrations=tuple(moves(winner, rng)) if not failed and rng.random() < 0.2 else (),
        delivered_s=() if failed else tuple(ttft_s + 0.02 * token for token in range(20)),
        error="cloud: 503 Service Unavailable" if failed else None,
        stayed="no other endpoint could go on with it at a lower price",
    )


def outcome_of(won: bool, failed: bool) -> AttemptOutcome:
    """What became of one of two attempts."""
    if failed:
        return AttemptOutcome.FAILED
    return AttemptOutcome.WON if won else AttemptOutcome.LOST


def moves(winner: str, rng: random.Random) -> Iterator[Migration]:
    """One handoff to whoever had lost, one in five of them a rescue."""
    yield Migration(
        source=winner,
        target="cloud" if winner == "laptop" else "laptop",
        at_token=5,
        at_char=21,
        reason=MigrationReason.RESCUE if rng.random() < 0.2 else MigrationReason.COST,
        gap_s=0.12,
        by=Carrier.TEXT,
        why="saves $0.0004",
        at_s=0.5,
    )


async def measure(ledger: Path, runs: int) -> list[Row]:
    """Ask a gateway on this ledger each of the questions so often, and twice before."""
    async with anyio.create_task_group() as tasks, aiohttp.ClientSession() as session:
        root = (await tasks.start(serve, settings(ledger))).removesuffix("/v1")
        rows = []
        for what, (question, limit_ms) in QUESTIONS.items():
            spans_ms, cpu_ms, ticks_ms = [], [], [0.0]
            async with anyio.create_task_group() as ticking:
                ticking.start_soon(tick, ticks_ms)
                for run in range(runs + 2):
                    began, began_cpu = time.perf_counter(), time.process_time()
                    async with session.get(root + question) as response:
                        assert response.status == 200
                        await response.read()
                    if run >= 2:
                        spans_ms.append(1e3 * (time.perf_counter() - began))
                        cpu_ms.append(1e3 * (time.process_time() - began_cpu))
                ticking.cancel_scope.cancel()
            figures = min(spans_ms), statistics.median(spans_ms), max(spans_ms)
            rows.append(Row(what, *figures, limit_ms, min(cpu_ms), max(ticks_ms)))
        tasks.cancel_scope.cancel()
    return rows


def settings(ledger: Path) -> Settings:
    """A gateway on a free port; nothing is asked of its endpoint."""
    endpoint = {"name": "laptop", "kind": "device", "dialect": "scripted"}
    return settings_from({"endpoint": [endpoint], "gateway": {"port": 0}, "ledger": {"path": str(ledger)}})


async def tick(ticks_ms: list[float]) -> None:
    """Note by how much each tick of the event loop came too late."""
    while True:
        due = time.perf_counter() + TICK_S
        await anyio.sleep(TICK_S)
        ticks_ms.append(1e3 * (time.perf_counter() - due))


def machine() -> dict[str, str | int | None]:
    """Where this was measured, and with what."""
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def as_table(rows: list[Row]) -> str:
    """The figures for people."""
    lines = [", ".join(f"{name} {value}" for name, value in machine().items())]
    lines.append(f"{'ms':46}{'least':>8}{'median':>8}{'most':>8}{'limit':>8}{'cpu':>8}{'longest tick':>14}")
    for row in rows:
        limit = "" if row.limit_ms is None else f"{row.limit_ms:g}"
        figures = "".join(f"{figure:>8.1f}" for figure in (row.least_ms, row.median_ms, row.most_ms))
        lines.append(f"{row.what:46}{figures}{limit:>8}{row.cpu_ms:>8.1f}{row.longest_tick_ms:>14.1f}")
    return "\n".join(lines)


def as_json(rows: list[Row]) -> str:
    """The figures for programs."""
    return json.dumps({**machine(), "rows": [asdict(row) for row in rows]}, indent=2)


if __name__ == "__main__":
    main()
