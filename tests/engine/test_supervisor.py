"""Supervision is tested on real children, with deadlines far beyond what they need."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import psutil
import pytest

from discostream.engine import supervisor
from discostream.engine.supervisor import Engine, EngineAddress, EngineSettings
from discostream.errors import EngineError

DEADLINE_S = 60.0
pytestmark = pytest.mark.anyio
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

PARENT = """
import sys, time, anyio
from pathlib import Path
from discostream.engine.supervisor import Engine, EngineSettings
engine = Engine(EngineSettings(model=Path(sys.argv[1]), context_tokens=256))
engine.start()
if sys.argv[2] == "ready":
    anyio.run(engine.address)
while engine.pid is None:
    time.sleep(0.01)
print(engine.pid, flush=True)
if sys.argv[3] == "stay":
    time.sleep(600)
"""


@contextmanager
def running(model: Path) -> Iterator[Engine]:
    engine = Engine(EngineSettings(model=model, context_tokens=256))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@contextmanager
def parent_of_an_engine(model: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process with an engine, and its child's process ID."""
    command = [sys.executable, "-c", PARENT, str(model), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        try:
            yield parent, int(parent.stdout.readline())
        finally:
            parent.kill()


def eventually(is_true: Callable[[], bool], within_s: float = DEADLINE_S) -> bool:
    deadline = time.monotonic() + within_s
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def get(address: EngineAddress, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(address.base_url).netloc, timeout=DEADLINE_S)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
        return response
    finally:
        connection.close()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_the_address_may_be_awaited_under_both_backends(engine: Engine) -> None:
    """A started engine gives its address to asyncio and to trio, and answers there."""
    address = await engine.address()
    assert get(address, "/health").status == 200


async def test_start_and_stop_may_be_called_twice(smollm2_path: Path) -> None:
    """Starting again starts no second child; after stopping, twice, none is left and none can be had."""
    with running(smollm2_path) as engine:
        address = await engine.address()
        pid = engine.pid
        engine.start()
        assert (await engine.address(), engine.pid) == (address, pid)
        assert pid is not None
        engine.stop()
        engine.stop()
        assert is_gone(pid)
        with pytest.raises(EngineError, match="not running"):
            await engine.address()


async def test_an_engine_that_was_never_started_has_no_address(smollm2_path: Path) -> None:
    """Asking for an address starts nothing."""
    with pytest.raises(EngineError, match="not running"):
        await Engine(EngineSettings(model=smollm2_path)).address()


def test_stopping_while_the_model_loads_leaves_no_child(smollm2_path: Path) -> None:
    """A child that has not come up yet is ended too."""
    with running(smollm2_path) as engine:
        assert eventually(lambda: engine.pid is not None)
        pid = engine.pid
    assert pid is not None
    assert is_gone(pid)


def test_what_a_child_logs_is_bounded(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """llama.cpp writes each grammar that it cannot read into the log, which is emptied while it runs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(supervisor, "HEALTH_EVERY_S", 0.05)
    monkeypatch.setattr(supervisor, "LOG_BYTES", 20_000)
    body = json.dumps({"prompt": "a", "grammar": "root ::= (" + "x" * 10_000}).encode()
    with running(smollm2_path) as engine:
        address = anyio.run(engine.address)
        for _ in range(10):
            asked = urllib.request.Request(f"{address.base_url}/completion", body)
            asked.add_header("Authorization", f"Bearer {address.api_key}")
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(asked, timeout=DEADLINE_S)
            time.sleep(0.1)
        log = supervisor._log_path()
        assert log.is_relative_to(tmp_path)
        assert log.stat().st_size < 40_000


@posix_only
async def test_a_killed_child_comes_back_with_a_new_key(smollm2_path: Path) -> None:
    """After kill -9 the engine is up again by itself, under another key."""
    with running(smollm2_path) as engine:
        before, pid = await engine.address(), engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: engine.pid not in (pid, None))
        with anyio.fail_after(DEADLINE_S):
            after = await engine.address()
        assert after.api_key != before.api_key
        assert get(after, "/slots", Authorization=f"Bearer {after.api_key}").status == 200


@posix_only
async def test_a_child_that_hangs_is_replaced(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is alive but does not answer its health check is killed and started again."""
    monkeypatch.setattr(supervisor, "HEALTH_EVERY_S", 0.2)
    monkeypatch.setattr(supervisor, "HEALTH_TIMEOUT_S", 2.0)
    monkeypatch.setattr(supervisor, "HEALTH_MISSES", 1)
    with running(smollm2_path) as engine:
        await engine.address()
        pid = engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert eventually(lambda: engine.pid not in (pid, None))
        with anyio.fail_after(DEADLINE_S):
            await engine.address()


@posix_only
@pytest.mark.parametrize("moment", ["ready", "loading"])
def test_a_killed_parent_takes_its_child_along(smollm2_path: Path, moment: str) -> None:
    """When the parent dies by SIGKILL, the child is gone within five seconds, even while it loads."""
    with parent_of_an_engine(smollm2_path, moment, "stay") as (parent, child):
        parent.kill()
        assert eventually(lambda: is_gone(child), within_s=5.0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it loads its model first")
def test_a_child_whose_parent_has_gone_before_it_began_ends(smollm2_path: Path) -> None:
    """A parent that dies while its child's Python starts sends it no signal, and is missed all the same."""
    settings = {**asdict(EngineSettings(model=smollm2_path)), "model": str(smollm2_path), "api_key": "k"}
    child = [sys.executable, "-P", "-m", "discostream.engine.child"]
    done = subprocess.run(child, input=json.dumps(settings).encode(), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, b"")


def test_an_engine_does_not_keep_the_interpreter(smollm2_path: Path) -> None:
    """A program that ends without stopping its engine ends, and so does the child."""
    with parent_of_an_engine(smollm2_path, "ready", "leave") as (parent, child):
        assert parent.wait(DEADLINE_S) == 0
        assert is_gone(child)


async def test_a_model_that_does_not_load_is_given_up_with_its_reason(tmp_path: Path) -> None:
    """After a few failed starts the error quotes llama.cpp; starting again tries again."""
    model = tmp_path / "broken.gguf"
    model.write_bytes(b"GGUF" + b"\xff" * 100)
    with running(model) as engine:
        for _ in range(2):
            with anyio.fail_after(DEADLINE_S):
                with pytest.raises(EngineError, match=r"does not start: .*broken\.gguf.*log: ") as raised:
                    await engine.address()
            assert "\n" not in str(raised.value)
            engine.start()


async def test_without_the_key_nothing_is_told(engine: Engine) -> None:
    """A request without the key gets 401, and no page of another origin may read any answer."""
    address = await engine.address()
    for path, status in (("/slots", 401), ("/props", 401), ("/health", 200)):
        response = get(address, path, Origin="https://evil.example")
        assert response.status == status
        assert not response.getheader("Access-Control-Allow-Origin")


async def test_the_key_shows_nowhere(engine: Engine) -> None:
    """The key is in no repr, and neither in the child's command line nor in its environment."""
    address = await engine.address()
    child = psutil.Process(engine.pid)
    places = [repr(address), repr(engine), *child.cmdline(), *child.environ().values()]
    assert not any(address.api_key in place for place in places)


async def test_an_engine_that_cannot_be_spawned_for_a_moment_comes_back(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is out of processes for a moment does not end the engine for good."""
    spawned = subprocess.Popen
    refusals = iter([BlockingIOError(11, "Resource temporarily unavailable")])

    def spawn(*arguments: object, **options: object) -> object:
        for refusal in refusals:
            raise refusal
        return spawned(*arguments, **options)

    monkeypatch.setattr("discostream.engine.supervisor.subprocess.Popen", spawn)
    engine = Engine(EngineSettings(model=smollm2_path, context_tokens=256, threads=1))
    engine.start()
    try:
        assert (await engine.address()).base_url.startswith("http://127.0.0.1:")
    finally:
        engine.stop()
