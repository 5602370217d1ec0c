"""The planner: the policy in force, its table, and the plan of one request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import Protocol

import anyio
import anyio.to_thread
import msgspec.structs
import numpy as np

from discostream.config import PolicySettings
from discostream.core.budget import POLICY_SHARE, Allowance
from discostream.core.plans import PlanTable
from discostream.core.plugins import load_policy
from discostream.core.profile import DeviceTtft, Known
from discostream.errors import ConfigError
from discostream.types import Plan

__all__ = ["Outlook", "Planner", "Source", "in_a_thread"]

log = logging.getLogger(__name__)

REBUILD_AFTER = 32
"""Requests after which a table is made anew."""

REBUILD_AFTER_S = 30.0
"""Seconds after which it is: budgets, batteries and the age of observations do not wait for requests."""

OTHERS = 16
"""How many other planners are kept: clients name shares, of which there is no end."""


class Source(Protocol):
    """Where a planner looks before it makes a table."""

    def known(self) -> Known:
        """One frozen snapshot of this moment."""

    def version(self) -> object:
        """Something that is equal as long as a table made earlier still fits."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """A snapshot of what is known, and the table that was made from it.

    Attributes:
        made_at_s: When that was (seconds since the epoch).
    """

    known: Known
    table: PlanTable
    made_at_s: float = field(default_factory=time.time)


@dataclass(frozen=True)
class _WithoutShare:
    """The same source, but for `policy.share` and what was spent of it."""

    source: Source

    def known(self) -> Known:
        known = self.source.known()
        kept = tuple(each for each in known.allowances if each.budget != POLICY_SHARE)
        return replace(known, allowances=kept)

    def version(self) -> object:
        return self.source.version()


def in_a_thread(work: Callable[[], None]) -> None:
    """Do the work beside the event loop."""
    Thread(target=work, name="disco-planner").start()


class Planner:
    """Plans requests by a table that is made anew as knowledge grows, while the old one serves.

    Args:
        settings: The policy's name and its own settings.
        source: What the tables are made from.
        seed: For policies that draw; `None` is different every time.
        elsewhere: Runs the making of tables; only a request that finds none at all waits for one.
    """

    def __init__(
        self,
        settings: PolicySettings,
        source: Source,
        seed: int | None = None,
        elsewhere: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:
        self.settings = settings
        self._policy = load_policy(settings.name)
        self._source = source
        self._seed = seed
        self._elsewhere = elsewhere
        self._rng = np.random.default_rng(seed)
        self._outlook: Outlook | None = None
        self._next: Outlook | None = None
        self._building = False
        self._first = anyio.Lock()
        self._planned = 0
        self._asked = 0
        self._made_at = 0.0
        self._made_from: object = None
        self._others: dict[tuple[str, float | None], Planner] = {}

    @property
    def latest(self) -> Outlook | None:
        """What the next request is planned by; `None` before the first table."""
        return self._next or self._outlook

    @property
    def planned(self) -> int:
        """How many requests were planned by that."""
        return 0 if self._next else self._planned

    @property
    def allowances(self) -> tuple[Allowance, ...]:
        """What the latest table was made to spend; nothing before the first."""
        return () if self.latest is None else self.latest.known.allowances

    def under(self, policy: str | None, share: float | None = None) -> Planner:
        """The planner for another policy or share with the same source; this one where neither is another.

        Those used least recently are forgotten.

        Raises:
            ConfigError: No such policy is installed.
        """
        key = policy or self.settings.name, share
        if key == (self.settings.name, None):
            return self
        other = self._others.pop(key, None) or self.another(*key)
        self._others[key] = other
        if len(self._others) > OTHERS:
            del self._others[next(iter(self._others))]
        return other

    def foreseeing(self, policy: str | None, share: float | None) -> Planner:
        """One that plans as that `under` these would now, to be asked without a trace.

        This one where neither is another, once it has a table.

        Raises:
            ConfigError: No such policy is installed.
        """
        policy = policy or self.settings.name
        in_force = (policy, share) == (self.settings.name, None) and self.latest is not None
        return self if in_force else self.another(policy, share)

    def another(self, policy: str, share: float | None) -> Planner:
        """A new planner for this policy and share.

        A share of its own is planned by as it is: what was spent of the settings' one does not change it.

        Raises:
            ConfigError: No such policy is installed.
        """
        settings, source = msgspec.structs.replace(self.settings, name=policy), self._source
        if share is not None:
            settings, source = msgspec.structs.replace(settings, share=share), _WithoutShare(source)
        other = Planner(settings, source, self._seed, self._elsewhere)
        other._first = self._first  # many at once would leave running answers little of the interpreter
        return other

    def prepare(self, at: float) -> None:
        """Begin to make the first table, so that the first request need not wait for it."""
        if self._outlook is None and not self._building:
            self._begin(at)

    async def ready(self, at: float) -> None:
        """Return once there is a table; the first is made in a thread, once for all who wait for it.

        First tables of other policies and shares are made before it or after it, never beside it.

        Raises:
            ConfigError: As from `outlook`.
        """
        if self.latest is not None:
            return
        async with self._first:
            if self.latest is None:
                self._note_rebuild(at)
                self._outlook = await anyio.to_thread.run_sync(self._build, self._source.known())

    def outlook(self, at: float) -> Outlook:
        """What to plan by at the moment `at` (monotonic seconds).

        Raises:
            ConfigError: The policy makes no first table, or one that nobody can plan by.
        """
        if self._next is not None:
            self._outlook, self._next = self._next, None
            self._planned = 0
        if self._outlook is None:
            self._note_rebuild(at)
            self._outlook = self._build(self._source.known())
        elif not self._building and self._is_due(at):
            self._begin(at)
        self._asked += 1
        self._planned += 1
        return self._outlook

    def choose(
        self,
        outlook: Outlook,
        prompt_tokens: float,
        uncached_tokens: Mapping[str, float],
        running: Mapping[str, int],
    ) -> Plan:
        """Who starts when, for one request.

        Args:
            outlook: What to plan by.
            prompt_tokens: The prompt's length.
            uncached_tokens: How much of it each device would have to read; all of it for those left out.
            running: How many attempts run at each endpoint.
        """
        length = _length_to_look_up(outlook.known, prompt_tokens, uncached_tokens, running)
        return outlook.table.choose(length, self._rng.random())

    def _is_due(self, at: float) -> bool:
        return (
            self._asked >= REBUILD_AFTER
            or at - self._made_at >= REBUILD_AFTER_S
            or self._source.version() != self._made_from
        )

    def _begin(self, at: float) -> None:
        self._note_rebuild(at)
        known = self._source.known()
        self._building = True
        try:
            self._elsewhere(lambda: self._rebuild(known))
        except RuntimeError:  # no thread can be started at this moment
            self._building = False
            log.warning("no new table could be made beside the requests; the old one serves on")

    def _note_rebuild(self, at: float) -> None:
        self._asked, self._made_at, self._made_from = 0, at, self._source.version()

    def _rebuild(self, known: Known) -> None:
        try:
            self._next = self._build(known)
        except Exception:
            log.exception("policy %r could not make a new table; the old one serves on", self.settings.name)
        finally:
            self._building = False

    def _build(self, known: Known) -> Outlook:
        try:
            table = self._policy(known, self.settings)
            defect = _defect_of(table, known)
        except ConfigError:
            raise
        except Exception as error:
            raise self._faulty(f"makes no plan: {type(error).__name__}: {error}") from error
        if defect:
            raise self._faulty(defect)
        return Outlook(known, table)

    def _faulty(self, defect: str) -> ConfigError:
        return ConfigError(f"policy.name = {self.settings.name!r}: {defect}; correct the policy")


def _defect_of(table: PlanTable, known: Known) -> str:
    """What is wrong with a table; empty for a good one."""
    strangers = set(table.endpoints) - {endpoint.name for endpoint in known.endpoints}
    if strangers:
        return f"plans {sorted(strangers)}"
    if not _fits_itself(table):
        return "its rows, weights and offsets do not fit each other and its endpoints"
    if not np.allclose(table.weights.sum(axis=-1), 1.0) or (table.weights < 0).any():
        return "its weights are no shares of each row"
    if table.longest.size == 0 or table.longest[-1] != np.inf or (np.diff(table.longest) < 0).any():
        return "its rows do not rise to prompts of any length"
    idle = np.isnan(table.offsets).all(axis=-1) & (table.weights > 0)
    return "plans nobody" if idle.any() else ""


def _fits_itself(table: PlanTable) -> bool:
    rows, weights, endpoints = table.longest.shape, table.weights.shape, len(table.endpoints)
    return len(weights) == 2 and weights[:1] == rows and table.offsets.shape == (*weights, endpoints)


def _length_to_look_up(
    known: Known, prompt_tokens: float, uncached_tokens: Mapping[str, float], running: Mapping[str, int]
) -> float:
    """The prompt length whose plan fits: shorter for a cached prefix, longer for a queue at the device."""
    for endpoint in known.endpoints:
        if isinstance(endpoint.ttft, DeviceTtft):
            s_per_token, _ = endpoint.ttft.line()
            felt = uncached_tokens.get(endpoint.name, prompt_tokens)
            queued_s = endpoint.wait_s(running.get(endpoint.name, 0))
            return felt + queued_s / s_per_token if s_per_token > 0 else felt
    return prompt_tokens
