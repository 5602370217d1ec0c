"""The SDK's exporters: batches of spans, and metrics every minute, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from opentelemetry import metrics as api
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from discostream.gateway.measures import OURSELVES

__all__ = ["exporters"]


def exporters(
    *, traces: bool, metrics: bool
) -> tuple[trace.TracerProvider, api.MeterProvider, list[Callable[[], None]]]:
    """Where spans and metrics go, and what shuts that down; what is not wanted leads nowhere.

    Raises:
        ValueError: A variable of the environment cannot be read.
    """
    resource = _resource()
    tracers: trace.TracerProvider = trace.NoOpTracerProvider()
    meters: api.MeterProvider = api.NoOpMeterProvider()
    shut_down: list[Callable[[], None]] = []
    if traces:
        tracers = sending = TracerProvider(resource=resource, shutdown_on_exit=False)
        sending.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        shut_down.append(sending.shutdown)
    if metrics:
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        meters = reporting = MeterProvider([reader], resource, shutdown_on_exit=False)
        shut_down.append(reporting.shutdown)
    return tracers, meters, shut_down


def _resource() -> Resource:
    """Who we are, where the environment does not know better."""
    ours = {"service.name": OURSELVES, "service.version": version("discostream")}
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})
