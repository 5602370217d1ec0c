"""Keeps one embedded llama.cpp running: starts it, watches it, starts it again."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import anyio
import platformdirs

from discostream.errors import EngineError

__all__ = ["Engine", "EngineAddress", "EngineSettings"]

POLL_S = 0.02
START_TIMEOUT_S = 600.0
"""A large model from a cold, slow disk takes minutes to load."""
HEALTH_EVERY_S = 5.0
HEALTH_TIMEOUT_S = 5.0
HEALTH_MISSES = 6
FAILED_STARTS = 3
FIRST_RESTART_S = 0.1
SLOWEST_RESTART_S = 30.0
HEALTHY_S = 60.0
"""A child that ran this long is forgiven the crashes before."""
GRACE_S = 2.0
LOG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What one child is started with.

    Attributes:
        model: The GGUF file.
        threads: Computing threads; 0 lets llama.cpp take every physical core.
        context_tokens: The longest prompt and answer together, per slot.
        slots: Requests served at a time.
        batch_tokens: Prompt tokens computed between two looks at whether the request was cancelled; the
            default by benchmarks/cancel_prefill.py.
    """

    model: Path
    threads: int = 0
    context_tokens: int = 4096
    slots: int = 2
    batch_tokens: int = 128


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where a running child listens, and the key it asks for."""

    base_url: str
    api_key: str = field(repr=False)


class Engine:
    """One embedded llama.cpp server, kept running by a thread of its own.

    The thread is independent of any event loop; `address` may be awaited under asyncio and trio alike.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._address: EngineAddress | None = None
        self._failure: str | None = None

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.pid else "not running"
        return f"<Engine {self.settings.model.name!r} ({state})>"

    @property
    def pid(self) -> int | None:
        """The child's process ID while there is a child."""
        process = self._process
        return process.pid if process and process.returncode is None else None

    def start(self) -> None:
        """Begin to start the child, without waiting for it. Does nothing while the engine runs."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._stopping.clear()
            self._failure = None
            self._thread = threading.Thread(target=self._keep_running, name="disco-engine", daemon=True)
            self._thread.start()
            atexit.register(self.stop)

    def stop(self) -> None:
        """End the child and its supervision, and return when both are gone. Safe to call twice."""
        with self._lock:
            self._stopping.set()
            thread, process = self._thread, self._process
        atexit.unregister(self.stop)
        if process is not None:
            _end(process)
        if thread is not None:
            thread.join()

    async def address(self) -> EngineAddress:
        """Where the child listens, as soon as it does.

        Raises:
            EngineError: It was not started, was stopped, or cannot be brought up.
        """
        while (address := self._address) is None:
            if self._failure is not None:
                raise EngineError(self._failure)
            if self._thread is None or not self._thread.is_alive():
                raise EngineError("the embedded engine is not running")
            await anyio.sleep(POLL_S)
        return address

    def _try_child(self) -> tuple[float | None, str]:
        """As `_run_child`; a machine that is out of processes, memory or disk may have some again later."""
        try:
            return self._run_child()
        except OSError as error:
            return None, str(error)

    def _keep_running(self) -> None:
        crashes = failed_starts = 0
        was_ready = False
        while True:
            served_s, last_words = self._try_child()
            if self._stopping.is_set():
                return
            was_ready = was_ready or served_s is not None
            failed_starts = failed_starts + 1 if served_s is None else 0
            if failed_starts >= FAILED_STARTS:
                self._failure = f"the embedded engine does not start: {last_words}"
                if not was_ready:
                    return
            crashes = 1 if served_s and served_s > HEALTHY_S else crashes + 1
            self._stopping.wait(min(FIRST_RESTART_S * 2 ** (crashes - 1), SLOWEST_RESTART_S))

    def _run_child(self) -> tuple[float | None, str]:
        """For how many seconds one child served, `None` when it never did, and its last words."""
        with _open_log() as log:
            begins = log.tell()
            process = self._spawn(log)
            if process is None:
                return None, "stopped"
            assert process.stdout
            with process.stdout:
                try:
                    served_s, complaint = self._serve(process)
                finally:
                    self._address = None
                    _end(process)
            return served_s, f"{complaint}; {_tail(Path(log.name), begins)}"

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "discostream.engine.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            return self._process

    def _serve(self, process: subprocess.Popen[bytes]) -> tuple[float | None, str]:
        api_key = secrets.token_urlsafe(32)
        answer = _introduce(process, self.settings, api_key)
        if "address" not in answer:
            _end(process)
            return None, answer.get("error") or f"exit status {process.returncode}"
        address = EngineAddress(answer["address"], api_key)
        gone = threading.Event()
        prober = threading.Thread(target=_look_after, args=(process, address, gone), daemon=True)
        since = time.monotonic()
        self._address, self._failure = address, None
        prober.start()
        status = process.wait()
        gone.set()
        return time.monotonic() - since, f"exit status {status}"


def _introduce(process: subprocess.Popen[bytes], settings: EngineSettings, api_key: str) -> dict[str, str]:
    """The child's one line of answer to its settings; empty when it died without a word."""
    assert process.stdin
    assert process.stdout
    too_slow = threading.Timer(START_TIMEOUT_S, process.kill)
    too_slow.daemon = True
    too_slow.start()
    try:
        line = json.dumps({**asdict(settings), "model": str(settings.model), "api_key": api_key})
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
        lines = (line for line in process.stdout if line.startswith(b"{"))  # a site hook may print first
        answer: dict[str, str] = json.loads(next(lines, b"{}"))
        return answer
    except (OSError, ValueError):  # its pipes are closed
        return {}
    finally:
        too_slow.cancel()


def _look_after(process: subprocess.Popen[bytes], address: EngineAddress, gone: threading.Event) -> None:
    """Kill the child when it is deaf; and keep the log short, which refused requests fill."""
    misses = 0
    while not gone.wait(HEALTH_EVERY_S):
        with suppress(OSError):
            _empty_if_large(_log_path())
        misses = 0 if _is_healthy(address) else misses + 1
        if misses == HEALTH_MISSES:
            process.kill()
            return


def _is_healthy(address: EngineAddress) -> bool:
    """Whether the child answers, without regard to the user's proxies."""
    connection = HTTPConnection(urlsplit(address.base_url).netloc, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the child go by closing its input; insist when it does not."""
    assert process.stdin
    for insist in (process.stdin.close, process.terminate, process.kill):
        try:
            insist()
            process.wait(GRACE_S)
            break
        except (subprocess.TimeoutExpired, OSError):
            continue


def _log_path() -> Path:
    return platformdirs.user_log_path("discostream", appauthor=False, ensure_exists=True) / "engine.log"


def _open_log() -> IO[bytes]:
    """The log file that children write to, at its end; emptied when it has grown large."""
    path = _log_path()
    _empty_if_large(path)
    log = path.open("ab")
    log.seek(0, os.SEEK_END)
    return log


def _empty_if_large(path: Path) -> None:
    if path.exists() and path.stat().st_size > LOG_BYTES:
        os.truncate(path, 0)


def _tail(path: Path, begins: int, lines: int = 3) -> str:
    """The last lines written since `begins`, or since the log was emptied; and where the rest is."""
    with path.open("rb") as log:
        log.seek(begins if begins <= path.stat().st_size else 0)
        said = log.read().decode(errors="replace").splitlines()
    return " | ".join([*said[-lines:], f"log: {path}"])
