"""Fields of other people's JSON, read with tolerance: what is missing, null or of an odd type is absent."""

from __future__ import annotations

from typing import Any

from discostream.types import Extra

__all__ = ["count", "mapping", "text", "thoughts"]


def mapping(value: Any) -> dict[str, Any]:
    """An object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def text(value: Any) -> str:
    """A string; an empty one for anything else."""
    return value if isinstance(value, str) else ""


def thoughts(value: Any) -> Extra | None:
    """What a model thinks beside its text; nothing for what is no string, or an empty one."""
    return Extra(reasoning=value) if isinstance(value, str) and value else None


def count(value: Any) -> int | None:
    """A number that may come as 12, 12.0 or "12"."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return count(int(value))
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None
