"""What happened lately: races, waits, handoffs and spend of all requests since a moment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from discostream.ledger.buckets import Buckets
from discostream.ledger.overview import EndpointSums, TtftFigures, endpoint_sums, sums
from discostream.ledger.queries import Wanted
from discostream.ledger.reading import reading
from discostream.types import Kind

__all__ = ["Activity", "EndpointActivity", "Ttft", "activity"]


@dataclass(frozen=True, slots=True)
class Ttft:
    """Two quantiles of TTFT, in seconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class EndpointActivity:
    """What one endpoint did and cost, over the attempts that were started; probes included.

    Attributes:
        wins: Answers that it began.
        lost: Races that it lost.
        ttft_s: From an attempt's start to its first content, where any came; `None` where none did.
    """

    endpoint: str
    kind: Kind
    attempts: int
    wins: int
    lost: int
    failed: int
    ttft_s: Ttft | None
    usd: float
    joules: float


@dataclass(frozen=True, slots=True)
class Activity:
    """What came of all requests; probes are none, but cost dollars and joules like everything else.

    Attributes:
        ttft_s: From arrival to the first content delivered; `None` where none was.
        migrations: How often answers moved, rescues included.
        endpoints: Those that were started, in order of name.
    """

    requests: int
    failed: int
    cancelled: int
    ttft_s: Ttft | None
    migrations: int
    rescues: int
    usd: float
    joules: float
    endpoints: tuple[EndpointActivity, ...]


def activity(path: str | Path, since: datetime) -> Activity:
    """What happened from a moment on, all of it as the ledger was at one instant.

    Args:
        path: The ledger's file.
        since: With its time zone.

    Raises:
        ConfigError: There is no ledger that could be read, or a row of it is damaged.
    """
    with reading(path) as connection:
        connection.execute("BEGIN")
        lately = [Buckets(connection, path).of(Wanted(since=since))]
    added = sums(lately)
    return Activity(
        requests=added.requests,
        failed=added.failed,
        cancelled=added.cancelled,
        ttft_s=_ttft(added.ttft_s),
        migrations=added.migrations,
        rescues=added.rescues,
        usd=added.usd,
        joules=added.joules,
        endpoints=tuple(map(_endpoint, endpoint_sums(lately))),
    )


def _endpoint(added: EndpointSums) -> EndpointActivity:
    return EndpointActivity(
        endpoint=added.endpoint,
        kind=added.kind,
        attempts=added.attempts,
        wins=added.wins,
        lost=added.lost,
        failed=added.failed,
        ttft_s=_ttft(added.ttft_s),
        usd=added.usd,
        joules=added.joules,
    )


def _ttft(figures: TtftFigures | None) -> Ttft | None:
    return None if figures is None else Ttft(figures.p50, figures.p99)
