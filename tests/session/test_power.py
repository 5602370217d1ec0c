"""The power supply, as the system tells of it."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from discostream.session.power import PowerSupply, battery_wh


@pytest.mark.parametrize(
    ("battery", "charge"),
    [
        (None, None),
        (SimpleNamespace(percent=40.0, power_plugged=True), None),
        (SimpleNamespace(percent=40.0, power_plugged=None), None),
        (SimpleNamespace(percent=40.0, power_plugged=False), 0.4),
        (SimpleNamespace(percent=103.0, power_plugged=False), 1.0),
    ],
)
def test_the_charge_counts_only_on_battery(monkeypatch, battery, charge):
    """Without a battery, plugged in, or where the system cannot tell, there is no charge to save."""
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert PowerSupply().charge() == charge


@pytest.mark.parametrize(
    "error",
    [
        psutil.AccessDenied(),
        PermissionError(13, "/sys/class/power_supply/BAT0/uevent"),
        RuntimeError("GetSystemPowerStatus failed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_battery_that_cannot_be_read_is_none(monkeypatch, error):
    """Whatever the system has against being asked, plans are made as from a socket."""

    def refuse():
        raise error

    monkeypatch.setattr(psutil, "sensors_battery", refuse, raising=False)
    assert PowerSupply().charge() is None


def test_a_platform_without_batteries(monkeypatch):
    """Where psutil does not know about batteries at all, there is none."""
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert PowerSupply().charge() is None


def test_this_machines_battery_can_be_read():
    """Whatever this machine runs on, reading it gives a charge in [0, 1] or none."""
    charge = PowerSupply().charge()
    assert charge is None or 0.0 <= charge <= 1.0


def test_the_system_is_not_asked_for_every_plan(monkeypatch):
    """The charge is read once and kept for a while."""
    asked = []
    monkeypatch.setattr(psutil, "sensors_battery", lambda: asked.append(1), raising=False)
    supply = PowerSupply()
    assert [supply.charge() for _ in range(5)] == [None] * 5
    assert len(asked) == 1


def test_the_batterys_size_by_energy_or_by_charge(tmp_path):
    """A battery tells its watt-hours, or ampere-hours and volts; several are added up."""
    (tmp_path / "BAT0").mkdir()
    (tmp_path / "BAT0" / "energy_full").write_text("50000000\n")
    (tmp_path / "BAT1").mkdir()
    (tmp_path / "BAT1" / "charge_full").write_text("2000000\n")
    (tmp_path / "BAT1" / "voltage_min_design").write_text("11500000\n")
    (tmp_path / "AC").mkdir()
    (tmp_path / "AC" / "energy_full").write_text("1")
    assert battery_wh(tmp_path) == pytest.approx(50.0 + 23.0)


def test_a_battery_of_unknown_size(tmp_path):
    """Where the system does not say how much a battery holds, nobody guesses."""
    (tmp_path / "BAT0").mkdir()
    assert battery_wh(tmp_path) is None
