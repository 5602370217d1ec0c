"""Keys of other people's servers: read from the environment, and kept out of everything we say."""

from __future__ import annotations

import os
import re

from discostream.errors import ConfigError

__all__ = ["api_key", "redact"]

SHORTEST_REMNANT = 4
"""Fewer characters of a key at the end of a message tell nobody anything."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def api_key(endpoint: str, variable: str) -> str:
    """The key in an environment variable; empty when no variable is named.

    Raises:
        ConfigError: The variable is not set, is no variable's name, or holds what no header can carry.
    """
    if not variable:
        return ""
    if not _VARIABLE.fullmatch(variable):
        raise ConfigError(
            f"endpoint {endpoint!r}: api_key_env: must be the name of an environment variable, not a key"
        )
    where = f"endpoint {endpoint!r}: api_key_env = {variable!r}"
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"{where}: the environment variable is not set; export {variable}=…, or leave api_key_env out"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{where}: the key in it holds characters that no header can carry")
    return key


def redact(text: str, key: str) -> str:
    """The text without the key, which some servers quote, nor the beginning of one that was cut off."""
    if not key:
        return text
    text = text.replace(key, "***")
    body = text.removesuffix("…")
    for length in range(len(key) - 1, SHORTEST_REMNANT - 1, -1):
        if body.endswith(key[:length]):
            return f"{body[:-length]}***"
    return text
