"""`disco plan --html`: one page that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from discostream.cli.plan.prospects import served_by
from discostream.cli.plan.report import Report
from discostream.cli.plan.sheets import Sheet, comparison, endpoints, remarks, table
from discostream.cli.plan.words import headline, rests_on, worth_in_words
from discostream.errors import ConfigError

__all__ = ["page", "require_plotly", "write_page"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's: told apart on light and dark ground, and by the colour-blind."""

TIMES_S = np.geomspace(0.02, 120.0, 240).round(4)

MAY_LOAD = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What a browser may load: nothing that is not in the page."""

STYLE = """
:root { color-scheme: light dark; --ink: #1a1c1f; --dim: #5c6370; --ground: #ffffff; --line: #d7dbe0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #9aa3af; --ground: #15171a; --line: #353a41; }
}
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; }
h2 { font-size: 1.1rem; margin-top: 2.2rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; }
td { border-top: 1px solid var(--line); }
th { color: var(--dim); font-weight: 500; }
th.figure, td.figure { text-align: right; white-space: nowrap; }
.js-plotly-plot .infolayer text, .js-plotly-plot .cartesianlayer text { fill: var(--ink) !important; }
"""

GRID = "rgba(128, 128, 128, 0.3)"
CLEAR = "rgba(0, 0, 0, 0)"
NOTE = {"bgcolor": "#ffffff", "font": {"color": "#1a1c1f"}}


def require_plotly() -> None:
    """Refuse now what could not be drawn later.

    Raises:
        ConfigError: plotly is not installed.
    """
    try:
        import plotly.graph_objects  # noqa: F401
    except ImportError:
        raise ConfigError("--html: needs plotly; pip install 'discostream[report]'") from None


def write_page(report: Report, path: Path) -> int:
    """Write the page to a file; returns its size in bytes.

    Raises:
        ConfigError: The file cannot be written.
    """
    content = page(report).encode()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"--html {path}: cannot be written: {error.strerror}") from None
    return len(content)


def page(report: Report) -> str:
    """The report as one HTML document, its scripts included."""
    sections = "\n".join(_sections(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{MAY_LOAD}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>disco plan</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(headline(report))}</h1>\n{sections}\n</main></body></html>\n"
    )


def _sections(report: Report) -> Iterator[str]:
    yield _section("It rests on", _as_table(endpoints(report)), *_paragraphs(rests_on(report)))
    yield _section(f"Who starts when ({report.prospects[0].policy})", _as_table(table(report)))
    yield _section("Policies side by side", _as_table(comparison(report)), *_paragraphs(remarks(report)))
    yield _section("What more budget would buy (optimal)", *_paragraphs(worth_in_words(report)))
    yield _section("How long requests wait", _script(), _waiting(report))
    if report.constraint:
        yield _section("Budget against TTFT", _frontier(report))


def _section(title: str, *contents: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{''.join(contents)}</section>"


def _paragraphs(sentences: Iterable[str]) -> Iterator[str]:
    return (f"<p>{escape(sentence)}</p>\n" for sentence in sentences)


def _as_table(sheet: Sheet) -> str:
    head = _as_row("th", sheet.columns, sheet.words)
    body = "".join(_as_row("td", row, sheet.words) for row in sheet.rows)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>\n'


def _as_row(tag: str, texts: Sequence[str], words: int) -> str:
    plain = "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts[:words])
    figures = "".join(f'<{tag} class="figure">{escape(text)}</{tag}>' for text in texts[words:])
    return f"<tr>{plain}{figures}</tr>\n"


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
    return _drawn(figure)


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
    return _drawn(figure)


def _colours(report: Report) -> dict[str, str]:
    """A policy's colour, the same in every figure."""
    shown = [prospect.policy for prospect in report.prospects] + [curve.policy for curve in report.curves]
    return dict(zip(dict.fromkeys(shown), cycle(COLOURS), strict=False))


def _script() -> str:
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>\n"


def _drawn(figure: Any) -> str:
    figure.update_xaxes(gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    figure.update_layout(
        height=420,
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        legend={"bgcolor": CLEAR, "orientation": "h", "y": -0.2},
        hovermode="x unified",
        hoverlabel=NOTE,
    )
    config = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config))
