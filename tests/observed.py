"""Requests of every sort, really run over scripted endpoints, and what was observed of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
from aiohttp import web
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pairs import CLOUD, LAPTOP, SHAKY

from discostream.config import Settings, settings_from
from discostream.gateway.metrics import Metrics
from discostream.library import Disco, connect
from discostream.telemetry import observe
from discostream.types import Attempt, AttemptOutcome, Outcome

SECRET = "the launch code is 0000"
POCKET = {"name": "pocket", "usd": 1.0, "per": "month", "mode": "hard"}
FIRST = {"name": "offsets", "offsets": {"cloud": 0.0}}


def world(folder: Path, *endpoints: Mapping[str, Any], **tables: Any) -> Settings:
    given = {"gateway": {"port": 0}, "ledger": {"path": str(folder / "ledger.db")}, **tables}
    return settings_from({"endpoint": list(endpoints), "policy": FIRST, **given})


@dataclass
class Seen:
    """What came of some requests, by the names that the tests give them."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    page: str = ""

    @property
    def tracers(self) -> TracerProvider:
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        return tracers

    def observe(self, connection: Disco) -> None:
        observe(connection, self.tracers, MeterProvider([self.reader], shutdown_on_exit=False))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def of_request(self, name: str) -> ReadableSpan:
        request_id = self.outcomes[name].request_id
        (one,) = (each for each in self.spans if each.attributes.get("disco.request_id") == request_id)
        return one

    def inside(self, name: str) -> list[ReadableSpan]:
        parent = self.of_request(name).context.span_id
        return [span for span in self.spans if span.parent and span.parent.span_id == parent]

    def metrics(self) -> Iterator[Metric]:
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                yield from scope.metrics


def started(outcome: Outcome) -> list[Attempt]:
    return [attempt for attempt in outcome.attempts if attempt.outcome is not AttemptOutcome.NOT_STARTED]


def ns(span_s: float) -> int:
    return round(span_s * 1e9)


async def play(folder: Path) -> Seen:
    """A request of every sort: raced, moved for cost, rescued, failed, and left by its client."""
    seen = Seen()
    async with quoting_server() as base_url:
        quoting = {**CLOUD, "name": "quoting", "dialect": "openai", "base_url": base_url, "model": "rude"}
        for key in ("answer", "ttft_s", "tbt_s"):
            del quoting[key]
        connection = connect(world(folder, LAPTOP, CLOUD, SHAKY, quoting, budget=[POCKET]))
        metrics = Metrics(connection)
        seen.observe(connection)
        first = partial(msgspec.structs.replace, connection.settings.policy)
        async with connection:
            await ask(seen, connection, "migrated")
            await ask(seen, connection, "raced", model="disco-fast", seed=7, temperature=0.5)
            for name, endpoint in (("rescued", "shaky"), ("quoted", "quoting")):
                changed = connection.under(policy=first(offsets={endpoint: 0.0}))
                await ask(seen, changed, name, migrate=False)
            await ask(seen, connection, "failed", model="shaky")
            async with connection.stream(SECRET, model="cloud") as answer:
                async for _ in answer:
                    break
            seen.outcomes["cancelled"] = answer.outcome
        seen.page = metrics.page().decode()
    return seen


async def ask(seen: Seen, connection: Disco, name: str, **how: Any) -> None:
    answer = connection.stream(SECRET, **how)
    try:
        async for _ in answer:
            pass
    except Exception:
        assert name == "failed"
    seen.outcomes[name] = answer.outcome


@asynccontextmanager
async def quoting_server() -> AsyncIterator[str]:
    """A server that breaks its stream off, and says the prompt again when it says why."""

    async def stream(http: web.Request) -> web.StreamResponse:
        said = msgspec.json.decode(await http.read())["messages"][-1]["content"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        chunk = {"choices": [{"index": 0, "delta": {"content": "word0"}, "finish_reason": None}]}
        for event in (chunk, {"error": {"message": f"cannot go on with {said!r}", "code": 503}}):
            await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")
            await anyio.sleep(0.02)
        return response

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", stream)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
