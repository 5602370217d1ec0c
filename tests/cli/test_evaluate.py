"""`disco evaluate` from the outside: what it writes, prints and refuses."""

from __future__ import annotations

import json

import pytest
from processes import disco

from discostream.sim.report.files import FILES
from discostream.sim.shelf import FILE

SMALL = (
    *("evaluate", "--server-trace", "builtin:gpt-4o", "--device", "80,21", "--constraint", "server"),
    *("--share", "0.3,0.9", "--policy", "disco", "--seeds", "2", "--requests", "200", "--jobs", "1"),
)


def test_it_writes_a_report_and_says_where(tmp_path):
    """Five files, the sentences that sum them up, and nothing but those on stdout."""
    done = disco(*SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == {FILE, *FILES}
    sentences = done.stdout.splitlines()
    assert sentences[0].startswith("- With a budget on the server, disco cuts P99 TTFT by ")
    assert sentences[-1].startswith("Open evaluation/report.html; the figures are in results.csv")
    cells = (tmp_path / "evaluation" / FILE).read_bytes().count(b"\n")
    assert done.stderr == f"Cells: {cells}\n"


def test_json_is_one_object(tmp_path):
    """It names the files, counts the cells, and says the same in brief; a second run repeats it."""
    first, again = (disco(*SMALL, "--json", "--out", "here", folder=tmp_path) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    told = json.loads(first.stdout)
    assert list(told) == ["files", "cells", "lost", "in_brief"]
    assert told["files"] == [f"here/{name}" for name in FILES]
    assert told["cells"] == (tmp_path / "here" / FILE).read_bytes().count(b"\n")
    assert told["lost"] == []
    findings = json.loads((tmp_path / "here" / "results.json").read_bytes())
    assert [cut["policy"] for cut in findings["cuts"]] == ["disco"]
    assert findings["grid"]["policies"] == ["disco", "stochastic"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--constraint", "laptop"), "--constraint 'laptop': must be device, server or both"),
        (("--share", "0.1,much"), "--share 'much': must be numbers from 0 to 1, with commas between"),
        (("--share", "1.1"), "--share 1.1: must lie between 0 and 1"),
        (("--policy", "disko"), "policy.name = 'disko': no such policy"),
        (("--device", "phone"), "--device 'phone': no such device"),
        (("--server-trace", "gone.csv"), "server trace 'gone.csv': there is no such file"),
        (("--data", "gone"), "gone: is no folder"),
        (("--workload", "gone.jsonl"), "workload 'gone.jsonl': there is no such file"),
        (("--seeds", "0"), "Invalid value for '--seeds'"),
        (("--jobs", "0"), "Invalid value for '--jobs'"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, message):
    """A line on stderr with the option, its value and what would be right; status 2, and no file."""
    done = disco("evaluate", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_lost_cells_are_told_and_the_status_is_1(tmp_path):
    """Answers that nobody could simulate cost the cells that have them; the report says which those are."""
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt_tokens,output_tokens\n" + "100,1000000\n" * 20)
    done = disco(*SMALL, "--workload", str(prompts), "--json", folder=tmp_path)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert len(told["lost"]) == told["cells"] > 0
    assert told["lost"][0].startswith(
        "disco at 0.3, budget on the server, builtin:gpt-4o with 80,21, seed 0: "
    )
    assert "an answer of 1,000,000 tokens" in told["lost"][0]
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "Nothing came of these cells" in page
    assert told["in_brief"] == []
