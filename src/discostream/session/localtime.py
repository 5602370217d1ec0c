"""The local time, with the rules by which its clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

__all__ = ["local_now"]


class _SystemZone(tzinfo):
    """The zone that this machine is set to.

    `datetime.astimezone()` gives a fixed offset, by which midnight is an hour off on the days clocks change.
    """

    def utcoffset(self, at: datetime | None) -> timedelta | None:
        return None if at is None else at.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, at: datetime | None) -> timedelta | None:
        return None

    def tzname(self, at: datetime | None) -> str | None:
        return None if at is None else at.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, at: datetime) -> datetime:
        local = at.replace(tzinfo=UTC).astimezone()
        wall = local.replace(tzinfo=self)
        return wall if wall.utcoffset() == local.utcoffset() else wall.replace(fold=1)


_SYSTEM_ZONE = _SystemZone()


def local_now() -> datetime:
    """This moment, in the zone of this machine."""
    return datetime.now(_SYSTEM_ZONE)
