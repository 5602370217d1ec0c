"""The library face: connect once, then stream answers."""

from __future__ import annotations

import copy
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeAlias

import anyio
import anyio.lowlevel
from anyio.abc import ObjectSendStream, TaskGroup

from discostream.config import CostSettings, MigrationSettings, PolicySettings, Settings, load_settings
from discostream.endpoints.base import Endpoint
from discostream.endpoints.registry import build_endpoint
from discostream.errors import ConfigError, EndpointError, RequestRejected
from discostream.ledger.store import Ledger, default_ledger_path
from discostream.session.house import House
from discostream.session.knowledge import Knowledge
from discostream.session.planner import Planner
from discostream.session.run import run
from discostream.types import Delivered, Kind, Message, Outcome, Request, Sampling

__all__ = ["Answer", "Disco", "connect"]

log = logging.getLogger(__name__)

Messages: TypeAlias = str | Sequence[Message | Mapping[str, str]]

PIECES_AHEAD = 256
"""Pieces that may wait for a slow reader before the answer waits too."""


def connect(source: Settings | str | os.PathLike[str] | None = None, *, seed: int | None = None) -> Disco:
    """A connection to the endpoints of some settings, to be entered with `async with`.

    Args:
        source: Settings, or the path of a `disco.toml`; `None` takes the one in the working directory, or
            the embedded pair where there is none.
        seed: Fixes what policies draw.

    Raises:
        ConfigError: The settings are wrong.
    """
    return Disco(source if isinstance(source, Settings) else load_settings(source), seed=seed)


class Disco:
    """Streams answers from the endpoints of some settings.

    Entering it opens the ledger and lets the endpoints get ready in the background; leaving it cancels
    what still runs, settles it, and closes everything.

    Attributes:
        settings: What it was made from.
        endpoints: By name, in the order of the settings.
    """

    def __init__(self, settings: Settings, *, seed: int | None = None) -> None:
        self.settings = settings
        self.endpoints: dict[str, Endpoint] = {
            endpoint.name: build_endpoint(endpoint) for endpoint in settings.endpoint
        }
        _refuse_missing_kind(settings.policy, self.endpoints)
        self._seed = seed
        self._planner = Planner(settings.policy, seed)
        self._knowledge = Knowledge(self.endpoints)
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup
        self._ledger: Ledger

    async def __aenter__(self) -> Disco:
        self._ledger = Ledger(self.settings.ledger.path or default_ledger_path())
        self._stack.callback(self._ledger.close)
        self._stack.push_async_callback(self._close_endpoints)
        self._tasks = await anyio.create_task_group().__aenter__()
        for endpoint in self.endpoints.values():
            self._tasks.start_soon(_prepare_quietly, endpoint)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The caller's own error passes by the task group, which would wrap it in an exception group.
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._stack.aclose()

    async def ready(self) -> None:
        """Wait until every endpoint can answer at once.

        Raises:
            EndpointError: One of them cannot.
        """
        for endpoint in self.endpoints.values():
            await endpoint.prepare()

    def expect_prompts(self, tokens: Sequence[int]) -> None:
        """Plan for prompts of these lengths until more is seen, instead of for a public service's chats."""
        self._knowledge.expect_prompts(tokens)

    def under(
        self,
        *,
        policy: PolicySettings | None = None,
        migration: MigrationSettings | None = None,
        cost: CostSettings | None = None,
    ) -> Disco:
        """The same connection under other rules: endpoints, ledger and what was learnt are shared.

        Raises:
            ConfigError: The policy does not exist or does not fit the endpoints.
        """
        changed = {"policy": policy, "migration": migration, "cost": cost}
        other = copy.copy(self)
        other.settings = _replaced(self.settings, {key: value for key, value in changed.items() if value})
        _refuse_missing_kind(other.settings.policy, self.endpoints)
        other._planner = Planner(other.settings.policy, self._seed)
        return other

    def stream(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
    ) -> Answer:
        """Start answering a conversation; iterate over what comes back.

        Args:
            messages: A prompt, or a chat's turns as `Message`s or `{"role", "content"}` mappings.
            max_tokens: The most tokens the answer may have.
            stop: Strings that end the answer.
            temperature: As OpenAI defines it; so are the ones below.
            top_p: The nucleus.
            seed: Holds on one endpoint only.
            presence_penalty: Against words that occurred.
            frequency_penalty: Against words by how often they occurred.

        Raises:
            RequestRejected: There is no message, or one is not a message.
        """
        sampling = Sampling(
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
        )
        return self.submit(
            Request(
                messages=_as_messages(messages),
                arrived_at=anyio.current_time(),
                request_id=uuid.uuid4().hex,
                max_tokens=max_tokens,
                stop=tuple(stop),
                sampling=sampling,
                pinned="stop strings" if stop else None,
            )
        )

    def submit(self, request: Request) -> Answer:
        """Start answering a request; iterate over what comes back."""
        house = House(
            self.endpoints,
            self._knowledge,
            self._planner,
            self._ledger,
            self.settings.migration,
            self.settings.cost.usd_per_joule,
        )
        answer = Answer(request)
        self._tasks.start_soon(answer._progress.follow, request, house)
        return answer

    async def _close_endpoints(self) -> None:
        with anyio.CancelScope(shield=True):
            for endpoint in self.endpoints.values():
                await endpoint.aclose()


class Answer:
    """A running answer: an async iterator of `Delivered` pieces.

    Iteration ends when the answer is whole and settled. `async with` or `aclose` abandons it early, which
    cancels every attempt; an answer that is simply dropped is abandoned too.

    Attributes:
        request: What is being answered.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        pieces_in, self._pieces = anyio.create_memory_object_stream[Delivered](PIECES_AHEAD)
        self._progress = _Progress(pieces_in)

    @property
    def outcome(self) -> Outcome | None:
        """Everything settled about it; `None` until then."""
        return self._progress.outcome

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Delivered:
        """The next piece.

        Raises:
            AllEndpointsFailed: Nothing could answer, or go on answering.
        """
        try:
            return await self._pieces.receive()
        except anyio.EndOfStream:
            self._pieces.close()
            if self._progress.failure is not None:
                raise self._progress.failure from None
            raise StopAsyncIteration from None
        except anyio.ClosedResourceError:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Abandon the answer and wait until it is settled. Safe to call twice, and after its end."""
        self._pieces.close()
        self._progress.scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._progress.settled.wait()

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._pieces.close()
        if not self._progress.settled.is_set():
            self._progress.scope.cancel()


@dataclass
class _Progress:
    """What an answer and the task behind it share; the task must not keep a dropped answer alive."""

    pieces: ObjectSendStream[Delivered]
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    settled: anyio.Event = field(default_factory=anyio.Event)
    outcome: Outcome | None = None
    failure: Exception | None = None

    async def follow(self, request: Request, house: House) -> None:
        try:
            self.outcome, self.failure = await run(request, house, self._emit, self.scope)
        except Exception as error:
            # One request's unexpected end must not take the others down with it.
            log.exception("request %s could not be served", request.request_id)
            self.failure = error
        finally:
            self.settled.set()
            await self.pieces.aclose()

    async def _emit(self, piece: Delivered) -> None:
        try:
            await self.pieces.send(piece)
        except anyio.BrokenResourceError:
            self.scope.cancel()
            await anyio.lowlevel.checkpoint()


async def _prepare_quietly(endpoint: Endpoint) -> None:
    try:
        await endpoint.prepare()
    except EndpointError as error:
        log.warning("%s", error)


def _refuse_missing_kind(policy: PolicySettings, endpoints: Mapping[str, Endpoint]) -> None:
    needed = {"server-only": Kind.SERVER, "device-only": Kind.DEVICE}.get(policy.name)
    if not endpoints:
        raise ConfigError("endpoint: there is none; add an [[endpoint]] table")
    if needed and all(endpoint.kind is not needed for endpoint in endpoints.values()):
        raise ConfigError(f"policy.name = {policy.name!r}: needs an endpoint of kind {needed.value!r}")


def _replaced(settings: Settings, changed: Mapping[str, object]) -> Settings:
    values = {name: getattr(settings, name) for name in settings.__struct_fields__}
    return Settings(**{**values, **changed})


def _as_messages(messages: Messages) -> tuple[Message, ...]:
    if isinstance(messages, str):
        return (Message("user", messages),)
    if not messages:
        raise RequestRejected("messages: there must be at least one", param="messages")
    return tuple(message if isinstance(message, Message) else _as_message(message) for message in messages)


def _as_message(message: Mapping[str, str]) -> Message:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise RequestRejected('messages: each must be {"role": text, "content": text}', param="messages")
    return Message(role, content)
