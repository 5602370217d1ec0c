"""Recorded files as columns: CSV, JSON and JSON lines, gzipped or not, told apart by what is in them."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from discostream.errors import ConfigError

__all__ = ["Table", "columns_of", "read_table", "stem"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Shape = TypeVar("Shape", bound=Struct)

GZIP_MAGIC = b"\x1f\x8b"

LONGEST_LINE = 1 << 22
"""Bytes of a first line that are looked at; a line with every packet of a long answer has some 40,000."""

LONGEST_CELL = 1 << 24
"""Characters of a CSV's cell, in place of Python's 131,072: a prompt of a long context has more."""

MOST = 1e15
"""No time, length or moment is more, and sums of them are still numbers."""


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of a file, by column.

    Attributes:
        file: What messages call it.
        columns: The cells under each name: text out of CSV, anything out of JSON, `None` where nothing is.
        places: Where each row stands in the file, counted from 1.
        unit: What is counted there.
    """

    file: str
    columns: Mapping[str, Sequence[Any]]
    places: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.places)

    def where(self, kept: Flags) -> Table:
        """The rows that are kept.

        Raises:
            ConfigError: There are none.
        """
        rows = np.flatnonzero(kept).tolist()
        if not rows:
            raise ConfigError(f"{self.file}: holds no row that can be used")
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        return replace(self, columns=columns, places=[self.places[row] for row in rows])

    def blank(self, name: str) -> Flags:
        """Which cells of a column are empty; all of a column that is missing."""
        return np.array([cell is None or cell == "" for cell in self.columns.get(name, [None] * len(self))])

    def numbers(self, name: str, *, least: float = 0.0, blanks: bool = False) -> Floats:
        """A column of numbers, none above `MOST`.

        Args:
            name: The column.
            least: No number may be below this.
            blanks: Whether cells may be empty, or the column missing: not a number (NaN) stands for them.

        Raises:
            ConfigError: A cell holds something else.
        """
        blank = self.blank(name)
        if blank.all() and blanks:
            return np.full(len(self), math.nan)
        values = np.array([_number(cell) for cell in self.columns[name]])
        wrong = ~np.where(blank, blanks, (values >= least) & (values <= MOST))
        if wrong.any():
            row = int(np.argmax(wrong))
            wanted = f"at most {MOST:g}" if values[row] > MOST else f"at least {least:g}"
            limited = math.isfinite(least) or values[row] > MOST
            raise self.wrong(row, name, "must be a number" + (f" of {wanted}" if limited else ""))
        return values

    def series(self, name: str) -> list[Floats]:
        """A column of lists of finite numbers that are not negative, as JSON or as its text.

        Raises:
            ConfigError: A cell holds something else.
        """
        return [self._list(row, name) for row in range(len(self))]

    def seconds_since_first(self, name: str) -> Floats:
        """A column of dates with times, as seconds after the earliest.

        Raises:
            ConfigError: A cell holds something else, or only some name a time zone.
        """
        moments = [self._moment(row, name) for row in range(len(self))]
        if len({moment.tzinfo is None for moment in moments}) > 1:
            raise ConfigError(f"{self.file}: column {name!r}: all times must name a time zone, or none")
        first = min(moments)
        return np.array([(moment - first).total_seconds() for moment in moments])

    def objects(self, shape: type[Shape]) -> list[Shape]:
        """The rows as objects of a kind, by the columns that are its fields.

        Raises:
            ConfigError: A row does not fit.
        """
        names = [name for name in shape.__struct_fields__ if name in self.columns]
        return [self._object(row, names, shape) for row in range(len(self))]

    def wrong(self, row: int, name: str, wanted: str) -> ConfigError:
        """The error that a cell does not hold what is wanted."""
        cell = str(self.columns[name][row])
        shown = cell if len(cell) <= 60 else f"{cell[:57]}..."
        return ConfigError(f"{self._place(row)}, column {name!r} = {shown!r}: {wanted}")

    def _place(self, row: int) -> str:
        return f"{self.file}: {self.unit} {self.places[row]}"

    def _object(self, row: int, names: Sequence[str], shape: type[Shape]) -> Shape:
        cells = {name: cell for name in names if (cell := self.columns[name][row]) is not None}
        try:
            return msgspec.convert(cells, shape)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$.")
            raise ConfigError(f"{self._place(row)}, {where.rstrip('`') or 'columns'}: {what}") from None

    def _list(self, row: int, name: str) -> Floats:
        cell = self.columns[name][row]
        try:
            values = np.array(msgspec.json.decode(cell) if isinstance(cell, str) else cell, np.float64)
        except (TypeError, ValueError, msgspec.DecodeError, RecursionError):
            values = np.array(math.nan)
        if values.ndim != 1 or not np.all(np.isfinite(values) & (values >= 0)):
            raise self.wrong(row, name, "must be a list of numbers of at least 0")
        return values

    def _moment(self, row: int, name: str) -> datetime:
        try:
            return datetime.fromisoformat(self.columns[name][row])
        except (TypeError, ValueError):
            raise self.wrong(row, name, "must be a date and a time, as in 2026-03-30 12:00:00.5") from None


def read_table(path: Path) -> Table:
    """The rows of a file, of which there is at least one.

    Raises:
        ConfigError: The file is not there, cannot be read, is empty, or is neither CSV nor JSON objects.
    """
    text = _text(path)
    return {"[": _of_list, "{": _of_lines}.get(text[0], _of_csv)(path, text)


def columns_of(path: Path) -> list[str]:
    """The names of a file's columns, by its beginning; none where it cannot be read."""
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == GZIP_MAGIC
            line = (gzip.GzipFile(fileobj=raw) if packed else raw).readline(LONGEST_LINE)
        if line.startswith(b"["):
            return list(read_table(path).columns)
        if line.startswith(b"{"):
            return list(_decoded(line, str(path)))
        return [name.strip() for name in next(csv.reader([line.decode("utf-8-sig")]), [])]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error, ConfigError):
        return []


def stem(path: Path) -> str:
    """A file's name without the endings that say its format."""
    name = path.name.removesuffix(".gz")
    return Path(name).stem if Path(name).suffix in {".csv", ".json", ".jsonl"} else name


def _text(path: Path) -> str:
    """What is in it, without empty lines around."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text; give a CSV or JSON file, gzipped or not") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    if not text.strip():
        raise ConfigError(f"{path}: is empty; a file needs at least one row")
    return text.strip()


def _of_csv(path: Path, text: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""))
    rows, lines = [], []
    try:
        with _long_cells():
            header = [name.strip() for name in next(reader)]
            for row in filter(None, reader):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: is not CSV: {error}") from None
    _refuse_none(path, rows)
    if len(set(header)) < len(header):
        raise ConfigError(f"{path}: has two columns of one name, of {', '.join(header)}")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise ConfigError(f"{path}: line {line}: has {len(row)} cells under {len(header)} columns")
    return Table(str(path), dict(zip(header, zip(*rows, strict=True), strict=True)), lines)


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _of_list(path: Path, text: str) -> Table:
    return _of_objects(path, _decoded(text, str(path)), "entry")


def _of_lines(path: Path, text: str) -> Table:
    lines = text.split("\n")
    return _of_objects(path, [_decoded(line, f"{path}: line {n}") for n, line in enumerate(lines, 1)], "line")


def _of_objects(path: Path, rows: list[Any], unit: str) -> Table:
    _refuse_none(path, rows)
    for place, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: {unit} {place}: must be a JSON object, one for each request")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(str(path), columns, range(1, len(rows) + 1), unit)


def _refuse_none(path: Path, rows: Sequence[Any]) -> None:
    if not rows:
        raise ConfigError(f"{path}: has no rows; a file needs at least one")


def _decoded(text: str | bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: is not JSON: {error}") from None


def _number(cell: Any) -> float:
    """Not a number (NaN) where it is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan
