"""llama.cpp's server: its calls over HTTP, and what it says to them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import aiohttp
import msgspec
from msgspec import Meta, Struct

from discostream.core.cost import ModelShape
from discostream.endpoints.body import Body, pointed_to
from discostream.engine.supervisor import EngineAddress
from discostream.errors import EndpointError, Phase
from discostream.types import Feature, Finish, FinishReason, Prefix, Request
from discostream.wire.openai_request import messages_of, passed_fields
from discostream.wire.sse import SseDecoder

__all__ = ["Frame", "LlamaCppServer", "ModelMeta", "Props"]

SHORT_TIMEOUT = aiohttp.ClientTimeout(total=60.0, sock_connect=10.0)
"""For what is computed beside the slots, in milliseconds."""
MAX_ERROR_BYTES = 16_384
Reply = TypeVar("Reply")


class _Timings(Struct):
    cache_n: int | None = None


class _Progress(Struct):
    """How far llama.cpp has come with a prompt; the first report comes when it begins.

    Attributes:
        processed: Tokens it has read, those in its cache included.
    """

    total: int
    cache: int
    processed: int


class _Error(Struct):
    """llama.cpp's error object."""

    message: str
    type: str | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None

    def blame(self, endpoint: str, phase: Phase, status: int | None = None) -> EndpointError:
        if self.type != "exceed_context_size_error":
            return EndpointError(endpoint, phase, self.message, status=status, code=self.type)
        message = f"the prompt has {self.n_prompt_tokens} tokens and the context holds {self.n_ctx}"
        return EndpointError(endpoint, phase, message, status=status, code="context_length_exceeded")


class _ErrorReply(Struct):
    error: _Error


class Frame(Struct):
    """One event of a `/completion` stream."""

    content: str = ""
    tokens: tuple[int, ...] = ()
    stop: bool = False
    stop_type: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int | None = None
    timings: _Timings | None = None
    prompt_progress: _Progress | None = None
    error: _Error | None = None

    @property
    def is_piece(self) -> bool:
        """Whether it brings tokens; frames of progress carry a token ID that means nothing."""
        return self.prompt_progress is None and bool(self.content or self.tokens)

    def finish(self) -> Finish:
        """The end of the answer, which this is."""
        reason = FinishReason.LENGTH if self.stop_type == "limit" else FinishReason.STOP
        cached = self.timings.cache_n if self.timings else None
        return Finish(reason, self.tokens_evaluated, self.tokens_predicted, cached)


class _Rendered(Struct):
    prompt: str


class _Tokenized(Struct):
    tokens: tuple[int, ...]


class _Detokenized(Struct):
    content: str


class ModelMeta(Struct):
    """What a server says about its model."""

    n_vocab: int
    n_embd: int
    n_params: int
    n_ctx_train: int

    def shape(self) -> ModelShape:
        """The shape as far as a server tells it: without layers, attention counts for nothing."""
        return ModelShape(self.n_params, self.n_vocab, self.n_embd, 0, self.n_ctx_train)


class _Model(Struct):
    meta: ModelMeta


class Props(Struct):
    """What a server says about itself."""

    total_slots: int
    chat_template_caps: dict[str, Any] = {}
    modalities: dict[str, Any] = {}

    def features(self, usual: frozenset[Feature]) -> frozenset[Feature]:
        """What it can do beyond text; a template without tools would leave them out in silence."""
        told = {
            Feature.TOOLS: self.chat_template_caps.get("supports_tools", Feature.TOOLS in usual),
            Feature.IMAGES: self.modalities.get("vision"),
            Feature.AUDIO: self.modalities.get("audio"),
        }
        return usual - told.keys() | {feature for feature, able in told.items() if able}


class _Slot(Struct):
    is_processing: bool


class _Models(Struct):
    data: Annotated[tuple[_Model, ...], Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class LlamaCppServer:
    """llama.cpp's HTTP calls."""

    endpoint: str
    address: EngineAddress
    session: aiohttp.ClientSession
    read_timeout_s: float

    async def render(self, request: Request) -> str:
        """The raw prompt, or the conversation in the model's chat template, up to where the answer begins."""
        if request.raw_prompt is not None:
            return request.raw_prompt
        body = {**passed_fields(request), "messages": messages_of(request.messages)}
        return (await self._ask("/apply-template", body, _Rendered)).prompt

    async def prompt_ids(self, rendered: str, prefix: Prefix) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The IDs of a rendered prompt, and of the answer so far."""
        # /apply-template leaves out the BOS that the tokenizer is told to add, so that it is there once.
        prompt = await self.tokenize(rendered, add_special=True, parse_special=True)
        if prefix.token_ids is not None:
            return prompt, prefix.token_ids
        return prompt, await self.inner_ids(prefix.text) if prefix.text else ()

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> tuple[int, ...]:
        """The text's token IDs."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return (await self._ask("/tokenize", body, _Tokenized)).tokens

    async def inner_ids(self, text: str) -> tuple[int, ...]:
        """The IDs of text in the middle of an answer.

        Vocabularies of the SentencePiece kind put a space before whatever they tokenise; behind a line
        end they do not.
        """
        ids = await self.tokenize(text)
        if (await self._ask("/detokenize", {"tokens": ids}, _Detokenized)).content == text:
            return ids
        line_end = await self.tokenize("\n")
        return (await self.tokenize("\n" + text))[len(line_end) :]

    async def model_meta(self) -> ModelMeta:
        """What the server says about its model."""
        models = await self._ask("/v1/models", None, _Models)
        return models.data[0].meta

    async def props(self) -> Props:
        """What the server says about itself."""
        return await self._ask("/props", None, Props)

    async def busy_slots(self) -> int:
        """How many slots compute something; the answer comes between two batches."""
        slots = await self._ask("/slots", None, list[_Slot])
        return sum(slot.is_processing for slot in slots)

    async def fingerprint(self, n_vocab: int) -> str:
        """A hash over the text of every token ID."""
        async with self._open("/detokenize", {"tokens": list(range(n_vocab))}) as response:
            text = await response.read()
        return hashlib.sha256(b"%d\n%b" % (n_vocab, text)).hexdigest()

    async def frames(self, body: dict[str, Any]) -> AsyncGenerator[Frame, None]:
        """The events of `/completion`, the last of them with `stop` unless the stream broke."""
        decoder = SseDecoder()
        async with self.stream("/completion", body) as stream:
            while data := await stream.read():
                for event in decoder.feed(data):
                    yield msgspec.json.decode(event, type=Frame)

    @asynccontextmanager
    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[Body]:
        """The body of a streamed reply."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=self.read_timeout_s)
        async with self._open(path, body, timeout) as response:
            with Body(response, self.read_timeout_s) as stream:
                yield stream

    async def _ask(self, path: str, body: dict[str, Any] | None, reply: type[Reply]) -> Reply:
        async with self._open(path, body) as response:
            return msgspec.json.decode(await response.read(), type=reply)

    @asynccontextmanager
    async def _open(
        self, path: str, body: dict[str, Any] | None = None, timeout: aiohttp.ClientTimeout = SHORT_TIMEOUT
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to one call; leaving it half read closes the connection, which frees the slot."""
        key = self.address.api_key
        async with self.session.request(
            "GET" if body is None else "POST",
            self.address.base_url + path,
            data=None if body is None else io.BytesIO(msgspec.json.encode(body)),
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=timeout,
            allow_redirects=False,  # a prompt goes where the settings say, and nowhere else
        ) as response:
            if response.status >= HTTPStatus.MULTIPLE_CHOICES:
                said = await response.content.read(MAX_ERROR_BYTES)
                hint = pointed_to(response)
                error = _error_in(said, response.status) if hint is None else _Error(hint)
                raise error.blame(self.endpoint, Phase.REFUSED, response.status)
            yield response


def _error_in(body: bytes, status: int) -> _Error:
    try:
        return msgspec.json.decode(body, type=_ErrorReply).error
    except msgspec.DecodeError:
        return _Error(body[:200].decode(errors="replace") or f"HTTP {status} without a message")
