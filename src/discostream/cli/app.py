"""The `disco` command line: its commands, and how it ends."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
from typing import Annotated

import typer

from discostream.cli import everyday, research, settled
from discostream.cli.status import FAILURE, TERMINATED, USAGE
from discostream.errors import ConfigError, DiscoError, RequestRejected

__all__ = ["app", "run"]

STDERR = 2

app = typer.Typer(
    name="disco",
    help="A small model on this device and a big one on a server answer together.",
    epilog="Start with `disco demo`. Without a disco.toml, every command uses the embedded pair.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for room in (everyday, settled, research):
    app.add_typer(room.commands)


def run() -> None:
    """Run the command line: a user's mistake ends in one line and status 2, a failure in status 1."""
    _open_standard_streams()
    logging.basicConfig(format="disco: %(message)s", level=logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that what is open gets closed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except (ConfigError, RequestRejected) as error:
        _die(error, USAGE)
    except DiscoError as error:
        _die(error, FAILURE)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _die(f"cannot write: {error.strerror}", FAILURE)


def _open_standard_streams() -> None:
    """Put nothing where one is closed: the next file would get its number, which libuv aborts on closing."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(opened, True)
    os.close(opened)


def _die(error: object, status: int) -> None:
    typer.echo(f"disco: {error}", err=True)
    sys.exit(status)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"disco {version('discostream')}")
        raise typer.Exit


@app.callback()
def _disco(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
