"""`disco top`: one look at the ledger, and one after the other on a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ledgers import FAILED, MOVED, RESCUED, write_ledger
from processes import disco, write_scripted_pair

from discostream.ledger.store import Ledger

BUDGETS = """
[[budget]]
name = "dollars"
usd = 0.008
per = "month"
mode = "hard"

[[budget]]
name = "energy"
joules = 3
per = "day"

[[budget]]
name = "half"
share = 0.5
of = "server"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings with budgets, and a ledger with three requests of a moment ago."""
    path = write_scripted_pair(tmp_path)
    path.write_text(path.read_text(encoding="utf-8") + BUDGETS, encoding="utf-8")
    now = time.time()
    write_ledger(tmp_path / "ledger.db", [(now - 7200, FAILED), (now - 0.002, RESCUED), (now - 0.001, MOVED)])
    return path


def look(folder: Path, *arguments: str) -> str:
    done = disco("top", *arguments, folder=folder, COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_one_look_as_json_adds_up(config):
    """What came of the window, what was spent of each budget in its own, and the latest of all."""
    told = json.loads(look(config.parent, "--json", "--window", "1h"))
    assert (told["requests"], told["failed"], told["cancelled"]) == (2, 0, 0)
    assert (told["window_s"], told["requests_per_minute"]) == (3600.0, pytest.approx(2 / 60))
    assert told["ttft_s"] == {"p50": 0.5, "p99": pytest.approx(0.745)}
    assert (told["migrations"], told["rescues"]) == (2, 1)
    assert (told["usd"], told["joules"]) == (pytest.approx(0.006), 3.5)
    assert {row["endpoint"]: (row["attempts"], row["wins"], row["lost"]) for row in told["endpoints"]} == {
        "cloud": (2, 0, 1),
        "laptop": (2, 2, 0),
        "spare": (1, 0, 0),
    }
    assert {row["name"]: row["spent"] for row in told["budgets"]} == {
        "dollars": pytest.approx(0.006),
        "energy": 3.5,
        "half": pytest.approx(34 / 24),
    }
    assert [row["request_id"] for row in told["latest"]] == [
        MOVED.request_id,
        RESCUED.request_id,
        FAILED.request_id,
    ]


def test_a_wider_window_has_more(config):
    """What was settled two hours ago is in a window of three."""
    told = json.loads(look(config.parent, "--json", "--window", "3h"))
    assert (told["requests"], told["failed"]) == (3, 1)


def test_without_a_terminal_there_is_one_look(config):
    """The same figures as text, in 80 columns; an overspent budget says so."""
    shown = look(config.parent)
    assert shown == look(config.parent, "--once")


def test_an_empty_ledger_has_nothing_to_show(tmp_path):
    """Before the first request there are zeros, and no tables."""
    Ledger(tmp_path / "ledger.db").close()
    write_scripted_pair(tmp_path)
    begun = [line.split()[0] for line in look(tmp_path).splitlines()]
    assert begun == ["disco", "requests", "races", "spent"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--window", "soon"], "--window 'soon': must be a span above 0, such as 90s, 15m, 2h or 7d"),
        (["--ledger", "nowhere.db"], "ledger.path = 'nowhere.db': no ledger yet"),
    ],
)
def test_what_cannot_be_is_refused(config, arguments, told):
    """One line that names the option and the way out, and status 2."""
    done = disco("top", *arguments, folder=config.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"disco: {told}")


def test_it_follows_the_ledger_until_ctrl_c(config):
    """On a terminal, what is settled while it runs is seen; Ctrl-C gives the screen back, with status 0."""
    pty = pytest.importorskip("pty", reason="needs a POSIX terminal")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "discostream", "top"],
        cwd=config.parent,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "100", "LINES": "40", "TERM": "xterm"},
    )
    os.close(theirs)
    try:
        before = read_until(ours, lambda screen: "5eed0002" in screen)
        write_ledger(config.parent / "ledger.db", [(time.time(), replace(MOVED, request_id="1a7e0000"))])
        read_until(ours, lambda screen: "1a7e0000" in screen)
        process.send_signal(signal.SIGINT)
        after = read_until(ours, lambda screen: "\x1b[?1049l" in screen)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "\x1b[?1049h" in before
    assert "Traceback" not in after


def read_until(terminal: int, seen: Callable[[str], bool]) -> str:
    """What the screen is sent, up to what is waited for."""
    screen = b""
    while not seen(screen.decode(errors="replace")):
        screen += os.read(terminal, 65536)
    return screen.decode(errors="replace")
