"""`disco plan`: figures by closed forms, tables that say what plans do, and pages that ask nobody."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as some
from processes import disco
from rich.color import ColorSystem

from discostream.builtin import builtin_output_lengths, builtin_profiles, builtin_prompt_lengths
from discostream.cli.plan import screen
from discostream.cli.plan.account import as_json
from discostream.cli.plan.page import plan_page
from discostream.cli.plan.prospects import prospects_of, report_on, rows_of, served_by
from discostream.cli.plan.report import (
    Constraint,
    ConstraintBasis,
    ExchangeRate,
    Findings,
    RateBasis,
    Traffic,
    TrafficBasis,
)
from discostream.cli.plan.screen import patience, show
from discostream.cli.plan.sheets import comparison
from discostream.cli.plan.survey import survey
from discostream.cli.plan.words import (
    constraint_in_words,
    energy,
    headline,
    money,
    percent,
    prices_in_words,
    rests_on,
    source_in_words,
    span,
)
from discostream.cli.screen import errors, output
from discostream.config import EndpointSettings, PolicySettings, embedded_pair, settings_from
from discostream.core.budget import Allowance, Resource
from discostream.core.cost import Energy, Prices, Rates
from discostream.core.distributions import Distribution
from discostream.core.forecast import forecast
from discostream.core.plans import PlanTable
from discostream.core.plugins import load_policy, policy_names
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.endpoints.registry import build_endpoint
from discostream.errors import ConfigError
from discostream.library import connect
from discostream.sim.page import require_plotly, write_page
from discostream.types import Kind

USD_PER_JOULE = 1e-9
PROMPT_TOKENS = 100


def constant(value: float) -> Distribution:
    """A value that was seen so often that nobody need fear another."""
    return Distribution.of_table([0.0, 1.0 - 1e-12, 1.0], [value] * 3)


def laptop(ttft_s: float, *, s_per_token: float = 0.0, j_per_prompt_token: float = 0.0) -> EndpointProfile:
    energy = Energy(j_per_prompt_token, 0.0)
    ttft = DeviceTtft.believed(s_per_token, ttft_s, 0.0)
    rates = Rates.of(Prices(), energy, USD_PER_JOULE)
    return EndpointProfile("laptop", Kind.DEVICE, rates, ttft, 50.0, energy=energy)


def cloud(ttft: Distribution, *, usd_per_mtok: float = 0.0, name: str = "cloud") -> EndpointProfile:
    prices = Prices(usd_per_mtok, 0.0)
    rates = Rates.of(prices, Energy(), USD_PER_JOULE)
    return EndpointProfile(name, Kind.SERVER, rates, ServerTtft(ttft), 50.0, prices=prices)


def knowing(*endpoints: EndpointProfile, allowances: tuple[Allowance, ...] = ()) -> Known:
    """Prompts of a hundred tokens, answers of fifty."""
    return Known(endpoints, Lengths(constant(PROMPT_TOKENS)), Lengths(constant(50)), allowances)


def constants(
    *, device_s: float, server_s: float, money: float | None = None, heat: float | None = None
) -> Known:
    """Two endpoints that never vary: a server start costs $0.001, a device start 100 J; $ and J a request."""
    allowances = []
    if money is not None:
        allowances.append(Allowance("money", Resource.USD, None, money))
    if heat is not None:
        allowances.append(Allowance("heat", Resource.JOULES, None, heat))
    device = laptop(device_s, j_per_prompt_token=1.0)
    return knowing(device, cloud(constant(server_s), usd_per_mtok=10.0), allowances=tuple(allowances))


def realistic(*allowances: Allowance) -> Known:
    """A phone's speed, two real services, real lengths."""
    services = builtin_profiles()
    return Known(
        (
            laptop(0.1, s_per_token=1 / 80, j_per_prompt_token=0.04),
            cloud(services["llama-2-70b-replicate"].ttft, usd_per_mtok=0.65),
            cloud(services["gpt-4o"].ttft, usd_per_mtok=2.5, name="other"),
        ),
        Lengths(builtin_prompt_lengths()),
        Lengths(builtin_output_lengths()),
        allowances,
    )


def the_settings(known: Known, **policy):
    endpoints = [{"name": e.name, "kind": e.kind.value, "dialect": "scripted"} for e in known.endpoints]
    return settings_from({"endpoint": endpoints, "policy": policy})


def the_report(known: Known, **policy):
    findings = Findings(
        known,
        dict.fromkeys((endpoint.name for endpoint in known.endpoints), 0),
        ExchangeRate(USD_PER_JOULE, RateBasis.FIXED, None),
        Traffic(1000.0, TrafficBasis.OPTION),
    )
    return report_on(the_settings(known, **policy), findings)


CLOSED_FORMS = [
    # A server start saves 0.3 s for $0.001, so a cent a day (1e-5 $ a request) starts it for 1 % more.
    (
        constants(device_s=3.0, server_s=2.7, money=5e-4),
        ["One more cent a day would cut mean TTFT by 3 ms: budget 'money' ($0.50 a day) is used up."],
    ),
    # A device start saves 2 s for 100 J; a kilojoule a day is one a request.
    (
        constants(device_s=1.0, server_s=3.0, heat=50.0),
        ["One more kilojoule a day would cut mean TTFT by 20 ms: budget 'heat' (50 kJ a day) is used up."],
    ),
    # Every request needs one of them: money sends half to the server, and the other half takes 50 kJ.
    (
        constants(device_s=3.0, server_s=1.0, money=5e-4, heat=60.0),
        [
            "One more cent a day would cut mean TTFT by 20 ms: budget 'money' ($0.50 a day) is used up.",
            "More of budget 'heat' (60 kJ a day) would not help: it is not used up (50 kJ a day).",
        ],
    ),
    # Racing every request costs $1.00 a day, and no more can be spent.
    (
        constants(device_s=3.0, server_s=2.7, money=2e-3),
        ["More of budget 'money' ($2.00 a day) would not help: it is not used up ($1.00 a day)."],
    ),
    # Without money, 70 % of the requests would need the 70 J that there are not.
    (
        constants(device_s=3.0, server_s=1.0, money=0.0, heat=30.0),
        [
            "No plan keeps all budgets; the best takes $0.70 a day of budget 'money' ($0.00 a day).",
            "It keeps budget 'heat' (30 kJ a day), of which it takes 30 kJ a day.",
        ],
    ),
]


@pytest.mark.parametrize(("known", "words"), CLOSED_FORMS, ids=[words[0] for _, words in CLOSED_FORMS])
def test_shadow_prices_are_told_in_exact_words(known, words):
    """What one more unit of a budget buys is what the two endpoints' times and costs say."""
    assert list(prices_in_words(the_report(known))) == words


@pytest.fixture(scope="module")
def under_money():
    """A report with half a dollar a day, for a thousand requests."""
    return the_report(constants(device_s=3.0, server_s=2.7, money=5e-4))


@pytest.mark.parametrize(
    ("s_per_unit", "used_usd", "words"),
    [
        (300.0, 5e-4, "One more cent a day would cut mean TTFT by 3 ms: {whole} is used up."),
        (
            300.0,
            1e-4,
            "One more cent a day would cut mean TTFT by 3 ms: {whole}, "
            "of which $0.10 a day is expected to be used.",
        ),
        (5.1, 5e-4, "One more cent a day would cut mean TTFT by 0.051 ms: {whole} is used up."),
        (4.9, 5e-4, "More of {whole} would hardly help, though it is used up."),
        (4.9, 1e-4, "More of {whole} would not help: it is not used up ($0.10 a day)."),
        (0.0, 0.0, "More of {whole} would not help: it is not used up ($0.00 a day)."),
    ],
)
def test_what_is_worth_having_is_told_by_the_gain(under_money, s_per_unit, used_usd, words):
    """A budget that gains a twentieth of a millisecond helps, spent or not; one that gains less does not."""
    (price,) = under_money.prices
    spending = replace(price.spending, expected=used_usd)
    price = replace(price, spending=spending, s_per_unit=s_per_unit)
    told = list(prices_in_words(replace(under_money, prices=(price,))))
    assert told == [words.format(whole="budget 'money' ($0.50 a day)")]


@pytest.mark.parametrize(
    ("tell", "figure", "words"),
    [
        (energy, 0.0, "0 J"),
        (energy, 999.4, "999 J"),
        (energy, 999.6, "1 kJ"),
        (energy, 999_400.0, "999 kJ"),
        (energy, 999_600.0, "1 MJ"),
        (energy, 9.994e8, "999 MJ"),
        (energy, 9.996e8, "1 GJ"),
        (energy, 2.5e11, "250 GJ"),
        (percent, 0.0, "0 %"),
        (percent, 9.9e-7, "under 0.0001 %"),
        (percent, 1e-6, "0.0001 %"),
        (percent, 0.000987, "0.099 %"),
        (percent, 0.3, "30 %"),
        (percent, 1.0, "100 %"),
        (span, 0.0, "0 ms"),
        (span, 0.9944, "994 ms"),
        (span, 0.9996, "1.00 s"),
        (money, 0.0, "$0.00"),
        (money, 1234.5, "$1,234.50"),
        (money, 0.000123, "$0.00012"),
        (money, 1e-7, "$1.0e-07"),
    ],
)
def test_figures_have_few_digits_and_the_unit_that_keeps_them_so(tell, figure, words):
    """What rounds up to a thousand of a unit is one of the next; less than next to nothing is called so."""
    assert tell(figure) == words


@pytest.mark.parametrize(("number", "told"), [(1, "1 {}"), (2, "2 {}s"), (1024, "1,024 {}s")])
def test_one_is_not_several(under_money, number, told):
    """Requests and attempts are counted in the singular where there was one."""
    lengths = Lengths(constant(PROMPT_TOKENS))
    for at_s in range(number):
        lengths = lengths.observe(PROMPT_TOKENS, float(at_s))
    known = replace(under_money.findings.known, prompt_tokens=lengths)
    traffic = Traffic(float(number), TrafficBasis.LEDGER)
    findings = replace(under_money.findings, known=known, traffic=traffic)
    sentences = list(rests_on(replace(under_money, findings=findings)))
    assert sentences[0].endswith(f"({told.format('request')}).")
    assert f"Planned for {told.format('request')} a day, as the ledger has them lately." in sentences
    assert source_in_words(known.of("cloud"), number) == told.format("attempt")


def test_a_server_that_is_never_the_first_is_worth_nothing():
    """It is kept for a device that stays silent as it never did; what that may take is next to nothing."""
    report = the_report(constants(device_s=3.0, server_s=5.0, money=5e-4), name="optimal")
    (told,) = prices_in_words(report)
    assert told.startswith("More of budget 'money' ($0.50 a day) would not help: it is not used up")
    assert report.prospects[0].forecast.usd < 1e-4 * 5e-4


def test_a_share_has_a_price_too():
    """With a server two seconds faster, one per cent of all prompt tokens is worth 20 ms."""
    report = the_report(constants(device_s=3.0, server_s=1.0), share=0.5)
    assert list(prices_in_words(report)) == [
        "One more per cent of prompt tokens on the server would cut mean TTFT by 20 ms: "
        "policy.share (50 % of prompt tokens on the server) is used up."
    ]
    assert headline(report) == "Policy disco under policy.share (50 % of prompt tokens on the server)"


def test_the_step_in_words_is_small_beside_the_budget():
    """The same budget a request is told by the dollar, the cent or less, as requests are many or few."""
    report = the_report(constants(device_s=3.0, server_s=1.0, money=5e-4))
    for requests_per_day, words in (
        (1e6, "One more dollar a day would cut mean TTFT by 2 ms"),
        (1e3, "One more cent a day would cut mean TTFT by 20 ms"),
        (100.0, "A hundredth of a cent more a day would cut mean TTFT by 2 ms"),
    ):
        traffic = Traffic(requests_per_day, TrafficBasis.OPTION)
        (told,) = prices_in_words(replace(report, findings=replace(report.findings, traffic=traffic)))
        assert told.startswith(words)


@some.composite
def plan_tables(draw):
    """Any table of two endpoints: rows at odd places, mixed actions, offsets of every sort."""
    bounds = sorted(draw(some.lists(some.floats(0.0, 40.0), max_size=5)))
    actions = draw(some.integers(1, 3))
    offset = some.sampled_from([0.0, 0.25, 1.5, math.inf])
    other = some.sampled_from([0.0, 0.25, math.inf, math.nan])
    rows = len(bounds) + 1
    offsets = [[[draw(offset), draw(other)] for _ in range(actions)] for _ in range(rows)]
    cuts = [sorted(draw(some.lists(some.integers(0, 16), min_size=actions - 1, max_size=actions - 1)))] * rows
    weights = np.diff(np.array([[0, *cut, 16] for cut in cuts]), axis=1) / 16
    return PlanTable("any", ("laptop", "cloud"), np.array([*bounds, math.inf]), np.array(offsets), weights)


@given(plan_tables())
@trials(max_examples=60)
def test_the_merged_table_says_what_plans_do(table):
    """For every length, the row's actions and shares are those that `choose` draws; neighbours differ."""
    rows = rows_of(constants(device_s=3.0, server_s=1.0), table)
    assert rows[0].shortest == 1
    assert rows[-1].longest is None
    for row, following in pairwise(rows):
        assert following.shortest == row.longest + 1
        assert {a.starts: a.share for a in row.actions} != {a.starts: a.share for a in following.actions}
    for tokens in (*range(1, 45), 10_000):
        (row,) = [r for r in rows if r.shortest <= tokens <= (r.longest or math.inf)]
        drawn = [table.choose(tokens, (place + 0.5) / 16).starts for place in range(16)]
        assert {action.starts: action.share * 16 for action in row.actions} == {
            starts: drawn.count(starts) for starts in drawn
        }


@pytest.mark.parametrize("policy", ["disco", "optimal", "stochastic", "server-only", "device-only"])
def test_rows_together_make_the_forecast(policy):
    """The rows' mean TTFTs, by how frequent such prompts are, are the forecast's; so is the median."""
    known = realistic()
    table = load_policy(policy)(known, PolicySettings(name=policy, share=0.3))
    expected = forecast(known, table)
    rows = [row for row in rows_of(known, table) if row.mean_ttft_s is not None]
    assert sum(row.prompts for row in rows) == pytest.approx(1.0)
    mean_s = sum(row.prompts * row.mean_ttft_s for row in rows)
    assert mean_s == pytest.approx(expected.mean_ttft_s, rel=1e-6)
    quantiles = np.array([expected.p50_ttft_s, expected.p90_ttft_s, expected.p99_ttft_s])
    assert served_by(known, table, quantiles) == pytest.approx([0.5, 0.9, 0.99], abs=2e-3)


def test_the_share_that_has_content_grows_in_steps():
    """With a server after 1 s for half of the requests and a device after 3 s, half is served in between."""
    known = constants(device_s=3.0, server_s=1.0)
    table = load_policy("stochastic")(known, PolicySettings(share=0.5))
    served = served_by(known, table, np.array([0.9, 1.1, 2.9, 3.1]))
    assert served == pytest.approx([0.0, 0.5, 0.5, 1.0])


def test_json_tells_what_forecast_says():
    """Every policy's figures and spends are those of `forecast`; the table and all numbers are plain JSON."""
    known = realistic(
        Allowance("money", Resource.USD, None, 4e-4), Allowance("heat", Resource.JOULES, None, 30.0)
    )
    report = the_report(known, name="optimal")
    told = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert told["policies"][0]["policy"] == "optimal"
    assert {each["policy"] for each in told["policies"]} == set(policy_names())
    for each in told["policies"]:
        if each["error"]:
            continue
        table = load_policy(each["policy"])(known, PolicySettings(name=each["policy"]))
        expected = forecast(known, table)
        for name in ("mean_ttft_s", "p50_ttft_s", "p90_ttft_s", "p99_ttft_s", "lateness_s", "usd", "joules"):
            assert each[name] == pytest.approx(getattr(expected, name), rel=1e-9), (each["policy"], name)
        assert each["token_share"] == pytest.approx(
            {kind.value: share for kind, share in expected.token_share.items()}
        )
        money, heat = each["spends"]
        assert (money["expected"], heat["expected"]) == (each["usd"], each["joules"])
    assert [price["budget"] for price in told["shadow_prices"]] == ["money", "heat"]


def test_policies_that_break_a_budget_are_marked(capsys):
    """A policy that would take twice what it may is marked, by how much it would; the others are not."""
    known = constants(device_s=3.0, server_s=1.0, money=5e-4)
    report = the_report(known)
    assert [p.policy for p in report.prospects if any(s.exceeds for s in p.spendings)] == [
        "fast",
        "server-only",
    ]
    show(report)
    shown = capsys.readouterr().out
    assert "server-only !" in shown
    assert "disco !" not in shown
    assert "! server-only takes $1.00 a day; budget 'money' allows $0.50 a day." in unwrapped(shown)


def unwrapped(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("device_s", [3.0, 0.5])
def test_the_frontier_of_constant_endpoints_is_a_line(device_s):
    """With a server after 1 s, every policy's mean TTFT is the device's less a share of what it saves."""
    report = the_report(constants(device_s=device_s, server_s=1.0), constraint="server")
    first_s = min(device_s, 1.0)
    assert [curve.policy for curve in report.curves] == ["stochastic", "disco", "optimal"]
    for curve in report.curves:
        assert [curve.points[0].share, curve.points[-1].share] == [0.0, 1.0]
        for point in curve.points:
            mean_s = device_s - point.share * (device_s - first_s)
            assert point.mean_ttft_s == pytest.approx(mean_s, rel=1e-3)
            assert point.taken <= point.share * 1.001


def test_the_frontier_never_rises_by_more_budget():
    """On real traces, more share never makes `optimal` slower, and it is never slower than the others."""
    report = the_report(realistic(), constraint="device")
    means = {curve.policy: np.array([point.mean_ttft_s for point in curve.points]) for curve in report.curves}
    assert (np.diff(means["optimal"]) <= 1e-3 * means["optimal"][:-1]).all()
    for other in ("stochastic", "disco"):
        assert (means["optimal"] <= means[other] * 1.02).all()


def install_policy(folder, name: str, code: str, monkeypatch) -> None:
    """An installed package whose policy of this name is `policy` in that code."""
    (folder / f"{name}_policy.py").write_text(code, encoding="utf-8")
    info = folder / f"{name}_policy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-policy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[discostream.policies]\n{name} = {name}_policy:policy\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(
    ("name", "code", "why"),
    [
        ("dividing", "def policy(known, settings):\n    return 1 / 0\n", "division by zero"),
        ("importing", "import not_installed_anywhere\n", "not_installed_anywhere"),
        (
            "inventing",
            "from discostream.core.plans import PlanTable\nimport numpy as np\n"
            "def policy(known, settings):\n"
            "    one = np.ones((1, 1))\n"
            "    return PlanTable('x', ('nobody',), np.array([np.inf]), np.zeros((1, 1, 1)), one)\n",
            "plans ['nobody']",
        ),
    ],
)
def test_a_strangers_policy_that_fails_is_listed(name, code, why, tmp_path, monkeypatch):
    """It is named with its error among the policies that make no plan, and all others are shown."""
    install_policy(tmp_path, name, code, monkeypatch)
    known = constants(device_s=3.0, server_s=1.0)
    prospects, failures = prospects_of(known, the_settings(known))
    (failed,) = [failure for failure in failures if failure.policy == name]
    assert why in failed.error
    assert {"disco", "optimal", "stochastic"} <= {prospect.policy for prospect in prospects}


def test_a_strangers_policy_in_force_that_fails_is_a_mistake_of_the_settings(tmp_path, monkeypatch):
    """Without a plan there is nothing to show, and the policy is what is wrong."""
    install_policy(tmp_path, "odd", "def policy(known, settings):\n    return [][0]\n", monkeypatch)
    known = constants(device_s=3.0, server_s=1.0)
    with pytest.raises(ConfigError, match=r"policy\.name = 'odd': makes no plan"):
        prospects_of(known, the_settings(known, name="odd"))


def test_one_endpoint_alone_has_a_plan_but_nothing_to_hold_back(capsys):
    """With a server only there is no frontier, policies for devices make no plan, and the rest is shown."""
    report = the_report(knowing(cloud(constant(1.0), usd_per_mtok=10.0)))
    assert report.constraint is None
    assert report.curves == ()
    assert as_json(report)["frontier"] is None
    assert "device-only" in {failure.policy for failure in report.failures}
    (row,) = report.rows
    assert row.mean_ttft_s == pytest.approx(1.0)
    show(report)
    assert "Policy disco, without a budget" in capsys.readouterr().out
    assert "Budget against TTFT" not in plan_page(report)


@pytest.mark.parametrize("policy", ["disco", "optimal", "offsets"])
def test_private_requests_are_planned_without_servers(policy, capsys):
    """Where every request is private, servers are left out of all plans, and the device starts at once."""
    known = constants(device_s=3.0, server_s=1.0)
    offsets = {"cloud": 0.0, "laptop": 2.0} if policy == "offsets" else {}
    report = the_report(known, name=policy, private=True, constraint="device", share=0.1, offsets=offsets)
    assert {start.endpoint for row in report.rows for a in row.actions for start in a.starts} == {"laptop"}
    for prospect in report.prospects:
        assert prospect.forecast.mean_ttft_s == pytest.approx(3.0)
        assert prospect.forecast.usd == 0.0
    assert "server-only" in {failure.policy for failure in report.failures}
    assert as_json(report)["shadow_prices"] == []
    show(report)
    shown = unwrapped(capsys.readouterr().out)
    assert "no server is ever asked" in shown
    assert re.search(r"1 and more laptop at once", shown)


@pytest.mark.parametrize(
    ("policy", "allowances", "words"),
    [
        ({"constraint": "device"}, (), "The device is held back, as policy.constraint says."),
        (
            {},
            (Allowance("heat", Resource.JOULES, None, 50.0),),
            "The device is held back: the budgets are about it alone.",
        ),
        (
            {},
            (),
            "The server is held back: a million tokens in the device's cheaper phase cost $0.00, "
            "no more than in the server's dearer one ($10.00).",
        ),
    ],
)
def test_it_tells_why_a_kind_is_held_back(policy, allowances, words):
    """By the settings, by budgets that are about one kind, or by converted prices."""
    known = replace(constants(device_s=3.0, server_s=1.0), allowances=allowances)
    assert constraint_in_words(the_report(known, **policy)) == words


@pytest.mark.parametrize(
    ("cost", "battery", "words"),
    [
        ({"usd_per_joule": 0.001}, None, "A joule is worth $0.001, as cost.usd_per_joule says."),
        (
            {"usd_per_kwh": 0.36},
            None,
            "A joule is worth $1.0e-07, the price of electricity ($0.36 a kWh): no battery is in use.",
        ),
        (
            {"usd_per_kwh": 0.0, "usd_per_joule_empty": 0.008},
            SimpleNamespace(percent=50.0, power_plugged=False),
            "A joule is worth $0.001: the machine runs on a battery that is 50 % full.",
        ),
    ],
)
@pytest.mark.anyio
async def test_it_tells_why_a_joule_is_worth_what_it_is(cost, battery, words, tmp_path, monkeypatch):
    """The rate of this moment: fixed, from the socket, or by the cube of what a battery lacks."""
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    report = await survey(scripted(tmp_path, cost=cost))
    assert words in rests_on(report)


def scripted(folder, **tables):
    """Settings of a scripted pair with a ledger of its own."""
    endpoints = [
        {"name": "laptop", "kind": "device", "dialect": "scripted", "prefill_joules_per_token": 0.04},
        {"name": "cloud", "kind": "server", "dialect": "scripted", "prompt_usd_per_mtok": 10.0},
    ]
    ledger = {"path": str(folder / "ledger.db")}
    return settings_from({"endpoint": endpoints, "ledger": ledger, **tables})


BUDGETS = [{"name": "money", "usd": 0.5, "per": "day"}, {"name": "heat", "joules": 600.0, "per": "hour"}]


@pytest.mark.anyio
async def test_budgets_are_spread_over_the_requests_of_a_window(tmp_path):
    """A day's dollars over a day's requests, an hour's joules over an hour's; nothing is spent yet."""
    report = await survey(scripted(tmp_path, budget=BUDGETS), 4800)
    allowances = {each.budget: each.per_request for each in report.findings.known.allowances}
    assert allowances == pytest.approx({"money": 0.5 / 4800, "heat": 600.0 / 200})
    assert [each.spent for each in report.findings.budgets] == [0.0, 0.0]
    assert "Planned for 4,800 requests a day." in list(rests_on(report))
    assert not (tmp_path / "ledger.db").exists()


@pytest.mark.anyio
async def test_a_share_limits_the_kind_that_it_limits_live(tmp_path):
    """Beside budgets that are about the device alone, a share is of the device too, whatever prices say."""
    report = await survey(scripted(tmp_path, budget=BUDGETS[1:], policy={"share": 0.3}))
    share, heat = report.findings.known.allowances
    assert (share.budget, share.kind, share.per_request) == ("policy.share", Kind.DEVICE, 0.3)
    assert (heat.budget, heat.kind) == ("heat", None)
    assert report.constraint == Constraint(Kind.DEVICE, ConstraintBasis.BUDGETS)
    assert [each.budget.name for each in report.findings.budgets] == ["heat"]


@pytest.mark.anyio
async def test_without_a_ledger_traffic_is_a_guess_and_called_one(tmp_path):
    """A thousand requests a day are planned for, and how to say otherwise is told."""
    report = await survey(scripted(tmp_path, budget=BUDGETS))
    assert report.findings.traffic == Traffic(1000.0, TrafficBasis.ASSUMED)
    assert any("a guess: say how many with --requests-per-day" in sentence for sentence in rests_on(report))


@pytest.mark.anyio
async def test_what_was_recorded_is_what_it_rests_on(tmp_path):
    """Attempts, traffic and what is spent of the budgets come from the ledger, as for the live path."""
    settings = scripted(tmp_path, budget=BUDGETS, policy={"name": "server-only"})
    async with connect(settings) as service:
        for _ in range(3):
            async with service.stream("How do you do?") as answer:
                async for _ in answer:
                    pass
    report = await survey(settings)
    assert report.findings.attempts == {"laptop": 0, "cloud": 3}
    assert report.findings.traffic == Traffic(3.0, TrafficBasis.LEDGER)
    assert [each.spent for each in report.findings.budgets] == [pytest.approx(3 * 4 * 10e-6), 0.0]
    told = as_json(report)
    assert [each["attempts"] for each in told["rests_on"]["endpoints"]] == [0, 3]


@pytest.mark.anyio
async def test_the_embedded_pair_is_inspected_and_not_started(smollm2_path, tmp_path):
    """The device's energy follows from the model's file; no engine runs for it."""
    settings = settings_from({"endpoint": embedded_pair(), "ledger": {"path": str(tmp_path / "none.db")}})
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    report = await survey(settings)
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before
    device, server = report.findings.known.endpoints
    assert device.energy.decode_j_per_token == pytest.approx(0.0487, abs=1e-4)
    assert device.energy.prefill_j_per_token == pytest.approx(0.0368, abs=1e-4)
    assert server.energy == Energy()
    assert (report.constraint.kind, report.prospects[0].policy) == (Kind.SERVER, "disco")


@pytest.mark.anyio
async def test_inspecting_takes_nothing_back(smollm2_path):
    """An emulated device burns what the model inside does; stated joules hold; unknown ones stay unknown."""
    device = {"name": "d", "kind": Kind.DEVICE, "model": "smollm2-135m-instruct"}
    emulated = build_endpoint(EndpointSettings(dialect="emulated", **device))
    stated = build_endpoint(EndpointSettings(dialect="llamacpp", prefill_joules_per_token=7.0, **device))
    remote = build_endpoint(
        EndpointSettings(
            name="r", kind=Kind.DEVICE, dialect="llamacpp", options={"base_url": "http://127.0.0.1:9"}
        )
    )
    for endpoint in (emulated, stated, remote):
        await endpoint.inspect()
    assert emulated.energy.decode_j_per_token == pytest.approx(0.0487, abs=1e-4)
    assert stated.energy == Energy(7.0, emulated.energy.decode_j_per_token)
    assert remote.energy == Energy()
    remote.energy = Energy(1.0, 2.0)  # as `prepare` learns it from the server
    await remote.inspect()
    assert remote.energy == Energy(1.0, 2.0)


class Loaded(HTMLParser):
    """What a page would load, and the text that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.shown: list[str] = []
        self.hidden = self.scripts = 0

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in {"src", "srcset", "href", "data"}]
        self.hidden += tag in {"script", "style"}
        self.scripts += tag == "script"

    def handle_endtag(self, tag):
        self.hidden -= tag in {"script", "style"}

    def handle_data(self, data):
        if not self.hidden:
            self.shown.append(data)


@pytest.fixture(scope="module")
def real_report():
    """Real services under two budgets."""
    return the_report(
        realistic(
            Allowance("money", Resource.USD, None, 4e-4), Allowance("<heat>", Resource.JOULES, None, 30.0)
        ),
        name="optimal",
    )


def test_the_page_holds_all_that_it_shows(real_report):
    """Nothing in it points outside, the browser is told to load nothing, and plotly is inside."""
    written = plan_page(real_report)
    loaded = Loaded()
    loaded.feed(written)
    assert loaded.addresses == []
    assert loaded.scripts >= 3
    assert "default-src 'none'" in written
    assert "@import" not in written
    assert "Plotly.newPlot" in written
    assert len(written) > 3_000_000


def test_the_page_tells_what_the_terminal_tells(real_report, capsys):
    """Every sentence and figure on the terminal is on the page, with names as they are."""
    loaded = Loaded()
    loaded.feed(plan_page(real_report))
    shown = unwrapped(" ".join(loaded.shown))
    assert "'<heat>'" in shown
    for sentence in (headline(real_report), *rests_on(real_report), *prices_in_words(real_report)):
        assert sentence in shown
    show(real_report)
    printed = capsys.readouterr().out
    for figure in re.findall(r"\d[\d.,]*\d", printed):
        assert figure in shown


def test_lines_fit_into_eighty_columns(real_report, capsys, monkeypatch):
    """The longest report there is, hedges and two budgets included, is no wider than a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    show(real_report)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    assert "\x1b" not in printed


def test_a_narrow_terminal_loses_nothing(real_report, capsys, monkeypatch):
    """On forty columns every policy keeps its name, and every figure all of its digits and its unit."""
    monkeypatch.setenv("COLUMNS", "40")
    show(real_report)
    printed = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = [cell.strip() for line in printed for cell in line]
    for row in comparison(real_report).rows:
        assert set(row[1:]) <= set(cells)
        assert any(cell and row[0].startswith(cell) for cell in cells)


def test_curves_are_drawn_on_a_terminal_only(real_report, capsys, monkeypatch):
    """On a terminal the frontier follows the words, in colours; to a pipe there is neither."""
    show(real_report)
    assert "may take" not in capsys.readouterr().out
    monkeypatch.setattr(output, "_force_terminal", True)
    monkeypatch.setattr(output, "_color_system", ColorSystem.STANDARD)
    show(real_report)
    drawn = capsys.readouterr().out
    assert "\x1b[" in drawn
    kind = real_report.constraint.kind
    assert drawn.count(f"share of prompt tokens that the {kind} may take") == 2
    assert all(curve.policy in drawn for curve in real_report.curves)


def test_patience_is_asked_for_on_a_terminal_only_and_when_it_is_slow(capsys, monkeypatch):
    """What is over at once says nothing, nor does anything to a pipe; what is slow says what it does."""
    with patience("Comparing"):
        pass
    monkeypatch.setattr(screen, "SLOW_S", 0.0)
    with patience("Comparing"):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(errors, "_force_terminal", True)
    monkeypatch.setattr(errors, "is_interactive", True)
    with patience("Comparing"):
        time.sleep(0.2)
    assert "Comparing" in capsys.readouterr().err


def test_a_page_needs_plotly(monkeypatch):
    """Where it is not installed, what to install is told before anything is computed."""
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'discostream[report]'")):
        require_plotly("--html")


def test_a_page_that_cannot_be_written_is_a_mistake(real_report, tmp_path):
    """The file and the reason are named."""
    gone = tmp_path / "gone" / "plan.html"
    with pytest.raises(ConfigError, match=re.escape(f"--html {gone}: cannot be written: No such file")):
        write_page(plan_page(real_report), gone, "--html")


TWO_BUDGETS = """
[[endpoint]]
name = "laptop"
kind = "device"
dialect = "emulated"
around = "scripted"
prefill_joules_per_token = 0.04
decode_joules_per_token = 0.05

[[endpoint]]
name = "cloud"
kind = "server"
dialect = "scripted"
prompt_usd_per_mtok = 2.5
completion_usd_per_mtok = 10

[[budget]]
name = "money"
usd = 1.0
per = "day"

[[budget]]
name = "heat"
joules = 80000
per = "day"

[ledger]
path = "ledger.db"
"""


def test_the_command_tells_programs_everything(tmp_path):
    """With --json stdout is one object; the page is written beside it, its path and size told on stderr."""
    (tmp_path / "disco.toml").write_text(TWO_BUDGETS, encoding="utf-8")
    done = disco(
        "plan", "--json", "--policy", "optimal", "--share", "0.3", "--html", "plan.html", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["policy"] == "optimal"
    assert {each["budget"] for each in told["shadow_prices"]} == {"money", "heat", "policy.share"}
    assert {each["allowed"] for each in told["shadow_prices"]} == {0.001, 80.0, 0.3}
    assert all(not spend["exceeded"] for spend in told["policies"][0]["spends"])
    assert all(each["words"] for each in told["shadow_prices"])
    assert [point["share"] for point in told["frontier"]["curves"][0]["points"]][10] == 0.5
    size = (tmp_path / "plan.html").stat().st_size
    assert done.stderr == f"Wrote plan.html ({size / 1e6:.1f} MB)\n"
    assert not (tmp_path / "ledger.db").exists()


def test_the_command_tells_people(tmp_path):
    """The policy in force, what it rests on, its table, the comparison and the prices are there, in order."""
    (tmp_path / "disco.toml").write_text(TWO_BUDGETS, encoding="utf-8")
    done = disco("plan", "--requests-per-day", "500", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    titles = [
        "Policy disco under budget 'money' ($1.00 a day)",
        "It rests on",
        "Planned for 500 requests a day.",
        "Who starts when (disco)",
        "Policies side by side",
        "What more budget would buy (optimal)",
    ]
    places = [done.stdout.find(title) for title in titles]
    assert -1 not in places
    assert places == sorted(places)


def test_help_shows_examples():
    """The command explains itself."""
    done = disco("plan", "--help")
    assert done.returncode == 0
    assert "disco plan --share 0.3" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--share", "1.5"], "policy.share = 1.5"),
        (["--share", "nan"], "policy.share = nan"),
        (["--policy", "optimla"], "did you mean 'optimal'?"),
        (["--requests-per-day", "0"], "--requests-per-day 0: must be above 0"),
    ],
)
def test_wrong_options_are_refused(arguments, told, tmp_path):
    """A mistake ends in one line that names it, and status 2."""
    (tmp_path / "disco.toml").write_text(TWO_BUDGETS, encoding="utf-8")
    done = disco("plan", *arguments, folder=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert told in line
    assert done.stdout == ""
