"""Pictures of the playground with the embedded pair at work, by Chromium and Playwright.

    python benchmarks/pictures.py docs

writes `playground.png`, the one in the README; `--all` adds the same for phones and in the dark.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

SETTINGS = """
[policy]
name = "offsets"
offsets = {{ server = 0.0, device = 0.3 }}

[ledger]
path = "{folder}/ledger.db"
"""
PROMPT = "Explain to a ten-year-old what lighthouse keepers did, and why their weather books still matter."
DESKTOP, PHONE = {"width": 1180, "height": 860}, {"width": 390, "height": 844}
PICTURES = {
    "playground": (DESKTOP, "light"),
    "playground-dark": (DESKTOP, "dark"),
    "playground-phone": (PHONE, "light"),
    "playground-phone-dark": (PHONE, "dark"),
}


@contextmanager
def serving() -> Iterator[str]:
    """A gateway with the embedded pair; where it is."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "disco.toml"
        config.write_text(SETTINGS.format(folder=Path(folder).as_posix()), encoding="utf-8")
        command = [sys.executable, "-m", "discostream", "serve", "--config", str(config), "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            told = next(line for line in process.stderr if line.startswith("Serving "))
            yield told.split()[1].removesuffix("v1")
            process.terminate()


def draw(browser: Any, url: str, size: dict[str, int], scheme: str, path: Path) -> None:
    """One picture, of a whole answer that changed hands, and is being read."""
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(url)
    page.evaluate("document.querySelector('#max-tokens').value = 110")
    page.get_by_label("Prompt").fill(PROMPT)
    page.keyboard.press("Enter")
    page.locator("#status", has_text="Done").wait_for(timeout=120_000)
    while not page.locator(".text .seam").count():
        page.get_by_role("button", name="Regenerate").click()
        page.locator("#status", has_text="Done").wait_for(timeout=120_000)
    page.screenshot(path=path)
    page.close()


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to put them")
    parser.add_argument("--all", action="store_true", help="also for phones, and in the dark")
    asked = parser.parse_args()
    pictures = PICTURES if asked.all else {"playground": PICTURES["playground"]}
    with serving() as url, sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (size, scheme) in pictures.items():
            draw(browser, url, size, scheme, asked.folder / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
