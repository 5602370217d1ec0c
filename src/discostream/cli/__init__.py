"""The `disco` command: parse, call, print."""

from __future__ import annotations

import sys

from discostream.cli.status import INTERRUPTED

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C ends it in silence, even while it is still being loaded."""
    try:
        from discostream.cli.app import run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
