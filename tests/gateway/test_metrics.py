"""`/metrics` on real sockets: it counts what the ledger holds, and shows what is so at the moment."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from pairs import CLOUD, LAPTOP, SHAKY
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from discostream.config import EndpointSettings, Settings, settings_from
from discostream.gateway.app import METRICS, build_app, serve
from discostream.gateway.measures import provider_of
from discostream.library import connect
from discostream.types import Kind

DOCS = Path(__file__).parents[2] / "docs"
CLOUD_FIRST = {"name": "offsets", "offsets": {"cloud": 0.0}}


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


def settings(folder: Path, *endpoints: dict[str, Any], **tables: Any) -> Settings:
    ledger = {"path": str(folder / "ledger.db")}
    gateway = {"port": 0, **tables.pop("gateway", {})}
    return settings_from({"endpoint": list(endpoints), "gateway": gateway, "ledger": ledger, **tables})


class Client:
    """Asks a running gateway, and reads its metrics."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self.session, self.base_url = session, base_url

    async def ask(self, model: str = "disco", **headers: str) -> dict[str, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": "Tell me a story"}]}
        async with self.session.post(
            f"{self.base_url}/chat/completions", json=body, headers=headers
        ) as response:
            told: dict[str, Any] = await response.json()
            return told

    async def go_on(self, model: str) -> None:
        body = {"model": model, "prompt": "Once upon", "max_tokens": 4}
        async with self.session.post(f"{self.base_url}/completions", json=body) as response:
            assert response.status == 200

    @asynccontextmanager
    async def stream(self, model: str) -> AsyncIterator[None]:
        """A stream that has begun, and which is left without having been read to its end."""
        body = {"model": model, "messages": [{"role": "user", "content": "Tell me"}], "stream": True}
        async with self.session.post(f"{self.base_url}/chat/completions", json=body) as response:
            await response.content.readany()
            yield

    async def page(self, status: int = 200, **headers: str) -> str:
        async with self.session.get(self.base_url.replace("/v1", "/metrics"), headers=headers) as response:
            assert response.status == status
            return await response.text()


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Client]:
    async with anyio.create_task_group() as tasks, aiohttp.ClientSession() as session:
        yield Client(session, await tasks.start(serve, settings))
        tasks.cancel_scope.cancel()


def sums(page: str, sample: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The samples of this name, added up by some of their labels."""
    added: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(page):
        for one in family.samples:
            if one.name == sample:
                key = tuple(one.labels[label] for label in labels)
                added[key] = added.get(key, 0.0) + one.value
    return added


def recorded(folder: Path, query: str) -> dict[tuple[str, ...], float]:
    """What the ledger has, under the same keys: the last column is the value."""
    with closing(sqlite3.connect(folder / "ledger.db")) as ledger:
        return {tuple(key): value for *key, value in ledger.execute(query)}


OF_ATTEMPTS = "FROM attempt WHERE outcome != 'not_started'"
LEDGER = {
    ("disco_requests_total", "policy", "outcome"): (
        "SELECT policy, outcome, count(*) FROM request GROUP BY 1, 2"
    ),
    ("disco_attempts_total", "endpoint", "outcome"): (
        "SELECT endpoint, outcome, count(*) FROM attempt GROUP BY 1, 2"
    ),
    ("disco_migrations_total", "source", "target", "reason", "by"): (
        "SELECT source, target, reason, by, count(*) FROM migration GROUP BY 1, 2, 3, 4"
    ),
    ("disco_usd_total", "endpoint"): f"SELECT endpoint, sum(usd) {OF_ATTEMPTS} GROUP BY 1",
    ("disco_joules_total", "endpoint"): f"SELECT endpoint, sum(joules) {OF_ATTEMPTS} GROUP BY 1",
    ("gen_ai_client_token_usage_sum", "endpoint", "gen_ai_token_type"): (
        f"SELECT endpoint, 'input', sum(prompt_tokens) {OF_ATTEMPTS} GROUP BY 1 "
        f"UNION SELECT endpoint, 'output', sum(completion_tokens) {OF_ATTEMPTS} GROUP BY 1"
    ),
    ("gen_ai_client_operation_duration_seconds_sum", "endpoint", "outcome"): (
        "SELECT endpoint, outcome, sum(ran_s) FROM attempt WHERE ran_s IS NOT NULL GROUP BY 1, 2"
    ),
    ("gen_ai_client_operation_time_to_first_chunk_seconds_sum", "endpoint"): (
        "SELECT endpoint, sum(ttft_s - start_offset_s) FROM attempt WHERE ttft_s IS NOT NULL GROUP BY 1"
    ),
    ("gen_ai_server_time_to_first_token_seconds_sum", "policy"): (
        "SELECT policy, sum(ttft_s) FROM request WHERE ttft_s IS NOT NULL GROUP BY 1"
    ),
    ("gen_ai_server_time_per_output_token_seconds_sum", "policy"): (
        "SELECT policy, sum(mean_tbt_s) FROM request WHERE outcome = 'ok' GROUP BY 1"
    ),
    ("gen_ai_server_request_duration_seconds_count", "policy"): (
        "SELECT policy, count(*) FROM request GROUP BY 1"
    ),
    ("disco_gateway_overhead_seconds_sum",): (
        f"SELECT sum(first_s) FROM (SELECT min(start_offset_s) AS first_s {OF_ATTEMPTS} GROUP BY request)"
    ),
}
"""What each of the metrics adds up to, by the labels named."""


@pytest.mark.anyio
async def test_the_metrics_are_the_ledgers(tmp_path: Path) -> None:
    """After races, moves, rescues, failures and a client that left, every sum equals the ledger's."""
    world = settings(tmp_path, LAPTOP, CLOUD, SHAKY, policy=CLOUD_FIRST)
    async with serving(world) as client:
        await client.ask()
        await client.ask(**{"x-disco-migrate": "false", "x-request-id": "one-of-many"})
        await client.ask("disco-fast", **{"x-disco-migrate": "false"})
        await client.ask("disco-private")
        await client.ask("shaky")
        await client.ask("model-of-nobody")
        await client.go_on("laptop")
        async with client.stream("cloud"):
            pass
        page = await client.page()
        with anyio.fail_after(3):
            while ("pinned to cloud", "cancelled") not in sums(
                page, "disco_requests_total", "policy", "outcome"
            ):
                await anyio.sleep(0.01)
                page = await client.page()
    for (sample, *labels), query in LEDGER.items():
        assert sums(page, sample, *labels) == pytest.approx(recorded(tmp_path, query)), sample
    assert {outcome for (outcome,) in sums(page, "disco_attempts_total", "outcome")} == {
        "won",
        "lost",
        "failed",
        "migrated_from",
        "migrated_to",
    }
    assert {reason for (reason,) in sums(page, "disco_migrations_total", "reason")} == {"cost", "rescue"}
    assert sums(page, "disco_races_total", "winner") == {("shaky",): 1}
    assert "one-of-many" not in page
    assert "model-of-nobody" not in page


@pytest.mark.anyio
async def test_names_and_models_come_from_the_settings(tmp_path: Path) -> None:
    """An attempt is told by endpoint, model, provider and operation, a request by operation and errors."""
    async with serving(settings(tmp_path, LAPTOP, CLOUD, SHAKY, policy=CLOUD_FIRST)) as client:
        await client.go_on("laptop")
        await client.ask("shaky")
        page = await client.page()
    asked = "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "endpoint", "error_type"
    assert sums(page, "gen_ai_client_operation_duration_seconds_count", *asked) == {
        ("text_completion", "scripted", "small", "laptop", ""): 1,
        ("chat", "scripted", "worse", "shaky", "failed"): 1,
    }
    served = "gen_ai_operation_name", "gen_ai_provider_name", "error_type"
    assert sums(page, "gen_ai_server_request_duration_seconds_count", *served) == {
        ("text_completion", "discostream", ""): 1,
        ("chat", "discostream", "failed"): 1,
    }


@pytest.mark.parametrize(
    ("dialect", "options", "provider"),
    [
        ("anthropic", {}, "anthropic"),
        ("gemini", {}, "gcp.gemini"),
        ("openai", {"preset": "azure"}, "azure.ai.openai"),
        ("openai", {"preset": "mistral"}, "mistral_ai"),
        ("openai", {"preset": "vllm"}, "vllm"),
        ("llamacpp", {}, "llamacpp"),
    ],
)
def test_providers_go_by_the_conventions_words(dialect: str, options: dict[str, str], provider: str) -> None:
    """A provider that the conventions know has their name, and any other its preset's or dialect's."""
    endpoint = EndpointSettings(name="one", kind=Kind.SERVER, dialect=dialect, options=options)
    assert provider_of(endpoint) == provider


@pytest.mark.anyio
async def test_counts_begin_with_the_gateway(tmp_path: Path) -> None:
    """A gateway that is started again counts from zero, whatever its ledger holds."""
    world = settings(tmp_path, LAPTOP)
    async with serving(world) as client:
        await client.ask()
        assert sums(await client.page(), "disco_requests_total") == {(): 1}
    async with serving(world) as client:
        assert sums(await client.page(), "disco_requests_total") == {}


@pytest.mark.anyio
async def test_what_is_so_now_is_looked_up(tmp_path: Path) -> None:
    """Running attempts, standing and budgets are those of the moment at which they are asked for."""
    hangs = {**CLOUD, "hangs_after": 2}
    pocket = {"name": "pocket", "usd": 1.0, "per": "month", "mode": "hard"}
    world = settings(tmp_path, LAPTOP, hangs, policy={"name": "disco", "share": 0.25}, budget=[pocket])
    async with serving(world) as client:
        answered = await client.ask("laptop")
        async with client.stream("cloud"):
            busy = await client.page()
        with anyio.fail_after(3):
            while sums(await client.page(), "disco_attempts_running", "endpoint")[("cloud",)]:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        idle = await client.page()
    assert answered["disco"]["winner"] == "laptop"
    assert sums(busy, "disco_attempts_running", "endpoint") == {("laptop",): 0, ("cloud",): 1}
    standing = sums(busy, "disco_endpoint_standing", "endpoint", "standing")
    assert {key for key, is_so in standing.items() if is_so} == {("laptop", "ready"), ("cloud", "ready")}
    assert len(standing) == 2 * 3
    money, share = ("pocket", "usd"), ("policy.share", "share")
    assert sums(busy, "disco_budget_amount", "budget", "resource") == {money: 1.0, share: 0.25}
    spent = sums(idle, "disco_budget_spent", "budget", "resource")
    assert spent[money] == pytest.approx(sums(idle, "disco_usd_total")[()])
    assert sums(busy, "disco_budget_held", "budget", "resource")[money] > 0
    assert sums(idle, "disco_budget_held", "budget", "resource") == {money: 0.0, share: 0.0}
    allowed = sums(busy, "disco_budget_allowance", "budget", "resource")
    assert set(allowed) == {money, share}
    assert sums(busy, "disco_budget_multiplier", "budget", "resource")[share] == allowed[share] / 0.25
    prices = sums(busy, "disco_budget_shadow_price_seconds", "budget", "resource")
    assert set(prices) == {money, share}
    assert min(prices.values()) >= 0


@pytest.mark.anyio
async def test_the_key_rules_are_the_apis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the key nothing is told, nor to a page that points at a local gateway."""
    monkeypatch.setenv("GATEWAY_KEY", "right")
    async with serving(settings(tmp_path, LAPTOP, gateway={"api_key_env": "GATEWAY_KEY"})) as client:
        assert "laptop" not in await client.page(401)
        assert "laptop" not in await client.page(403, Host="evil.example")
        assert "laptop" in await client.page(Authorization="Bearer right")


@pytest.mark.anyio
@pytest.mark.parametrize("accept", ["application/json", "application/openmetrics-text", "no/such;q=x,,"])
async def test_whatever_is_asked_for_text_is_given(accept: str, tmp_path: Path) -> None:
    """A client that would rather have something else gets Prometheus' text, and is told so."""
    async with (
        serving(settings(tmp_path, LAPTOP)) as client,
        client.session.get(
            client.base_url.replace("/v1", "/metrics"), headers={"Accept": accept}
        ) as response,
    ):
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert list(text_string_to_metric_families(await response.text()))


def test_every_metric_and_label_is_documented(tmp_path: Path) -> None:
    """docs/metrics-endpoint.md has the name of each, and of what tells its series apart."""
    metrics = build_app(connect(settings(tmp_path, LAPTOP, CLOUD)))[METRICS]
    page = (DOCS / "metrics-endpoint.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^# TYPE (\S+?)(?:_created)? ", metrics.page().decode(), re.MULTILINE))
    names = {f"{name}_total" if f"{name}_total" in names else name for name in names}
    families = [*metrics._registry._collector_to_names, *metrics._registry.collect()]
    labels = {label for family in families for label in getattr(family, "_labelnames", ())}
    assert {"disco_requests_total", "disco_budget_held"} <= names
    assert {"gen_ai_request_model", "standing"} <= labels
    assert not {name for name in names | labels if f"`{name}`" not in page}


def test_connections_share_nothing(tmp_path: Path) -> None:
    """Two gateways may live in one process, and neither touches what others of it tell Prometheus."""
    apps = [build_app(connect(settings(tmp_path, LAPTOP))) for _ in range(2)]
    assert all(b"disco_requests" in app[METRICS].page() for app in apps)
    assert b"disco" not in generate_latest(REGISTRY)
