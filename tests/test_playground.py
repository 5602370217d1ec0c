"""The playground in a real browser: Debian's Chromium, driven by Playwright, on a running gateway."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from browsing import IN_A_BROWSER, NAMELESS, PAIR, PHONE, WORDS, pair, visiting, written

from discostream.ledger.queries import find, recent

pytestmark = IN_A_BROWSER

EMBEDDED = """
[policy]
name = "offsets"
offsets = {{ server = 0.0 }}

[migration]
consumption_tokens_per_s = 1.0

[ledger]
path = "{folder}/ledger.db"
"""


def test_an_answer_shows_who_made_it(browser: Any, tmp_path: Path) -> None:
    """Both colours, one seam with its reason, the race, the handoff's why, and what it saved."""
    with visiting(browser, pair(tmp_path)) as visit:
        visit.ask()
        visit.page.locator(".bars .racing").first.wait_for()
        visit.wait_until_done()
        shown = "".join(visit.texts(".text .token"))
        assert shown == WORDS
        assert visit.texts(".text .token.e1")
        assert visit.texts(".text .token.e0")
        (seam,) = visit.texts(".text .seam")
        assert re.match(r"‖ laptop, to save cost, gap \d+ ms", seam)
        assert visit.texts(".bars .who") == ["cloud", "laptop", "laptop"]
        (moved,) = visit.texts(".moves li")
        assert "cloud to laptop" in moved
        assert "saves $" in moved
        rows = dict(zip(visit.texts(".cost dt"), visit.texts(".cost dd"), strict=False))
        assert set(rows) == {"This answer", "Server only"}
        assert float(rows["Server only"].split()[0].strip("$")) > float(
            rows["This answer"].split()[0].strip("$")
        )
        assert "unread" in visit.texts(".unread")[0]


def test_an_answer_is_stopped_and_asked_for_anew(browser: Any, tmp_path: Path) -> None:
    """Escape stops in mid-answer, which cancels the attempts; regenerating replaces what there was."""
    with visiting(browser, pair(tmp_path, cloud="", laptop="")) as visit:
        visit.ask()
        visit.page.locator(".text .token").nth(3).wait_for()
        visit.page.keyboard.press("Escape")
        visit.page.get_by_text("Stopped.").first.wait_for()
        assert 4 <= len(visit.texts(".text .token")) < 60
        visit.page.get_by_role("button", name="Regenerate").click()
        visit.wait_until_done()
        assert len(visit.texts(".answer")) == 1
        assert "".join(visit.texts(".text .token")) == WORDS


def test_every_control_is_reached_by_keyboard(browser: Any, tmp_path: Path) -> None:
    """Tab goes through all of them in reading order, and each shows that it has the focus."""
    with visiting(browser, pair(tmp_path)) as visit:
        reached = visit.tab_through(16)
    settings = ["model", "policy", "summary All prompts alik", "max-tokens", "as-curl", "as-python", "clear"]
    examples = ["button Why is the sky b", "button Tell me how brea", "button Explain to a ten"]
    top = ["a Skip to the prom", "a Playground", "a Dashboard", "summary Settings"]
    assert reached[:16] == [*top, *settings, *examples, "prompt", "send"]


def test_every_control_has_a_name(browser: Any, tmp_path: Path) -> None:
    """A screen reader has something to say for each."""
    with visiting(browser, pair(tmp_path)) as visit:
        assert visit.page.evaluate(NAMELESS) == []


def test_the_key_is_asked_for_and_kept_in_the_tab(browser: Any, tmp_path: Path) -> None:
    """Without it the page says what to do; with it all works, and nothing outlives the tab."""
    config = pair(tmp_path, gateway='api_key_env = "GATEWAY_KEY"')
    with visiting(browser, config, {"GATEWAY_KEY": "right"}) as visit:
        assert "Enter it on this page" in visit.texts("#status")[0]
        visit.page.get_by_label("Gateway key").fill("right")
        visit.page.keyboard.press("Enter")
        visit.page.locator("#legend .token").first.wait_for()
        visit.ask()
        visit.wait_until_done()
        assert visit.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        visit.page.get_by_role("button", name="Copy as curl").click()
        assert "right" not in visit.page.locator("#code-text").input_value()
        assert all("401" in complaint for complaint in visit.complaints)
        visit.complaints.clear()


def test_errors_are_words(browser: Any, tmp_path: Path) -> None:
    """An endpoint that refuses, and a gateway that is gone, are told with what to do about it."""
    with visiting(
        browser, pair(tmp_path, laptop='refuses = "no"', cloud='refuses = "out of order"')
    ) as visit:
        visit.ask()
        visit.page.locator(".trouble").first.wait_for()
        assert "out of order" in visit.texts(".trouble")[0]
        assert "disco doctor" in visit.texts(".trouble")[0]
        visit.serving.process.kill()
        visit.serving.process.wait()
        visit.ask("Again.")
        visit.page.locator(".trouble").nth(1).wait_for()
        assert "disco serve" in visit.texts(".trouble")[1]
        visit.complaints.clear()  # the browser itself complains of the refused connection


def test_copies_are_what_was_asked(browser: Any, tmp_path: Path) -> None:
    """curl's body is the request, quotes and all, and the Python program compiles and holds the same."""
    prompt = 'It\'s "quoted", with a \\ and $HOME'
    with visiting(browser, pair(tmp_path)) as visit:
        visit.page.get_by_label("Policy").select_option("server-only")
        visit.page.get_by_label("Prompt").fill(prompt)
        visit.page.get_by_role("button", name="Copy as curl").click()
        curl = shlex.split(visit.page.locator("#code-text").input_value())
        visit.page.get_by_role("button", name="Close").click()
        visit.page.get_by_role("button", name="Copy as Python").click()
        program = visit.page.locator("#code-text").input_value()
    assert json.loads(curl[-1])["messages"] == [{"role": "user", "content": prompt}]
    assert "x-disco-policy: server-only" in curl
    (call,) = [
        node
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and node.keywords[0].arg == "model"
    ]
    told = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert told["messages"] == [{"role": "user", "content": prompt}]
    assert told["extra_headers"] == {"x-disco-policy": "server-only"}


SHARED = PAIR.replace('name = "offsets"', 'constraint = "server"\nshare = 0.0').replace(
    "offsets = {{ cloud = 0.0, laptop = 0.2 }}", ""
)


def test_the_share_changes_the_plan_and_the_next_answer(browser: Any, tmp_path: Path) -> None:
    """The slider's plan is drawn and told, requests go by it and by it alone, and it can be given back."""
    config = written(tmp_path, SHARED, words=WORDS, laptop="", cloud="", gateway="")
    with visiting(browser, config) as visit:
        page, slider = visit.page, visit.page.get_by_label("Share")
        page.get_by_label("Prompt").fill("Count to ten.")
        assert (
            page.locator("#share-said").text_content() == "As set: 0 % of prompt tokens may go to the server."
        )
        assert slider.input_value() == "0"
        alone = "A prompt of about 3 tokens: laptop at once, cloud stands by."
        assert visit.texts(".plan-here") == [alone]
        slider.focus()
        page.keyboard.press("End")
        assert slider.get_attribute("aria-valuetext") == "100 % of prompt tokens may go to the server."
        both = "A prompt of about 3 tokens: laptop and cloud at once."
        page.locator(".plan-here", has_text="laptop and cloud at once").wait_for()
        assert visit.texts(".plan-here") == visit.texts("#plan-said") == [both]
        assert visit.texts(".plan-rows [aria-current]") == ["Any length: laptop and cloud at once."]
        page.get_by_role("button", name="Copy as curl").click()
        assert "x-disco-share: 1" in shlex.split(page.locator("#code-text").input_value())
        page.get_by_role("button", name="Close").click()
        page.get_by_label("Prompt").press("Enter")
        visit.wait_until_done()
        page.get_by_role("button", name="As set").click()
        page.locator(".plan-here", has_text="cloud stands by").wait_for()
        assert visit.page.evaluate("document.activeElement.id") == "share"
        page.get_by_role("button", name="Regenerate").click()
        page.locator("#status", has_text="Waiting").wait_for()
        visit.wait_until_done()
    as_set, asked = (
        find(tmp_path / "ledger.db", each.request_id)[0] for each in recent(tmp_path / "ledger.db")
    )
    assert {(each.endpoint, round(each.start_offset_s, 1)) for each in asked.attempts} == {
        ("laptop", 0.0),
        ("cloud", 0.0),
    }
    assert [each.endpoint for each in as_set.attempts if each.ran_s] == ["laptop"]


def test_a_share_that_would_change_nothing_cannot_be_set(browser: Any, tmp_path: Path) -> None:
    """Policies and models without use for one disable the slider, and say why; others bring it back."""
    with visiting(browser, pair(tmp_path)) as visit:
        slider, said = visit.page.get_by_label("Share"), visit.page.locator("#share-said")
        assert slider.is_disabled()
        assert said.text_content() == "Policy offsets starts whom it names, whatever the share."
        visit.page.get_by_label("Policy").select_option("stochastic")
        assert slider.is_enabled()
        slider.focus()
        visit.page.keyboard.press("PageUp")
        visit.page.locator(".plan-here", has_text="% of them").wait_for()
        for model, why in (
            ("cloud", "Model cloud names who answers"),
            ("disco-private", "A private request stays on the device"),
        ):
            visit.page.get_by_label("Model").select_option(model)
            assert slider.is_disabled()
            assert said.text_content().startswith(why)
            assert visit.page.locator("#plan").is_hidden()
        visit.page.get_by_role("button", name="Copy as Python").click()
        assert "x-disco-share" not in visit.page.locator("#code-text").input_value()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser: Any, scheme: str, tmp_path: Path) -> None:
    """Nothing is wider than the screen, nothing moves for those who want calm, and dark is dark."""
    wishes = {"viewport": PHONE, "color_scheme": scheme, "reduced_motion": "reduce"}
    with visiting(browser, pair(tmp_path), **wishes) as visit:
        visit.ask("x" * 200)
        visit.page.locator(".bars .bar").first.wait_for()
        moving = "document.getAnimations().length"
        assert visit.page.evaluate(moving) == 0
        visit.wait_until_done()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        visit.page.evaluate("new Promise(requestAnimationFrame)")
        below = "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight)"
        assert visit.page.evaluate(f"{below}(document.documentElement)") < 80  # its end is in sight
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        shade = sum(int(part) for part in re.findall(r"\d+", ground)) / 3
        assert (shade < 60) == (scheme == "dark")


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2_path")
def test_the_embedded_pair_is_seen_at_work(browser: Any, tmp_path: Path) -> None:
    """The real engine: an answer in two colours, one that is stopped, a plan by share, a request's page."""
    with visiting(browser, written(tmp_path, EMBEDDED)) as visit:
        page = visit.page
        ready = "async () => Object.values((await (await fetch('/ready')).json()).endpoints)"
        while set(page.evaluate(ready)) != {"ready"}:
            page.wait_for_timeout(200)
        visit.complaints.clear()  # of the 503 until then
        visit.ask("Tell me how bread is made, from the grain to the loaf.")
        visit.wait_until_done()
        assert visit.texts(".text .token.e1")
        assert visit.texts(".text .token.e0"), visit.texts(".moves")
        assert visit.texts(".text .seam")[0].startswith("‖ device, to save cost")

        visit.ask("And how is flour made?")
        page.locator(".answer").nth(1).locator(".text .token").nth(3).wait_for()
        page.keyboard.press("Escape")
        page.get_by_text("Stopped.").first.wait_for()

        page.get_by_label("Policy").select_option("disco")
        page.get_by_label("Prompt").fill("Why is bread brown? " * 40)
        page.get_by_label("Share").focus()
        page.keyboard.press("End")
        page.locator(".plan-here", has_text="device and server at once").wait_for()
        page.keyboard.press("Home")
        page.locator(".plan-here", has_not_text="device and server at once").wait_for()

        page.get_by_role("link", name="Dashboard").click()
        listed = page.locator("#requests tbody tr")
        listed.nth(1).wait_for()
        outcomes = visit.texts("#requests tbody tr td:nth-child(4)")
        assert [outcome.strip() for outcome in outcomes] == ["cancelled", "ok"]
        listed.nth(1).get_by_role("link").click()
        page.locator("#stories article").wait_for()
        assert "server to device" in visit.texts("#stories .moves")[0]
