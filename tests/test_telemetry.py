"""OpenTelemetry: spans and figures of requests that really ran, in memory and over a real socket."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import msgspec
import pytest
from observed import SECRET, Seen, ns, play, started, world
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.trace import SpanKind, StatusCode
from pairs import CLOUD, LAPTOP, WORDS
from processes import disco, disco_serve, write_scripted_pair
from prometheus_client.parser import text_string_to_metric_families

from discostream.gateway.app import serve
from discostream.library import connect
from discostream.telemetry import observe
from discostream.types import AttemptOutcome

DOCS = Path(__file__).parent.parent / "docs"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return anyio.run(play, tmp_path_factory.mktemp("telemetry"))


def test_the_requests_are_of_every_sort(seen: Seen) -> None:
    """What the other tests look at has all that can happen to a request."""
    verdicts = {name: outcome.verdict for name, outcome in seen.outcomes.items()}
    moved = {name: [m.reason.value for m in outcome.migrations] for name, outcome in seen.outcomes.items()}
    assert verdicts == dict.fromkeys(moved, "ok") | {"failed": "failed", "cancelled": "cancelled"}
    assert len(started(seen.outcomes["raced"])) > 1
    assert (moved["migrated"], moved["rescued"], moved["quoted"]) == (["cost"], ["rescue"], ["rescue"])


def test_a_request_is_a_span_and_its_attempts_are_spans_inside(seen: Seen) -> None:
    """There is one span for each request, and in it one for each attempt that was started."""
    attempts = 0
    for name, outcome in seen.outcomes.items():
        span, inside = seen.of_request(name), seen.inside(name)
        attempts += len(inside)
        assert span.parent is None
        assert span.kind is SpanKind.INTERNAL
        assert span.name == f"chat {span.attributes['gen_ai.request.model']}"
        assert {each.context.trace_id for each in inside} == {span.context.trace_id}
        assert [
            (
                each.attributes["disco.endpoint"],
                each.attributes["disco.outcome"],
                each.attributes["disco.usd"],
            )
            for each in inside
        ] == [(attempt.endpoint, attempt.outcome.value, attempt.usd) for attempt in started(outcome)]
    assert len(seen.spans) == len(seen.outcomes) + attempts
    asked = {name: seen.of_request(name).attributes["gen_ai.request.model"] for name in seen.outcomes}
    assert (asked["migrated"], asked["raced"], asked["cancelled"]) == ("disco", "disco-fast", "cloud")


def test_spans_have_the_times_at_which_things_happened(seen: Seen) -> None:
    """Starts, ends, the first token and seams are to the nanosecond where the outcome has them."""
    now_ns = time.time_ns()
    for name, outcome in seen.outcomes.items():
        span = seen.of_request(name)
        assert now_ns - 60e9 < span.start_time < now_ns
        assert span.end_time - span.start_time == ns(outcome.settled_s)
        for inner, attempt in zip(seen.inside(name), started(outcome), strict=True):
            assert inner.start_time - span.start_time == ns(attempt.start_offset_s)
            assert inner.end_time - span.start_time == ns(attempt.ended_s)
            assert span.start_time <= inner.start_time <= inner.end_time <= span.end_time
            if attempt.ran_s is not None:
                assert inner.end_time - inner.start_time == pytest.approx(ns(attempt.ran_s), abs=2)
        happened = [(event.name, event.timestamp - span.start_time) for event in span.events]
        first = [] if outcome.ttft_s is None else [("disco.first_token", ns(outcome.ttft_s))]
        seams = [("disco.migration", ns(outcome.delivered_s[move.at_token])) for move in outcome.migrations]
        assert happened == first + seams


def test_moves_are_events_with_their_reasons(seen: Seen) -> None:
    """A seam's event has what the outcome says of it; of a failure, its kind and not the endpoint's words."""
    for name in ("migrated", "rescued", "quoted"):
        (move,) = seen.outcomes[name].migrations
        told = dict(seen.of_request(name).events[-1].attributes)
        why = told.pop("disco.why")
        assert told == {
            "disco.source": move.source,
            "disco.target": move.target,
            "disco.reason": move.reason.value,
            "disco.by": move.by.value,
            "disco.at_token": move.at_token,
            "disco.gap": move.gap_s,
        }
        assert why == {"rescued": "shaky failed: decode", "quoted": "quoting failed: 503"}.get(name, move.why)


def test_what_failed_is_an_error_and_who_lost_is_none(seen: Seen) -> None:
    """Failures have a status and a type; losers, and clients that left, are no errors."""
    failed = seen.of_request("failed")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "failed"
    assert "gen_ai.response.finish_reasons" not in failed.attributes
    left = seen.of_request("cancelled")
    assert left.status.status_code is StatusCode.UNSET
    assert left.attributes["error.type"] == "cancelled"
    for name, outcome in seen.outcomes.items():
        for span, attempt in zip(seen.inside(name), started(outcome), strict=True):
            is_failure = attempt.outcome is AttemptOutcome.FAILED
            assert (span.status.status_code is StatusCode.ERROR) == is_failure
            assert span.attributes.get("error.type") == attempt.error_type
            assert (attempt.error_type is not None) == is_failure


def test_a_request_says_how_it_went(seen: Seen) -> None:
    """Models, tokens, sampling and cost of a moved answer are those of its outcome."""
    outcome, told = seen.outcomes["migrated"], seen.of_request("migrated").attributes
    assert told["gen_ai.response.model"] == "big"
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert told["gen_ai.response.time_to_first_chunk"] == outcome.ttft_s
    assert told["gen_ai.usage.input_tokens"] == outcome.prompt_tokens
    assert told["gen_ai.usage.output_tokens"] == outcome.completion_tokens == len(WORDS)
    assert (told["disco.usd"], told["disco.joules"]) == (outcome.usd, outcome.joules)
    wishes = seen.of_request("raced").attributes
    assert (wishes["gen_ai.request.seed"], wishes["gen_ai.request.temperature"]) == (7, 0.5)


def test_an_endpoint_over_http_is_called_and_has_an_address(seen: Seen) -> None:
    """An attempt at a server is a CLIENT's span with its address; what runs in this process is INTERNAL."""
    quoting, laptop = seen.inside("quoted")
    assert quoting.kind is SpanKind.CLIENT
    assert quoting.name == "chat rude"
    assert quoting.attributes["server.address"] == "127.0.0.1"
    assert 0 < quoting.attributes["server.port"] < 1 << 16
    assert laptop.kind is SpanKind.INTERNAL
    assert "server.address" not in laptop.attributes


def test_attribute_names_are_the_conventions(seen: Seen) -> None:
    """What is not `disco.` is published, and docs/telemetry.md has every name."""
    published = {
        value
        for module in (gen_ai_attributes, error_attributes, server_attributes)
        for name, value in vars(module).items()
        if name.isupper()
    }
    page = (DOCS / "telemetry.md").read_text(encoding="utf-8")
    names = {name for span in seen.spans for name in span.attributes}
    names |= {name for span in seen.spans for event in span.events for name in event.attributes}
    names |= {
        name for metric in seen.metrics() for point in metric.data.data_points for name in point.attributes
    }
    assert len(names) > 30
    assert not {name for name in names if not name.startswith("disco.")} - published
    assert not {name for name in names if f"`{name}`" not in page}
    assert not {metric.name for metric in seen.metrics() if f"`{metric.name}`" not in page}


def test_no_text_gets_into_a_trace(seen: Seen) -> None:
    """Neither the prompt nor a word of an answer is exported, not even where a server quotes them."""
    assert "…" in str(seen.outcomes["quoted"].attempts[0].error)
    assert SECRET not in str(seen.outcomes["quoted"])
    exported = "".join(span.to_json() for span in seen.spans)
    assert not [word for word in (SECRET, *WORDS) if word in exported]


def test_both_figures_are_the_same(seen: Seen) -> None:
    """Every instrument has the series of its metric in `/metrics`, with the same buckets, counts and sums."""
    families = {family.name: family for family in text_string_to_metric_families(seen.page)}
    metrics = list(seen.metrics())
    assert {metric.name for metric in metrics} >= {
        "disco.requests",
        "disco.migrations",
        "gen_ai.client.token.usage",
    }
    for metric in metrics:
        name = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
        shown = by_labels(families[name].samples)
        points = {labels_of(point.attributes): point for point in metric.data.data_points}
        assert set(points) == set(shown), name
        for labels, point in points.items():
            assert figures(name, point) == pytest.approx(shown[labels]), name


def by_labels(samples: Iterable[Any]) -> dict[frozenset[tuple[str, str]], dict[str, float]]:
    """What Prometheus shows of each series: by the names of its samples, the bounds of buckets included."""
    series: dict[frozenset[tuple[str, str]], dict[str, float]] = defaultdict(dict)
    for sample in samples:
        labels = {name: value for name, value in sample.labels.items() if value}
        bound = labels.pop("le", "")
        if not sample.name.endswith("_created"):
            figure = f"{sample.name}{float(bound)}" if bound else sample.name.removesuffix("_total")
            series[frozenset(labels.items())][figure] = sample.value
    return dict(series)


def labels_of(attributes: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (name.removeprefix("disco.").replace(".", "_"), str(value)) for name, value in attributes.items()
    )


def figures(name: str, point: Any) -> dict[str, float]:
    """What Prometheus should show of a point."""
    if not isinstance(point, HistogramDataPoint):
        return {name: point.value}
    bounds = [*map(float, point.explicit_bounds), math.inf]
    told, below = {f"{name}_count": point.count, f"{name}_sum": point.sum}, 0
    for bound, count in zip(bounds, point.bucket_counts, strict=True):
        below += count
        told[f"{name}_bucket{bound}"] = below
    return told


def test_instruments_are_the_conventions(seen: Seen) -> None:
    """Every `gen_ai.` metric is published under this name, with this unit."""
    made = [make for name, make in vars(gen_ai_metrics).items() if name.startswith("create_")]
    meter = MeterProvider(shutdown_on_exit=False).get_meter("conventions")
    published = {(instrument.name, instrument.unit) for instrument in (make(meter) for make in made)}
    ours = {(metric.name, metric.unit) for metric in seen.metrics() if metric.name.startswith("gen_ai.")}
    assert len(ours) == 6
    assert ours <= published


class Client:
    """Asks a gateway under the headers of a trace."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self.session, self.base_url = session, base_url

    async def ask(self, *headers: tuple[str, str]) -> str:
        body = {"model": "cloud", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        async with self.session.post(
            f"{self.base_url}/chat/completions", json=body, headers=list(headers)
        ) as response:
            assert response.status == 200
            return response.headers["x-request-id"]


@asynccontextmanager
async def serving(folder: Path, seen: Seen) -> AsyncIterator[Client]:
    settings = world(folder, LAPTOP, CLOUD)
    start = partial(serve, settings, observe=seen.observe)
    async with anyio.create_task_group() as tasks, aiohttp.ClientSession() as session:
        yield Client(session, await tasks.start(start))
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_clients_trace_goes_on(tmp_path: Path) -> None:
    """A request over HTTP is a SERVER's span, and the child of the span that its client names."""
    seen = Seen()
    async with serving(tmp_path, seen) as client:
        await client.ask(("traceparent", PARENT), ("tracestate", "vendor=kept"), ("tracestate", "other=too"))
        await client.ask(("traceparent", PARENT.removesuffix("1") + "0"))
    span, attempt = sorted(seen.spans, key=lambda span: span.start_time)
    assert span.kind is SpanKind.SERVER
    assert span.parent.is_remote
    assert f"00-{span.context.trace_id:032x}-{span.parent.span_id:016x}-01" == PARENT
    assert attempt.parent.span_id == span.context.span_id
    assert dict(span.context.trace_state) == {"vendor": "kept", "other": "too"}


MALFORMED = (
    [],
    [("traceparent", "")],
    [("traceparent", "nonsense")],
    [("traceparent", PARENT.upper())],
    [("traceparent", PARENT.replace("b7ad6b7169203331", "0" * 16))],
    [("traceparent", f"ff{PARENT[2:]}")],
    [("traceparent", PARENT), ("traceparent", PARENT)],
    [("tracestate", "vendor=kept")],
)


@pytest.mark.anyio
async def test_a_malformed_trace_is_ignored(tmp_path: Path) -> None:
    """A client that names no span, or not as W3C says, gets an answer, and a trace of its own."""
    seen = Seen()
    async with serving(tmp_path, seen) as client:
        asked = {await client.ask(*headers): headers for headers in MALFORMED}
    spans = {span.attributes["disco.request_id"]: span for span in seen.spans if span.kind is SpanKind.SERVER}
    assert spans.keys() == asked.keys()
    assert not [asked[key] for key, span in spans.items() if span.parent or span.context.trace_state]


@pytest.mark.anyio
async def test_a_programs_own_span_is_the_parent(tmp_path: Path) -> None:
    """What is asked inside a span belongs to it, however much later it is settled."""
    seen = Seen()
    async with connect(world(tmp_path, CLOUD)) as connection:
        seen.observe(connection)
        with seen.tracers.get_tracer("program").start_as_current_span("at work") as work:
            answer = connection.stream("Hi", max_tokens=2)
        assert [piece async for piece in answer]
    (span,) = (span for span in seen.spans if span.name == "chat disco")
    assert span.parent == work.get_span_context()


@pytest.mark.anyio
async def test_an_attribute_has_one_type_whatever_a_program_says(tmp_path: Path) -> None:
    """What the conventions call a double is one where a program writes a whole number."""
    seen = Seen()
    async with connect(world(tmp_path, CLOUD)) as connection:
        seen.observe(connection)
        async with connection.stream("Hi", temperature=0, top_p=1, presence_penalty=0, frequency_penalty=0):
            pass
    (span,) = (span for span in seen.spans if span.name == "chat disco")
    said = ["temperature", "top_p", "presence_penalty", "frequency_penalty"]
    assert {type(span.attributes[f"gen_ai.request.{name}"]) for name in said} == {float}


@pytest.mark.anyio
async def test_by_default_the_global_providers_are_told(tmp_path: Path) -> None:
    """Without an SDK that is nobody, and requests are answered all the same."""
    async with connect(world(tmp_path, CLOUD)) as connection:
        observe(connection)
        answer = connection.stream("Hi", max_tokens=2)
        assert [piece async for piece in answer]
    assert answer.outcome.verdict == "ok"


class Collector:
    """Takes OTLP over HTTP, and keeps what it was sent by path."""

    def __init__(self) -> None:
        self.bodies: dict[str, list[bytes]] = defaultdict(list)
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies[self.path].append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def collector() -> Iterator[Collector]:
    one = Collector()
    thread = threading.Thread(target=one.server.serve_forever, args=(0.02,))
    thread.start()
    yield one
    one.server.shutdown()
    thread.join()
    one.server.server_close()


def post(base_url: str) -> None:
    body = msgspec.json.encode({"model": "disco", "messages": [{"role": "user", "content": "Hi"}]})
    headers = {"Content-Type": "application/json", "traceparent": PARENT}
    with urllib.request.urlopen(
        urllib.request.Request(f"{base_url}/chat/completions", body, headers)
    ) as response:
        assert response.status == 200


def test_a_gateway_sends_otlp(tmp_path: Path) -> None:
    """`disco serve` posts spans and metrics where the environment says, all of them before it ends."""
    with collector() as one:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": one.url, "OTEL_RESOURCE_ATTRIBUTES": "deployment=test"}
        with disco_serve(write_scripted_pair(tmp_path), **environ) as serving:
            post(serving.base_url)
            serving.process.send_signal(signal.SIGTERM)
            assert serving.process.wait(5) == 0
    traces = ExportTraceServiceRequest.FromString(b"".join(one.bodies["/v1/traces"]))
    metrics = ExportMetricsServiceRequest.FromString(b"".join(one.bodies["/v1/metrics"]))
    (traced,), (measured,) = traces.resource_spans, metrics.resource_metrics
    spans = [span for scope in traced.scope_spans for span in scope.spans]
    assert [span.name for span in spans] == ["chat", "chat", "chat disco"]
    assert {span.trace_id.hex() for span in spans} == {PARENT.split("-")[1]}
    for resource in (traced.resource, measured.resource):
        told = {each.key: each.value.string_value for each in resource.attributes}
        assert (told["service.name"], told["deployment"]) == ("discostream", "test")
    names = {metric.name for scope in measured.scope_metrics for metric in scope.metrics}
    assert {"disco.requests", "gen_ai.server.time_to_first_token", "disco.endpoint.standing"} <= names


def test_a_collector_that_is_not_there_holds_nothing_up(tmp_path: Path) -> None:
    """The gateway answers, Ctrl-C ends it in two seconds, and one line says that nothing can be sent."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with disco_serve(write_scripted_pair(tmp_path), **environ) as serving:
        for _ in range(3):
            post(serving.base_url)
            time.sleep(0.1)
        began_at = time.monotonic()
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(5) == 0
        took_s = time.monotonic() - began_at
        told = serving.process.stderr.read()
    assert took_s < 3.5
    assert told.startswith("disco: OpenTelemetry: ")
    assert told.count("\n") == 1


def test_the_missing_extra_is_named(tmp_path: Path) -> None:
    """A gateway that is asked for telemetry and cannot send it says what to install, and serves."""
    shadow = tmp_path / "opentelemetry" / "__init__.py"
    shadow.parent.mkdir()
    shadow.write_text("raise ModuleNotFoundError('No such module', name='opentelemetry')", encoding="utf-8")
    environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(tmp_path)}
    with disco_serve(write_scripted_pair(tmp_path), **environ) as serving:
        post(serving.base_url)
        assert "pip install 'discostream[otel]'" in serving.told
    program = "import discostream, discostream.telemetry as t; t.observe(discostream.connect('disco.toml'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ConfigError" in done.stderr
    assert "pip install 'discostream[otel]'" in done.stderr


def test_nothing_is_imported_where_nobody_asks() -> None:
    """A gateway that is not asked for telemetry has nothing of OpenTelemetry in its memory."""
    program = """
import os, sys, discostream.gateway.app, discostream.telemetry.export as export
endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
neither = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
for environ in ({}, endpoint | {"OTEL_SDK_DISABLED": "True"}, endpoint | neither):
    os.environ.clear()
    os.environ.update(environ)
    with export.exporting() as observe:
        assert observe(None) is None
sys.exit(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_variable_that_makes_no_sense_is_a_users_mistake(tmp_path: Path) -> None:
    """It ends in one line and status 2."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_METRIC_EXPORT_INTERVAL": "-5"}
    done = disco("serve", "--config", str(write_scripted_pair(tmp_path)), **environ)
    assert done.returncode == 2
    assert done.stderr.startswith("disco: the environment's OTEL_… variables: ")
    assert "Traceback" not in done.stderr
