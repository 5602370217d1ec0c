"""The planner: tables are made when they are due, beside the requests, and the old one serves meanwhile."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from threading import Event

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from discostream.config import PolicySettings
from discostream.core.budget import POLICY_SHARE, Allowance, Resource
from discostream.core.cost import Rates
from discostream.core.distributions import Distribution
from discostream.core.plans import PlanTable
from discostream.core.plugins import load_policy
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.errors import ConfigError
from discostream.session.planner import OTHERS, REBUILD_AFTER, REBUILD_AFTER_S, Planner
from discostream.types import Kind, Start

FREE = Rates(0.0, 0.0)
LAPTOP = EndpointProfile(
    "laptop", Kind.DEVICE, FREE, DeviceTtft.believed(0.01, 0.1, 0.0), 50.0, slots=1, service_s=15.0
)
CLOUD = EndpointProfile("cloud", Kind.SERVER, FREE, ServerTtft(Distribution.of_samples([1.0])), 50.0)
LENGTHS = Lengths(Distribution.of_samples([100.0]))
KNOWN = Known((LAPTOP, CLOUD), LENGTHS, LENGTHS)


@dataclass
class Sight:
    """A source whose version a test can change; it counts how often it was looked at."""

    now: Known = KNOWN
    moved: int = 0
    looks: int = 0

    def known(self) -> Known:
        self.looks += 1
        return replace(self.now)

    def version(self) -> object:
        return self.moved


@dataclass
class Later:
    """Work that waits until a test lets it be done."""

    waiting: list = field(default_factory=list)

    def __call__(self, work):
        self.waiting.append(work)

    def do(self):
        while self.waiting:
            self.waiting.pop(0)()


def a_planner(sight, later, **settings):
    return Planner(PolicySettings(**settings), sight, seed=1, elsewhere=later)


def test_the_old_table_serves_until_the_new_one_is_there():
    """After N requests a table is made elsewhere; requests go by the old one until it is done."""
    sight, later = Sight(), Later()
    planner = a_planner(sight, later)
    first = planner.outlook(0.0)
    for _ in range(REBUILD_AFTER - 1):
        assert planner.outlook(0.0) is first
    assert not later.waiting
    assert planner.outlook(0.0) is first
    assert planner.outlook(0.0) is first
    assert len(later.waiting) == 1
    later.do()
    assert planner.outlook(0.0) is not first
    assert sight.looks == 2


def test_a_table_is_made_again_when_a_service_has_changed():
    """A new version of what is known makes the next request ask for a new table, once."""
    sight, later = Sight(), Later()
    planner = a_planner(sight, later)
    first = planner.outlook(0.0)
    sight.moved += 1
    assert planner.outlook(0.0) is first
    later.do()
    second = planner.outlook(0.0)
    assert second is not first
    assert planner.outlook(0.0) is second
    assert not later.waiting


def test_a_table_ages_without_requests():
    """Budgets and batteries do not wait for requests, so time alone makes a table old."""
    sight, later = Sight(), Later()
    planner = a_planner(sight, later)
    planner.outlook(0.0)
    planner.outlook(REBUILD_AFTER_S - 0.1)
    assert not later.waiting
    planner.outlook(REBUILD_AFTER_S)
    assert len(later.waiting) == 1


def test_the_first_table_can_be_made_ahead():
    """A prepared planner has its table before the first request; asked again, it makes no second one."""
    sight, later = Sight(), Later()
    planner = a_planner(sight, later)
    planner.prepare(0.0)
    planner.prepare(0.0)
    assert len(later.waiting) == 1
    later.do()
    planner.outlook(0.0)
    assert sight.looks == 1


def test_a_policy_that_fails_later_leaves_the_old_table(caplog):
    """A defect that shows only with newer knowledge is logged, and the old table serves on."""
    sight, later = Sight(), Later()
    planner = a_planner(sight, later)
    first = planner.outlook(0.0)
    planner._policy = None
    sight.moved += 1
    planner.outlook(0.0)
    later.do()
    assert planner.outlook(0.0) is first
    assert "the old one serves on" in caplog.text


def test_a_policy_that_names_strangers_is_refused():
    """A table with an endpoint that does not exist is the policy's mistake, told by its name."""
    planner = a_planner(Sight(), Later())
    planner._policy = lambda known, settings: PlanTable(
        "odd", ("moon",), np.array([np.inf]), np.zeros((1, 1, 1)), np.ones((1, 1))
    )
    with pytest.raises(ConfigError, match=r"plans \['moon'\]"):
        planner.outlook(0.0)


@pytest.mark.parametrize("made", [1 / 7, None])
def test_a_policy_that_breaks_is_told_by_its_name(made):
    """Whatever a policy raises, or makes that is no table, whoever asks reads whose fault that is."""
    planner = a_planner(Sight(), Later())
    planner._policy = lambda known, settings: made or known.endpoints[7]
    with pytest.raises(ConfigError, match=r"policy.name = 'disco': makes no plan: (Attribute|Index)Error: "):
        planner.outlook(0.0)


def test_one_request_can_go_by_another_policy():
    """Planners for other policies are made once and look at the same source."""
    sight = Sight()
    planner = a_planner(sight, Later())
    other = planner.under("server-only")
    assert planner.under("server-only") is other
    assert planner.under(None) is planner.under("disco") is planner
    plan = other.choose(other.outlook(0.0), 10, {}, {})
    assert plan.starts == (Start("cloud", 0.0),)


def test_an_unknown_policy_names_its_neighbour():
    """A misspelt policy is answered with the nearest one."""
    with pytest.raises(ConfigError, match="did you mean 'disco'"):
        load_policy("dico")


@pytest.mark.parametrize(
    ("uncached", "running", "device_wait"),
    [
        ({}, {}, None),
        ({"laptop": 100}, {}, 0.0),
        ({"laptop": 100}, {"laptop": 1}, None),
        ({"laptop": 100}, {"cloud": 9}, 0.0),
    ],
)
def test_a_cached_prefix_shortens_and_a_queue_lengthens_a_prompt(uncached, running, device_wait):
    """A long chat that the device has read before is planned as a short one; behind a queue it is not.

    One attempt ahead holds the only slot for 15 s, as long as 1,500 tokens take.
    """
    lengths = Lengths(Distribution.of_samples([100.0, 2000.0]))
    sight = Sight(replace(KNOWN, prompt_tokens=lengths))
    planner = a_planner(sight, Later(), constraint="device", share=0.2)
    plan = planner.choose(planner.outlook(0.0), 2000, uncached, running)
    (start,) = [start for start in plan.starts if start.endpoint == "laptop"]
    if device_wait is None:
        assert start.offset_s != 0.0
    else:
        assert start.offset_s == device_wait


def test_a_thread_that_cannot_be_started_is_tried_again(caplog):
    """Where no thread is to be had the old table serves, and the next request tries once more."""
    tries = []

    def refuse(work):
        tries.append(work)
        raise RuntimeError("can't start new thread")

    sight = Sight()
    planner = a_planner(sight, refuse)
    first = planner.outlook(0.0)
    sight.moved += 1
    assert planner.outlook(0.0) is first
    sight.moved += 1
    assert planner.outlook(0.0) is first
    assert len(tries) == 2
    assert "the old one serves on" in caplog.text


@pytest.mark.parametrize(
    ("longest", "weights", "defect"),
    [
        ([np.inf], [[0.0]], "weights are no shares"),
        ([np.inf], [[np.nan]], "weights are no shares"),
        ([100.0], [[1.0]], "prompts of any length"),
        ([100.0, 50.0], [[1.0], [1.0]], "prompts of any length"),
    ],
)
def test_a_table_that_would_fail_later_is_refused_when_it_is_made(longest, weights, defect):
    """Weights that are no shares, or rows that end too early, are the policy's mistake."""
    planner = a_planner(Sight(), Later())
    planner._policy = lambda known, settings: PlanTable(
        "odd", ("cloud",), np.array(longest), np.zeros((len(longest), 1, 1)), np.array(weights)
    )
    with pytest.raises(ConfigError, match=defect):
        planner.outlook(0.0)


@pytest.mark.parametrize(
    ("longest", "offsets", "weights", "endpoints"),
    [
        (1, (1, 1, 1), (1, 1), ("cloud", "cloud")),
        (1, (1, 1), (1, 1), ("cloud",)),
        (1, (1, 2, 1), (1, 1), ("cloud",)),
        (2, (1, 1, 1), (1, 1), ("cloud",)),
        (1, (1, 1), (1,), ("cloud",)),
    ],
)
def test_a_table_that_does_not_fit_itself_is_refused_when_it_is_made(longest, offsets, weights, endpoints):
    """A table whose rows, actions and endpoints differ from one figure to the next fails every request."""
    rows = np.append(np.arange(longest - 1.0), np.inf)
    table = PlanTable("odd", endpoints, rows, np.zeros(offsets), np.ones(weights))
    planner = a_planner(Sight(), Later())
    planner._policy = lambda known, settings: table
    with pytest.raises(ConfigError, match="do not fit each other"):
        planner.outlook(0.0)


FOLLOWED = Allowance(POLICY_SHARE, Resource.SHARE, Kind.DEVICE, 0.9)


def joining(planner):
    """How often the device joins the server, by the policy that draws it."""
    (weights,) = planner.outlook(0.0).table.weights.tolist()
    return weights[1]


@pytest.mark.parametrize(("share", "joins"), [(None, 0.9), (0.0, 0.0), (0.3, 0.3), (1.0, 1.0)])
def test_a_share_of_its_own_is_planned_by_as_it_is(share, joins):
    """What is left of the settings' share, 0.9 of it, is for requests without one, and for these alone."""
    planner = a_planner(Sight(replace(KNOWN, allowances=(FOLLOWED,))), Later(), constraint="device")
    assert joining(planner.under("stochastic", share)) == pytest.approx(joins)


@pytest.mark.parametrize(("share", "joins"), [(0.1, 0.1), (0.8, 0.2)])
def test_budgets_hold_whatever_share_is_asked_for(share, joins):
    """A share of the settings' `[[budget]]` is the most that a request's own share can have."""
    budget = Allowance("mostly remote", Resource.SHARE, Kind.DEVICE, 0.2)
    planner = a_planner(Sight(replace(KNOWN, allowances=(FOLLOWED, budget))), Later())
    assert joining(planner.under("stochastic", share)) == pytest.approx(joins)


def test_clients_cannot_make_planners_without_end():
    """Of many shares the latest are kept; one that is asked for again and again is among them."""
    planner = a_planner(Sight(), Later())
    often, once = planner.under(None, 0.5), planner.under(None, 0.25)
    for n in range(OTHERS):
        planner.under(None, n / 100)
        assert planner.under("disco", 0.5) is often
    assert len(planner._others) == OTHERS
    assert planner.under(None, 0.25) is not once


def test_asking_for_a_plan_leaves_no_trace():
    """A planner to look at is a new one, or the one in force as soon as it has a table."""
    planner = a_planner(Sight(), Later())
    assert planner.foreseeing(None, None) is not planner
    planner.outlook(0.0)
    assert planner.foreseeing(None, None) is planner.foreseeing("disco", None) is planner
    seen = planner.foreseeing("disco", 0.3)
    assert seen is not planner.under("disco", 0.3)
    assert (seen.settings.name, seen.settings.share) == ("disco", 0.3)
    assert (planner.planned, len(planner._others)) == (1, 1)


def test_requests_are_counted_from_the_table_on_that_plans_them():
    """A table that waits to be used has planned nobody, whatever the one before it has."""
    sight, later = Sight(), Later()
    planner = a_planner(sight, later)
    assert (planner.latest, planner.planned) == (None, 0)
    first = planner.outlook(0.0)
    planner.outlook(0.0)
    assert (planner.latest, planner.planned) == (first, 2)
    sight.moved += 1
    planner.outlook(0.0)
    assert planner.planned == 3
    later.do()
    assert planner.latest is not first
    assert planner.planned == 0
    assert planner.outlook(0.0) is planner.latest
    assert planner.planned == 1
    assert first.made_at_s <= planner.latest.made_at_s <= time.time()


@pytest.mark.anyio
async def test_a_first_table_is_made_once_and_holds_nobody_up():
    """Who needs it waits for it, in a thread; all others go on meanwhile."""
    planner, may_end, made = a_planner(Sight(), Later()).under(None, 0.3), Event(), []
    policy = planner._policy

    def slow(known, settings):
        assert may_end.wait(10)
        made.append(settings.share)
        return policy(known, settings)

    planner._policy = slow
    async with anyio.create_task_group() as waiting:
        for _ in range(3):
            waiting.start_soon(planner.ready, 0.0)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert (made, planner.latest) == ([], None)
        may_end.set()
    assert made == [0.3]
    assert planner.outlook(0.0) is planner.latest


@pytest.mark.anyio
async def test_first_tables_are_made_one_after_another():
    """However many shares are asked for at once, one thread alone is taken up by tables."""
    planner, busy, most = a_planner(Sight(), Later()), [], []

    def made(known, settings):
        busy.append(settings.share)
        most.append(len(busy))
        time.sleep(0.01)
        busy.remove(settings.share)
        return load_policy("disco")(known, settings)

    async with anyio.create_task_group() as tasks:
        for share in (0.1, 0.2, 0.3):
            other = planner.under(None, share)
            other._policy = made
            tasks.start_soon(other.ready, 0.0)
    assert most == [1, 1, 1]


@pytest.mark.anyio
async def test_a_first_table_that_cannot_be_made_says_why():
    """A policy's mistake reaches the request that waits, and the next one tries again."""
    planner = a_planner(Sight(), Later())
    planner._policy = lambda known, settings: PlanTable(
        "odd", ("moon",), np.array([np.inf]), np.zeros((1, 1, 1)), np.ones((1, 1))
    )
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"plans \['moon'\]"):
            await planner.ready(0.0)
