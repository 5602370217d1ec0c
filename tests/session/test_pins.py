"""What requests ask for themselves: kept on the device, planned by another policy, or refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import plans
import pytest
from plans import known_of
from timetable import a_house, a_request, device, play, server

from discostream import library
from discostream.config import PolicySettings, Settings, settings_from
from discostream.core.budget import Budget, Resource, Window
from discostream.core.distributions import Distribution
from discostream.core.profile import Known
from discostream.errors import AllEndpointsFailed, ConfigError, NotConnected, RequestRejected
from discostream.library import connect
from discostream.session.pins import narrowed
from discostream.session.planner import Planner
from discostream.session.purse import Purse
from discostream.types import Kind, Plan, Start

pytestmark = pytest.mark.anyio

PAIR = [
    {"name": "laptop", "kind": "device", "dialect": "scripted", "answer": "local", "ttft_s": 0.02},
    {"name": "cloud", "kind": "server", "dialect": "scripted", "answer": "remote"},
]


def settings(folder: Path, *budgets: Any, **policy: Any) -> Settings:
    ledger = {"path": str(folder / "ledger.db")}
    return settings_from({"endpoint": PAIR, "budget": list(budgets), "policy": policy, "ledger": ledger})


@pytest.mark.parametrize(
    ("planned", "kept"),
    [
        ({"cloud": 0.0, "laptop": 3.0, "tablet": None}, {"laptop": 3.0, "tablet": None}),
        ({"laptop": 0.0}, {"laptop": 0.0}),
        ({"cloud": 0.0}, {"laptop": None, "tablet": None}),
    ],
)
def test_a_private_plan_is_the_same_without_servers(planned, kept):
    """Devices keep their offsets; where the plan has none, all of them stand by, and the first starts."""
    endpoints = {endpoint.name: endpoint for endpoint in (device(), server(), device("tablet"))}
    plan = Plan("any", tuple(Start(*start) for start in planned.items()))
    private = narrowed(plan, [name for name, endpoint in endpoints.items() if endpoint.kind is Kind.DEVICE])
    assert {start.endpoint: start.offset_s for start in private.starts} == kept
    assert private.policy == "any"


async def test_a_private_request_starts_its_device_at_once():
    """A wait that was meant for the server to answer first is not waited for when no server runs."""
    cloud = server()
    house = a_house([device(ttft_s=0.1), cloud], {"cloud": 0.0, "laptop": 7.0})
    played = await play(house, a_request(private=True))
    assert played.outcome.ttft_s == pytest.approx(0.1)
    assert cloud.started == 0
    assert set(played.outcomes) == {"laptop"}


async def test_a_private_answer_neither_moves_nor_is_rescued_at_a_server():
    """A device that breaks in mid-answer breaks the answer, and the error says why."""
    cloud = server()
    house = a_house([device(breaks_after=3, tbt_s=0.01), cloud], migrate=True)
    played = await play(house, a_request(private=True))
    assert isinstance(played.failure, AllEndpointsFailed)
    assert str(played.failure).endswith("(scripted); the request is private, so no server was asked")
    assert [cause.endpoint for cause in played.failure.causes] == ["laptop"]
    assert cloud.started == 0


async def test_a_private_answer_may_go_on_at_another_device():
    """What is kept from servers may still be rescued by a device."""
    house = a_house([device(breaks_after=3), server(), device("tablet")], {"laptop": 0.0})
    played = await play(house, a_request(private=True))
    assert played.failure is None
    assert [move.target for move in played.outcome.migrations] == ["tablet"]


async def test_the_library_pins_requests(tmp_path):
    """`stream` takes a policy and privacy for one request, and refuses what cannot be had."""
    async with connect(settings(tmp_path, name="offsets", offsets={"cloud": 0, "laptop": 1})) as disco:
        said = {
            pins: "".join([piece.text async for piece in disco.stream("hi", **dict(pins))])
            for pins in ((), (("private", True),), (("policy", "device-only"),), (("policy", "server-only"),))
        }
        assert list(said.values()) == ["remote", "local", "local", "remote"]
        with pytest.raises(RequestRejected, match="no policy 'optimum'; did you mean 'optimal'"):
            disco.stream("hi", policy="optimum")
        with pytest.raises(RequestRejected, match="which policy 'server-only' does"):
            disco.stream("hi", policy="server-only", private=True)


UNIFORM = Distribution.of_table(np.array([0.0, 1.0]), np.array([0.0, 10.0]))


@dataclass(frozen=True)
class Fixed:
    """A source that stands still."""

    snapshot: Known

    def known(self) -> Known:
        return self.snapshot

    def version(self) -> object:
        return None


def held_back(laptop, cloud, share: float):
    """A house whose device waits for a server that speaks within ten seconds, all moments alike."""
    known = known_of(plans.device(), plans.server(UNIFORM), prompts=100)
    planner = Planner(PolicySettings(constraint="device", share=share), Fixed(known))
    return replace(a_house([laptop, cloud]), planner=planner)


@pytest.mark.parametrize(
    ("share", "starts_s"), [(None, 8.0), (0.0, None), (0.03, 9.7), (0.5, 5.0), (0.8, 2.0), (1.0, 0.0)]
)
async def test_a_request_is_planned_by_its_own_share(share, starts_s):
    """Of prompts of one length the device may take b, so it waits for F^-1(1 - b); b is 0.2 as set."""
    house = held_back(device(ttft_s=0.1), server(ttft_s=60.0), 0.2)
    played = await play(house, a_request(share=share))
    starts = [each.start_offset_s for each in played.outcome.attempts if each.endpoint == "laptop"]
    assert starts == pytest.approx([] if starts_s is None else [starts_s])
    assert played.outcome.ttft_s == pytest.approx(60.0 if starts_s is None else starts_s + 0.1)
    assert played.outcome.policy == "disco"


async def test_a_hard_budget_is_kept_whatever_share_is_asked_for():
    """All of the prompts for the server is what is asked, and a spent budget still keeps it from starting."""
    spent = Budget(name="money", resource=Resource.USD, amount=0.0, window=Window.DAY, hard=True)
    pair = device(ttft_s=0.1), server(ttft_s=1.0)
    house = a_house(pair, policy=PolicySettings(constraint="server"))
    for purse, outcome in ((Purse(), "lost"), (Purse([spent]), "not_started")):
        played = await play(replace(house, purse=purse), a_request(share=1.0))
        assert played.outcomes == {"laptop": "won", "cloud": outcome}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"share": 1.5}, "`share`: 1.5 is not a number from 0 to 1"),
        ({"share": math.nan}, "`share`: nan is not a number from 0 to 1"),
        ({"share": -0.1, "endpoint": "cloud"}, "`share`: -0.1 is not a number from 0 to 1"),
        ({"share": 0.5, "policy": "fast"}, "policy 'fast' knows no share; name one that does .*optimal"),
        ({"share": 0.5, "policy": "cheap"}, "policy 'cheap' knows no share"),
    ],
)
async def test_shares_that_cannot_be_had_are_refused(asked, says, tmp_path):
    """A share is a number from 0 to 1, of a policy that knows one; whichever named the policy."""
    async with connect(settings(tmp_path)) as disco:
        with pytest.raises(RequestRejected, match=says) as refused:
            disco.submit(a_request(**asked))
    assert refused.value.param == "share"


async def test_a_share_needs_a_policy_in_force_that_knows_one(tmp_path):
    """Where the settings' policy knows none, a request may name one that does; one endpoint needs none."""
    async with connect(settings(tmp_path, name="server-only")) as disco:
        with pytest.raises(RequestRejected, match="policy 'server-only' knows no share"):
            disco.stream("hi", share=0.5)
        for answer in (
            disco.stream("hi", share=0.5, policy="disco"),
            disco.stream("hi", share=0.5, model="laptop"),
        ):
            assert [piece async for piece in answer]


async def test_privacy_in_the_settings_is_everybodys(tmp_path):
    """With `policy.private` no request can be sent to a server, whatever it asks for."""
    async with connect(settings(tmp_path, private=True)) as disco:
        answer = disco.stream("hi")
        assert "".join([piece.text async for piece in answer]) == "local"
        assert answer.request.private
        with pytest.raises(RequestRejected, match="must not leave the device"):
            disco.stream("hi", policy="server-only")


async def test_a_budget_that_is_not_held_is_warned_of_once(tmp_path, caplog):
    """Entering a connection logs one warning for soft budgets that its policy does not hold."""
    disco = connect(settings(tmp_path, {"usd": 2, "per": "day"}, name="server-only"))
    for _ in range(2):
        async with disco:
            pass
    warnings = [record.message for record in caplog.records if "is not made to hold" in record.message]
    assert len(warnings) == 1
    assert "2 usd per day" in warnings[0]


async def test_a_ledger_that_cannot_be_read_closes_what_was_opened(tmp_path, monkeypatch):
    """When what was spent cannot be known, nothing starts, and nothing is left behind."""

    def unreadable(path, since):
        raise ConfigError("ledger.path: unreadable")

    monkeypatch.setattr(library, "spent_since", unreadable)
    disco = connect(settings(tmp_path, {"usd": 2, "per": "day"}))
    with pytest.raises(ConfigError, match="unreadable"):
        async with disco:
            pass
    with pytest.raises(NotConnected):
        disco.stream("hi")


async def test_pins_that_contradict_each_other_are_refused(tmp_path):
    """A policy of devices and a server's name cannot both be had; nor is `probe` a policy to ask for."""
    async with connect(settings(tmp_path)) as disco:
        with pytest.raises(RequestRejected, match="'cloud' is none"):
            disco.submit(a_request(endpoint="cloud", policy="device-only"))
        with pytest.raises(RequestRejected, match="no policy 'probe'"):
            disco.stream("hello", policy="probe")


async def test_no_view_lets_private_requests_out(tmp_path):
    """Where the settings keep all requests on the device, another policy for a view does so, too."""
    async with connect(settings(tmp_path, private=True)) as disco:
        view = disco.under(policy=PolicySettings(name="disco", share=1.0))
        answer = view.stream("hello")
        assert "".join([piece.text async for piece in answer]) == "local"
