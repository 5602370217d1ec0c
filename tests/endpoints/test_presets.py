"""Presets of the `openai` dialect: what they stand for, and how stand-ins for their servers take it."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest
from standins import chat
from standins.serving import ANSWER, Handler, serving

from discostream.config import EndpointSettings, convert_options
from discostream.endpoints.base import Endpoint
from discostream.endpoints.openai import OpenAIEndpoint
from discostream.endpoints.presets import PRESETS
from discostream.endpoints.registry import build_endpoint
from discostream.errors import ConfigError
from discostream.types import Carrier, Event, Finish, FinishReason, Kind, Message, Piece, Prefix, Request

COMMON = EndpointSettings.__struct_fields__


def build(preset: str, **keys: Any) -> Endpoint:
    common = {key: keys.pop(key) for key in list(keys) if key in COMMON}
    prices = {"prompt_usd_per_mtok": 0.0, "completion_usd_per_mtok": 0.0}
    return build_endpoint(
        EndpointSettings(
            name="e",
            kind=Kind.SERVER,
            dialect="openai",
            model="m",
            **prices | common,
            options={"preset": preset, **keys},
        )
    )


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for preset in PRESETS.values():
        if "api_key_env" in preset:
            monkeypatch.setenv(preset["api_key_env"], "sk-right")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_the_settings_could_say(preset: str) -> None:
    """Each holds keys of `[[endpoint]]` with values that pass, and makes an endpoint as those keys would."""
    own = {key: value for key, value in PRESETS[preset].items() if key not in COMMON}
    own = {"base_url": "http://127.0.0.1:9/v1"} | own
    endpoint = build(preset, **own if preset == "azure" else {})
    settings = EndpointSettings(name="e", kind=Kind.SERVER, dialect="openai", model="m", options=own)
    plain = OpenAIEndpoint(settings, convert_options(settings, OpenAIEndpoint.Options))
    assert endpoint.continues == plain.continues
    assert endpoint.identity == plain.identity
    assert endpoint.cancel_stops_billing is PRESETS[preset].get("cancel_stops_billing", True)


def test_the_settings_go_before_a_preset() -> None:
    """Every key can be said otherwise, the common ones included."""
    told = build("mistral", continuation="none", api_key_env="", cancel_stops_billing=True)
    assert (told.continues, told.cancel_stops_billing) == (frozenset(), True)
    assert build("mistral").continues == {Carrier.TEXT}


def test_mistakes_with_presets_are_told() -> None:
    """An unknown preset is refused with the nearest known one, one that needs an address with its field."""
    with pytest.raises(ConfigError, match="endpoint 'e': preset = 'vlm': did you mean 'vllm'"):
        build("vlm")
    with pytest.raises(ConfigError, match="missing required field `base_url`"):
        build("azure")
    settings = EndpointSettings(name="e", kind=Kind.SERVER, dialect="ollama", options={"preset": "vllm"})
    with pytest.raises(ConfigError, match="unknown key `preset`"):
        build_endpoint(settings)


SERVED: list[tuple[str, Handler, str, bool]] = [
    ("deepseek", chat.deepseek, "/beta", True),
    ("mistral", chat.mistral, "/v1", True),
    ("vllm", chat.vllm, "/v1", True),
    ("sglang", chat.vllm, "/v1", True),
    ("groq", chat.groq, "/openai/v1", True),
    ("openai", chat.openai, "/v1", False),
    ("azure", chat.openai, "/openai/v1", False),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("preset", "handler", "path", "continues"), SERVED)
async def test_each_service_starts_and_goes_on_by_its_preset(
    preset: str, handler: Handler, path: str, continues: bool
) -> None:
    """What the preset says is what the service takes: a limit, counts, a partial answer if any."""
    async with serving(handler) as service:
        endpoint = build(preset, base_url=service.root + path)
        try:
            started = await events(endpoint, "", 3)
            assert text_of(started) == "Twenty, twenty-one, twenty-two,"
            assert started[-1] == Finish(FinishReason.LENGTH, 24, 3)
            assert bool(endpoint.continues) is continues
            if continues:
                assert text_of(await events(endpoint, "Twenty, twenty-")) == ANSWER.removeprefix(
                    "Twenty, twenty-"
                )
        finally:
            await endpoint.aclose()


@pytest.mark.anyio
async def test_a_provider_can_be_pinned() -> None:
    """`extra_body` goes with every request, and cannot undo what makes the stream readable."""
    pinned = {"provider": {"only": ["deepseek"], "allow_fallbacks": False}, "stream": False}
    async with serving(chat.vllm) as service:
        endpoint = build("openrouter", base_url=f"{service.root}/v1", extra_body=pinned)
        await events(endpoint, "", 3)
        await endpoint.aclose()
    assert service.asked[0].body["provider"] == pinned["provider"]
    assert service.asked[0].body["stream"] is True


async def events(endpoint: Endpoint, told: str, most: int | None = None) -> list[Event]:
    request = Request(
        messages=(Message("user", "Count to forty."),), arrived_at=0.0, request_id="r", max_tokens=most
    )
    async with aclosing(endpoint.generate(request, Prefix(told))) as stream:
        return [event async for event in stream]


def text_of(said: list[Event]) -> str:
    return "".join(event.text for event in said if isinstance(event, Piece))
