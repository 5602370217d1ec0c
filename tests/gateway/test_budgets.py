"""Budgets and pins over HTTP, on real sockets: 402, headers, and what the official client makes of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import openai
import pytest

from discostream.config import settings_from
from discostream.core.budget import Window
from discostream.gateway.app import serve
from discostream.ledger.queries import totals
from discostream.session.localtime import local_now

pytestmark = pytest.mark.anyio

MESSAGES: Any = [{"role": "user", "content": "Tell me a story"}]
STORY = "Once upon a time there was a race."
LAPTOP = {"name": "laptop", "kind": "device", "dialect": "scripted", "answer": STORY}
CLOUD = {
    "name": "cloud",
    "kind": "server",
    "dialect": "scripted",
    "answer": STORY.upper(),
    "prompt_usd_per_mtok": 2.5,
    "completion_usd_per_mtok": 10.0,
}
NO_MONEY = {"usd": 0, "per": "month", "mode": "hard", "name": "pocket money"}


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


@asynccontextmanager
async def serving(folder: Path, *endpoints: dict[str, Any], **tables: Any) -> AsyncIterator[str]:
    """The base URL of a gateway on a free port."""
    settings = settings_from(
        {
            "endpoint": list(endpoints),
            "gateway": {"port": 0},
            "ledger": {"path": str(folder / "ledger.db")},
            **tables,
        }
    )
    async with anyio.create_task_group() as tasks:
        yield await tasks.start(serve, settings)
        tasks.cancel_scope.cancel()


async def ask(
    base_url: str, *, stream: bool = False, model: str = "disco", **headers: str | tuple[str, ...]
) -> tuple[int, Any, Any]:
    """Status, headers and body (JSON, or the text of a stream) of one chat completion.

    A header of several values is sent several times.
    """
    body = {"messages": MESSAGES, "stream": stream, "model": model, "max_tokens": 20}
    named = [
        (f"x-disco-{name}", value)
        for name, values in headers.items()
        for value in ((values,) if isinstance(values, str) else values)
    ]
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{base_url}/chat/completions", json=body, headers=named) as response,
    ):
        text = await response.text()
        return response.status, response.headers, text if stream and response.ok else json.loads(text)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_spent_budget_is_a_402_that_says_when_it_renews(stream: bool, tmp_path: Path) -> None:
    """Streamed or not: 402, no retry, and OpenAI's error object with the budget and its renewal."""
    renews = Window.MONTH.renewal(local_now()).isoformat(sep=" ", timespec="minutes")
    async with serving(tmp_path, LAPTOP, CLOUD, budget=[NO_MONEY]) as base_url:
        status, headers, body = await ask(base_url, stream=stream, policy="server-only")
    assert (status, headers["x-should-retry"]) == (402, "false")
    assert body == {
        "error": {
            "message": f"cloud: budget 'pocket money' is spent; it renews at {renews}",
            "type": "insufficient_quota",
            "param": None,
            "code": "budget_spent",
        }
    }


async def test_a_spent_budget_leaves_the_other_endpoint(tmp_path: Path) -> None:
    """While anybody may start, the client gets an answer, and reads in it who was not asked, and why."""
    async with serving(
        tmp_path, LAPTOP, CLOUD, budget=[NO_MONEY], policy={"name": "offsets", "offsets": {"cloud": 0}}
    ) as base_url:
        status, _, body = await ask(base_url)
    assert (status, body["disco"]["winner"], body["usage"]["completion_tokens"]) == (200, "laptop", 8)
    (refused,) = [attempt for attempt in body["disco"]["attempts"] if attempt["endpoint"] == "cloud"]
    assert refused["outcome"] == "not_started"
    assert "'pocket money' is spent" in refused["error"]


async def test_mixed_failures_keep_their_status(tmp_path: Path) -> None:
    """Where an endpoint failed and another may not be paid for, it is a failure that names both."""
    broken = {**LAPTOP, "refuses": "out of memory"}
    async with serving(tmp_path, broken, CLOUD, budget=[NO_MONEY]) as base_url:
        status, headers, body = await ask(base_url)
    assert (status, headers["x-should-retry"], body["error"]["code"]) == (
        502,
        "false",
        "all_endpoints_failed",
    )
    assert "out of memory" in body["error"]["message"]
    assert "pocket money" in body["error"]["message"]


async def test_the_official_client_does_not_retry(tmp_path: Path) -> None:
    """The openai package raises at once, although it may retry twice."""
    async with (
        serving(tmp_path, CLOUD, LAPTOP, budget=[NO_MONEY]) as base_url,
        openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=2) as client,
    ):
        with pytest.raises(openai.APIStatusError, match="pocket money") as refused:
            await client.chat.completions.create(
                model="disco", messages=MESSAGES, extra_headers={"x-disco-policy": "server-only"}
            )
        assert (refused.value.status_code, refused.value.code) == (402, "budget_spent")
    assert totals(tmp_path / "ledger.db").requests == 1


async def test_a_spent_budget_is_remembered(tmp_path: Path) -> None:
    """What was spent before a restart is spent after it."""
    priced = {**CLOUD, "prompt_usd_per_mtok": 250.0, "completion_usd_per_mtok": 0.0}
    once = {"usd": 0.27, "per": "month", "mode": "hard"}
    async with serving(tmp_path, LAPTOP, priced, budget=[once]) as base_url:
        statuses = [(await ask(base_url, policy="server-only"))[0] for _ in range(30)]
    answered = statuses.count(200)
    assert statuses == [200] * answered + [402] * (30 - answered)
    assert 0 < answered < 30
    async with serving(tmp_path, LAPTOP, priced, budget=[once]) as base_url:
        assert (await ask(base_url, policy="server-only"))[0] == 402


@pytest.mark.parametrize(
    ("policy", "winner"), [("device-only", "laptop"), ("server-only", "cloud"), ("stochastic", None)]
)
async def test_a_request_may_name_its_policy(policy: str, winner: str | None, tmp_path: Path) -> None:
    """`x-disco-policy` plans this request by another policy than the settings'."""
    async with serving(tmp_path, LAPTOP, CLOUD) as base_url:
        status, _, body = await ask(base_url, policy=policy)
    assert status == 200
    assert winner in (None, body["disco"]["winner"])


@pytest.mark.parametrize(
    ("headers", "param", "says"),
    [
        ({"policy": "sever-only"}, "x-disco-policy", "did you mean 'server-only'?"),
        ({"policy": "probe"}, "x-disco-policy", "there is no policy 'probe'"),
        ({"policy": ""}, "x-disco-policy", "there is no policy ''"),
        ({"policy": "offsets"}, "policy", "needs policy.offsets"),
        ({"private": "yes"}, "x-disco-private", "'yes' is neither true nor false"),
        ({"private": ("true", "no")}, "x-disco-private", "'no' is neither true nor false"),
        ({"private": ("false", "no")}, "x-disco-private", "'no' is neither true nor false"),
        ({"private": "false, true"}, "x-disco-private", "'false, true' is neither true nor false"),
        ({"migrate": "off"}, "x-disco-migrate", "'off' is neither true nor false"),
        ({"rescue": "no"}, "x-disco-rescue", "'no' is neither true nor false"),
        ({"private": "true", "policy": "server-only"}, "policy", "which policy 'server-only' does"),
        ({"private": "true", "model": "cloud"}, "model", "'cloud' is a server; name a device, or 'disco'"),
    ],
)
async def test_pins_that_cannot_be_had_are_refused(
    headers: dict[str, str | tuple[str, ...]], param: str, says: str, tmp_path: Path
) -> None:
    """A wrong or contradictory header is the client's mistake, told with what would be right."""
    async with serving(tmp_path, LAPTOP, CLOUD) as base_url:
        status, _, body = await ask(base_url, **headers)
    assert (status, body["error"]["param"]) == (400, param)
    assert says in body["error"]["message"]


async def test_pins_need_an_endpoint_of_their_kind(tmp_path: Path) -> None:
    """Without a device nothing can be private, nor planned for a device alone."""
    async with serving(tmp_path, CLOUD) as base_url:
        private = await ask(base_url, private="true")
        device_only = await ask(base_url, policy="device-only")
    assert (private[0], private[2]["error"]["param"]) == (400, "private")
    assert private[2]["error"]["message"].endswith("there is no device here")
    assert (device_only[0], device_only[2]["error"]["param"]) == (400, "policy")


LONG = " ".join(f"word{n}" for n in range(60))


async def test_a_request_may_ask_to_stay(tmp_path: Path) -> None:
    """`x-disco-migrate: false` keeps an answer where it starts, and the account says so."""
    cloud = {**CLOUD, "answer": LONG, "tbt_s": 0.01, "prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 9}
    first = {"name": "offsets", "offsets": {"cloud": 0}}
    async with serving(tmp_path, {**LAPTOP, "answer": LONG}, cloud, policy=first) as base_url:
        moved = (await ask(base_url))[2]["disco"]
        stayed = (await ask(base_url, migrate="false"))[2]["disco"]
    assert [each["to"] for each in moved["migrations"]] == ["laptop"]
    assert moved["stayed"] is None
    assert "saves $" in moved["migrations"][0]["why"]
    assert stayed["migrations"] == []
    assert stayed["stayed"] == "the request asks to stay where it starts"


async def test_a_request_may_refuse_to_be_rescued(tmp_path: Path) -> None:
    """`x-disco-rescue: false` lets a broken stream end in its error, where another endpoint could go on."""
    cloud = {**CLOUD, "answer": LONG, "breaks_after": 3}
    first = {"name": "offsets", "offsets": {"cloud": 0}}
    async with serving(tmp_path, {**LAPTOP, "answer": LONG}, cloud, policy=first) as base_url:
        rescued = await ask(base_url)
        refused = await ask(base_url, rescue="false")
    told = rescued[2]["choices"][0]["message"]["content"]
    assert (rescued[0], told) == (200, " ".join(LONG.split(" ")[:20]))
    assert (refused[0], refused[2]["error"]["message"]) == (502, "cloud: connection reset (scripted)")


async def test_a_private_request_never_leaves_the_device(tmp_path: Path) -> None:
    """A private request is answered by the device, however slow; one that is not races."""
    slow = {**LAPTOP, "ttft_s": 0.2}
    quick = {"name": "offsets", "offsets": {"cloud": 0, "laptop": 5}}
    async with serving(tmp_path, slow, CLOUD, policy=quick) as base_url:
        (_, _, private), (_, _, public) = (
            await ask(base_url, private="true"),
            await ask(base_url, private="false"),
        )
    assert [attempt["endpoint"] for attempt in private["disco"]["attempts"]] == ["laptop"]
    assert private["disco"]["ttft_s"] < 1.0
    assert public["disco"]["winner"] == "cloud"


@pytest.mark.parametrize("sent", [("true", "false"), ("false", "true"), ("true", "true")])
async def test_a_header_sent_twice_keeps_private_what_either_says(
    sent: tuple[str, ...], tmp_path: Path
) -> None:
    """Whichever of two headers comes last, one `true` keeps the request on the device; two `false` do not."""
    quick = {"name": "offsets", "offsets": {"cloud": 0, "laptop": 5}}
    async with serving(tmp_path, LAPTOP, CLOUD, policy=quick) as base_url:
        _, _, private = await ask(base_url, private=sent)
        _, _, public = await ask(base_url, private=("false", "false"))
    assert [attempt["endpoint"] for attempt in private["disco"]["attempts"]] == ["laptop"]
    assert public["disco"]["winner"] == "cloud"


async def test_a_private_request_that_fails_says_why_nobody_else_was_asked(tmp_path: Path) -> None:
    """When the device breaks, before content or behind it, no server rescues the answer."""
    broken = {**LAPTOP, "breaks_after": 3}
    async with serving(tmp_path, broken, CLOUD, policy={"private": True}) as base_url:
        _, _, streamed = await ask(base_url, stream=True)
        status, _, body = await ask(base_url)
    remark = "laptop: connection reset (scripted); the request is private, so no server was asked"
    assert (status, body["error"]["message"]) == (502, remark)
    assert remark in streamed
    assert [row.endpoint for row in totals(tmp_path / "ledger.db").endpoints] == ["laptop"]


MODEL = "smollm2-135m-instruct"
ENGINE = {"threads": 1, "batch_tokens": 64, "context_tokens": 1024}
LIVE_LAPTOP = {"name": "laptop", "kind": "device", "dialect": "llamacpp", "model": MODEL, **ENGINE}
LIVE_CLOUD = {
    "name": "cloud",
    "kind": "server",
    "dialect": "emulated",
    "model": MODEL,
    "inner": ENGINE,
    "ttft": "azure-gpt-4o",
    "prompt_usd_per_mtok": 2.5,
    "completion_usd_per_mtok": 10.0,
}


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2_path")
async def test_two_hundred_live_requests_exceed_nothing(tmp_path: Path) -> None:
    """200 requests, eight at a time, through real engines: the ledger's total stays within a hard budget.

    Most insist on the server; once the budget is spent they are refused, and the others go on at the device.
    """
    budget = {"usd": 0.012, "per": "month", "mode": "hard", "name": "pocket money"}
    answered: list[str] = []
    refused: list[openai.APIStatusError] = []

    async def client_of(name: int, base_url: str) -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=2) as client:
            for number in range(25):
                messages: Any = [{"role": "user", "content": f"Say {name} and {number}."}]
                headers = {"x-disco-policy": "server-only"} if number % 5 else {}
                try:
                    answer = await client.chat.completions.create(
                        model="disco", messages=messages, max_tokens=6, extra_headers=headers
                    )
                except openai.APIStatusError as error:
                    refused.append(error)
                else:
                    answered.append((answer.model_extra or {})["disco"]["winner"])

    async with (
        serving(
            tmp_path, LIVE_LAPTOP, LIVE_CLOUD, budget=[budget], policy={"constraint": "server"}
        ) as base_url,
        anyio.create_task_group() as clients,
    ):
        for name in range(8):
            clients.start_soon(client_of, name, base_url)
    spent = totals(tmp_path / "ledger.db")
    assert (len(answered) + len(refused), spent.requests) == (200, 200)
    assert 0.6 * budget["usd"] < spent.usd <= budget["usd"]
    assert {"laptop", "cloud"} == set(answered)
    assert refused
    for error in refused:
        assert (error.status_code, error.code) == (402, "budget_spent")
        assert error.response.headers["x-should-retry"] == "false"
        assert "budget 'pocket money'" in error.message
