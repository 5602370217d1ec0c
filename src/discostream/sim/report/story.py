"""The report as a page: what each figure shows is said before it, for whoever has not read the paper."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from discostream.sim.grid import ALONE, BASELINE, OPTIMAL, PAPERS
from discostream.sim.page import as_table, page, paragraphs, script, section
from discostream.sim.report import charts, sheets
from discostream.sim.report.chart import DRAW, STYLE
from discostream.sim.report.findings import EQUAL_QOE, Findings
from discostream.sim.report.intervals import CONFIDENCE

__all__ = ["SECTIONS", "story"]

SECTIONS = {
    "In brief": (
        "Every request may be answered by a small model on a device, by a big one on a server, or by both "
        "in a race; its first token, and the time that takes (TTFT, time to first token), comes from "
        "whoever is first. A budget says what share of all prompt tokens one of the two, the device or the "
        "server, may process. A policy decides by the length of the prompt who starts when. An answer that "
        "has begun may move to the cheaper side (migration) while the reader still has something to read.",
        "All figures are simulated from recorded servers, with the functions that the live path uses. "
        "Policies plan by a random half of each trace and of the prompts, and are judged on the other "
        "half. Figures can be switched by the menus above them, and a click on a legend hides a line.",
    ),
    "The paper's table, and ours": (
        "The paper (arXiv 2502.11417) reports by how much its policy lowers the tail of TTFT against a "
        "baseline that spends the same budget at random. It takes the tail for P99: the time within which "
        "99 of 100 requests have their first token. The paper's own traces were never published, so that "
        "ours stand in for them: other models, other months, measured elsewhere. There is none of Cohere's "
        "Command.",
    ),
    "TTFT at the same budget": (
        f"How much sooner the first token comes than under {BASELINE}, which spends the same budget at "
        f"random, averaged over the shares: purple is sooner, orange later. {PAPERS} is the paper's policy, "
        f"{OPTIMAL} a linear programme. Where a cell is pale, racing does not help: the server is quick, or "
        "the device slow, whoever starts when.",
    ),
    "How TTFT is distributed": (
        "The share of requests that have content by a certain time. A line further to the left is quicker, "
        "and what a line does near the top is what the slowest requests meet.",
    ),
    "Budget against TTFT": (
        "What each policy makes of a budget: further left is cheaper, further down is quicker. The budget is "
        "what was really spent on the judged half, not what was planned.",
    ),
    "Spend against budget": (
        "Whether a plan keeps its budget on data that it was not made from. A line above the diagonal spends "
        "more than it may. The live path corrects this as it goes, which these plans do not.",
    ),
    "What migration saves": (
        "By how much the cost of an answer, in dollars with energy converted, falls when it may move to "
        "the side that writes more cheaply, and what that does to the quality of experience (QoE: 1 where "
        "nobody ever waits for a token, 0 where nothing comes). QoE counts as equal if it falls by at most "
        f"{EQUAL_QOE:g}. With a budget on the server, energy has the price of electricity; with one on the "
        "device, it is so dear that the device's cheaper phase costs twice the server's dearer one, which "
        "makes writing very dear on a device that reads with far less energy than it writes.",
    ),
    "What readers notice of it": (
        "In make-before-break, the old side goes on writing until the new one has written something; in "
        "stop-then-start, the paper's way, it stops first. A token is late if it comes after the reader "
        "wants it. TBT is the time between two tokens as they are read: at best the reader's own pace.",
    ),
    "Quality of experience": (
        "QoE of answers that stay where they begin, by policy. A late first token makes all tokens late, so "
        "that it weighs most on short answers.",
    ),
    "What each part is worth": (
        "The change when one part of a policy is left out; each box holds all servers and devices. Without "
        "the tail stage, no part of the budget insures against a slow server. Without waits, whoever would "
        "have waited draws lots instead and starts at once, as often as it would have started: as dear as "
        "before, but no longer spent on the requests that turn out late. Without warm standby, a device that "
        "lost a race forgets the prompt.",
    ),
    "A server that slows down": (
        "The paper takes the server's TTFT for known and fixed. Here it is three times slower for the middle "
        "third of a day. One line has plans that were made before; one makes them anew so that the budget "
        "holds; one also learns the server's TTFT from what it sees, cancelled losers included.",
    ),
    "What if it is misjudged": (
        "Migration rests on three guesses: how fast the reader reads, how long a handoff takes, and how much "
        "of the answer remains. The line is the median server, and the shade holds all.",
    ),
    "What this rests on": (
        f"The recorded servers. Intervals, in brackets, are Student's at {100 * CONFIDENCE:.0f} % over "
        "seeds, each of which splits and draws anew: they tell of chance in this data, not of another "
        "month.",
    ),
}
"""What is said in each section, before anything is shown."""


def story(findings: Findings) -> str:
    """The report as one HTML document, its scripts and data included."""
    return page("disco evaluate", "What policies make of the same budget", _sections(findings))


def _sections(findings: Findings) -> Iterator[str]:
    shown = _shown(findings)
    yield f"<style>{STYLE}</style>{script()}"
    for title, sentences in SECTIONS.items():
        yield section(title, paragraphs(*sentences), *shown[title])
    yield f"<script>{DRAW}</script>"


def _shown(findings: Findings) -> dict[str, list[str]]:
    """What follows the sentences of each section."""
    return {
        "In brief": [_points(sheets.headlines(findings)), _lost(findings)],
        "The paper's table, and ours": [
            charts.reproduction(findings).as_html(),
            as_table(sheets.reproduction(findings)),
        ],
        "TTFT at the same budget": [
            charts.cuts(findings).as_html(),
            *(
                _folded(f"All figures of {policy}", as_table(sheets.cuts(findings, policy)))
                for policy in findings.grid.policies
                if policy not in (*ALONE, BASELINE)
            ),
        ],
        "How TTFT is distributed": [charts.distributions(findings).as_html()],
        "Budget against TTFT": [charts.frontiers(findings).as_html()],
        "Spend against budget": [charts.spend(findings).as_html(), as_table(sheets.spend(findings))],
        "What migration saves": [
            charts.savings(findings).as_html(),
            paragraphs("The largest savings at equal QoE:"),
            as_table(sheets.biggest_savings(findings)),
            _folded("By device", as_table(sheets.savings(findings))),
        ],
        "What readers notice of it": [
            charts.delays(findings).as_html(),
            as_table(sheets.handoffs(findings)),
        ],
        "Quality of experience": [charts.experiences(findings).as_html()],
        "What each part is worth": [
            charts.ablations(findings).as_html(),
            paragraphs("The median setting, and in brackets the extremes:"),
            as_table(sheets.ablations(findings)),
        ],
        "A server that slows down": [
            charts.days(findings).as_html(),
            _folded("All figures", as_table(sheets.days(findings))),
        ],
        "What if it is misjudged": [
            charts.sensitivity(findings).as_html(),
            _folded("All figures", as_table(sheets.sensitivity(findings))),
        ],
        "What this rests on": [
            paragraphs(sheets.setup(findings)),
            _points(
                [
                    f"{name}, {requests} requests: {note}"
                    for name, note, requests in sheets.servers(findings).rows
                ]
            ),
        ],
    }


def _points(sentences: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>\n"


def _lost(findings: Findings) -> str:
    if not findings.lost:
        return ""
    return paragraphs("Nothing came of these cells, and what would rest on them is left out:") + _points(
        sheets.lost(findings)
    )


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>\n"
