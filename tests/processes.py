"""`disco` as a process of its own: started, watched, and never left behind."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import pytest

TIMEOUT_S = 180.0
"""How long any command may take."""

SCRIPTED_PAIR = """
[[endpoint]]
name = "laptop"
kind = "device"
dialect = "scripted"
answer = "{answer}"
ttft_s = 0.05
tbt_s = 0.01

[[endpoint]]
name = "cloud"
kind = "server"
dialect = "scripted"
answer = "{answer}"
ttft_s = 0.2
tbt_s = 0.01

[policy]
name = "offsets"
offsets = {{ laptop = 0.0, cloud = 0.0 }}

[ledger]
path = "{ledger}"
"""


def write_scripted_pair(folder: Path, answer: str = "The sky is blue because it scatters light.") -> Path:
    """A `disco.toml` that needs no model."""
    path = folder / "disco.toml"
    ledger = (folder / "ledger.db").as_posix()
    path.write_text(SCRIPTED_PAIR.format(answer=answer, ledger=ledger), encoding="utf-8")
    return path


def disco(
    *arguments: str, folder: Path | None = None, typed: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, in a fork of a process that has imported everything."""
    if not hasattr(os, "fork"):
        return disco_anew(*arguments, folder=folder, typed=typed, **environ)
    with tempfile.TemporaryDirectory() as name:
        streams = [Path(name) / stream for stream in ("stdin", "stdout", "stderr")]
        for stream, text in zip(streams, (typed or "", "", ""), strict=True):
            stream.write_text(text, encoding="utf-8")
        status = _in_a_fork(
            arguments=arguments,
            folder=str(folder or Path.cwd()),
            environ={**os.environ, **environ},
            streams=[str(stream) for stream in streams],
        )
        _, told, complained = (stream.read_text(encoding="utf-8") for stream in streams)
    return subprocess.CompletedProcess(arguments, status, told, complained)


def on_a_terminal(*arguments: str, folder: Path, typed: bytes = b"", **environ: str) -> tuple[int, str]:
    """Run one command with a terminal for everything; its status, and what the screen was sent."""
    pty = pytest.importorskip("pty", reason="needs a POSIX terminal")
    ours, theirs = pty.openpty()
    os.write(ours, typed)
    process = subprocess.Popen(
        [sys.executable, "-m", "discostream", *arguments],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm", **environ},
    )
    os.close(theirs)
    screen = b""
    try:
        while data := os.read(ours, 65536):
            screen += data
    except OSError:
        pass  # how Linux says that the last writer has gone
    os.close(ours)
    return process.wait(timeout=60), screen.decode(errors="replace")


def disco_anew(
    *arguments: str, folder: Path | None = None, typed: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run one command from Python's start to its end."""
    return subprocess.run(
        [sys.executable, "-m", "discostream", *arguments],
        cwd=folder,
        input=typed,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def _in_a_fork(**call: object) -> int:
    forks = _forks()
    assert forks.stdin
    assert forks.stdout
    print(json.dumps(call), file=forks.stdin, flush=True)
    assert select.select([forks.stdout], [], [], TIMEOUT_S)[0], call
    return int(forks.stdout.readline())


@cache
def _forks() -> subprocess.Popen[str]:
    forks = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forks.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(forks.communicate)
    return forks


@dataclass
class Serving:
    """A running `disco serve`, and what it told before it served."""

    process: subprocess.Popen[str]
    base_url: str
    told: str = ""

    def children(self) -> list[psutil.Process]:
        """Its engine processes."""
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def disco_serve(config: Path, **environ: str) -> Iterator[Serving]:
    """A gateway on a free port, killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "discostream", "serve", "--config", str(config), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    assert process.stderr
    try:
        yield Serving(process, *_where(process.stderr))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _where(told: Iterable[str]) -> tuple[str, str]:
    """The address in what a gateway tells, and its warnings, which come first."""
    lines = []
    for line in told:
        if line.startswith("Serving "):
            return line.split()[1], "".join(lines)
        lines.append(line)
    raise AssertionError("".join(lines))
