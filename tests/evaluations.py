"""Small evaluations for tests, and workers that behave as told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from discostream.sim.cells import AnyCell, Cell, Drift, Lost, Outcome
from discostream.sim.crews import Task
from discostream.sim.evaluate import work
from discostream.sim.grid import Grid

__all__ = ["DEADLY", "Here", "a_grid", "die_on_the_deadly", "do_nothing", "say_much"]

DEADLY = 13, 0.3
"""The seed and the share of cells that kill their worker, if they are told to."""


def a_grid(**fields: Any) -> Grid:
    """Some forty cells of every kind."""
    given: dict[str, Any] = {
        "server_traces": ("builtin:gpt-4o",),
        "lasting": ("builtin:gpt-4o",),
        "devices": ("xiaomi-14-qwen1.5-0.5b",),
        "constraints": ("device",),
        "shares": (0.3, 0.9),
        "policies": ("server-only", "device-only", "stochastic", "disco", "optimal"),
        "seeds": 1,
        "requests": 200,
        "workload": "builtin:chat",
    }
    return Grid(**{**given, **fields})


class Here:
    """Works in this process.

    Attributes:
        done: The cells of every task that it did.
    """

    def __init__(self) -> None:
        self.done: list[AnyCell] = []

    def run(
        self, tasks: Iterable[Task], at_once: int | None = None
    ) -> Iterator[tuple[Task, Sequence[Outcome] | None]]:
        for task in tasks:
            self.done += task
            yield task, work(task)


def do_nothing(task: Task) -> list[Outcome]:
    """Every cell comes to nothing."""
    return [_nothing(cell) for cell in task]


def die_on_the_deadly(task: Task) -> list[Outcome]:
    """The same, but for cells that no worker survives; each try leaves a file in the workload's folder."""
    for cell in task:
        if (cell.case.seed, cell.case.share) == DEADLY:
            (Path(cell.case.workload) / f"attempt-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return do_nothing(task)


def say_much(task: Task) -> list[Outcome]:
    """The same at such a length that no pipe holds it: a worker is busy with saying it until it is read."""
    return [Lost(cell=cell, reason="nothing was done" * 500_000) for cell in task]


def _nothing(cell: Cell | Drift) -> Lost:
    return Lost(cell=cell, reason="nothing was done")
