"""OTLP for a process of our own, where OpenTelemetry's environment variables ask for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from discostream.errors import ConfigError
from discostream.library import Disco
from discostream.telemetry import observe

__all__ = ["Observe", "exporting"]

log = logging.getLogger(__name__)

Observe: TypeAlias = Callable[[Disco], None]

CLOSING_S = 1.5
"""How long it may take to send the last of it."""
COMPLAINING_S = 60.0
"""How often it is said that something cannot be sent."""
PROTOCOL = "http/protobuf"


@contextmanager
def exporting() -> Iterator[Observe]:
    """What lets a connection be observed, as the environment asks for it; the rest is sent at the end.

    Raises:
        ConfigError: One of OpenTelemetry's variables cannot be read.
    """
    traces, metrics = _asks_for("TRACES"), _asks_for("METRICS")
    if not (traces or metrics):
        yield _look_away
        return
    try:
        from discostream.telemetry.otlp import exporters
    except ModuleNotFoundError as error:
        missing = f"{error.name!r} is not installed; pip install 'discostream[otel]'"
        log.warning("OTEL_EXPORTER_OTLP_…ENDPOINT is set, but nothing will be sent: %s", missing)
        yield _look_away
        return
    for protocol in {_said("PROTOCOL", "TRACES"), _said("PROTOCOL", "METRICS")} - {"", PROTOCOL}:
        log.warning("OTEL_EXPORTER_OTLP_PROTOCOL = %r: %s is sent all the same", protocol, PROTOCOL)
    _complain_seldom()
    try:
        tracers, meters, shut_down = exporters(traces=traces, metrics=metrics)
    except ValueError as error:
        raise ConfigError(f"the environment's OTEL_… variables: {error}") from None
    try:
        yield lambda disco: observe(disco, tracers, meters)
    finally:
        _within(CLOSING_S, shut_down)


def _asks_for(signal: str) -> bool:
    """Whether traces or metrics are to be sent."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or os.environ.get(f"OTEL_{signal}_EXPORTER") == "none":
        return False
    return bool(_said("ENDPOINT", signal))


def _said(what: str, signal: str) -> str:
    """What the environment says of one signal, or else of all."""
    of_all = os.environ.get(f"OTEL_EXPORTER_OTLP_{what}", "")
    return os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_{what}", of_all)


def _look_away(disco: Disco) -> None:
    """Observe nothing."""


def _within(span_s: float, shut_down: Sequence[Callable[[], None]]) -> None:
    """Shut all down at once, and give up those that take longer."""
    given_up_at = time.monotonic() + span_s
    threads = [threading.Thread(target=each, daemon=True) for each in shut_down]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(given_up_at - time.monotonic(), 0.0))


def _complain_seldom() -> None:
    """Take OpenTelemetry's own words out of the log, for good: threads that were given up still complain."""
    theirs = logging.getLogger("opentelemetry")
    theirs.propagate = False
    theirs.addHandler(_Complaints(logging.WARNING))


class _Complaints(logging.Handler):
    """Passes on the first complaint, then at most one in `COMPLAINING_S`; in one line, without traceback."""

    _quiet_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + COMPLAINING_S
            log.warning("OpenTelemetry: %s", record.getMessage())
