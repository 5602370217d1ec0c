"""Findings as figures. Each shows one view of its data at a time, and the reader chooses which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any, TypeVar

import numpy as np

from discostream.sim.grid import ALONE, SENSITIVITIES
from discostream.sim.online import Follows
from discostream.sim.page import COLOURS, GRID
from discostream.sim.report.chart import Chart, Trace
from discostream.sim.report.findings import Cut, Findings, Place, Reproduction
from discostream.sim.report.intervals import Interval
from discostream.sim.report.sheets import VARIED, percent
from discostream.sim.world import Handoff

__all__ = [
    "ablations",
    "cuts",
    "days",
    "delays",
    "distributions",
    "experiences",
    "frontiers",
    "reproduction",
    "savings",
    "sensitivity",
    "spend",
]

Item = TypeVar("Item", bound=Place)

POLICY_COLOURS = dict(
    zip(("disco", "optimal", "server-only", "device-only", "stochastic"), COLOURS, strict=False)
)

HANDOFF_COLOURS = {
    Handoff.MAKE_BEFORE_BREAK.value: COLOURS[0],
    Handoff.STOP_THEN_START.value: COLOURS[1],
}

FOLLOWS_IN_WORDS = {
    Follows.NOTHING.value: "one table, made before",
    Follows.SPEND.value: "tables follow the spend",
    Follows.EVERYTHING.value: "tables follow spend and server",
}

PURPLE_ORANGE = [[0.0, "#f1a340"], [0.5, "#f7f7f7"], [1.0, "#998ec3"]]
"""Orange for worse, purple for better: told apart by the colour-blind (ColorBrewer's PuOr)."""

MOST_CUT = 0.6
"""Where those colours end."""

ROW_PX, FRAME_PX = 22, 130
"""How high a figure is with a row for each server."""

TICKS = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]
VALUES = sorted({value for values in SENSITIVITIES.values() for value in values})


def cuts(findings: Findings) -> Chart:
    """Cuts in TTFT: a row for each server, a column for each device."""
    figures: Mapping[str, Callable[[Cut], Interval]] = {
        "P99 TTFT": lambda cut: cut.p99_ttft,
        "mean TTFT": lambda cut: cut.mean_ttft,
        "P99 TTFT at equal spend": lambda cut: cut.p99_ttft_at_spend,
        "mean TTFT at equal spend": lambda cut: cut.mean_ttft_at_spend,
    }
    policies = list(dict.fromkeys(cut.policy for cut in findings.cuts))
    constraints = findings.grid.constraints
    return Chart(
        name="cuts",
        shows="By how much each policy lowers TTFT, for every server and device",
        choices={"cut in": list(figures), "policy": policies, "budget on the": constraints},
        views={
            (one, two, three): _heat(
                findings,
                {
                    (cut.server, cut.device): figure(cut)
                    for cut in findings.cuts
                    if (cut.policy, cut.constraint) == (policy, constraint)
                },
            )
            for (one, figure), (two, policy), (three, constraint) in product(
                enumerate(figures.values()), enumerate(policies), enumerate(constraints)
            )
        },
        layout={**_by_server(findings), **TOP},
        common=HEAT,
    )


def savings(findings: Findings) -> Chart:
    """By how much migration lowers cost."""
    shares, constraints = findings.grid.answer_shares, findings.grid.constraints
    return Chart(
        name="savings",
        shows="By how much migration lowers cost, for every server and device",
        choices={"budget on the": constraints, "share": [f"{share:g}" for share in shares]},
        views={
            (one, two): _heat(
                findings,
                {
                    (each.server, each.device): each.fall
                    for each in findings.savings
                    if (each.constraint, each.share) == (constraint, share)
                },
            )
            for (one, constraint), (two, share) in product(enumerate(constraints), enumerate(shares))
        },
        layout={**_by_server(findings), **TOP},
        common={**HEAT, "zmin": -1.0, "zmax": 1.0},
    )


TOP: Trace = {"xaxis": {"side": "top", "automargin": True}, "margin": {"l": 60, "r": 10, "t": 10, "b": 10}}
"""Names of columns stand above them."""

HEAT: Trace = {
    "type": "heatmap",
    "colorscale": PURPLE_ORANGE,
    "zmin": -MOST_CUT,
    "zmax": MOST_CUT,
    "xgap": 1,
    "ygap": 1,
    "showscale": False,
    "texttemplate": "%{text}",
    "hovertemplate": "%{y}, %{x}: %{customdata}<extra></extra>",
}


def _heat(findings: Findings, cells: Mapping[tuple[str, str], Interval]) -> list[Trace]:
    names, devices = [each.name for each in findings.servers], findings.grid.devices

    def rows(told: Callable[[Interval], Any]) -> list[list[Any]]:
        return [
            [told(cells[name, device]) if (name, device) in cells else None for device in devices]
            for name in names
        ]

    if not cells:
        return []
    return [
        {
            "x": [_short(device) for device in devices],
            "y": names,
            "z": rows(lambda interval: interval.mean),
            "text": rows(lambda interval: percent(interval.mean)),
            "customdata": rows(_in_full),
        }
    ]


def reproduction(findings: Findings) -> Chart:
    """The paper's cuts and ours, side by side."""
    rows = [each for each in findings.reproductions if each.ours is not None]
    traces: list[Trace] = []
    if rows:
        theirs = dict.fromkeys(zip(map(_row_of, rows), (each.paper for each in rows), strict=True))
        traces.append(
            {"name": "the paper", "y": [row for row, _ in theirs], "x": [cut for _, cut in theirs], **DIAMOND}
        )
    for index, server in enumerate(dict.fromkeys(each.server for each in rows)):
        ours = [each for each in rows if each.server == server]
        traces.append(
            {
                "name": f"ours: {server}",
                "y": list(map(_row_of, ours)),
                **_dots([each.ours for each in ours if each.ours is not None]),
                "marker": {"color": COLOURS[index % len(COLOURS)], "size": 9},
            }
        )
    return Chart(
        name="reproduction",
        shows="Cuts in P99 TTFT in the paper and in this evaluation",
        choices={},
        views={(): traces},
        layout={
            "height": FRAME_PX + 30 * len(set(map(_row_of, rows))),
            "xaxis": {"title": {"text": "cut in P99 TTFT against stochastic"}, "tickformat": ".0%"},
            "yaxis": {"automargin": True, "autorange": "reversed"},
        },
        common={"type": "scatter", "mode": "markers"},
    )


DIAMOND: Trace = {"marker": {"color": "#7f7f7f", "size": 11, "symbol": "diamond-open", "line": {"width": 2}}}


def _row_of(each: Reproduction) -> str:
    return f"{each.service}, {each.constraint},<br>{each.device}"


def distributions(findings: Findings) -> Chart:
    """The share of requests that have content, over time."""
    return _by_setting(
        findings,
        "distributions",
        "The share of requests that have content, by seconds after their arrival",
        {
            "xaxis": {"title": {"text": "seconds after a request"}, **_marked(TICKS)},
            "yaxis": {"title": {"text": "requests with content"}, "tickformat": ".0%"},
        },
        findings.spreads,
        lambda each: [{"x": list(each.ttft_s), **_line(each.policy)}],
        common={"type": "scatter", "mode": "lines", "y": list(findings.probabilities)},
    )


def frontiers(findings: Findings) -> Chart:
    """TTFT by what was spent."""
    return _by_setting(
        findings,
        "frontiers",
        "Mean and P99 TTFT by the share of prompt tokens that was spent",
        {
            "xaxis": {"title": {"text": "spent, of all prompt tokens"}, "tickformat": ".0%"},
            "yaxis": {"title": {"text": "TTFT in seconds"}, **_marked(TICKS)},
        },
        findings.frontiers,
        lambda each: [
            {
                "x": [point.spent_share for point in each.points],
                "y": [getattr(point, figure) for point in each.points],
                **_line(each.policy, dash),
                "name": f"{each.policy}, {name}",
            }
            for name, figure, dash in (("mean", "mean_ttft_s", "solid"), ("P99", "p99_ttft_s", "dot"))
        ],
        common={"type": "scatter", "mode": "lines+markers"},
    )


def spend(findings: Findings) -> Chart:
    """What was spent by what was allowed."""
    allowed: Trace = {"name": "as allowed", "line": {"color": "#7f7f7f", "dash": "dash"}, "mode": "lines"}
    chart = _by_setting(
        findings,
        "spend",
        "What each policy spent, by the share that it was allowed",
        {
            "xaxis": {"title": {"text": "share allowed"}, "tickformat": ".0%"},
            "yaxis": {"title": {"text": "share spent"}, "tickformat": ".0%"},
        },
        [each for each in findings.frontiers if each.policy not in ALONE],
        lambda each: [
            {
                "x": [point.share for point in each.points],
                "y": [point.spent_share for point in each.points],
                **_line(each.policy),
            }
        ],
        common={"type": "scatter", "mode": "lines+markers"},
    )
    shares = list(findings.grid.shares)
    views = {key: [{**allowed, "x": shares, "y": shares}, *traces] for key, traces in chart.views.items()}
    return replace(chart, views=views)


def experiences(findings: Findings) -> Chart:
    """QoE by server: a dot for each policy."""
    return _by_server_and_policy(
        findings,
        "experiences",
        "Quality of experience of every server's answers, by policy",
        "QoE: 1 where nobody ever waits",
        [
            (each, each.policy, POLICY_COLOURS.get(each.policy, COLOURS[5]), each.qoe)
            for each in findings.experiences
        ],
    )


def delays(findings: Findings) -> Chart:
    """Delayed tokens by server: a dot for each way of moving."""
    return _by_server_and_policy(
        findings,
        "delays",
        "Delayed tokens a migration for every server, by way of moving",
        "tokens that come late, a migration",
        [
            (each, each.handoff, HANDOFF_COLOURS[each.handoff], Interval(each.delayed_tokens, None, None, 1))
            for each in findings.moves
            if each.delayed_tokens is not None
        ],
    )


def ablations(findings: Findings) -> Chart:
    """What is lost with each part: a box over all settings."""
    figures = {"mean TTFT": "mean_ttft", "P99 TTFT": "p99_ttft", "cost": "cost", "spend": "spent_share"}
    constraints = findings.grid.constraints
    parts = list(dict.fromkeys((each.policy, each.without) for each in findings.losses))
    of_races = {(each.policy, each.without) for each in findings.losses if not each.of_answers}
    return Chart(
        name="ablations",
        shows="What changes when a part of a policy is left out; a box over all servers and devices",
        choices={"change of": list(figures), "budget on the": constraints},
        views={
            (one, two): [
                {
                    "name": f"{policy}: {without}",
                    "x": [
                        round(getattr(each, figure).mean, 5)
                        for each in findings.losses
                        if (each.policy, each.without, each.constraint) == (policy, without, constraint)
                    ],
                    "marker": {"color": POLICY_COLOURS.get(policy, COLOURS[5])},
                }
                for policy, without in parts
                if figure == "cost" or (policy, without) in of_races
            ]
            for (one, figure), (two, constraint) in product(
                enumerate(figures.values()), enumerate(constraints)
            )
        },
        layout={
            "height": FRAME_PX + 45 * len(parts),
            "xaxis": {"title": {"text": "change against the whole"}, "tickformat": "+.0%"},
            "yaxis": {"automargin": True, "autorange": "reversed"},
            "showlegend": False,
            "hovermode": "closest",
        },
        common={"type": "box", "boxpoints": "outliers", "orientation": "h"},
    )


def days(findings: Findings) -> Chart:
    """TTFT above and spend below, as the day goes on."""
    names = list(dict.fromkeys(each.server for each in findings.days))
    constraints = findings.grid.constraints
    colours = dict(zip(FOLLOWS_IN_WORDS, (COLOURS[1], COLOURS[4], COLOURS[0]), strict=False))

    def lines(server: str, constraint: str) -> list[Trace]:
        traces: list[Trace] = []
        for each in findings.days:
            if (each.server, each.constraint) != (server, constraint):
                continue
            ends = (np.arange(len(each.mean_ttft_s)) + 1) * each.whole.n // len(each.mean_ttft_s)
            shared = {
                "x": ends.tolist(),
                "name": FOLLOWS_IN_WORDS[each.follows],
                "legendgroup": each.follows,
                "line": {"color": colours[each.follows]},
            }
            traces.append({**shared, "y": list(each.mean_ttft_s)})
            traces.append({**shared, "y": list(each.spent_share), "yaxis": "y2", "showlegend": False})
        return traces

    return Chart(
        name="days",
        shows="Mean TTFT and spend while the server is three times slower for the middle third of a day",
        choices={"server": names, "budget on the": constraints},
        views={
            (one, two): lines(name, constraint)
            for (one, name), (two, constraint) in product(enumerate(names), enumerate(constraints))
        },
        layout={
            "height": 520,
            "xaxis": {"title": {"text": "requests so far"}, "anchor": "y2"},
            "yaxis": {"title": {"text": "mean TTFT, seconds"}, "domain": [0.52, 1.0], "rangemode": "tozero"},
            "yaxis2": {
                "title": {"text": "share spent"},
                "domain": [0.0, 0.44],
                "tickformat": ".0%",
                "rangemode": "tozero",
                "gridcolor": GRID,
            },
        },
        common={"type": "scatter", "mode": "lines"},
    )


def sensitivity(findings: Findings) -> Chart:
    """Cost above and delayed tokens below, by what is varied: the median server and the range of all."""
    constraints = findings.grid.constraints

    def lines(varied: str, constraint: str) -> list[Trace]:
        ours = [e for e in findings.sensitivities if (e.varied, e.constraint) == (varied, constraint)]
        values = SENSITIVITIES[varied]
        cost = [[each.cost.mean for each in ours if each.value == value] for value in values]
        delayed = [[each.delayed_tokens or 0.0 for each in ours if each.value == value] for value in values]
        return (
            [
                *_band(values, cost, COLOURS[0], "cost", "y"),
                *_band(values, delayed, COLOURS[1], "delayed tokens a migration", "y2"),
            ]
            if ours
            else []
        )

    return Chart(
        name="sensitivity",
        shows="Cost with migration and delayed tokens, by what is misjudged or varied",
        choices={"varied": [VARIED[name] for name in SENSITIVITIES], "budget on the": constraints},
        views={
            (one, two): lines(name, constraint)
            for (one, name), (two, constraint) in product(enumerate(SENSITIVITIES), enumerate(constraints))
        },
        layout={
            "height": 520,
            "xaxis": {"title": {"text": "value"}, **_marked(VALUES), "anchor": "y2"},
            "yaxis": {
                "title": {"text": "cost, of that without"},
                "domain": [0.52, 1.0],
                "tickformat": ".0%",
                "rangemode": "tozero",
            },
            "yaxis2": {
                "title": {"text": "tokens late"},
                "domain": [0.0, 0.44],
                "rangemode": "tozero",
                "gridcolor": GRID,
            },
        },
        common={"type": "scatter"},
    )


def _band(
    values: Sequence[float], heights: Sequence[Sequence[float]], colour: str, name: str, axis: str
) -> list[Trace]:
    """The median, and all between the least and the most."""
    shared = {"legendgroup": name, "yaxis": axis}
    edges = [[each(height) for height in heights] for each in (min, max)]
    return [
        {
            **shared,
            "x": [*values, *reversed(values)],
            "y": [*edges[0], *reversed(edges[1])],
            "mode": "lines",
            "fill": "toself",
            "fillcolor": f"rgba{(*_rgb(colour), 0.15)}",
            "line": {"width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
        },
        {
            **shared,
            "x": list(values),
            "y": [median(height) for height in heights],
            "mode": "lines+markers",
            "name": f"{name}, median server",
            "line": {"color": colour},
        },
    ]


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def _by_setting(
    findings: Findings,
    name: str,
    shows: str,
    layout: Trace,
    items: Iterable[Item],
    traces: Callable[[Item], list[Trace]],
    common: Trace,
) -> Chart:
    """A figure in which a server, a device and a constraint are chosen."""
    names = [each.name for each in findings.servers]
    devices, constraints = findings.grid.devices, findings.grid.constraints
    views: dict[tuple[int, ...], list[Trace]] = {}
    for item in items:
        key = names.index(item.server), devices.index(item.device), [*constraints].index(item.constraint)  # type: ignore[arg-type]
        views.setdefault(key, []).extend(traces(item))
    choices = {"server": names, "device": devices, "budget on the": constraints}
    return Chart(name, shows, choices, views, {"height": 420, **layout}, common)


def _by_server_and_policy(
    findings: Findings,
    name: str,
    shows: str,
    axis: str,
    dots: Iterable[tuple[Place, str, str, Interval]],
) -> Chart:
    """A row for each server and a dot for each of several kinds; device and constraint are chosen."""
    devices, constraints = list(findings.grid.devices), [str(each) for each in findings.grid.constraints]
    found: dict[tuple[int, ...], dict[tuple[str, str], list[tuple[str, Interval]]]] = {}
    for place, kind, colour, interval in dots:
        key = devices.index(place.device), constraints.index(place.constraint)
        found.setdefault(key, {}).setdefault((kind, colour), []).append((place.server, interval))
    return Chart(
        name,
        shows,
        {"device": devices, "budget on the": constraints},
        {
            key: [
                {
                    "name": kind,
                    "y": [server for server, _ in ours],
                    **_dots([interval for _, interval in ours]),
                    "marker": {"color": colour, "size": 9},
                }
                for (kind, colour), ours in kinds.items()
            ]
            for key, kinds in found.items()
        },
        {**_by_server(findings), "xaxis": {"title": {"text": axis}}, "hovermode": "closest"},
        {"type": "scatter", "mode": "markers"},
    )


def _dots(intervals: Sequence[Interval]) -> Trace:
    """Means, with a bar from end to end of their intervals."""
    half = [0.0 if each.high is None else each.high - each.mean for each in intervals]
    bars = {"error_x": {"type": "data", "array": half, "thickness": 1}} if any(half) else {}
    return {"x": [each.mean for each in intervals], **bars}


def _by_server(findings: Findings) -> Trace:
    return {
        "height": FRAME_PX + ROW_PX * len(findings.servers),
        "yaxis": {"automargin": True, "autorange": "reversed"},
        "hovermode": "closest",
    }


def _marked(values: Sequence[float]) -> Trace:
    """An axis on which equal steps are equal factors, with these values marked."""
    return {"type": "log", "tickvals": list(values), "ticktext": [f"{value:g}" for value in values]}


def _line(policy: str, dash: str = "solid") -> Trace:
    colour = POLICY_COLOURS.get(policy, COLOURS[5])
    return {"name": policy, "line": {"color": colour, "dash": dash}}


def _in_full(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{100 * interval.mean:.1f} %"
    return f"{100 * interval.mean:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _short(device: str) -> str:
    """A device's name on two lines at most, so that a column is narrow."""
    words = device.split("-")
    half = (len(words) + 1) // 2
    return "-".join(words[:half]) + "-<br>" + "-".join(words[half:]) if len(words) > 2 else device
