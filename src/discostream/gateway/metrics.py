"""`GET /metrics`: counted as requests settle, or looked up when it is asked for; nothing is done for a token.

Names and labels are made from those of `measures`, as Prometheus spells them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from discostream.gateway.measures import INSTRUMENTS, Instrument, Measurer
from discostream.library import FAILED, READY, STARTING, Disco
from discostream.types import Outcome, Request

__all__ = ["CONTENT_TYPE", "Metrics", "Standing"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

BUDGETED = ("budget", "resource")


class Metrics:
    """All that `/metrics` shows of a connection, from now on, and of this process.

    Args:
        disco: Whose settled requests are counted.
    """

    def __init__(self, disco: Disco) -> None:
        self._registry = CollectorRegistry()
        self._measurer = Measurer(disco.endpoints)
        self._families = {instrument: self._family(instrument) for instrument in INSTRUMENTS}
        self._series: dict[tuple[Instrument, tuple[str, ...]], Callable[[float], None]] = {}
        self._registry.register(Standing(disco))
        self._registry.register(_Build())
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        disco.on_settled.append(self.count)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)

    def count(self, request: Request, outcome: Outcome) -> None:
        """Count a request that was settled this moment."""
        for instrument, values, amount in self._measurer.measured(request, outcome):
            series = self._series.get((instrument, values)) or self._begin(instrument, values)
            series(amount)

    def _family(self, instrument: Instrument) -> Counter | Histogram:
        name = instrument.name.replace(".", "_") + ("_seconds" if instrument.unit == "s" else "")
        labels = [label_of(attribute) for attribute in instrument.attributes]
        if instrument.buckets:
            buckets = instrument.buckets
            return Histogram(name, instrument.says, labels, buckets=buckets, registry=self._registry)
        return Counter(name, instrument.says, labels, registry=self._registry)

    def _begin(self, instrument: Instrument, values: tuple[str, ...]) -> Callable[[float], None]:
        """What adds to a series; looking it up by its labels every time would be dearer than adding."""
        family = self._families[instrument]
        series = family.labels(*values) if values else family
        self._series[instrument, values] = series.observe if isinstance(series, Histogram) else series.inc
        return self._series[instrument, values]


def label_of(attribute: str) -> str:
    """What Prometheus calls an attribute."""
    return attribute.removeprefix("disco.").replace(".", "_")


class Standing(Collector):
    """What is so at this moment: attempts that run, how endpoints stand, and budgets."""

    def __init__(self, disco: Disco) -> None:
        self._disco = disco

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every gauge, with its values of this moment."""
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


class _Build(Collector):
    """What runs here."""

    def collect(self) -> Iterator[Metric]:
        what = {"version": version("discostream"), "python": platform.python_version()}
        yield InfoMetricFamily("disco_build", "What runs here.", value=what)
