"""The way of one request, from arrival to settlement: six steps, in order."""

from __future__ import annotations

import logging

import anyio

from discostream.core.pacing import Reader
from discostream.errors import AllEndpointsFailed, DiscoError
from discostream.session.attempts import Attempts
from discostream.session.deliver import Delivery
from discostream.session.house import House
from discostream.session.race import race
from discostream.session.settle import estimate_tokens, settle
from discostream.session.written import Emit, Written
from discostream.types import FinishReason, Outcome, Request

__all__ = ["run"]

log = logging.getLogger(__name__)


async def run(
    request: Request, house: House, emit: Emit, client: anyio.CancelScope
) -> tuple[Outcome, AllEndpointsFailed | None]:
    """Answer one request.

    Args:
        request: Step 1, what to answer; one of the faces has made it from bytes.
        house: The endpoints, what is known of them, and the ledger.
        emit: Takes each delivered piece to the client.
        client: Cancelled when the client leaves, which ends every attempt.

    Returns:
        The settled outcome, and the failure if the answer broke off.
    """
    known = house.knowledge.known(house.usd_per_joule)  # 2 profile
    plan = house.planner.plan(known, estimate_tokens(request))  # 3 plan
    endpoints = {start.endpoint: house.endpoints[start.endpoint] for start in plan.starts}
    attempts = Attempts(endpoints)
    written = Written(request.arrived_at, emit, Reader(house.migration.consumption_tokens_per_s))
    finish: FinishReason | None = None
    failure: AllEndpointsFailed | None = None
    try:
        with client:
            async with attempts:
                try:
                    lead = await race(plan, request, attempts)  # 4 race
                    delivery = Delivery(request, known, endpoints, attempts, written, house.migration)
                    finish = await delivery.run(lead)  # 5 deliver / migrate
                except AllEndpointsFailed as broken:
                    failure = broken
    finally:
        kinds = {name: endpoint.kind for name, endpoint in endpoints.items()}
        error = str(failure) if failure else None
        outcome = settle(request, plan, known, kinds, attempts.started, written, finish, error)  # 6 settle
        with anyio.CancelScope(shield=True):
            await _record(outcome, house)
        house.knowledge.observe(outcome)
    return outcome, failure


async def _record(outcome: Outcome, house: House) -> None:
    try:
        await house.ledger.record(outcome)
    except DiscoError as error:
        # The reader has the answer already; what the ledger could not take is kept in the log.
        log.error("request not recorded: %s: %s", error, outcome.as_disco())
