"""The library face: connect once, then stream answers."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
import anyio.to_thread
from msgspec.structs import replace

from discostream.checks import KIND_NEEDED
from discostream.config import (
    CostSettings,
    MigrationSettings,
    PolicySettings,
    Settings,
    check_settings,
    load_settings,
)
from discostream.core.budget import budgets_from, warning_of
from discostream.core.cost import exchange_rate
from discostream.endpoints.base import Endpoint
from discostream.endpoints.registry import build_endpoint
from discostream.errors import (
    AllEndpointsFailed,
    ConfigError,
    EndpointError,
    RequestRejected,
)
from discostream.ledger.queries import spent_since
from discostream.ledger.store import default_ledger_path
from discostream.session.answer import Answer, begin
from discostream.session.connection import FAILED, READY, STARTING, Connection
from discostream.session.conversations import Conversations
from discostream.session.embeddings import embedder_named
from discostream.session.house import House, Surroundings, WhenSettled
from discostream.session.in_force import PlanInForce, Worth, foreseen
from discostream.session.knowledge import Knowledge
from discostream.session.live import RequestNow, Watched
from discostream.session.messages import Messages, as_fields, as_messages, refuse_broken_text
from discostream.session.models import choice_of, refuse_taken_names
from discostream.session.outlet import Sink
from discostream.session.pins import pinned_by_needs, refuse_impossible_pins, refuse_impossible_plans
from discostream.session.planner import Planner
from discostream.session.power import PowerSupply, battery_wh
from discostream.session.purse import Balance, Purse
from discostream.types import MOST_TOKENS, PROBE, Request, Sampling
from discostream.wire.openai_schema import needs_of

__all__ = ["FAILED", "READY", "STARTING", "Answer", "Disco", "connect"]

log = logging.getLogger(__name__)


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
        self._worth = Worth(settings.policy)
        self._running: Counter[str] = Counter()
        self._live: dict[Sink, Watched] = {}
        self.on_settled: list[WhenSettled] = []
        self._connection = Connection()

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

    def live(self) -> tuple[RequestNow, ...]:
        """How the requests stand that are being answered at this moment, the oldest first."""
        at = anyio.current_time()
        found = (watched.as_of(at) for watched in self._live.values())
        return tuple(sorted(found, key=lambda request: -request.age_s))

    @property
    def balances(self) -> tuple[Balance, ...]:
        """How every budget stands; shadow prices as they were last asked for (`appraise`)."""
        allowances = {each.budget: each for each in self._planner.allowances}
        return tuple(
            dataclasses.replace(
                balance,
                allowance=allowances.get(balance.budget.name),
                shadow_price_s_per_unit=self._worth.latest.get(balance.budget.name),
            )
            for balance in self._purse.balances()
        )

    @property
    def charge(self) -> float | None:
        """How full the battery is that the machine runs on, in [0, 1]; `None` from a socket."""
        return self._power.charge()

    @property
    def usd_per_joule(self) -> float:
        """The exchange rate of this moment."""
        return exchange_rate(self.settings.cost, self.charge)

    async def appraise(self) -> tuple[Balance, ...]:
        """How every budget stands, with what one more unit of it would buy under the plan in force.

        That takes some 40 ms in a thread, once for every plan.
        """
        if self._planner.latest is not None:
            await self._worth.of(self._planner.latest)
        return self.balances

    async def plan_in_force(self, policy: str | None = None, share: float | None = None) -> PlanInForce:
        """The plan that the next request goes by; with a policy or a share, the one that this would have now.

        Nothing is changed by asking.

        Args:
            policy: As in `stream`.
            share: Likewise.

        Raises:
            RequestRejected: The policy or the share cannot be had here.
            ConfigError: The policy makes no plan.
        """
        refuse_impossible_plans(policy, share, self.endpoints, self.settings.policy)
        planner = self._planner.foreseeing(policy, share)
        await planner.ready(anyio.current_time())
        outlook = planner.latest
        assert outlook is not None
        rows, forecast = await anyio.to_thread.run_sync(foreseen, outlook, planner.settings)
        return PlanInForce(
            planner.settings,
            outlook,
            planner.planned,
            rows,
            forecast,
            {name: self._knowledge.experience(name) for name in self.endpoints},
            self._knowledge.chars_per_token,
        )

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
        other._worth = Worth(settings.policy)
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
        share: float | None = None,
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
            share: The `policy.share` to plan it by, in place of the settings' own; budgets hold all the same.
            private: Whether it must never leave the device.
            migrate: Whether the answer may move to save cost.
            rescue: Whether another endpoint may go on with it when its stream breaks or falls silent.

        Raises:
            RequestRejected: There is no message, one is not a message or not Unicode, there is no such
                model, `max_tokens` is out of bounds, `extra_body` repeats an argument, or what is asked of
                the policy, of a share, of privacy or of endpoints cannot be had.
            NotConnected: Outside of `async with`.
        """
        self._connection.require_open()
        if max_tokens is not None and not 1 <= max_tokens <= MOST_TOKENS:
            message = f"max_tokens = {max_tokens}: must be at least 1, and at most {MOST_TOKENS}"
            raise RequestRejected(message, param="max_tokens")
        stops = tuple(text for text in ([stop] if isinstance(stop, str) else stop or ()) if text)
        sampling = Sampling(
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
        )
        turns, fields = as_messages(messages), as_fields(extra_body or {})
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
            share=share,
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
        refuse_broken_text(request.messages)
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
            self._live,
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


def _refuse_missing_kind(policy: PolicySettings, endpoints: Mapping[str, Endpoint]) -> None:
    needed = KIND_NEEDED.get(policy.name)
    if not endpoints:
        raise ConfigError("endpoint: there is none; add an [[endpoint]] table")
    if needed and all(endpoint.kind is not needed for endpoint in endpoints.values()):
        raise ConfigError(f"policy.name = {policy.name!r}: needs an endpoint of kind {needed.value!r}")
