"""docs/grafana.json against a real `/metrics`: what it asks for is there."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import anyio
import pytest
from observed import play
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/metrics has the process on Linux alone")

DOCS = Path(__file__).parent.parent / "docs"
BOARD = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
SHOWN = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    (panel["title"], each["expr"], each["legendFormat"]) for panel in SHOWN for each in panel["targets"]
]
SELECTOR = re.compile(r"([a-z_]+)\{([^}]*)\}(?:\[\$__rate_interval\])?")
GROUPING = re.compile(r"\b(?:by|ignoring) \(([^)]*)\)")
MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
WORDS = {"histogram_quantile", "max", "rate", "scalar", "sum", "time"}
SCRAPED = {"instance"}
"""What Prometheus itself adds to every series."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return anyio.run(play, tmp_path_factory.mktemp("dashboard")).page


@pytest.fixture(scope="module")
def series(page: str) -> dict[str, dict[str, set[str]]]:
    """Every sample's labels, and their values."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = found[sample.name]
            for label, value in sample.labels.items():
                labels[label].add(value)
    return found


@pytest.mark.parametrize(("title", "expression", "legend"), QUERIES)
def test_every_query_asks_for_what_is_there(
    title: str, expression: str, legend: str, series: dict[str, dict[str, set[str]]]
) -> None:
    """Its metrics are on the page with the labels and values that it wants; nothing else is in it."""
    selectors = SELECTOR.findall(expression)
    assert selectors, title
    assert {name for name, _ in selectors} <= set(series)
    for name, matchers in selectors:
        for label, operator, wanted in MATCHER.findall(matchers):
            assert label in {*SCRAPED, *series[name]}
            values = set(wanted.split("|") if operator == "=~" else [wanted])
            assert wanted == f"${label}" or values <= series[name][label]
    had = SCRAPED.union(*(series[name] for name, _ in selectors))
    grouped = {label for labels in GROUPING.findall(expression) for label in labels.split(", ")}
    assert grouped <= had
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= (grouped - {"le"} if grouped else had)
    rest = GROUPING.sub("", SELECTOR.sub("", expression))
    assert set(re.findall(r"[a-z_]+", rest)) <= WORDS


def test_panels_say_what_they_are() -> None:
    """Each has its own ID and title, a description, a unit, and the datasource that was chosen."""
    ids = [panel["id"] for panel in BOARD["panels"]]
    titles = [panel["title"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)
    chosen = f"${{{BOARD['__inputs'][0]['name']}}}"
    for panel in SHOWN:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert {each["datasource"]["uid"] for each in [panel, *panel["targets"]]} == {chosen}


def test_panels_have_places_of_their_own() -> None:
    """None lies upon another, or beyond the 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert all(0 <= x < 24 for x, _ in cells)
        taken |= cells


def test_it_can_be_imported() -> None:
    """It has what an import asks for: a datasource to choose, a UID, and the kinds of its panels."""
    assert BOARD["uid"] == "discostream"
    assert BOARD["id"] is None
    assert [(each["type"], each["pluginId"]) for each in BOARD["__inputs"]] == [("datasource", "prometheus")]
    required = {each["id"] for each in BOARD["__requires"] if each["type"] == "panel"}
    assert required == {panel["type"] for panel in SHOWN}


def test_variables_are_filled_from_what_is_there(series: dict[str, dict[str, set[str]]]) -> None:
    """Gateways, policies and endpoints can be chosen, and every variable that a query uses is one of them."""
    variables: list[dict[str, Any]] = BOARD["templating"]["list"]
    for variable in variables:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()
        assert variable["query"]["query"] == variable["definition"]
        assert label == variable["name"]
        assert label in {*SCRAPED, *series[metric]}
    used = {name for _, expression, _ in QUERIES for name in re.findall(r'"\$(\w+)"', expression)}
    assert used == {variable["name"] for variable in variables} == {"instance", "policy", "endpoint"}


def test_every_metric_is_shown_or_explained(page: str) -> None:
    """What the dashboard leaves out is in docs/metrics-endpoint.md at least."""
    explained = (DOCS / "metrics-endpoint.md").read_text(encoding="utf-8")
    shown = {name for _, expression, _ in QUERIES for name, _ in SELECTOR.findall(expression)}
    assert len(shown) > 20
    left_out = {
        sample
        for family in text_string_to_metric_families(page)
        for sample in {each.name for each in family.samples}
        if sample not in shown and not sample.endswith("_created") and f"`{family.name}" not in explained
    }
    assert not left_out
