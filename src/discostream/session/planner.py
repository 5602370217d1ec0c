"""The planner: the policy in force, its table, and the plan of one request."""

from __future__ import annotations

from importlib.metadata import entry_points

import numpy as np

from discostream.config import PolicySettings, suggest
from discostream.core.policies import PlanTable, Policy
from discostream.core.profile import Known
from discostream.errors import ConfigError
from discostream.types import Plan

__all__ = ["GROUP", "Planner", "load_policy"]

GROUP = "discostream.policies"
REBUILD_AFTER = 16
"""Requests between two plan tables; building one takes about a tenth of a millisecond."""


def load_policy(name: str) -> Policy:
    """The policy of that name; built-ins and strangers come in by the same entry-point group.

    Raises:
        ConfigError: No such policy is installed.
    """
    known = {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}
    if name not in known:
        raise ConfigError(f"policy.name = {name!r}: no such policy; {suggest(name, known)}")
    policy: Policy = known[name].load()
    return policy


class Planner:
    """Plans requests by a table that is made anew as knowledge grows.

    Args:
        settings: The policy's name and budget.
        seed: For policies that draw; `None` is different every time.
    """

    def __init__(self, settings: PolicySettings, seed: int | None = None) -> None:
        self.settings = settings
        self._policy = load_policy(settings.name)
        self._rng = np.random.default_rng(seed)
        self._table: PlanTable | None = None
        self._age = 0

    def plan(self, known: Known, prompt_tokens: int) -> Plan:
        """Who starts when, for a prompt of this length.

        Raises:
            ConfigError: The policy names nobody, or an endpoint that does not exist.
        """
        if self._table is None or self._age >= REBUILD_AFTER:
            self._table, self._age = self._policy(known, self.settings), 0
        self._age += 1
        plan = self._table.choose(prompt_tokens, self._rng.random())
        names = {start.endpoint for start in plan.starts}
        if not names or not names <= {endpoint.name for endpoint in known.endpoints}:
            raise ConfigError(
                f"policy.name = {self.settings.name!r}: plans {sorted(names) or 'nobody'}; correct the policy"
            )
        return plan
