"""The bound on prompt tokens, held against llama.cpp's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType

from discostream.core.budget import MESSAGE_TOKENS, TEMPLATE_TOKENS, most_prompt_tokens
from discostream.endpoints.llamacpp import LlamaCppEndpoint
from discostream.types import Message, Prefix, Request

pytestmark = pytest.mark.anyio

HOSTILE = [
    "",
    " ",
    " " * 300,
    "\n\t\r\v\f" * 40,
    "\u0000\u0001\u007f\u0080\ufeff\u200b\u2028",
    "ﷺ" * 50,  # one character that NFKC makes eighteen of
    "e\u0301\u0316\u0317" * 60,
    "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪" * 20,
    "𓀀𒀀𝔘𝕟𝕚𝔠𝔬𝔡𝔢" * 20,
    "ซื้อของออนไลน์ 日本語の文章 한국어 नमस्ते Здравствуйте" * 4,
    "<|im_start|>system\n<|im_end|>" * 20,
    "0123456789" * 40,
    "aA1!" * 100,
]


def random_texts(count: int) -> list[str]:
    """Texts of code points drawn from all of Unicode, but for halves of characters."""
    rng = np.random.default_rng(11)
    texts = []
    for _ in range(count):
        points = rng.integers(1, 0x110000, rng.integers(1, 120))
        texts.append("".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))
    return texts


def write_sentencepiece_model(path: Path) -> None:
    """A GGUF file with a vocabulary of the SentencePiece kind, which spells what it does not know."""
    known = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "▁th", "the", "▁the", "in", "日", "é"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *known]
    kinds = [
        TokenType.UNKNOWN,
        *[TokenType.CONTROL] * 2,
        *[TokenType.BYTE] * 256,
        *[TokenType.NORMAL] * len(known),
    ]
    writer, width = GGUFWriter(path, "llama"), 32
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(len(known))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(True)
    block = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = {"token_embd": (len(tokens), width), "output": (len(tokens), width), "output_norm": (width,)}
    shapes |= {f"blk.0.{name}": (width, width) for name in block}
    shapes |= {f"blk.0.{name}": (width,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
async def sentencepiece(
    tmp_path: Path, anyio_backend: str, llamacpp: Callable[..., LlamaCppEndpoint]
) -> AsyncIterator[LlamaCppEndpoint]:
    """An endpoint with a SentencePiece vocabulary, which has no tokens for its template's markers."""
    path = tmp_path / "spelling.gguf"
    write_sentencepiece_model(path)
    endpoint = llamacpp(model=str(path), context_tokens=512, threads=1)
    await endpoint.prepare()
    yield endpoint
    await endpoint.aclose()


@pytest.fixture(params=["engine_endpoint", "sentencepiece"])
def vocabulary(request: pytest.FixtureRequest) -> LlamaCppEndpoint:
    """The embedded model's byte-level vocabulary, and one of the SentencePiece kind."""
    endpoint: LlamaCppEndpoint = request.getfixturevalue(request.param)
    return endpoint


async def length_of(server: Any, request: Request, prefix: Prefix) -> int:
    """How many tokens the prompt has, and the partial answer behind it."""
    prompt, written = await server.prompt_ids(await server.render(request), prefix)
    return len(prompt) + len(written)


async def test_text_has_hardly_more_tokens_than_bytes(vocabulary: LlamaCppEndpoint) -> None:
    """However odd, a text has at most as many tokens as UTF-8 bytes, and one for a space put before it."""
    server = await vocabulary._server()
    for text in [*HOSTILE, *random_texts(60)]:
        assert len(await server.tokenize(text)) <= len(text.encode()) + 1, repr(text)


@pytest.mark.parametrize("role", ["user", "system"])
async def test_no_prompt_is_longer_than_its_bound(vocabulary: LlamaCppEndpoint, role: str) -> None:
    """A conversation in its template, with a partial answer behind it, stays within what is set aside."""
    server = await vocabulary._server()
    for text in [*HOSTILE, *random_texts(20)]:
        messages = (Message(role, text), Message("user", text))
        request = Request(messages=messages, arrived_at=0.0, request_id="r")
        for prefix in (Prefix(), Prefix(text), Prefix(text, await server.inner_ids(text))):
            assert await length_of(server, request, prefix) <= most_prompt_tokens(request, prefix)


async def test_a_template_adds_less_than_is_set_aside_for_it(vocabulary: LlamaCppEndpoint) -> None:
    """What is set aside for a template and for each message is more than the template adds."""
    server = await vocabulary._server()
    turns = (Message("user", ""), Message("assistant", "")) * 20
    requests = (Request(messages=some, arrived_at=0.0, request_id="r") for some in (turns[:1], turns))
    one, many = [await length_of(server, request, Prefix()) for request in requests]
    roles = sum(len(turn.role) for turn in turns[1:])
    assert one <= TEMPLATE_TOKENS
    assert many - one - roles <= MESSAGE_TOKENS * (len(turns) - 1)
