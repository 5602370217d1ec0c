"""`disco evaluate`: the paper's evaluation on recorded servers, and what goes past it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from discostream.cli.screen import count_bar, output
from discostream.errors import ConfigError
from discostream.sim.evaluate import crew_of, evaluate, grid_of
from discostream.sim.grid import Constraint
from discostream.sim.page import require_plotly
from discostream.sim.report import sheets
from discostream.sim.report.files import FILES, write_report
from discostream.sim.report.findings import Findings

__all__ = ["as_json", "evaluate_all", "show"]

BOTH = "both"


def evaluate_all(
    *,
    constraint: str,
    shares: str,
    policies: str,
    out: Path,
    jobs: int | None,
    ray: str | None,
    **chosen: Any,
) -> Findings:
    """Evaluate what the options name, with a bar on stderr, and write the report.

    Args:
        constraint: A kind, or both of them.
        shares: Of prompt tokens, with commas between.
        policies: Names, with commas between.
        out: The folder for cells and report.
        jobs: How many workers; one for each core if left out.
        ray: The address of a cluster that works instead.
        chosen: What else a grid is made of; see `grid_of`.

    Raises:
        ConfigError: Naming the option that is wrong, its value, and what would be right.
    """
    require_plotly("disco evaluate")
    grid, traces = grid_of(
        constraints=_constraints(constraint),
        shares=[_number(part) for part in shares.split(",")],
        policies=[part.strip() for part in policies.split(",")],
        **chosen,
    )
    cells = sum(map(len, grid.tasks()))
    with crew_of(jobs, ray) as crew, count_bar("Cells", cells) as told:
        evaluation = evaluate(grid, traces, out, crew, told)
    return write_report(evaluation, out)


def as_json(findings: Findings, out: Path) -> dict[str, Any]:
    """Where everything is, and what it comes to."""
    return {
        "files": [str(out / name) for name in FILES],
        "cells": sum(map(len, findings.grid.tasks())),
        "lost": sheets.lost(findings),
        "in_brief": sheets.headlines(findings),
    }


def show(findings: Findings, out: Path) -> None:
    """What it comes to, and where the rest is."""
    for sentence in sheets.headlines(findings):
        output.print(f"- {sentence}")
    for told in sheets.lost(findings):
        output.print(f"Nothing came of {told}")
    output.print(f"Open {out / FILES[0]}; the figures are in {', '.join(FILES[1:])} beside it.")


def _constraints(text: str) -> Sequence[Constraint]:
    kinds: tuple[Constraint, ...] = get_args(Constraint)
    chosen = kinds if text == BOTH else tuple(kind for kind in kinds if kind == text)
    if not chosen:
        raise ConfigError(f"--constraint {text!r}: must be {', '.join(kinds)} or {BOTH}")
    return chosen


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--share {text!r}: must be numbers from 0 to 1, with commas between") from None
