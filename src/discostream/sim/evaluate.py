"""An evaluation from beginning to end: what to compute, what of it is known, and who does the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from discostream.builtin import builtin_profiles
from discostream.core.plugins import load_policy
from discostream.errors import ConfigError
from discostream.sim.cells import AnyCell, Course, Lost, Outcome, Verdict, judge_together
from discostream.sim.crews import Crew, Task, outcomes_of, processes, ray_cluster
from discostream.sim.devices import DEVICES, device_named
from discostream.sim.grid import BASELINE, POLICIES, SHARES, Constraint, Grid
from discostream.sim.shelf import Shelf
from discostream.traces.servers import BUILTIN, ServerTrace, find_traces, read_trace
from discostream.traces.workloads import Workload, read_workload

__all__ = ["REQUESTS", "SEEDS", "Evaluation", "crew_of", "evaluate", "grid_of"]

SEEDS, REQUESTS = 4, 4000
"""Where nothing is said. The whole of a collection of 30 traces then takes some minutes on two cores."""

LASTING_REQUESTS = 500
"""A trace of fewer says too little of a tail to let it change within a day."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A grid and what its cells came to.

    Attributes:
        traces: By what the grid calls them.
        workload: Of all cells.
        found: By cell, but for those that were lost.
        lost: Cells that nothing came of, in the order of the grid.
    """

    grid: Grid
    traces: Mapping[str, ServerTrace]
    workload: Workload
    found: Mapping[AnyCell, Verdict | Course]
    lost: tuple[Lost, ...]


def grid_of(
    *,
    server_traces: Sequence[str] = (),
    data: Path | None = None,
    devices: Sequence[str] = (),
    constraints: Sequence[Constraint] = get_args(Constraint),
    shares: Sequence[float] = SHARES,
    policies: Sequence[str] = POLICIES,
    seeds: int = SEEDS,
    requests: int = REQUESTS,
    workload: str = "builtin:chat",
) -> tuple[Grid, dict[str, ServerTrace]]:
    """A grid in which everything exists, and its traces.

    Args:
        server_traces: See `read_trace`; with no `data` either, the built-in ones.
        data: A folder, all traces under which are taken too.
        devices: See `device_named`; all that have a name when left out.
        constraints: Kinds to hold back, one after the other.
        shares: b, in [0, 1], in any order.
        policies: Installed ones; the baseline is always among them.
        seeds: How many.
        requests: How many are judged in each cell.
        workload: See `read_workload`.

    Raises:
        ConfigError: Naming the field, the value and what would be right.
    """
    for name, count, least in (("seeds", seeds, 1), ("requests", requests, 100)):
        if count < least:
            raise ConfigError(f"--{name} {count}: must be at least {least}")
    for share in shares:
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"--share {share:g}: must lie between 0 and 1")
    for each in devices:
        device_named(each)
    for policy in policies:
        _require_policy(policy)
    if len(read_workload(workload)) < 2:
        raise ConfigError(f"--workload {workload}: has one request only; to plan and to judge takes two")
    sources = _sources(server_traces, data)
    traces = {source: _trace(source) for source in sources}
    grid = Grid(
        server_traces=tuple(sources),
        lasting=tuple(source for source, trace in traces.items() if len(trace) >= LASTING_REQUESTS),
        devices=tuple(dict.fromkeys(devices)) or tuple(DEVICES),
        constraints=tuple(dict.fromkeys(constraints)),
        shares=tuple(sorted(set(shares))),
        policies=tuple(dict.fromkeys((*policies, BASELINE))),
        seeds=seeds,
        requests=requests,
        workload=workload,
    )
    return grid, traces


def crew_of(jobs: int | None = None, ray: str | None = None) -> AbstractContextManager[Crew]:
    """Who computes.

    Args:
        jobs: How many workers on this machine; as many as it has cores when `None`.
        ray: The address of a Ray cluster that does it instead, or `local` to start one here.

    Raises:
        ConfigError: No worker at all, or Ray where it is not installed.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: must be at least 1")
    workers = jobs or os.cpu_count() or 1
    return processes(work, workers) if ray is None else ray_cluster(work, ray, workers)


def evaluate(
    grid: Grid,
    traces: Mapping[str, ServerTrace],
    folder: Path,
    crew: Crew,
    told: Callable[[int], None] = lambda known: None,
) -> Evaluation:
    """Compute what is not known yet; whatever is, is kept in the folder at once.

    Args:
        grid: What to look at.
        traces: What the grid calls them by.
        folder: Where cells are kept.
        crew: Who computes.
        told: Hears how many more cells are known, every now and then.

    Raises:
        ConfigError: The folder cannot be used.
    """
    tasks = grid.tasks()
    cells = [cell for task in tasks for cell in task]
    lost: dict[AnyCell, Lost] = {}
    with Shelf(folder) as shelf:
        found = shelf.find(cells)
        told(len(found))
        to_do = [left for task in tasks if (left := tuple(cell for cell in task if cell not in found))]
        with closing(outcomes_of(to_do, crew)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Lost):
                    lost[outcome.cell] = outcome
                else:
                    shelf.add(outcome)
                    found[outcome.cell] = outcome
                told(1)
        shelf.put_in_order()
    return Evaluation(
        grid=grid,
        traces=traces,
        workload=read_workload(grid.workload),
        found={cell: found[cell] for cell in cells if cell in found},
        lost=tuple(lost[cell] for cell in cells if cell in lost),
    )


def work(task: Task) -> list[Outcome]:
    """What a worker does with a task."""
    return list(judge_together(task))


def _sources(server_traces: Sequence[str], data: Path | None) -> list[str]:
    """What to read: what was named, and what lies in the folder."""
    if not server_traces and data is None:
        return [BUILTIN + name for name in builtin_profiles()]
    inside = [] if data is None else [str(path) for path in find_traces(data)]
    if data is not None and not inside:
        raise ConfigError(f"--data {data}: there is no server trace in it; docs/traces.md says what is one")
    return list(dict.fromkeys((*server_traces, *inside)))


def _trace(source: str) -> ServerTrace:
    trace = read_trace(source)
    if len(trace) < 2:
        raise ConfigError(f"--server-trace {source}: has one request only; to plan and to judge takes two")
    return trace


def _require_policy(name: str) -> None:
    if name == "offsets":
        raise ConfigError(f"--policy {name}: has offsets of its own and no share; choose others")
    load_policy(name)
