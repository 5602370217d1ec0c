"""What is measured of a settled request: every figure's name, unit, buckets, attributes and value.

Names, units and buckets are those of OpenTelemetry's conventions for generative AI, where these have any:
`server` is what our reader saw, `client` what we saw of each attempt's endpoint
(github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-metrics.md at 004902b8; the package
opentelemetry-semantic-conventions 0.66b2 has the same). No attribute's values come from a client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from discostream.config import EndpointSettings
from discostream.endpoints.base import Endpoint
from discostream.types import Attempt, AttemptOutcome, Outcome, Request

__all__ = [
    "INSTRUMENTS",
    "OURSELVES",
    "Instrument",
    "Measurement",
    "Measurer",
    "error_type",
    "operation_of",
    "provider_of",
    "started",
]

OURSELVES: Final = "discostream"
"""What we are as a provider."""

PROVIDERS = {"azure": "azure.ai.openai", "gemini": "gcp.gemini", "mistral": "mistral_ai"}
"""What the conventions call those presets and dialects that have another name here."""

SERVED = ("gen_ai.operation.name", "gen_ai.provider.name", "disco.policy")
ASKED = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "disco.endpoint")
MOVED = ("disco.source", "disco.target", "disco.reason", "disco.by")

DURATIONS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TTFTS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TBTS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(4**power for power in range(14))
OVERHEADS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Instrument:
    """What one figure is.

    Attributes:
        name: As OpenTelemetry spells it.
        unit: By UCUM; what is counted is in braces.
        says: What it is, in a sentence.
        attributes: What tells its series apart.
        buckets: The bounds of a histogram's buckets; a counter has none.
    """

    name: str
    unit: str
    says: str
    attributes: tuple[str, ...]
    buckets: Sequence[float] = ()


Measurement: TypeAlias = tuple[Instrument, tuple[str, ...], float]
"""An instrument, the values of its attributes (an empty one says that there is none), and how much."""

DURATION = Instrument(
    "gen_ai.server.request.duration",
    "s",
    "From a request's arrival until it was settled.",
    (*SERVED, "error.type"),
    DURATIONS_S,
)
TTFT = Instrument(
    "gen_ai.server.time_to_first_token",
    "s",
    "From a request's arrival to the first content delivered.",
    SERVED,
    TTFTS_S,
)
TBT = Instrument(
    "gen_ai.server.time_per_output_token",
    "s",
    "The mean gap between delivered tokens of a whole answer.",
    SERVED,
    TBTS_S,
)
ATTEMPT_DURATION = Instrument(
    "gen_ai.client.operation.duration",
    "s",
    "From an attempt's start to its end or cancellation.",
    (*ASKED, "disco.outcome", "error.type"),
    DURATIONS_S,
)
ATTEMPT_TTFT = Instrument(
    "gen_ai.client.operation.time_to_first_chunk",
    "s",
    "From an attempt's start to its first content.",
    ASKED,
    DURATIONS_S,
)
TOKEN_USAGE = Instrument(
    "gen_ai.client.token.usage",
    "{token}",
    "Tokens that an attempt read and wrote, losers included.",
    (*ASKED, "gen_ai.token.type"),
    TOKENS,
)
OVERHEAD = Instrument(
    "disco.gateway.overhead",
    "s",
    "From a request's arrival to the start of its first attempt.",
    (),
    OVERHEADS_S,
)
REQUESTS = Instrument(
    "disco.requests", "{request}", "Requests that were settled.", ("disco.policy", "disco.outcome")
)
RACES = Instrument(
    "disco.races", "{request}", "Requests for which several attempts raced.", ("disco.winner",)
)
ATTEMPTS = Instrument(
    "disco.attempts",
    "{attempt}",
    "Attempts, planned ones that never started included.",
    ("disco.endpoint", "disco.outcome"),
)
MIGRATIONS = Instrument("disco.migrations", "{handoff}", "Handoffs.", MOVED)
USD = Instrument("disco.usd", "{USD}", "Dollars spent, losers' included.", ("disco.endpoint",))
JOULES = Instrument("disco.joules", "J", "Joules spent, losers' included.", ("disco.endpoint",))

INSTRUMENTS: Final = (
    DURATION,
    TTFT,
    TBT,
    ATTEMPT_DURATION,
    ATTEMPT_TTFT,
    TOKEN_USAGE,
    OVERHEAD,
    REQUESTS,
    RACES,
    ATTEMPTS,
    MIGRATIONS,
    USD,
    JOULES,
)


class Measurer:
    """Tells all that is measured of a settled request.

    Args:
        endpoints: All that may be asked, by name.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._asked = {
            name: (provider_of(endpoint.settings), endpoint.settings.model, name)
            for name, endpoint in endpoints.items()
        }

    def measured(self, request: Request, outcome: Outcome) -> Iterator[Measurement]:
        """Every figure of a request."""
        operation = operation_of(request)
        yield from _served(operation, outcome)
        yield from _of_request(outcome)
        for attempt in outcome.attempts:
            yield ATTEMPTS, (attempt.endpoint, attempt.outcome.value), 1
        for attempt in started(outcome):
            yield from self._of_attempt(operation, attempt)

    def _of_attempt(self, operation: str, attempt: Attempt) -> Iterator[Measurement]:
        asked = operation, *self._asked[attempt.endpoint]
        yield TOKEN_USAGE, (*asked, "input"), attempt.prompt_tokens
        yield TOKEN_USAGE, (*asked, "output"), attempt.completion_tokens
        yield USD, (attempt.endpoint,), attempt.usd
        yield JOULES, (attempt.endpoint,), attempt.joules
        if attempt.ttft_s is not None:
            yield ATTEMPT_TTFT, asked, attempt.ttft_s - attempt.start_offset_s
        if attempt.ran_s is not None:
            failed = "failed" if attempt.outcome is AttemptOutcome.FAILED else ""
            yield ATTEMPT_DURATION, (*asked, attempt.outcome.value, failed), attempt.ran_s


def _served(operation: str, outcome: Outcome) -> Iterator[Measurement]:
    served, delivered_s = (operation, OURSELVES, outcome.policy), outcome.delivered_s
    if outcome.settled_s is not None:
        yield DURATION, (*served, error_type(outcome)), outcome.settled_s
    if outcome.ttft_s is not None:
        yield TTFT, served, outcome.ttft_s
    if outcome.verdict == "ok" and len(delivered_s) > 1:
        yield TBT, served, (delivered_s[-1] - delivered_s[0]) / (len(delivered_s) - 1)


def _of_request(outcome: Outcome) -> Iterator[Measurement]:
    asked = started(outcome)
    yield REQUESTS, (outcome.policy, outcome.verdict), 1
    if asked:
        yield OVERHEAD, (), min(attempt.start_offset_s for attempt in asked)
    if outcome.raced:
        yield RACES, (outcome.winner or "",), 1
    for move in outcome.migrations:
        yield MIGRATIONS, (move.source, move.target, move.reason.value, move.by.value), 1


def operation_of(request: Request) -> str:
    """What the conventions call what is asked for."""
    return "chat" if request.raw_prompt is None else "text_completion"


def provider_of(settings: EndpointSettings) -> str:
    """What the conventions call the provider of an endpoint: its preset's word, or its dialect's."""
    known_as = settings.options.get("preset") or settings.dialect
    return PROVIDERS.get(known_as, known_as)


def error_type(outcome: Outcome) -> str:
    """What the conventions call how a request went wrong; empty where it did not."""
    return "" if outcome.verdict == "ok" else outcome.verdict


def started(outcome: Outcome) -> list[Attempt]:
    """The attempts that were not only planned."""
    return [attempt for attempt in outcome.attempts if attempt.outcome is not AttemptOutcome.NOT_STARTED]
