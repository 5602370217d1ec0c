from __future__ import annotations

from pathlib import Path

import pytest

from discostream.core.cost import ModelShape
from discostream.engine import shape as shapes
from discostream.engine.shape import model_shape
from discostream.errors import EngineError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2_path: Path) -> None:
    monkeypatch.setenv("DISCO_CACHE", str(tmp_path / "cache"))


def test_the_shape_of_smollm2_is_exact_and_remembered(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are those of the model card, and the second look does not read the file again."""
    expected = ModelShape(
        parameters=134_515_008, vocabulary=49_152, width=576, layers=30, context_tokens=8192
    )
    assert model_shape(smollm2_path) == expected
    monkeypatch.setattr(shapes, "_read_shape", pytest.fail)
    assert model_shape(smollm2_path) == expected


def test_a_damaged_gguf_is_an_engine_error(tmp_path: Path) -> None:
    """Bytes that only begin like GGUF are refused with the file's name."""
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 1000)
    with pytest.raises(EngineError, match=r"damaged\.gguf: not a sound GGUF file"):
        model_shape(path)


def test_a_missing_file_is_an_engine_error(tmp_path: Path) -> None:
    """A file that is not there is refused with its name."""
    with pytest.raises(EngineError, match=r"none\.gguf: cannot be read"):
        model_shape(tmp_path / "none.gguf")


def test_a_remembered_shape_that_is_unreadable_is_read_anew(smollm2_path: Path) -> None:
    """A damaged file in the cache costs time, not the answer."""
    remembered = shapes._remembered_at(smollm2_path)
    remembered.parent.mkdir(parents=True)
    remembered.write_text("{")
    assert model_shape(smollm2_path).layers == 30


def test_a_cache_that_cannot_be_written_is_no_obstacle(smollm2_path: Path, tmp_path: Path) -> None:
    """Where nothing can be remembered, nor tidied up behind the attempt, the shape is there all the same."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "shapes").touch()
    assert model_shape(smollm2_path).layers == 30
