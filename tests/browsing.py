"""The gateway's pages in a real browser: Debian's Chromium, driven by Playwright, on a running gateway."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from processes import Serving, disco_serve

CHROMIUM = shutil.which("chromium")
IN_A_BROWSER = [
    pytest.mark.alone,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; on Debian: apt install chromium"),
]
"""The marks of a module that uses `browser`."""

WORDS = " ".join(f"word{n}" for n in range(60))
PAIR = """
[[endpoint]]
name = "laptop"
kind = "device"
dialect = "scripted"
model = "small"
answer = "{words}"
ttft_s = 0.2
tbt_s = 0.02
prefill_joules_per_token = 0.1
decode_joules_per_token = 0.5
{laptop}

[[endpoint]]
name = "cloud"
kind = "server"
dialect = "scripted"
model = "big"
answer = "{words}"
ttft_s = 0.3
tbt_s = 0.02
prompt_usd_per_mtok = 2.5
completion_usd_per_mtok = 9.0
{cloud}

[policy]
name = "offsets"
offsets = {{ cloud = 0.0, laptop = 0.2 }}

[ledger]
path = "{folder}/ledger.db"

[gateway]
{gateway}
"""
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 860}

REACHED = """() => {
  const {id, tagName, textContent} = document.activeElement;
  return id || `${tagName.toLowerCase()} ${textContent.trim().slice(0, 16)}`;
}"""
"""What has the focus, in a few words."""


@dataclass
class Visit:
    """An open page, what it asked for, and what its console complained of."""

    page: Any
    serving: Serving
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def home(self) -> str:
        return self.serving.base_url.removesuffix("v1")

    def ask(self, prompt: str = "Count.") -> None:
        """On the playground."""
        self.page.get_by_label("Prompt").fill(prompt)
        self.page.keyboard.press("Enter")

    def wait_until_done(self) -> None:
        self.page.locator("#status", has_text="Done").wait_for()

    def texts(self, selector: str) -> list[str]:
        """What is said there, without the line-breaking rules of its spaces."""
        return [text.replace("\u00a0", " ") for text in self.page.locator(selector).all_text_contents()]

    def watch(self) -> None:
        page = self.page
        page.set_default_timeout(60_000)
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def tab_through(self, many: int) -> list[str]:
        """What Tab reaches from the top of the page on; each must show that it has the focus."""
        self.page.evaluate("document.activeElement.blur()")
        reached = []
        for _ in range(many):
            self.page.keyboard.press("Tab")
            reached.append(self.page.evaluate(REACHED))
            assert self.page.evaluate(SHOWS_FOCUS), reached[-1]
        return reached


SHOWS_FOCUS = """() => {
  const held = document.activeElement;
  const shown = held.type === "radio" ? held.nextElementSibling : held;
  return parseFloat(getComputedStyle(shown).outlineWidth) >= 2;
}"""

NAMELESS = """() => [...document.querySelectorAll("input, select, textarea")]
    .filter((one) => !one.labels.length && !one.getAttribute("aria-labelledby"))
    .map(({id, name}) => id || name)"""
"""Controls for which a screen reader has nothing to say."""


@contextmanager
def visiting(
    browser: Any, config: Path, environ: Mapping[str, str] = {}, *, path: str = "", **wishes: Any
) -> Iterator[Visit]:
    """A page of a gateway with these settings; whatever is done there, it loads from nowhere else."""
    with disco_serve(config, **environ) as serving, opened(browser, serving, path, **wishes) as visit:
        yield visit


@contextmanager
def opened(browser: Any, serving: Serving, path: str = "", **wishes: Any) -> Iterator[Visit]:
    """The same of a gateway that runs already."""
    context = browser.new_context(**{"viewport": DESKTOP, **wishes})
    visit = Visit(context.new_page(), serving)
    visit.watch()
    visit.page.goto(visit.home + path)
    if not path:
        visit.page.wait_for_load_state("networkidle")
    yield visit
    context.close()
    assert {url for url in visit.asked if not url.startswith((visit.home, "data:"))} == set()
    assert visit.complaints == []


def pair(folder: Path, *, laptop: str = "", cloud: str = "", gateway: str = "") -> Path:
    return written(folder, PAIR, words=WORDS, laptop=laptop, cloud=cloud, gateway=gateway)


def written(folder: Path, template: str, **parts: str) -> Path:
    config = folder / "disco.toml"
    config.write_text(template.format(folder=folder.as_posix(), **parts), encoding="utf-8")
    return config
