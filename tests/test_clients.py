"""Clients as people have them, unchanged, on one gateway with the real embedded pair behind it.

Those that are no dependency of the tests come with `pip install '.[clients]'`, and are skipped without.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from processes import Serving, disco_serve

pytestmark = [pytest.mark.slow, pytest.mark.anyio, pytest.mark.usefixtures("smollm2_path")]

TOKENS = 8
MESSAGES: Any = [{"role": "user", "content": "Why is the sky blue?"}]
ASKED: Any = {"model": "disco", "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0.0}
A_WORD: Any = {**ASKED, "stop": [" "]}
"""Ends by itself; a helper of `openai` raises where an answer was cut off."""
WITH_USAGE: Any = {"stream_options": {"include_usage": True}}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}

SETTINGS = """
[[endpoint]]
name = "laptop"
kind = "device"
dialect = "llamacpp"
model = "smollm2-135m-instruct"
threads = 1

[[endpoint]]
name = "cloud"
kind = "server"
dialect = "emulated"
model = "smollm2-135m-instruct"
inner = {{ threads = 1 }}
prompt_usd_per_mtok = 2.5
completion_usd_per_mtok = 10.0

[[endpoint]]
name = "silent"
kind = "server"
dialect = "scripted"
answer = "At last."
ttft_s = 0.5

[[endpoint]]
name = "broken"
kind = "server"
dialect = "scripted"
answer = "One two three four"
breaks_after = 3

[[endpoint]]
name = "caller"
kind = "server"
dialect = "scripted"
answer = "It rains in Paris."
tool_calls = [{{ name = "weather", arguments = {{ city = "Paris" }} }}]

[policy]
name = "offsets"
offsets = {{ laptop = 0.0, cloud = 0.0 }}

[gateway]
keep_alive_s = 0.1

[ledger]
path = "{ledger}"
"""


def optional(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is not installed; pip install '.[clients]'")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One for all of them, with its engines."""
    folder = tmp_path_factory.mktemp("clients")
    config, ledger = folder / "disco.toml", (folder / "ledger.db").as_posix()
    config.write_text(SETTINGS.format(ledger=ledger), encoding="utf-8")
    with disco_serve(config) as serving:
        yield serving


@pytest.fixture(scope="module")
def client(gateway: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(gateway: Serving) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as client:
        yield client


def test_openai_gets_a_whole_answer(client):
    """The official client parses an answer, its usage and its finish."""
    answer = client.chat.completions.create(**ASKED)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == TOKENS
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + TOKENS


def test_openai_streams(client):
    """A stream has the role first, then content, one finish, and the usage behind it."""
    *chunks, usage = client.chat.completions.create(**ASKED, **WITH_USAGE, stream=True)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    finishes = [chunk.choices[0].finish_reason for chunk in chunks]
    assert finishes == [None] * (len(chunks) - 1) + ["length"]
    assert (usage.choices, usage.usage.completion_tokens) == ([], TOKENS)
    assert len({chunk.id for chunk in (*chunks, usage)}) == 1


def test_openais_stream_helper_accumulates(client):
    """`.stream()` sees every piece, and ends with the answer that they make up."""
    with client.chat.completions.stream(**A_WORD, **WITH_USAGE) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert said == final.choices[0].message.content
    assert said
    assert final.choices[0].finish_reason == "stop"
    assert final.usage.completion_tokens


async def test_openai_is_asynchronous_as_well(async_client):
    """The asynchronous client gets the same, whole and in a stream."""
    whole = await async_client.chat.completions.create(**ASKED)
    stream = await async_client.chat.completions.create(**ASKED, stream=True)
    told = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert whole.choices[0].message.content
    assert "".join(told)


async def test_openais_asynchronous_stream_helper_accumulates(async_client):
    """And so does its `.stream()`."""
    async with async_client.chat.completions.stream(**A_WORD) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_openai_raises_what_breaks_a_stream(client):
    """An error after content comes as the client's own exception, behind the text that was told."""
    chunks = client.chat.completions.create(**{**ASKED, "model": "broken"}, stream=True)
    told = [next(chunks).choices[0].delta.content or "" for _ in range(4)]
    with pytest.raises(openai.APIError, match="broken"):
        next(chunks)
    assert "".join(told) == "One two three"


def test_openai_lists_the_models(client):
    """Every name that `model` may have is there, and can be retrieved."""
    names = [model.id for model in client.models.list()]
    assert {"disco", "laptop", "cloud"} <= set(names)
    assert client.models.retrieve("disco").id == "disco"


def test_openai_has_its_tools_called_and_answered(client):
    """The helper assembles a streamed call; its result goes back, and the answer comes."""
    asked = {**ASKED, "model": "caller", "tools": [WEATHER]}
    with client.chat.completions.stream(**asked) as stream:
        called = stream.get_final_completion().choices[0]
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    messages = [*MESSAGES, called.message.model_dump(include={"role", "tool_calls"}), result]
    answer = client.chat.completions.create(**{**asked, "messages": messages, "max_tokens": None})
    assert answer.choices[0].message.content == "It rains in Paris."


@pytest.fixture
def chat(gateway: Serving) -> Any:
    chats = optional("langchain_openai")
    return chats.ChatOpenAI(
        base_url=gateway.base_url,
        api_key="any",
        model="disco",
        max_tokens=TOKENS,
        temperature=0.0,
        stream_usage=True,
    )


def test_langchain_invokes(chat):
    """`langchain-openai` gets text, usage and the reason it ended."""
    answer = chat.invoke("Why is the sky blue?")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] == TOKENS
    assert answer.response_metadata["finish_reason"] == "length"


def test_langchain_streams(chat):
    """Its chunks add up to one message with the usage in it."""
    first, *rest = chat.stream("Why is the sky blue?")
    whole = first
    for chunk in rest:
        whole += chunk
    assert whole.content
    assert whole.usage_metadata["output_tokens"] == TOKENS


async def test_langchain_is_asynchronous_as_well(chat):
    """`ainvoke` gets an answer, too."""
    assert (await chat.ainvoke("Why is the sky blue?")).content
    await chat.root_async_client.close()


litellms_own_warnings = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def litellm() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the internet when it is imported
        yield optional("litellm")


@pytest.fixture
def through_litellm(gateway: Serving) -> dict[str, Any]:
    return {**ASKED, "model": "openai/disco", "api_base": gateway.base_url, "api_key": "any"}


@litellms_own_warnings
def test_litellm_gets_a_whole_answer(litellm, through_litellm):
    """`litellm` as a client maps an answer and its usage."""
    answer = litellm.completion(**through_litellm)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == TOKENS


@litellms_own_warnings
def test_litellm_streams(litellm, through_litellm):
    """From the chunks of a stream with usage it builds the whole answer again."""
    chunks = list(litellm.completion(**through_litellm, **WITH_USAGE, stream=True))
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert whole.choices[0].message.content == told
    assert told
    assert whole.usage.completion_tokens == TOKENS


@pytest.fixture
def llm(gateway: Serving, tmp_path: Path) -> Any:
    """Runs simonw's `llm` with the gateway for a model, and its files in a folder of its own."""
    optional("llm")
    model = {"model_id": "race", "model_name": "disco", "api_base": gateway.base_url}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]), encoding="utf-8")  # JSON is YAML

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

    return run


def test_llm_prints_answers_and_logs_their_tokens(llm):
    """Streamed and whole, `llm` prints an answer, and its log has the tokens that the gateway told."""
    asked = "-m", "race", "-o", "max_tokens", str(TOKENS), "Why is the sky blue?"
    told = [llm(*asked).stdout.strip(), llm(*asked, "--no-stream").stdout.strip()]
    logged = json.loads(llm("logs", "--json").stdout)
    assert [each["response"].strip() for each in logged] == told
    assert all(told)
    assert [each["output_tokens"] for each in logged] == [TOKENS, TOKENS]


def curl(gateway: Serving, path: str = "/chat/completions", **body: Any) -> list[str]:
    """The events and comments of a stream as `curl -N` prints them."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    command = [program, "-sSN", gateway.base_url + path, "-H", "Content-Type: application/json"]
    asked = json.dumps({**ASKED, "stream": True, **body})
    told = subprocess.run([*command, "-d", asked], capture_output=True, timeout=60, check=True)
    return told.stdout.decode().removesuffix("\n\n").split("\n\n")


def payloads(events: list[str]) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]


def test_curl_reads_a_stream(gateway):
    """Every event is one line with JSON in it and an empty one behind; the last is `[DONE]`."""
    *events, done = curl(gateway)
    assert done == "data: [DONE]"
    assert [event.partition(": ")[0] for event in events] == ["data"] * len(events)
    chunks = payloads(events)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert chunks[-1]["disco"]["winner"] in ("laptop", "cloud")


def test_curl_sees_that_a_silent_stream_lives(gateway):
    """While nothing has come there are comments, which no client reads as content."""
    events = curl(gateway, model="silent")
    comments = [number for number, event in enumerate(events) if event == ": keep-alive"]
    assert len(comments) >= 2
    chunks = [number for number, event in enumerate(events) if '"content":"At"' in event]
    assert comments[-1] < chunks[0]
    assert all(second == first + 1 for first, second in pairwise(comments))


def test_curl_reads_an_error_behind_content(gateway):
    """The stream ends in an error object and `[DONE]`, in the same framing."""
    *_, error, done = curl(gateway, model="broken")
    assert done == "data: [DONE]"
    assert "broken" in json.loads(error.removeprefix("data: "))["error"]["message"]
