"""The plan of a moment and what it rests on, and what more of each budget would buy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import anyio
import anyio.to_thread

from discostream.config import PolicySettings
from discostream.core.budget import POLICY_SHARE, Allowance
from discostream.core.forecast import Forecast, forecast
from discostream.core.optimal import solve
from discostream.core.policies import FIXED_POLICIES, allowances_of
from discostream.core.rows import Row, merged_rows, without_servers
from discostream.session.knowledge import Experience
from discostream.session.planner import Outlook

__all__ = ["PlanInForce", "Worth", "foreseen"]


@dataclass(frozen=True, slots=True)
class PlanInForce:
    """A plan, and what it rests on.

    Attributes:
        settings: By which it was made; the share is the settings' own, or the one that was asked for.
        outlook: What was known, and the table.
        requests: How many were planned by it.
        rows: The table as people read it.
        forecast: What the requests that are known of may expect.
        experience: How much of each endpoint has been seen.
        chars_per_token: By which a prompt's length is estimated.
    """

    settings: PolicySettings
    outlook: Outlook
    requests: int
    rows: tuple[Row, ...]
    forecast: Forecast
    experience: Mapping[str, Experience]
    chars_per_token: float

    @property
    def share(self) -> Allowance | None:
        """The share that was planned by, and of which kind; `None` where there is none, or no use for one."""
        if self.settings.name in FIXED_POLICIES:
            return None
        kept = allowances_of(self.outlook.known, self.settings)
        return next((each for each in kept if each.budget == POLICY_SHARE), None)


def foreseen(outlook: Outlook, settings: PolicySettings) -> tuple[tuple[Row, ...], Forecast]:
    """The rows that hold for a request, and what to expect of them; without servers where all is private."""
    known, table = outlook.known, outlook.table
    if settings.private:
        table = without_servers(known, table)
    return tuple(merged_rows(table)), forecast(known, table, deadline_s=settings.deadline_s)


class Worth:
    """What one more unit of each budget would buy the best plan, computed once for every outlook.

    Args:
        settings: The policy's.

    Attributes:
        latest: Shadow prices by the budget's name, of the outlook that was last asked for; none where no plan
            keeps all budgets, or every request is private.
    """

    def __init__(self, settings: PolicySettings) -> None:
        self.latest: Mapping[str, float] = {}
        self._settings = settings
        self._outlook: Outlook | None = None
        self._computing = anyio.Lock()

    async def of(self, outlook: Outlook) -> Mapping[str, float]:
        """The shadow prices under this outlook, from a thread where they are not known yet."""
        async with self._computing:
            if outlook is not self._outlook:
                self.latest = await anyio.to_thread.run_sync(self._solve, outlook)
                self._outlook = outlook
        return self.latest

    def _solve(self, outlook: Outlook) -> Mapping[str, float]:
        if self._settings.private or not allowances_of(outlook.known, self._settings):
            return {}
        solution = solve(outlook.known, self._settings)
        if not solution.feasible:
            return {}
        return {price.budget: price.s_per_unit for price in solution.shadow_prices}
