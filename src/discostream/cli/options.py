"""What commands have in common: options, and how their work is started."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from discostream.config import Settings

__all__ = [
    "AsJson",
    "Config",
    "LedgerFile",
    "fetch_models",
    "ledger_path",
    "run_async",
]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="The settings (default: ./disco.toml, if it is there)."
    ),
]
LedgerFile = Annotated[
    Path | None,
    typer.Option("--ledger", metavar="FILE", help="Read this ledger (default: the one of the settings)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]


def ledger_path(settings: Settings) -> Path:
    """Where these settings keep the ledger."""
    from discostream.ledger.store import default_ledger_path

    return Path(settings.ledger.path or default_ledger_path()).expanduser()


def fetch_models(settings: Settings) -> None:
    """Fetch the models that good settings need, with a progress bar."""
    from discostream.engine.catalogue import find_model, resolve_model
    from discostream.library import connect

    for name in {name for endpoint in connect(settings).endpoints.values() for name in endpoint.models}:
        if find_model(name) is None:
            from discostream.cli.screen import progress_bar  # 3 MB that a server need not hold

            with progress_bar(f"Fetching {name}") as progress:
                resolve_model(name, progress=progress)


def run_async(work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Do the work on an event loop, on uvloop's where that is installed."""
    from importlib.util import find_spec

    import anyio

    return anyio.run(work, *arguments, backend_options={"use_uvloop": find_spec("uvloop") is not None})
