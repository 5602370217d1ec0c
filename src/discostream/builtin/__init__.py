"""Measured distributions that ship with the package, as quantile tables with their sources.

The tables are made by `benchmarks/builtin_profiles.py` from recorded traces; no trace is shipped.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TypeVar

import msgspec
from msgspec import Struct

from discostream.core.distributions import Distribution

__all__ = [
    "BuiltinProfile",
    "builtin_output_lengths",
    "builtin_profiles",
    "builtin_prompt_lengths",
]

Tables = TypeVar("Tables", bound=Struct)


class BuiltinProfile(Struct, frozen=True, kw_only=True):
    """A real service, as somebody measured it.

    Attributes:
        name: What the settings call it.
        ttft: From the request to the first content, seconds.
        output_tokens: Answer lengths in tokens; `None` where they were not counted.
        tokens_per_s: Median pace of decoding.
        samples: Requests behind the tables.
        source: Where the measurements come from, under which licence, and their caveats.
    """

    name: str
    ttft: Distribution
    output_tokens: Distribution | None
    tokens_per_s: float
    samples: int
    source: str


class _Profile(Struct, frozen=True, forbid_unknown_fields=True):
    ttft_s: list[float]
    output_tokens: list[float] | None
    tokens_per_s: float
    samples: int
    source: str


class _TtftTables(Struct, frozen=True, forbid_unknown_fields=True):
    probabilities: list[float]
    profiles: dict[str, _Profile]


class _PromptLengths(Struct, frozen=True, forbid_unknown_fields=True):
    probabilities: list[float]
    tokens: list[float]
    samples: int
    source: str


def builtin_profiles() -> dict[str, BuiltinProfile]:
    """Every built-in service by name."""
    return dict(_profiles())


def builtin_prompt_lengths() -> Distribution:
    """Prompt lengths in tokens before any were seen: conversations of a real service."""
    tables = _read("prompt_lengths.json", _PromptLengths)
    return Distribution.of_table(tables.probabilities, tables.tokens)


def builtin_output_lengths() -> Distribution:
    """Answer lengths in tokens before any were seen: GPT-4o on short questions."""
    lengths = _profiles()["gpt-4o"].output_tokens
    assert lengths is not None
    return lengths


@cache
def _profiles() -> dict[str, BuiltinProfile]:
    tables = _read("ttft.json", _TtftTables)
    return {name: _profile(name, table, tables.probabilities) for name, table in tables.profiles.items()}


def _profile(name: str, table: _Profile, probabilities: list[float]) -> BuiltinProfile:
    lengths = table.output_tokens
    return BuiltinProfile(
        name=name,
        ttft=Distribution.of_table(probabilities, table.ttft_s),
        output_tokens=None if lengths is None else Distribution.of_table(probabilities, lengths),
        tokens_per_s=table.tokens_per_s,
        samples=table.samples,
        source=table.source,
    )


def _read(name: str, tables: type[Tables]) -> Tables:
    return msgspec.json.decode((files("discostream.builtin") / name).read_bytes(), type=tables)
