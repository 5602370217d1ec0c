"""The way of one request, from arrival to settlement: six steps, in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import anyio
import anyio.lowlevel

from discostream.core.pacing import Reader
from discostream.core.stops import StopFilter
from discostream.errors import AllEndpointsFailed, ConfigError
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.session.deliver import Delivery
from discostream.session.house import House
from discostream.session.live import Watched
from discostream.session.outlet import Sink
from discostream.session.pins import able, explained, narrowed
from discostream.session.planner import Outlook, Planner
from discostream.session.race import race
from discostream.session.settle import settle
from discostream.session.successors import Successors
from discostream.session.written import Written
from discostream.types import PROBE, Delivered, FinishReason, Message, Outcome, Plan, Request, Start

__all__ = ["Client", "run"]

log = logging.getLogger(__name__)


class Client(Sink, Protocol):
    """Whoever reads the answer.

    Attributes:
        left: To be cancelled when the client leaves; that ends every attempt.
    """

    left: anyio.CancelScope

    def settled(self, outcome: Outcome) -> None:
        """Be told how it all ended; called exactly once, also when everything was cancelled."""


async def run(request: Request, house: House, client: Client) -> None:
    """Answer one request.

    Args:
        request: Step 1, what to answer; one of the faces has made it from bytes.
        house: The endpoints, what is known of them, and the ledger.
        client: Takes the pieces and the outcome.

    Raises:
        AllEndpointsFailed: Nothing could answer, or go on answering; what was spent is settled all the same.
    """
    planner = house.planner if request.endpoint else house.planner.under(request.policy, request.share)
    if planner is not house.planner:
        with anyio.CancelScope(shield=True):  # whoever leaves meanwhile is settled below, as all are
            await planner.ready(request.arrived_at)
    outlook = planner.outlook(request.arrived_at)  # 2 profile
    known = outlook.known
    estimated_tokens = house.knowledge.estimate_tokens(request.prompt_chars)
    uncached = _uncached_tokens(request, house)
    plan = _plan(request, house, planner, outlook, estimated_tokens, uncached)  # 3 plan
    endpoints = {start.endpoint: house.endpoints[start.endpoint] for start in plan.starts}
    attempts = Attempts(endpoints, estimated_tokens, house.running, house.purse)
    if request.annotated:
        attempts.on_started = partial(_announce, request, client)
    reader = Reader(house.migration.consumption_tokens_per_s)
    outlet = house.outlet(request, client)
    written = Written(outlet, reader, StopFilter(request.stop), request.arrived_at)
    successors = Successors(request, known, endpoints, uncached, attempts, written, house.migration)
    delivery = Delivery(request, attempts, written, successors, house.migration)
    house.live[client] = Watched(request, plan, attempts, written, delivery)
    finish: FinishReason | None = None
    failure: Exception | None = None
    try:
        with client.left:
            await anyio.lowlevel.checkpoint_if_cancelled()
            async with attempts, outlet:
                try:
                    lead = await race(plan, request, attempts)  # 4 race
                    finish = await delivery.run(lead)  # 5 deliver / migrate
                except Exception as error:
                    # Kept until the task group is left, which would wrap it in an exception group.
                    failure = explained(error, request)
    finally:
        at_s = time.time()
        outcome = settle(  # 6 settle
            request, plan, known, attempts, written, finish, delivery.why_stayed(), _told(failure)
        )
        house.purse.count(outcome)
        with anyio.CancelScope(shield=True):
            await _record(outcome, at_s, house)
        house.knowledge.observe(outcome, at_s)
        _remember(request, attempts, written, house)
        _tell(request, outcome, house)
        client.settled(outcome)
    if failure is not None:
        raise failure


def _plan(
    request: Request,
    house: House,
    planner: Planner,
    outlook: Outlook,
    estimated_tokens: int,
    uncached: Mapping[str, float],
) -> Plan:
    """The one endpoint that the request names, or what the policy says, its shares kept in balance.

    On devices alone, if the request is private, and on endpoints alone that can do what it needs.
    """
    if request.endpoint is not None:
        policy = PROBE if request.policy == PROBE else f"pinned to {request.endpoint}"
        return Plan(policy, (Start(request.endpoint, 0.0),))
    plan = planner.choose(outlook, estimated_tokens, uncached, house.running)
    if not request.private:
        kinds = {name: endpoint.kind for name, endpoint in house.endpoints.items()}
        plan = house.purse.smoothed(plan, kinds, estimated_tokens, request.share)
    if request.private or request.needs:
        return narrowed(plan, able(request, house.endpoints, planner.settings))
    return plan


def _announce(request: Request, client: Client, attempt: LiveAttempt) -> None:
    """Let the client know of an attempt as it begins."""
    client.take(Delivered("", 0, attempt.endpoint.name, attempt.started_at - request.arrived_at))


def _uncached_tokens(request: Request, house: House) -> dict[str, float]:
    """How much of the prompt each endpoint would have to read."""
    return {
        name: house.knowledge.estimate_tokens(house.conversations.uncached_chars(name, request.turns))
        for name in house.endpoints
    }


def _remember(request: Request, attempts: Attempts, written: Written, house: House) -> None:
    """Note who has read the prompt, and its answer too where one endpoint wrote all of it."""
    for attempt in attempts.started:
        if attempt.first_at is not None:
            messages = request.turns
            if attempt.won and not written.migrations:
                messages += (Message("assistant", written.text),)
            house.conversations.remember(attempt.endpoint.name, messages)


def _tell(request: Request, outcome: Outcome, house: House) -> None:
    """Tell whoever wants to know of it; what is wrong with them is not the request's fault."""
    for told in tuple(house.on_settled):  # one may take itself off
        try:
            told(request, outcome)
        except Exception:
            log.exception("request %s: %r could not be told of its outcome", request.request_id, told)


def _told(failure: Exception | None) -> str | None:
    if failure is None or isinstance(failure, AllEndpointsFailed):
        return str(failure) if failure else None
    return repr(failure)


async def _record(outcome: Outcome, at_s: float, house: House) -> None:
    try:
        await house.ledger.record(outcome, at_s)
    except Exception as error:
        # The reader has the answer already; what the ledger could not take is kept in the log.
        defect = None if isinstance(error, ConfigError) else error
        log.error("request not recorded: %s: %s", error, outcome.as_disco(), exc_info=defect)
