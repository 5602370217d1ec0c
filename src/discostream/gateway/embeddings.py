"""`POST /v1/embeddings`: passed on to the endpoint that embeds."""

from __future__ import annotations

from aiohttp import web

from discostream.gateway.chat import DISCO, asks_for_privacy
from discostream.wire.openai_embeddings import decode_embeddings_request

__all__ = ["embeddings"]


async def embeddings(http: web.Request) -> web.Response:
    """What the endpoint answers. A client that leaves cancels this handler, and with it the request there."""
    call = decode_embeddings_request(await http.read())
    body = await http.app[DISCO].embed(call.fields, model=call.model, private=asks_for_privacy(http))
    return web.Response(body=body, content_type="application/json")
