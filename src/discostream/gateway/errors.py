"""Errors as clients see them: an HTTP status and an OpenAI-shaped body."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestPayloadError

from discostream.errors import (
    AllEndpointsFailed,
    AnswerInterrupted,
    BudgetSpent,
    EndpointError,
    NotConnected,
    Phase,
    RequestRejected,
)
from discostream.wire.openai_schema import encode_error
from discostream.wire.openai_upstream import CONTEXT_LENGTH_EXCEEDED

__all__ = ["ErrorReply", "answer_errors", "describe"]

log = logging.getLogger(__name__)

CLIENTS_FAULT = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
"""By which every endpoint refuses what none can read, such as tools without a name."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """What an error becomes on the wire.

    Attributes:
        body: The error object, which also serves as an event once a stream has begun.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def as_response(self) -> web.Response:
        """The reply as an HTTP response."""
        return web.Response(
            status=self.status, body=self.body, headers=self.headers, content_type="application/json"
        )


def describe(error: Exception) -> ErrorReply:
    """The reply to a client for any error; those that are our own fault are logged and not told."""
    match error:
        case RequestRejected():
            headers = {"WWW-Authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else {}
            body = encode_error(str(error), "invalid_request_error", param=error.param, code=error.code)
            return ErrorReply(error.status, body, headers)
        case AllEndpointsFailed():
            return _describe_failure(error)
        case AnswerInterrupted() | NotConnected():
            return ErrorReply(503, encode_error(str(error), "server_error", code="interrupted"))
        case RequestPayloadError():
            body = encode_error("The body could not be read; see its encoding", "invalid_request_error")
            return ErrorReply(400, body)
        case web.HTTPException():
            headers = {name: value for name, value in error.headers.items() if name == "Allow"}
            body = encode_error(_sentence(error), "invalid_request_error")
            return ErrorReply(error.status, body, headers)
        case _:
            log.error("a request failed because of a defect in discostream", exc_info=error)
            body = encode_error("Internal error; the gateway's log has the details", "server_error")
            return ErrorReply(500, body)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's response, or the reply to what it raised before it began one."""
    try:
        return await handler(request)
    except ConnectionError:
        raise  # the client is gone
    except Exception as error:
        return describe(error).as_response()


def _describe_failure(error: AllEndpointsFailed) -> ErrorReply:
    """Endpoints were raced and tried in turn already, so a client's own retries would only cost more."""
    headers = {"x-should-retry": "false"}
    tried = [cause for cause in error.causes if not isinstance(cause, BudgetSpent)]
    if not tried:
        body = encode_error(str(error), "insufficient_quota", code=error.first.code)
        return ErrorReply(HTTPStatus.PAYMENT_REQUIRED, body, headers)
    if all(cause.code == CONTEXT_LENGTH_EXCEEDED for cause in tried):
        body = encode_error(
            str(error), "invalid_request_error", param="messages", code=CONTEXT_LENGTH_EXCEEDED
        )
        return ErrorReply(400, body, headers)
    if all(cause.status in CLIENTS_FAULT for cause in tried):
        return ErrorReply(400, encode_error(str(error), "invalid_request_error"), headers)
    if all(cause.phase is Phase.REFUSED and cause.status == HTTPStatus.TOO_MANY_REQUESTS for cause in tried):
        return _describe_rush(error, tried)
    unreachable = all(cause.phase is Phase.CONNECT for cause in tried)
    body = encode_error(str(error), "server_error", code="all_endpoints_failed")
    return ErrorReply(503 if unreachable else 502, body, headers)


def _describe_rush(error: AllEndpointsFailed, tried: Sequence[EndpointError]) -> ErrorReply:
    """Nothing was done and nothing is owed, so clients may try again later, as they know how to."""
    waits = [cause.retry_after_s for cause in tried if cause.retry_after_s is not None]
    body = encode_error(str(error), "rate_limit_error", code="rate_limit_exceeded")
    return ErrorReply(429, body, {"retry-after": str(min(waits))} if waits else {})


def _sentence(error: web.HTTPException) -> str:
    match error:
        case web.HTTPRequestEntityTooLarge():
            return "The body is too large"
        case web.HTTPNotFound():
            return "There is no such path; try /v1/chat/completions or /v1/models"
        case web.HTTPMethodNotAllowed():
            return f"{error.method} is not allowed here"
        case _:
            return error.reason
