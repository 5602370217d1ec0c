"""The plan and the budgets as JSON, and a share for one request, on real sockets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from discostream.config import Settings, settings_from
from discostream.core.optimal import solve
from discostream.gateway import app as gateway_app
from discostream.gateway.app import serve
from discostream.gateway.openapi import SCHEMAS
from discostream.library import Disco, connect
from discostream.session import in_force
from discostream.session.planner import Outlook

pytestmark = pytest.mark.anyio

LAPTOP = {
    "name": "laptop",
    "kind": "device",
    "dialect": "scripted",
    "prefill_joules_per_token": 0.1,
    "decode_joules_per_token": 0.5,
}
CLOUD = {
    "name": "cloud",
    "kind": "server",
    "dialect": "scripted",
    "ttft_s": 5.0,
    "prompt_usd_per_mtok": 2.5,
    "completion_usd_per_mtok": 9.0,
}
MONEY = {"name": "money", "usd": 2.0, "per": "hour"}
CHAT = {"messages": [{"role": "user", "content": "Count."}]}


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


class Gateway:
    """A running gateway."""

    def __init__(self, session: aiohttp.ClientSession, disco: Disco) -> None:
        self.disco = disco
        self._session = session

    async def get(self, path: str, **params: str) -> Any:
        """What `/dashboard/api/…` says."""
        async with self._session.get(f"/dashboard/api/{path}", params=params) as response:
            assert response.headers["Cache-Control"] == "no-store"
            assert response.status == 200
            return await response.json()

    async def refused(self, path: str, **params: str) -> tuple[int, str | None, str]:
        async with self._session.get(f"/dashboard/api/{path}", params=params) as response:
            error = (await response.json())["error"]
            return response.status, error["param"], error["message"]

    async def planned(self) -> Outlook:
        """What is planned by, as soon as there is a table."""
        with anyio.fail_after(5):
            while (outlook := self.disco._planner.latest) is None:  # noqa: ASYNC110 - made in a thread
                await anyio.sleep(0.01)
        return outlook

    async def ask(self, **headers: str) -> tuple[int, Any]:
        """The answer to one chat."""
        named = {f"x-disco-{name}": value for name, value in headers.items()}
        async with self._session.post("/v1/chat/completions", json=CHAT, headers=named) as response:
            return response.status, await response.json()


def settings(folder: Path, *endpoints: dict[str, Any], **tables: Any) -> Settings:
    ledger = {"path": str(folder / "ledger.db")}
    gateway = {"port": 0, **tables.pop("gateway", {})}
    return settings_from({"endpoint": list(endpoints), "gateway": gateway, "ledger": ledger, **tables})


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Any:
    @asynccontextmanager
    async def running(settings: Settings) -> AsyncIterator[Gateway]:
        disco = connect(settings, seed=1)
        monkeypatch.setattr(gateway_app, "connect", lambda settings: disco)
        async with anyio.create_task_group() as tasks:
            base_url = await tasks.start(serve, settings)
            async with aiohttp.ClientSession(base_url.removesuffix("v1")) as session:
                yield Gateway(session, disco)
            tasks.cancel_scope.cancel()

    return running


def starts_of(told: Any, row: int = 0, action: int = 0) -> dict[str, float | None]:
    starts = told["rows"][row]["actions"][action]["starts"]
    return {start["endpoint"]: start["offset_s"] for start in starts}


async def test_the_plan_is_the_one_in_force(serving: Any, tmp_path: Path) -> None:
    """Its share, its time, how many it has planned, and every prompt in one row: short ones on the device."""
    world = settings(tmp_path, LAPTOP, CLOUD, policy={"share": 0.3, "constraint": "server"})
    async with serving(world) as gateway:
        await gateway.planned()
        assert (await gateway.ask())[0] == 200
        told = await gateway.get("plan")
    assert (told["policy"], told["share"], told["of"], told["requests_since"]) == ("disco", 0.3, "server", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", told["made_at"])
    assert datetime.now(UTC) - datetime.fromisoformat(told["made_at"]) < timedelta(minutes=1)
    assert told["endpoints"] == ["laptop", "cloud"]
    longest = [row["longest_tokens"] for row in told["rows"]]
    assert longest[-1] is None
    assert longest[:-1] == sorted(longest[:-1])
    assert all(one["actions"] != other["actions"] for one, other in pairwise(told["rows"]))
    assert all(sum(a["weight"] for a in row["actions"]) == pytest.approx(1.0) for row in told["rows"])
    assert starts_of(told) == {"laptop": 0.0, "cloud": None}
    assert starts_of(told, -1) == {"laptop": 0.0, "cloud": 0.0}


async def test_the_profiles_are_what_is_known(serving: Any, tmp_path: Path) -> None:
    """What was seen of each endpoint and when, and what a prompt of median length takes."""
    async with serving(settings(tmp_path, LAPTOP, CLOUD, policy={"constraint": "server"})) as gateway:
        await gateway.ask()
        told = await gateway.get("plan")
    laptop, cloud = told["profiles"]
    assert (laptop["endpoint"], laptop["kind"], laptop["attempts_seen"]) == ("laptop", "device", 1)
    assert datetime.now(UTC) - datetime.fromisoformat(laptop["newest_at"]) < timedelta(minutes=1)
    assert (cloud["attempts_seen"], cloud["newest_at"], cloud["s_per_prompt_token"]) == (0, None, None)
    assert cloud["ttft_s"]["p50"] < cloud["ttft_s"]["p90"] < cloud["ttft_s"]["p99"]
    middle_s = laptop["s_per_prompt_token"] * told["prompt_tokens"]["p50"]
    assert laptop["ttft_s"]["p50"] == pytest.approx(middle_s + 0.05, rel=0.01)
    assert (cloud["completion_usd_per_mtok"], laptop["decode_joules_per_token"]) == (9.0, 0.5)


async def test_another_plan_can_be_asked_for(serving: Any, tmp_path: Path) -> None:
    """A policy or a share shows the table it would have, exactly, and the plan in force is as it was."""
    world = settings(tmp_path, LAPTOP, CLOUD, policy={"constraint": "server"})
    async with serving(world) as gateway:
        await gateway.planned()
        before = await gateway.get("plan")
        drawn = await gateway.get("plan", policy="stochastic", share="0.25")
        everybody = await gateway.get("plan", policy="fast")
        own = await gateway.get("plan", share="1")
        assert await gateway.get("plan") == before
        assert gateway.disco._planner._others == {}
    (row,) = drawn["rows"]
    assert [action["weight"] for action in row["actions"]] == [0.75, 0.25]
    assert (starts_of(drawn), starts_of(drawn, action=1)) == (
        {"laptop": 0.0, "cloud": None},
        {"laptop": 0.0, "cloud": 0.0},
    )
    assert (everybody["share"], everybody["of"], starts_of(everybody)) == (
        None,
        None,
        {"laptop": 0, "cloud": 0},
    )
    assert (own["policy"], own["share"], starts_of(own)) == ("disco", 1.0, {"laptop": 0.0, "cloud": 0.0})
    assert own["forecast"]["mean_ttft_s"] < before["forecast"]["mean_ttft_s"]


async def test_private_plans_name_no_server(serving: Any, tmp_path: Path) -> None:
    """Where every request is private, what is shown is what is left of the plan."""
    async with serving(settings(tmp_path, LAPTOP, CLOUD, policy={"private": True})) as gateway:
        told = await gateway.get("plan", share="1")
        worth = [each["shadow_price_s_per_unit"] for each in (await gateway.get("budgets"))["budgets"]]
    assert [starts_of(told, row) for row in range(len(told["rows"]))] == [{"laptop": 0.0}]
    assert worth == [None]


@pytest.mark.parametrize(
    ("params", "param", "says"),
    [
        ({"share": "1.2"}, "share", "'1.2' is not a number from 0 to 1, such as 0.3"),
        ({"share": ""}, "share", "'' is not a number"),
        ({"policy": "optimum"}, "policy", "did you mean 'optimal'?"),
        ({"policy": "offsets"}, "policy", "needs policy.offsets"),
        ({"policy": "fast", "share": "0.3"}, "share", "policy 'fast' knows no share"),
        ({"shares": "0.3"}, "shares", "'shares': no such parameter; must be policy, share"),
    ],
)
async def test_a_plan_that_cannot_be_had_is_refused(
    params: dict[str, str], param: str, says: str, serving: Any, tmp_path: Path
) -> None:
    """The parameter, the value and what would be right are named."""
    async with serving(settings(tmp_path, LAPTOP, CLOUD)) as gateway:
        status, named, message = await gateway.refused("plan", **params)
    assert (status, named) == (400, param)
    assert says in message


async def test_both_are_for_holders_of_the_key(
    serving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They name endpoints and money, as the API does, so they go by its rules."""
    monkeypatch.setenv("GATEWAY_KEY", "right")
    async with serving(settings(tmp_path, LAPTOP, gateway={"api_key_env": "GATEWAY_KEY"})) as gateway:
        for path in ("plan", "budgets"):
            assert (await gateway.refused(path))[0] == 401


async def test_budgets_are_told_with_their_course_and_worth(
    serving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amounts, what was spent, when it renews, the multiplier, and the programme's price, solved for once."""
    solved: list[Any] = []
    monkeypatch.setattr(in_force, "solve", lambda *asked: solved.append(asked) or solve(*asked))
    world = settings(
        tmp_path,
        LAPTOP,
        CLOUD,
        budget=[MONEY],
        policy={"share": 0.4, "name": "optimal", "constraint": "server"},
    )
    async with serving(world) as gateway:
        known = (await gateway.planned()).known
        told = await gateway.get("budgets")
        assert await gateway.get("budgets") == told
        (balance, _) = gateway.disco.balances
    prices = [price.s_per_unit for price in solve(known, world.policy).shadow_prices]
    assert len(solved) == 1
    share, money = told["budgets"]
    assert share == {
        "name": "policy.share",
        "resource": "share",
        "of": "server",
        "amount": 0.4,
        "hard": False,
        "per": None,
        "renews_at": None,
        "spent": 0.0,
        "held": 0.0,
        "allowance_per_request": 0.4,
        "multiplier": 1.0,
        "shadow_price_s_per_unit": prices[0],
    }
    assert balance.shadow_price_s_per_unit == prices[0] > 0
    assert (money["name"], money["resource"], money["per"], money["amount"]) == ("money", "usd", "hour", 2.0)
    assert timedelta(0) < datetime.fromisoformat(money["renews_at"]) - datetime.now(UTC) <= timedelta(hours=1)
    assert money["multiplier"] >= 1.0
    assert money["shadow_price_s_per_unit"] == prices[1]
    assert (told["usd_per_joule"], told["battery_charge"]) == (
        gateway.disco.usd_per_joule,
        gateway.disco.charge,
    )


async def test_budgets_that_no_plan_keeps_have_no_price(serving: Any, tmp_path: Path) -> None:
    """A fifth for the device and two for the server leave nobody for the rest: no price is theirs alone."""
    shares = [{"share": 0.2, "of": "device"}, {"share": 0.4, "of": "server"}]
    world = settings(tmp_path, LAPTOP, CLOUD, budget=shares, policy={"name": "optimal"})
    async with serving(world) as gateway:
        await gateway.ask()
        told = await gateway.get("budgets")
    assert [each["shadow_price_s_per_unit"] for each in told["budgets"]] == [None, None]


async def test_all_of_it_is_as_the_document_says(serving: Any, tmp_path: Path) -> None:
    """Both answers keep to their schemas, with endpoints that cost nothing and names of any policy too."""
    schemas = pytest.importorskip("jsonschema_rs", reason="comes with Schemathesis, in the extra `test`")
    plan, budgets = (
        schemas.validator_for({**SCHEMAS[name], "components": {"schemas": SCHEMAS}})
        for name in ("Plan", "Budgets")
    )
    worlds = [
        settings(tmp_path, LAPTOP, CLOUD, budget=[MONEY, {"share": 0.0, "of": "server"}]),
        settings(
            tmp_path, {"name": "cloud", "kind": "server", "dialect": "scripted"}, policy={"name": "cheap"}
        ),
    ]
    for world in worlds:
        async with serving(world) as gateway:
            plan.validate(await gateway.get("plan"))
            plan.validate(await gateway.get("plan", policy="optimal", share="0.5"))
            budgets.validate(await gateway.get("budgets"))


@pytest.mark.parametrize(("share", "outcomes"), [("0", ["won"]), ("1", ["won", "lost"]), (None, ["won"])])
async def test_a_header_has_a_request_planned_by_its_share(
    share: str | None, outcomes: list[str], serving: Any, tmp_path: Path
) -> None:
    """All prompts race with a share of 1, none with 0; without the header it is as set, 0 here."""
    headers = {} if share is None else {"share": share}
    world = settings(tmp_path, LAPTOP, CLOUD, policy={"share": 0.0, "constraint": "server"})
    async with serving(world) as gateway:
        status, told = await gateway.ask(**headers)
    assert (status, told["disco"]["policy"]) == (200, "disco")
    assert [attempt["outcome"] for attempt in told["disco"]["attempts"]] == outcomes


@pytest.mark.parametrize("share", ["1.01", "-0.1", "half", "nan", "0,3", "0.3, 0.4", "0_1"])
async def test_a_share_that_is_none_is_refused(share: str, serving: Any, tmp_path: Path) -> None:
    """The header, its value and the fix are told."""
    async with serving(settings(tmp_path, LAPTOP, CLOUD)) as gateway:
        status, told = await gateway.ask(share=share)
    assert (status, told["error"]["param"]) == (400, "x-disco-share")
    assert told["error"]["message"] == f"`x-disco-share`: {share!r} is not a number from 0 to 1, such as 0.3"


async def test_what_shares_use_is_counted(serving: Any, tmp_path: Path) -> None:
    """Tokens that the server reads for a request with a share of its own are the settings' share's, too."""
    world = settings(tmp_path, LAPTOP, CLOUD, policy={"share": 0.5, "constraint": "server"})
    async with serving(world) as gateway:
        await gateway.ask(share="1")
        (balance,) = gateway.disco.balances
    assert balance.spent == 1.0
