"""What cells came to, kept in a file from the moment it is known, so that no cell is computed twice.

One line a cell, under a key made of the cell, of the files that it reads and of the code that computes it: a
cell of another grid is found again, and one whose trace has changed is not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec
from msgspec import Struct

import discostream
from discostream.errors import ConfigError
from discostream.sim.cells import AnyCell, Course, Drift, Verdict
from discostream.sim.figures import Figures
from discostream.sim.online import Stretch
from discostream.traces.servers import BUILTIN, path_and_model
from discostream.traces.tables import stem

__all__ = ["Shelf", "key_of"]

FILE = "cells.jsonl"

COMPUTING = ("builtin", "core", "sim", "traces")
"""Rooms of the package that decide the figures."""

HANDING_OUT = {"crews.py", "evaluate.py", "grid.py", "shelf.py"}
"""What of them does not, but chooses cells and has them computed."""


class _Line(Struct, frozen=True, omit_defaults=True):
    """A line of the file, of either of the two kinds; a course is the day, its thirds and its stretches."""

    key: str
    figures: Figures | None = None
    ttft_s: tuple[float, ...] = ()
    course: tuple[Stretch, ...] = ()


def key_of(cell: AnyCell) -> str:
    """A name for the cell that changes with everything that decides what it comes to."""
    sources = cell.case.server_trace, cell.case.workload
    rests_on = [_code(), *map(_content, sources)]
    return hashlib.sha256(msgspec.json.encode([cell, rests_on], order="deterministic")).hexdigest()[:24]


class Shelf:
    """The cells of a folder that are known already.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path) -> None:
        """Read what is there.

        Args:
            folder: Made if need be.

        Raises:
            ConfigError: It cannot be used, or the file is no such file.
        """
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = {line.key: line for line in self._read()}
            self._file: BinaryIO = self.path.open("ab")
        except OSError as error:
            raise ConfigError(f"--out {folder}: cannot be used: {error.strerror}") from None

    def __enter__(self) -> Shelf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def find(self, cells: Iterable[AnyCell]) -> dict[AnyCell, Verdict | Course]:
        """Those of the cells that are known."""
        found = {}
        for cell in cells:
            line = self._lines.get(key_of(cell))
            if line is not None:
                found[cell] = _outcome(cell, line)
        return found

    def add(self, outcome: Verdict | Course) -> None:
        """Keep one more, before anything else happens."""
        line = _line(outcome)
        self._lines[line.key] = line
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def put_in_order(self) -> None:
        """Write the file anew, sorted, so that it does not show in which order cells were computed."""
        self._file.close()
        draft = self.path.with_suffix(".tmp")
        draft.write_bytes(
            b"".join(msgspec.json.encode(self._lines[key]) + b"\n" for key in sorted(self._lines))
        )
        draft.replace(self.path)
        self._file = self.path.open("ab")

    def _read(self) -> Iterator[_Line]:
        """Every line; the last one is cut off if whoever wrote it was killed."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        decoder = msgspec.json.Decoder(_Line)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError:
                raise ConfigError(
                    f"{self.path}, line {number}: is no cell of an evaluation; remove the line, or choose "
                    f"another folder with --out"
                ) from None


def _line(outcome: Verdict | Course) -> _Line:
    key = key_of(outcome.cell)
    if isinstance(outcome, Course):
        return _Line(key, course=(outcome.whole, *outcome.thirds, *outcome.stretches))
    return _Line(key, outcome.figures, outcome.ttft_s)


def _outcome(cell: AnyCell, line: _Line) -> Verdict | Course:
    if isinstance(cell, Drift):
        return Course(cell=cell, whole=line.course[0], thirds=line.course[1:4], stretches=line.course[4:])
    assert line.figures is not None
    return Verdict(cell=cell, figures=line.figures, ttft_s=line.ttft_s)


@cache
def _code() -> str:
    """The content of everything that computes."""
    package = Path(discostream.__file__).parent
    files = (each for room in COMPUTING for each in sorted((package / room).iterdir()))
    return _digest(each for each in files if each.suffix in {".json", ".py"} and each.name not in HANDING_OUT)


@cache
def _content(source: str) -> str:
    """The content of a trace's or a workload's file, and of packets that are read with it."""
    if source.startswith(BUILTIN):
        return ""
    path, _ = path_and_model(source)
    packets = path.parent.glob(f"packets-{stem(path).removeprefix('requests-')}.*")
    return _digest([path, *sorted(packets)])


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
