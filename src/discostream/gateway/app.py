"""The gateway: its routes, and its life from settings to cancellation."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

import anyio
import msgspec
from aiohttp import web
from anyio.abc import TaskStatus

from discostream.config import GatewaySettings, Settings
from discostream.errors import ConfigError
from discostream.gateway.access import admit_only, answer_preflights, name_allowed_origin
from discostream.gateway.chat import DISCO, chat_completions, completions, request_id_of
from discostream.gateway.dashboard import MOST_READERS, READERS, dashboard_routes
from discostream.gateway.embeddings import embeddings
from discostream.gateway.errors import answer_errors
from discostream.gateway.failures import FailureLog
from discostream.gateway.limits import (
    KEEP_IDLE_S,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_LINE_BYTES,
    SEND_BUFFER_BYTES,
    http_log,
    read_within_limits,
)
from discostream.gateway.metrics import CONTENT_TYPE, Metrics
from discostream.gateway.openapi import document
from discostream.gateway.pages import page_routes
from discostream.gateway.plan import plan_routes
from discostream.library import READY, Disco, connect
from discostream.session.models import choice_of, model_names
from discostream.wire.openai_schema import encode_model, encode_models

__all__ = ["HEALTHY", "build_app", "listen", "serve"]

STOPPING_S = 3.0
"""How long a stopping gateway waits for slow clients to take the end of their answers."""

HEALTHY = b'{"status":"ok"}'
CREATED = web.AppKey("created", int)
METRICS = web.AppKey("metrics", Metrics)


async def serve(
    settings: Settings,
    *,
    observe: Callable[[Disco], None] | None = None,
    task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer over HTTP until cancelled.

    Args:
        settings: What to serve, and where.
        observe: Is shown the connection before anything is asked of it.
        task_status: Told the base URL for clients once connections are accepted, so that
            `await tasks.start(serve, settings)` returns it.

    Raises:
        ConfigError: A setting is wrong, a key is missing, or the port is in use.
    """
    disco = connect(settings)
    app = build_app(disco)
    if observe is not None:
        observe(disco)
    with listen(settings.gateway) as listener:
        runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            logger=http_log(),
            shutdown_timeout=STOPPING_S / 2,  # for every answer to end, and once more for it to be cancelled
            keepalive_timeout=KEEP_IDLE_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        )
        try:
            async with disco:
                await runner.setup()
                site = web.SockSite(runner, listener)
                await site.start()
                task_status.started(_base_url(listener))
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await site.stop()
        finally:
            # Answers were cut off with their endpoints; this lets the streams still say so.
            with anyio.CancelScope(shield=True):
                await runner.cleanup()


def build_app(disco: Disco) -> web.Application:
    """The gateway's routes on endpoints that are connected, or will be by the first request.

    Raises:
        ConfigError: The key of `[gateway]` is missing.
    """
    settings = disco.settings.gateway
    app = web.Application(
        client_max_size=MAX_BODY_BYTES,
        middlewares=[
            answer_errors,
            answer_preflights(settings),
            admit_only(settings),
            read_within_limits,
        ],
    )
    app[DISCO] = disco
    app[CREATED] = int(time.time())
    app[METRICS] = Metrics(disco)
    disco.on_settled.append(FailureLog().tell)
    app[READERS] = anyio.CapacityLimiter(MOST_READERS)
    app.on_response_prepare.append(_name_request)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat_completions),
            web.post("/v1/completions", completions),
            web.post("/v1/embeddings", embeddings),
            web.get("/v1/models", _models),
            web.get("/v1/models/{name:.+}", _model),
            web.get("/health", _health),
            web.get("/ready", _ready),
            web.get("/metrics", _metrics),
            web.get("/openapi.json", _openapi),
            *page_routes(),
            *plan_routes(),
            *dashboard_routes(),
        ]
    )
    return app


async def _models(http: web.Request) -> web.Response:
    return _json(encode_models(model_names(http.app[DISCO].endpoints), http.app[CREATED]))


async def _model(http: web.Request) -> web.Response:
    name = http.match_info["name"]
    choice_of(name, http.app[DISCO].endpoints)
    return _json(encode_model(name, http.app[CREATED]))


async def _health(http: web.Request) -> web.Response:
    return _json(HEALTHY)


async def _ready(http: web.Request) -> web.Response:
    """Whether some endpoint could answer at once, and how each of them stands."""
    standing = http.app[DISCO].standing
    ready = READY in standing.values()
    body = msgspec.json.encode({"status": "ready" if ready else "starting", "endpoints": standing})
    return _json(body, 200 if ready else 503)


async def _metrics(http: web.Request) -> web.Response:
    if http.app[DISCO].settings.budget:  # else the solver's 16 MB would be for a default that nobody chose
        await http.app[DISCO].appraise()
    return web.Response(body=http.app[METRICS].page(), headers={"Content-Type": CONTENT_TYPE})


async def _openapi(http: web.Request) -> web.Response:
    return _json(msgspec.json.encode(document(http.app)))


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


async def _name_request(http: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-request-id"] = request_id_of(http)
    name_allowed_origin(http.app[DISCO].settings.gateway, http, response)


def listen(settings: GatewaySettings) -> socket.socket:
    """The socket that clients connect to.

    Raises:
        ConfigError: The port is in use, or the address is not this machine's.
    """
    where = f"{settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{where} is in use; stop what listens there, or set gateway.port to another"
            ) from None
        raise ConfigError(
            f"cannot listen on {where}: {error.strerror}; see gateway.host and gateway.port"
        ) from None
    # Every connection inherits it; the system would hold megabytes for a client that does not read.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return listener


def _base_url(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
