"""Any server with an OpenAI-compatible `/chat/completions`, or `/completions`."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Literal

import aiohttp
import anyio
import msgspec
from msgspec import Meta, Struct
from yarl import URL

from discostream.config import EndpointSettings
from discostream.endpoints.base import Endpoint
from discostream.endpoints.body import Body, read_tail
from discostream.endpoints.dialects import CONTINUATIONS, ContinuationName
from discostream.endpoints.keys import api_key, redact
from discostream.errors import ConfigError, EndpointError, Phase
from discostream.types import Carrier, Event, Feature, Prefix, Request
from discostream.wire.openai_answer import AnswerReader
from discostream.wire.openai_request import request_body
from discostream.wire.openai_upstream import CONTEXT_LENGTH_EXCEEDED, ChunkError, decode_error
from discostream.wire.sse import SseError

__all__ = ["OpenAIEndpoint"]

MAX_ERROR_BYTES = 16_384
ERROR_BODY_S = 5.0
KEEP_CONNECTION_S = 4.0
"""Shorter than any server's own patience (uvicorn's is 5 s), or a request meets the closing."""
CANNOT_CONTINUE = (400, 422)

_Seconds = Annotated[float, Meta(gt=0.0)]
_FOREIGN = (aiohttp.ClientError, OSError, ChunkError, SseError)


class OpenAIOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `dialect = "openai"`.

    Attributes:
        base_url: Where `/chat/completions` is, such as `https://api.example.com/v1`.
        api_key_env: The environment variable that holds the key; empty sends none.
        continuation: How the server is asked to go on with a partial answer.
        repeats_prefix: Whether its continuation starts by repeating the partial answer.
        connect_timeout_s: The longest wait for a connection.
        read_timeout_s: The longest silence, before the first byte or between two.
        max_tokens_field: Which of OpenAI's two names for the limit the server knows.
        include_usage: Whether to ask for token counts; off for servers that refuse `stream_options`.
    """

    base_url: str
    api_key_env: str = ""
    continuation: ContinuationName = "none"
    repeats_prefix: bool = False
    connect_timeout_s: _Seconds = 5.0
    read_timeout_s: _Seconds = 120.0
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    include_usage: bool = True


class OpenAIEndpoint(Endpoint):
    """Streams from a server that speaks OpenAI's chat completions, and raw ones where that is declared."""

    Options = OpenAIOptions
    neutral_options = frozenset(OpenAIOptions.__struct_fields__) - {"base_url"}
    usual_features = frozenset({Feature.TOOLS, Feature.JSON, Feature.LOGPROBS})

    def __init__(self, settings: EndpointSettings, options: OpenAIOptions) -> None:
        super().__init__(settings, options)
        self._options = options
        self._url = _base_url(settings.name, options.base_url)
        self._key = api_key(settings.name, options.api_key_env)
        self._continuation = CONTINUATIONS[options.continuation]
        self._session: aiohttp.ClientSession | None = None
        if self._continuation.possible:
            self.continues = frozenset({Carrier.TEXT})

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        """Stream the answer; closing the generator closes the connection. See `Endpoint.generate`."""
        if request.raw_prompt is not None:
            url, sent, answer = self._url / "completions", prefix, AnswerReader()
        else:
            url, sent = self._url / "chat/completions", _trimmed(prefix)
            echo = sent.text if self._options.repeats_prefix else ""
            answer = AnswerReader(echo, blank=prefix.text[len(sent.text) :])
        continuing = bool(sent.text) and request.raw_prompt is None
        data = io.BytesIO(self._body(request, sent))
        try:
            async with self._client().post(url, data=data, allow_redirects=False) as response:
                with Body(response) as body:
                    await self._refuse_all_but_streams(response, body, continuing=continuing)
                    while answer.finish_reason is None:
                        for event in answer.feed(await body.read()):
                            yield event
                    await read_tail(body, answer)
        except _FOREIGN as error:
            raise self._translated(error, answer.phase) from error
        yield answer.finish()

    async def aclose(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_CONNECTION_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers(),
                timeout=aiohttp.ClientTimeout(
                    connect=self._options.connect_timeout_s, sock_read=self._options.read_timeout_s
                ),
            )
        return self._session

    def _headers(self) -> dict[str, str]:
        # A compressed stream would be held back until a block is full.
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "User-Agent": "discostream",
        }
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _body(self, request: Request, sent: Prefix) -> bytes:
        body = request_body(
            request,
            sent,
            unfinished=self._continuation.message,
            max_tokens_field=self._options.max_tokens_field if request.raw_prompt is None else "max_tokens",
        )
        body["model"] = self.settings.model
        if self._options.include_usage:
            body["stream_options"] = {"include_usage": True}
        if sent.text and request.raw_prompt is None:
            body |= self._continuation.body
        return msgspec.json.encode(body)

    async def _refuse_all_but_streams(
        self, response: aiohttp.ClientResponse, body: Body, *, continuing: bool
    ) -> None:
        kind = response.headers.get("Content-Type", "text/event-stream")
        if response.status < 300 and kind.lower().startswith("text/event-stream"):
            return
        said = await _beginning(body)
        error = decode_error(said)
        status = response.status if response.status >= 300 else error.status
        if continuing and status in CANNOT_CONTINUE and error.code != CONTEXT_LENGTH_EXCEEDED:
            self.continues = frozenset()
        what = f"HTTP {response.status}" if response.status >= 300 else f"{kind} instead of an event stream"
        answered = response.status < 300 and b'"choices"' in said  # at once, and will be paid for it
        phase = Phase.PREFILL if answered else Phase.REFUSED
        raise self._failure(phase, f"answered with {what}: {error}", status, error.code)

    def _translated(self, error: Exception, phase: Phase) -> EndpointError:
        """What went wrong, in our words: the only place where foreign errors are read."""
        where = f"{self._url.host}:{self._url.port}"
        match error:
            case aiohttp.ConnectionTimeoutError():
                waited = self._options.connect_timeout_s
                return self._failure(Phase.CONNECT, f"no connection to {where} within {waited:g} s")
            case aiohttp.ClientConnectorCertificateError():
                return self._failure(Phase.CONNECT, f"{where}: {error.certificate_error}")
            case aiohttp.ClientConnectorError():
                cause = error.os_error.strerror or error.os_error
                return self._failure(Phase.CONNECT, f"cannot connect to {where}: {cause}")
            case TimeoutError():
                return self._failure(phase, f"silent for {self._options.read_timeout_s:g} s")
            case ChunkError():
                return self._failure(phase, str(error), error.status, error.code)
            case SseError():
                return self._failure(phase, f"sent a malformed stream: {error}")
            case _:
                return self._failure(phase, f"the connection broke: {str(error) or type(error).__name__}")

    def _failure(
        self, phase: Phase, message: str, status: int | None = None, code: str | None = None
    ) -> EndpointError:
        return EndpointError(self.name, phase, redact(message, self._key), status=status, code=code)


async def _beginning(body: Body) -> bytes:
    """The first bytes of an error's body, as many as come soon."""
    said = bytearray()
    with anyio.move_on_after(ERROR_BODY_S), suppress(aiohttp.ClientError):
        while len(said) < MAX_ERROR_BYTES and (data := await body.read()):
            said += data
    return bytes(said[:MAX_ERROR_BYTES])


def _trimmed(prefix: Prefix) -> Prefix:
    """Without blanks at its end: templates trim them, and some servers refuse a message that has any."""
    return replace(prefix, text=prefix.text.rstrip())


def _base_url(endpoint: str, base_url: str) -> URL:
    shown = "…" if set(base_url) & set("@?#") else base_url
    where = f"endpoint {endpoint!r}: base_url = {shown!r}"
    try:
        url = URL(base_url)
    except ValueError as error:
        raise ConfigError(f"{where}: is no URL: {error}") from None
    if url.user or url.password or url.query or url.fragment:
        raise ConfigError(f"{where}: must hold no user, key or query; a key comes from api_key_env")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"{where}: must start with http:// or https:// and name a host")
    if url.path.rstrip("/").endswith("/completions"):
        raise ConfigError(f"{where}: leave out /chat/completions; it is added to every request")
    return url
