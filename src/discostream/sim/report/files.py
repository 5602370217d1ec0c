"""The files of a report: a page, the cells as CSV, the findings as JSON, and the tables as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import msgspec

from discostream.errors import ConfigError
from discostream.sim.cells import Course, Verdict
from discostream.sim.evaluate import Evaluation
from discostream.sim.figures import Figures
from discostream.sim.grid import ALONE, BASELINE
from discostream.sim.report import sheets
from discostream.sim.report.deduce import findings_of
from discostream.sim.report.findings import Findings
from discostream.sim.report.story import story
from discostream.sim.study import Case

__all__ = ["FILES", "write_report"]

FILES = PAGE, TABLE, DATA, SUMMARY = "report.html", "results.csv", "results.json", "summary.md"


def write_report(evaluation: Evaluation, folder: Path) -> Findings:
    """Write all files; equal evaluations give equal bytes.

    Raises:
        ConfigError: One cannot be written.
    """
    findings = findings_of(evaluation)
    contents = {
        PAGE: story(findings).encode(),
        TABLE: as_csv(evaluation).encode(),
        DATA: msgspec.json.format(msgspec.json.encode(findings), indent=1) + b"\n",
        SUMMARY: as_markdown(findings).encode(),
    }
    for name, content in contents.items():
        try:
            (folder / name).write_bytes(content)
        except OSError as error:
            raise ConfigError(f"--out {folder / name}: cannot be written: {error.strerror}") from None
    return findings


def as_csv(evaluation: Evaluation) -> str:
    """A line for each cell: what it was, and what it came to; days with a slow server are told as a whole."""
    of_cell = ("waits", "follows", "slower")
    of_case = [name for name in Case.__struct_fields__ if name not in Figures.__struct_fields__]
    of_figures = Figures.__struct_fields__
    written = io.StringIO()
    table = csv.DictWriter(written, ("kind", *of_cell, *of_case, *of_figures), lineterminator="\n")
    table.writeheader()
    table.writerows(map(_row, evaluation.found.values()))
    return written.getvalue()


def _row(outcome: Verdict | Course) -> dict[str, object]:
    cell = outcome.cell
    row: dict[str, object] = {**msgspec.structs.asdict(cell.case), **msgspec.to_builtins(cell)}
    del row["case"]
    if isinstance(outcome, Course):
        return {**row, **msgspec.structs.asdict(outcome.whole)}
    told = outcome.figures.as_dict()
    return {**row, **told, "server_trace": cell.case.server_trace}


def as_markdown(findings: Findings) -> str:
    """The tables of the report, without its figures."""
    return "\n".join(_parts(findings))


def _parts(findings: Findings) -> Iterator[str]:
    yield "# Evaluation\n"
    yield f"{sheets.setup(findings)} Intervals, in brackets, are Student's at 95 % over seeds.\n"
    yield "".join(f"- {sentence}\n" for sentence in sheets.headlines(findings))
    yield "## The paper's table, and ours\n\nCuts in P99 TTFT against `stochastic` at the same share.\n"
    yield sheets.as_markdown(sheets.reproduction(findings))
    for policy in findings.grid.policies:
        if policy not in (*ALONE, BASELINE):
            yield f"## TTFT of {policy} against stochastic at the same budget\n"
            yield sheets.as_markdown(sheets.cuts(findings, policy))
    for title, sheet in (
        ("Spend against budget", sheets.spend),
        ("The largest savings by migration at equal QoE", sheets.biggest_savings),
        ("What migration saves, by device", sheets.savings),
        ("What readers notice of it", sheets.handoffs),
        ("What each part is worth", sheets.ablations),
        ("A server that slows down", sheets.days),
        ("What if it is misjudged", sheets.sensitivity),
        ("What this rests on", sheets.servers),
    ):
        yield f"## {title}\n"
        yield sheets.as_markdown(sheet(findings))
