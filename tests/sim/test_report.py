"""The report: what it concludes from cells, and that it shows all of it, and nothing else."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import msgspec
import pytest
from evaluations import Here, a_grid

from discostream.sim.cells import PROBABILITIES, Lost, Verdict
from discostream.sim.evaluate import Evaluation, evaluate
from discostream.sim.figures import Figures
from discostream.sim.grid import Setting
from discostream.sim.report import charts, sheets
from discostream.sim.report.chart import DRAW
from discostream.sim.report.deduce import findings_of
from discostream.sim.report.files import DATA, PAGE, SUMMARY, TABLE, write_report
from discostream.sim.report.intervals import Interval, interval_of, t_quantile
from discostream.sim.report.story import SECTIONS
from discostream.sim.world import Handoff
from discostream.traces.servers import read_trace
from discostream.traces.workloads import read_workload

DEVICE = "xiaomi-14-qwen1.5-0.5b"
SETTING = Setting("builtin:gpt-4o", DEVICE, "device")


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (120, 1.9799)]
)
def test_students_quantiles_are_those_of_the_tables(freedom, quantile):
    """At 97.5 %, for odd and even degrees of freedom."""
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)


def test_an_interval_of_known_numbers():
    """Of 0.4, 0.5 and 0.6: 0.5, and 4.3027 x 0.1 / sqrt(3) to both sides."""
    interval = interval_of([0.4, 0.5, 0.6])
    assert interval.mean == pytest.approx(0.5)
    assert interval.high - 0.5 == pytest.approx(0.24841, abs=1e-5)
    assert 0.5 - interval.low == pytest.approx(0.24841, abs=1e-5)
    assert interval_of([0.7]) == Interval(0.7, None, None, 1)
    assert interval_of([0.3, 0.3]) == Interval(0.3, 0.3, 0.3, 2)


def figures(**fields):
    """Nothing of note, but for what is given."""
    blank = {
        name: {str: "", int: 100, float: 0.0}[kind]
        for name, kind in ((f.name, f.type) for f in msgspec.structs.fields(Figures))
    }
    return Figures(**{**blank, **fields})


def an_evaluation(told, **fields):
    """A grid whose cells come to what they are told to; `None` is lost."""
    grid = a_grid(lasting=(), **fields)
    found, lost = {}, []
    for cell in (cell for task in grid.tasks() for cell in task):
        came_to = told(cell.case, cell.waits)
        if came_to is None:
            lost.append(Lost(cell=cell, reason="was left out"))
        else:
            figured = figures(policy=cell.case.policy, **came_to)
            found[cell] = Verdict(cell=cell, figures=figured, ttft_s=(1.0,) * len(PROBABILITIES))
    traces = {source: read_trace(source) for source in grid.server_traces}
    return Evaluation(grid, traces, read_workload(grid.workload), found, tuple(lost))


def test_cuts_are_means_over_shares_and_intervals_over_seeds():
    """Against a baseline of 2 s, P99s of 1.2, 1.0 and 0.8 s are cuts of 40, 50 and 60 %, a seed each."""

    def told(case, waits):
        ours = {"p99_ttft_s": 1.2 - 0.2 * case.seed, "mean_ttft_s": 0.9 if case.share == 0.3 else 0.5}
        return {"spent_share": case.share, **(ours if case.policy == "disco" else BASE)}

    (cut,) = findings_of(an_evaluation(told, seeds=3, policies=("stochastic", "disco"))).cuts
    assert (cut.server, cut.device, cut.constraint, cut.policy) == ("gpt-4o", DEVICE, "device", "disco")
    assert cut.shares == (0.3, 0.9)
    assert (cut.p99_ttft.mean, cut.p99_ttft.n) == (pytest.approx(0.5), 3)
    assert cut.p99_ttft.high == pytest.approx(0.5 + 4.30265 * 0.1 / 3**0.5, abs=1e-6)
    assert cut.mean_ttft == Interval(pytest.approx(0.3), pytest.approx(0.3), pytest.approx(0.3), 3)


BASE = {"p99_ttft_s": 2.0, "mean_ttft_s": 1.0}


def test_equal_spend_is_read_off_the_baselines_frontier():
    """The baseline falls from 4 s at no spend to 3 at 0.3 and 1 at 0.9; where 0.6 is spent, it is at 2 s."""
    heights = {("server-only", 1.0): 4.0, ("stochastic", 0.3): 3.0, ("stochastic", 0.9): 1.0}

    def told(case, waits):
        if case.policy == "disco":
            return {"spent_share": 0.6, "mean_ttft_s": 1.5, "p99_ttft_s": 1.0}
        spent = {"server-only": 0.0, "device-only": 1.0}.get(case.policy, case.share)
        height = heights.get((case.policy, case.share), 9.0)
        return {"spent_share": spent, "mean_ttft_s": height, "p99_ttft_s": height}

    policies = ("server-only", "device-only", "stochastic", "disco")
    (cut,) = findings_of(an_evaluation(told, policies=policies)).cuts
    assert cut.mean_ttft_at_spend.mean == pytest.approx(1 - 1.5 / 2.0)
    assert cut.p99_ttft_at_spend.mean == pytest.approx(1 - 1.0 / 2.0)
    assert cut.mean_ttft.mean == pytest.approx(((1 - 1.5 / 3.0) + (1 - 1.5 / 1.0)) / 2)


def test_the_most_saved_keeps_qoe():
    """A fall of 80 % that costs 0.01 of QoE does not count; one of 50 % that costs nothing does."""

    def told(case, waits):
        if case.handoff is not Handoff.MAKE_BEFORE_BREAK:
            return {"cost": 1.0, "qoe_mean": 0.9}
        dear = case.share == 0.9
        return {"cost": 0.2 if dear else 0.5, "qoe_mean": 0.89 if dear else 0.8995}

    findings = findings_of(an_evaluation(told))
    assert [saving.fall.mean for saving in findings.savings] == pytest.approx([0.5, 0.8])
    (most,) = findings.most_saved
    assert most.saving == findings.savings[0]
    assert (most.case.share, most.case.server_trace) == (0.3, "builtin:gpt-4o")
    assert sheets.biggest_savings(findings).rows[0][:4] == ("gpt-4o", DEVICE, "device", "0.3")
    assert any("cuts cost by up to 50 % at equal QoE" in told for told in sheets.headlines(findings))


def test_every_migration_counts_alike():
    """Ten answers that moved with 4 delayed tokens each and thirty with none: 1 a migration."""

    def told(case, waits):
        if case.handoff is not Handoff.MAKE_BEFORE_BREAK:
            return {"cost": 1.0}
        few = case.seed == 0
        return {
            "cost": 1.0,
            "migrated_share": 0.1 if few else 0.3,
            "delayed_tokens_mean": 4.0 if few else 0.0,
        }

    findings = findings_of(an_evaluation(told, seeds=2))
    stay, keep, stop = findings.moves
    assert [each.handoff for each in (stay, keep, stop)] == [handoff.value for handoff in Handoff]
    assert keep.delayed_tokens == pytest.approx(1.0)
    assert keep.migrated_share == pytest.approx(0.2)
    assert stay.delayed_tokens is stop.delayed_tokens is None


def test_a_loss_is_measured_by_the_whole():
    """Without its tail stage a policy of 1 s takes 1.5 s, without waits 2 s: 50 and 100 % more."""

    def told(case, waits):
        return {"mean_ttft_s": 2.0 if not waits else 1.5 if case.alpha == 0.0 else 1.0}

    findings = findings_of(an_evaluation(told))
    changes = {(each.policy, each.without): each.mean_ttft.mean for each in findings.losses}
    assert changes["disco", "no tail stage"] == pytest.approx(0.5)
    assert changes["disco", "no waits"] == changes["optimal", "no waits"] == pytest.approx(1.0)
    assert changes["disco", "stop-then-start"] == 0.0


def test_the_papers_figures_stand_beside_ours():
    """GPT-4o stands for GPT; for LLaMA and Command there is no trace among these, which is said."""

    def told(case, waits):
        return {"p99_ttft_s": 1.0 if case.policy == "disco" else 2.0}

    findings = findings_of(an_evaluation(told, constraints=("device", "server")))
    ours = {
        (each.service, each.constraint, each.device): (each.paper, each.server, each.ours and each.ours.mean)
        for each in findings.reproductions
    }
    assert len(ours) == 12
    assert ours["GPT", "device", DEVICE] == (0.1632, "gpt-4o", 0.5)
    assert ours["GPT", "server", "pixel-7-pro-bloom-1.1b"] == (0.2385, None, None)
    assert {server for (service, *_), (_, server, _) in ours.items() if service != "GPT"} == {None}


def test_what_is_lost_is_named_and_left_out():
    """A seed without its baseline is not compared, the others are, and the report says which cell it was."""

    def told(case, waits):
        if (case.policy, case.seed, case.share) == ("stochastic", 1, 0.9):
            return None
        return {"p99_ttft_s": 1.0 if case.policy == "disco" else 2.0}

    findings = findings_of(an_evaluation(told, seeds=3, policies=("stochastic", "disco")))
    assert findings.cuts[0].p99_ttft.n == 2
    assert sheets.lost(findings) == [
        f"stochastic at 0.9, budget on the device, builtin:gpt-4o with {DEVICE}, seed 1: was left out"
    ]


def test_two_traces_of_one_name_are_told_apart(tmp_path):
    """Files of the same name in two folders go by their paths, others by their names."""
    paths = [tmp_path / folder / "server.csv" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("ttft_s\n" + "0.5\n" * 10)
    sources = (*map(str, paths), "builtin:gpt-4o")
    findings = findings_of(an_evaluation(lambda case, waits: {}, server_traces=sources))
    assert [server.name for server in findings.servers] == [*map(str, paths), "gpt-4o"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report on two servers, two devices and both constraints, and its folder."""
    folder = tmp_path_factory.mktemp("report")
    grid = a_grid(
        server_traces=("builtin:gpt-4o", "builtin:claude-haiku"),
        devices=("pixel-7-pro-bloom-1.1b", "80,21"),
        constraints=("device", "server"),
        seeds=2,
    )
    traces = {source: read_trace(source) for source in grid.server_traces}
    evaluation = evaluate(grid, traces, folder, Here())
    write_report(evaluation, folder)
    return evaluation, folder


class Page(HTMLParser):
    """Everything that a browser would load or show, scripts aside."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.headings, self.data, self._inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._inside = tag if dict(attributes).get("type") != "application/json" else "data"
        self.loads += [value for name, value in attributes if name in ("src", "href", "action", "data")]

    def handle_data(self, text):
        if self._inside == "h2":
            self.headings.append(text)
        if self._inside == "data":
            self.data.append(json.loads(text))

    def handle_endtag(self, tag):
        self._inside = ""


def test_the_page_has_every_section_and_loads_nothing(written):
    """Each section is there, in order, opened by a sentence; nothing names an address, none may be asked."""
    text = (written[1] / PAGE).read_text(encoding="utf-8")
    page = Page(text)
    assert page.headings == list(SECTIONS)
    assert page.loads == []
    assert "default-src 'none'" in text
    assert text.count("Plotly.react(figure") == 1
    for title, sentences in SECTIONS.items():
        assert sentences, title
    assert '<meta name="viewport" content="width=device-width' in text


def test_every_figure_is_one_that_plotly_knows(written):
    """All traces and layouts of all views pass plotly's own validation, and every chart has a view."""
    import plotly.graph_objects as go

    page = Page((written[1] / PAGE).read_text(encoding="utf-8"))
    assert len(page.data) == 11
    for spec in page.data:
        assert spec["views"]
        for traces in spec["views"].values():
            go.Figure([{**spec["common"], **trace} for trace in traces], spec["layout"])


def numbers(value):
    if isinstance(value, dict):
        return {number for each in value.values() for number in numbers(each)}
    if isinstance(value, list | tuple):
        return {number for each in value for number in numbers(each)}
    return {round(value, 4)} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def test_no_figure_without_numbers_behind_it(written):
    """What the views of the figures draw is in the findings, to the last of their numbers."""
    findings = json.loads((written[1] / DATA).read_bytes())
    known = numbers(findings)
    for chart in (charts.cuts, charts.savings, charts.distributions, charts.frontiers, charts.days):
        drawn = chart(findings_of(written[0]))
        for traces in drawn.views.values():
            for trace in traces:
                heights = numbers([trace.get("y") or drawn.common.get("y"), trace.get("z")])
                assert heights <= known, drawn.name


PRETENCE = """
const specs = SPECS, drawn = [];
globalThis.Plotly = { react: (_, traces, layout) => drawn.push([traces.length, layout]) };
const figures = specs.map((spec) => {
  const keys = Object.keys(spec.views)[0].split(".").filter((key) => key !== "");
  const selects = keys.map((value) => ({ value, addEventListener(_, act) { this.act = act; } }));
  const found = { script: { textContent: JSON.stringify(spec) }, ".canvas": {} };
  return { selects, querySelector: (what) => found[what], querySelectorAll: () => selects };
});
globalThis.document = { querySelectorAll: () => figures };
"""

CHOICE = """
const first = drawn.map(([traces]) => traces), select = figures[1].selects[0];
select.value = "9";
select.act();
const [last, layout] = drawn.at(-1);
console.log(JSON.stringify({ first, last, note: layout.annotations[0].text }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node to run the page's script")
def test_the_script_draws_all_and_again_when_the_reader_chooses(written, tmp_path):
    """Run against a page in pretence: each figure is drawn once, and its other view when a menu changes."""
    specs = Page((written[1] / PAGE).read_text(encoding="utf-8")).data
    program = tmp_path / "draw.js"
    pretence = PRETENCE.replace("SPECS", json.dumps(specs))
    program.write_text(f"{pretence}{DRAW}{CHOICE}", encoding="utf-8")
    ran = subprocess.run(["node", str(program)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert len(told["first"]) == len(specs)
    assert min(told["first"]) >= 1
    assert (told["last"], told["note"]) == (0, "nothing to show here")


def test_the_table_has_every_cell(written):
    """A row each, with all that decided it and all that came of it; the numbers read back are the same."""
    evaluation, folder = written
    with (folder / TABLE).open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(evaluation.found) == sum(map(len, evaluation.grid.tasks()))
    for row, outcome in zip(rows, evaluation.found.values(), strict=True):
        case = outcome.cell.case
        assert (row["server_trace"], row["device"], row["policy"]) == (
            case.server_trace,
            case.device,
            case.policy,
        )
        assert (float(row["share"]), int(row["seed"])) == (case.share, case.seed)
        came_to = outcome.figures if isinstance(outcome, Verdict) else outcome.whole
        assert float(row["mean_ttft_s"]) == came_to.mean_ttft_s
        assert float(row["spent_share"]) == came_to.spent_share
    assert {row["kind"] for row in rows} == {"answers", "drift"}


def test_the_summary_has_the_tables(written):
    """In Markdown: the sentences, the paper's table, and a row for each server, device and constraint."""
    evaluation, folder = written
    text = (folder / SUMMARY).read_text(encoding="utf-8")
    for sentence in sheets.headlines(findings_of(evaluation)):
        assert f"- {sentence}\n" in text
    for heading in ("The paper's table, and ours", "TTFT of disco against stochastic at the same budget"):
        assert f"## {heading}\n" in text
    part = text.split("## TTFT of optimal against")[1].split("##")[0]
    assert len(re.findall(r"^\| (gpt-4o|claude-haiku) ", part, re.MULTILINE)) == len(evaluation.grid.settings)
    widths = [line.count("|") for line in part.splitlines() if line.startswith("|")]
    assert len(set(widths)) == 1


def test_a_report_can_be_written_of_little(tmp_path):
    """One seed, one share, and only the baseline: sections that have nothing to show stay empty."""
    grid = a_grid(policies=("stochastic",), shares=(0.5,), lasting=())
    traces = {source: read_trace(source) for source in grid.server_traces}
    findings = write_report(evaluate(grid, traces, tmp_path, Here()), tmp_path)
    assert findings.cuts == findings.savings == findings.losses == findings.days == ()
    assert sheets.headlines(findings) == []
    assert Page((tmp_path / PAGE).read_text(encoding="utf-8")).headings == list(SECTIONS)
