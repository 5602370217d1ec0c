"""How fast requests are simulated, and in how much memory.

    python benchmarks/simulate.py [--most 10000000] [--runs 5]

Every row is a process of its own: one policy on GPT-4o's trace, with the imports and the reading of the
trace left out of the time, and everything in the memory. Times are of one process on one core, the least,
the median and the most of the runs; the last column is the time a request takes compared with the first
row of its kind.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from msgspec.structs import replace

from discostream.sim.study import Case, judge
from discostream.sim.world import Handoff

CASE = Case(
    server_trace="builtin:gpt-4o",
    device="snapdragon-8-elite-npu-llama-3.2-3b",
    policy="disco",
    share=0.3,
    constraint="server",
)

KINDS = {
    "TTFT and cost": replace(CASE, handoff=Handoff.OFF),
    "with migration and pacing": replace(CASE, constraint="device", share=1.0),
    "with contention": replace(CASE, arrivals="poisson:0.2", device_slots=1),
}
"""What is simulated; in the second, both race, and what a device wins moves, its energy being dear."""

SIZES = {
    "TTFT and cost": (100_000, 1_000_000, 10_000_000),
    "with migration and pacing": (100_000, 1_000_000, 10_000_000),
    "with contention": (10_000, 100_000),
}

LIMITS_S = {
    ("TTFT and cost", 1_000_000): 1.5,
    ("with migration and pacing", 1_000_000): 8.0,
    ("with contention", 100_000): 5.0,
}


@dataclass(frozen=True)
class Run:
    """One process: seconds, and the most memory it held (GB)."""

    took_s: float
    memory_gb: float
    migrated_share: float


def run_here(kind: str, requests: int) -> None:
    """Simulate once, and print what it took."""
    judge(replace(KINDS[kind], requests=100))
    began = time.perf_counter()
    figures, _ = judge(replace(KINDS[kind], requests=requests))
    took_s = time.perf_counter() - began
    print(took_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, figures.migrated_share)


def run(kind: str, requests: int) -> Run:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--only", kind, "--requests", str(requests)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Run(*map(float, told.split()))


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000_000, help="the most requests of a row")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.only:
        run_here(chosen.only, chosen.requests)
        return
    print(f"Python {platform.python_version()}, NumPy {version('numpy')}, {platform.processor() or 'CPU'}\n")
    columns = (
        "what",
        "requests",
        "least s",
        "median s",
        "most s",
        "limit s",
        "GB",
        "moved",
        "us each",
        "ratio",
    )
    print(f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
    for kind, sizes in SIZES.items():
        first_s = None
        for requests in (size for size in sizes if size <= chosen.most):
            runs = [run(kind, requests) for _ in range(chosen.runs)]
            times = np.array([each.took_s for each in runs])
            each_s = float(np.median(times)) / requests
            first_s = first_s or each_s
            limit = LIMITS_S.get((kind, requests))
            cells = (
                *(kind, f"{requests:,}", *(f"{s:.2f}" for s in (times.min(), np.median(times), times.max()))),
                *(
                    limit or "",
                    f"{max(each.memory_gb for each in runs):.2f}",
                    f"{runs[0].migrated_share:.0%}",
                ),
                *(f"{1e6 * each_s:.2f}", f"{each_s / first_s:.2f}"),
            )
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
