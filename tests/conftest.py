"""What tests of every layer share: the async backend, the embedded model and engine, and a browser."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import CHROMIUM

from discostream.config import EndpointSettings, convert_options
from discostream.endpoints.llamacpp import LlamaCppEndpoint
from discostream.engine.catalogue import resolve_model
from discostream.engine.supervisor import Engine, EngineSettings
from discostream.types import Kind

# Whoever starts the tests in the background may have them ignore Ctrl-C, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)

MODEL = "smollm2-135m-instruct"
KEY_VARIABLE = "DISCOSTREAM_TEST_ENGINE_KEY"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The embedded model's file, fetched the way users fetch it."""
    return resolve_model(MODEL)


@pytest.fixture(scope="session")
def engine(smollm2_path: Path) -> Iterator[Engine]:
    """One running engine for all tests that do not harm it."""
    engine = Engine(EngineSettings(model=smollm2_path, threads=1, context_tokens=1024, batch_tokens=64))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
async def engine_endpoint(
    engine: Engine, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LlamaCppEndpoint]:
    """A prepared endpoint on the shared engine.

    It lives for one test, as async fixtures that live longer keep anyio's pytest plugin on one backend.
    """
    address = await engine.address()
    monkeypatch.setenv(KEY_VARIABLE, address.api_key)
    endpoint = _llamacpp(base_url=address.base_url, api_key_env=KEY_VARIABLE)
    await endpoint.prepare()
    yield endpoint
    await endpoint.aclose()


@pytest.fixture
def llamacpp() -> Callable[..., LlamaCppEndpoint]:
    """Builds a llama.cpp endpoint from the keys of its settings."""
    return _llamacpp


def _llamacpp(model: str = MODEL, **options: object) -> LlamaCppEndpoint:
    settings = EndpointSettings(
        name="laptop", kind=Kind.DEVICE, dialect="llamacpp", model=model, options=options
    )
    return LlamaCppEndpoint(settings, convert_options(settings, LlamaCppEndpoint.Options))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; it lives for one module, as Playwright keeps an event loop running beside it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
