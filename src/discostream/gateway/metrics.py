"""`GET /metrics`: counted as requests settle, or looked up when it is asked for; nothing is done for a token.

Names and buckets are those of OpenTelemetry's conventions for generative AI, where these have any, as
Prometheus spells them: `server` is what our reader saw, `client` what we saw of each attempt's endpoint
(github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-metrics.md). No label's values come
from a client.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import anyio
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from discostream.config import EndpointSettings
from discostream.library import FAILED, READY, STARTING, Disco
from discostream.types import Attempt, AttemptOutcome, Outcome, Request

__all__ = ["CONTENT_TYPE", "Metrics", "provider_of"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

OURSELVES = "discostream"
PROVIDERS = {"azure": "azure.ai.openai", "gemini": "gcp.gemini", "mistral": "mistral_ai"}
"""What the conventions call those presets and dialects that have another name here."""

SERVED = ("gen_ai_operation_name", "gen_ai_provider_name", "policy")
ASKED = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "endpoint")
MOVED = ("source", "target", "reason", "by")
BUDGETED = ("budget", "resource")

DURATIONS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TTFTS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TBTS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(4**power for power in range(14))
OVERHEADS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """All that `/metrics` shows of a connection, from now on.

    Args:
        disco: Whose settled requests are counted.
    """

    def __init__(self, disco: Disco) -> None:
        self._registry = CollectorRegistry()
        self._asked = {
            name: (provider_of(endpoint.settings), endpoint.settings.model, name)
            for name, endpoint in disco.endpoints.items()
        }
        self._make_served()
        self._make_asked()
        self._make_own()
        self._registry.register(_Standing(disco))
        disco.on_settled.append(self.count)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)

    def count(self, request: Request, outcome: Outcome) -> None:
        """Count a request that was settled this moment."""
        operation = "chat" if request.raw_prompt is None else "text_completion"
        self._count_served(operation, outcome, anyio.current_time() - request.arrived_at)
        self._count_request(outcome)
        for attempt in outcome.attempts:
            self._attempts.labels(attempt.endpoint, attempt.outcome.value).inc()
        for attempt in _started(outcome):
            self._count_asked(operation, attempt)

    def _make_served(self) -> None:
        self._duration = self._histogram(
            "gen_ai_server_request_duration_seconds",
            "From a request's arrival until it was settled.",
            (*SERVED, "error_type"),
            DURATIONS_S,
        )
        self._ttft = self._histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From a request's arrival to the first content delivered.",
            SERVED,
            TTFTS_S,
        )
        self._tbt = self._histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "The mean gap between delivered tokens of a whole answer.",
            SERVED,
            TBTS_S,
        )

    def _make_asked(self) -> None:
        self._attempt_duration = self._histogram(
            "gen_ai_client_operation_duration_seconds",
            "From an attempt's start to its end or cancellation.",
            (*ASKED, "outcome", "error_type"),
            DURATIONS_S,
        )
        self._attempt_ttft = self._histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "From an attempt's start to its first content.",
            ASKED,
            DURATIONS_S,
        )
        self._tokens = self._histogram(
            "gen_ai_client_token_usage",
            "Tokens that an attempt read and wrote, losers included.",
            (*ASKED, "gen_ai_token_type"),
            TOKENS,
        )

    def _make_own(self) -> None:
        self._overhead = self._histogram(
            "disco_gateway_overhead_seconds",
            "From a request's arrival to the start of its first attempt.",
            (),
            OVERHEADS_S,
        )
        self._requests = self._counter("disco_requests", "Requests that were settled.", "policy", "outcome")
        self._races = self._counter("disco_races", "Requests for which several attempts raced.", "winner")
        self._attempts = self._counter(
            "disco_attempts", "Attempts, planned ones that never started included.", "endpoint", "outcome"
        )
        self._migrations = self._counter("disco_migrations", "Handoffs.", *MOVED)
        self._usd = self._counter("disco_usd", "Dollars spent, losers' included.", "endpoint")
        self._joules = self._counter("disco_joules", "Joules spent, losers' included.", "endpoint")

    def _histogram(self, name: str, says: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(name, says, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(name, says, labels, registry=self._registry)

    def _count_served(self, operation: str, outcome: Outcome, took_s: float) -> None:
        served = operation, OURSELVES, outcome.policy
        verdict, delivered_s = outcome.verdict, outcome.delivered_s
        self._duration.labels(*served, "" if verdict == "ok" else verdict).observe(took_s)
        if outcome.ttft_s is not None:
            self._ttft.labels(*served).observe(outcome.ttft_s)
        if verdict == "ok" and len(delivered_s) > 1:
            decode_s = delivered_s[-1] - delivered_s[0]
            self._tbt.labels(*served).observe(decode_s / (len(delivered_s) - 1))

    def _count_request(self, outcome: Outcome) -> None:
        started = _started(outcome)
        self._requests.labels(outcome.policy, outcome.verdict).inc()
        if started:
            self._overhead.observe(min(attempt.start_offset_s for attempt in started))
        if outcome.raced:
            self._races.labels(outcome.winner or "").inc()
        for move in outcome.migrations:
            self._migrations.labels(move.source, move.target, move.reason.value, move.by.value).inc()

    def _count_asked(self, operation: str, attempt: Attempt) -> None:
        asked = operation, *self._asked[attempt.endpoint]
        self._tokens.labels(*asked, "input").observe(attempt.prompt_tokens)
        self._tokens.labels(*asked, "output").observe(attempt.completion_tokens)
        self._usd.labels(attempt.endpoint).inc(attempt.usd)
        self._joules.labels(attempt.endpoint).inc(attempt.joules)
        if attempt.ttft_s is not None:
            self._attempt_ttft.labels(*asked).observe(attempt.ttft_s - attempt.start_offset_s)
        if attempt.ran_s is not None:
            error_type = "failed" if attempt.outcome is AttemptOutcome.FAILED else ""
            self._attempt_duration.labels(*asked, attempt.outcome.value, error_type).observe(attempt.ran_s)


class _Standing(Collector):
    """What is so at this moment: attempts that run, how endpoints stand, and budgets."""

    def __init__(self, disco: Disco) -> None:
        self._disco = disco

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield self._running()
        yield self._standing()
        yield from self._budgets()

    def _running(self) -> GaugeMetricFamily:
        running = _gauge("disco_attempts_running", "Attempts that run at this moment.", "endpoint")
        for name, attempts in self._disco.running.items():
            running.add_metric([name], attempts)
        return running

    def _standing(self) -> GaugeMetricFamily:
        standing = _gauge("disco_endpoint_standing", "1 for how it stands.", "endpoint", "standing")
        for name, stands in self._disco.standing.items():
            for word in (STARTING, READY, FAILED):
                standing.add_metric([name, word], stands == word)
        return standing

    def _budgets(self) -> Iterator[GaugeMetricFamily]:
        amount = _gauge("disco_budget_amount", "What may be spent in a window.", *BUDGETED)
        spent = _gauge("disco_budget_spent", "What was spent in the present window.", *BUDGETED)
        held = _gauge("disco_budget_held", "What is set aside for attempts under way.", *BUDGETED)
        allowed = _gauge("disco_budget_allowance", "What plans let an average request use.", *BUDGETED)
        steered = _gauge("disco_budget_multiplier", "That over what it is when on course.", *BUDGETED)
        worth = _gauge("disco_budget_shadow_price_seconds", "TTFT that one more unit saves.", *BUDGETED)
        for balance in self._disco.balances:
            labels = [balance.budget.name, balance.budget.resource.value]
            amount.add_metric(labels, balance.budget.amount)
            spent.add_metric(labels, balance.spent)
            held.add_metric(labels, balance.held)
            if balance.allowance is not None:
                allowed.add_metric(labels, balance.allowance.per_request)
                if balance.allowance.multiplier is not None:
                    steered.add_metric(labels, balance.allowance.multiplier)
            if balance.shadow_price_s_per_unit is not None:
                worth.add_metric(labels, balance.shadow_price_s_per_unit)
        return iter((amount, spent, held, allowed, steered, worth))


def _gauge(name: str, says: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, says, labels=labels)


def provider_of(settings: EndpointSettings) -> str:
    """What the conventions call the provider of an endpoint: its preset's word, or its dialect's."""
    known_as = settings.options.get("preset") or settings.dialect
    return PROVIDERS.get(known_as, known_as)


def _started(outcome: Outcome) -> list[Attempt]:
    return [attempt for attempt in outcome.attempts if attempt.outcome is not AttemptOutcome.NOT_STARTED]
