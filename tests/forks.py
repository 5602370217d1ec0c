"""Does `disco` commands in forks of itself, which has imported all of it: real processes without a start.

Reads a call on each line of standard input, as JSON, and tells its exit status.
"""

from __future__ import annotations

import json
import os
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

import discostream


def main() -> None:
    for module in pkgutil.walk_packages(discostream.__path__, "discostream."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            perform(**json.loads(line))
            break
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def perform(
    arguments: Sequence[str], folder: str, environ: Mapping[str, str], streams: Sequence[str]
) -> None:
    """One command to its end, with these files for its three standard streams."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR), number)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.argv = ["disco", *arguments]
    from discostream.cli import main

    main()


if __name__ == "__main__":
    main()
