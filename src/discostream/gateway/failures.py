"""Endpoints that fail, in the operator's log: when that begins and when it is over, not by every request."""

from __future__ import annotations

import logging

from discostream.types import Attempt, AttemptOutcome, Outcome, Request

__all__ = ["FailureLog"]

log = logging.getLogger(__name__)

OF_THE_REQUEST = ("400", "413", "422")
"""By which an endpoint refuses a request for what it says, which tells nothing of the endpoint."""


class FailureLog:
    """Told of every request that was settled, it tells of endpoints that begin to fail, or cease to."""

    def __init__(self) -> None:
        self._failing: set[str] = set()

    def tell(self, request: Request, outcome: Outcome) -> None:
        """Look at what every attempt came to."""
        for attempt in outcome.attempts:
            if attempt.outcome is AttemptOutcome.FAILED and attempt.error_type not in OF_THE_REQUEST:
                self._begin(attempt)
            elif attempt.error is None and attempt.ttft_s is not None:
                self._end(attempt)

    def _begin(self, attempt: Attempt) -> None:
        if attempt.endpoint not in self._failing:
            self._failing.add(attempt.endpoint)
            log.warning("%s; told once, until it answers again", attempt.error)

    def _end(self, attempt: Attempt) -> None:
        if attempt.endpoint in self._failing:
            self._failing.remove(attempt.endpoint)
            log.warning("%s: answers again", attempt.endpoint)
