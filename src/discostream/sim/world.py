"""The world of a simulation: how endpoints really behave, what is known of them, and what chance decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.core.profile import EndpointProfile, Known
from discostream.sim.reading import Reading

__all__ = ["TAKEOVER", "TRIES", "Handoff", "Luck", "Requests", "Service", "World"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

TRIES = 3
"""Attempts that an endpoint may be asked for by one request: two starts in a race, and a takeover."""

TAKEOVER = 2
"""Which of them goes on with another's answer."""


class Handoff(StrEnum):
    """How a running answer moves, if it does."""

    OFF = "off"
    MAKE_BEFORE_BREAK = "make-before-break"
    """The source goes on until the target's first token (`core/handoff.py`)."""
    STOP_THEN_START = "stop-then-start"
    """The source stops when the target is asked, as in the paper. A target that fails is asked once more, and
    answers after its median time.
    """


@dataclass(frozen=True, eq=False)
class Requests:
    """What arrives; shape (requests,) each.

    Attributes:
        cached_tokens: How much of each prompt a device need not read again.
        draws: Uniform in [0, 1), by which a plan picks among its actions.
        felt_tokens: The prompt lengths that plans are looked up by.
        arrived_at_s: When they arrive, never falling; `None` if each comes alone.
    """

    prompt_tokens: Floats
    output_tokens: Integers
    cached_tokens: Floats
    draws: Floats
    felt_tokens: Floats
    arrived_at_s: Floats | None = None

    def __len__(self) -> int:
        return self.prompt_tokens.size


@dataclass(frozen=True, eq=False)
class Luck:
    """What chance has in store for every request's attempts on one endpoint; shape (TRIES, requests) each.

    Attributes:
        ttft_s: From an attempt's start to its first token, but for the time that reading the prompt takes a
            device; infinite if it fails.
        failed_after_s: From its start to its failure; infinite if it does not fail.
        recording: Which recording its tokens follow.
        queued_s: How much of `ttft_s` it waits for a slot; `None` where nobody ever does.
    """

    ttft_s: Floats
    failed_after_s: Floats
    recording: Integers
    queued_s: Floats | None = None

    def wait_s(self, attempt: int, rows: Integers) -> Floats:
        """How long one of the attempts waits for a slot, of these requests."""
        return np.zeros(rows.size) if self.queued_s is None else np.asarray(self.queued_s[attempt, rows])


@dataclass(frozen=True, eq=False)
class Service:
    """An endpoint as it behaves, which is not quite what is known of it.

    Attributes:
        reading: How its tokens follow the first, and how a reader takes them.
        s_per_token: How long it reads a token of the prompt; 0 for a server.
        startup_s: Added to that.
    """

    reading: Reading
    s_per_token: float = 0.0
    startup_s: float = 0.0

    def ttft_s(self, uncached_tokens: Floats, luck_s: Floats) -> Floats:
        """From the start of attempts to their first token, by prompt and by luck; shape (attempts,)."""
        return np.asarray(self.s_per_token * uncached_tokens + self.startup_s + luck_s)


@dataclass(frozen=True, eq=False)
class World:
    """What all requests share.

    Attributes:
        known: What plans and handoffs go by: one device, one server, or both.
        services: How each of them really behaves, by name.
        consumption_tokens_per_s: The reader's pace.
        handoff: How answers move.
        warm_standby: Whether a device that lost a race keeps what it had read of the prompt.
        t_m_factor: By what the time that a handoff may take is misjudged.
        remaining_factor: By what the length of the rest is misjudged.
    """

    known: Known
    services: Mapping[str, Service]
    consumption_tokens_per_s: float
    handoff: Handoff = Handoff.MAKE_BEFORE_BREAK
    warm_standby: bool = True
    t_m_factor: float = 1.0
    remaining_factor: float = 1.0

    def other_than(self, name: str) -> EndpointProfile | None:
        """Where an answer could go on, if there is such an endpoint."""
        return next((each for each in self.known.endpoints if each.name != name), None)
