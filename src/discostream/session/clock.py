"""The clock of the event loop, for those who look at it for every piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

__all__ = ["running_clock"]


def running_clock() -> Callable[[], float]:
    """`anyio.current_time` of the running loop, without finding out each time which one that is."""
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:  # another library's loop
        return anyio.current_time
