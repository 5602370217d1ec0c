"""Traces: of each settled request a span from its arrival on, inside it one of each attempt that was started.

They are written after the fact, with the moments at which things happened. No attribute has any of a prompt
or an answer; what an endpoint says of its failure is left out too, because it may quote them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import TypeAlias
from urllib.parse import urlsplit

import anyio
from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from discostream.endpoints.base import Endpoint
from discostream.gateway.measures import OURSELVES, error_type, operation_of, provider_of, started
from discostream.library import Disco
from discostream.types import Attempt, AttemptOutcome, Migration, Outcome, Request

__all__ = ["Spans"]

Value: TypeAlias = str | bool | int | float | tuple[str, ...]

PORTS = {"http": 80, "https": 443}
W3C = TraceContextTextMapPropagator()


class Spans:
    """Writes traces.

    Args:
        disco: Whose endpoints are asked.
        provider: Whose tracer; the global one for `None`.
    """

    def __init__(self, disco: Disco, provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer(OURSELVES, version("discostream"), provider)
        self._endpoints = disco.endpoints
        self._places = {name: _place(endpoint) for name, endpoint in disco.endpoints.items()}

    def tell(self, request: Request, outcome: Outcome) -> None:
        """Write the spans of a request that was settled this moment."""
        arrived_ns = time.time_ns() - _ns(anyio.current_time() - request.arrived_at)
        span = self._tracer.start_span(
            f"{operation_of(request)} {request.model}",
            _parent(request),
            SpanKind.INTERNAL if request.trace is None else SpanKind.SERVER,
            self._of_request(request, outcome),
            start_time=arrived_ns,
        )
        if span.is_recording():
            self._tell_inside(span, request, outcome, arrived_ns)
        assert outcome.settled_s is not None  # it comes from no ledger
        span.end(arrived_ns + _ns(outcome.settled_s))

    def _tell_inside(self, span: Span, request: Request, outcome: Outcome, arrived_ns: int) -> None:
        if outcome.verdict == "failed":
            span.set_status(StatusCode.ERROR)
        if outcome.ttft_s is not None:
            span.add_event("disco.first_token", timestamp=arrived_ns + _ns(outcome.ttft_s))
        for move in outcome.migrations:
            at_ns = None if move.at_s is None else arrived_ns + _ns(move.at_s)
            span.add_event("disco.migration", _of_migration(move, outcome), at_ns)
        context = trace.set_span_in_context(span)
        for attempt in started(outcome):
            self._tell_attempt(context, operation_of(request), attempt, arrived_ns)

    def _tell_attempt(self, context: Context, operation: str, attempt: Attempt, arrived_ns: int) -> None:
        endpoint = self._endpoints[attempt.endpoint]
        span = self._tracer.start_span(
            f"{operation} {endpoint.settings.model}".rstrip(),
            context,
            SpanKind.CLIENT if endpoint.base_url else SpanKind.INTERNAL,
            {"gen_ai.operation.name": operation, **self._places[attempt.endpoint], **_of_attempt(attempt)},
            start_time=arrived_ns + _ns(attempt.start_offset_s),
        )
        if attempt.outcome is AttemptOutcome.FAILED:
            span.set_status(StatusCode.ERROR)
        assert attempt.ended_s is not None  # it was started
        span.end(arrived_ns + _ns(attempt.ended_s))

    def _of_request(self, request: Request, outcome: Outcome) -> Mapping[str, Value]:
        winner = self._endpoints.get(outcome.winner or "")
        sampling = request.sampling
        return _said(
            {
                "gen_ai.operation.name": operation_of(request),
                "gen_ai.provider.name": OURSELVES,
                "gen_ai.request.model": request.model,
                "gen_ai.request.max_tokens": request.max_tokens,
                "gen_ai.request.temperature": _double(sampling.temperature),
                "gen_ai.request.top_p": _double(sampling.top_p),
                "gen_ai.request.seed": sampling.seed,
                "gen_ai.request.presence_penalty": _double(sampling.presence_penalty),
                "gen_ai.request.frequency_penalty": _double(sampling.frequency_penalty),
                "gen_ai.response.model": winner.settings.model if winner else None,
                "gen_ai.response.finish_reasons": outcome.finish_reason and (outcome.finish_reason.value,),
                "gen_ai.response.time_to_first_chunk": outcome.ttft_s,
                "gen_ai.usage.input_tokens": outcome.prompt_tokens,
                "gen_ai.usage.output_tokens": outcome.completion_tokens,
                "error.type": error_type(outcome),
                "disco.request_id": outcome.request_id,
                "disco.policy": outcome.policy,
                "disco.outcome": outcome.verdict,
                "disco.winner": outcome.winner,
                "disco.stayed": outcome.stayed,
                "disco.usd": outcome.usd,
                "disco.joules": outcome.joules,
            }
        )


def _of_attempt(attempt: Attempt) -> Mapping[str, Value]:
    first_s = None if attempt.ttft_s is None else attempt.ttft_s - attempt.start_offset_s
    return _said(
        {
            "gen_ai.response.time_to_first_chunk": first_s,
            "gen_ai.usage.input_tokens": attempt.prompt_tokens,
            "gen_ai.usage.output_tokens": attempt.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": attempt.cached_tokens,
            "error.type": attempt.error_type,
            "disco.outcome": attempt.outcome.value,
            "disco.ahead": attempt.ahead,
            "disco.dropped": attempt.dropped,
            "disco.usd": attempt.usd,
            "disco.joules": attempt.joules,
        }
    )


def _of_migration(move: Migration, outcome: Outcome) -> Mapping[str, Value]:
    return {
        "disco.source": move.source,
        "disco.target": move.target,
        "disco.reason": move.reason.value,
        "disco.by": move.by.value,
        "disco.at_token": move.at_token,
        "disco.gap": move.gap_s,
        "disco.why": _why(move, outcome),
    }


def _why(move: Migration, outcome: Outcome) -> str:
    """Why it moved, in our own words."""
    failed = (attempt for attempt in outcome.attempts if attempt.error == move.why)
    return next((f"{attempt.endpoint} failed: {attempt.error_type}" for attempt in failed), move.why)


def _place(endpoint: Endpoint) -> Mapping[str, Value]:
    """What is the same for all attempts at an endpoint."""
    url = urlsplit(endpoint.base_url)
    return _said(
        {
            "gen_ai.provider.name": provider_of(endpoint.settings),
            "gen_ai.request.model": endpoint.settings.model,
            "server.address": url.hostname,
            "server.port": url.port or PORTS.get(url.scheme),
            "disco.endpoint": endpoint.name,
            "disco.kind": endpoint.kind.value,
        }
    )


def _parent(request: Request) -> Context:
    """The span in which the request was made here; or else the client's, where it has sent a good one."""
    here = get_current()
    if trace.get_current_span(here).get_span_context().is_valid:
        return here
    return W3C.extract(request.trace or {}, here)


def _said(attributes: Mapping[str, Value | None]) -> Mapping[str, Value]:
    """Those that are known."""
    return {name: value for name, value in attributes.items() if value is not None and value != ""}


def _double(said: float | None) -> float | None:
    """A program may say 0 where it means 0.0; an attribute has one type, whatever is said."""
    return None if said is None else float(said)


def _ns(span_s: float) -> int:
    return round(span_s * 1e9)
