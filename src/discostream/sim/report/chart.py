"""A figure of which one view is shown at a time; its data stand beside it in the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeAlias

from discostream.sim.page import CLEAR, GRID, NOTE

__all__ = ["DRAW", "STYLE", "Chart", "Trace"]

Trace: TypeAlias = dict[str, Any]
"""What plotly calls so: one series of a figure. Layouts are built of the same."""

STYLE = """
figure.chart { margin: 1rem 0; }
figure.chart .choose { display: flex; flex-wrap: wrap; gap: .4rem 1rem; color: var(--dim); }
figure.chart select { font: inherit; max-width: 100%; color: var(--ink); background: var(--ground);
  border: 1px solid var(--line); border-radius: .3rem; padding: .15rem .3rem; }
figure.chart .heatmaplayer text { fill: #1a1c1f !important; }
div.wide td { white-space: nowrap; }
div.wide th.figure { white-space: normal; min-width: 5rem; vertical-align: bottom; }
"""

DRAW = """
for (const figure of document.querySelectorAll("figure.chart")) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const selects = [...figure.querySelectorAll("select")];
  const draw = () => {
    const view = spec.views[selects.map((select) => select.value).join(".")] || [];
    const nothing = { text: "nothing to show here", showarrow: false, xref: "paper", yref: "paper" };
    const layout = { ...spec.layout, annotations: view.length ? [] : [nothing] };
    const traces = view.map((trace) => ({ ...spec.common, ...trace }));
    const habits = { displayModeBar: false, responsive: true };
    Plotly.react(figure.querySelector(".canvas"), traces, layout, habits);
  };
  selects.forEach((select) => select.addEventListener("change", draw));
  draw();
}
"""
"""Draws every chart of a page, and draws it anew when the reader chooses."""


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        name: Of its element.
        shows: What it shows, for who cannot see it.
        choices: What the reader chooses between, each with a label.
        views: The traces of each combination, by the numbers of what was chosen.
        layout: Plotly's.
        common: What all traces have in common.
    """

    name: str
    shows: str
    choices: Mapping[str, Sequence[str]]
    views: Mapping[tuple[int, ...], list[Trace]]
    layout: Trace
    common: Trace = field(default_factory=dict)

    def as_html(self) -> str:
        """The figure with its data; `DRAW` draws it."""
        spec = {
            "views": {".".join(map(str, key)): traces for key, traces in self.views.items() if traces},
            "layout": _layout(self.layout),
            "common": self.common,
        }
        data = json.dumps(spec, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
        return (
            f'<figure class="chart" id="{self.name}"><div class="choose">{self._selects()}</div>'
            f'<div class="canvas" role="img" aria-label="{escape(self.shows)}"></div>'
            f'<script type="application/json">{data}</script></figure>\n'
        )

    def _selects(self) -> str:
        return "".join(
            f"<label>{escape(label)} <select>"
            + "".join(
                f'<option value="{number}">{escape(option)}</option>' for number, option in enumerate(options)
            )
            + "</select></label>"
            for label, options in self.choices.items()
        )


def _layout(own: Trace) -> Trace:
    """The manner of the page, and what a figure has of its own."""
    axes = {name: {"gridcolor": GRID, "zeroline": False, **own.get(name, {})} for name in ("xaxis", "yaxis")}
    shared = {
        "margin": {"l": 60, "r": 10, "t": 10, "b": 50},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "legend": {"bgcolor": CLEAR, "orientation": "h", "y": 1.02, "yanchor": "bottom"},
        "hovermode": "x unified",
        "hoverlabel": NOTE,
        "uirevision": "kept",
    }
    return {**shared, **own, **axes}
