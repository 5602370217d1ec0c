"""`GET /dashboard/api/…`: what the dashboard shows, as JSON, out of the ledger but for what runs just now."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from aiohttp import web

from discostream.core.times import moment_of
from discostream.errors import ConfigError, RequestRejected
from discostream.gateway.chat import DISCO
from discostream.gateway.errors import ErrorReply
from discostream.gateway.query import json_response, parameters
from discostream.ledger.overview import overview
from discostream.ledger.queries import OUTCOMES, Wanted, page, settled_as
from discostream.ledger.reading import utc
from discostream.ledger.store import default_ledger_path
from discostream.wire.openai_schema import encode_error

__all__ = ["MOST_READERS", "READERS", "dashboard_routes"]

log = logging.getLogger(__name__)

FILTERS = ("since", "until", "policy", "endpoint", "outcome")
USUAL_SPAN, EVERYTHING = "1h", "all"
USUAL_PAGE, LONGEST_PAGE = 50, 500
LAST_KEY = 2**63 - 1

READERS = web.AppKey("readers", anyio.CapacityLimiter)
MOST_READERS = 4
"""How many read the ledger at a time: each holds a thread, as plans need, and all that it has found."""


def dashboard_routes() -> list[web.RouteDef]:
    """The routes of everything that the dashboard asks for."""
    return [
        web.get("/dashboard/api/overview", _overview),
        web.get("/dashboard/api/requests", _requests),
        web.get("/dashboard/api/requests/{id}", _request),
        web.get("/dashboard/api/live", _live),
    ]


async def _overview(http: web.Request) -> web.Response:
    wanted = _wanted(parameters(http, *FILTERS))
    return await _answered(http, partial(overview, _ledger(http), wanted))


async def _requests(http: web.Request) -> web.Response:
    asked = parameters(http, *FILTERS, "limit", "before")
    limit = _number(asked, "limit", LONGEST_PAGE) or USUAL_PAGE
    before = _number(asked, "before", LAST_KEY)
    return await _answered(http, partial(_page, _ledger(http), limit, _wanted(asked), before))


def _page(ledger: str | Path, limit: int, wanted: Wanted, before: int | None) -> dict[str, Any]:
    requests, following = page(ledger, limit, wanted, before)
    return {"requests": requests, "next": None if following is None else str(following)}


async def _request(http: web.Request) -> web.Response:
    parameters(http)
    return await _answered(http, partial(_settled, _ledger(http), http.match_info["id"]))


def _settled(ledger: str | Path, request_id: str) -> dict[str, Any]:
    found = settled_as(ledger, request_id)
    if not found:
        raise RequestRejected(
            f"id {request_id!r}: no settled request has it; /dashboard/api/requests lists them",
            param="id",
            status=404,
        )
    return {"requests": [settled.as_json() for settled in found]}


async def _live(http: web.Request) -> web.Response:
    parameters(http)
    now, requests = utc(datetime.now(UTC)), http.app[DISCO].live()
    return json_response(msgspec.json.encode({"now": now, "requests": requests}))


async def _answered(http: web.Request, looking: Callable[[], object]) -> web.Response:
    """What was found, looked for and written down in a thread, while answers go on."""
    try:
        found = await anyio.to_thread.run_sync(
            lambda: msgspec.json.encode(looking()), limiter=http.app[READERS]
        )
        return json_response(found)
    except ConfigError as error:
        log.error("%s", error)
        body = encode_error(str(error), "server_error", code="ledger_unreadable")
        return ErrorReply(500, body).as_response()


def _ledger(http: web.Request) -> str | Path:
    return http.app[DISCO].settings.ledger.path or default_ledger_path()


def _wanted(asked: dict[str, str]) -> Wanted:
    """The requests that are asked for.

    Raises:
        RequestRejected: A moment is none, they are the wrong way round, or there is no such outcome.
    """
    now = datetime.now(UTC)
    begins, outcome = asked.get("since", USUAL_SPAN), asked.get("outcome")
    since = None if begins == EVERYTHING else _moment("since", begins, now)
    until = _moment("until", asked["until"], now) if "until" in asked else None
    if since is not None and since >= (until or now):
        raise RequestRejected(f"since {begins!r}: must be before until", param="since")
    if outcome not in (None, *OUTCOMES):
        raise RequestRejected(f"outcome {outcome!r}: must be one of {', '.join(OUTCOMES)}", param="outcome")
    chosen = {name: asked.get(name) for name in ("policy", "endpoint", "outcome")}
    return Wanted(since=since, until=until, **chosen)


def _moment(name: str, text: str, now: datetime) -> datetime:
    try:
        return moment_of(name, text, now)
    except ConfigError as error:
        raise RequestRejected(str(error), param=name) from None


def _number(asked: dict[str, str], name: str, most: int) -> int | None:
    """A parameter that counts; `None` where it is left out.

    Raises:
        RequestRejected: It is no number, or not one from 1 to `most`.
    """
    text = asked.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        raise RequestRejected(f"{name} {text!r}: must be a whole number from 1 to {most}", param=name)
    return int(text)
