"""Who may use the gateway: holders of the key, and only pages that are as local as it is, or allowed."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

from discostream.config import GatewaySettings
from discostream.errors import ConfigError, RequestRejected
from discostream.gateway.pages import PAGES

__all__ = ["admit_only", "answer_preflights", "client_key", "name_allowed_origin"]

OPEN_PATHS = frozenset({"/health", "/openapi.json", "/ready", *PAGES})
ASKED_HEADERS = "Access-Control-Request-Headers"
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def client_key(settings: GatewaySettings, environ: Mapping[str, str] | None = None) -> str:
    """The key that clients must send; empty when none is needed.

    Raises:
        ConfigError: The key's variable is not set, or an address that others can reach has no key.
    """
    variable = settings.api_key_env
    if not variable:
        if not _is_loopback(settings.host):
            raise ConfigError(
                f"gateway.api_key_env: must name a key's environment variable when gateway.host = "
                f"{settings.host!r}, which other machines can reach"
            )
        return ""
    key = (os.environ if environ is None else environ).get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"gateway.api_key_env = {variable!r}: the environment variable is not set; export it"
        )
    return key


def admit_only(settings: GatewaySettings) -> Middleware:
    """A middleware that turns away requests without the key, and web pages that point at a local gateway.

    A page on the internet can make a browser talk to 127.0.0.1: by a name that resolves there, which
    shows in `Host`, or by a plain cross-site request, which shows in `Origin`.
    """
    key = client_key(settings).encode(errors="surrogateescape")
    allowed = frozenset(settings.allow_origins)
    local = LOCAL_NAMES | {settings.host} if _is_loopback(settings.host) else None

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if local is not None:
            _refuse_foreign_names(request, local, allowed)
        if key and request.path not in OPEN_PATHS and not hmac.compare_digest(_sent_key(request), key):
            raise RequestRejected(
                "The API key is missing or wrong; send it as `Authorization: Bearer …`",
                status=401,
                code="invalid_api_key",
            )
        return await handler(request)

    return admit


def answer_preflights(settings: GatewaySettings) -> Middleware:
    """A middleware that tells browsers what pages of the allowed origins may send; they ask without a key."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if asks and request.headers.get("Origin") in settings.allow_origins:
            headers = {
                "Access-Control-Allow-Methods": "GET, POST",
                "Access-Control-Allow-Headers": request.headers.get(ASKED_HEADERS, "authorization"),
                "Access-Control-Max-Age": "600",
            }
            return web.Response(status=204, headers=headers)
        return await handler(request)

    return answer


def name_allowed_origin(settings: GatewaySettings, http: web.Request, response: web.StreamResponse) -> None:
    """Let the browser show the response to the page that asked for it, if that is one of the allowed."""
    if not settings.allow_origins:
        return
    response.headers["Vary"] = "Origin"
    if (origin := http.headers.get("Origin")) in settings.allow_origins:
        response.headers["Access-Control-Allow-Origin"] = str(origin)
        response.headers["Access-Control-Expose-Headers"] = "retry-after, x-request-id, x-should-retry"


def _refuse_foreign_names(http: web.Request, local: frozenset[str], allowed: frozenset[str]) -> None:
    for header, url in (
        ("Host", f"//{http.headers['Host']}" if "Host" in http.headers else None),
        ("Origin", http.headers.get("Origin")),
    ):
        if url is not None and url not in allowed and _host_in(url) not in local:
            raise RequestRejected(
                f"This gateway serves its own machine only, and `{header}` names another",
                status=403,
                code="foreign_host",
            )


def _host_in(url: str) -> str | None:
    try:
        return URL(url).host
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _sent_key(http: web.Request) -> bytes:
    scheme, _, key = http.headers.get("Authorization", "").partition(" ")
    return key.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""
