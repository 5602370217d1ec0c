"""`disco profile`: what is known of each endpoint.

The figures are those that the live path plans by: the same knowledge, recalled from the same ledger.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from discostream.builtin import builtin_profiles
from discostream.cli.plan.words import span
from discostream.cli.screen import COLOURS, Axis, Series, output, plot
from discostream.config import EndpointSettings, Settings, suggest
from discostream.core.profile import FORGETTING, DeviceTtft, EndpointProfile, ServerTtft
from discostream.endpoints.base import Endpoint
from discostream.endpoints.registry import build_endpoint
from discostream.errors import ConfigError
from discostream.ledger.store import default_ledger_path
from discostream.session.knowledge import DEVICE_PRIOR, SERVER_PRIOR, Experience, Knowledge
from discostream.types import Kind

__all__ = ["Portrait", "as_json", "chosen_from", "portray", "show"]

QUANTILES = (0.5, 0.9, 0.95, 0.99)
LEAST_PLOTTED_S = 1e-3
CURVE_POINTS = 200


@dataclass(frozen=True)
class Portrait:
    """What is known of one endpoint at one moment.

    Attributes:
        endpoint: Its kind, dialect and model.
        median_prompt_tokens: How long a prompt a device's quantiles are told for.
        age_s: How old the newest observation is (seconds); `None` where there is none.
    """

    profile: EndpointProfile
    endpoint: EndpointSettings
    experience: Experience
    median_prompt_tokens: float
    age_s: float | None

    @property
    def quantiles_s(self) -> Mapping[str, float | None]:
        """P50, P90, P95 and P99 of TTFT (seconds); `None` where that share reaches into what never comes."""
        ttft = self.profile.ttft
        found = {
            f"p{100 * share:.0f}": ttft.quantile(self.median_prompt_tokens, share) for share in QUANTILES
        }
        return {name: None if np.isinf(seconds) else seconds for name, seconds in found.items()}

    @property
    def prior(self) -> str:
        """What was believed before anything was seen."""
        if isinstance(self.profile.ttft, DeviceTtft):
            return DEVICE_PRIOR
        return f"{SERVER_PRIOR} ({builtin_profiles()[SERVER_PRIOR].samples:,} requests)"

    @property
    def sample_size(self) -> float:
        """How many fresh observations those that were kept are worth."""
        ttft = self.profile.ttft
        if isinstance(ttft, ServerTtft):
            return ttft.sample_size
        return float(sum(FORGETTING**age for age in range(len(ttft.recent))))


def chosen_from(settings: Settings, name: str | None) -> tuple[EndpointSettings, ...]:
    """The endpoint of that name; every one for `None`.

    Raises:
        ConfigError: There is none of that name.
    """
    names = [endpoint.name for endpoint in settings.endpoint]
    if name is not None and name not in names:
        raise ConfigError(f"no endpoint is called {name!r}; {suggest(name, names)}")
    return tuple(endpoint for endpoint in settings.endpoint if name in (None, endpoint.name))


def portray(settings: Settings, chosen: Sequence[EndpointSettings]) -> list[Portrait]:
    """What is known of these endpoints now.

    Raises:
        ConfigError: An endpoint's settings are wrong, or the ledger cannot be read.
    """
    endpoints = {endpoint.name: build_endpoint(endpoint) for endpoint in chosen}
    knowledge = Knowledge(endpoints, settings.profile)
    ledger = _ledger_path(settings)
    if ledger.is_file():
        knowledge.recall(ledger)
    return [_portrait(knowledge, endpoint, time.time()) for endpoint in endpoints.values()]


def _portrait(knowledge: Knowledge, endpoint: Endpoint, now_s: float) -> Portrait:
    known = knowledge.known(0.0, now_s=now_s)
    experience = knowledge.experience(endpoint.name)
    return Portrait(
        known.of(endpoint.name),
        endpoint.settings,
        experience,
        float(known.prompt_tokens.distribution.quantile(0.5)),
        None if experience.newest_at_s is None else max(now_s - experience.newest_at_s, 0.0),
    )


def _ledger_path(settings: Settings) -> Path:
    return Path(settings.ledger.path or default_ledger_path()).expanduser()


def as_json(portrait: Portrait) -> dict[str, Any]:
    """All figures as one object; `None` for what is not known, or never comes."""
    profile, ttft = portrait.profile, portrait.profile.ttft
    told: dict[str, Any] = {
        "name": profile.name,
        "kind": profile.kind.value,
        "ttft_s": portrait.quantiles_s,
        "tokens_per_s": profile.decode_tokens_per_s,
        "attempts": portrait.experience.attempts,
        "effective_sample_size": portrait.sample_size,
        "newest_age_s": portrait.age_s,
        "changes": profile.changes,
        "slots": profile.slots,
        "service_s": profile.service_s,
        "prior": portrait.prior,
    }
    if isinstance(ttft, ServerTtft):
        return told | {"never": ttft.distribution.never, "censored": _censored_share(ttft)}
    s_per_token, startup_s = ttft.line()
    line = {"s_per_token": s_per_token, "startup_s": startup_s, "spread_s": ttft.spread_s}
    return told | {"at_prompt_tokens": portrait.median_prompt_tokens, "line": line}


def show(portraits: Sequence[Portrait], settings: Settings) -> None:
    """Print all figures, and on a terminal a plot of each endpoint."""
    ledger = _ledger_path(settings)
    if not ledger.is_file():
        output.print(f"There is no ledger yet ({ledger}); it begins with the first request.")
    for portrait in portraits:
        endpoint = portrait.endpoint
        described = " ".join(filter(None, (endpoint.kind, endpoint.dialect, endpoint.model)))
        output.print(f"{endpoint.name} ({described})", style="bold")
        for label, text in _lines(portrait):
            output.print(f"  {label:<8} {text}")
        _plot(portrait)
        output.print()


def _lines(portrait: Portrait) -> Iterator[tuple[str, str]]:
    profile, ttft = portrait.profile, portrait.profile.ttft
    quantiles = "   ".join(f"{name.upper()} {_span(s)}" for name, s in portrait.quantiles_s.items())
    if isinstance(ttft, DeviceTtft):
        s_per_token, startup_s = ttft.line()
        line = f"{_span(startup_s)} + {_span(s_per_token)} per uncached prompt token"
        yield "TTFT", f"{line} ± {_span(ttft.spread_s)}"
        yield "", f"{quantiles}   at {portrait.median_prompt_tokens:.0f} tokens, the median prompt"
    else:
        never = ttft.distribution.never
        yield "TTFT", quantiles + (f"   {100 * never:.3g} % never came" if never else "")
    yield "decode", f"{profile.decode_tokens_per_s:.1f} tokens/s"
    if profile.slots is not None:
        held = "" if profile.service_s is None else f", each held for {_span(profile.service_s)}"
        yield "slots", f"{profile.slots}{held}"
    yield "seen", _seen(portrait)
    if profile.changes:
        yield "changes", f"{profile.changes}; the figures are from after the last"
    yield "prior", portrait.prior


def _seen(portrait: Portrait) -> str:
    if portrait.age_s is None:
        measure = f"disco profile {portrait.profile.name} --probe 20"
        return f"nothing: these are built-in figures; measure with `{measure}`, or send requests"
    ttft = portrait.profile.ttft
    cut = f", {100 * _censored_share(ttft):.0f} % of that cut short" if isinstance(ttft, ServerTtft) else ""
    worth = f"worth {portrait.sample_size:.0f} fresh ones{cut}"
    return f"{portrait.experience.attempts} attempts, {worth}; the newest {_ago(portrait.age_s)} ago"


def _censored_share(ttft: ServerTtft) -> float:
    """The share of what was seen that was cut short, by what each still counts for."""
    total = ttft.sample_size
    return float(ttft.weights[ttft.seen.censored].sum()) / total if total else 0.0


def _span(seconds: float | None) -> str:
    return "never" if seconds is None else span(seconds)


def _ago(seconds: float) -> str:
    for size, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _plot(portrait: Portrait) -> None:
    ttft = portrait.profile.ttft
    if isinstance(ttft, DeviceTtft):
        lines = _line_and_points(ttft, portrait.median_prompt_tokens)
        plot("seconds to first content, by uncached prompt tokens", lines, Axis("tokens"), Axis(""))
        return
    spans, shares = _curve(ttft)
    curve = Series("", spans, shares, COLOURS[Kind.SERVER])
    x = Axis("seconds", _round_numbers(spans[0], spans[-1]), logarithmic=True)
    y = Axis("", {share: f"{share:.0f}" for share in (0.0, 25.0, 50.0, 75.0, 90.0, 100.0)}, (0.0, 100.0))
    plot("requests that have their first content by then, in per cent", [curve], x, y)


def _line_and_points(ttft: DeviceTtft, median_prompt_tokens: float) -> list[Series]:
    tokens, seconds = [x for x, _ in ttft.recent], [y for _, y in ttft.recent]
    s_per_token, startup_s = ttft.line()
    ends = [0.0, max([*tokens, median_prompt_tokens])]
    line = Series("line", ends, [s_per_token * x + startup_s for x in ends], COLOURS[Kind.DEVICE])
    return [line, Series("seen", tokens, seconds, "cyan", line=False)] if tokens else [line]


def _curve(ttft: ServerTtft) -> tuple[list[float], list[float]]:
    """F from the fastest to the slowest that ever came: seconds, and per cent."""
    distribution = ttft.distribution
    first, last = np.maximum(distribution.quantile([0.0, 1.0 - distribution.never]), LEAST_PLOTTED_S)
    spans = np.geomspace(first, max(last, 1.01 * first), CURVE_POINTS)
    return spans.tolist(), (100.0 * distribution.cdf(spans)).tolist()


def _round_numbers(low: float, high: float) -> dict[float, str]:
    """1, 2 and 5 times every power of ten in a range, or its ends where it holds none of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    return {value: f"{value:g}" for value in found if low <= value <= high} or {low: f"{low:.2g}"}
