"""Endpoints by dialect: built-ins and strangers come in by the same entry-point group."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, entry_points

import msgspec

from discostream.config import EndpointSettings, convert_options, suggest
from discostream.core.cost import Prices
from discostream.endpoints.base import Endpoint
from discostream.endpoints.prices import price_of
from discostream.errors import ConfigError
from discostream.types import Kind

__all__ = ["GROUP", "build_endpoint", "dialects", "with_defaults"]

log = logging.getLogger(__name__)

GROUP = "discostream.endpoints"


def dialects() -> dict[str, EntryPoint]:
    """Every installed dialect by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def build_endpoint(settings: EndpointSettings) -> Endpoint:
    """The endpoint that one `[[endpoint]]` describes. Nothing is started or connected yet.

    Raises:
        ConfigError: An unknown dialect, or keys that it does not accept.
    """
    adapter, settings = _adapter(settings), with_defaults(settings)
    return adapter(_priced(settings), convert_options(settings, adapter.Options))


def with_defaults(settings: EndpointSettings) -> EndpointSettings:
    """The settings with what their dialect or preset says where they are silent.

    Raises:
        ConfigError: An unknown dialect or preset.
    """
    defaults = _adapter(settings).defaults(settings)
    common = {key: value for key, value in defaults.items() if key in EndpointSettings.__struct_fields__}
    missing = {key: value for key, value in common.items() if getattr(settings, key) is None}
    own = {key: value for key, value in defaults.items() if key not in common}
    return msgspec.structs.replace(settings, **missing, options=own | settings.options)


def _adapter(settings: EndpointSettings) -> type[Endpoint]:
    known = dialects()
    if settings.dialect not in known:
        hint = suggest(settings.dialect, known)
        raise ConfigError(f"endpoint {settings.name!r}: unknown dialect {settings.dialect!r}; {hint}")
    adapter = known[settings.dialect].load()
    if not (isinstance(adapter, type) and issubclass(adapter, Endpoint)):
        raise ConfigError(
            f"dialect {settings.dialect!r}: {known[settings.dialect].value} is no Endpoint class"
        )
    return adapter


def _priced(settings: EndpointSettings) -> EndpointSettings:
    """The settings of a server with the prices they leave out, where the price library knows its model."""
    stated = settings.prompt_usd_per_mtok, settings.completion_usd_per_mtok
    model = settings.priced_as or settings.model
    if settings.kind is not Kind.SERVER or None not in stated or not model:
        return settings
    listed = price_of(model)
    if listed is None:
        if settings.priced_as:
            raise ConfigError(
                f"endpoint {settings.name!r}: priced_as = {settings.priced_as!r}: no price is known; "
                f"state prompt_usd_per_mtok and completion_usd_per_mtok"
            )
        log.warning("endpoint %r: no price is known for %r; it counts as free", settings.name, model)
        listed = Prices()
    prompt, completion = stated
    return msgspec.structs.replace(
        settings,
        prompt_usd_per_mtok=listed.prompt_usd_per_mtok if prompt is None else prompt,
        completion_usd_per_mtok=listed.completion_usd_per_mtok if completion is None else completion,
    )
