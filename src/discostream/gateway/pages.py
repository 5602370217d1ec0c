"""The pages, which load nothing from elsewhere, and the facts of the settings that they ask for."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import ETag, web
from aiohttp.typedefs import Handler

from discostream.checks import KIND_NEEDED
from discostream.core.plugins import policy_names
from discostream.core.policies import FIXED_POLICIES
from discostream.endpoints.base import Endpoint
from discostream.gateway.chat import DISCO
from discostream.gateway.query import json_response
from discostream.library import Disco
from discostream.session.models import VIRTUAL

__all__ = ["PAGES", "page_routes"]

_PARTS: Final = (
    "api.js",
    "balance.js",
    "base.css",
    "charts.js",
    "dashboard.css",
    "dashboard.js",
    "dom.js",
    "format.js",
    "lanes.js",
    "looks.js",
    "overview.js",
    "plan-strip.css",
    "plan-strip.js",
    "plan.js",
    "playground.css",
    "playground.js",
    "request.js",
    "requests.js",
    "timeline.js",
    "view.js",
    "vendor/uPlot.LICENSE",
    "vendor/uPlot.iife.min.js",
    "vendor/uPlot.min.css",
    "watch.js",
)

PAGES: Final = {
    "/": "playground.html",
    "/dashboard": "dashboard.html",
    "/dashboard/request": "request.html",
    **{f"/pages/{part}": part for part in _PARTS},
}
"""The files that browsers get by path. They hold no secret, so they need no key."""

_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".LICENSE": "text/plain"}

_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes() -> list[web.RouteDef]:
    """The routes of every page and of what they ask for."""
    shown = {path: _showing(file) for path, file in PAGES.items()}

    async def part(http: web.Request) -> web.StreamResponse:
        if http.path not in shown:
            raise web.HTTPNotFound
        return await shown[http.path](http)

    pages = [web.get(path, show) for path, show in shown.items() if not path.startswith("/pages/")]
    return [*pages, web.get("/pages/{part:.+}", part), web.get("/playground.json", _facts)]


def _showing(file: str) -> Handler:
    """What answers with a file, or says that the browser has it already."""
    body = files("discostream.gateway").joinpath("pages", file).read_bytes()
    tag = ETag(hashlib.sha256(body).hexdigest()[:32])
    content_type = _TYPES[Path(file).suffix]

    async def show(http: web.Request) -> web.Response:
        if tag in (http.if_none_match or ()):
            response = web.Response(status=304)
        else:
            response = web.Response(body=body, content_type=content_type, charset="utf-8")
        response.headers.update(_HEADERS)
        response.etag = tag
        return response

    return show


async def _facts(http: web.Request) -> web.Response:
    return json_response(msgspec.json.encode(_facts_of(http.app[DISCO])))


def _facts_of(disco: Disco) -> dict[str, object]:
    """What the page shows of the settings: endpoints, prices, models, policies, and the reader's pace."""
    return {
        "consumption_tokens_per_s": disco.settings.migration.consumption_tokens_per_s,
        "policy": disco.settings.policy.name,
        "policies": _policies(disco),
        "sharing_policies": [name for name in _policies(disco) if name not in FIXED_POLICIES],
        "virtual_models": {
            name: {"policy": choice.policy, "private": choice.private or disco.settings.policy.private}
            for name, choice in VIRTUAL.items()
        },
        "endpoints": [_facts_of_endpoint(endpoint) for endpoint in disco.endpoints.values()],
    }


def _policies(disco: Disco) -> list[str]:
    """Those that a request may ask for here."""
    kinds = {None, *(endpoint.kind for endpoint in disco.endpoints.values())}
    fitting = (name for name in policy_names() if KIND_NEEDED.get(name) in kinds)
    return [name for name in fitting if name != "offsets" or disco.settings.policy.offsets]


def _facts_of_endpoint(endpoint: Endpoint) -> dict[str, object]:
    return {
        "name": endpoint.name,
        "kind": endpoint.kind.value,
        "model": endpoint.settings.model,
        "prompt_usd_per_mtok": endpoint.prices.prompt_usd_per_mtok,
        "completion_usd_per_mtok": endpoint.prices.completion_usd_per_mtok,
        "decode_joules_per_token": endpoint.energy.decode_j_per_token,
    }
