"""A small model on the device and a big one on a server answer together."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discostream.config import Settings, load_settings
    from discostream.errors import (
        AllEndpointsFailed,
        BudgetSpent,
        ConfigError,
        DiscoError,
        DownloadError,
        EndpointError,
        EngineError,
        RequestRejected,
    )
    from discostream.library import Answer, Disco, connect
    from discostream.types import Delivered, Extra, Kind, Message, Outcome

__all__ = [
    "AllEndpointsFailed",
    "Answer",
    "BudgetSpent",
    "ConfigError",
    "Delivered",
    "Disco",
    "DiscoError",
    "DownloadError",
    "EndpointError",
    "EngineError",
    "Extra",
    "Kind",
    "Message",
    "Outcome",
    "RequestRejected",
    "Settings",
    "connect",
    "load_settings",
]

_HOMES = {
    "discostream.config": ("Settings", "load_settings"),
    "discostream.errors": tuple(
        name for name in __all__ if name.endswith(("Error", "Failed", "Rejected", "Spent"))
    ),
    "discostream.library": ("Answer", "Disco", "connect"),
    "discostream.types": ("Delivered", "Extra", "Kind", "Message", "Outcome"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'discostream' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
