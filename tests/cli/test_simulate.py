"""`disco simulate` from the outside: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import io
import json
import subprocess

import pytest
from processes import disco

FIELDS = [
    "policy",
    "constraint",
    "share",
    "device",
    "server_trace",
    "n",
    "mean_ttft_s",
    "p50_ttft_s",
    "p90_ttft_s",
    "p99_ttft_s",
    "max_ttft_s",
    "spent_share",
    "usd",
    "joules",
    "cost",
    "migrated_share",
    "delayed_tokens_mean",
    "delayed_tokens_p99",
    "p99_tbt_s",
    "qoe_mean",
    "wasted_tokens",
    "unanswered_share",
]


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return disco("simulate", "--requests", "500", *arguments)


def test_json_is_a_list_of_cells():
    """One object for each policy and share, as documented; the same seed gives the same bytes."""
    arguments = ("--policy", "server-only,disco", "--share", "0.1,0.5", "--format", "json")
    first, again = simulate(*arguments), simulate(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    cells = json.loads(first.stdout)
    assert [list(cell) for cell in cells] == [FIELDS] * 3
    assert [(cell["policy"], cell["share"]) for cell in cells] == [
        ("server-only", 0.1),
        ("disco", 0.1),
        ("disco", 0.5),
    ]


def test_csv_has_the_same_cells():
    """A header and a row for each cell."""
    told = simulate("--policy", "disco", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(told.stdout))
    assert list(row) == FIELDS
    assert float(row["p99_ttft_s"]) >= float(row["p50_ttft_s"])


def test_the_table_says_what_it_rests_on():
    """Every policy has a line, and what was estimated is said below."""
    told = simulate("--constraint", "device")
    for policy in ("server-only", "device-only", "stochastic", "disco", "optimal"):
        assert f"\n{policy} " in f"\n{told.stdout}"
    assert "The share holds back the device" in told.stdout
    assert "tokens at an even pace" in told.stdout


def test_the_page_needs_nothing_else(tmp_path):
    """The page holds tables, curves and what draws them, and loads nothing."""
    path = tmp_path / "page.html"
    told = simulate("--share", "0.2,0.6", "--html", str(path))
    page = path.read_text()
    assert told.returncode == 0, told.stderr
    assert "Spend against TTFT" in page
    assert 'id="waiting"' in page
    assert 'id="frontier"' in page
    assert "<script src" not in page
    assert f"Wrote {path}" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--share", "0.1,2"), "--share '2': must be a number from 0 to 1"),
        (("--prices", "3"), "--prices '3': must be IN,OUT"),
        (("--prices=-1,2",), "--prices '-1': must be a number from 0"),
        (("--policy", "dico"), "--policy 'dico': no such policy; did you mean 'disco'?"),
        (("--policy", "offsets"), "--policy 'offsets'"),
        (("--constraint", "both"), "--constraint 'both': must be device, server or auto"),
        (("--migration", "maybe"), "--migration 'maybe': must be on, off, stop-then-start"),
        (("--train-fraction", "1"), "--train-fraction 1: must lie between 0 and 1"),
        (("--consumption", "0"), "--consumption 0: must be above 0"),
        (("--consumption", "1e7"), "--consumption 1e+07: must be above 0, and below a million"),
        (("--usd-per-joule=-1",), "--usd-per-joule -1: must be 0 or more"),
        (("--format", "xml"), "--format 'xml': must be table, json or csv"),
        (("--arrivals", "poisson:x"), "--arrivals 'poisson:x'"),
        (("--server-trace", "/nowhere.csv"), "server trace '/nowhere.csv': there is no such file"),
        (("--html", "/nowhere/page.html"), "--html /nowhere/page.html: cannot be written"),
        (("--requests", "0"), "--requests"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, message):
    """Status 2, the option, the value and what would be right; no traceback."""
    told = simulate(*arguments)
    assert told.returncode == 2
    assert message in told.stderr
    assert "Traceback" not in told.stderr
