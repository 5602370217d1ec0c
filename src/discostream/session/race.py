"""The race: planned starts, and the first content wins.

The problem: start several endpoints, each after its own delay, take whichever answers first, and leave
nothing behind. The naive answer, the first *byte* wins, crowns servers that send headers, keep-alives or an
error in a 200; so only text, reasoning and tool calls count. A failed attempt brings the next planned start
forward, because waiting for it would only add to a bad day, and so does an endpoint that a spent budget keeps
from starting; who merely stands by starts when nobody runs any more. The last one running is never cut
(paper, section 4.2, has no failures).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio

from discostream.errors import BudgetSpent, EndpointError
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.types import AttemptOutcome, Finish, FinishReason, Piece, Plan, Prefix, Request, Start

__all__ = ["Lead", "race"]


@dataclass(frozen=True)
class Lead:
    """The winner and everything it has said so far.

    Attributes:
        events: Its pieces up to the first content; or no text and a `Finish`, when nobody had more to say.
        failures: What the attempts that failed on the way died of, the first one first.
        losers: The others, to be cancelled once the winner's words are on their way.
    """

    winner: LiveAttempt
    events: tuple[Piece | Finish, ...]
    failures: tuple[EndpointError, ...]
    losers: tuple[LiveAttempt, ...]


async def race(plan: Plan, request: Request, attempts: Attempts) -> Lead:
    """Run the plan until one attempt brings content.

    Raises:
        AllEndpointsFailed: Every endpoint of the plan was tried, and none brought an answer.
    """
    waiting = sorted(plan.starts, key=lambda start: _due_at(start, request))
    said: dict[LiveAttempt, list[Piece | Finish]] = {}
    running: set[LiveAttempt] = set()
    failures: list[EndpointError] = []
    hurried = False
    while waiting or running:
        while waiting and (hurried or not running or _due_at(waiting[0], request) <= anyio.current_time()):
            try:
                attempt = attempts.start(waiting.pop(0).endpoint, request, Prefix())
            except BudgetSpent:
                hurried = _is_planned(waiting)
                continue
            said[attempt] = []
            running.add(attempt)
            hurried = False
        if not running:
            break
        heard = await attempts.hear(until=_due_at(waiting[0], request) if waiting else math.inf)
        if heard is None:
            continue
        attempt, report = heard
        match report:
            case Piece():
                said[attempt].append(report)
                if report.is_content:
                    return _crown(attempt, said, failures)
            case Finish(reason):
                said[attempt].append(report)
                running.discard(attempt)
                if reason is FinishReason.CONTENT_FILTER:
                    return _crown(attempt, said, failures)
            case EndpointError():
                failures.append(report)
                running.discard(attempt)
                hurried = _is_planned(waiting)
    silent = [attempt for attempt in said if attempt.error is None]
    if not silent:
        raise attempts.exhausted(failures)
    return _crown(silent[0], said, failures)


def _due_at(start: Start, request: Request) -> float:
    return math.inf if start.offset_s is None else request.arrived_at + start.offset_s


def _is_planned(waiting: Sequence[Start]) -> bool:
    """Whether the next one waits for its time, and not for all others to fail."""
    return bool(waiting) and waiting[0].offset_s is not None


def _crown(
    winner: LiveAttempt, said: Mapping[LiveAttempt, list[Piece | Finish]], failures: list[EndpointError]
) -> Lead:
    winner.won = True
    if winner.error is None:  # else it broke before anybody heard what it had said
        winner.outcome = AttemptOutcome.WON
    losers = tuple(attempt for attempt in said if attempt is not winner)
    return Lead(winner, tuple(said[winner]), tuple(failures), losers)
