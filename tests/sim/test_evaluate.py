"""An evaluation: the same whoever computes it, in whatever order, and however often it is broken off."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from statistics import fmean

import psutil
import pytest
from evaluations import Here, a_grid
from msgspec.structs import replace

from discostream.errors import ConfigError
from discostream.sim.cells import Cell, Drift, Lost, judge_together
from discostream.sim.evaluate import crew_of, evaluate, grid_of
from discostream.sim.grid import ALONE, Setting
from discostream.sim.online import Follows
from discostream.sim.report.deduce import findings_of
from discostream.sim.report.files import FILES, write_report
from discostream.sim.shelf import FILE, Shelf, key_of
from discostream.sim.study import Case, judge
from discostream.sim.world import Handoff
from discostream.traces.servers import read_trace

DATA = Path(os.environ.get("DISCO_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
PROMPTS = {
    "self-instruct": "workload-self-instruct/user_oriented_instructions.jsonl",
    "arena-hard": "workload-arena-hard/prompts_and_output_lengths.jsonl.gz",
}

PAPERS_DEVICES = "pixel-7-pro-bloom-1.1b", "pixel-7-pro-bloom-560m", "xiaomi-14-qwen1.5-0.5b"

SETTING = Setting("builtin:gpt-4o", "xiaomi-14-qwen1.5-0.5b", "device")


def run(folder, crew, grid=None):
    """Everything that a command would do, on a small grid."""
    grid = grid or a_grid()
    traces = {source: read_trace(source) for source in grid.server_traces}
    evaluation = evaluate(grid, traces, folder, crew)
    write_report(evaluation, folder)
    return evaluation


def contents(folder):
    return {name: (folder / name).read_bytes() for name in (FILE, *FILES)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the small grid comes to, and the files of it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(folder, Here()), folder


def test_judged_together_is_judged_alone():
    """What a cell comes to does not depend on the cells beside it."""
    grid = a_grid()
    cells = [
        grid.race(SETTING, policy, share, 3)
        for policy, share in product(("device-only", "stochastic", "disco", "optimal"), (0.1, 0.6))
    ]
    cells += [
        grid.cell(SETTING, "disco", 0.3, 3),
        grid.cell(SETTING, "disco", 0.3, 3, handoff=Handoff.STOP_THEN_START, t_m_factor=0.5),
        grid.cell(SETTING, "disco", 0.3, 3, warm_standby=False, remaining_factor=2.0),
        grid.cell(SETTING, "disco", 0.3, 3, alpha=0.0, consumption_tokens_per_s=9.6),
        grid.cell(SETTING, "stochastic", 0.9, 3, consumption_tokens_per_s=40.0),
    ]
    verdicts = list(judge_together(cells))
    for verdict in verdicts:
        assert verdict.figures == judge(verdict.cell.case)[0]
    assert verdicts[-1].figures.p99_tbt_s > 1 / 40  # who reads faster than the device writes has to wait


def test_no_waits_is_a_cell_of_its_own():
    """Without waits, the same case comes to something else."""
    grid = a_grid(requests=2000)
    whole, without = judge_together(
        [
            grid.race(SETTING, "disco", 0.3, 0),
            grid.cell(SETTING, "disco", 0.3, 0, waits=False, handoff=Handoff.OFF),
        ]
    )
    assert without.figures.mean_ttft_s > whole.figures.mean_ttft_s
    assert without.figures.spent_share == pytest.approx(whole.figures.spent_share, abs=0.05)


def test_a_cell_that_fails_is_lost_alone():
    """Its reason is kept, and those after it are computed."""
    grid = a_grid()
    lost, kept, drift = judge_together(
        [
            grid.race(SETTING, "no-such-policy", 0.3, 0),
            grid.race(SETTING, "disco", 0.3, 0),
            grid.drift(Setting("builtin:none", *SETTING[1:]), Follows.SPEND, 0),
        ]
    )
    assert isinstance(lost, Lost)
    assert "no such policy" in lost.reason
    assert kept.figures.n == 200
    assert isinstance(drift, Lost)
    assert drift.reason.startswith("ConfigError: server trace 'builtin:none'")


def test_every_finding_has_its_cells(undisturbed):
    """The grid names every cell that the report asks for: nothing is missing, nothing is computed twice."""
    evaluation, _ = undisturbed
    cells = [cell for task in evaluation.grid.tasks() for cell in task]
    assert len(cells) == len(set(cells)) == len(evaluation.found)
    findings = findings_of(evaluation)
    grid = evaluation.grid
    assert len(findings.cuts) == len(grid.settings) * 2
    assert len(findings.frontiers) == len(findings.spreads) == len(findings.experiences) == 5
    assert [len(each.points) for each in findings.frontiers] == [1, 1, 2, 2, 2]
    assert len(findings.savings) == 2
    assert len(findings.moves) == len(Handoff)
    assert len(findings.losses) == len([each for each in grid.ablations if each.without])
    assert len(findings.days) == len(Follows)
    assert len(findings.sensitivities) == 4 + 5 + 5
    watched = Watched(evaluation.found)
    findings_of(dataclasses.replace(evaluation, found=watched))
    assert watched.asked == set(cells)


class Watched(dict):
    """Remembers what it was asked for."""

    def __init__(self, content):
        super().__init__(content)
        self.asked = set()

    def get(self, key, default=None):
        if key in self:
            self.asked.add(key)
        return super().get(key, default)


@pytest.mark.parametrize("jobs", [1, 2])
def test_any_number_of_workers_gives_the_same_bytes(undisturbed, tmp_path, jobs):
    """One process, two, or none but this one: all files are equal."""
    with crew_of(jobs) as crew:
        run(tmp_path, crew)
    assert contents(tmp_path) == contents(undisturbed[1])


@pytest.mark.slow
def test_ray_gives_the_same_bytes(undisturbed, tmp_path):
    """So does a local Ray cluster of two workers."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'discostream[ray]'")
    with crew_of(2, "local") as crew:
        run(tmp_path, crew)
    assert contents(tmp_path) == contents(undisturbed[1])


def test_any_order_gives_the_same_bytes(undisturbed, tmp_path):
    """Outcomes that come in another order leave the same files."""

    class Shuffled(Here):
        def run(self, tasks, at_once=None):
            singles = [(cell,) for task in tasks for cell in task]
            random.Random(1).shuffle(singles)
            yield from super().run(singles)

    run(tmp_path, Shuffled())
    assert contents(tmp_path) == contents(undisturbed[1])


def test_what_is_known_is_not_computed_again(undisturbed, tmp_path):
    """A second run does nothing; another grid does only what is new in it."""
    run(tmp_path, Here())
    again, more = Here(), Here()
    run(tmp_path, again)
    assert again.done == []
    assert contents(tmp_path) == contents(undisturbed[1])
    wider = a_grid(shares=(0.3, 0.6, 0.9))
    run(tmp_path, more, wider)
    assert set(more.done) == {cell for task in wider.tasks() for cell in task} - set(undisturbed[0].found)
    assert {cell.case.share for cell in more.done} == {0.6}


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_file_that_breaks_off_is_gone_on_with(undisturbed, tmp_path, kept):
    """Wherever a kill has cut the file, only what is missing is computed, and the end is the same."""
    written = (undisturbed[1] / FILE).read_bytes()
    whole = written[: int(kept * len(written))]
    (tmp_path / FILE).write_bytes(whole)
    here = Here()
    run(tmp_path, here)
    assert len(here.done) == len(undisturbed[0].found) - whole.count(b"\n")
    assert contents(tmp_path) == contents(undisturbed[1])


def test_a_line_that_is_none_is_named(tmp_path):
    """Something else in the file, other than at its end, is refused by its line."""
    (tmp_path / FILE).write_bytes(b'{"key": "a"}\nnonsense\n')
    with pytest.raises(ConfigError, match=rf"{FILE}, line 2: is no cell of an evaluation; remove the line"):
        Shelf(tmp_path)


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    """A file is no folder."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*file: cannot be used: "):
        Shelf(tmp_path / "file")


def test_a_cell_is_known_by_all_that_decides_it(tmp_path):
    """Another trace under the same name, or any other field, is another cell."""
    trace = tmp_path / "server.csv"
    case = Case(server_trace=str(trace), device="80,20", policy="disco", share=0.3)
    cells = [Cell(case=case), Cell(case=case, waits=False), Cell(case=replace(case, seed=1))]
    cells += [Drift(case=case, follows=follows) for follows in Follows]
    trace.write_text("ttft_s\n0.5\n0.6\n")
    keys = [key_of(cell) for cell in cells]
    assert len(set(keys)) == len(cells)
    assert key_of(cells[0]) == keys[0]
    other = tmp_path / "other.csv"
    other.write_text("ttft_s\n0.5\n0.7\n")
    renamed = replace(case, server_trace=str(other))
    assert key_of(Cell(case=renamed)) not in keys


def wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def lines(folder):
    return (folder / FILE).read_bytes().count(b"\n") if (folder / FILE).exists() else 0


COMMAND = (
    *(sys.executable, "-m", "discostream", "evaluate", "--server-trace", "builtin:gpt-4o"),
    *("--device", "xiaomi-14-qwen1.5-0.5b", "--seeds", "4", "--requests", "200", "--json", "--jobs", "2"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the command leaves when nobody stops it."""
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run([*COMMAND, "--out", str(folder)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_broken_off_is_gone_on_with(whole, tmp_path, stop):
    """Interrupted, ended or killed: no worker stays, and a second run ends where one would have."""
    command = [*COMMAND, "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: lines(tmp_path) > 5)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(stop)
    status = process.wait(30)
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[stop]
    wait_for(lambda: not any(worker.is_running() for worker in workers))
    assert 5 < lines(tmp_path) < lines(whole)
    resumed = subprocess.run(command, capture_output=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_ctrl_c_is_clean_while_workers_start(tmp_path):
    """A terminal interrupts everybody in it; workers that have only just begun say nothing of it."""
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            [*COMMAND, "--out", str(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
    wait_for(lambda: len(psutil.Process(process.pid).children()) > 2)  # two workers, and what cleans up
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    assert b"Traceback" not in (tmp_path / "said").read_bytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "--seeds 0: must be at least 1"),
        ({"requests": 99}, "--requests 99: must be at least 100"),
        ({"shares": [0.3, 1.5]}, "--share 1.5: must lie between 0 and 1"),
        ({"devices": ["phone"]}, "--device 'phone': no such device"),
        ({"policies": ["disko"]}, "'disko': no such policy; did you mean 'disco'"),
        ({"policies": ["offsets"]}, "--policy offsets: has offsets of its own"),
        ({"workload": "builtin:talk"}, "workload 'builtin:talk': no such workload"),
        ({"server_traces": ["builtin:gpt-5"]}, "server trace 'builtin:gpt-5': no such profile"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    """By the field, with the value and what would be right, before anything is computed."""
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        grid_of(**fields)


def test_traces_come_from_a_folder(tmp_path):
    """All of them, besides those that are named; a folder without any is refused."""
    with pytest.raises(ConfigError, match=f"--data {tmp_path}: there is no server trace in it"):
        grid_of(data=tmp_path)
    for name, count in (("short", 3), ("long", 600)):
        (tmp_path / f"{name}.csv").write_text("ttft_s\n" + "0.5\n" * count)
    grid, traces = grid_of(data=tmp_path, server_traces=["builtin:gpt-4o"])
    assert [traces[source].name for source in grid.server_traces] == ["gpt-4o", "long", "short"]
    assert [traces[source].name for source in grid.lasting] == ["gpt-4o", "long"]
    (tmp_path / "short.csv").write_text("ttft_s\n0.5\n")
    with pytest.raises(ConfigError, match=r"short\.csv: has one request only"):
        grid_of(data=tmp_path)


def test_some_shares_stand_for_many():
    """Where it takes long, five of them from end to end; and with few, all of them."""
    nine = a_grid(shares=tuple(tenths / 10 for tenths in range(1, 10)))
    assert nine.shares_of("optimal") == (0.1, 0.3, 0.5, 0.7, 0.9)
    assert nine.shares_of("disco") == nine.shares
    assert nine.usual_share == 0.3
    assert a_grid(shares=(0.2, 0.8)).shares_of("optimal") == (0.2, 0.8)
    assert {nine.shares_of(policy) for policy in ALONE} == {(1.0,)}


def mean_cut(prompts, constraint, device):
    """By how much `disco` cuts P99 TTFT against `stochastic` on GPT-4o, over shares and a few seeds."""
    grid = a_grid(
        server_traces=(str(DATA / "whisper-leak" / "requests-GPT4o.csv.gz"),),
        workload=str(DATA / PROMPTS[prompts]),
        requests=3000,
    )
    setting = Setting(grid.server_traces[0], device, constraint)
    cuts = []
    for seed, tenths in product(range(4), range(1, 10)):
        theirs, ours = judge_together(
            grid.race(setting, policy, tenths / 10, seed) for policy in ("stochastic", "disco")
        )
        cuts.append(1.0 - ours.figures.p99_ttft_s / theirs.figures.p99_ttft_s)
    return fmean(cuts)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the recorded traces are not here; set DISCO_SHARED_DATA")
@pytest.mark.parametrize("prompts", PROMPTS)
def test_the_papers_cuts_are_reproduced(prompts):
    """On GPT-4o with the paper's devices: 20 to 40 % with a device budget, 40 % or more with a server's."""
    on_device = [mean_cut(prompts, "device", device) for device in PAPERS_DEVICES]
    assert min(on_device) > 0.2
    assert 0.2 < fmean(on_device) < 0.4
    assert min(mean_cut(prompts, "server", device) for device in PAPERS_DEVICES) > 0.4
