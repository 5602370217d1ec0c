"""`disco top`: what happens, at a glance and live. Looks into the ledger only, as any other process may."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from discostream.cli.plan.words import energy, money, percent, seconds, span
from discostream.cli.requests import listing
from discostream.cli.screen import as_table, output, print_table
from discostream.config import Settings
from discostream.core.budget import POLICY_SHARE, Budget, Resource, Window, budgets_from
from discostream.ledger.activity import Activity, EndpointActivity, Ttft, activity
from discostream.ledger.queries import RecordedRequest, Spent, recent, shortest_beginnings, spent_since
from discostream.session.localtime import local_now
from discostream.session.power import battery_wh
from discostream.types import Kind

__all__ = ["Glance", "as_json", "look", "show", "watch"]

EVERY_S = 1.0
LATEST = 10

ENDPOINTS = ("endpoint", "kind", "attempts", "wins", "lost", "failed", "P50 s", "P99 s", "cost", "energy")
BUDGETS = ("budget", "spent", "of", "used")


@dataclass(frozen=True, slots=True)
class Glance:
    """What the ledger says at one moment.

    Attributes:
        at: The local time.
        window: How far back `activity` goes.
        spent: What was used of each `[[budget]]` in its present window; of a share, today.
        latest: The last requests, newest first, and by which beginnings of their IDs they are `called`.
    """

    ledger: Path
    at: datetime
    window: timedelta
    activity: Activity
    spent: tuple[tuple[Budget, float], ...]
    latest: tuple[RecordedRequest, ...]
    called: Mapping[str, str]

    @property
    def requests_per_minute(self) -> float:
        """How often requests were settled, on average over the window."""
        return self.activity.requests / (self.window / timedelta(minutes=1))


def look(settings: Settings, ledger: Path, window: timedelta) -> Glance:
    """What the ledger says now.

    Raises:
        ConfigError: There is no ledger that could be read, or a budget is a share of a battery whose size
            nobody knows.
    """
    at = local_now()
    latest = tuple(recent(ledger, LATEST))
    budgets = (each for each in budgets_from(settings, battery_wh()) if each.name != POLICY_SHARE)
    return Glance(
        ledger=ledger,
        at=at,
        window=window,
        activity=activity(ledger, at - window),
        spent=tuple(_spent(budgets, partial(spent_since, ledger), at)),
        latest=latest,
        called=shortest_beginnings(ledger, {request.request_id for request in latest}),
    )


def _spent(
    budgets: Iterable[Budget], spent_since: Callable[[datetime], Spent], at: datetime
) -> Iterator[tuple[Budget, float]]:
    for budget in budgets:
        spent = spent_since((budget.window or Window.DAY).start(at))
        kind = budget.kind or Kind.DEVICE  # which nothing but a share depends on, and that names one
        taken = budget.taken_by(
            kind, usd=spent.usd, joules=spent.joules, prompt_tokens=spent.prompt_tokens[kind]
        )
        whole = (spent.all_prompt_tokens or 1) if budget.resource is Resource.SHARE else 1
        yield budget, taken / whole


def as_json(glance: Glance) -> dict[str, Any]:
    """All figures as one object."""
    return {
        "ledger": str(glance.ledger),
        "at": glance.at.isoformat(timespec="milliseconds"),
        "window_s": glance.window.total_seconds(),
        "requests_per_minute": glance.requests_per_minute,
        **asdict(glance.activity),
        "budgets": [
            {
                "name": budget.name,
                "resource": budget.resource,
                "kind": budget.kind,
                "amount": budget.amount,
                "per": budget.window,
                "hard": budget.hard,
                "spent": spent,
            }
            for budget, spent in glance.spent
        ],
        "latest": [asdict(request) for request in glance.latest],
    }


def show(glance: Glance) -> None:
    """Print it."""
    for part in _drawn(glance).renderables:
        if isinstance(part, Table):
            print_table(part)
        else:
            output.print(Group(part), soft_wrap=False)


def watch(looking: Callable[[], Glance]) -> None:
    """Show it on the whole terminal, anew every second, until Ctrl-C."""
    console = Console(highlight=False, markup=False)  # `output` wraps softly, which a screen must not
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_drawn(looking()), refresh=True)
            time.sleep(EVERY_S)


def _drawn(glance: Glance) -> Group:
    activity = glance.activity
    parts: list[RenderableType] = [_heading(glance), *map(Text, _sentences(glance))]
    if activity.endpoints:
        endpoints = map(_endpoint, activity.endpoints)
        parts += [Text(), as_table(ENDPOINTS, endpoints, words=2, folding=("endpoint",))]
    if glance.spent:
        budgets = (_budget(*each) for each in glance.spent)
        parts += [Text(), as_table(BUDGETS, budgets, words=1, folding=("budget",))]
    if glance.latest:
        parts += [Text(), listing(glance.latest, glance.called, glance.at)]
    return Group(*parts)


def _heading(glance: Glance) -> Text:
    heading = Text(f"disco top  {glance.at:%H:%M:%S}", "bold", no_wrap=True, overflow="ellipsis")
    return heading.append(f"  the last {glance.window}  {glance.ledger}", "not bold")


def _sentences(glance: Glance) -> Iterator[str]:
    activity = glance.activity
    counts = {"failed": activity.failed, "cancelled": activity.cancelled}
    ended = "".join(f", {count:,} {how}" for how, count in counts.items() if count)
    yield f"requests  {activity.requests:,} ({glance.requests_per_minute:.3g} a minute){ended}"
    if activity.ttft_s:
        yield f"TTFT      P50 {span(activity.ttft_s.p50)}, P99 {span(activity.ttft_s.p99)}, as delivered"
    lost = sum(endpoint.lost for endpoint in activity.endpoints)
    yield f"races     {lost:,} lost; {_moves(activity)}"
    yield f"spent     {money(activity.usd)}, {energy(activity.joules)}"


def _moves(activity: Activity) -> str:
    migrations = f"{activity.migrations:,} migration{'s' * (activity.migrations != 1)}"
    return migrations + (f", {activity.rescues:,} of them to rescue" if activity.rescues else "")


def _endpoint(endpoint: EndpointActivity) -> tuple[str, ...]:
    counts = (endpoint.attempts, endpoint.wins, endpoint.lost, endpoint.failed)
    return (
        endpoint.endpoint,
        endpoint.kind,
        *(f"{count:,}" for count in counts),
        *_quantiles(endpoint.ttft_s),
        money(endpoint.usd),
        energy(endpoint.joules),
    )


def _quantiles(ttft: Ttft | None) -> tuple[str, str]:
    return (seconds(ttft.p50), seconds(ttft.p99)) if ttft else ("", "")


def _budget(budget: Budget, spent: float) -> tuple[str | Text, ...]:
    told = {Resource.USD: money, Resource.JOULES: energy, Resource.SHARE: percent}[budget.resource]
    used = spent / budget.amount if budget.amount else float(spent > 0)
    style = "red" if spent > budget.amount else ""
    return budget.name, told(spent), told(budget.amount), Text(percent(used), style)
