"""llama.cpp's own protocol, token-exact: the embedded engine, or a `llama-server` that runs already."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated, Any

import aiohttp
import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict

from discostream.config import EndpointSettings
from discostream.core.cost import Energy, ModelShape, energy_of
from discostream.core.seam import opens_thought, rejoined
from discostream.endpoints.base import Endpoint
from discostream.endpoints.body import breach, read_tail
from discostream.endpoints.http import server_url
from discostream.endpoints.keys import api_key, redact
from discostream.endpoints.llamacpp_server import Frame, LlamaCppServer, ModelMeta, Props
from discostream.engine.catalogue import CATALOGUE, find_model, require_model, resolve_model
from discostream.engine.shape import model_shape
from discostream.engine.supervisor import Engine, EngineAddress, EngineSettings
from discostream.errors import ConfigError, EndpointError, EngineError, Phase
from discostream.types import (
    Carrier,
    Event,
    Feature,
    Finish,
    FinishReason,
    Kind,
    Piece,
    Prefix,
    Prompt,
    Request,
)
from discostream.wire.openai_answer import AnswerReader
from discostream.wire.openai_request import passed_fields, request_body
from discostream.wire.openai_upstream import ChunkError
from discostream.wire.sse import SseError

__all__ = ["LlamaCppEndpoint", "LlamaCppOptions"]

LEAVING_S = 2.0
"""How long a closed stream may hold its slot: a batch takes that long on a busy device."""
LOOK_AGAIN_S = 0.02
MAX_MESSAGE_CHARS = 300
FINAL_FIELDS = ["content", "tokens", "stop", "stop_type", "tokens_predicted", "tokens_evaluated", "timings"]
"""All we read of a stream's last event, which would otherwise repeat the whole prompt."""

Positive = Annotated[int, Meta(ge=1)]


class LlamaCppOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The dialect's own keys; all but the first two are for the embedded engine.

    Attributes:
        base_url: A llama.cpp server that runs already; empty runs `model` in the embedded engine.
        api_key_env: The environment variable with that server's key.
        threads: Computing threads; 0 lets llama.cpp take every physical core.
        context_tokens: The longest prompt and answer together, per slot.
        slots: Requests served at a time.
        read_timeout_s: The longest silence of a stream.
        batch_tokens: Prompt tokens computed between two looks at whether the request was cancelled; the
            default by benchmarks/cancel_prefill.py.
    """

    base_url: str = ""
    api_key_env: str = ""
    threads: Annotated[int, Meta(ge=0)] = 0
    context_tokens: Positive = 4096
    slots: Positive = 2
    read_timeout_s: Annotated[float, Meta(gt=0.0)] = 120.0
    batch_tokens: Positive = 128


class LlamaCppEndpoint(Endpoint):
    """A llama.cpp server, which takes and gives token IDs and so continues an answer exactly.

    Only what its own protocol has no words for goes by its OpenAI-compatible one: tools, schemas,
    log-probabilities, pictures.

    Attributes:
        engine: The embedded engine, once it was started; `None` where `base_url` names a server.
    """

    Options = LlamaCppOptions
    neutral_options = frozenset({"api_key_env", "context_tokens", "read_timeout_s"})
    usual_features = frozenset({Feature.TOOLS, Feature.JSON, Feature.LOGPROBS, Feature.COMPLETIONS})

    def __init__(self, settings: EndpointSettings, options: LlamaCppOptions) -> None:
        super().__init__(settings, options)
        if not (settings.model or options.base_url):
            raise ConfigError(
                f"endpoint {settings.name!r}: needs `model` to run, or the `base_url` of a server"
            )
        if options.base_url:
            server_url(settings.name, options.base_url, "completion")
        else:
            require_model(settings.model)
            self.models = (settings.model,) if settings.model in CATALOGUE else ()
        self._base_url = options.base_url.rstrip("/").removesuffix("/v1")
        self._key = api_key(settings.name, options.api_key_env)
        self.options = options
        self.continues = frozenset({Carrier.TOKENS, Carrier.TEXT})
        self.slots = None if options.base_url else options.slots
        self.engine: Engine | None = None
        self._open = 0
        self._let_go_at = -math.inf
        self._session: aiohttp.ClientSession | None = None
        self._prepared = False
        self._preparing = anyio.Lock()

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        """Stream the answer, with the IDs of all its tokens wherever llama.cpp lets them be known."""
        if not self._prepared:
            await self.prepare()
        if lacking := request.needs - self.features:
            what = f"its model is not able to do what is asked: {', '.join(sorted(lacking))}"
            raise EndpointError(self.name, Phase.REFUSED, what, status=HTTPStatus.BAD_REQUEST)
        attempt = _Attempt(self.name, self._key)
        with attempt.blamed():
            server = await self._server()
            if request.needs <= {Feature.COMPLETIONS}:
                rendered = await server.render(request)
                behind = rejoined(rendered, prefix.text) if request.raw_prompt is None else rendered
                prompt, written = await server.prompt_ids(behind, prefix)
                thinks = not prefix.text and opens_thought(rendered)
                yield Prompt(len(prompt + written), opens_thought=thinks)
                request = _within_limit(request, prefix, len(written))
                if request.max_tokens == 0:
                    yield Finish(FinishReason.LENGTH, len(prompt + written), 0)
                    return
                stream = attempt.events(server, _completion_body(request, prompt + written))
            else:
                stream = attempt.openai_events(server, request, prefix)
            if prefix.text and anyio.current_time() - self._let_go_at < LEAVING_S:
                await self._until_left(server)
            with self._counted(attempt):
                async with aclosing(stream) as events:
                    async for event in events:
                        yield event

    @contextmanager
    def _counted(self, attempt: _Attempt) -> Iterator[None]:
        """Count a stream while it lasts, and note when one was closed before its end."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if not attempt.over:
                self._let_go_at = anyio.current_time()

    async def _until_left(self, server: LlamaCppServer) -> None:
        """Wait until streams that were closed have left their slots.

        A slot is held until the batch in it is computed. The rest of an answer would go to another, which has
        not read the prompt.
        """
        with anyio.move_on_after(LEAVING_S), suppress(EndpointError, msgspec.DecodeError):
            while await server.busy_slots() > self._open:  # noqa: ASYNC110 - llama.cpp tells nobody
                await anyio.sleep(LOOK_AGAIN_S)

    async def prepare(self) -> None:
        """Fetch the model if need be, start the engine, and learn vocabulary and energy."""
        async with self._preparing:
            with _Attempt(self.name, self._key).blamed():
                if not self.options.base_url:
                    await self._start_engine()
                server = await self._server()
                if not self._prepared:
                    await self._learn(server)
                self._prepared = True

    async def inspect(self) -> None:
        """Learn the energy of a model whose file is on this machine."""
        await self._learn_energy(None)

    async def aclose(self) -> None:
        """End the engine and all connections."""
        with anyio.CancelScope(shield=True):
            session, self._session = self._session, None
            engine, self.engine = self.engine, None
            self._prepared = False
            if session is not None:
                await session.close()
            if engine is not None:
                await anyio.to_thread.run_sync(engine.stop)

    async def _start_engine(self) -> None:
        if self.engine is None:
            path = await anyio.to_thread.run_sync(
                lambda: resolve_model(self.settings.model, progress=_stop_when_cancelled)
            )
            self.engine = Engine(
                EngineSettings(
                    model=path,
                    threads=self.options.threads,
                    context_tokens=self.options.context_tokens,
                    slots=self.options.slots,
                    batch_tokens=self.options.batch_tokens,
                )
            )
        self.engine.start()

    async def _server(self) -> LlamaCppServer:
        """The server of this moment; an engine that was restarted has another address and key."""
        if self._session is None:
            # llama.cpp closes connections after streams unannounced; one used again breaks every third time.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._session = aiohttp.ClientSession(connector=connector)
        if self.engine is not None:
            address = await self.engine.address()
        else:
            address = EngineAddress(self._base_url, self._key)
        return LlamaCppServer(self.name, address, self._session, self.options.read_timeout_s)

    async def _learn(self, server: LlamaCppServer) -> None:
        with suppress(EndpointError, msgspec.DecodeError):  # servers may keep it to themselves
            self._learn_abilities(await server.props())
        meta = None
        try:
            meta = await server.model_meta()
            self.vocabulary = await server.fingerprint(meta.n_vocab)
        except (EndpointError, msgspec.DecodeError) as error:
            if isinstance(error, EndpointError) and error.status == HTTPStatus.SERVICE_UNAVAILABLE:
                raise  # still loading; anything else is an old server, which works but takes only text
        await self._learn_energy(meta)

    def _learn_abilities(self, props: Props) -> None:
        if self.options.base_url:
            self.slots = props.total_slots
        if self.settings.features is None:
            self.features = props.features(self.usual_features)

    async def _learn_energy(self, meta: ModelMeta | None) -> None:
        if self.kind is Kind.DEVICE:
            self.energy = await self._energy(meta)

    async def _energy(self, meta: ModelMeta | None) -> Energy:
        """Measured joules where the settings have them, otherwise by the model's shape."""
        prefill_j, decode_j = self.settings.prefill_joules_per_token, self.settings.decode_joules_per_token
        computed = self.energy
        if (prefill_j is None or decode_j is None) and (shape := await self._shape(meta)):
            computed = energy_of(shape)
        return Energy(
            computed.prefill_j_per_token if prefill_j is None else prefill_j,
            computed.decode_j_per_token if decode_j is None else decode_j,
        )

    async def _shape(self, meta: ModelMeta | None) -> ModelShape | None:
        path = find_model(self.settings.model) if self.settings.model else None
        if path is not None:
            with suppress(EngineError):  # llama.cpp may know files that the reader does not
                return await anyio.to_thread.run_sync(model_shape, path)
        return meta.shape() if meta else None


@dataclass(slots=True)
class _Attempt:
    """One stream while it lasts: how far it has come, and so what an error means."""

    endpoint: str
    key: str
    phase: Phase = Phase.CONNECT
    predicted: int = 0
    held: tuple[int, ...] = ()
    over: bool = False

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Turn every foreign error into an `EndpointError` with the phase it belongs to."""
        try:
            yield
        except EndpointError as error:
            message = redact(error.message, self.key)[:MAX_MESSAGE_CHARS]
            raise EndpointError(
                self.endpoint, error.phase, message, status=error.status, code=error.code
            ) from error
        except (ConfigError, EngineError) as error:  # a file may have gone since the settings were checked
            raise EndpointError(self.endpoint, Phase.CONNECT, str(error)) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise EndpointError(self.endpoint, Phase.CONNECT, f"cannot connect: {error}") from error
        except TimeoutError as error:
            raise EndpointError(self.endpoint, self.phase, "silent for too long") from error
        except (aiohttp.ClientError, OSError) as error:
            message = f"the connection broke: {breach(error)}"
            raise EndpointError(self.endpoint, self.phase, message) from error
        except ChunkError as error:
            raise EndpointError(
                self.endpoint, self.phase, str(error), status=error.status, code=error.code
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError, SseError) as error:
            message = f"sent what llama.cpp would not: {error}"
            raise EndpointError(self.endpoint, self.phase, message) from error

    async def events(self, server: LlamaCppServer, body: dict[str, Any]) -> AsyncGenerator[Event, None]:
        """What `/completion` found in its cache, then pieces and the finish."""
        self.phase = Phase.PREFILL
        async with aclosing(server.frames(body)) as frames:
            async for frame in frames:
                if frame.error is not None:
                    raise frame.error.blame(self.endpoint, self.phase)
                if progress := frame.prompt_progress:
                    yield Prompt(progress.total, progress.cache, progress.processed)
                if frame.is_piece:
                    self.phase = Phase.DECODE if frame.content else self.phase
                    yield await self._piece(server, frame)
                if frame.stop:
                    self.over = True
                    yield frame.finish()
                    return
        raise EndpointError(self.endpoint, self.phase, "the stream ended before the answer did")

    async def openai_events(
        self, server: LlamaCppServer, request: Request, prefix: Prefix
    ) -> AsyncGenerator[Event, None]:
        """What the server says by OpenAI's protocol."""
        self.phase = Phase.PREFILL
        path = "/v1/chat/completions" if request.raw_prompt is None else "/v1/completions"
        answer = AnswerReader()
        async with server.stream(path, _openai_body(request, prefix)) as stream:
            while answer.finish_reason is None:
                for event in answer.feed(await stream.read()):
                    self.phase = answer.phase
                    yield event
            await read_tail(stream, answer)
        self.over = True
        yield answer.finish()

    async def _piece(self, server: LlamaCppServer, frame: Frame) -> Piece:
        tokens = max(frame.tokens_predicted - self.predicted, len(frame.tokens), 1)
        self.predicted = frame.tokens_predicted
        ids: tuple[int, ...] | None = frame.tokens
        if len(frame.tokens) != tokens:
            ids = await self._all_ids(server, frame, tokens)
        self.held = () if frame.content else self.held + (ids or ())
        return Piece(frame.content, tokens, ids)

    async def _all_ids(self, server: LlamaCppServer, frame: Frame, tokens: int) -> tuple[int, ...] | None:
        """All IDs of a piece whose last ones alone were sent; `None` when they cannot be told.

        That is how llama.cpp streams a character that spans several tokens. Its text may begin with
        characters that were held back for a stop string, and whose IDs came before.
        """
        if not frame.tokens:
            return None
        ids = await server.inner_ids(frame.content)
        before, new = ids[: len(self.held)], ids[len(self.held) :]
        fits = before == self.held and len(new) == tokens and new[-len(frame.tokens) :] == frame.tokens
        return new if fits else None


def _within_limit(request: Request, prefix: Prefix, tokens: int) -> Request:
    """The request, its limit lowered by how many more tokens the answer so far has here than elsewhere.

    It is never raised, for what a hard budget has set aside is what was asked for.
    """
    if request.max_tokens is None or prefix.tokens is None:
        return request
    more = max(tokens - prefix.tokens, 0)
    return replace(request, max_tokens=max(request.max_tokens - more, 0))


def _completion_body(request: Request, prompt: tuple[int, ...]) -> dict[str, Any]:
    """What `/completion` is asked for.

    Progress is asked for because of what it does on the other side: llama.cpp then writes to the stream
    after every batch of the prompt and so notices that the reader has gone. Without, it looks once a
    second, and not at all while other slots are busy.
    """
    sampling = {name: value for name, value in asdict(request.sampling).items() if value is not None}
    return {
        **passed_fields(request),
        "prompt": prompt,
        "stream": True,
        "return_tokens": True,
        "return_progress": True,
        "cache_prompt": True,
        "n_predict": -1 if request.max_tokens is None else request.max_tokens,
        "stop": request.stop,
        "response_fields": FINAL_FIELDS,
        **sampling,
    }


def _openai_body(request: Request, prefix: Prefix) -> dict[str, Any]:
    """What OpenAI's protocol is asked for; progress for the reason that `_completion_body` gives."""
    counts = {"stream_options": {"include_usage": True}, "return_progress": True, "cache_prompt": True}
    return {**request_body(request, prefix), **counts}


def _stop_when_cancelled(done_bytes: int, total_bytes: int) -> None:
    """Progress that calls a fetch off when the task that waits for it was cancelled."""
    anyio.from_thread.check_cancelled()
