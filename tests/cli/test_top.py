"""`disco top`: one look at the ledger, and one after the other on a terminal."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ledgers import FAILED, MOVED, RESCUED, write_ledger
from processes import TIMEOUT_S, disco, write_scripted_pair

from discostream.cli.settled import top
from discostream.errors import ConfigError
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


def test_one_look_as_json_adds_up(config, capsys):
    """What came of the window, what was spent of each budget in its own, and the latest of all."""
    top(config, window="1h", as_json=True)
    told = json.loads(capsys.readouterr().out)
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
    latest = [row["request_id"] for row in told["latest"]]
    assert latest == [MOVED.request_id, RESCUED.request_id, FAILED.request_id]


def test_a_wider_window_has_more(config, capsys):
    """What was settled two hours ago is in a window of three."""
    top(config, window="3h", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["requests"], told["failed"]) == (3, 1)


def test_without_a_terminal_there_is_one_look(config):
    """The same figures as text, within 80 columns."""
    done = disco("top", folder=config.parent, COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    shown = [line.rstrip() for line in done.stdout.splitlines()]
    heading, *figures = shown[: len(FIGURES.splitlines()) + 1]
    assert re.match(r"disco top  \d\d:\d\d:\d\d  the last 0:15:00  ", heading)
    assert figures == FIGURES.splitlines()
    assert [line.split()[0] for line in shown[-4:]] == ["5eed0001", "5eed0002", "private", "5eed0003"]
    assert max(map(len, shown)) <= 80


FIGURES = """\
requests  2 (0.133 a minute)
TTFT      P50 500 ms, P99 745 ms, as delivered
races     1 lost; 2 migrations, 1 of them to rescue
spent     $0.006, 3.5 J

endpoint  kind    attempts  wins  lost  failed  P50 s  P99 s    cost  energy
─────────────────────────────────────────────────────────────────────────────
cloud     server         2     0     1       0  0.250  0.250  $0.004     0 J
laptop    device         2     2     0       1  0.500  0.745   $0.00   3.5 J
spare     server         1     0     0       0  0.500  0.500  $0.002     0 J

budget    spent      of   used
───────────────────────────────
dollars  $0.006  $0.008   75 %
energy    3.5 J     3 J  117 %
half      142 %    50 %  283 %

"""


def test_an_empty_ledger_has_nothing_to_show(tmp_path, capsys):
    """Before the first request there are zeros, and no tables."""
    Ledger(tmp_path / "ledger.db").close()
    top(write_scripted_pair(tmp_path), once=True)
    begun = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert begun == ["disco", "requests", "races", "spent"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": "soon"}, "--window 'soon': must be a span above 0, such as 90s, 15m, 2h or 7d"),
        ({"ledger": Path("nowhere.db")}, "ledger.path = 'nowhere.db': no ledger yet"),
    ],
)
def test_what_cannot_be_is_refused(config, options, told):
    """The option is named, its value, and the way out."""
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}"):
        top(config, **options)


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
        assert select.select([terminal], [], [], TIMEOUT_S)[0], screen
        screen += os.read(terminal, 65536)
    return screen.decode(errors="replace")
