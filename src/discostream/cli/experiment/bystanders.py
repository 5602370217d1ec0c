"""Other programs, which slow an experiment down that shares the machine with them."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

__all__ = ["Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds of all cores together, since some moment in the past.

    Attributes:
        total_s: All there were.
        idle_s: Those that nobody used.
        ours_s: Those that this process and its children used.
    """

    total_s: float
    idle_s: float
    ours_s: float

    @classmethod
    def now(cls) -> Usage:
        """As of this moment."""
        times = psutil.cpu_times()._asdict()
        ours = psutil.Process()
        family = [each.cpu_times() for each in (ours, *ours.children(recursive=True))]
        return cls(
            total_s=sum(seconds for kind, seconds in times.items() if not kind.startswith("guest")),
            idle_s=times["idle"] + times.get("iowait", 0.0),
            ours_s=sum(each.user + each.system for each in family),
        )

    def taken_by_others(self, before: Usage) -> float:
        """The share of all cores that other programs have used since a moment before."""
        total_s = self.total_s - before.total_s
        used_s = total_s - (self.idle_s - before.idle_s) - (self.ours_s - before.ours_s)
        return min(max(used_s / total_s, 0.0), 1.0) if total_s > 0 else 0.0
