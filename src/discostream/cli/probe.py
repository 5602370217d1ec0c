"""Probes of `disco profile`: small bounded requests, sent only to see how fast an endpoint is."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec.structs

from discostream.cli.screen import count_bar, errors
from discostream.config import BudgetSettings, EndpointSettings, PolicySettings, Settings
from discostream.core.budget import most_prompt_tokens
from discostream.endpoints.base import Endpoint
from discostream.errors import DiscoError, EndpointError
from discostream.library import Disco, connect
from discostream.types import PROBE, Kind, Message, Outcome, Prefix, Request

__all__ = ["Bound", "Tally", "alone", "bound_of", "probe_all"]

PATIENCE_S = 60.0
"""An endpoint that has not answered a probe by then is let go; all that is known is that it takes longer."""

ANSWER_TOKENS = 16
"""The longest answer to a probe: enough gaps between tokens to tell a pace."""

SENTENCE = "The keeper of the light wrote the weather into a book every four hours. "
SERVER_SENTENCES = 2
DEVICE_SENTENCES = (1, 32)
"""A sentence is 15 tokens. A device's prompts grow from one to 32 of them, so that its line shows."""

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples, modulo one, are spread evenly wherever one stops (the three-gap theorem)."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that the probes of one endpoint can take together."""

    endpoint: str
    requests: int
    prompt_tokens: int
    answer_tokens: int
    usd: float
    joules: float

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} prompt and {self.answer_tokens:,} answer tokens"
        most = f"{tokens}, ${self.usd:.6f}, {self.joules:.0f} J"
        return f"{self.endpoint}: {self.requests} probe{'s' * (self.requests > 1)}, at most {most}"


@dataclass
class Tally:
    """What came of the probes of one endpoint."""

    endpoint: str
    asked: int
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    usd: float = 0.0
    joules: float = 0.0

    def count(self, outcome: Outcome | None, failure: str | None) -> None:
        """Count one probe."""
        if outcome is not None:
            self.usd += outcome.usd
            self.joules += outcome.joules
        if failure is None:
            self.answered += 1
        else:
            self.failures.append(failure)

    def as_json(self) -> dict[str, Any]:
        """All figures as one object."""
        return {
            "endpoint": self.endpoint,
            "asked": self.asked,
            "answered": self.answered,
            "failures": self.failures,
            "usd": self.usd,
            "joules": self.joules,
        }

    def __str__(self) -> str:
        failed = f", {len(self.failures)} failed ({self.failures[0]})" if self.failures else ""
        cost = f"${self.usd:.6f}, {self.joules:.1f} J"
        return f"{self.endpoint}: {self.answered} of {self.asked} probes answered{failed}; {cost}"


def alone(settings: Settings, chosen: Sequence[EndpointSettings]) -> Settings:
    """The settings without all other endpoints, and without what concerns only those or real requests."""
    return msgspec.structs.replace(
        settings,
        endpoint=tuple(chosen),
        policy=PolicySettings(name="offsets", offsets={endpoint.name: 0.0 for endpoint in chosen}),
        budget=tuple(budget for budget in settings.budget if _concerns(budget, chosen)),
    )


def _concerns(budget: BudgetSettings, chosen: Sequence[EndpointSettings]) -> bool:
    """Whether probes of these endpoints may spend of it; shares are of real requests alone."""
    if budget.share is not None:
        return False
    kinds = {endpoint.kind for endpoint in chosen}
    if budget.usd is None:
        return Kind.DEVICE in kinds
    priced = any(one.prompt_usd_per_mtok or one.completion_usd_per_mtok for one in chosen)
    return priced or Kind.SERVER in kinds


def bound_of(endpoint: Endpoint, count: int) -> Bound:
    """The most that so many probes can take there."""
    prompts = [most_prompt_tokens(_request(endpoint, number, 0.0), Prefix()) for number in range(count)]
    prompt_tokens, answer_tokens = sum(prompts), count * ANSWER_TOKENS
    return Bound(
        endpoint.name,
        count,
        prompt_tokens,
        answer_tokens,
        endpoint.prices.usd(prompt_tokens, answer_tokens),
        endpoint.energy.joules(prompt_tokens, answer_tokens),
    )


async def probe_all(settings: Settings, count: int, tallies: list[Tally]) -> None:
    """Probe every endpoint of the settings, one after the other, so that none slows another down.

    Args:
        settings: As `alone` makes them.
        count: How many probes each gets.
        tallies: Takes what came of them, also if all this is cancelled on the way.

    Raises:
        ConfigError: The settings are wrong, or the ledger cannot be written.
    """
    async with connect(settings) as disco:
        for endpoint in disco.endpoints.values():
            tally = Tally(endpoint.name, count)
            tallies.append(tally)
            await _probe(disco, endpoint, tally)


async def _probe(disco: Disco, endpoint: Endpoint, tally: Tally) -> None:
    try:
        await endpoint.prepare()
    except EndpointError as error:
        tally.failures.append(str(error))
        return
    errors.print(str(bound_of(endpoint, tally.asked)), style="dim")
    with count_bar(f"Probing {endpoint.name}", tally.asked) as advance:
        for number in range(tally.asked):
            await _ask(disco, _request(endpoint, number, anyio.current_time()), tally)
            advance()


async def _ask(disco: Disco, request: Request, tally: Tally) -> None:
    failure = None
    try:
        async with disco.submit(request) as answer:
            with anyio.fail_after(PATIENCE_S):
                async for _ in answer:
                    pass
    except TimeoutError:
        failure = f"{request.endpoint}: no answer within {PATIENCE_S:.0f} s"
    except DiscoError as error:
        failure = str(error)
    outcome = answer.outcome
    if failure is None and (outcome is None or outcome.ttft_s is None):
        failure = f"{request.endpoint}: no text within {ANSWER_TOKENS} tokens"
    tally.count(outcome, failure)


def _request(endpoint: Endpoint, number: int, arrived_at: float) -> Request:
    """One probe. No two begin alike, or the second would find the first one in a cache."""
    sentences = SERVER_SENTENCES
    if endpoint.kind is Kind.DEVICE:
        fewest, most = DEVICE_SENTENCES
        sentences = fewest + round((most - fewest) * (number * GOLDEN % 1.0))
    text = f"[{secrets.token_hex(4)}] {SENTENCE * sentences}What did the keeper do?"
    return Request(
        messages=(Message("user", text),),
        arrived_at=arrived_at,
        request_id=uuid.uuid4().hex,
        max_tokens=ANSWER_TOKENS,
        pinned="it measures one endpoint",
        endpoint=endpoint.name,
        policy=PROBE,
    )
