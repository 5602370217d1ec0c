"""Endpoints that fail, in the operator's log: when that begins and when it is over, not by every request."""

from __future__ import annotations

import logging
import time

from discostream.types import Attempt, AttemptOutcome, Outcome, Request

__all__ = ["FailureLog"]

log = logging.getLogger(__name__)

QUIET_S = 60.0
"""How long an endpoint must not have failed to be told of as mended, so that a flaky one fills no log."""

OF_THE_REQUEST = ("400", "413", "422")
"""By which an endpoint refuses a request for what it says, which tells nothing of the endpoint."""


class FailureLog:
    """Told of every request that was settled, it tells of endpoints that begin to fail, or cease to."""

    def __init__(self) -> None:
        self._failed_at: dict[str, float] = {}

    def tell(self, request: Request, outcome: Outcome) -> None:
        """Look at what every attempt came to."""
        for attempt in outcome.attempts:
            if attempt.outcome is AttemptOutcome.FAILED and attempt.error_type not in OF_THE_REQUEST:
                self._note_failure(attempt)
            elif attempt.error is None and attempt.ttft_s is not None:
                self._note_answer(attempt.endpoint)

    def _note_failure(self, attempt: Attempt) -> None:
        if attempt.endpoint not in self._failed_at:
            log.warning("%s; told once, until it answers again", attempt.error)
        self._failed_at[attempt.endpoint] = time.monotonic()

    def _note_answer(self, endpoint: str) -> None:
        failed_at = self._failed_at.get(endpoint)
        if failed_at is not None and time.monotonic() - failed_at >= QUIET_S:
            del self._failed_at[endpoint]
            log.warning("%s: answers again", endpoint)
