"""The published OpenAPI document: complete, open, and kept to whatever clients send."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
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


def settings(folder: Path, script: Mapping[str, Any] = {}, **gateway: Any) -> Settings:
    laptop = {"name": "laptop", "kind": "device", "dialect": "scripted", **script}
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


def test_the_document_knows_every_field_of_a_request_and_of_its_account() -> None:
    """What the decoder knows by name is described, and so is everything in the `disco` object."""
    own = openai_schema._OPENAIS_OWN
    chat, completion = (set(SCHEMAS[name]["properties"]) for name in ("ChatRequest", "CompletionRequest"))
    assert chat >= {*openai_schema._ChatBody.__struct_fields__, *openai_schema._NEEDS, *own, "n"}
    assert completion >= {*openai_schema._CompletionBody.__struct_fields__, *openai_schema._REFUSED, *own}
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


ASKS: list[tuple[str, str, dict[str, Any]]] = [
    ("chat/completions", "ChatCompletion", {"messages": [{"role": "user", "content": "Hello."}]}),
    ("chat/completions", "ChatCompletion", {"messages": [{"role": "user", "content": "?"}], "tools": [{}]}),
    ("completions", "Completion", {"prompt": ["Once"], "max_tokens": 2}),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "kind", "body"), ASKS)
async def test_answers_and_their_chunks_are_as_the_document_says(
    path: str, kind: str, body: dict[str, Any], tmp_path: Path
) -> None:
    """Thoughts, calls, log-probabilities, counts and the account are where it has them, streamed or not."""
    schemas = pytest.importorskip("jsonschema_rs", reason="comes with Schemathesis, in the extra `test`")
    whole, chunk = (
        schemas.validator_for({**SCHEMAS[name], "components": {"schemas": SCHEMAS}})
        for name in (kind, f"{kind}Chunk")
    )
    asked = body | {"logprobs": True, "stream_options": {"include_usage": True}}
    script = {"reasoning": "Hm.", "tool_calls": [{"name": "weather"}]}
    async with anyio.create_task_group() as tasks, aiohttp.ClientSession() as session:
        url = f"{await tasks.start(serve, settings(tmp_path, script))}/{path}"
        async with session.post(url, json=asked) as response:
            whole.validate(await response.json())
        async with session.post(url, json=asked | {"stream": True}) as response:
            said = re.findall(r"data: (\{.*)", await response.text())
        tasks.cancel_scope.cancel()
    assert len(said) >= 4
    for one in said:
        chunk.validate(json.loads(one))


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Some hundred cases made from the document, on a live gateway: no 500, and no reply that it denies."""
    pytest.importorskip("schemathesis", reason="Schemathesis is not installed; it is in the extra `test`")
    script = [sys.executable, str(BENCHMARKS / "fuzz_api.py"), "--cases=100", "--phases=coverage,fuzzing"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
