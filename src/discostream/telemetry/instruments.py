"""The figures of `/metrics` as OpenTelemetry's instruments, by the definitions that Prometheus has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter

from discostream.gateway.measures import INSTRUMENTS, OURSELVES, Instrument, Measurer
from discostream.gateway.metrics import Standing
from discostream.library import Disco
from discostream.types import Outcome, Request

__all__ = ["Instruments"]


class Instruments:
    """Feeds a meter.

    Args:
        disco: Whose settled requests are counted, and whose standing is looked up.
        provider: Whose meter; the global one for `None`.
    """

    def __init__(self, disco: Disco, provider: MeterProvider | None = None) -> None:
        meter = get_meter(OURSELVES, version("discostream"), meter_provider=provider)
        self._measurer = Measurer(disco.endpoints)
        self._tell = {instrument: _made(meter, instrument) for instrument in INSTRUMENTS}
        self._attributes: dict[tuple[Instrument, tuple[str, ...]], Mapping[str, str]] = {}
        _look_up(meter, Standing(disco))

    def count(self, request: Request, outcome: Outcome) -> None:
        """Count a request that was settled this moment."""
        for instrument, values, amount in self._measurer.measured(request, outcome):
            self._tell[instrument](amount, self._named(instrument, values))

    def _named(self, instrument: Instrument, values: tuple[str, ...]) -> Mapping[str, str]:
        """The attributes that have a value."""
        known = self._attributes.get((instrument, values))
        if known is None:
            pairs = zip(instrument.attributes, values, strict=True)
            known = self._attributes[instrument, values] = {name: value for name, value in pairs if value}
        return known


def _made(meter: Meter, instrument: Instrument) -> Callable[[float, Mapping[str, str]], None]:
    """What adds to an instrument of this meter."""
    if instrument.buckets:
        return meter.create_histogram(
            instrument.name,
            instrument.unit,
            instrument.says,
            explicit_bucket_boundaries_advisory=instrument.buckets,
        ).record
    return meter.create_counter(instrument.name, instrument.unit, instrument.says).add


def _look_up(meter: Meter, standing: Standing) -> None:
    """Let the meter look up all that is so at the moment at which it wants to know."""
    for family in standing.collect():
        name, unit = family.name.removesuffix("_seconds"), "s" if family.name.endswith("_seconds") else ""
        look = _looked_up(standing, family.name)
        meter.create_observable_gauge(name.replace("_", ".", 2), [look], unit, family.documentation)


def _looked_up(standing: Standing, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def look(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(
                float(sample.value), {f"disco.{label}": value for label, value in sample.labels.items()}
            )
            for family in standing.collect()
            if family.name == name
            for sample in family.samples
        ]

    return look
