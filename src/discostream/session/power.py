"""The machine's power supply: from a socket or a battery, how full, how big."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

__all__ = ["PowerSupply", "battery_wh"]

READ_EVERY_S = 30.0
"""A charge changes by a per cent in some minutes."""

UNREADABLE = (AttributeError, OSError, RuntimeError, psutil.Error)
"""How psutil says that it cannot tell; on some platforms it has no such function at all."""

SUPPLIES = Path("/sys/class/power_supply")
MICRO = 1e-6


class PowerSupply:
    """Tells the charge, and asks the system for it no more often than it changes."""

    def __init__(self) -> None:
        self._charge: float | None = None
        self._read_at: float | None = None

    def charge(self) -> float | None:
        """How full the battery is that the machine runs on, in [0, 1]; `None` from a socket."""
        now = time.monotonic()
        if self._read_at is None or now - self._read_at >= READ_EVERY_S:
            self._charge, self._read_at = _read_charge(), now
        return self._charge


def _read_charge() -> float | None:
    try:
        battery = psutil.sensors_battery()
    except UNREADABLE:
        return None
    if battery is None or battery.power_plugged is not False:
        return None
    return min(max(float(battery.percent) / 100.0, 0.0), 1.0)


def battery_wh(supplies: Path = SUPPLIES) -> float | None:
    """What the full batteries hold together, in watt-hours, where the system says so (Linux); else `None`."""
    found = [energy for folder in sorted(supplies.glob("BAT*")) if (energy := _energy_wh(folder)) is not None]
    return sum(found) or None


def _energy_wh(folder: Path) -> float | None:
    if (energy := _number(folder / "energy_full")) is not None:
        return energy * MICRO
    charge, volts = _number(folder / "charge_full"), _number(folder / "voltage_min_design")
    return None if charge is None or volts is None else charge * MICRO * volts * MICRO


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
