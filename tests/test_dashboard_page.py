"""The dashboard in a real browser, on a gateway whose ledger holds known requests."""

from __future__ import annotations

import sqlite3
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browsing import IN_A_BROWSER, NAMELESS, PHONE, WORDS, Visit, opened, visiting, written
from ledgers import FAILED, MOVED, RESCUED, write_ledger
from processes import Serving, disco_serve

from discostream.types import Outcome

pytestmark = IN_A_BROWSER

SLOW_PAIR = f"""
[[endpoint]]
name = "laptop"
kind = "device"
dialect = "scripted"
answer = "{WORDS}"
ttft_s = 0.3
tbt_s = 0.05
decode_joules_per_token = 0.5

[[endpoint]]
name = "cloud"
kind = "server"
dialect = "scripted"
answer = "{WORDS}"
ttft_s = 0.3
tbt_s = 0.05
prompt_usd_per_mtok = 2.5
completion_usd_per_mtok = 9.0

[policy]
name = "offsets"
offsets = {{{{ cloud = 0.0, laptop = 0.2 }}}}

[[budget]]
name = "purse"
usd = 1.50
per = "day"

[ledger]
path = "{{folder}}/ledger.db"

[gateway]
{{gateway}}
"""
MANY, WITHIN_S = 100_000, 3.0
"""How many requests the page must show, and how soon: far above what it takes, which the benchmark tells."""

SHOWN = "() => performance.getEntriesByName('figures-shown').length"
TILES = """() => Object.fromEntries([...document.querySelectorAll("#totals > div")].map(
    (tile) => [tile.children[0].textContent, tile.children[1].textContent]))"""
ROWS = """(selector) => [...document.querySelectorAll(`${selector} tbody tr`)].map(
    (row) => [...row.children].map((cell) => cell.textContent.replaceAll("\\u00a0", " ").trim()))"""
ASK = "async (path) => (await fetch(path)).json()"
BARE = """() => [...document.querySelectorAll(".scrolls table")]
    .filter((table) => !table.caption || table.querySelector("th:not([scope])")).length"""
"""How many tables do not say what they or their cells are about."""
NARROW = "document.documentElement.scrollWidth <= innerWidth"
FAINT = """() => {
  const parts = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.e-]+/g).map(Number);
    return text.startsWith("color(srgb") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((part, index) => a * part + (1 - a) * below[index]);
  const lines = (node) => (node ? [...lines(node.parentElement), node] : []);
  const ground = (node) => lines(node).reduce(
    (below, each) => over(parts(getComputedStyle(each).backgroundColor), below), [255, 255, 255]);
  const light = (colour) => colour.map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const contrast = (node) => {
    const below = ground(node);
    const [ink, paper] = [over(parts(getComputedStyle(node).color), below), below].map(light);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = [];
  let seen = 0;
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    const text = texts.currentNode.textContent.trim();
    if (!text || !node.checkVisibility({ visibilityProperty: true })) continue;
    seen += 1;
    if (contrast(node) < 4.5) faint.push(`${text}: ${contrast(node).toFixed(2)}`);
  }
  return { seen, faint };
}"""
"""Texts whose contrast to what lies below them is under WCAG's 4.5, and how many texts there are."""


def recorded(path: Path, settled: list[tuple[float, Outcome]]) -> None:
    """Write a ledger from a thread of its own, as Playwright keeps an event loop in this one."""
    with ThreadPoolExecutor(1) as other:
        other.submit(write_ledger, path, settled).result()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One gateway for all tests that only look; three requests were settled within the last hour."""
    folder = tmp_path_factory.mktemp("dashboard")
    now = time.time()
    recorded(folder / "ledger.db", [(now - 1800, MOVED), (now - 1200, RESCUED), (now - 600, FAILED)])
    with disco_serve(written(folder, SLOW_PAIR, gateway="")) as serving:
        yield serving


def show(visit: Visit, query: str = "") -> None:
    """The dashboard, with its figures in place."""
    if query or visit.page.url.rstrip("/") == visit.home.rstrip("/"):
        visit.page.goto(f"{visit.home}dashboard{query}")
    visit.page.wait_for_function(SHOWN)
    visit.page.locator("#budgets li").first.wait_for()
    visit.page.locator("#requests :is(table, .empty)").first.wait_for()


def told(visit: Visit, path: str) -> Any:
    return visit.page.evaluate(ASK, f"/dashboard/api/{path}")


def test_the_page_shows_what_the_json_says(browser: Any, gateway: Serving) -> None:
    """Totals, endpoints, requests, budgets and plan are the same figures, and every chart is also a table."""
    with opened(browser, gateway, "dashboard") as visit:
        show(visit)
        overview, budgets, plan = (told(visit, path) for path in ("overview", "budgets", "plan"))
        totals = overview["totals"]
        tiles = visit.page.evaluate(TILES)
        assert (tiles["Requests"], totals["requests"]) == ("3", 3)
        assert tiles["Raced"] == str(totals["raced"])
        assert tiles["Migrations"] == str(totals["migrations"] - totals["rescues"]) == "1"
        assert tiles["Tokens"] == str(totals["prompt_tokens"] + totals["completion_tokens"])
        rows = {row[0]: row[1:] for row in visit.page.evaluate(ROWS, "#endpoints")}
        for each in overview["endpoints"]:
            counted = [each[name] for name in ("attempts", "wins", "lost", "failed", "migrated_from")]
            assert rows[each["endpoint"]][:6] == [each["kind"], *map(str, counted)]
        assert len(rows) == len(overview["endpoints"]) == 3
        listed = visit.page.evaluate(ROWS, "#requests")
        assert [row[0] for row in listed] == [each.request_id[:8] for each in (FAILED, RESCUED, MOVED)]
        assert [row[5] for row in listed] == ["\u2013", "rescue", "cost"]
        assert visit.texts("#budgets h3")[0].startswith(budgets["budgets"][0]["name"] + " ")
        assert f"Policy {plan['policy']}" in visit.texts("#plan-basis")[0]
        assert {row[0] for row in visit.page.evaluate(ROWS, "#profiles")} == {"laptop", "cloud"}
        visit.page.locator("#outcomes summary").click()
        visit.page.locator("#outcomes .figures td").first.wait_for()
        over_time = visit.page.evaluate(ROWS, "#outcomes .figures")
        assert [int(row[1]) for row in over_time] == overview["over_time"]["requests"]
        assert len(visit.texts(".chart canvas")) == len(visit.texts(".chart")) == 6


def test_a_requests_page_has_all_of_it(browser: Any, gateway: Serving) -> None:
    """From the list to the request: its attempts, its seam and why it moved; an unknown one is said to be."""
    with opened(browser, gateway, "dashboard") as visit:
        show(visit)
        visit.page.get_by_role("link", name=MOVED.request_id[:8]).click()
        visit.page.locator("#stories article").wait_for()
        assert MOVED.request_id in visit.texts("#stories h2")[0]
        assert visit.texts("#stories .bars .who")[:5] == ["laptop", "cloud", "cloud", "spare", "answer"]
        assert "laptop to cloud after 10 tokens" in visit.texts("#stories .moves")[0]
        assert "saves $0.0004" in visit.texts("#stories .moves .why")[0]
        attempts = visit.page.evaluate(ROWS, "#stories")
        assert [row[1] for row in attempts[:4]] == ["migrated from", "lost", "migrated to", "not started"]
        visit.page.goto(f"{visit.home}dashboard/request?id=nothing")
        visit.page.locator("#trouble", has_text="No request nothing").wait_for()
        visit.complaints.clear()  # of the 404


def test_a_live_request_is_seen_until_it_is_settled(browser: Any, gateway: Serving) -> None:
    """Its attempts appear as they run, then its seam; when it is settled, the list has it."""
    with opened(browser, gateway, "dashboard") as visit:
        show(visit)
        assert visit.page.locator("#live-empty").is_visible()
        asking = threading.Thread(target=ask, args=(gateway,))
        asking.start()
        visit.page.locator("#live .story .bar").first.wait_for()
        live = visit.page.locator("#live .story a").text_content()
        visit.page.locator("#live .sign.seam").first.wait_for()
        assert "cloud to laptop" in " ".join(visit.texts("#live .said"))
        visit.page.locator("#live-empty").wait_for()
        visit.page.locator("#requests a", has_text=live).wait_for()
        asking.join()


def test_requests_of_one_id_run_beside_each_other(browser: Any, gateway: Serving) -> None:
    """Clients may use an ID twice, even at once: each such request keeps a timeline of its own."""
    with opened(browser, gateway, "dashboard") as visit:
        show(visit)
        with ThreadPoolExecutor(2) as clients:
            for _ in range(2):
                clients.submit(ask, gateway, "the-same")
            visit.page.locator("#live .story").nth(1).wait_for()
            before = visit.page.locator("#live .about").first.text_content()
            changed = "(before) => document.querySelector('#live .about').textContent !== before"
            visit.page.wait_for_function(changed, arg=before)
            assert [text.split(";")[0] for text in visit.texts("#live .about")] == ["offsets", "offsets"]


def ask(gateway: Serving, request_id: str = "") -> None:
    body = b'{"messages": [{"role": "user", "content": "Count."}]}'
    headers = {"Content-Type": "application/json", "x-request-id": request_id}
    asked = urllib.request.Request(f"{gateway.base_url}/chat/completions", body, headers)
    urllib.request.urlopen(asked).read()


def test_what_is_chosen_stands_in_the_address(browser: Any, gateway: Serving) -> None:
    """Range and filters survive a reload, Back undoes one, and what fits nothing is said in words."""
    with opened(browser, gateway, "dashboard") as visit:
        show(visit)
        visit.page.get_by_label("24 h").check()
        visit.page.get_by_label("Outcome").select_option("failed")
        visit.page.wait_for_function("() => document.querySelectorAll('#requests tbody tr').length === 1")
        visit.page.reload()
        show(visit)
        assert visit.page.get_by_label("24 h").is_checked()
        assert visit.page.get_by_label("Outcome").input_value() == "failed"
        assert visit.page.evaluate(TILES)["Requests"] == "1"
        visit.page.get_by_label("Policy").select_option("optimal")
        visit.page.locator("#empty", has_text="No request in the last 24 h fits the filters").wait_for()
        visit.page.go_back()
        visit.page.wait_for_function("() => document.querySelector('#empty').hidden")
        assert visit.page.get_by_label("Policy").input_value() == ""


def test_a_range_that_is_none_is_said_in_words(browser: Any, gateway: Serving) -> None:
    """What the gateway says of it is shown, with the name, the value and the fix."""
    with opened(browser, gateway, "dashboard?since=yesterday") as visit:
        visit.page.locator("#trouble", has_text="yesterday").wait_for()
        assert "since" in visit.texts("#trouble")[0]
        visit.complaints.clear()  # of the 400


def test_the_list_has_no_holes(browser: Any, tmp_path: Path) -> None:
    """Who has asked for older requests sees newer ones come, and none of those between them go."""
    now = time.time()
    ledger = tmp_path / "ledger.db"
    recorded(ledger, [(now - 600 + n, replace(MOVED, request_id=f"{n:08}")) for n in range(110)])
    with visiting(browser, written(tmp_path, SLOW_PAIR, gateway=""), path="dashboard") as visit:
        show(visit)
        visit.page.get_by_role("button", name="Show older").click()
        visit.page.wait_for_function("() => document.querySelectorAll('#requests tbody tr').length === 100")
        recorded(ledger, [(now - 400 + n, replace(MOVED, request_id=f"{110 + n:08}")) for n in range(20)])
        for name in ("Pause", "Pause"):  # and on again, which looks anew
            visit.page.get_by_role("button", name=name).click()
        visit.page.locator("#requests a", has_text="00000129").wait_for()
        listed = [int(row[0]) for row in visit.page.evaluate(ROWS, "#requests")]
        assert listed == list(range(129, 29, -1))
        visit.page.get_by_role("button", name="Show older").click()
        visit.page.locator("#requests a", has_text="00000000").wait_for()
        assert visit.page.locator("#older").is_hidden()


def test_where_nothing_was_answered_it_is_said(browser: Any, tmp_path: Path) -> None:
    """With failures alone, the charts of TTFT say so in sentences; others tell how wide their parts are."""
    recorded(tmp_path / "ledger.db", [(time.time() - 60, FAILED)])
    with visiting(browser, written(tmp_path, SLOW_PAIR, gateway=""), path="dashboard") as visit:
        show(visit, "?since=15m")
        assert visit.texts("#ttft .said, #cdf .said") == ["Nothing was answered."] * 2
        assert visit.texts("#outcomes .said")[0].startswith("1 request, per 10 s: 0 ok, 1 failed")


def test_an_answer_that_breaks_off_is_asked_for_again(browser: Any, gateway: Serving) -> None:
    """The page says so, goes on looking, and takes it back."""
    broken = iter((True,))
    with opened(browser, gateway, "dashboard") as visit:
        show(visit)

        def live(route: Any) -> None:
            if next(broken, False):
                route.fulfill(status=200, content_type="application/json", body='{"now":')
            else:
                route.continue_()

        visit.page.route("**/dashboard/api/live", live)
        visit.page.locator("#trouble", has_text="broke off").wait_for()
        visit.page.locator("#trouble").wait_for(state="hidden")


def test_figures_are_told_with_fitting_words(browser: Any, gateway: Serving) -> None:
    """One of a thing is told in the singular, no part of a span is full, and axes begin and end at ticks."""
    say = "async ([name, ...values]) => (await import('/pages/format.js'))[name](...values)"
    told = {
        ("tokens", 1.3): "1 token",
        ("tokens", 0.6): "1 token",
        ("tokens", 0): "0 tokens",
        ("seconds", 0.9999): "1.00 s",
        ("seconds", 59.97): "1 min",
        ("seconds", 119.7): "2 min",
        ("seconds", 3599.8): "1 h",
        ("seconds", 86399.9): "1 d",
        ("seconds", 93_600): "1 d 2 h",
        ("when", "2020-03-01T12:00"): "1 Mar 2020 12:00",
        ("below", 0.279): "0.2",
        ("above", 0.284): "0.5",
        ("above", 0.5): "0.5",
        ("below", 1000): "1000",
        ("tick", 1_583_064_000, 86_400): "1 Mar",
        ("tick", 1_583_064_000, 60 * 86_400): "Mar 2020",
    }
    with opened(browser, gateway, "dashboard") as visit:
        show(visit)
        assert {each: str(visit.page.evaluate(say, each)).replace("\u00a0", " ") for each in told} == told


def test_every_control_is_reached_by_keyboard_and_has_a_name(browser: Any, gateway: Serving) -> None:
    """Tab goes from the top in reading order; headings come in order; tables tell what their cells are of."""
    with opened(browser, gateway, "dashboard") as visit:
        show(visit)
        reached = visit.tab_through(8)
        assert reached[:3] == ["a Skip to the figu", "a Playground", "a Dashboard"]
        assert reached[-1] == "pause"
        assert visit.page.evaluate(NAMELESS) == []
        levels = visit.page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => +h.tagName[1])")
        assert levels[0] == 1
        assert all(level - before <= 1 for before, level in pairwise(levels))
        assert visit.page.evaluate(BARE) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_legibly(browser: Any, scheme: str, gateway: Serving) -> None:
    """Nothing is wider than the screen, nothing moves, and no text is fainter than WCAG asks for."""
    wishes = {"viewport": PHONE, "color_scheme": scheme, "reduced_motion": "reduce"}
    with opened(browser, gateway, "dashboard", **wishes) as visit:
        show(visit)
        for path in ("dashboard", f"dashboard/request?id={RESCUED.request_id}", ""):
            visit.page.goto(visit.home + path)
            visit.page.locator({"d": ".scrolls", "": "#legend .token"}[path[:1]]).first.wait_for()
            found = visit.page.evaluate(FAINT)
            assert found["faint"] == [], path
            assert found["seen"] > 15
            assert visit.page.evaluate(NARROW), path
            assert visit.page.evaluate("document.getAnimations().length") == 0


def test_scripts_that_are_not_the_pages_own_do_not_run(browser: Any, gateway: Serving) -> None:
    """An inline script that gets into the page is stopped by its policy, and the browser says so."""
    inject = """() => {
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
      return window.ran === undefined;
    }"""
    with opened(browser, gateway, "dashboard") as visit:
        show(visit)
        assert visit.page.evaluate(inject)
        (complaint,) = visit.complaints
        assert "Content Security Policy" in complaint
        visit.complaints.clear()


def test_one_key_serves_both_pages(browser: Any, tmp_path: Path) -> None:
    """It is asked for where it is missing, and kept for the tab: the playground then has it, too."""
    config = written(tmp_path, SLOW_PAIR, gateway='api_key_env = "GATEWAY_KEY"')
    with visiting(browser, config, {"GATEWAY_KEY": "right"}, path="dashboard") as visit:
        visit.page.locator("#trouble", has_text="Enter it on this page").wait_for()
        visit.page.get_by_label("Gateway key").fill("right")
        visit.page.keyboard.press("Enter")
        show(visit)
        assert visit.page.locator("#trouble").is_hidden()
        assert visit.texts("#empty")[0].startswith("No requests in the last 1 h; widen the range")
        assert all("401" in complaint for complaint in visit.complaints)
        visit.complaints.clear()
        visit.page.get_by_role("link", name="Playground").click()
        visit.page.locator("#legend .token").first.wait_for()


def test_a_gateway_that_is_gone_is_said_to_be(browser: Any, tmp_path: Path) -> None:
    """The figures stay, and the page says what to do."""
    with visiting(browser, written(tmp_path, SLOW_PAIR, gateway=""), path="dashboard") as visit:
        show(visit)
        visit.serving.process.kill()
        visit.page.locator("#trouble", has_text="disco serve").wait_for()
        assert visit.page.evaluate(TILES)["Requests"] == "0"
        visit.complaints.clear()  # of the refused connections


def test_a_hundred_thousand_requests_are_shown_soon(browser: Any, tmp_path: Path) -> None:
    """From navigation to figures in far less than it would take to wonder; the last hour and all of it."""
    crowd(tmp_path / "ledger.db", MANY)
    with visiting(browser, written(tmp_path, SLOW_PAIR, gateway=""), path="dashboard") as visit:
        for query in ("?since=1h", "?since=all"):
            show(visit, query)
            shown_ms = visit.page.evaluate("performance.getEntriesByName('figures-shown')[0].startTime")
            assert shown_ms < 1000 * WITHIN_S, query
        assert visit.page.evaluate(TILES)["Requests"] == f"{MANY:,}"


def crowd(path: Path, many: int) -> None:
    """As many requests, one every 26 s up to now (30 days), copies of a hundred that differ."""
    outcomes = [
        replace(each, ttft_s=(0.2 + n / 100) if each.ttft_s else None)
        for n, each in enumerate([MOVED, RESCUED, FAILED, MOVED] * 25)
    ]
    started = time.time() - 26 * many
    recorded(path, [(started + 26 * n, outcome) for n, outcome in enumerate(outcomes)])
    ago = f"((id + 100 * n - {many}) * 26) || ' seconds'"
    anew = {
        "request_id": "printf('%08x', id + 100 * n)",
        "recorded_at": f"strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', {ago})",
    }
    with closing(sqlite3.connect(path)) as ledger, ledger:
        ledger.execute("CREATE TEMP TABLE copies (n)")
        ledger.executemany("INSERT INTO copies VALUES (?)", [(n,) for n in range(1, many // 100)])
        for table, key in (("request", "id"), ("attempt", "request"), ("migration", "request")):
            rest = [row[1] for row in ledger.execute(f"PRAGMA table_info({table})") if row[1] != key]
            told = [anew.get(name, name) for name in rest]
            ledger.execute(
                f"INSERT INTO {table} ({key}, {', '.join(rest)}) "
                f"SELECT {key} + 100 * n, {', '.join(told)} FROM copies CROSS JOIN {table}"
            )
