"""`disco plan --html`: one page that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import cycle

import numpy as np

from discostream.cli.plan.prospects import served_by
from discostream.cli.plan.report import Report
from discostream.cli.plan.sheets import comparison, endpoints, remarks, table
from discostream.cli.plan.words import headline, rests_on, worth_in_words
from discostream.sim.page import COLOURS, as_table, drawn, page, paragraphs, script, section

__all__ = ["plan_page"]

TIMES_S = np.geomspace(0.02, 120.0, 240).round(4)


def plan_page(report: Report) -> str:
    """The report as one HTML document, its scripts included."""
    return page("disco plan", headline(report), _sections(report))


def _sections(report: Report) -> Iterator[str]:
    yield section("It rests on", as_table(endpoints(report)), paragraphs(*rests_on(report)))
    yield section(f"Who starts when ({report.prospects[0].policy})", as_table(table(report)))
    yield section("Policies side by side", as_table(comparison(report)), paragraphs(*remarks(report)))
    yield section("What more budget would buy (optimal)", paragraphs(*worth_in_words(report)))
    yield section("How long requests wait", script(), _waiting(report))
    if report.constraint:
        yield section("Budget against TTFT", _frontier(report))


def _waiting(report: Report) -> str:
    """The distribution of TTFT under each policy."""
    import plotly.graph_objects as go

    figure = go.Figure()
    colours = _colours(report)
    for index, prospect in enumerate(report.prospects):
        served = served_by(report.findings.known, prospect.table, TIMES_S)
        line = {"color": colours[prospect.policy], "width": 1.5 if index else 3}
        figure.add_scatter(
            x=TIMES_S, y=served, name=escape(prospect.policy), line=line, hovertemplate="%{y:.2%}"
        )
    figure.update_xaxes(title="seconds after a request", type="log", dtick="D2")
    figure.update_yaxes(title="requests with content", tickformat=".0%")
    return drawn(figure)


def _frontier(report: Report) -> str:
    """Mean (whole lines) and P99 TTFT (broken ones) by share."""
    import plotly.graph_objects as go

    assert report.constraint
    figure = go.Figure()
    colours = _colours(report)
    for curve in report.curves:
        shares = [point.share for point in curve.points]
        means_s = [point.mean_ttft_s for point in curve.points]
        tails_s = [point.p99_ttft_s for point in curve.points]
        for what, heights, dash in (("mean", means_s, "solid"), ("P99", tails_s, "dot")):
            line = {"color": colours[curve.policy], "dash": dash}
            figure.add_scatter(
                x=shares, y=heights, name=f"{curve.policy}, {what}", line=line, hovertemplate="%{y:.3f} s"
            )
    allowed = f"share of prompt tokens that the {report.constraint.kind} may take"
    figure.update_xaxes(title=allowed, tickformat=".0%")
    figure.update_yaxes(title="TTFT in seconds", type="log", dtick="D2")
    return drawn(figure)


def _colours(report: Report) -> dict[str, str]:
    """A policy's colour, the same in every figure."""
    shown = [prospect.policy for prospect in report.prospects] + [curve.policy for curve in report.curves]
    return dict(zip(dict.fromkeys(shown), cycle(COLOURS), strict=False))
