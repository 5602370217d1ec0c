"""What the real engine does beyond text: schemas, log-probabilities, tools, raw prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from discostream.endpoints.llamacpp import LlamaCppEndpoint
from discostream.errors import EndpointError, Phase
from discostream.types import Event, Feature, Finish, FinishReason, Piece, Prefix, Prompt, Request
from discostream.wire.openai_schema import decode_chat_request, decode_completion_request

pytestmark = pytest.mark.anyio

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "of a city", "parameters": CITY}
TOOLS = [{"type": "function", "function": WEATHER}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'

TEMPLATE = """
{%- if tools %}{{- '<|im_start|>system\n<tools>' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\n</tools>\nCall one: <tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{- '<|im_start|>assistant' }}
{%- if message.content %}{{- '\n' + message.content }}{%- endif %}
{%- for call in message.tool_calls %}{%- if call.function %}{%- set call = call.function %}{%- endif %}
{{- '\n<tool_call>\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}{{- call.arguments | tojson }}
{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
"""Tools as many models have them. SmolLM2's own template has none."""


def chat(text: str, **fields: Any) -> Request:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    return decode_chat_request(json.dumps(body).encode(), arrived_at=0.0, request_id="r").request


def raw(prompt: str, **fields: Any) -> Request:
    body = json.dumps({"prompt": prompt, "temperature": 0, **fields}).encode()
    return decode_completion_request(body, arrived_at=0.0, request_id="r").request


async def collect(endpoint: LlamaCppEndpoint, request: Request, prefix: Prefix | None = None) -> list[Event]:
    async with aclosing(endpoint.generate(request, prefix or Prefix())) as events:
        return [event async for event in events]


def pieces_of(events: list[Event]) -> list[Piece]:
    return [event for event in events if isinstance(event, Piece)]


def text_of(events: list[Event]) -> str:
    return "".join(piece.text for piece in pieces_of(events))


@pytest.fixture
def model_with_tools(smollm2_path: Path, tmp_path: Path) -> str:
    """The embedded model with a template that has tools."""
    path, program = tmp_path / "tools.gguf", "gguf.scripts.gguf_new_metadata"
    subprocess.run(
        [sys.executable, "-m", program, "--chat-template", TEMPLATE.strip(), str(smollm2_path), str(path)],
        check=True,
        capture_output=True,
    )
    return str(path)


@pytest.fixture
async def with_tools(
    model_with_tools: str, anyio_backend: str, llamacpp: Callable[..., LlamaCppEndpoint]
) -> AsyncIterator[LlamaCppEndpoint]:
    """An engine of its own on that model."""
    endpoint = llamacpp(model=model_with_tools, context_tokens=512)
    await endpoint.prepare()
    yield endpoint
    await endpoint.aclose()


async def test_a_schema_is_kept(engine_endpoint: LlamaCppEndpoint) -> None:
    """Whatever a small model would rather say, the answer is the JSON that was asked for, and counted."""
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    events = await collect(engine_endpoint, chat("Who are you?", response_format=schema, max_tokens=60))
    person = json.loads(text_of(events))
    assert (set(person), type(person["age"])) == ({"name", "age"}, int)
    assert isinstance(events[-1], Finish)
    assert events[-1].reason is FinishReason.STOP
    assert events[-1].prompt_tokens


async def test_log_probabilities_come_with_every_token(engine_endpoint: LlamaCppEndpoint) -> None:
    """Each token of the text has its own, and as many alternatives as were asked for."""
    events = await collect(engine_endpoint, chat("Hi", logprobs=True, top_logprobs=2, max_tokens=3))
    told = [
        piece.extra.logprobs["content"] for piece in pieces_of(events) if piece.extra and piece.extra.logprobs
    ]
    tokens = [token for content in told for token in content]
    assert "".join(token["token"] for token in tokens) == text_of(events)
    assert [len(token["top_logprobs"]) for token in tokens] == [2, 2, 2]
    assert all(token["logprob"] <= 0 for token in tokens)


async def test_tools_are_refused_by_a_model_that_has_none(engine_endpoint: LlamaCppEndpoint) -> None:
    """Where the template would leave the tools out in silence, nothing is generated."""
    assert engine_endpoint.features == {Feature.JSON, Feature.LOGPROBS, Feature.COMPLETIONS}
    with pytest.raises(EndpointError, match="not able to do what is asked: tools") as caught:
        await collect(engine_endpoint, chat("Is it raining?", tools=TOOLS))
    assert (caught.value.phase, caught.value.status) == (Phase.REFUSED, 400)


async def test_a_tool_is_called(with_tools: LlamaCppEndpoint) -> None:
    """A call comes as its parts: who is called, once, then what with; and the model reads the result."""
    assert Feature.TOOLS in with_tools.features
    # So small a model would rather chat: it is inclined to begin a call, which then keeps to the tools.
    beginning = await (await with_tools._server()).tokenize("<tool_call>")
    inclined = {str(token): 4 for token in beginning}
    request = chat(f"Repeat this:\n{CALL}", tools=TOOLS, max_tokens=40, logit_bias=inclined)
    events = await collect(with_tools, request)
    calls = [piece.extra.delta["tool_calls"][0] for piece in pieces_of(events) if piece.extra]
    assert [call["function"].get("name") for call in calls if "id" in call] == ["weather"]
    assert json.loads("".join(call["function"].get("arguments", "") for call in calls)) == {"city": "Paris"}
    assert {call["index"] for call in calls} == {0}
    assert isinstance(events[-1], Finish)
    assert events[-1].reason is FinishReason.TOOL_CALLS
    said = {"role": "assistant", "content": None, "tool_calls": [{**calls[0], "function": CALLED}]}
    result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "dry"}
    asked = {"role": "user", "content": "Is it raining?"}
    answered = await collect(with_tools, chat("", messages=[asked, said, result], tools=TOOLS, max_tokens=4))
    assert isinstance(answered[-1], Finish)


CALLED = {"name": "weather", "arguments": '{"city": "Paris"}'}


async def test_a_raw_prompt_goes_on_token_by_token(engine_endpoint: LlamaCppEndpoint) -> None:
    """No template stands around it, and another's answer goes on from the very IDs."""
    request, server = raw("1, 2, 3, 4,", max_tokens=4), await engine_endpoint._server()
    counted, *_ = events = await collect(engine_endpoint, request)
    assert text_of(events) == " 5, "
    assert counted == Prompt(len(await server.tokenize("1, 2, 3, 4,", add_special=True)))
    ids = tuple(token for piece in pieces_of(events)[:2] for token in piece.token_ids or ())
    rest = await collect(engine_endpoint, request, Prefix(" 5", ids))
    assert (rest[0], text_of(rest)) == (Prompt(counted.tokens + len(ids)), ", 6,")


async def test_a_raw_prompt_that_opens_a_thought_is_continued_in_it(
    engine_endpoint: LlamaCppEndpoint,
) -> None:
    """No thought is closed in a prompt that stands as the client wrote it."""
    await engine_endpoint.prepare()
    server = await engine_endpoint._server()
    counted, *_ = await collect(engine_endpoint, raw("Why? <think>\n", max_tokens=1), Prefix("It is"))
    prompt = await server.tokenize("Why? <think>\n", add_special=True, parse_special=True)
    assert counted == Prompt(len(prompt) + len(await server.inner_ids("It is")))


async def test_a_raw_prompt_may_be_bound_by_a_grammar(engine_endpoint: LlamaCppEndpoint) -> None:
    """What its own protocol has other words for goes by OpenAI's, raw prompts too."""
    events = await collect(engine_endpoint, raw("abc", grammar='root ::= "x"+', max_tokens=3))
    assert set(text_of(events)) == {"x"}
    events = await collect(engine_endpoint, raw("1, 2, 3, 4,", logprobs=1, max_tokens=2))
    assert all(piece.extra and piece.extra.logprobs for piece in pieces_of(events))


async def test_sampling_fields_reach_the_exact_protocol(engine_endpoint: LlamaCppEndpoint) -> None:
    """A token that the client forbids does not come; the answer has its IDs all the same."""
    free = pieces_of(await collect(engine_endpoint, chat("Hi", max_tokens=1)))[0]
    assert free.token_ids
    forbidden = {"logit_bias": {str(free.token_ids[0]): -100}, "top_k": 40}
    bound = pieces_of(await collect(engine_endpoint, chat("Hi", max_tokens=1, **forbidden)))[0]
    assert bound.token_ids not in (None, free.token_ids)
