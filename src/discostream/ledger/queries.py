"""What the ledger says, read over connections that cannot write."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from discostream.errors import ConfigError
from discostream.ledger.migrations import ForeignDatabase, check

__all__ = ["EndpointTotals", "RecordedRequest", "Totals", "recent", "totals"]


@dataclass(frozen=True, slots=True)
class EndpointTotals:
    """What one endpoint did and cost, over the attempts that were started."""

    endpoint: str
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    joules: float


@dataclass(frozen=True, slots=True)
class Totals:
    """What all recorded requests cost, and on which endpoints (in order of name)."""

    requests: int
    usd: float
    joules: float
    endpoints: tuple[EndpointTotals, ...]


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One row of the ledger.

    Attributes:
        recorded_at: UTC, ISO 8601 with milliseconds.
        outcome: `ok`, `failed` or `cancelled` (the client left).
        mean_tbt_s: Over the gaps between delivered tokens; `None` below two tokens.
        p99_tbt_s: Likewise.
        max_tbt_s: Likewise.
    """

    request_id: str
    recorded_at: str
    policy: str
    outcome: str
    winner: str | None
    ttft_s: float | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    usd: float
    joules: float
    mean_tbt_s: float | None
    p99_tbt_s: float | None
    max_tbt_s: float | None
    migrations: int
    error: str | None


def totals(path: str | Path) -> Totals:
    """Sums over everything recorded.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    with _reading(path) as connection:
        sums = connection.execute("SELECT count(*), total(usd), total(joules) FROM request")
        requests, usd, joules = sums.fetchone()
        by_endpoint = connection.execute(
            """
            SELECT endpoint, count(*), sum(prompt_tokens), sum(completion_tokens), total(usd), total(joules)
            FROM attempt WHERE outcome != 'not_started' GROUP BY endpoint ORDER BY endpoint
            """
        )
        return Totals(requests, usd, joules, tuple(EndpointTotals(*row) for row in by_endpoint))


def recent(path: str | Path, n: int = 20) -> list[RecordedRequest]:
    """The last `n` requests, newest first.

    Raises:
        ConfigError: There is no ledger that could be read.
    """
    columns = ", ".join(RecordedRequest.__slots__)
    newest_first = f"SELECT {columns} FROM request ORDER BY id DESC LIMIT ?"  # noqa: S608
    with _reading(path) as connection:
        return [RecordedRequest(*row) for row in connection.execute(newest_first, (n,))]


@contextmanager
def _reading(path: str | Path) -> Iterator[sqlite3.Connection]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"ledger.path = {str(path)!r}: no ledger yet; it begins with the first request")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            check(connection)
            yield connection
    except (ForeignDatabase, sqlite3.Error) as error:
        raise ConfigError(f"ledger.path = {str(path)!r}: {error}") from None
