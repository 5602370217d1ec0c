"""Presets of the `openai` dialect: what they stand for, and how stand-ins for their servers take it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
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
from discostream.types import (
    Carrier,
    Event,
    Finish,
    FinishReason,
    Kind,
    Message,
    Piece,
    Prefix,
    Request,
    Sampling,
)

COMMON = EndpointSettings.__struct_fields__


def build(preset: Any, **keys: Any) -> Endpoint:
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
    with pytest.raises(ConfigError, match="endpoint 'e': base_url: is missing"):
        build("azure")
    with pytest.raises(ConfigError, match=r"preset = \['vllm'\]: expected `str`"):
        build(["vllm"], base_url="http://127.0.0.1:9/v1")
    settings = EndpointSettings(name="e", kind=Kind.SERVER, dialect="ollama", options={"preset": "vllm"})
    with pytest.raises(ConfigError, match="unknown key `preset`"):
        build_endpoint(settings)


ON = {"continuation": "trailing_assistant"}
PINNED = {"extra_body": {"provider": {"only": ["deepseek"], "allow_fallbacks": False}}}
SERVED: list[tuple[str, Handler, str, dict[str, Any]]] = [
    ("deepseek", chat.deepseek, "/beta", {}),
    ("mistral", chat.mistral, "/v1", {}),
    ("vllm", chat.vllm, "/v1", {}),
    ("sglang", chat.vllm, "/v1", {}),
    ("groq", chat.open_turn, "/openai/v1", {}),
    ("ollama", chat.open_turn, "/v1", ON),
    ("lm-studio", chat.open_turn, "/v1", ON),
    ("together", chat.open_turn, "/v1", ON),
    ("fireworks", chat.open_turn, "/inference/v1", ON),
    ("openrouter", chat.openrouter, "/api/v1", ON | PINNED),
]
START_ONLY = [("openai", "/v1"), ("azure", "/openai/v1")]


@pytest.mark.anyio
@pytest.mark.parametrize(("preset", "handler", "path", "more"), SERVED)
async def test_each_service_starts_and_goes_on_by_its_preset(
    preset: str, handler: Handler, path: str, more: dict[str, Any]
) -> None:
    """What the preset says is what the service takes: a limit, counts, and a partial answer."""
    async with served(handler, preset, path, **more) as endpoint:
        started = await events(endpoint, "", 3)
        assert text_of(started) == "Twenty, twenty-one, twenty-two,"
        assert started[-1] == Finish(FinishReason.LENGTH, 24, 3)
        assert text_of(await events(endpoint, "Twenty, twenty-")) == ANSWER.removeprefix("Twenty, twenty-")


@pytest.mark.anyio
@pytest.mark.parametrize(("preset", "path"), START_ONLY)
async def test_services_that_only_start_are_no_targets(preset: str, path: str) -> None:
    """The preset asks for the limit as the service knows it, and offers nothing to a handoff."""
    async with served(chat.openai, preset, path) as endpoint:
        assert (await events(endpoint, "", 3))[-1] == Finish(FinishReason.LENGTH, 24, 3)
        assert endpoint.continues == frozenset()


@pytest.mark.parametrize("preset", [preset for preset, _, _, more in SERVED if more])
def test_what_depends_on_the_model_is_not_presumed(preset: str) -> None:
    """Where some models go on and others begin anew, none is a handoff's target until the settings say so."""
    assert build(preset).continues == frozenset()
    assert build(preset, **ON).continues == {Carrier.TEXT}


@pytest.mark.anyio
@pytest.mark.parametrize(("preset", "field"), [("mistral", "random_seed"), ("groq", "seed")])
async def test_a_seed_has_the_services_name(preset: str, field: str) -> None:
    """Mistral, which refuses fields that it does not know, is told a `random_seed`; others a `seed`."""
    async with serving(chat.mistral if preset == "mistral" else chat.open_turn) as service:
        endpoint = build(preset, base_url=f"{service.root}/v1")
        await events(endpoint, "", 3, sampling=Sampling(seed=7))
        await endpoint.aclose()
    asked = service.asked[0].body
    assert {name: asked[name] for name in asked if "seed" in name} == {field: 7}


@pytest.mark.anyio
async def test_a_pinned_provider_cannot_undo_the_stream() -> None:
    """`extra_body` goes with every request, but for what makes the answer readable."""
    body = PINNED["extra_body"] | {"stream": False, "messages": []}
    async with serving(chat.openrouter) as service:
        endpoint = build("openrouter", base_url=f"{service.root}/v1", extra_body=body)
        await events(endpoint, "", 3)
        await endpoint.aclose()
    asked = service.asked[0].body
    assert asked["provider"] == PINNED["extra_body"]["provider"]
    assert (asked["stream"], len(asked["messages"])) == (True, 1)


@asynccontextmanager
async def served(handler: Handler, preset: str, path: str, **keys: Any) -> AsyncIterator[Endpoint]:
    """An endpoint by its preset, before the stand-in of its server."""
    async with serving(handler) as service:
        endpoint = build(preset, base_url=service.root + path, **keys)
        try:
            yield endpoint
        finally:
            await endpoint.aclose()


async def events(endpoint: Endpoint, told: str, most: int | None = None, **more: Any) -> list[Event]:
    request = Request(
        messages=(Message("user", "Count to forty."),),
        arrived_at=0.0,
        request_id="r",
        max_tokens=most,
        **more,
    )
    async with aclosing(endpoint.generate(request, Prefix(told))) as stream:
        return [event async for event in stream]


def text_of(said: list[Event]) -> str:
    return "".join(event.text for event in said if isinstance(event, Piece))
