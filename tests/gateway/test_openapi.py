"""The published OpenAPI document: complete, open, and kept to whatever clients send."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from scripts import BENCHMARKS

from discostream.config import Settings, settings_from
from discostream.gateway.app import build_app, serve
from discostream.gateway.openapi import SCHEMAS, document
from discostream.library import connect
from discostream.types import Outcome
from discostream.wire import openai_schema


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


def settings(folder: Path, **gateway: Any) -> Settings:
    laptop = {"name": "laptop", "kind": "device", "dialect": "scripted"}
    ledger = {"path": str(folder / "ledger.db")}
    return settings_from({"endpoint": [laptop], "gateway": {"port": 0, **gateway}, "ledger": ledger})


def test_every_route_is_in_the_document(tmp_path: Path) -> None:
    """All routes are there by path and method, whatever they refer to exists, and all of it is JSON."""
    app = build_app(connect(settings(tmp_path)))
    told = document(app)
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in app.router.routes()
        if route.resource and route.method != "HEAD"
    }
    assert {(method, path) for path, methods in told["paths"].items() for method in methods} == routes
    referred = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(told)))
    assert referred <= set(SCHEMAS)


def test_the_document_knows_every_field_of_a_chat_and_of_its_account() -> None:
    """What the decoder maps is described by name, and so is everything in the `disco` object."""
    described = set(SCHEMAS["ChatRequest"]["properties"])
    assert described <= set(openai_schema._ChatBody.__struct_fields__)
    account = Outcome(
        request_id="r",
        policy="disco",
        winner=None,
        ttft_s=None,
        finish_reason=None,
        prompt_chars=0,
        prompt_tokens=0,
        completion_tokens=0,
        attempts=(),
        migrations=(),
        delivered_s=(),
    ).as_disco()
    assert set(SCHEMAS["Disco"]["properties"]) == set(account)


@pytest.mark.anyio
async def test_the_document_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools fetch it before they are told a key; it names no endpoint."""
    monkeypatch.setenv("GATEWAY_KEY", "right")
    async with anyio.create_task_group() as tasks, aiohttp.ClientSession() as session:
        base_url = await tasks.start(serve, settings(tmp_path, api_key_env="GATEWAY_KEY"))
        async with session.get(base_url.replace("/v1", "/openapi.json")) as response:
            told = await response.text()
            assert (response.status, json.loads(told)["openapi"]) == (200, "3.1.0")
        tasks.cancel_scope.cancel()
    assert "laptop" not in told


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Some hundred cases made from the document, on a live gateway: no 500, and no reply that it denies."""
    pytest.importorskip("schemathesis", reason="Schemathesis is not installed; it is in the extra `test`")
    script = [sys.executable, str(BENCHMARKS / "fuzz_api.py"), "--cases=100", "--phases=coverage,fuzzing"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
