"""The adapter against the real embedded engine, and against a stub where llama.cpp must misbehave."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import psutil
import pytest
from aiohttp import web
from gguf import GGUFWriter, TokenType

from discostream.endpoints.llamacpp import LlamaCppEndpoint
from discostream.errors import ConfigError, EndpointError, Phase
from discostream.types import Event, Finish, FinishReason, Message, Piece, Prefix, Prompt, Request, Sampling

Build = Callable[..., LlamaCppEndpoint]
KEY_VARIABLE = "DISCOSTREAM_TEST_ENGINE_KEY"
DEADLINE_S = 60.0
pytestmark = pytest.mark.anyio


def ask(text: str = "Hi", **fields: Any) -> Request:
    defaults: dict[str, Any] = {"sampling": Sampling(temperature=0.0), "max_tokens": 16}
    return Request(
        messages=(Message("user", text),), arrived_at=0.0, request_id="r", **{**defaults, **fields}
    )


async def collect(endpoint: LlamaCppEndpoint, request: Request, prefix: Prefix | None = None) -> list[Event]:
    async with aclosing(endpoint.generate(request, prefix or Prefix())) as events:
        return [event async for event in events]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def ids_of(events: list[Event]) -> tuple[int, ...]:
    pieces = [event for event in events if isinstance(event, Piece)]
    assert all(piece.token_ids is not None for piece in pieces)
    return tuple(token for piece in pieces for token in piece.token_ids or ())


async def slots_of(endpoint: LlamaCppEndpoint) -> list[dict[str, Any]]:
    server = await endpoint._server()
    async with server._open("/slots") as response:
        return msgspec.json.decode(await response.read(), type=list[dict[str, Any]])


async def until_free(endpoint: LlamaCppEndpoint) -> list[dict[str, Any]]:
    with anyio.fail_after(DEADLINE_S):
        while True:
            slots = await slots_of(endpoint)
            if not any(slot["is_processing"] for slot in slots):
                return slots
            await anyio.sleep(0.1)


async def test_a_stream_is_prompts_pieces_and_a_finish(engine_endpoint: LlamaCppEndpoint) -> None:
    """An answer that runs into its limit ends with `length` and adds up in tokens and IDs."""
    events = await collect(engine_endpoint, ask("Count from one to twenty."))
    counted, *told, finish = events
    reading = [event for event in told if isinstance(event, Prompt)]
    prompt, pieces = reading[0], told[len(reading) :]
    assert isinstance(counted, Prompt)
    assert reading[-1].read_tokens == prompt.tokens
    assert (counted.cached_tokens, prompt.tokens) == (None, counted.tokens)
    assert prompt.cached_tokens is not None
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.prompt_tokens) == (FinishReason.LENGTH, prompt.tokens)
    assert finish.completion_tokens == 16 == len(ids_of(events))
    assert text_of(events)


async def test_answers_may_follow_each_other_at_once(engine_endpoint: LlamaCppEndpoint) -> None:
    """Whatever llama.cpp does to a connection after a stream, the next request does not meet it."""
    for _ in range(30):
        events = await collect(engine_endpoint, ask(max_tokens=1))
        assert isinstance(events[-1], Finish)


async def test_an_answer_that_ends_by_itself_says_stop(engine_endpoint: LlamaCppEndpoint) -> None:
    """The end-of-turn token ends the stream with `stop`."""
    events = await collect(engine_endpoint, ask("Reply with the one word: Yes", max_tokens=200))
    assert isinstance(events[-1], Finish)
    assert events[-1].reason is FinishReason.STOP


async def test_a_stop_string_ends_the_answer_before_it(engine_endpoint: LlamaCppEndpoint) -> None:
    """A stop string is not sent, but the IDs that were held back for it are."""
    prefix = Prefix("1, 2, 3, 4, 5, 6,")
    events = await collect(engine_endpoint, ask("Count.", stop=("8, 9",), max_tokens=40), prefix)
    finish = events[-1]
    assert isinstance(finish, Finish)
    assert finish.reason is FinishReason.STOP
    assert text_of(events) == " 7, "
    assert len(ids_of(events)) == finish.completion_tokens
    assert any(isinstance(event, Piece) and not event.text for event in events)


async def test_characters_of_several_tokens_come_with_all_their_ids(
    engine_endpoint: LlamaCppEndpoint,
) -> None:
    """llama.cpp sends a wide character with its last ID only; the piece has them all."""
    events = await collect(engine_endpoint, ask("Repeat: 猐 😀 naïve 日本語", max_tokens=14))
    wide = [event for event in events if isinstance(event, Piece) and event.tokens > 1]
    assert wide
    server = await engine_endpoint._server()
    assert await server.tokenize("".join(piece.text for piece in wide[:1])) == wide[0].token_ids
    assert len(ids_of(events)) == sum(event.tokens for event in events if isinstance(event, Piece))


async def test_a_prefix_goes_behind_the_prompt(engine_endpoint: LlamaCppEndpoint) -> None:
    """IDs are appended to the prompt as they are, text by its tokens, and only the rest is generated."""
    whole = await collect(engine_endpoint, ask("Count from one to twenty.", max_tokens=12))
    ids, prompt = ids_of(whole), whole[0]
    assert isinstance(prompt, Prompt)
    by_ids = Prefix("is not looked at", ids[:6])
    server = await engine_endpoint._server()
    text = text_of(whole)[:9]
    by_text = Prefix(text)
    counting = await server.render(ask("Count from one to twenty."))
    fresh, nothing = await server.prompt_ids(counting, Prefix())
    assert nothing == ()
    assert await server.prompt_ids(counting, by_ids) == (fresh, ids[:6])
    assert await server.prompt_ids(counting, by_text) == (fresh, await server.tokenize(text))
    rest = await collect(engine_endpoint, ask("Count from one to twenty.", max_tokens=6), by_ids)
    assert rest[0] == Prompt(prompt.tokens + 6)
    assert isinstance(rest[-1], Finish)
    assert rest[-1].completion_tokens == 6


async def test_special_words_in_an_answer_stay_text(engine_endpoint: LlamaCppEndpoint) -> None:
    """A handed-over answer that quotes the end-of-turn marker does not become one."""
    server = await engine_endpoint._server()
    marker = "<|im_end|>"
    special = await server.tokenize(marker, parse_special=True)
    _, ids = await server.prompt_ids(await server.render(ask()), Prefix(marker))
    assert len(special) == 1
    assert ids[-1:] != special


async def test_a_sentencepiece_vocabulary_gets_no_stray_space_and_one_bos(
    llamacpp: Build, tmp_path: Path
) -> None:
    """Such a tokenizer puts a space before all text and wants a BOS; a handed-over word stays whole."""
    endpoint = llamacpp(model=str(write_tiny_model(tmp_path / "tiny.gguf")), context_tokens=256)
    try:
        await endpoint.prepare()
        server = await endpoint._server()
        rendered = await server.render(ask())
        fresh, _ = await server.prompt_ids(rendered, Prefix())
        _, continued = await server.prompt_ids(rendered, Prefix("tion é"))
        assert fresh[0] == 1
        assert fresh.count(1) == 1
        assert "".join(TINY_TOKENS[token] for token in continued) == "tion▁<0xC3><0xA9>"
    finally:
        await endpoint.aclose()


async def test_a_template_that_opens_a_thought_is_told_and_closed(llamacpp: Build, tmp_path: Path) -> None:
    """Whoever starts behind `<think>` says so, and an answer from elsewhere finds the thought closed."""
    model = write_tiny_model(tmp_path / "thinker.gguf", "<think>\n")
    endpoint = llamacpp(model=str(model), context_tokens=256)
    try:
        fresh = await collect(endpoint, ask(max_tokens=1))
        assert next(event for event in fresh if isinstance(event, Prompt)).opens_thought
        continued = await collect(endpoint, ask(max_tokens=1), Prefix("It is"))
        assert not any(event.opens_thought for event in continued if isinstance(event, Prompt))
        server = await endpoint._server()
        assert isinstance(continued[0], Prompt)
        behind = "[INST]Hi[/INST]<think>\n\n</think>\n\n"
        expected = await server.tokenize(behind, add_special=True, parse_special=True)
        assert continued[0].tokens == len(expected) + len(await server.inner_ids("It is"))
    finally:
        await endpoint.aclose()


async def test_closing_a_stream_frees_its_slot(engine_endpoint: LlamaCppEndpoint) -> None:
    """A reader that leaves in the middle of an answer stops the work."""
    request = ask("Tell me a long story.", max_tokens=900)
    async with aclosing(engine_endpoint.generate(request, Prefix())) as events:
        pieces = 0
        async for event in events:
            pieces += isinstance(event, Piece)
            if pieces == 3:
                break
    slots = await until_free(engine_endpoint)
    assert all(slot.get("n_prompt_tokens", 0) < 500 for slot in slots)


async def test_an_answer_goes_on_in_the_slot_that_read_its_prompt(engine_endpoint: LlamaCppEndpoint) -> None:
    """Asked at once after a stream that is closed while it reads, it waits for that slot and its cache."""
    request = ask(" ".join(f"word{index}" for index in range(120)), max_tokens=2)
    total = 0
    async with aclosing(engine_endpoint.generate(request, Prefix())) as events:
        async for event in events:
            if isinstance(event, Prompt) and event.read_tokens is not None:
                total = event.tokens
                if event.read_tokens >= total // 2:
                    break
    rest = await collect(engine_endpoint, request, Prefix("These are"))
    assert isinstance(rest[-1], Finish)
    assert rest[-1].cached_tokens is not None
    assert rest[-1].cached_tokens >= total // 2


async def test_cancelling_a_prefill_stops_it_midway(engine_endpoint: LlamaCppEndpoint) -> None:
    """A prompt whose reader leaves is not read to its end, though its slot is watched all the time."""
    words = " ".join(f"word{index}" for index in range(250))
    total = 0
    async with aclosing(engine_endpoint.generate(ask(words), Prefix())) as events:
        with anyio.move_on_after(0.5):
            async for event in events:
                total = event.tokens if isinstance(event, Prompt) else total
    assert total > 700
    slots = await until_free(engine_endpoint)
    assert all(slot.get("n_prompt_tokens", 0) < total for slot in slots)


async def test_a_prompt_beyond_the_context_is_refused(engine_endpoint: LlamaCppEndpoint) -> None:
    """Too long a prompt is refused with OpenAI's code, and both numbers."""
    with pytest.raises(EndpointError, match=r"has \d+ tokens and the context holds 1024") as raised:
        await collect(engine_endpoint, ask("word " * 2000))
    error = raised.value
    assert (error.phase, error.status) == (Phase.REFUSED, 400)
    assert error.code == "context_length_exceeded"


async def test_a_wrong_key_is_refused(
    engine_endpoint: LlamaCppEndpoint, llamacpp: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's 401 becomes a refusal with that status."""
    monkeypatch.setenv(KEY_VARIABLE, "wrong")
    endpoint = llamacpp(base_url=engine_endpoint.options.base_url, api_key_env=KEY_VARIABLE)
    with pytest.raises(EndpointError, match="Invalid API Key") as raised:
        await collect(endpoint, ask())
    assert (raised.value.phase, raised.value.status) == (Phase.REFUSED, 401)
    await endpoint.aclose()


def test_a_missing_key_is_named(llamacpp: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment variable that is not set is named before anything is sent."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        llamacpp(base_url="http://127.0.0.1:1", api_key_env=KEY_VARIABLE)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
async def test_an_embedded_engine_lives_and_dies_with_its_endpoint(
    engine_endpoint: LlamaCppEndpoint, llamacpp: Build
) -> None:
    """The embedded model is ready after `prepare`, survives a crash of its engine, and ends with `aclose`."""
    endpoint = llamacpp(threads=1, context_tokens=512)
    try:
        await endpoint.prepare()
        assert endpoint.vocabulary is not None
        assert endpoint.vocabulary == engine_endpoint.vocabulary
        assert endpoint.energy.decode_j_per_token == pytest.approx(0.0487, abs=1e-4)
        assert text_of(await collect(endpoint, ask()))
        assert endpoint.engine is not None
        crashed = endpoint.engine.pid
        assert crashed is not None
        os.kill(crashed, signal.SIGKILL)
        while endpoint.engine.pid in (crashed, None):  # noqa: ASYNC110
            await anyio.sleep(0.02)
        with anyio.fail_after(DEADLINE_S):
            assert text_of(await collect(endpoint, ask()))
        last = endpoint.engine.pid
    finally:
        await endpoint.aclose()
        await endpoint.aclose()
    assert last is not None
    assert not psutil.pid_exists(last)


async def test_a_model_that_does_not_exist_is_refused(llamacpp: Build) -> None:
    """An unknown model is a mistake in the settings, told with a hint before anything starts."""
    with pytest.raises(ConfigError, match="did you mean 'smollm2-135m-instruct'"):
        llamacpp(model="smollm2-135m")


async def test_a_model_that_has_gone_fails_the_connection(llamacpp: Build, tmp_path: Path) -> None:
    """A file that was there when the settings were read, on a drive since unplugged, is told as missing."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    endpoint = llamacpp(model=str(file))
    file.unlink()
    with pytest.raises(EndpointError, match=r"model\.gguf: no such file") as raised:
        await endpoint.prepare()
    assert raised.value.phase is Phase.CONNECT
    await endpoint.aclose()


async def test_a_broken_model_fails_the_connection(llamacpp: Build, tmp_path: Path) -> None:
    """A file that the engine cannot load is the endpoint's failure, not a crash."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF but nothing else")
    endpoint = llamacpp(model=str(file))
    with pytest.raises(EndpointError, match="does not start") as raised:
        await endpoint.prepare()
    assert raised.value.phase is Phase.CONNECT
    await endpoint.aclose()


def test_an_endpoint_needs_a_model_or_a_server(llamacpp: Build) -> None:
    """Neither `model` nor `base_url` is a mistake in the settings."""
    with pytest.raises(ConfigError, match="needs `model`"):
        llamacpp(model="")


async def test_a_server_that_is_not_there_fails_the_connection(llamacpp: Build) -> None:
    """Nobody listening is a failed connection, in `prepare` and in `generate`, and prepares nothing."""
    endpoint = llamacpp(base_url="http://127.0.0.1:9")
    for attempt in (endpoint.prepare(), collect(endpoint, ask())):
        with pytest.raises(EndpointError, match="cannot connect") as raised:
            await attempt
        assert raised.value.phase is Phase.CONNECT
    await endpoint.aclose()


TINY_WORDS = ["▁", *"abcdefghijklmnopqrstuvwxyzH[]INST/"]
TINY_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *TINY_WORDS]


def write_tiny_model(path: Path, opening: str = "") -> Path:
    """A llama of one random layer, with a SentencePiece vocabulary that adds BOS and a leading space.

    `opening` is what its chat template puts where an answer begins.
    """
    kinds = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    plain = dict.fromkeys(TINY_WORDS, TokenType.NORMAL)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TINY_TOKENS)
    writer.add_token_scores([0.0] * len(TINY_TOKENS))
    writer.add_token_types([(kinds | plain).get(token, TokenType.BYTE) for token in TINY_TOKENS])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(
        "{{ bos_token }}{% for m in messages %}[INST]{{ m['content'] }}[/INST]{% endfor %}"
        f"{{% if add_generation_prompt %}}{opening}{{% endif %}}"
    )
    square, vocabulary = (32, 32), (len(TINY_TOKENS), 32)
    shapes = {f"blk.0.attn_{part}": square for part in ("q", "k", "v", "output")}
    shapes |= {"token_embd": vocabulary, "output": vocabulary}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    chance = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", chance.normal(0.0, 0.1, shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


Play = Callable[[web.StreamResponse], Awaitable[None]]


class Stub:
    """A llama.cpp that streams what a test wants, and keeps what it was asked."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.asked: dict[str, Any] = {}

    async def completion(self, request: web.Request) -> web.StreamResponse:
        self.asked = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self.play(response)
        return response

    async def other(self, request: web.Request) -> web.Response:
        if request.path == "/apply-template":
            return web.json_response({"prompt": "rendered"})
        if request.path == "/tokenize":
            text = (await request.json())["content"]
            return web.json_response({"tokens": [ord(character) for character in text]})
        if request.path == "/detokenize" and len(ids := (await request.json())["tokens"]) < 100:
            return web.json_response({"content": "".join(map(chr, ids))})
        return web.json_response({"error": {"message": "not here", "type": "not_found_error"}}, status=404)


@asynccontextmanager
async def stubbed(llamacpp: Build, play: Play) -> AsyncIterator[tuple[LlamaCppEndpoint, Stub]]:
    stub = Stub(play)
    app = web.Application()
    app.router.add_post("/completion", stub.completion)
    app.router.add_route("*", "/{rest:.*}", stub.other)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    endpoint = llamacpp(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}", model="")
    try:
        yield endpoint, stub
    finally:
        await endpoint.aclose()
        await runner.cleanup()


def playing(*frames: dict[str, Any] | bytes) -> Play:
    async def play(response: web.StreamResponse) -> None:
        for frame in frames:
            data = frame if isinstance(frame, bytes) else b"data: %b\n\n" % msgspec.json.encode(frame)
            await response.write(data)

    return play


def piece(text: str, *ids: int, predicted: int) -> dict[str, Any]:
    return {"content": text, "tokens": ids, "stop": False, "tokens_predicted": predicted}


END = {
    "content": "",
    "tokens": [],
    "stop": True,
    "stop_type": "eos",
    "tokens_predicted": 2,
    "tokens_evaluated": 8,
    "timings": {"cache_n": 5},
}


async def test_the_request_is_mapped_field_by_field(llamacpp: Build) -> None:
    """Limits, stop strings and sampling reach llama.cpp under its names; what is unset is not sent."""
    request = ask(stop=("END",), sampling=Sampling(top_p=0.5, seed=7, presence_penalty=0.1), max_tokens=None)
    async with stubbed(llamacpp, playing(piece("ok", 1, predicted=1), END)) as (endpoint, stub):
        events = await collect(endpoint, request)
    rendered = [ord(character) for character in "rendered"]
    sampling = {"top_p": 0.5, "seed": 7, "presence_penalty": 0.1}
    told = {name: stub.asked[name] for name in ("prompt", "n_predict", "stop", *sampling)}
    assert told == {"prompt": rendered, "n_predict": -1, "stop": ["END"], **sampling}
    assert not {"temperature", "frequency_penalty"} & set(stub.asked)
    assert events == [Prompt(8), Piece("ok", 1, (1,)), Finish(FinishReason.STOP, 8, 2, 5)]
    assert endpoint.vocabulary is None


async def test_progress_is_not_content(llamacpp: Build) -> None:
    """Frames of progress carry a meaningless token ID and make no piece; they tell how much was read."""
    progress = [
        {"content": "", "tokens": [0], "tokens_predicted": 0, "prompt_progress": {"total": 8, **done}}
        for done in ({"cache": 5, "processed": 5}, {"cache": 5, "processed": 8})
    ]
    async with stubbed(llamacpp, playing(*progress, piece("ok", 1, predicted=1), END)) as (endpoint, _):
        events = await collect(endpoint, ask())
    reading = [Prompt(8), Prompt(8, 5, 5), Prompt(8, 5, 8)]
    assert events == [*reading, Piece("ok", 1, (1,)), Finish(FinishReason.STOP, 8, 2, 5)]


async def test_a_loser_knows_what_was_cached_of_its_prompt(engine_endpoint: LlamaCppEndpoint) -> None:
    """An attempt that is cancelled before its first content has been told how much it need not read."""
    story = "The lighthouse keeper wound the clockwork and wrote down the weather. " * 20
    await collect(engine_endpoint, ask(story, max_tokens=1))
    async with aclosing(engine_endpoint.generate(ask(f"{story}And then?"), Prefix())) as events:
        seen = [await anext(events), await anext(events)]
    assert isinstance(seen[1], Prompt)
    assert seen[1].cached_tokens is not None
    assert 0.9 * seen[1].tokens < seen[1].cached_tokens < seen[1].tokens
    await until_free(engine_endpoint)


async def test_ids_are_completed_only_when_they_are_certain(llamacpp: Build) -> None:
    """Missing IDs are found by tokenising, behind what was held back; a mismatch leaves them unknown."""
    held = piece("", ord("a"), predicted=1)
    wide = piece("abc", ord("c"), predicted=3)
    doubtful = piece("xy", 99, predicted=5)
    async with stubbed(llamacpp, playing(held, wide, doubtful, END)) as (endpoint, _):
        events = await collect(endpoint, ask())
    pieces = [event for event in events if isinstance(event, Piece)]
    assert pieces == [Piece("", 1, (ord("a"),)), Piece("abc", 2, (ord("b"), ord("c"))), Piece("xy", 2, None)]


async def cut(response: web.StreamResponse) -> None:
    transport = response._req.transport if response._req else None
    assert transport
    await response.write(b"data: %b\n\n" % msgspec.json.encode(piece("ok", 1, predicted=1)))
    await anyio.sleep(0.05)
    transport.abort()


@pytest.mark.parametrize(
    ("play", "phase", "message"),
    [
        pytest.param(playing(), Phase.PREFILL, "ended before", id="ends before content"),
        pytest.param(playing(piece("ok", 1, predicted=1)), Phase.DECODE, "ended before", id="ends midway"),
        pytest.param(cut, Phase.DECODE, "connection broke", id="cut midway"),
        pytest.param(
            playing({"error": {"message": "out of memory", "type": "server_error"}}),
            Phase.PREFILL,
            "out of memory",
            id="error frame",
        ),
        pytest.param(
            playing(piece("ok", 1, predicted=1), {"error": {"message": "slot lost"}}),
            Phase.DECODE,
            "slot lost",
            id="error frame midway",
        ),
        pytest.param(playing(b"data: {\n\n"), Phase.PREFILL, "would not", id="no JSON"),
        pytest.param(playing(b"data: {" * 500_000), Phase.PREFILL, "would not", id="endless line"),
    ],
)
async def test_a_broken_stream_is_an_error_of_its_phase(
    llamacpp: Build, play: Play, phase: Phase, message: str
) -> None:
    """However a stream breaks, one error says how far it had come."""
    async with stubbed(llamacpp, play) as (endpoint, _):
        with pytest.raises(EndpointError, match=message) as raised:
            await collect(endpoint, ask())
    assert raised.value.phase is phase


async def test_a_stream_that_never_answers_can_be_left(llamacpp: Build) -> None:
    """Cancelling an attempt that hangs before its first content returns at once, twice closed."""
    async with stubbed(llamacpp, lambda response: anyio.sleep(30)) as (endpoint, _):
        events = endpoint.generate(ask(), Prefix())
        with anyio.move_on_after(0.2) as scope:
            async for _ in events:
                pass
        assert scope.cancelled_caught
        await events.aclose()
        await events.aclose()


async def test_the_limit_is_in_the_endpoints_own_tokens(engine_endpoint: LlamaCppEndpoint) -> None:
    """An answer whose first part had fewer tokens elsewhere may have fewer here, and none when it is full."""
    server = await engine_endpoint._server()
    text = "Supercalifragilistic expialidocious"
    own = len(await server.tokenize(text))
    assert own > 4
    rest = await collect(engine_endpoint, ask(max_tokens=own), Prefix(text, tokens=4))
    assert rest[-1] == Finish(FinishReason.LENGTH, rest[-1].prompt_tokens, 4, rest[-1].cached_tokens)
    full = await collect(engine_endpoint, ask(max_tokens=2), Prefix(text, tokens=2))
    assert full[1:] == [Finish(FinishReason.LENGTH, full[0].tokens, 0)]
