"""OpenTelemetry: a span for every request and every attempt, and the figures of `/metrics` by OTLP.

Nothing of it is done before a request is settled, and OpenTelemetry is only imported where somebody observes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from discostream.errors import ConfigError
from discostream.library import Disco

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

__all__ = ["observe"]


def observe(
    disco: Disco,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Tell OpenTelemetry of every request that is settled from now on.

    A request's span has the span as its parent in which `stream` was called, or else the client's.

    Args:
        disco: Whose requests.
        tracer_provider: Takes the spans; the global one when left out.
        meter_provider: Takes the metrics, likewise.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    try:
        from discostream.telemetry.instruments import Instruments
        from discostream.telemetry.spans import Spans
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"telemetry: {error.name!r} is not installed; pip install 'discostream[otel]'"
        ) from None
    disco.on_settled.append(Instruments(disco, meter_provider).count)
    disco.on_settled.append(Spans(disco, tracer_provider).tell)
