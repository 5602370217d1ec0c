"""The `disco` command: parse, call, print."""

from __future__ import annotations

from discostream.cli.app import main

__all__ = ["main"]
