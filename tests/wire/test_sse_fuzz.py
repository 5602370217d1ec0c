"""Streams as no server should send them: only our own errors, bounded memory, and splits that do not matter.

`DISCO_FUZZ_INPUTS=1000000 pytest tests/wire/test_sse_fuzz.py` tries a million, which takes some minutes.
"""

from __future__ import annotations

import os
import random

from discostream.types import Piece, Prompt
from discostream.wire.openai_answer import AnswerReader
from discostream.wire.openai_upstream import ChunkError
from discostream.wire.sse import SseDecoder, SseError

INPUTS = int(os.environ.get("DISCO_FUZZ_INPUTS", "40000"))
LIMIT = 64

PARTS = [
    *(bytes([byte]) for byte in b'\r\n:\x00\xff{}[]" ,ad0'),
    b"\r\n\r\n",
    b"\n\n",
    b"data",
    b"data:",
    b"data: ",
    b"event: ping",
    b"id: 1",
    b"retry: 9",
    b": comment",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"[DONE]",
    b"data: [DONE]\n\n",
    b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"error":{"message":"no"}}\n\n',
    b'{"choices":',
    b'"delta":{"content":',
    b"null",
    b"1e999",
    b"\\ud800",
    b"x" * 70,
    b"[" * 40,
]


def streams(seed: int, count: int) -> list[bytes]:
    """Random sequences of what streams are made of, well-formed or not."""
    rng = random.Random(seed)
    return [b"".join(rng.choices(PARTS, k=rng.randrange(1, 24))) for _ in range(count)]


def split(rng: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(rng.sample(range(len(data) + 1), min(rng.randrange(4), len(data))))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def decoded(pieces: list[bytes]) -> list[bytes] | str:
    """All payloads, or the error's words; never more held back than twice the limit."""
    decoder, payloads = SseDecoder(LIMIT), []
    try:
        for piece in pieces:
            payloads += decoder.feed(piece)
            assert len(decoder._line) + decoder._data_bytes <= 2 * LIMIT + len(piece)
        return payloads + decoder.end()
    except SseError as error:
        return str(error)


def test_the_decoder_withstands_anything():
    """Whatever comes, it is payloads or one error, and the same however the bytes are split."""
    rng = random.Random(1)
    for data in streams(2, INPUTS):
        whole = decoded([data])
        assert decoded(split(rng, data)) == whole, data


def test_an_answer_withstands_anything():
    """An upstream's answer is pieces, or an error that is translated; nothing else gets out of it."""
    rng = random.Random(3)
    for data in streams(4, INPUTS):
        answer, text = AnswerReader(), ""
        try:
            for piece in [*split(rng, data), b""]:
                for event in answer.feed(piece) if piece or not answer.over else ():
                    assert isinstance(event, Piece | Prompt), data
                    text += event.text if isinstance(event, Piece) else ""
        except (ChunkError, SseError):
            continue
        assert answer.finish_reason is not None, data
        assert text.encode().decode() == text, data
