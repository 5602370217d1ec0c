"""Pages that need nothing but a browser: one HTML document, its scripts and figures included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from discostream.errors import ConfigError

__all__ = [
    "COLOURS",
    "Sheet",
    "as_table",
    "drawn",
    "page",
    "paragraphs",
    "require_plotly",
    "script",
    "section",
    "write_page",
]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's: told apart on light and dark ground, and by the colour-blind."""

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


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table whose first columns hold words and the others figures.

    Attributes:
        words: How many columns hold words.
        rows: A text for each column.
    """

    columns: tuple[str, ...]
    words: int
    rows: tuple[tuple[str, ...], ...]


def require_plotly(option: str) -> None:
    """Refuse now what could not be drawn later.

    Raises:
        ConfigError: plotly is not installed, which this option needs.
    """
    try:
        import plotly.graph_objects  # noqa: F401
    except ImportError:
        raise ConfigError(f"{option}: needs plotly; pip install 'discostream[report]'") from None


def write_page(content: str, path: Path, option: str) -> int:
    """Write a page to the file that an option names; returns its size in bytes.

    Raises:
        ConfigError: The file cannot be written.
    """
    written = content.encode()
    try:
        path.write_bytes(written)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error.strerror}") from None
    return len(written)


def page(title: str, heading: str, sections: Iterable[str]) -> str:
    """One HTML document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{MAY_LOAD}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(heading)}</h1>\n{chr(10).join(sections)}\n</main></body></html>\n"
    )


def section(title: str, *contents: str) -> str:
    """What stands under one heading."""
    return f"<section><h2>{escape(title)}</h2>\n{''.join(contents)}</section>"


def paragraphs(*sentences: str) -> str:
    """A paragraph for each text."""
    return "".join(f"<p>{escape(sentence)}</p>\n" for sentence in sentences)


def as_table(sheet: Sheet) -> str:
    """A table, which scrolls where it is too wide."""
    head = _as_row("th", sheet.columns, sheet.words)
    body = "".join(_as_row("td", row, sheet.words) for row in sheet.rows)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>\n'


def _as_row(tag: str, texts: Sequence[str], words: int) -> str:
    plain = "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts[:words])
    figures = "".join(f'<{tag} class="figure">{escape(text)}</{tag}>' for text in texts[words:])
    return f"<tr>{plain}{figures}</tr>\n"


def script() -> str:
    """What draws the figures, once a page."""
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>\n"


def drawn(figure: Any, name: str | None = None) -> str:
    """A plotly figure in the manner of the page.

    Args:
        figure: A `plotly.graph_objects.Figure`, which is changed.
        name: Its element's; one that chance chooses, if left out.
    """
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
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=name))
