"""Policies by name; built-ins and strangers come in by the same entry-point group."""

from __future__ import annotations

from importlib.metadata import entry_points

from discostream.config import suggest
from discostream.core.policies import Policy
from discostream.errors import ConfigError

__all__ = ["GROUP", "load_policy", "policy_names"]

GROUP = "discostream.policies"


def policy_names() -> list[str]:
    """Every installed policy, in order of name."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load_policy(name: str) -> Policy:
    """The policy of that name.

    Raises:
        ConfigError: No such policy is installed.
    """
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            try:
                policy: Policy = entry.load()
            except Exception as error:
                raise ConfigError(f"policy.name = {name!r}: cannot be loaded: {error}") from error
            return policy
    raise ConfigError(f"policy.name = {name!r}: no such policy; {suggest(name, policy_names())}")
