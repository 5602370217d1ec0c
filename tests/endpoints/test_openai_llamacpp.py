"""The `openai` dialect against a real server: llama.cpp's own OpenAI-compatible endpoint."""

from __future__ import annotations

import pytest

from discostream.cli.abilities import probe
from discostream.config import settings_from
from discostream.engine.supervisor import Engine
from discostream.ledger.outcomes import history
from discostream.library import connect

pytestmark = pytest.mark.anyio

KEY_VARIABLE = "DISCOSTREAM_TEST_SERVER_KEY"


async def served(engine: Engine, monkeypatch: pytest.MonkeyPatch, **endpoint: object) -> dict[str, object]:
    """Settings of the shared engine, spoken to as any OpenAI-compatible server."""
    address = await engine.address()
    monkeypatch.setenv(KEY_VARIABLE, address.api_key)
    return {
        "name": "cloud",
        "kind": "server",
        "dialect": "openai",
        "base_url": f"{address.base_url}/v1",
        "api_key_env": KEY_VARIABLE,
        "prompt_usd_per_mtok": 1.0,
        "completion_usd_per_mtok": 2.0,
        **endpoint,
    }


async def test_a_real_server_streams_and_counts(engine, monkeypatch, tmp_path):
    """Text, finish reason and the server's own token counts come through, and are what is charged."""
    settings = settings_from(
        {
            "endpoint": [await served(engine, monkeypatch)],
            "ledger": {"path": str(tmp_path / "ledger.db")},
        }
    )
    async with connect(settings) as disco:
        answer = disco.stream("Name three rivers.", max_tokens=12, temperature=0.0)
        text = "".join([piece.text async for piece in answer])
    outcome = answer.outcome
    assert text.strip()
    assert outcome
    assert (outcome.finish_reason, outcome.completion_tokens) == ("length", 12)
    assert outcome.prompt_tokens > 10
    assert outcome.usd == pytest.approx((outcome.prompt_tokens * 1.0 + 12 * 2.0) / 1e6)


async def test_a_real_server_continues_a_broken_answer(engine, monkeypatch, tmp_path):
    """By its preset it goes on from a broken stream: no echo, no new beginning, no lost space."""
    broken = {
        "name": "laptop",
        "kind": "device",
        "dialect": "scripted",
        "answer": "The three primary colours are red, yellow and",
        "breaks_after": 8,
        "vocabulary": "words",
    }
    settings = settings_from(
        {
            "endpoint": [broken, await served(engine, monkeypatch, preset="llama-server")],
            "policy": {"name": "offsets", "offsets": {"laptop": 0.0}},
            "ledger": {"path": str(tmp_path / "ledger.db")},
        }
    )
    async with connect(settings) as disco:
        answer = disco.stream("Which are the primary colours?", max_tokens=20, temperature=0.0)
        text = "".join([piece.text async for piece in answer])
    assert answer.outcome
    (migration,) = answer.outcome.migrations
    assert (migration.target, migration.reason, migration.by) == ("cloud", "rescue", "text")
    assert text[: migration.at_char] == "The three primary colours are red, yellow and"
    continuation = text[migration.at_char :]
    assert continuation.startswith(" ")
    assert "three primary" not in continuation[:20]


async def test_what_a_real_server_found_in_its_cache_is_recorded(engine, monkeypatch, tmp_path):
    """The second of two equal prompts is read from the cache, and its attempt's row says so."""
    settings = settings_from(
        {"endpoint": [await served(engine, monkeypatch)], "ledger": {"path": str(tmp_path / "ledger.db")}}
    )
    async with connect(settings) as disco:
        for _ in range(2):
            async with disco.stream("Which rivers flow through Vienna? " * 8, max_tokens=2) as answer:
                _ = [piece async for piece in answer]
    first, second = (outcome.attempts[0] for _, outcome in history(tmp_path / "ledger.db", 2))
    assert first.cached_tokens is not None
    assert first.cached_tokens < 0.6 * first.prompt_tokens
    assert second.cached_tokens is not None
    assert second.cached_tokens > 0.9 * second.prompt_tokens


async def test_what_a_real_server_can_do_is_found(engine, monkeypatch):
    """Asked by `disco doctor --probe`, it does all that was said of it, and goes on with an answer."""
    (settings,) = settings_from({"endpoint": [await served(engine, monkeypatch)]}).endpoint
    found = await probe(settings)
    assert found.error is None
    assert found.good, found.abilities
    assert [line for ability in found.abilities for line in ability.change] == [
        'continuation = "trailing_assistant"'
    ]
