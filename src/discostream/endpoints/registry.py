"""Endpoints by dialect: built-ins and strangers come in by the same entry-point group."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points

from discostream.config import EndpointSettings, convert_options
from discostream.endpoints.base import Endpoint
from discostream.errors import ConfigError

__all__ = ["GROUP", "build_endpoint", "dialects"]

GROUP = "discostream.endpoints"


def dialects() -> dict[str, EntryPoint]:
    """Every installed dialect by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def build_endpoint(settings: EndpointSettings) -> Endpoint:
    """The endpoint that one `[[endpoint]]` describes. Nothing is started or connected yet.

    Raises:
        ConfigError: An unknown dialect, or keys that it does not accept.
    """
    known = dialects()
    if settings.dialect not in known:
        near = difflib.get_close_matches(settings.dialect, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known dialects: {', '.join(known)}"
        raise ConfigError(f"endpoint {settings.name!r}: unknown dialect {settings.dialect!r}; {hint}")
    adapter = known[settings.dialect].load()
    if not (isinstance(adapter, type) and issubclass(adapter, Endpoint)):
        raise ConfigError(
            f"dialect {settings.dialect!r}: {known[settings.dialect].value} is no Endpoint class"
        )
    return adapter(settings, convert_options(settings, adapter.Options))
