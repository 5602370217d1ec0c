from __future__ import annotations

from pathlib import Path

import pytest

from discostream.engine.catalogue import CATALOGUE, find_model, is_intact, models_folder, resolve_model
from discostream.errors import ConfigError, EngineError

SMOLLM2 = CATALOGUE["smollm2-135m-instruct"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISCO_CACHE", str(tmp_path))
    return tmp_path


def test_the_fetched_model_is_the_right_one(smollm2_path: Path) -> None:
    """The embedded model is fetched with the hash that the catalogue states, and found again."""
    assert is_intact(smollm2_path, SMOLLM2.sha256)
    assert find_model(SMOLLM2.name) == smollm2_path
    assert resolve_model(SMOLLM2.name, fetch=False) == smollm2_path


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    """An existing GGUF file needs no catalogue."""
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF and the rest")
    assert resolve_model(path) == resolve_model(str(path)) == path


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    """Another kind of file is refused by its first bytes."""
    path = tmp_path / "page.gguf"
    path.write_bytes(b"<html>")
    with pytest.raises(EngineError, match=r"not a GGUF file .*b'<htm'"):
        resolve_model(path)


def test_a_missing_path_is_called_a_missing_file(tmp_path: Path) -> None:
    """What looks like a path is not mistaken for a catalogue name."""
    with pytest.raises(ConfigError, match=r"none\.gguf: no such file"):
        resolve_model(tmp_path / "none.gguf")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    """A slip in a model's name is answered with the name that was meant."""
    with pytest.raises(
        ConfigError, match="unknown model 'smollm-135m'; did you mean 'smollm2-135m-instruct'"
    ):
        resolve_model("smollm-135m")


def test_a_name_unlike_any_other_is_answered_with_all(cache: Path) -> None:
    """A name that resembles none is answered with the whole list."""
    with pytest.raises(ConfigError, match="there are: smollm2-135m-instruct"):
        resolve_model("qqqq")


def test_nothing_is_fetched_when_that_is_not_wanted(cache: Path) -> None:
    """With fetching off, a model that is not there is an error."""
    assert find_model(SMOLLM2.name) is None
    with pytest.raises(EngineError, match="not on this machine"):
        resolve_model(SMOLLM2.name, fetch=False)


def test_a_truncated_model_counts_as_missing(cache: Path) -> None:
    """A file of the wrong length in the cache is not taken for the model."""
    models_folder().mkdir()
    (models_folder() / SMOLLM2.file_name).write_bytes(b"GGUF")
    assert find_model(SMOLLM2.name) is None
