"""The numbers of a model that decide its energy, read from its GGUF file."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from discostream.core.cost import ModelShape
from discostream.engine.catalogue import cache_folder
from discostream.errors import EngineError

__all__ = ["model_shape"]


def model_shape(path: Path) -> ModelShape:
    """A GGUF model's shape.

    Reading the metadata takes seconds, as it holds the whole tokenizer; the answer is kept in the cache
    folder for as long as the file stays the same.

    Raises:
        EngineError: The file is no GGUF file, or a damaged one.
    """
    remembered = _remembered_at(path)
    try:
        return msgspec.json.decode(remembered.read_bytes(), type=ModelShape)
    except (OSError, msgspec.DecodeError):
        shape = _read_shape(path)
    _remember(shape, remembered)
    return shape


def _remembered_at(path: Path) -> Path:
    try:
        status = path.stat()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
    key = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    return cache_folder() / "shapes" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _remember(shape: ModelShape, remembered: Path) -> None:
    part = remembered.with_suffix(f".{os.getpid()}.part")
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.encode(shape))
        os.replace(part, remembered)
    except OSError:  # a cache that cannot be written costs time, nothing else
        with suppress(OSError):
            part.unlink()


def _read_shape(path: Path) -> ModelShape:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        architecture = _value(reader, "general.architecture")
        return ModelShape(
            parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
            vocabulary=_vocabulary(reader, architecture),
            width=int(_value(reader, f"{architecture}.embedding_length")),
            layers=int(_value(reader, f"{architecture}.block_count")),
            context_tokens=int(_value(reader, f"{architecture}.context_length")),
        )
    except Exception as error:  # the reader lets whatever broken bytes cause through
        raise EngineError(f"{path}: not a sound GGUF file: {error}") from error


def _vocabulary(reader: Any, architecture: str) -> int:
    key = f"{architecture}.vocab_size"
    return (
        int(_value(reader, key)) if key in reader.fields else len(reader.fields["tokenizer.ggml.tokens"].data)
    )


def _value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()
