"""`disco doctor --probe`: what is found out of endpoints by asking them."""

from __future__ import annotations

import json
import socket
from itertools import repeat
from typing import Any

import pytest
from processes import disco, write_scripted_pair
from standins import anthropic, chat, gemini, ollama
from standins.serving import Asked, Handler, Reply, Service, event, refusal, serving

from discostream.cli.abilities import BEGUN, OTHER_HALF, Probed, probe, what_probes_take
from discostream.config import EndpointSettings
from discostream.types import Kind

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-right")
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-right")


def described(dialect: str, model: str = "m", **options: Any) -> EndpointSettings:
    return EndpointSettings(
        name="cloud",
        kind=Kind.SERVER,
        dialect=dialect,
        model=model,
        prompt_usd_per_mtok=1.0,
        completion_usd_per_mtok=1.0,
        options=options,
    )


async def probed(handler: Handler, path: str, dialect: str, **options: Any) -> tuple[Probed, Service]:
    async with serving(handler) as service:
        return await probe(described(dialect, base_url=service.root + path, **options)), service


def changes(found: Probed) -> list[str]:
    return [line for ability in found.abilities for line in ability.change]


def told(found: Probed) -> dict[str, str]:
    return {ability.name: ability.found for ability in found.abilities}


RIGHT = [
    (chat.mistral, "/v1", "openai", {"preset": "mistral", "api_key_env": ""}),
    (chat.deepseek, "/beta", "openai", {"preset": "deepseek", "api_key_env": ""}),
    (chat.vllm, "/v1", "openai", {"preset": "vllm"}),
    (anthropic.handle, "/v1", "anthropic", {"model": "claude-sonnet-4-5"}),
    (gemini.handle, "/v1beta", "gemini", {"model": "gemini-2.5-pro"}),
    (ollama.handle, "", "ollama", {"model": "open", "continuation": "trailing_assistant"}),
]


@pytest.mark.parametrize(("handler", "path", "dialect", "options"), RIGHT)
async def test_settings_that_are_right_are_left_alone(
    handler: Handler, path: str, dialect: str, options: dict[str, Any]
) -> None:
    """Two requests find that an endpoint does all that the settings say of it."""
    found, service = await probed(handler, path, dialect, **options)
    assert (found.error, found.good, changes(found), found.requests) == (None, True, [], 2)
    assert len(service.asked) == 2
    assert "went on" in told(found)["goes on with an answer"]
    assert told(found)["counts tokens"] == "24 prompt, 32 answer" if dialect == "openai" else True


NONE = {"continuation": "none"}
WRONG = [
    (chat.vllm, "openai", {"preset": "vllm", **NONE}, True, ['continuation = "continue_final_message"']),
    (
        chat.vllm,
        "openai",
        {"continuation": "trailing_assistant"},
        False,
        ['continuation = "continue_final_message"'],
    ),
    (
        chat.mistral,
        "openai",
        {"continuation": "prefix", "include_usage": False},
        True,
        ["repeats_prefix = true"],
    ),
    (
        chat.mistral,
        "openai",
        {"max_tokens_field": "max_completion_tokens"},
        False,
        [
            'max_tokens_field = "max_tokens"',
            "include_usage = false",
            'continuation = "prefix"',
            "repeats_prefix = true",
        ],
    ),
    (chat.openai, "openai", {}, False, ['max_tokens_field = "max_completion_tokens"']),
    (chat.openai, "openai", {"preset": "openai", "api_key_env": "", "continuation": "prefix"}, False, [*"n"]),
    (
        anthropic.handle,
        "anthropic",
        {"model": "claude-opus-4-6", "continuation": "trailing_assistant"},
        False,
        [*"n"],
    ),
    (anthropic.handle, "anthropic", {"model": "claude-opus-4-6"}, True, []),
    (ollama.handle, "ollama", {"model": "open"}, True, ['continuation = "trailing_assistant"']),
    (ollama.handle, "ollama", {"model": "closed", "continuation": "trailing_assistant"}, False, [*"n"]),
]


@pytest.mark.parametrize(("handler", "dialect", "options", "good", "lines"), WRONG)
async def test_what_the_settings_should_say_is_told(
    handler: Handler, dialect: str, options: dict[str, Any], good: bool, lines: list[str]
) -> None:
    """Where an endpoint does more or less than the settings say, the lines that say it right are told."""
    found, _ = await probed(handler, "" if dialect == "ollama" else "/v1", dialect, **options)
    assert found.error is None
    assert changes(found) == (['continuation = "none"'] if lines == ["n"] else lines)
    assert found.good is good


async def test_a_new_beginning_is_no_continuation() -> None:
    """A model that takes the partial answer for history is seen through, and why it was refused is told."""
    found, _ = await probed(ollama.handle, "", "ollama", model="closed", continuation="trailing_assistant")
    assert (
        told(found)["goes on with an answer"]
        == "trailing_assistant: said something else: 'Twenty, twenty-one, '"
    )
    options = {"model": "claude-opus-4-6", "continuation": "trailing_assistant"}
    found, _ = await probed(anthropic.handle, "/v1", "anthropic", **options)
    assert "does not support assistant message prefill" in told(found)["goes on with an answer"]


async def test_an_answer_without_end_is_no_limit() -> None:
    """Whoever does not know the limit is not listened to for ever."""

    def endless(asked: Asked) -> Reply:
        said = {"choices": [{"index": 0, "delta": {"content": " and"}, "finish_reason": None}]}
        return "text/event-stream", repeat(event(said))

    found, _ = await probed(endless, "/v1", "openai", preset="vllm")
    assert not found.good
    assert told(found)["keeps to max_tokens"] == "no; more was said than was asked for"


async def test_an_endpoint_that_has_no_time_is_not_judged() -> None:
    """A failure that is no refusal says nothing of what the endpoint can do, so that no line is to change."""

    def busy(asked: Asked) -> Reply:
        going_on = asked.body["messages"][-1]["role"] == "assistant"
        return refusal(429, {"error": {"message": "slow down"}}) if going_on else chat.vllm(asked)

    found, _ = await probed(busy, "/v1", "openai", preset="vllm")
    assert (found.good, changes(found)) == (False, [])
    assert "continue_final_message: failed: answered with HTTP 429" in told(found)["goes on with an answer"]


async def test_an_endpoint_that_is_not_there_is_told() -> None:
    """What cannot be asked has an error in place of abilities, and is no end of the examination."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = await probe(described("openai", base_url=f"http://127.0.0.1:{port}/v1"))
    assert (found.good, found.abilities) == (False, [])
    assert "cannot connect" in str(found.error)
    assert "unknown dialect" in str((await probe(described("nothing"))).error)


async def test_what_probes_may_cost_is_told() -> None:
    """The most requests there can be, at the endpoint's prices."""
    told = await what_probes_take(described("openai", base_url="http://127.0.0.1:9/v1"))
    assert told.startswith("cloud: up to 7 answers of 32 tokens, $0.00")
    assert "up to 2 answers" in await what_probes_take(described("ollama"))


def test_the_doctor_probes_when_told_to(tmp_path):
    """`--probe` adds what it found to the report, and says on stderr what that may take."""
    pair = write_scripted_pair(tmp_path, f"{BEGUN}{OTHER_HALF}, twenty-four.")
    done = disco("doctor", "--probe", "--json", "--config", str(pair), DISCO_GATEWAY__PORT="0")
    assert "Probing laptop: up to 2 answers of 32 tokens" in done.stderr
    report = json.loads(done.stdout)
    assert [each["endpoint"] for each in report["probes"]] == ["laptop", "cloud"]
    assert report["good"], done.stdout


async def test_what_cannot_be_tried_is_not_held_against_it() -> None:
    """A dialect that takes no partial answers, and has no key for them, is as the settings say."""
    found = await probe(described("scripted", continues=[], answer="Twenty, twenty-one, twenty-two."))
    assert (found.good, found.requests) == (True, 1)
    assert told(found)["goes on with an answer"] == "its dialect takes no partial answers"
