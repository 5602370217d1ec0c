"""The library face: connect once, then stream answers."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec.structs import replace

from discostream.config import (
    CostSettings,
    MigrationSettings,
    PolicySettings,
    Settings,
    check_settings,
    load_settings,
)
from discostream.core.budget import Allowance, budgets_from, warning_of
from discostream.endpoints.base import Endpoint
from discostream.endpoints.registry import build_endpoint
from discostream.errors import (
    AllEndpointsFailed,
    ConfigError,
    EndpointError,
    NotConnected,
    RequestRejected,
)
from discostream.ledger.queries import spent_since
from discostream.ledger.store import Ledger, default_ledger_path
from discostream.session.answer import Answer, begin
from discostream.session.conversations import Conversations
from discostream.session.embeddings import embedder_named
from discostream.session.house import House, Surroundings, WhenSettled
from discostream.session.knowledge import Knowledge
from discostream.session.models import choice_of, refuse_taken_names
from discostream.session.pins import pinned_by_needs, refuse_impossible_pins
from discostream.session.planner import Planner
from discostream.session.power import PowerSupply, battery_wh
from discostream.session.purse import Balance, Purse
from discostream.types import PROBE, Kind, Message, Request, Sampling
from discostream.wire.openai_schema import MAPPED_FIELDS, chat_message, needs_of, passed_on

__all__ = ["FAILED", "READY", "STARTING", "Answer", "Disco", "connect"]

log = logging.getLogger(__name__)

Messages: TypeAlias = str | Sequence[Message | Mapping[str, Any]]

STARTING, READY, FAILED = "starting", "ready", "failed"
"""How an endpoint stands; why one has failed is in the log, and in the next request's error."""

CLOSING_S = 10.0
"""How long an endpoint may take to close."""


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
        on_settled: Callables that are told of every request and its outcome, once it is settled.
    """

    def __init__(self, settings: Settings, *, seed: int | None = None) -> None:
        check_settings(settings)
        self.settings = settings
        self.endpoints: dict[str, Endpoint] = {
            endpoint.name: build_endpoint(endpoint) for endpoint in settings.endpoint
        }
        _refuse_missing_kind(settings.policy, self.endpoints)
        refuse_taken_names(self.endpoints)
        self._seed = seed
        self._knowledge = Knowledge(self.endpoints, settings.profile)
        self._recalled = False
        self._conversations = Conversations(self.endpoints)
        self._power = PowerSupply()
        self._battery_wh = settings.cost.battery_wh or battery_wh()
        self._purse = Purse(budgets_from(settings, self._battery_wh))
        self._planner = self._plan_under(settings)
        self._running: Counter[str] = Counter()
        self.on_settled: list[WhenSettled] = []
        self._connection = _Connection()

    async def __aenter__(self) -> Disco:
        ledger_path = self.settings.ledger.path or default_ledger_path()
        await self._connection.open(ledger_path, self.endpoints.values())
        if not self._recalled:
            await self._recall(ledger_path)
        self._planner.prepare(anyio.current_time())
        return self

    async def _recall(self, ledger_path: str | Path) -> None:
        """Take up what the ledger knows: what was learnt, and what was spent."""
        try:
            await anyio.to_thread.run_sync(self._knowledge.recall, ledger_path)
            await anyio.to_thread.run_sync(self._purse.load, partial(spent_since, ledger_path))
        except BaseException:
            await self._connection.close()
            raise
        self._recalled = True
        if warning := warning_of(self.settings):
            log.warning("%s", warning)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def ready(self) -> None:
        """Wait until every endpoint can answer at once.

        Raises:
            EndpointError: One of them cannot.
        """
        for endpoint in self.endpoints.values():
            await endpoint.prepare()

    @property
    def standing(self) -> dict[str, str]:
        """How each endpoint stands: starting, ready or failed."""
        return dict(self._connection.standing)

    @property
    def running(self) -> dict[str, int]:
        """How many attempts run at each endpoint."""
        return {name: self._running[name] for name in self.endpoints}

    @property
    def balances(self) -> tuple[Balance, ...]:
        """How every budget stands."""
        return self._purse.balances()

    @property
    def allowances(self) -> tuple[Allowance, ...]:
        """What the plans in force let an average request use of every budget."""
        return self._planner.allowances

    def expect_prompts(self, chars: Sequence[int]) -> None:
        """Plan for prompts of so many characters until more is seen, not for a public service's chats."""
        self._knowledge.expect_prompts(chars)

    def under(
        self,
        *,
        policy: PolicySettings | None = None,
        migration: MigrationSettings | None = None,
        cost: CostSettings | None = None,
    ) -> Disco:
        """The same connection under other rules: endpoints, ledger, budgets and what was learnt are shared.

        Where no request may leave the device, no other policy lets one.

        Raises:
            ConfigError: The policy does not exist or does not fit the endpoints.
        """
        if policy is not None and self.settings.policy.private:
            policy = replace(policy, private=True)
        changed = {"policy": policy, "migration": migration, "cost": cost}
        settings = replace(self.settings, **{name: table for name, table in changed.items() if table})
        check_settings(settings)
        _refuse_missing_kind(settings.policy, self.endpoints)
        other = copy.copy(self)
        other.settings = settings
        other._purse = self._purse.under(budgets_from(settings, self._battery_wh))
        other._planner = other._plan_under(settings)
        return other

    def _plan_under(self, settings: Settings) -> Planner:
        surroundings = Surroundings(self._knowledge, settings.cost, self._power, self._purse)
        return Planner(settings.policy, surroundings, self._seed)

    def stream(
        self,
        messages: Messages,
        *,
        model: str = "disco",
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        extra_body: Mapping[str, Any] | None = None,
        policy: str | None = None,
        private: bool = False,
        migrate: bool = True,
        rescue: bool = True,
    ) -> Answer:
        """Start answering a conversation; iterate over what comes back.

        Args:
            messages: A prompt, or a chat's turns as `Message`s or mappings as OpenAI's API has them, with
                pictures, tool calls and their results.
            model: Who answers: `disco` leaves that to the policy, `disco-private` never leaves the device,
                `disco-fast` starts everybody at once, `disco-cheap` whoever costs least; the name of an
                endpoint, or of its model, is that one alone.
            max_tokens: The most tokens the answer may have.
            stop: Strings that end the answer.
            temperature: As OpenAI defines it; so are the ones below.
            top_p: The nucleus.
            seed: Holds on one endpoint only.
            presence_penalty: Against words that occurred.
            frequency_penalty: Against words by how often they occurred.
            extra_body: Whatever else OpenAI's API or an endpoint understands, such as `{"tools": […]}`.
            policy: The policy to plan this request by; the model's or the settings' own when left out.
            private: Whether it must never leave the device.
            migrate: Whether the answer may move to save cost.
            rescue: Whether another endpoint may go on with it when its stream breaks or falls silent.

        Raises:
            RequestRejected: There is no message, one is not a message or not Unicode, there is no such
                model, `max_tokens` is not positive, `extra_body` repeats an argument, or what is asked of
                the policy, of privacy or of endpoints cannot be had.
            NotConnected: Outside of `async with`.
        """
        if max_tokens is not None and max_tokens < 1:
            raise RequestRejected(f"max_tokens = {max_tokens}: must be at least 1", param="max_tokens")
        stops = tuple(text for text in ([stop] if isinstance(stop, str) else stop or ()) if text)
        sampling = Sampling(
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
        )
        turns, fields = _as_messages(messages), _as_fields(extra_body or {})
        request = Request(
            messages=turns,
            arrived_at=anyio.current_time(),
            request_id=uuid.uuid4().hex,
            max_tokens=max_tokens,
            stop=stops,
            sampling=sampling,
            needs=needs_of(turns, fields),
            fields=fields,
            migrate=migrate,
            rescue=rescue,
            policy=policy,
            private=private,
            model=model,
        )
        return self.submit(choice_of(model, self.endpoints).applied(request))

    def submit(self, request: Request) -> Answer:
        """Start answering a request; iterate over what comes back.

        Raises:
            RequestRejected: A message holds half a character, as broken input does, and cannot be sent; or
                its policy, its privacy or what it needs of an endpoint cannot be had.
            NotConnected: Outside of `async with`.
        """
        _refuse_broken_text(request.messages)
        if self.settings.policy.private and not (request.policy == PROBE and request.endpoint):
            request = dataclasses.replace(request, private=True)
        refuse_impossible_pins(request, self.endpoints, self.settings.policy)
        request = pinned_by_needs(request)
        tasks, ledger = self._connection.require_open()
        house = House(
            self.endpoints,
            self._knowledge,
            self._planner,
            ledger,
            self.settings.migration,
            self._running,
            self._conversations,
            self._purse,
            self.settings.pacing,
            self.on_settled,
        )
        return begin(request, house, tasks)

    async def embed(
        self, fields: Mapping[str, object], *, model: str = "disco", private: bool = False
    ) -> bytes:
        """What the endpoint that embeds says to a request with these fields of OpenAI's `/embeddings`.

        It is passed on and back, and counted nowhere: neither in the ledger nor in a budget.

        Args:
            fields: `input`, and what else the endpoint knows; `model` is replaced by the endpoint's own.
            model: An endpoint's name or embedding model; `disco` is the first that has one.
            private: Whether the texts must never leave the device.

        Raises:
            RequestRejected: Nobody embeds under that name, or nobody who may.
            AllEndpointsFailed: The endpoint refused or broke, or a hard budget would have to count it.
            NotConnected: Outside of `async with`.
        """
        self._connection.require_open()
        private = private or self.settings.policy.private
        endpoint = embedder_named(model, self.endpoints, private=private)
        try:
            self._purse.refuse_uncounted(endpoint, "embeddings")
            return await endpoint.embed(fields)
        except EndpointError as error:
            raise AllEndpointsFailed([error]) from error


class _Connection:
    """What is open between entering and leaving: the ledger, and the tasks of all answers."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None
        self._ledger: Ledger | None = None
        self.standing: dict[str, str] = {}

    async def open(self, ledger_path: str | Path, endpoints: Iterable[Endpoint]) -> None:
        self._ledger = Ledger(ledger_path)
        self._stack.callback(self._ledger.close)
        for endpoint in endpoints:
            self._stack.push_async_callback(_close_quietly, endpoint)
        self._tasks = await anyio.create_task_group().__aenter__()
        for endpoint in endpoints:
            self._tasks.start_soon(self._prepare, endpoint)

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        # The caller's own error passes by the task group, which would wrap it in an exception group.
        tasks.cancel_scope.cancel()
        try:
            await tasks.__aexit__(None, None, None)
        finally:
            await self._stack.aclose()

    async def _prepare(self, endpoint: Endpoint) -> None:
        self.standing[endpoint.name] = STARTING
        try:
            await endpoint.prepare()
        except Exception as error:
            self.standing[endpoint.name] = FAILED
            if isinstance(error, EndpointError):
                log.warning("%s", error)
            else:
                log.exception("%r: prepare raised what it should have translated", endpoint)
        else:
            self.standing[endpoint.name] = READY

    def require_open(self) -> tuple[TaskGroup, Ledger]:
        if self._tasks is None or self._ledger is None:
            raise NotConnected("not connected: use it inside `async with discostream.connect(...)`")
        return self._tasks, self._ledger


async def _close_quietly(endpoint: Endpoint) -> None:
    with anyio.move_on_after(CLOSING_S, shield=True):
        try:
            await endpoint.aclose()
        except Exception:
            log.exception("%r could not be closed", endpoint)


def _refuse_missing_kind(policy: PolicySettings, endpoints: Mapping[str, Endpoint]) -> None:
    needed = {"server-only": Kind.SERVER, "device-only": Kind.DEVICE}.get(policy.name)
    if not endpoints:
        raise ConfigError("endpoint: there is none; add an [[endpoint]] table")
    if needed and all(endpoint.kind is not needed for endpoint in endpoints.values()):
        raise ConfigError(f"policy.name = {policy.name!r}: needs an endpoint of kind {needed.value!r}")


def _refuse_broken_text(messages: Sequence[Message]) -> None:
    try:
        for message in messages:
            message.content.encode()
    except UnicodeEncodeError:
        raise RequestRejected("messages: hold text that is not valid Unicode", param="messages") from None


def _as_fields(extra_body: Mapping[str, Any]) -> dict[str, bytes]:
    for name in extra_body:
        if name in MAPPED_FIELDS:
            raise RequestRejected(
                f"extra_body: {name!r} does not belong there; `stream` has its own arguments", param=name
            )
    return passed_on(extra_body)


def _as_messages(messages: Messages) -> tuple[Message, ...]:
    if isinstance(messages, str):
        return (Message("user", messages),)
    if not messages:
        raise RequestRejected("messages: there must be at least one", param="messages")
    return tuple(
        message if isinstance(message, Message) else _as_message(message, f"messages[{index}]")
        for index, message in enumerate(messages)
    )


def _as_message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise RequestRejected(f'{where}: must be {{"role": text, "content": text}}', param=where)
    return chat_message(message, where)
