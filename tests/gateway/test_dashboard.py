"""`/dashboard/api/…` on real sockets: the numbers of the ledger and the metrics, and what runs just now."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from ledgers import MOVED, RESCUED, write_ledger
from pairs import CLOUD, LAPTOP, SHAKY
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from discostream.config import Settings, settings_from
from discostream.gateway import dashboard
from discostream.gateway.app import serve
from discostream.gateway.openapi import OPERATIONS, SCHEMAS
from discostream.ledger.overview import Overview, overview

SECRET = "the-prompt-that-nobody-else-may-read"
CLOUD_FIRST = {"name": "offsets", "offsets": {"cloud": 0.0}}


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


@pytest.fixture
def two_minutes(tmp_path: Path) -> Path:
    """A ledger with two requests, a minute apart."""
    noon_s = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    return write_ledger(tmp_path / "ledger.db", [(noon_s, MOVED), (noon_s + 60, RESCUED)])


def settings(folder: Path, *endpoints: dict[str, Any], **tables: Any) -> Settings:
    ledger = {"path": str(folder / "ledger.db")}
    gateway = {"port": 0, **tables.pop("gateway", {})}
    return settings_from({"endpoint": list(endpoints), "gateway": gateway, "ledger": ledger, **tables})


class Client:
    """Asks a running gateway, and looks at its dashboard's data; keeps all that it was told."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self.session, self.root = session, base_url.removesuffix("/v1")
        self.told: list[str] = []

    async def ask(self, model: str = "disco", **headers: str) -> dict[str, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": f"{SECRET} please"}]}
        url = f"{self.root}/v1/chat/completions"
        async with self.session.post(url, json=body, headers=headers) as response:
            answer: dict[str, Any] = await response.json()
            return answer

    @asynccontextmanager
    async def stream(self, model: str, **headers: str) -> AsyncIterator[aiohttp.StreamReader]:
        """A stream that has begun, and which is left without having been read to its end."""
        messages = [{"role": "user", "content": f"{SECRET} please"}]
        body = {"model": model, "messages": messages, "stream": True}
        url = f"{self.root}/v1/chat/completions"
        async with self.session.post(url, json=body, headers=headers) as response:
            await response.content.readany()
            yield response.content

    async def look(self, path: str, status: int = 200, **headers: str) -> Any:
        """What the dashboard is told, which is as the document of the API has it."""
        async with self.session.get(URL(f"{self.root}{path}", encoded=True), headers=headers) as response:
            assert response.status == status, await response.text()
            self.told.append(await response.text())
        if status == 200:
            fits(path, json.loads(self.told[-1]))
            assert response.headers["Cache-Control"] == "no-store"
        return json.loads(self.told[-1])

    async def pages(self, query: str, limit: int) -> list[dict[str, Any]]:
        """All requests, page by page."""
        found: list[dict[str, Any]] = []
        page = await self.look(f"/dashboard/api/requests?{query}&limit={limit}")
        while True:
            found += page["requests"]
            if page["next"] is None:
                return found
            assert len(page["requests"]) == limit
            page = await self.look(f"/dashboard/api/requests?{query}&limit={limit}&before={page['next']}")

    async def metrics(self) -> str:
        async with self.session.get(f"{self.root}/metrics") as response:
            return await response.text()


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Client]:
    async with anyio.create_task_group() as tasks, aiohttp.ClientSession() as session:
        yield Client(session, await tasks.start(serve, settings))
        tasks.cancel_scope.cancel()


def fits(path: str, told: Any) -> None:
    """Whether a reply is what the document says; not looked at where nothing is installed that could."""
    schemas = pytest.importorskip("jsonschema_rs", reason="comes with Schemathesis, in the extra `test`")
    path = re.sub(r"requests/[^?]+", "requests/{id}", path.partition("?")[0])
    schema = OPERATIONS["GET", path]["responses"]["200"]["content"]["application/json"]["schema"]
    schemas.validator_for({**schema, "components": {"schemas": SCHEMAS}}).validate(told)


def sums(page: str, sample: str, *labels: str, **only: str) -> Any:
    """The samples of this name with those labels, added up by some others, or all in all."""
    added: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for one in family.samples:
            if one.name == sample and only.items() <= one.labels.items():
                key = ", ".join(one.labels[label] for label in labels)
                added[key] = added.get(key, 0.0) + one.value
    return added if labels else added.get("", 0)


def recorded(folder: Path, query: str) -> Any:
    """What the ledger itself says: one row."""
    with closing(sqlite3.connect(folder / "ledger.db")) as ledger:
        return ledger.execute(query).fetchone()


def close(value: Any) -> Any:
    return pytest.approx(value, rel=1e-9, abs=0)


@pytest.mark.anyio
async def test_the_numbers_are_the_ledgers_and_the_metrics(tmp_path: Path) -> None:
    """After a race, moves, a rescue, a failure, a private request and a client that left, sums are equal."""
    world = settings(tmp_path, LAPTOP, CLOUD, SHAKY, policy=CLOUD_FIRST)
    async with serving(world) as client:
        await client.ask()
        await client.ask(**{"x-disco-migrate": "false"})
        await client.ask("disco-fast", **{"x-disco-migrate": "false"})
        await client.ask("disco-private")
        await client.ask("shaky")
        async with client.stream("cloud"):
            pass
        with anyio.fail_after(3):
            while not sums(await client.metrics(), "disco_requests_total", outcome="cancelled"):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        page = await client.metrics()
        found = await client.look("/dashboard/api/overview?since=all")
        lately = await client.look("/dashboard/api/overview")
        rows = await client.pages("since=all", 4)
        each = [
            one
            for row in rows
            for one in (await client.look(f"/dashboard/api/requests/{row['request_id']}"))["requests"]
        ]
    totals = found["totals"]
    assert lately["totals"]["requests"] == totals["requests"] == 6
    assert {row["outcome"] for row in rows} == {"ok", "failed", "cancelled"}
    adds_up_to_rows(totals, rows)
    adds_up_to_the_ledger(totals, tmp_path)
    adds_up_to_metrics(found, page)
    adds_up_over_time(found)
    assert found["policies"] == sorted({row["policy"] for row in rows})
    for row, one in zip(rows, each, strict=True):
        assert {**one, "migrations": len(one["migrations"])} == {
            **row,
            **{name: one[name] for name in ("attempts", "longest_gaps")},
        }
        assert sum(attempt["usd"] for attempt in one["attempts"]) == close(row["usd"])
        assert all(one["ttft_s"] < move["at_s"] <= one["ended_s"] for move in one["migrations"])
    assert not any(SECRET in told or "word1" in told for told in client.told)


def adds_up_to_rows(totals: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """What the list has, page after page."""
    counted = {how: sum(row["outcome"] == how for row in rows) for how in ("ok", "failed", "cancelled")}
    assert {how: totals[how] for how in counted} == counted
    assert (totals["requests"], totals["raced"]) == (len(rows), sum(row["raced"] for row in rows))
    for name in ("migrations", "rescues", "prompt_tokens", "completion_tokens", "usd", "joules"):
        assert totals[name] == close(sum(row[name] for row in rows)), name
    waits = [row["ttft_s"] for row in rows if row["ttft_s"] is not None]
    assert totals["ttft_s"]["mean"] == close(sum(waits) / len(waits))


def adds_up_to_the_ledger(totals: dict[str, Any], folder: Path) -> None:
    """What anybody finds in its file."""
    names = ("requests", "migrations", "prompt_tokens", "completion_tokens", "usd", "joules")
    query = (
        "SELECT count(*), sum(migrations), sum(prompt_tokens), sum(completion_tokens), sum(usd), sum(joules)"
    )
    assert [totals[name] for name in names] == close(list(recorded(folder, f"{query} FROM request")))
    assert recorded(folder, "SELECT count(*) FROM migration WHERE reason = 'rescue'") == (totals["rescues"],)
    spent = recorded(folder, "SELECT sum(usd), sum(joules) FROM attempt")
    assert [totals["usd"], totals["joules"]] == close(list(spent))


def adds_up_to_metrics(found: dict[str, Any], page: str) -> None:
    """What Prometheus is told, counter by counter and histogram by histogram."""
    totals, cdf = found["totals"], found["ttft_cdf"]
    assert totals["requests"] == sums(page, "disco_requests_total")
    for how in ("ok", "failed", "cancelled"):
        assert totals[how] == sums(page, "disco_requests_total", outcome=how) > 0
    assert totals["raced"] == sums(page, "disco_races_total") > 0
    assert totals["migrations"] == sums(page, "disco_migrations_total") > totals["rescues"]
    assert totals["rescues"] == sums(page, "disco_migrations_total", reason="rescue") > 0
    assert totals["usd"] == close(sums(page, "disco_usd_total"))
    assert totals["joules"] == close(sums(page, "disco_joules_total"))
    delivered = "gen_ai_server_time_to_first_token_seconds"
    assert cdf["delivered"]["count"] == sums(page, f"{delivered}_count")
    mean_s = totals["ttft_s"]["mean"]
    assert mean_s * cdf["delivered"]["count"] == close(sums(page, f"{delivered}_sum"))
    assert [each["endpoint"] for each in found["endpoints"]] == ["cloud", "laptop", "shaky"]
    for endpoint in found["endpoints"]:
        at = {"endpoint": endpoint["endpoint"]}
        outcomes = sums(page, "disco_attempts_total", "outcome", **at)
        assert endpoint["attempts"] == sum(outcomes.values())
        assert (endpoint["failed"], endpoint["lost"]) == (outcomes.get("failed", 0), outcomes.get("lost", 0))
        moved = "disco_migrations_total"
        assert endpoint["migrated_from"] == sums(page, moved, source=at["endpoint"])
        assert endpoint["migrated_to"] == sums(page, moved, target=at["endpoint"])
        for kind, name in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            used = sums(page, "gen_ai_client_token_usage_sum", gen_ai_token_type=kind, **at)
            assert endpoint[name] == used
        assert endpoint["usd"] == close(sums(page, "disco_usd_total", **at))
        assert endpoint["joules"] == close(sums(page, "disco_joules_total", **at))
        chunk, curve = "gen_ai_client_operation_time_to_first_chunk_seconds", cdf["endpoints"][at["endpoint"]]
        assert curve["count"] == sums(page, f"{chunk}_count", **at)
        assert endpoint["ttft_s"]["mean"] * curve["count"] == close(sums(page, f"{chunk}_sum", **at))
        assert (curve["s"], curve["share"][-1]) == (sorted(curve["s"]), 1.0)


def adds_up_over_time(found: dict[str, Any]) -> None:
    """Buckets hold what the totals have, each endpoint's too, and are as many as there are starts."""
    over_time = found["over_time"]
    for name in ("requests", "failed", "cancelled", "migrations", "rescues", "usd", "joules"):
        assert sum(over_time[name]) == close(found["totals"][name]), name
        assert len(over_time[name]) == len(over_time["starts"]) <= 120
    for endpoint in found["endpoints"]:
        for name, values in over_time["endpoints"][endpoint["endpoint"]].items():
            assert sum(values) == close(endpoint[name])
    answered = [place for place, wait_s in enumerate(over_time["ttft_s"]["p50"]) if wait_s is not None]
    assert answered
    assert all(over_time["requests"][place] for place in answered)


@pytest.mark.anyio
async def test_what_runs_is_seen(tmp_path: Path) -> None:
    """What waits, a stream with the stall that it is in, and an answer that moved, with seam and stalls."""
    slow = {**LAPTOP, "tbt_s": 0.3}
    stuck = {**CLOUD, "name": "stuck", "hangs_after": 2}
    far = {**CLOUD, "name": "far", "ttft_s": 60.0}
    world = settings(tmp_path, slow, CLOUD, stuck, far, policy=CLOUD_FIRST)
    async with serving(world) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(client.ask, "far", **{"x-request-id": "waits"}))
        stalls, moves = {"x-request-id": "stalls"}, {"x-request-id": "moves"}
        async with client.stream("stuck", **stalls), client.stream("disco", **moves):
            with anyio.fail_after(10):
                racing, streaming, moved = await seen(client, "waits", "stalls", "moves")
                while not (moved["seams"] and streaming["stalls"] and len(moved["stalls"]) > 1):
                    await anyio.sleep(0.05)
                    racing, streaming, moved = await seen(client, "waits", "stalls", "moves")
        with anyio.fail_after(3):
            while len((await client.look("/dashboard/api/live"))["requests"]) > 1:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        (settled,) = (await client.look("/dashboard/api/requests/moves"))["requests"]
        tasks.cancel_scope.cancel()
    assert (racing["state"], racing["policy"], racing["delivered_tokens"]) == ("racing", "pinned to far", 0)
    assert [(each["endpoint"], each["state"], each["ttft_s"]) for each in racing["attempts"]] == [
        ("far", "waiting", None)
    ]
    assert (streaming["state"], streaming["delivered_tokens"]) == ("streaming", 2)
    *_, stall = streaming["stalls"]  # on a busy machine its two tokens may have been apart, too
    assert stall["at_s"] + stall["for_s"] == pytest.approx(streaming["age_s"])
    assert moved["state"] == "streaming"
    assert [each["state"] for each in moved["attempts"]] == ["done", "delivering"]
    (seam,), (move,) = moved["seams"], settled["migrations"]
    assert {name: move[name] for name in seam} == seam
    ended = [gap for gap in moved["stalls"] if gap["at_s"] + gap["for_s"] < moved["age_s"] - 1e-9]
    kept = [(gap["at_s"], gap["for_s"]) for gap in settled["longest_gaps"]]
    assert ended
    assert {(round(gap["at_s"], 6), round(gap["for_s"], 6)) for gap in ended} <= set(kept)
    assert (settled["outcome"], settled["raced"]) == ("cancelled", False)
    assert not any(SECRET in told or "word1" in told for told in client.told)


async def seen(client: Client, *request_ids: str) -> list[dict[str, Any]]:
    """How these requests stand, which are all there are; told in the order in which they came."""
    live = await client.look("/dashboard/api/live")
    ages = [request["age_s"] for request in live["requests"]]
    assert ages == sorted(ages, reverse=True)
    now = datetime.fromisoformat(live["now"])
    for request in live["requests"]:
        arrived = now - timedelta(seconds=request["age_s"])
        assert abs(datetime.fromisoformat(request["arrived_at"]) - arrived) < timedelta(seconds=0.5)
    found = {request["request_id"]: request for request in live["requests"]}
    assert set(found) == set(request_ids)
    return [found[request_id] for request_id in request_ids]


@pytest.mark.anyio
async def test_a_span_and_filters_choose(tmp_path: Path, two_minutes: Path) -> None:
    """By moments and ages, by policy, endpoint and outcome, in the list as in the overview."""
    async with serving(settings(tmp_path, LAPTOP)) as client:
        for query, found in (
            ("", []),
            ("since=all", [RESCUED, MOVED]),
            ("since=2026-03-01T12:00:00Z&until=2026-03-01T12:01:00Z", [MOVED]),
            ("since=2026-03-01T13:00:00.001%2B01:00", [RESCUED]),
            ("since=10000d&until=2026-03-02", [RESCUED, MOVED]),
            ("since=all&endpoint=cloud", [MOVED]),
            ("since=all&policy=optimal&outcome=ok", [RESCUED, MOVED]),
            ("since=all&policy=optimal,%20private", [RESCUED]),
            ("since=all&outcome=failed", []),
        ):
            listed = await client.look(f"/dashboard/api/requests?{query}")
            overview = await client.look(f"/dashboard/api/overview?{query}")
            assert [row["request_id"] for row in listed["requests"]] == [one.request_id for one in found], (
                query
            )
            assert overview["totals"]["requests"] == len(found)
            assert listed["next"] is None
    assert overview["since"] == "2026-03-01T12:00:00.000+00:00"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "param", "told"),
    [
        (
            "since=yesterday",
            "since",
            "since 'yesterday': must be a span such as 2h, or a date such as 2026-03-01",
        ),
        ("since=-1h", "since", "since '-1h': must be a span"),
        ("until=noon", "until", "until 'noon': must be a span"),
        ("until=all", "until", "until 'all': must be a span"),
        ("since=1h&until=2h", "since", "since '1h': must be before until"),
        ("until=2h", "since", "since '1h': must be before until"),
        ("since=2999-01-01", "since", "since '2999-01-01': must be before until"),
        ("outcome=good", "outcome", "outcome 'good': must be one of ok, failed, cancelled"),
        (
            "polcy=disco",
            "polcy",
            "'polcy': no such parameter; must be since, until, policy, endpoint, outcome",
        ),
        ("policy=a&policy=b", "policy", "policy: is there twice; send it once"),
        ("limit=0", "limit", "limit '0': must be a whole number from 1 to 500"),
        ("limit=501", "limit", "limit '501': must be"),
        ("limit=many", "limit", "limit 'many': must be"),
        ("limit=%C2%B2", "limit", "limit '²': must be"),
        ("before=-3", "before", "before '-3': must be"),
        ("before=99999999999999999999", "before", "before '99999999999999999999': must be"),
    ],
)
async def test_what_cannot_be_is_refused(tmp_path: Path, query: str, param: str, told: str) -> None:
    """With status 400, the parameter's name, its value, and what would be right."""
    paths = ["requests"] if param in ("limit", "before") else ["requests", "overview"]
    async with serving(settings(tmp_path, LAPTOP)) as client:
        for path in paths:
            error = (await client.look(f"/dashboard/api/{path}?{query}", 400))["error"]
            assert (error["type"], error["param"]) == ("invalid_request_error", param)
            assert error["message"].startswith(told)


@pytest.mark.anyio
async def test_an_unknown_id_is_not_found(tmp_path: Path) -> None:
    """With status 404; bytes that are no text are an ID that nobody has."""
    async with serving(settings(tmp_path, LAPTOP)) as client:
        error = (await client.look("/dashboard/api/requests/nobody", 404))["error"]
        assert (error["param"], error["message"][:11]) == ("id", "id 'nobody'")
        await client.look("/dashboard/api/requests/%ff", 404)
        await client.look("/dashboard/api/requests/a%00b", 404)
        await client.look("/dashboard/api/live?since=1h", 400)
        await client.look("/dashboard/api/requests?policy=%ff%00&since=all")


@pytest.mark.anyio
async def test_a_damaged_ledger_is_told_as_one(tmp_path: Path, two_minutes: Path) -> None:
    """The file, the request and what is wrong with it, where the log has it in one line."""
    async with serving(settings(tmp_path, LAPTOP)) as client:
        with closing(sqlite3.connect(two_minutes)) as connection, connection:
            connection.execute("UPDATE attempt SET kind = 'abacus' WHERE request = 1")
        for path in ("overview?since=all", f"requests/{MOVED.request_id}"):
            error = (await client.look(f"/dashboard/api/{path}", 500))["error"]
            assert "request 1 is damaged: 'abacus' is not a valid Kind" in error["message"]
            assert error["code"] == "ledger_unreadable"


@pytest.mark.anyio
async def test_the_key_rules_are_the_apis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the key nothing is told, nor to a page that points at a local gateway."""
    monkeypatch.setenv("GATEWAY_KEY", "right")
    async with serving(settings(tmp_path, LAPTOP, gateway={"api_key_env": "GATEWAY_KEY"})) as client:
        for path in ("overview", "requests", "requests/one", "live"):
            error = (await client.look(f"/dashboard/api/{path}", 401))["error"]
            assert error["code"] == "invalid_api_key"
            await client.look(f"/dashboard/api/{path}", 403, Host="evil.example")
        await client.look("/dashboard/api/live", Authorization="Bearer right")


@pytest.mark.anyio
async def test_the_ledgers_numbers_outlive_the_gateway(tmp_path: Path) -> None:
    """What one gateway has recorded, the next one shows."""
    world = settings(tmp_path, LAPTOP)
    async with serving(world) as client:
        await client.ask()
        before = await client.look("/dashboard/api/overview?since=all")
    async with serving(world) as client:
        after = await client.look("/dashboard/api/overview?since=all")
    assert before["totals"] == after["totals"]
    assert before["totals"]["requests"] == 1


@pytest.mark.anyio
async def test_many_who_look_hold_up_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While sixty wait for a slow ledger, a request under a new policy still gets its plan at once."""
    over = threading.Event()

    def slowly(*asked: Any) -> Overview:
        over.wait(10)
        return overview(*asked)

    monkeypatch.setattr(dashboard, "overview", slowly)
    async with serving(settings(tmp_path, LAPTOP, CLOUD)) as client, anyio.create_task_group() as tasks:
        for _ in range(60):
            tasks.start_soon(client.look, "/dashboard/api/overview")
        await anyio.sleep(0.3)
        try:
            with anyio.fail_after(3):
                await client.ask("disco-fast")
        finally:
            over.set()
