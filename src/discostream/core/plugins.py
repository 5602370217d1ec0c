"""Policies by name; built-ins and strangers come in by the same entry-point group."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from discostream.config import suggest
from discostream.core.policies import Policy
from discostream.errors import ConfigError

__all__ = ["GROUP", "load_policy", "policy_names"]

GROUP = "discostream.policies"


def policy_names() -> list[str]:
    """Every installed policy, in order of name."""
    return list(_installed(tuple(sys.path)))


def load_policy(name: str) -> Policy:
    """The policy of that name.

    Raises:
        ConfigError: No such policy is installed.
    """
    installed = _installed(tuple(sys.path))
    if name not in installed:
        raise ConfigError(f"policy.name = {name!r}: no such policy; {suggest(name, policy_names())}")
    try:
        policy: Policy = installed[name].load()
    except Exception as error:
        raise ConfigError(f"policy.name = {name!r}: cannot be loaded: {error}") from error
    return policy


@cache
def _installed(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Every policy on this `sys.path`, in order of name; looking for them takes some milliseconds."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}
