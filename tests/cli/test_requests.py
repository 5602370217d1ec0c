"""`disco requests`: settled requests in a list, and one of them with its timeline."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ledgers import FAILED, MOVED, RESCUED, attempt, write_ledger
from processes import disco, write_scripted_pair

from discostream.cli.settled import requests
from discostream.cli.timeline import timeline
from discostream.core.times import moment_of, span_of
from discostream.errors import ConfigError
from discostream.ledger.queries import recent
from discostream.types import AttemptOutcome

AT_S = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
LOCAL = datetime.fromtimestamp(AT_S)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three requests, a second apart."""
    path = tmp_path_factory.mktemp("requests") / "ledger.db"
    return write_ledger(path, [(AT_S, MOVED), (AT_S + 1, RESCUED), (AT_S + 2, FAILED)])


def run(ledger: Path, *arguments: str) -> str:
    done = disco("requests", *arguments, "--ledger", str(ledger), COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_requests_are_listed_newest_first(ledger):
    """A row for each: by what it is called, when, and what came of it at what price."""
    assert lines(run(ledger)) == LIST.splitlines()


def test_a_narrow_terminal_loses_nothing(ledger, capsys, monkeypatch):
    """On forty columns lines are longer than the terminal is wide, and every cell is there."""
    monkeypatch.setenv("COLUMNS", "40")
    requests(ledger=ledger, last=20)
    assert {*capsys.readouterr().out.replace("─", "").split()} == {*LIST.replace("─", "").split()}


WHEN = f"{LOCAL:%m-%d %H:%M}"
LIST = f"""\
id       when        policy    outcome winner moved  TTFT s tokens   cost energy
────────────────────────────────────────────────────────────────────────────────
5eed0003 {WHEN} disco     failed                         12+0  $0.00    0 J
5eed0002 {WHEN} optimal,  ok      laptop rescue  0.750  12+30 $0.002    2 J
                     private
5eed0001 {WHEN} optimal   ok      laptop cost    0.250  12+30 $0.004  1.5 J
"""


def test_one_request_is_drawn_over_time(ledger):
    """All that is known of it, within 80 columns: facts, bars with the seam marked, figures, remarks."""
    shown = lines(run(ledger, "5eed0001"))
    assert shown == ONE.splitlines()
    assert max(map(len, shown)) <= 80


ONE = f"""\
Request 5eed0001cafe
  settled  {LOCAL}
  policy   optimal
  outcome  ok (stop)
  winner   laptop
  TTFT     250 ms
  TBT      mean 375 ms, P99 498 ms, longest 500 ms
  tokens   prompt 12 (48 characters), answer 30
  spent    $0.004, 1.5 J
  stalls   500 ms after 500 ms

         0 s                      1.00 s                    2.00 s
  laptop ───────●━━━━━━━━━━━━━━━━━━━━━                             migrated from
  cloud      ────                                                  lost
  cloud                       ───────‖━━━━━━━━━━━━━━━━━━━━━━━━━━━━ migrated to
  spare                                            ○               not started
  ─ waiting, ● first content, ━ decoding, ‖ seam, ✕ failed, ○ planned start
  ‖ laptop to cloud after 1.00 s at token 10 (character 41) by text, gap 125 ms:
  cost, saves $0.0004

  endpoint  start s  first s  end s  prompt  cached  answer    cost  energy
  ──────────────────────────────────────────────────────────────────────────
  laptop      0.000    0.250  1.000      12       7      10   $0.00   1.5 J
  cloud       0.125           0.250      12               0  $0.001     0 J
  cloud       0.750    1.000  2.000      22              20  $0.003     0 J
  spare       1.500                       0               0   $0.00     0 J
  cloud had 1 other attempt to serve
"""


def test_a_failure_is_told_in_one_line_whatever_it_says(ledger):
    """A broken attempt ends in a mark of its own; what a stranger said cannot move the cursor."""
    shown = lines(run(ledger, "5eed0002"))
    assert "  laptop ─────────────────────●━━━━━━✕                             failed" in shown
    assert "  spare                              ──────────────‖━━━━━━━━━━━━━━ migrated to" in shown
    assert "  ‖ laptop to spare at token 10 (character 41) by text, gap 125 ms: rescue, it" in shown
    assert "  failed: laptop: the engine [31mdied" in shown
    assert "  stayed   nothing is cheaper" in shown


def test_what_never_ran_is_not_drawn(ledger):
    """Where no attempt took any time there are no bars, and the error is told."""
    shown = lines(run(ledger, "5eed0003"))
    assert "  error    cloud: 503" in shown
    assert "  failed: cloud: 503" in shown
    assert not any("●" in line or "✕" in line for line in shown)


def test_a_second_seam_on_the_same_endpoint_is_on_the_attempt_that_took_over():
    """Over to the cloud, back, and over again: the race's bars have no seam, each move is on its own."""
    laptop, lost, cloud, _ = MOVED.attempts
    left = replace(cloud, outcome=AttemptOutcome.MIGRATED_FROM)
    back = attempt("laptop", AttemptOutcome.MIGRATED_FROM, start_offset_s=1.5, ttft_s=1.75, ran_s=0.5)
    again = replace(cloud, start_offset_s=1.75, ttft_s=2.0)
    over = MOVED.migrations[0]
    moves = (over, replace(over, source="cloud", target="laptop"), over)
    _, *bars = timeline((laptop, lost, left, back, again), moves, 80)
    assert ["‖" in bar.plain for bar in bars] == [False, False, True, True, True]


@pytest.mark.parametrize("width", [0, 40, 80, 100])
def test_bars_keep_to_the_width(width):
    """Whatever the names and times are, every line is as wide as it may be, or as narrow as bars can get."""
    named = attempt("a-server-with-a-long-name", AttemptOutcome.LOST, start_offset_s=1.9, ran_s=0.1)
    never = attempt("spare", AttemptOutcome.NOT_STARTED, start_offset_s=30.0)
    drawn = [line.cell_len for line in timeline((*MOVED.attempts, named, never), MOVED.migrations, width)]
    assert max(drawn) == max(width, 16 + 1 + 20 + 1 + 13)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"last": 2}, [FAILED, RESCUED]),
        ({"policy": "optimal"}, [RESCUED, MOVED]),
        ({"endpoint": "spare"}, [RESCUED]),
        ({"outcome": "failed"}, [FAILED]),
        ({"since": LOCAL.isoformat()}, [FAILED, RESCUED, MOVED]),
        ({"since": (LOCAL + timedelta(seconds=2)).isoformat()}, [FAILED]),
        ({"since": "1s"}, []),
    ],
)
def test_requests_are_chosen_by_options(ledger, options, found, capsys):
    """As JSON they are the ledger's rows, one object for all."""
    requests(ledger=ledger, as_json=True, **options)
    rows = {row.request_id: asdict(row) for row in recent(ledger)}
    assert json.loads(capsys.readouterr().out) == {
        "requests": [rows[outcome.request_id] for outcome in found]
    }


def test_nothing_found_is_said(ledger, capsys):
    """An empty list is no failure."""
    requests(ledger=ledger, policy="fast")
    assert capsys.readouterr().out == "No settled request is like that.\n"


def test_one_request_as_json_has_its_attempts_and_migrations(ledger, capsys):
    """Everything settled, by the ledger's names."""
    requests("5eed0001", ledger=ledger, as_json=True)
    (told,) = json.loads(capsys.readouterr().out)["requests"]
    assert told["attempts"] == json.loads(json.dumps([asdict(each) for each in MOVED.attempts]))
    assert told["migrations"] == json.loads(json.dumps([asdict(each) for each in MOVED.migrations]))
    assert told["longest_gaps"] == [{"at_s": 0.5, "for_s": 0.5}]
    assert (told["request_id"], told["usd"], told["rescues"]) == (MOVED.request_id, 0.004, 0)
    assert (told["raced"], told["ended_s"]) == (True, 1.0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"request_id": "cafe"}, "ID 'cafe': no settled request's begins so; `disco requests` lists them"),
        ({"request_id": "5eed0001", "since": "2h"}, "ID '5eed0001': names one request; leave out what"),
        ({"outcome": "good"}, "--outcome 'good': must be ok, failed or cancelled"),
        ({"since": "yesterday"}, "--since 'yesterday': must be a span such as 2h, or a date such as"),
        ({"ledger": Path("nowhere.db")}, "ledger.path = 'nowhere.db': no ledger yet"),
    ],
)
def test_what_cannot_be_is_refused(ledger, arguments, told):
    """The argument is named, its value, and the way out."""
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}"):
        requests(**{"ledger": ledger, **arguments})


def test_an_id_that_fits_several_is_refused_in_one_line(ledger):
    """With status 2, and all of them to choose from."""
    done = disco("requests", "5eed", "--ledger", str(ledger))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "disco: ID '5eed': several begin so (5eed0001cafe, 5eed0002cafe, 5eed0003cafe); write more of"
    )


def test_what_was_answered_is_found_by_the_settings(tmp_path):
    """The ledger is the one that disco.toml names; a real race is listed and drawn."""
    write_scripted_pair(tmp_path)
    answered = disco("chat", "Why?", "--json", folder=tmp_path)
    request_id = json.loads(answered.stdout)["disco"]["request_id"]
    assert lines(disco("requests", folder=tmp_path).stdout)[2].startswith(request_id[:8])
    shown = lines(disco("requests", request_id[:8], folder=tmp_path).stdout)
    assert shown[0] == f"Request {request_id}"
    assert any(re.fullmatch(r"  laptop +─+●━+ +won", line) for line in shown)
    assert any(re.fullmatch(r"  cloud  +─+ +lost", line) for line in shown)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1.5h", 5400), ("7d", 604_800), ("0.5s", 0.5)]
)
def test_spans(text, seconds):
    """A number and a unit."""
    assert span_of("--window", text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "15", "m", "0s", "-5m", "1e3s", "2w", "99999999999d", "\u0661s"])
def test_what_is_no_span(text):
    """Nothing is guessed, and nothing overflows."""
    with pytest.raises(ConfigError, match=r"^--window .* must be a span above 0, such as"):
        span_of("--window", text)


@pytest.mark.parametrize("text", ["", "noon", "2026-13-01", "99999999999d"])
def test_what_is_no_moment(text):
    """Nor is a moment guessed."""
    with pytest.raises(ConfigError, match=r"^--since .* must be a span such as 2h, or a date such as"):
        moment_of("--since", text, datetime(2026, 3, 1, tzinfo=UTC))
