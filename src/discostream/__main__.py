"""`python -m discostream` is the same as `disco`."""

from __future__ import annotations

from discostream.cli import main

__all__: list[str] = []

main()
