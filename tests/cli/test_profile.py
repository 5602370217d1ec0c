"""`disco profile`: what it says of endpoints, and how it measures them."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from processes import disco, on_a_terminal, write_scripted_pair

from discostream.cli.probe import Tally, alone, probe_all
from discostream.cli.profile import chosen_from, portray
from discostream.config import Settings, load_settings, settings_from
from discostream.core.profile import ServerTtft
from discostream.errors import ConfigError
from discostream.ledger.migrations import MIGRATIONS
from discostream.ledger.outcomes import history
from discostream.types import PROBE

PRICED = {
    "DISCO_ENDPOINT__CLOUD__PROMPT_USD_PER_MTOK": "10",
    "DISCO_ENDPOINT__CLOUD__COMPLETION_USD_PER_MTOK": "30",
}
FAST = {f"DISCO_ENDPOINT__{name}__T{key}_S": "0.001" for name in ("LAPTOP", "CLOUD") for key in ("TFT", "BT")}
in_virtual_time = pytest.mark.parametrize(
    "anyio_backend", [("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})], ids=["virtual"]
)


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What `--json` printed: endpoints and probes by name."""
    printed = json.loads(done.stdout)
    return {
        "endpoints": {endpoint["name"]: endpoint for endpoint in printed["endpoints"]},
        "probes": {tally["endpoint"]: tally for tally in printed["probes"]},
    }


def probed(folder: Path) -> list[tuple[str, int, str]]:
    """Endpoint, prompt tokens and policy of everything recorded."""
    settled = [outcome for _, outcome in history(folder / "ledger.db", 1000)]
    return [(one.attempts[0].endpoint, one.prompt_tokens, one.policy) for one in settled]


async def probe(settings: Settings, count: int, name: str | None = None) -> list[Tally]:
    tallies: list[Tally] = []
    await probe_all(alone(settings, chosen_from(settings, name)), count, tallies)
    return tallies


def attempts_known(settings: Settings) -> dict[str, int]:
    known = portray(settings, settings.endpoint)
    return {portrait.profile.name: portrait.experience.attempts for portrait in known}


def test_without_a_ledger_it_shows_what_is_believed(tmp_path):
    """Nothing measured: built-in figures, called that, with what to do; and looking makes no file."""
    write_scripted_pair(tmp_path)
    done = disco("profile", folder=tmp_path)
    assert done.returncode == 0
    assert "There is no ledger yet" in done.stdout
    assert "P50 359 ms   P90 496 ms   P95 607 ms   P99 2.82 s" in done.stdout
    assert "50 ms + 10 ms per uncached prompt token" in done.stdout
    assert "these are built-in figures; measure with `disco profile cloud --probe 20`" in done.stdout
    assert not (tmp_path / "ledger.db").exists()


def test_probes_are_recorded_learnt_from_and_known_after_a_restart(tmp_path):
    """Every probe is a row of the ledger; a new process knows what the old one measured."""
    write_scripted_pair(tmp_path)
    measured = told(disco("profile", "--probe", "6", "--json", folder=tmp_path))
    for name, ttft_s in (("laptop", 0.05), ("cloud", 0.2)):
        assert measured["probes"][name]["answered"] == 6
        assert measured["endpoints"][name]["attempts"] == 6
        assert measured["endpoints"][name]["tokens_per_s"] > 50.0
        assert measured["endpoints"][name]["ttft_s"]["p50"] != ttft_s
    assert 0.2 < measured["endpoints"]["cloud"]["ttft_s"]["p50"] < 0.359
    known = told(disco("profile", "--json", folder=tmp_path))["endpoints"]
    for name, endpoint in measured["endpoints"].items():
        aged = {"newest_age_s", "effective_sample_size"}
        assert {key: known[name][key] for key in endpoint if key not in aged} == {
            key: endpoint[key] for key in endpoint if key not in aged
        }
    text = disco("profile", "cloud", folder=tmp_path).stdout
    assert "6 attempts, worth 6 fresh ones, 0 % of that cut short; the newest" in text
    assert "laptop" not in text
    assert "\x1b" not in text


@pytest.mark.anyio
async def test_a_device_is_asked_prompts_of_many_lengths(tmp_path):
    """So that its line can be fitted; a server, which hardly minds, gets short ones."""
    await probe(load_settings(write_scripted_pair(tmp_path), FAST), 6)
    rows = probed(tmp_path)
    assert {policy for *_, policy in rows} == {PROBE}
    lengths = {name: {tokens for one, tokens, _ in rows if one == name} for name in ("laptop", "cloud")}
    assert len(lengths["laptop"]) == 6
    assert max(lengths["laptop"]) > 10 * min(lengths["laptop"])
    assert len(lengths["cloud"]) == 1


@pytest.mark.anyio
async def test_only_the_endpoint_that_was_named_is_probed(tmp_path):
    """The others are left in peace, and their settings out of it."""
    settings = load_settings(write_scripted_pair(tmp_path), FAST)
    (tally,) = await probe(settings, 2, "cloud")
    assert (tally.endpoint, tally.answered) == ("cloud", 2)
    assert [name for name, *_ in probed(tmp_path)] == ["cloud", "cloud"]


@pytest.mark.anyio
async def test_a_changed_endpoint_starts_anew(tmp_path):
    """What was measured of another model is no longer told; of one at another price it is."""
    path = write_scripted_pair(tmp_path)
    await probe(load_settings(path, FAST), 3)
    changed = load_settings(path, FAST | {"DISCO_ENDPOINT__CLOUD__MODEL": "bigger"})
    assert attempts_known(changed) == {"laptop": 3, "cloud": 0}
    assert attempts_known(load_settings(path, FAST | PRICED)) == {"laptop": 3, "cloud": 3}


def test_money_is_not_spent_unasked(tmp_path):
    """Where nobody can be asked, --yes must say so; the price is told before, and not exceeded."""
    write_scripted_pair(tmp_path)
    refused = disco("profile", "--probe", "4", folder=tmp_path, typed="", **PRICED)
    assert refused.returncode == 2
    bound = re.search(r"may cost up to \$(\d+\.\d+); add --yes", refused.stderr)
    assert bound
    assert not (tmp_path / "ledger.db").exists()
    done = disco("profile", "--probe", "4", "--yes", "--json", folder=tmp_path, **PRICED)
    assert "cloud: 4 probes, at most" in done.stderr
    assert f"${bound[1]}" in done.stderr
    assert 0.0 < told(done)["probes"]["cloud"]["usd"] <= float(bound[1])


def test_on_a_terminal_it_asks_first(tmp_path):
    """A no costs nothing; a yes measures."""
    write_scripted_pair(tmp_path)
    status, screen = on_a_terminal("profile", "--probe", "2", folder=tmp_path, typed=b"n\n", **PRICED)
    assert status == 1
    assert "This may cost up to $" in screen
    assert not (tmp_path / "ledger.db").exists()
    status, screen = on_a_terminal("profile", "--probe", "2", folder=tmp_path, typed=b"y\n", **PRICED)
    assert status == 0
    assert "cloud: 2 of 2 probes answered" in screen


def test_a_terminal_gets_plots(tmp_path):
    """A curve for the server, a line with points for the device; without colours where none are wanted."""
    write_scripted_pair(tmp_path)
    _, screen = on_a_terminal("profile", "--probe", "3", folder=tmp_path)
    assert "seconds to first content, by uncached prompt tokens" in screen
    assert "•• seen" in re.sub(r"\x1b\[[0-9;]*m", "", screen)
    assert "requests that have their first content by then, in per cent" in screen
    assert "\x1b[34m" in screen
    _, plain = on_a_terminal("profile", folder=tmp_path, NO_COLOR="1")
    assert "┌───" in plain
    assert "prior    gpt-4o (5,430 requests)" in plain
    assert not re.search(r"\x1b\[3\dm", plain)


def test_a_server_that_fails_is_reported_and_counted(tmp_path):
    """Every failure counts as an answer that never came; when nothing answers, the status is 1."""
    write_scripted_pair(tmp_path)
    done = disco("profile", "--probe", "8", folder=tmp_path, DISCO_ENDPOINT__CLOUD__REFUSES="overloaded")
    assert done.returncode == 1
    assert "cloud: 0 of 8 probes answered, 8 failed (cloud: overloaded)" in done.stderr
    assert "laptop: 8 of 8 probes answered;" in done.stderr
    assert re.search(r"cloud \(server scripted\)\n  TTFT .* P99 never   [\d.]+ % never came", done.stdout)


def test_an_endpoint_that_cannot_start_is_reported(tmp_path):
    """An engine without its server says why, once, instead of failing every probe."""
    write_scripted_pair(tmp_path)
    with (tmp_path / "disco.toml").open("a", encoding="utf-8") as settings:
        settings.write('[[endpoint]]\nname = "dead"\nkind = "device"\ndialect = "llamacpp"\n')
        settings.write('base_url = "http://127.0.0.1:9"\n')
    done = disco("profile", "dead", "--probe", "5", "--json", folder=tmp_path)
    assert done.returncode == 1
    tally = told(done)["probes"]["dead"]
    assert (tally["asked"], tally["answered"], len(tally["failures"])) == (5, 0, 1)
    assert "cannot connect" in tally["failures"][0]


def test_a_hard_budget_holds_for_probes_too(tmp_path):
    """Once it is spent the remaining probes are refused, and it is never exceeded."""
    write_scripted_pair(tmp_path)
    asked = "profile", "cloud", "--yes", "--json", "--probe"
    before = told(disco(*asked, "1", folder=tmp_path, **PRICED))["probes"]["cloud"]
    limit = before["usd"] + 0.02
    with (tmp_path / "disco.toml").open("a", encoding="utf-8") as settings:
        settings.write(f'[[budget]]\nname = "pocket"\nusd = {limit}\nper = "day"\nmode = "hard"\n')
    tally = told(disco(*asked, "40", folder=tmp_path, **PRICED))["probes"]["cloud"]
    assert 0 < tally["answered"] < 40
    assert before["usd"] + tally["usd"] <= limit
    assert "budget 'pocket'" in tally["failures"][0]


def test_what_was_measured_before_ctrl_c_is_kept(tmp_path):
    """An interruption ends in status 130, after the figures that the probes so far have made."""
    write_scripted_pair(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "discostream", "profile", "cloud", "--probe", "200"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_requests(tmp_path / "ledger.db", 3)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, stderr
    done = re.search(r"cloud: (\d+) of 200 probes answered;", stderr)
    assert done
    assert 3 <= int(done[1]) < 200
    assert f"{len(probed(tmp_path))} attempts" in stdout
    assert "Traceback" not in stderr


def wait_for_requests(ledger: Path, count: int) -> None:
    give_up_at = time.monotonic() + 30.0
    while time.monotonic() < give_up_at:
        if ledger.exists() and len(list(history(ledger, count))) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no probes were recorded")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["cluod"], "no endpoint is called 'cluod'; did you mean 'cloud'?"),
        (["--probe", "0"], "--probe"),
    ],
)
def test_mistakes_are_named(arguments, complaint, tmp_path):
    """What cannot be meant is refused with status 2, and nothing is measured."""
    write_scripted_pair(tmp_path)
    done = disco("profile", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (tmp_path / "ledger.db").exists()


@pytest.mark.anyio
async def test_the_ledger_of_a_newer_version_is_refused(tmp_path):
    """What a newer discostream wrote is neither shown wrongly nor written to."""
    settings = load_settings(write_scripted_pair(tmp_path), FAST)
    await probe(settings, 1)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        connection.commit()
    with pytest.raises(ConfigError, match="written by a newer discostream"):
        await probe(settings, 1)
    done = disco("profile", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "written by a newer discostream" in done.stderr


@pytest.mark.anyio
@in_virtual_time
async def test_an_endpoint_that_stays_silent_is_let_go(tmp_path):
    """After a minute a probe is given up: all that is known is that the answer would have come later."""
    tree = {
        "endpoint": [{"name": "cloud", "kind": "server", "dialect": "scripted", "hangs_after": 0}],
        "ledger": {"path": str(tmp_path / "ledger.db")},
    }
    settings = settings_from(tree)
    (tally,) = await probe(settings, 2)
    assert (tally.answered, tally.failures) == (0, ["cloud: no answer within 60 s"] * 2)
    (portrait,) = portray(settings, settings.endpoint)
    assert isinstance(portrait.profile.ttft, ServerTtft)
    assert portrait.profile.ttft.seen.censored.all()
    assert portrait.profile.ttft.seen.values == pytest.approx([60.0, 60.0])


@pytest.mark.anyio
async def test_an_answer_without_text_is_no_answer(tmp_path):
    """A model that is still thinking when its tokens are used up has not shown when its content comes."""
    tree = {
        "endpoint": [{"name": "cloud", "kind": "server", "dialect": "scripted", "answer": ""}],
        "ledger": {"path": str(tmp_path / "ledger.db")},
    }
    settings = settings_from(tree)
    (tally,) = await probe(settings, 1)
    assert tally.failures == ["cloud: no text within 16 tokens"]


def test_budgets_of_others_do_not_stop_a_probe(tmp_path):
    """Probed alone, a device is not refused for a budget of dollars or a share, which it cannot use."""
    tree = {
        "endpoint": [
            {"name": "laptop", "kind": "device", "dialect": "scripted"},
            {"name": "cloud", "kind": "server", "dialect": "scripted"},
        ],
        "budget": [
            {"usd": 1.0, "per": "day", "mode": "hard"},
            {"share": 0.2, "of": "server"},
            {"joules": 5.0, "per": "hour"},
        ],
    }
    settings = settings_from(tree)
    laptop, cloud = settings.endpoint
    assert [budget.joules for budget in alone(settings, [laptop]).budget] == [5.0]
    assert [budget.usd for budget in alone(settings, [cloud]).budget] == [1.0]


@pytest.mark.alone
@pytest.mark.slow
def test_the_embedded_pair_is_measured_for_real(smollm2_path, tmp_path):
    """Real engines: the device's line has a slope, its prompts were not in the cache, both tell a pace."""
    ledger = {"DISCO_LEDGER__PATH": str(tmp_path / "ledger.db")}
    done = disco("profile", "--probe", "5", "--yes", "--json", folder=tmp_path, **ledger)
    assert done.returncode == 0, done.stderr
    endpoints = told(done)["endpoints"]
    assert 0.0005 < endpoints["device"]["line"]["s_per_token"] < 0.05
    assert endpoints["device"]["slots"] == 2
    assert all(endpoint["attempts"] == 5 for endpoint in endpoints.values())
    assert all(endpoint["tokens_per_s"] > 1.0 for endpoint in endpoints.values())
    settled = [one.attempts[0] for _, one in history(tmp_path / "ledger.db", 10)]
    device = [attempt for attempt in settled if attempt.endpoint == "device"]
    assert all(attempt.cached_tokens < 0.9 * attempt.prompt_tokens for attempt in device)
    assert {attempt.ttft_s is not None for attempt in settled} == {True}


def test_a_hard_budget_of_dollars_holds_for_a_priced_device(tmp_path):
    """Probes keep every budget that what they probe is charged to, whatever kind it is."""
    priced = {"name": "laptop", "kind": "device", "dialect": "scripted", "prompt_usd_per_mtok": 10.0}
    free = {"name": "phone", "kind": "device", "dialect": "scripted"}
    server = {"name": "cloud", "kind": "server", "dialect": "scripted"}
    budget = {"usd": 1.0, "per": "day", "mode": "hard"}
    settings = settings_from({"endpoint": [priced, free, server], "budget": [budget]})
    kept = [len(alone(settings, [endpoint]).budget) for endpoint in settings.endpoint]
    assert kept == [1, 0, 1]
