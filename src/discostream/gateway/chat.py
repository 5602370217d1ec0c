"""`POST /v1/chat/completions` and `/v1/completions`: bytes to a request, pieces to events."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import replace

import anyio
from aiohttp import HttpVersion11, web

from discostream.errors import RequestRejected
from discostream.gateway.errors import describe
from discostream.gateway.streaming import Streaming
from discostream.library import Disco
from discostream.session.answer import Answer
from discostream.session.models import choice_of
from discostream.session.pins import refuse_unknown_policy, share_in
from discostream.types import Delivered
from discostream.wire.openai_reply import annotating, chunk_encoder, encode_answer
from discostream.wire.openai_schema import Call, decode_chat_request, decode_completion_request
from discostream.wire.sse import DONE, data_event

__all__ = ["DISCO", "REQUEST_ID", "asks_for_privacy", "chat_completions", "completions", "request_id_of"]

DISCO = web.AppKey("disco", Disco)
REQUEST_ID = web.RequestKey("request_id", str)

POLICY_HEADER = "x-disco-policy"
SHARE_HEADER = "x-disco-share"
PRIVATE_HEADER = "x-disco-private"
MIGRATE_HEADER = "x-disco-migrate"
RESCUE_HEADER = "x-disco-rescue"
ANNOTATE_HEADER = "x-disco-annotate"
TRACE_HEADERS = ("traceparent", "tracestate")

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


async def chat_completions(http: web.Request) -> web.StreamResponse:
    """The answer to one chat."""
    arrived_at = anyio.current_time()
    call = decode_chat_request(await http.read(), arrived_at=arrived_at, request_id=request_id_of(http))
    return await _answered(http, call)


async def completions(http: web.Request) -> web.StreamResponse:
    """How one raw prompt goes on."""
    arrived_at = anyio.current_time()
    call = decode_completion_request(await http.read(), arrived_at=arrived_at, request_id=request_id_of(http))
    return await _answered(http, call)


async def _answered(http: web.Request, call: Call) -> web.StreamResponse:
    """The answer to one call. A client that leaves cancels this, which abandons the answer."""
    disco = http.app[DISCO]
    request = replace(
        call.request,
        policy=_policy_of(http),
        share=_share_of(http),
        private=asks_for_privacy(http),
        migrate="false" not in _said(http, MIGRATE_HEADER),
        rescue="false" not in _said(http, RESCUE_HEADER),
        annotated="true" in _said(http, ANNOTATE_HEADER),
        model=call.model,
        trace={name: ",".join(http.headers.getall(name)) for name in TRACE_HEADERS if name in http.headers},
    )
    request = choice_of(call.model, disco.endpoints).applied(request)
    async with disco.submit(request) as answer:
        return await (_stream(http, call, answer) if call.stream else _collect(call, answer))


def request_id_of(http: web.Request) -> str:
    """The client's own name for its request if it sent a sane one, or else a new one."""
    if REQUEST_ID not in http:
        sent = http.headers.get("x-request-id", "")
        http[REQUEST_ID] = sent if _SANE_ID.fullmatch(sent) else uuid.uuid4().hex
    return http[REQUEST_ID]


def asks_for_privacy(http: web.Request) -> bool:
    """Whether a header keeps the request on the device."""
    return "true" in _said(http, PRIVATE_HEADER)


def _policy_of(http: web.Request) -> str | None:
    """The policy that the client asks for; `None` where it leaves that to the settings."""
    name = http.headers.get(POLICY_HEADER)
    if name is not None:
        refuse_unknown_policy(name, POLICY_HEADER)
    return name


def _share_of(http: web.Request) -> float | None:
    """The share that the client asks for; `None` where it leaves that to the settings."""
    said = http.headers.get(SHARE_HEADER)
    return None if said is None else share_in(said, SHARE_HEADER)


def _said(http: web.Request, header: str) -> list[str]:
    """What a header that is true or false says; sent twice, it may say both."""
    values = http.headers.getall(header, [])
    for value in values:
        if value not in ("true", "false"):
            raise RequestRejected(f"`{header}`: {value!r} is neither true nor false", param=header)
    return values


async def _collect(call: Call, answer: Answer) -> web.Response:
    pieces = [piece async for piece in answer]
    body = encode_answer(call, int(time.time()), pieces, answer.whole())
    return web.Response(body=body, content_type="application/json")


async def _stream(http: web.Request, call: Call, answer: Answer) -> web.StreamResponse:
    keep_alive_s = http.app[DISCO].settings.gateway.keep_alive_s
    response = web.StreamResponse(headers=STREAM_HEADERS)
    if http.version < HttpVersion11:
        response.force_close()  # nothing else can end it; aiohttp keeps it open if asked to
    chunks = chunk_encoder(call, int(time.time()))
    encode = annotating(chunks.piece) if answer.request.annotated else chunks.piece
    opening = _events([chunks.opening()])
    streaming = Streaming(http, response, lambda pieces: _events(map(encode, pieces)), answer, keep_alive_s)
    first = await _first(answer, keep_alive_s)
    # Up to here an error still gets a status of its own; from here on it can only be an event.
    await response.prepare(http)
    await response.write(opening + _events(map(encode, first)))
    try:
        await streaming.run()
        outcome = answer.whole()
    except ConnectionError:
        raise  # the client is gone
    except Exception as error:
        await response.write(data_event(describe(error).body) + DONE)
    else:
        usage = chunks.usage(outcome) if call.include_usage else b""
        await response.write(_events([chunks.finish(outcome), usage]) + DONE)
    await response.write_eof()
    return response


async def _first(answer: Answer, within_s: float) -> list[Delivered]:
    """The first pieces; none where nothing comes for so long, or at all."""
    with anyio.move_on_after(within_s):
        return await answer.pieces()
    return []


def _events(chunks: Iterable[bytes]) -> bytes:
    """The events that carry these chunks; an empty one is none."""
    return b"".join([data_event(chunk) for chunk in chunks if chunk])
