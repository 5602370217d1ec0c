"""Pictures of the playground and the dashboard, by Chromium and Playwright.

    python benchmarks/pictures.py docs

draws those of the README and the documentation: on a desktop and on a phone, in light and in dark, smaller
where Pillow is installed. The playground's show the embedded pair at work. The dashboard's show a gateway
whose server has the delays and failures of a recorded service around a scripted text: it answers for two
minutes, which are then spread over an hour of the ledger, and is drawn while it answers more.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

EMBEDDED = """
[policy]
name = "offsets"
offsets = { server = 0.0, device = 0.3 }
"""
BUSY = """
[[endpoint]]
name = "laptop"
kind = "device"
dialect = "scripted"
model = "small"
answer = "WORDS"
ttft_s = 0.15
prefill_s_per_token = 0.003
tbt_s = 0.03
slots = 4
prefill_joules_per_token = 0.04
decode_joules_per_token = 0.35

[[endpoint]]
name = "cloud"
kind = "server"
dialect = "emulated"
model = "big"
around = "scripted"
inner = { answer = "WORDS" }
ttft = "gpt-4o"
tokens_per_s = 40.0
refuse_rate = 0.03
break_rate = 0.1
break_after_tokens = 25
prompt_usd_per_mtok = 2.5
completion_usd_per_mtok = 10.0
cancel_stops_billing = true

[policy]
name = "optimal"

[[budget]]
name = "cloud"
usd = 5.00
per = "hour"

[[budget]]
name = "battery"
joules = 300000
per = "hour"
"""
PROMPT = "Explain to a ten-year-old what lighthouse keepers did, and why their weather books still matter."
WORDS = " ".join(f"word{n}" for n in range(200))

BUSY_S, CLIENTS, SPREAD_S = 120.0, 8, 3600.0
"""How long requests are answered and by how many clients they are sent, and over how long they are spread."""

VIEWS = {
    "": ("desktop", "light"),
    "-dark": ("desktop", "dark"),
    "-phone": ("phone", "light"),
    "-phone-dark": ("phone", "dark"),
}
SIZES = {
    "playground": {"desktop": (1180, 860), "phone": (390, 844)},
    "dashboard": {"desktop": (1180, 1260), "phone": (390, 844)},
}


@contextmanager
def serving(settings: str, folder: Path) -> Iterator[str]:
    """A gateway with these settings, whose ledger is in a folder; where it is."""
    config = folder / "disco.toml"
    config.write_text(
        f'{settings}\n[ledger]\npath = "{(folder / "ledger.db").as_posix()}"\n', encoding="utf-8"
    )
    command = [sys.executable, "-m", "discostream", "serve", "--config", str(config), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        told = next(line for line in process.stderr if line.startswith("Serving "))
        yield told.split()[1].removesuffix("v1")
        process.terminate()


def draw_playground(page: Any, url: str) -> None:
    """The playground, with a whole answer that changed hands and is being read."""
    page.goto(url)
    page.evaluate("document.querySelector('#max-tokens').value = 110")
    page.get_by_label("Prompt").fill(PROMPT)
    page.keyboard.press("Enter")
    page.locator("#status", has_text="Done").wait_for(timeout=120_000)
    while not page.locator(".text .seam").count():
        page.get_by_role("button", name="Regenerate").click()
        page.locator("#status", has_text="Done").wait_for(timeout=120_000)


def draw_dashboard(page: Any, url: str) -> None:
    """The dashboard, with requests that run, one of which has moved."""
    page.goto(f"{url}dashboard")
    page.locator("#endpoints table").wait_for()
    page.locator("#live .sign.seam").first.wait_for(timeout=120_000)


def keep_asking(url: str, until_s: float, seed: int) -> None:
    """Prompts and answers of different lengths, one after the other; some clients leave before the end."""
    rng = random.Random(seed)
    while time.monotonic() < until_s:
        asked = {
            "messages": [{"role": "user", "content": words(rng, int(rng.lognormvariate(4.2, 0.9)))}],
            "max_tokens": rng.randint(20, 200),
            "stream": True,
        }
        request = urllib.request.Request(
            f"{url}v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                answer.read(2000 if rng.random() < 0.05 else None)
        except urllib.error.URLError:
            pass  # the dashboard shows it
        time.sleep(rng.expovariate(1.0))


def words(rng: random.Random, many: int) -> str:
    """A prompt that nobody has read before."""
    return " ".join(f"word{rng.randrange(100_000)}" for _ in range(1 + many))


def busy(url: str, for_s: float) -> ThreadPoolExecutor:
    """Clients that ask for so long; waited for where they are shut down."""
    clients = ThreadPoolExecutor(CLIENTS)
    for seed in range(CLIENTS):
        clients.submit(keep_asking, url, time.monotonic() + for_s, seed)
    return clients


def spread(path: Path) -> None:
    """Stretch the ledger's times, so that its requests end now and began an hour ago."""
    with closing(sqlite3.connect(path)) as ledger, ledger:
        first, last = ledger.execute(
            "SELECT min(julianday(recorded_at)), max(julianday(recorded_at)) FROM request"
        ).fetchone()
        ledger.execute(
            "UPDATE request SET recorded_at = strftime('%Y-%m-%dT%H:%M:%fZ', "
            "julianday('now') - (? - julianday(recorded_at)) * ?)",
            (last, 0.98 * SPREAD_S / 86400 / (last - first)),
        )


def take(browser: Any, url: str, name: str, drawn: Callable[[Any, str], None], folder: Path) -> None:
    """All views of one page."""
    for suffix, (size, scheme) in VIEWS.items():
        width, height = SIZES[name][size]
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        drawn(page, url)
        page.screenshot(path=folder / f"{name}{suffix}.png")
        page.close()
        shrink(folder / f"{name}{suffix}.png")


def shrink(path: Path) -> None:
    """Write a picture anew in 256 colours, which it hardly shows."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Draw everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to put them")
    parser.add_argument("--only", choices=SIZES, help="one of the two pages")
    asked = parser.parse_args()
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        if asked.only != "dashboard":
            with tempfile.TemporaryDirectory() as name, serving(EMBEDDED, Path(name)) as url:
                take(browser, url, "playground", draw_playground, asked.folder)
        if asked.only != "playground":
            dashboard(browser, asked.folder)
        browser.close()


def dashboard(browser: Any, folder: Path) -> None:
    """Fill a ledger, and draw while more requests run."""
    settings = BUSY.replace("WORDS", WORDS)
    with tempfile.TemporaryDirectory() as name:
        with serving(settings, Path(name)) as url:
            busy(url, BUSY_S).shutdown()
        spread(Path(name) / "ledger.db")
        with serving(settings, Path(name)) as url:
            clients = busy(url, 60.0)
            take(browser, url, "dashboard", draw_dashboard, folder)
            clients.shutdown()


if __name__ == "__main__":
    main()
