"""What a client asks for beyond text, through the gateway and back, read by the official client."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest
from aiohttp import web
from pydantic import BaseModel

from discostream.config import settings_from
from discostream.gateway import failures
from discostream.gateway.app import serve
from discostream.wire.sse import DONE, data_event

pytestmark = pytest.mark.anyio

ASKED: Any = [{"role": "user", "content": "Is it raining?"}]
PICTURE: Any = {"type": "image_url", "image_url": {"url": "data:,"}}
WEATHER = {"name": "weather", "arguments": {"city": "Paris"}}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


@asynccontextmanager
async def gateway(
    folder: Path, *others: dict[str, Any], late: str = "laptop", **script: Any
) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a gateway with one scripted device, and perhaps others; `late` starts when they fail."""
    laptop = {"name": "laptop", "kind": "device", "dialect": "scripted", "answer": "No, it is dry.", **script}
    endpoints = [*others, laptop]
    offsets = {each["name"]: 5.0 if others and each["name"] == late else 0.0 for each in endpoints}
    settings = settings_from(
        {
            "endpoint": endpoints,
            "policy": {"name": "offsets", "offsets": offsets},
            "gateway": {"port": 0},
            "ledger": {"path": str(folder / "ledger.db")},
        }
    )
    async with anyio.create_task_group() as tasks:
        base_url = await tasks.start(serve, settings)
        async with openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
            yield client
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def upstream(script: Script, path: str = "/v1/chat/completions") -> AsyncIterator[dict[str, Any]]:
    """The settings of an OpenAI-compatible server that does what its script says: a stand-in."""
    app = web.Application()
    app.router.add_post(path, script)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener).start()
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        yield {"name": "cloud", "kind": "server", "dialect": "openai", "model": "m", "base_url": base_url}
        await runner.cleanup()


def says(*choices: dict[str, Any], asked: list[Any] | None = None) -> Script:
    async def script(http: web.Request) -> web.StreamResponse:
        if asked is not None:
            asked.append(await http.json())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        for choice in choices:
            await response.write(data_event(json.dumps({"choices": [choice]}).encode()))
        await response.write(DONE)
        return response

    return script


async def test_tools_make_their_round(tmp_path: Path) -> None:
    """The client's own accumulator puts a call together; its result, sent back, brings the answer."""
    async with gateway(tmp_path, tool_calls=[WEATHER]) as client:
        async with client.chat.completions.stream(model="disco", messages=ASKED, tools=TOOLS) as stream:
            (choice,) = (await stream.get_final_completion()).choices
        whole = await client.chat.completions.create(model="disco", messages=ASKED, tools=TOOLS)
        for said in (choice, whole.choices[0]):
            (call,) = said.message.tool_calls or ()
            assert call.type == "function"
            assert (said.finish_reason, call.id, call.function.name) == ("tool_calls", "call_0", "weather")
            assert json.loads(call.function.arguments) == {"city": "Paris"}
        result: Any = {"role": "tool", "tool_call_id": "call_0", "content": "dry"}
        messages = [*ASKED, whole.choices[0].message, result]
        told = await client.chat.completions.create(model="disco", messages=messages, tools=TOOLS)
    assert (told.choices[0].message.content, told.choices[0].finish_reason) == ("No, it is dry.", "stop")


async def test_calls_without_an_index_make_their_round(tmp_path: Path) -> None:
    """Two calls as Gemini's OpenAI route streams them are two to the client's own accumulator."""
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in "fg"]
    deltas = [{"delta": {"tool_calls": [call]}} for call in calls]
    async with (
        upstream(says(*deltas, {"delta": {}, "finish_reason": "tool_calls"})) as cloud,
        gateway(tmp_path, cloud) as client,
        client.chat.completions.stream(model="cloud", messages=ASKED, tools=TOOLS) as stream,
    ):
        (choice,) = (await stream.get_final_completion()).choices
    assert [call.function.name for call in choice.message.tool_calls or ()] == ["f", "g"]


class Rain(BaseModel):
    """An answer with a schema."""

    rains: bool


async def test_a_refusal_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    """Where an answer has a schema, the client's own parser finds the refusal, streamed and whole."""
    said: list[Any] = [{"delta": {"refusal": half}} for half in ("I can", "not")]
    asked: Any = {"model": "cloud", "messages": ASKED, "response_format": Rain}
    async with (
        upstream(says(*said, {"delta": {}, "finish_reason": "stop"})) as cloud,
        gateway(tmp_path, cloud) as client,
    ):
        async with client.chat.completions.stream(**asked) as stream:
            streamed = await stream.get_final_completion()
        whole = await client.chat.completions.parse(**asked)
    for choice in (*streamed.choices, *whole.choices):
        assert (choice.message.refusal, choice.message.parsed) == ("I cannot", None)


async def test_reasoning_comes_under_one_name(tmp_path: Path) -> None:
    """Streamed and whole, it is `reasoning_content`, and the text is without it."""
    async with gateway(tmp_path, reasoning="Let me look.") as client:
        stream = await client.chat.completions.create(model="disco", messages=ASKED, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in stream]
        whole = await client.chat.completions.create(model="disco", messages=ASKED)
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "Let me look."
    assert "".join(delta.content or "" for delta in deltas) == "No, it is dry."
    message = whole.choices[0].message
    assert (message.reasoning_content, message.content) == ("Let me look.", "No, it is dry.")  # type: ignore[attr-defined]


async def test_log_probabilities_come_whole(tmp_path: Path) -> None:
    """Those of all tokens are in the answer that is not streamed."""
    async with gateway(tmp_path) as client:
        whole = await client.chat.completions.create(model="disco", messages=ASKED, logprobs=True)
    assert whole.choices[0].logprobs is not None
    assert "".join(token.token for token in whole.choices[0].logprobs.content or ()) == "No, it is dry."


async def test_an_endpoint_gets_what_the_client_wrote(tmp_path: Path) -> None:
    """Fields and messages arrive as they were, beside what is mapped; `user` and `store` stay here."""
    asked: list[Any] = []
    messages: Any = [{"role": "user", "name": "Ann", "content": "Hi"}]
    delta = {"index": 0, "delta": {"reasoning": "hm", "content": "Hi"}, "finish_reason": "stop"}
    async with upstream(says(delta, asked=asked)) as cloud, gateway(tmp_path, cloud) as client:
        await client.chat.completions.create(
            model="disco",
            messages=messages,
            max_completion_tokens=7,
            user="u",
            store=True,
            reasoning_effort="low",
            extra_body={"top_k": 3, "provider": {"order": ["x"]}, "model": "disco"},
        )
    assert asked == [
        {
            "model": "m",
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 7,
            "reasoning_effort": "low",
            "top_k": 3,
            "provider": {"order": ["x"]},
        }
    ]


async def test_a_refusal_at_run_time_is_the_others_turn(tmp_path: Path) -> None:
    """An endpoint that takes no tools after all answers 400; the next one starts at once, with the tools."""

    async def refuse(http: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no tools here"}}, status=400)

    async with upstream(refuse) as cloud, gateway(tmp_path, cloud, tool_calls=[WEATHER]) as client:
        with anyio.fail_after(3):
            whole = await client.chat.completions.create(model="disco", messages=ASKED, tools=TOOLS)
        assert whole.choices[0].finish_reason == "tool_calls"
        with pytest.raises(openai.BadRequestError, match="no tools here") as caught:
            await client.chat.completions.create(model="cloud", messages=ASKED, tools=TOOLS)
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [True, False])
async def test_too_many_requests_are_told_as_such(tmp_path: Path, stream: bool) -> None:
    """The client waits as long as the endpoint said, and tries again by itself, as it would without us."""
    asked: list[Any] = []
    answer = says({"delta": {"content": "No."}, "finish_reason": "stop"}, asked=asked)

    async def script(http: web.Request) -> web.StreamResponse:
        if len(asked) < 2:
            asked.append(None)
            headers = {"Retry-After": "3" if len(asked) == 2 else "0"}
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers=headers)
        return await answer(http)

    async with upstream(script) as cloud, gateway(tmp_path, cloud, late="cloud") as client:
        patient = client.with_options(max_retries=1)
        with pytest.raises(openai.RateLimitError, match="cloud: answered with HTTP 429: slow down") as caught:
            await patient.chat.completions.create(model="cloud", messages=ASKED, stream=stream)
        assert (caught.value.code, caught.value.response.headers["retry-after"]) == (
            "rate_limit_exceeded",
            "3",
        )
        await client.chat.completions.create(model="cloud", messages=ASKED, stream=stream)
    assert len(asked) == 3


async def test_what_nobody_declares_is_a_clear_400(tmp_path: Path) -> None:
    """Pictures are refused by name, with the setting that would admit them."""
    messages: Any = [{"role": "user", "content": [PICTURE]}]
    async with gateway(tmp_path) as client:
        with pytest.raises(openai.BadRequestError, match='add "images" to `features`') as caught:
            await client.chat.completions.create(model="disco", messages=messages)
    assert (caught.value.param, caught.value.code) == ("messages", "unsupported_parameter")


async def test_pictures_go_to_whoever_declares_them(tmp_path: Path) -> None:
    """The parts of the message arrive as they were sent."""
    asked: list[Any] = []
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "See?"}, PICTURE]}]
    script = says({"delta": {"content": "Yes"}, "finish_reason": "stop"}, asked=asked)
    async with upstream(script) as cloud, gateway(tmp_path, cloud | {"features": ["images"]}) as client:
        await client.chat.completions.create(model="disco", messages=messages)
    assert asked[0]["messages"] == messages


async def test_raw_completions(tmp_path: Path) -> None:
    """The older API, streamed and whole: text, one reason, usage last, the account beside it."""
    options: Any = {"include_usage": True}
    async with gateway(tmp_path) as client:
        stream = await client.completions.create(
            model="disco", prompt="Is it", stream=True, stream_options=options
        )
        *told, finish, usage = [chunk async for chunk in stream]
        whole = await client.completions.create(model="disco", prompt=["Is it"], max_tokens=2)
        with pytest.raises(openai.BadRequestError, match="one string"):
            await client.completions.create(model="disco", prompt=["a", "b"])
    assert "".join(chunk.choices[0].text for chunk in told) == "No, it is dry."
    assert (finish.choices[0].finish_reason, finish.choices[0].text) == ("stop", "")
    assert (usage.choices, usage.usage and usage.usage.completion_tokens) == ([], 4)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("No, it", "length")
    assert (whole.object, (whole.model_extra or {})["disco"]["winner"]) == ("text_completion", "laptop")


async def test_raw_completions_are_rescued_at_an_openai_endpoint(tmp_path: Path) -> None:
    """It goes on from prompt and answer at `/completions`, if it declares them, however it takes chats."""
    asked: list[Any] = []
    script = says({"text": " is dry."}, {"text": "", "finish_reason": "stop"}, asked=asked)
    async with upstream(script, "/v1/completions") as cloud:
        cloud |= {"features": ["completions"], "max_tokens_field": "max_completion_tokens"}
        async with gateway(tmp_path, cloud, late="cloud", breaks_after=3) as client:
            whole = await client.completions.create(model="disco", prompt="Is it? ", extra_body={"top_k": 3})
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("No, it is dry.", "stop")
    assert asked == [
        {
            "model": "m",
            "prompt": "Is it? No, it",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 14,
            "top_k": 3,
        }
    ]


async def test_an_endpoint_that_fails_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator reads when it begins and when it is over, and nothing of what is a request's own fault."""
    statuses = [400, 500, 200, 502, 400, 200, 200]
    answer = says({"delta": {"content": "No."}, "finish_reason": "stop"})

    async def script(http: web.Request) -> web.StreamResponse:
        status = statuses.pop(0)
        return await answer(http) if status == 200 else web.json_response({"error": "no"}, status=status)

    async with upstream(script) as cloud, gateway(tmp_path, cloud) as client:
        while statuses:
            if len(statuses) == 2:
                monkeypatch.setattr(failures, "QUIET_S", 0.0)
            with suppress(openai.APIStatusError):
                await client.chat.completions.create(model="cloud", messages=ASKED)
    told = [record.getMessage() for record in caplog.records if record.name.endswith("failures")]
    assert told == [
        "cloud: answered with HTTP 500: no; told once, until it answers again",
        "cloud: answers again",
    ]
