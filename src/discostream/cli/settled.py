"""The commands that look at what was settled. They read the ledger, and never write to it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discostream.cli.options import AsJson, Config, LedgerFile, ledger_path
from discostream.errors import ConfigError

if TYPE_CHECKING:
    from discostream.ledger.queries import Wanted

__all__ = ["commands"]

commands = typer.Typer()


@commands.command(
    epilog="Examples: disco requests · disco requests --since 2h --outcome failed · "
    "disco requests --endpoint cloud --last 100 --json · disco requests 3f9c2a71"
)
def requests(
    request_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Show this one; the beginning of its ID will do.")
    ] = None,
    last: Annotated[int, typer.Option(min=1, max=1_000_000, metavar="N", help="So many, at most.")] = 20,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Settled since: 90s, 15m, 2h, 7d ago, or a date.")
    ] = None,
    policy: Annotated[str | None, typer.Option(metavar="NAME", help="Planned by this policy.")] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="NAME", help="That started this endpoint.")] = None,
    outcome: Annotated[
        str | None, typer.Option(metavar="OUTCOME", help="That ended so: ok, failed or cancelled.")
    ] = None,
    ledger: LedgerFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List settled requests, newest first, or show one with its timeline."""
    from datetime import UTC, datetime

    from discostream.config import load_settings
    from discostream.core.times import moment_of
    from discostream.ledger.queries import OUTCOMES, Wanted

    if outcome not in (None, *OUTCOMES):
        raise ConfigError(f"--outcome {outcome!r}: must be {', '.join(OUTCOMES[:-1])} or {OUTCOMES[-1]}")
    start = None if since is None else moment_of("--since", since, datetime.now(UTC))
    wanted = Wanted(since=start, policy=policy, endpoint=endpoint, outcome=outcome)
    path = ledger or ledger_path(load_settings(config))
    if request_id is None:
        _list(path, last, wanted, as_json)
    elif wanted != Wanted():
        raise ConfigError(f"ID {request_id!r}: names one request; leave out what chooses among many")
    else:
        _show(path, request_id, as_json)


def _list(path: Path, last: int, wanted: Wanted, as_json: bool) -> None:
    from dataclasses import asdict
    from datetime import datetime

    from discostream.cli.requests import show_all
    from discostream.ledger.queries import recent, shortest_beginnings

    found = recent(path, last, wanted)
    if as_json:
        typer.echo(json.dumps({"requests": [asdict(request) for request in found]}))
    else:
        called = shortest_beginnings(path, {request.request_id for request in found})
        show_all(found, called, datetime.now())


def _show(path: Path, request_id: str, as_json: bool) -> None:
    from discostream.cli.requests import show
    from discostream.ledger.queries import find

    found = find(path, request_id)
    if as_json:
        typer.echo(json.dumps({"requests": [settled.as_json() for settled in found]}))
    else:
        for settled in found:
            show(settled)


@commands.command(epilog="Examples: disco top · disco top --window 2h · disco top --once --json")
def top(
    config: Config = None,
    window: Annotated[
        str, typer.Option(metavar="SPAN", help="How far back it looks: 90s, 15m, 2h, 7d.")
    ] = "15m",
    once: Annotated[bool, typer.Option("--once", help="Print what there is, and end.")] = False,
    ledger: LedgerFile = None,
    as_json: AsJson = False,
) -> None:
    """Watch races, waits and spend as requests settle; Ctrl-C ends it."""
    from functools import partial

    from discostream.cli.screen import output
    from discostream.cli.top import as_json as figures
    from discostream.cli.top import look, show, watch
    from discostream.config import load_settings
    from discostream.core.times import span_of

    settings = load_settings(config)
    looking = partial(look, settings, ledger or ledger_path(settings), span_of("--window", window))
    if as_json:
        typer.echo(json.dumps(figures(looking())))
    elif once or not output.is_terminal:
        show(looking())
    else:
        with suppress(KeyboardInterrupt):
            watch(looking)
