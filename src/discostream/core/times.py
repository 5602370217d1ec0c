"""Spans and moments as people type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from discostream.errors import ConfigError

__all__ = ["moment_of", "span_of"]

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
LONGEST_S = 1e9


def span_of(option: str, text: str) -> timedelta:
    """A span such as `15m`.

    Raises:
        ConfigError: Naming the option, the value, and what would be right.
    """
    span = _span(text)
    if span is None:
        raise ConfigError(f"{option} {text!r}: must be a span above 0, such as 90s, 15m, 2h or 7d")
    return span


def moment_of(option: str, text: str, now: datetime) -> datetime:
    """A moment: so long ago (`2h`), or a local date or time (`2026-03-01`, `2026-03-01T12:00`), in UTC.

    Raises:
        ConfigError: Naming the option, the value, and what would be right.
    """
    span = _span(text)
    if span is not None:
        return now - span
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{option} {text!r}: must be a span such as 2h, or a date such as 2026-03-01 or 2026-03-01T12:00"
        ) from None


def _span(text: str) -> timedelta | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text, re.ASCII)
    seconds = float(found[1]) * UNITS_S[found[2]] if found else 0.0
    return timedelta(seconds=seconds) if 0 < seconds <= LONGEST_S else None
