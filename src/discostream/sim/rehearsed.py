"""A world in which the same is asked again and again, and worked out once.

A single cell asks few things twice. Cells of one scene all ask where the readers of the same recordings wait,
and how much of an answer remains after every number of tokens; that took half of their time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.core.profile import Lengths
from discostream.sim.reading import ROUNDING_S, Reading
from discostream.sim.world import World

__all__ = ["rehearsed"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


def rehearsed(world: World) -> World:
    """The same world, for many simulations."""
    readings = {name: _reading(service.reading) for name, service in world.services.items()}
    return replace(
        world,
        known=replace(world.known, answer_tokens=_Recalled(world.known.answer_tokens.distribution)),
        services={name: replace(service, reading=readings[name]) for name, service in world.services.items()},
    )


class _Recalled(Lengths):
    """Lengths that nothing is added to any more."""

    @cached_property
    def _remaining(self) -> dict[float, float]:
        return {}

    def remaining(self, reached: float, max_tokens: int | None = None) -> float:
        """See `Lengths.remaining`."""
        if max_tokens is not None:
            return super().remaining(reached, max_tokens)
        if reached not in self._remaining:
            self._remaining[reached] = super().remaining(reached)
        return self._remaining[reached]


class _Rehearsed(Reading):
    """A reading all of whose recordings are read by many."""

    @cached_property
    def _waiting(self) -> tuple[Integers, Integers, Floats]:
        """Recordings, the tokens in them that readers of the whole wait for, and for how long."""
        each_s = np.diff(self.late_s, axis=1)
        recording, token = np.nonzero(each_s > ROUNDING_S)
        return recording, token + 1, each_s[recording, token]

    def waits_from_start(self, recording: Integers, tokens: Integers) -> tuple[Floats, Integers]:
        """See `Reading.waits_from_start`; all recordings at once, the readers of each sorted by length."""
        waited_in, token, spans_s = self._waiting
        length = self.at_s.shape[1] + 1
        readers = np.sort(recording * length + tokens)
        reached = np.searchsorted(readers, waited_in * length + token, side="right")
        times = np.searchsorted(readers, (waited_in + 1) * length) - reached
        return spans_s[times > 0], times[times > 0]


@lru_cache(maxsize=64)
def _reading(reading: Reading) -> _Rehearsed:
    return _Rehearsed(reading.at_s, reading.tokens_per_s)
