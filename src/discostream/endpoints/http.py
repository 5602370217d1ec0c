"""What every dialect over HTTP has in common: one request, one stream, and what can go wrong with either."""

from __future__ import annotations

import io
import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import aiohttp
import anyio
import msgspec
from msgspec import Meta, Struct
from yarl import URL

from discostream.config import EndpointSettings
from discostream.endpoints.base import Endpoint
from discostream.endpoints.body import Body, breach, pointed_to, read_tail
from discostream.endpoints.dialects import Refusals
from discostream.endpoints.keys import api_key, redact
from discostream.errors import ConfigError, EndpointError, Phase
from discostream.types import Carrier, Event, Prefix, Request
from discostream.wire.fields import count
from discostream.wire.openai_answer import AnswerReader
from discostream.wire.openai_upstream import CONTEXT_LENGTH_EXCEEDED, ChunkError, decode_error
from discostream.wire.sse import SseError

__all__ = ["HttpEndpoint", "HttpOptions", "Question", "server_url", "without_blanks"]

log = logging.getLogger(__name__)

MAX_ERROR_BYTES = 16_384
ERROR_BODY_S = 5.0
MAX_REPLY_BYTES = 64 << 20
"""Enough for 1,500 vectors of 3,072 numbers in decimal."""
READ_AHEAD_BYTES = 1 << 14
"""How much of a stream is read before it is wanted: a reader that is slow must not fill our memory."""
KEEP_CONNECTION_S = 4.0
"""Shorter than any server's own patience (uvicorn's is 5 s), or a request meets the closing."""
CANNOT_CONTINUE = (400, 422)
ANSWERS = (b'"choices"', b'"candidates"', b'"content"')
"""What tells a whole answer from an error, in a response that is no stream."""

_Seconds = Annotated[float, Meta(gt=0.0)]
_FOREIGN = (aiohttp.ClientError, OSError, ChunkError, SseError)


class HttpOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys that every dialect over HTTP has.

    Attributes:
        base_url: Where the service is, such as `https://api.example.com/v1`.
        api_key_env: The environment variable that holds the key; empty sends none.
        connect_timeout_s: The longest wait for a connection.
        read_timeout_s: The longest silence, before the first byte or between two.
    """

    base_url: str
    api_key_env: str = ""
    connect_timeout_s: _Seconds = 5.0
    read_timeout_s: _Seconds = 120.0


class _Reply(Struct):
    """As much of a reply as tells an error; the rest is skipped, because vectors are long."""

    error: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a server is asked.

    Attributes:
        url: Where.
        body: What, as JSON.
        reader: Reads the answer.
        continuing: Whether it is to go on with a partial answer, which it may not be able to.
    """

    url: URL
    body: Mapping[str, Any]
    reader: AnswerReader
    continuing: bool


class HttpEndpoint(Endpoint):
    """Streams from a server over HTTP.

    A dialect says what it is asked (`_question`), and how a key is shown (`_key_headers`).

    Attributes:
        path: What a chat's URL has behind the settings' `base_url`.
        streams: The media type of its streams.
    """

    path: ClassVar[str]
    streams: ClassVar[str] = "text/event-stream"

    def __init__(self, settings: EndpointSettings, options: HttpOptions, *, continues: bool) -> None:
        super().__init__(settings, options)
        self._patience = options
        self._key = api_key(settings.name, options.api_key_env)
        self._url = server_url(settings.name, options.base_url, self.path)
        self._session: aiohttp.ClientSession | None = None
        self._refusals = Refusals()
        if continues:
            self.continues = frozenset({Carrier.TEXT})

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        """Stream the answer; closing the generator closes the connection. See `Endpoint.generate`."""
        question = self._question(request, prefix)
        answer, continuing = question.reader, question.continuing
        data = io.BytesIO(msgspec.json.encode(question.body))
        try:
            async with self._client().post(question.url, data=data, allow_redirects=False) as response:
                with Body(response, self._patience.read_timeout_s) as body:
                    await self._refuse_all_but_streams(response, body, continuing=continuing)
                    if continuing:
                        self._refusals.forget()
                    while answer.finish_reason is None:
                        for event in answer.feed(await body.read()):
                            yield event
                    await read_tail(body, answer)
        except _FOREIGN as error:
            raise self._translated(error, answer.phase) from error
        yield answer.finish()

    async def _ask(self, path: str, fields: Mapping[str, Any]) -> bytes:
        """The body of the response to a request that has no stream."""
        data, accepted = io.BytesIO(msgspec.json.encode(fields)), {"Accept": "application/json"}
        try:
            async with self._client().post(
                self._url / path, data=data, headers=accepted, allow_redirects=False
            ) as response:
                with Body(response, self._patience.read_timeout_s) as body:
                    if response.status < 300:
                        return self._checked(await self._whole(body))
                    said, status = _error_in(response, await _beginning(body)), response.status
                    what = f"answered with HTTP {status}: {said}"
                    raise self._failure(Phase.REFUSED, what, status, said.code, _retry_after_s(response))
        except _FOREIGN as error:
            raise self._translated(error, Phase.PREFILL) from error

    async def _whole(self, body: Body) -> bytes:
        said = bytearray()
        while data := await body.read():
            said += data
            if len(said) > MAX_REPLY_BYTES:
                raise self._failure(Phase.PREFILL, f"sent more than {MAX_REPLY_BYTES >> 20} MiB")
        return bytes(said)

    def _checked(self, said: bytes) -> bytes:
        """What was said, unless that is an error or no JSON, whatever its status: it may quote the key."""
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            if not msgspec.json.decode(said, type=_Reply).error:
                return said
        error = decode_error(said)
        raise self._failure(Phase.REFUSED, f"answered with an error: {error}", error.status, error.code)

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
                headers={**self._headers(), **self._key_headers()},
                read_bufsize=READ_AHEAD_BYTES,
                timeout=aiohttp.ClientTimeout(
                    connect=self._patience.connect_timeout_s, sock_read=self._patience.read_timeout_s
                ),
            )
        return self._session

    def _headers(self) -> dict[str, str]:
        # A compressed stream would be held back until a block is full.
        return {
            "Content-Type": "application/json",
            "Accept": self.streams,
            "Accept-Encoding": "identity",
            "User-Agent": "discostream",
        }

    def _key_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    @abstractmethod
    def _question(self, request: Request, prefix: Prefix) -> Question:
        """How to ask for the answer, or for the rest of it."""

    async def _refuse_all_but_streams(
        self, response: aiohttp.ClientResponse, body: Body, *, continuing: bool
    ) -> None:
        kind = response.headers.get("Content-Type", self.streams)
        if response.status < 300 and kind.lower().startswith(self.streams):
            return
        said = await _beginning(body)
        error = _error_in(response, said)
        status = response.status if response.status >= 300 else error.status
        if continuing and status in CANNOT_CONTINUE and error.code != CONTEXT_LENGTH_EXCEEDED:
            self._learn_from(str(error))
        what = f"HTTP {response.status}" if response.status >= 300 else f"{kind} instead of an event stream"
        # It has done the work, if all at once, and will be paid for it.
        answered = response.status < 300 and any(sign in said for sign in ANSWERS)
        phase = Phase.PREFILL if answered else Phase.REFUSED
        message = f"answered with {what}: {error}"
        raise self._failure(phase, message, status, error.code, _retry_after_s(response))

    def _learn_from(self, refusal: str) -> None:
        """A continuation was refused; take the ability away if that says that it always will be."""
        if self.continues and self._refusals.settle(refusal):
            self.continues = frozenset()
            said = redact(refusal, self._key)
            log.warning(
                "endpoint %r cannot go on with an answer, and is not asked to again: %s", self.name, said
            )

    def _translated(self, error: Exception, phase: Phase) -> EndpointError:
        """What went wrong, in our words: the only place where foreign errors are read."""
        where = f"{self._url.host}:{self._url.port}"
        match error:
            case aiohttp.ConnectionTimeoutError():
                waited = self._patience.connect_timeout_s
                return self._failure(Phase.CONNECT, f"no connection to {where} within {waited:g} s")
            case aiohttp.ClientConnectorCertificateError():
                return self._failure(Phase.CONNECT, f"{where}: {error.certificate_error}")
            case aiohttp.ClientConnectorError():
                cause = error.os_error.strerror or error.os_error
                return self._failure(Phase.CONNECT, f"cannot connect to {where}: {cause}")
            case TimeoutError():
                return self._failure(phase, f"silent for {self._patience.read_timeout_s:g} s")
            case ChunkError():
                return self._failure(phase, str(error), error.status, error.code)
            case SseError():
                return self._failure(phase, f"sent a malformed stream: {error}")
            case _:
                return self._failure(phase, f"the connection broke: {breach(error)}")

    def _failure(
        self,
        phase: Phase,
        message: str,
        status: int | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> EndpointError:
        said = redact(message, self._key)
        return EndpointError(self.name, phase, said, status=status, code=code, retry_after_s=retry_after_s)


def without_blanks(prefix: Prefix) -> tuple[str, str]:
    """The partial answer and the blanks at its end, which templates trim and some servers refuse."""
    sent = prefix.text.rstrip()
    return sent, prefix.text[len(sent) :]


async def _beginning(body: Body) -> bytes:
    """The first bytes of an error's body, as many as come soon."""
    said = bytearray()
    with anyio.move_on_after(ERROR_BODY_S), suppress(aiohttp.ClientError):
        while len(said) < MAX_ERROR_BYTES and (data := await body.read()):
            said += data
    return bytes(said[:MAX_ERROR_BYTES])


def _error_in(response: aiohttp.ClientResponse, said: bytes) -> ChunkError:
    hint = pointed_to(response)
    return decode_error(said) if hint is None else ChunkError(hint)


def _retry_after_s(response: aiohttp.ClientResponse) -> int | None:
    """How long the server wants to be left alone; a date counts as nothing said."""
    return count(response.headers.get("Retry-After"))


def server_url(endpoint: str, base_url: str, path: str) -> URL:
    """Where a server is, as the settings say.

    Args:
        endpoint: Whose settings.
        base_url: What they say.
        path: What requests add to it.

    Raises:
        ConfigError: Nothing can be asked there, or it holds a secret, which is not repeated.
    """
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
    if url.path.rstrip("/").endswith(f"/{path}"):
        raise ConfigError(f"{where}: leave out /{path}; it is added to every request")
    return url
