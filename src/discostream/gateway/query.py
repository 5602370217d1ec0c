"""What the pages ask by parameters, and the JSON that they are told, which no cache may keep."""

from __future__ import annotations

from aiohttp import web

from discostream.errors import RequestRejected

__all__ = ["json_response", "parameters"]


def parameters(http: web.Request, *known: str) -> dict[str, str]:
    """The query's parameters by name.

    Raises:
        RequestRejected: One is unknown, or there twice.
    """
    for name in http.query:
        if name not in known:
            told = f"must be {', '.join(known)}" if known else "there are none here"
            raise RequestRejected(f"{name!r}: no such parameter; {told}", param=name)
        if len(http.query.getall(name)) > 1:
            raise RequestRejected(f"{name}: is there twice; send it once", param=name)
    return dict(http.query)


def json_response(body: bytes) -> web.Response:
    """The response with this JSON."""
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
