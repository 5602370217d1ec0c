"""What planning costs: the paper's tables, the programme, a look-up, and memory over a million observations.

The paper plans from 100,000 samples in 9.08 ms (DiSCo-S) and 14.86 ms (DiSCo-D); sorting them is part of it
here. Run it alone on the machine:

    python benchmarks/plan.py [--json] [--runs 50] [--observations 1000000]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version

import numpy as np
import psutil

from discostream.builtin import builtin_output_lengths, builtin_profiles, builtin_prompt_lengths
from discostream.config import PolicySettings
from discostream.core.budget import Allowance, Resource
from discostream.core.cost import Energy, Prices, Rates
from discostream.core.distributions import Distribution
from discostream.core.optimal import _actions, _Buckets, _Columns, solve
from discostream.core.policies import disco_d, disco_s
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.types import Kind

SAMPLES = 100_000
SHARE, ALPHA = 0.3, 0.05
LOOK_UPS = 100_000
AT_A_TIME = 1000
"""Observations that are drawn together, so that the draws take no room worth mentioning."""


@dataclass(frozen=True)
class Row:
    """One thing measured: the least, the median and the most of its runs, and what it has to stay under."""

    what: str
    unit: str
    least: float
    median: float
    most: float
    limit: float | None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--observations", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rows = [*tables(chosen.runs), *programmes(chosen.runs), look_up(), *memory(chosen.observations)]
    print(as_json(rows) if chosen.json else as_table(rows))


def tables(runs: int) -> list[Row]:
    """DiSCo's tables from 100,000 samples in the order they came in."""
    rng = np.random.default_rng(1)
    lengths = np.maximum(np.rint(rng.lognormal(4.5, 1.0, SAMPLES)), 1.0)
    ttft_s = builtin_profiles()["gpt-4o"].ttft.sample(rng, SAMPLES)
    return [
        timed(f"DiSCo-S from {SAMPLES:,} prompts", 9.08, runs, lambda: disco_s(np.sort(lengths), SHARE)),
        timed(
            f"DiSCo-D from {SAMPLES:,} prompts and as many TTFTs",
            14.86,
            runs,
            lambda: disco_d(np.sort(lengths), Distribution.of_samples(np.sort(ttft_s)), SHARE, ALPHA),
        ),
    ]


def programmes(runs: int) -> list[Row]:
    """The programme from profiles to table: actions, coefficients, the solver, and the forecast.

    What it must do in 60 ms is 60 buckets x 120 actions; the first two rows are that size and larger.
    """
    situations = (
        ("two budgets on a server, a device beside it", 60.0, known_of(1, money(1e-3), tokens(0.2628))),
        ("a budget on a device, one on a server", 60.0, known_of(1, battery(250.0), money(4.4e-3))),
        ("a budget on a device, one on three servers", None, known_of(3, battery(40.0), money(2e-3))),
    )
    rows = []
    for what, limit, known in situations:
        columns = _Columns.of(known, known.allowances, hedge=True)
        buckets = _Buckets.of(known.prompt_tokens.samples)
        size = f"{buckets.share.size} buckets x {len(_actions(columns, buckets))} actions"
        rows.append(timed(f"programme, {what}: {size}", limit, runs, partial(solve, known, PolicySettings())))
    return rows


def battery(joules: float) -> Allowance:
    """Joules a request."""
    return Allowance("battery", Resource.JOULES, None, joules)


def money(usd: float) -> Allowance:
    """Dollars a request."""
    return Allowance("money", Resource.USD, None, usd)


def tokens(share: float) -> Allowance:
    """A share of all prompt tokens for the servers."""
    return Allowance("tokens", Resource.SHARE, Kind.SERVER, share)


def known_of(servers: int, *budgets: Allowance) -> Known:
    """A device and some of the built-in services, each cheaper than the one before.

    Args:
        servers: How many.
        budgets: All are used up by the best plan, in each of the situations above.
    """
    device = EndpointProfile(
        "device",
        Kind.DEVICE,
        Rates(0, 0),
        DeviceTtft.believed(1 / 80, 0.1, 0.05),
        21.0,
        energy=Energy(0.3, 1.0),
    )
    services = list(builtin_profiles().values())[:servers]
    return Known(
        (
            device,
            *(
                EndpointProfile(
                    service.name,
                    Kind.SERVER,
                    Rates(0, 0),
                    ServerTtft(service.ttft),
                    50.0,
                    Prices(2.5 / rank, 10.0 / rank),
                )
                for rank, service in enumerate(services, start=1)
            ),
        ),
        Lengths(builtin_prompt_lengths()),
        Lengths(builtin_output_lengths()),
        budgets,
    )


def look_up() -> Row:
    """`PlanTable.choose` for one request, each timed by itself."""
    table = solve(known_of(1, battery(250.0), money(4.4e-3)), PolicySettings()).table
    rng = np.random.default_rng(2)
    tokens, draws = rng.lognormal(6.0, 1.5, LOOK_UPS).tolist(), rng.random(LOOK_UPS).tolist()
    spans = np.empty(LOOK_UPS)
    table.choose(1.0, 0.0)
    for index, (length, draw) in enumerate(zip(tokens, draws, strict=True)):
        began = time.perf_counter_ns()
        table.choose(length, draw)
        spans[index] = time.perf_counter_ns() - began
    middle, slow, slowest = np.quantile(spans / 1e3, [0.5, 0.99, 1.0]).tolist()
    return Row(f"look-up of {LOOK_UPS:,} plans: median, P99, slowest", "us", middle, slow, slowest, 20.0)


def memory(observations: int) -> list[Row]:
    """How much the process grows over a million observations of a server, a device and the lengths."""
    rng, process = np.random.default_rng(3), psutil.Process()
    server, device = ServerTtft(builtin_profiles()["gpt-4o"].ttft), DeviceTtft.believed(0.01, 0.1, 0.05)
    lengths = Lengths(builtin_prompt_lengths())
    held, began = [], time.perf_counter()
    for first in range(0, observations, AT_A_TIME):
        tokens = np.maximum(rng.lognormal(5.0, 1.0, AT_A_TIME), 1.0).astype(int).tolist()
        spans = rng.lognormal(-1.0, 0.4, AT_A_TIME).tolist()
        for index, (length, span) in enumerate(zip(tokens, spans, strict=True), start=first):
            server = server.observe(span, float(index), censored=index % 3 == 0)
            device = device.observe(length, 0.01 * length + span / 10)
            lengths = lengths.observe(length, float(index))
        held.append(process.memory_info().rss / 2**20)
    us = 1e6 * (time.perf_counter() - began) / observations
    settled = held[len(held) // 10 :]
    growth = [each - settled[0] for each in settled]
    name = f"growth in the last nine tenths of {observations:,} observations: least, at the end, most"
    return [
        Row(name, "MB", min(growth), growth[-1], max(growth), 2.0),
        Row("one observation of all three: mean", "us", us, us, us, None),
    ]


def timed(what: str, limit: float | None, runs: int, work: Callable[[], object]) -> Row:
    """Run the work so often, and three times before."""
    spans = []
    for run in range(runs + 3):
        began = time.perf_counter()
        work()
        spans += [1e3 * (time.perf_counter() - began)] if run >= 3 else []
    return Row(what, "ms", min(spans), statistics.median(spans), max(spans), limit)


def machine() -> dict[str, str | int | None]:
    """Where this was measured, and with what."""
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "highspy": version("highspy"),
    }


def as_table(rows: list[Row]) -> str:
    """The figures for people."""
    lines = [", ".join(f"{name} {value}" for name, value in machine().items())]
    lines.append(f"{'':92}{'least':>10}{'median':>10}{'most':>10}{'limit':>10}")
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:g}"
        figures = "".join(f"{figure:>10.2f}" for figure in (row.least, row.median, row.most))
        lines.append(f"{f'{row.what}, {row.unit}':92}{figures}{limit:>10}")
    return "\n".join(lines)


def as_json(rows: list[Row]) -> str:
    """The figures for programs."""
    return json.dumps({**machine(), "rows": [asdict(row) for row in rows]}, indent=2)


if __name__ == "__main__":
    main()
