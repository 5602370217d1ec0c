"""`disco simulate`: policies and shares on one server, one device and one workload."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from msgspec.structs import fields
from numpy.typing import NDArray

from discostream.cli.plan.words import energy, money, percent, seconds
from discostream.cli.screen import as_table as as_words
from discostream.cli.screen import count_bar, errors, output, print_table
from discostream.config import suggest
from discostream.core.plugins import policy_names
from discostream.errors import ConfigError
from discostream.sim.figures import Figures
from discostream.sim.page import COLOURS, Sheet, as_table, drawn, page, paragraphs, script, section
from discostream.sim.study import Case, judge
from discostream.sim.world import Handoff
from discostream.traces.servers import read_trace
from discostream.traces.workloads import read_workload

__all__ = ["Judged", "as_csv", "as_json", "as_page", "cases_of", "judge_all", "show"]

Floats: TypeAlias = NDArray[np.float64]

PER = 1000
SHARELESS = frozenset({"server-only", "device-only", "offsets"})
POINTS = np.concatenate((np.linspace(0, 0.9, 91), 1 - np.geomspace(0.1, 1e-4, 60)))
"""The shares of requests at which a distribution is drawn, closer towards the tail."""

MEANINGS = (
    "QoE: quality of experience, 1 where nobody had to wait (Andes). Money, energy and their sum at the "
    "exchange rate are of 1,000 requests. Moved: answers that changed "
    "hands. Late: tokens a migration that came after the reader wanted them. TBT: the gap between tokens as "
    "read, P99. Wasted: tokens a request that were written and never delivered."
)

HANDOFFS = {
    "on": Handoff.MAKE_BEFORE_BREAK,
    "off": Handoff.OFF,
    Handoff.STOP_THEN_START.value: Handoff.STOP_THEN_START,
}


@dataclass(frozen=True, eq=False)
class Judged:
    """One policy under one share.

    Attributes:
        waited_s: TTFT at `POINTS`.
    """

    figures: Figures
    waited_s: Floats


def cases_of(
    *,
    policies: str,
    shares: str,
    constraint: str,
    migration: str,
    prices: str,
    train_fraction: float,
    consumption_tokens_per_s: float,
    usd_per_joule: float | None,
    **rest: Any,
) -> list[Case]:
    """The cells that the options name; policies that know no share come once.

    Raises:
        ConfigError: Naming the option that is wrong, its value, and what would be right.
    """
    names, listed = _policies(policies), _shares(shares)
    prompt_usd_per_mtok, completion_usd_per_mtok = _prices(prices)
    if constraint not in ("device", "server", "auto"):
        raise ConfigError(f"--constraint {constraint!r}: must be device, server or auto")
    if migration not in HANDOFFS:
        raise ConfigError(f"--migration {migration!r}: must be {', '.join(HANDOFFS)}")
    pace, rate = consumption_tokens_per_s, usd_per_joule
    for option, value, right, words in (
        ("--train-fraction", train_fraction, 0.0 < train_fraction < 1.0, "lie between 0 and 1"),
        ("--consumption", pace, 0.0 < pace < 1e6, "be above 0, and below a million"),
        ("--usd-per-joule", rate, rate is None or 0 <= rate < 1e6, "be 0 or more, and below a million"),
    ):
        if not right:
            raise ConfigError(f"{option} {value:g}: must {words}")
    return [
        Case(
            policy=policy,
            share=share,
            constraint=cast(Literal["device", "server", "auto"], constraint),
            handoff=HANDOFFS[migration],
            prompt_usd_per_mtok=prompt_usd_per_mtok,
            completion_usd_per_mtok=completion_usd_per_mtok,
            train_fraction=train_fraction,
            consumption_tokens_per_s=consumption_tokens_per_s,
            usd_per_joule=usd_per_joule,
            **rest,
        )
        for policy in names
        for share in (listed[:1] if policy in SHARELESS else listed)
    ]


def _policies(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in policy_names():
            raise ConfigError(f"--policy {name!r}: no such policy; {suggest(name, policy_names())}")
        if name == "offsets":
            raise ConfigError("--policy 'offsets': has no offsets without settings; name another one")
    return list(dict.fromkeys(names))


def _shares(text: str) -> list[float]:
    return [_number("--share", part, 0.0, 1.0) for part in text.split(",")]


def _prices(text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise ConfigError(f"--prices {text!r}: must be IN,OUT in dollars per million tokens, as in 2.5,10")
    prompt, completion = (_number("--prices", part, 0.0, 1e6) for part in parts)
    return prompt, completion


def _number(option: str, text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ConfigError(f"{option} {text.strip()!r}: must be a number from {least:g} to {most:g}")
    return value


def judge_all(cases: Sequence[Case]) -> list[Judged]:
    """Judge every cell, with a bar on a terminal."""
    total = sum(case.requests for case in cases)
    judged = []
    with count_bar("Requests", total) if errors.is_terminal else nullcontext(lambda count: None) as told:
        for case in cases:
            figures, tally = judge(case, told)
            judged.append(Judged(figures, np.quantile(tally.ttft_s, POINTS)))
    return judged


def as_json(judged: Sequence[Judged]) -> str:
    """A list of objects, one a cell."""
    return json.dumps([one.figures.as_dict() for one in judged], indent=1, allow_nan=False)


def as_csv(judged: Sequence[Judged]) -> str:
    """The same as rows under a header."""
    written = io.StringIO()
    rows = csv.DictWriter(written, [field.name for field in fields(Figures)], lineterminator="\n")
    rows.writeheader()
    rows.writerows(one.figures.as_dict() for one in judged)
    return written.getvalue().rstrip("\n")


def show(cases: Sequence[Case], judged: Sequence[Judged]) -> None:
    """Two tables, and what they rest on."""
    for sheet in _sheets([one.figures for one in judged]):
        print_table(as_words(sheet.columns, sheet.rows, words=sheet.words, folding=()))
        output.print()
    for sentence in (MEANINGS, *_rests_on(cases[0], judged[0].figures)):
        output.print(sentence, style="dim", soft_wrap=True)


def as_page(cases: Sequence[Case], judged: Sequence[Judged]) -> str:
    """One HTML document with everything in it."""
    figures = [one.figures for one in judged]
    heading = f"{figures[0].server_trace} and {figures[0].device}"
    return page("disco simulate", heading, _sections(cases, judged))


def _sections(cases: Sequence[Case], judged: Sequence[Judged]) -> Iterator[str]:
    figures = [one.figures for one in judged]
    yield section("It rests on", paragraphs(*_rests_on(cases[0], figures[0])))
    waits, costs = _sheets(figures)
    yield section("Policies side by side", as_table(waits), as_table(costs), paragraphs(MEANINGS))
    yield section(
        "How long requests wait",
        paragraphs("The share of requests that have content by each moment; a curve further left is better."),
        script(),
        _waiting(judged),
    )
    if len({one.share for one in figures}) > 1:
        yield section(
            "Spend against TTFT",
            paragraphs(
                f"What each policy really spent of the {figures[0].constraint}, as a share of prompt tokens, "
                f"and the TTFT it got for that; lower is better."
            ),
            _frontier(figures),
        )


def _rests_on(case: Case, figures: Figures) -> Iterator[str]:
    yield (
        f"{figures.n:,} simulated requests each: server {figures.server_trace}, device {figures.device}, "
        f"workload {read_workload(case.workload).name}. Plans know {percent(case.train_fraction)} of trace "
        f"and workload, and are judged on the rest. The share holds back the {figures.constraint}. Seed "
        f"{case.seed}."
    )
    for note in (read_trace(case.server_trace).note, read_workload(case.workload).note):
        if note:
            yield f"{note[0].upper()}{note[1:].rstrip('.')}."


def _sheets(figures: Sequence[Figures]) -> tuple[Sheet, Sheet]:
    """What requests wait, and what answers cost and feel like."""
    waits = ("policy", "share", "spent", "mean TTFT s", "P50 s", "P90 s", "P99 s", "worst s", "QoE")
    costs = ("policy", "share", "money", "energy", "cost", "moved", "late", "TBT s", "wasted")
    return Sheet(waits, 1, tuple(map(_waits, figures))), Sheet(costs, 1, tuple(map(_costs, figures)))


def _waits(one: Figures) -> tuple[str, ...]:
    spans_s = (one.mean_ttft_s, one.p50_ttft_s, one.p90_ttft_s, one.p99_ttft_s, one.max_ttft_s)
    return one.policy, _planned(one), percent(one.spent_share), *map(seconds, spans_s), f"{one.qoe_mean:.3f}"


def _costs(one: Figures) -> tuple[str, ...]:
    return (
        one.policy,
        _planned(one),
        money(PER * one.usd),
        energy(PER * one.joules),
        money(PER * one.cost),
        percent(one.migrated_share),
        f"{one.delayed_tokens_mean:.1f}",
        f"{one.p99_tbt_s:.3f}",
        f"{one.wasted_tokens:.1f}",
    )


def _planned(one: Figures) -> str:
    return "" if one.policy in SHARELESS else percent(one.share)


def _waiting(judged: Sequence[Judged]) -> str:
    import plotly.graph_objects as go

    figure = go.Figure()
    for one, colour in zip(judged, cycle(COLOURS), strict=False):
        figure.add_scatter(
            x=one.waited_s.round(4),
            y=POINTS,
            name=_named(one.figures),
            line={"color": colour},
            hovertemplate="%{y:.2%}",
        )
    figure.update_xaxes(title="seconds after a request", type="log", dtick="D2")
    figure.update_yaxes(title="requests with content", tickformat=".0%")
    return drawn(figure, "waiting")


def _frontier(figures: Sequence[Figures]) -> str:
    import plotly.graph_objects as go

    figure = go.Figure()
    for policy, colour in zip(dict.fromkeys(one.policy for one in figures), cycle(COLOURS), strict=False):
        ours = sorted((one for one in figures if one.policy == policy), key=lambda one: one.spent_share)
        spent = [one.spent_share for one in ours]
        for what, heights, dash in (
            ("mean", [one.mean_ttft_s for one in ours], "solid"),
            ("P99", [one.p99_ttft_s for one in ours], "dot"),
        ):
            figure.add_scatter(
                x=spent,
                y=heights,
                name=f"{policy}, {what}",
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                hovertemplate="%{y:.3f} s",
            )
    figure.update_xaxes(title="share of prompt tokens spent", tickformat=".0%")
    figure.update_yaxes(title="TTFT in seconds", type="log", dtick="D2")
    return drawn(figure, "frontier")


def _named(figures: Figures) -> str:
    return figures.policy if figures.policy in SHARELESS else f"{figures.policy} {percent(figures.share)}"
