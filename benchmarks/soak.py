"""A gateway under a crowd for minutes: nothing leaks, and its ledger says what its upstreams counted.

A hundred clients (`soak/load.py`, a process of its own) stream through the gateway in this process; a quarter
of them leaves early, some read slowly. Behind it are an upstream that is sound, one of whose answers three in
ten break in one of seven ways, and the embedded engine, which is killed now and then. After a warm-up and
again at the end, when all clients are gone, everything is counted that could have been left behind: asyncio
tasks, file descriptors (sockets among them), threads (but a pool's), child processes, busy slots of the
engine, running attempts, and memory.

Then every attempt in the ledger is compared with what the mock upstreams counted for its request:

- one that finished (it won, or took over, in an answer that came to its end) has exactly the prompt and
  completion tokens that the upstream told at its end;
- any other was cancelled or failed: it has at most the completion tokens that the upstream had put on the
  wire when it saw the connection close, and may have no counterpart only if it brought no token;
- nothing that an upstream was asked for is missing in the ledger;
- a client that got a whole answer of the mock upstreams got all words in their order, as many as the ledger
  says, and every request is settled once (not at all only where its client left).

    python benchmarks/soak.py [--minutes 3] [--streams 100] [--seed 1] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import anyio
import psutil
from aiohttp import web

from discostream.cli.status import FAILURE, INTERRUPTED
from discostream.config import Settings, settings_from
from discostream.endpoints.llamacpp import LlamaCppEndpoint
from discostream.gateway.app import build_app, listen
from discostream.ledger.outcomes import history
from discostream.library import Disco, connect
from discostream.types import Attempt, AttemptOutcome, Outcome

WARM_UP = 0.15
"""How long everything runs before it is counted first, as a part of the whole."""
KILLS_S = 5.0, 15.0
"""From the engine's start to its end, at least and at most."""
QUIET_S = 45.0
"""How long counts may take to come down: kept connections, and an engine that is started again."""
KEPT_S = 5.0
"""By then upstream connections are closed that might have been used again."""
MOST_GROWTH_MB = 20.0
IDLE_WORKER = "AnyIO worker"
"""Threads of a pool that has at most forty, and ends idle ones only when it is used again."""
FINISHED = AttemptOutcome.WON, AttemptOutcome.MIGRATED_TO


def load_script() -> ModuleType:
    """The load's own module, for its names and its types."""
    spec = importlib.util.spec_from_file_location("load", Path(__file__).with_suffix("") / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["load"] = module
    spec.loader.exec_module(module)
    return module


load = load_script()


@dataclass(frozen=True)
class Design:
    """How much of it: for how long, how many streams at a time, and by which luck."""

    minutes: float
    streams: int
    seed: int


@dataclass(frozen=True)
class Count:
    """What is there while nobody asks for anything."""

    tasks: int
    descriptors: int
    threads: int
    children: int
    busy_slots: int
    running: int
    rss_mb: float


@dataclass(frozen=True)
class Check:
    """One thing that has to hold."""

    what: str
    found: float
    wanted: str
    holds: bool


@dataclass(frozen=True)
class Told:
    """What the load saw, and the gateway's ledger."""

    asked: Sequence[Any]
    answered: Sequence[Any]
    outcomes: Sequence[Outcome]


@dataclass(frozen=True)
class Report:
    """How it went."""

    design: Design
    before: Count
    after: Count
    kills: int
    requests: Mapping[str, int]
    attempts: Mapping[str, int]
    faults: Mapping[str, int]
    checks: Sequence[Check]

    @property
    def holds(self) -> bool:
        """Whether nothing leaked and all sums are right."""
        return all(check.holds for check in self.checks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak and print; 1 if anything leaked or does not add up, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--streams", type=int, default=100, help="at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.minutes <= 0 or chosen.streams < 1:
        parser.error("--minutes must be above 0, and --streams at least 1")
    design = Design(chosen.minutes, chosen.streams, chosen.seed)
    uvloop = {"use_uvloop": importlib.util.find_spec("uvloop") is not None}
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = anyio.run(soak, design, Path(folder), backend_options=uvloop)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps({**asdict(report), "holds": report.holds}, indent=2) if chosen.json else as_text(report))
    return 0 if report.holds else FAILURE


async def soak(design: Design, folder: Path) -> Report:
    """Warm up, count, run, count again, and compare."""
    seconds, seen, ledger = design.minutes * 60, folder / "seen.json", folder / "ledger.db"
    async with the_load(design.seed, seen) as load_process:
        ports = json.loads(await hear(load_process))
        async with connect(settings(ports, ledger)) as disco, serving(disco) as base_url:
            await disco.ready()
            await tell(load_process, base_url)
            await tell(load_process, f"{WARM_UP * seconds} {design.streams}")
            await hear(load_process)
            before = await quiet(disco)
            async with killing(engine_of(disco), random.Random(design.seed)) as killed:
                await tell(load_process, f"{seconds} {design.streams}")
                await hear(load_process)
            after = await quiet(disco, before)
        assert load_process.stdin is not None
        load_process.stdin.close()
        await load_process.wait()
    outcomes = [outcome for _, outcome in history(ledger, 10**9)]
    told = json.loads(seen.read_text(encoding="utf-8"))
    asked = [load.Asked(**each) for each in told["asked"]]
    answered = [load.Answered(**each) for each in told["answered"]]
    return report_on(design, before, after, len(killed), Told(asked, answered, outcomes))


def settings(ports: Mapping[str, int], ledger: Path) -> Settings:
    """Two upstreams that race, and the engine, which goes on where nobody else can."""
    server = {"kind": "server", "dialect": "openai", "model": "mock", "read_timeout_s": 3.0}
    server["continuation"] = "continue_final_message"
    prices = {load.STEADY: (0.5, 0.4), load.FLAKY: (0.5, 2.0)}
    upstreams = [
        {
            **server,
            "name": name,
            "base_url": f"http://127.0.0.1:{port}/v1",
            "prompt_usd_per_mtok": prices[name][0],
            "completion_usd_per_mtok": prices[name][1],
        }
        for name, port in ports.items()
    ]
    laptop = {
        "name": load.LAPTOP,
        "kind": "device",
        "dialect": "llamacpp",
        "model": "smollm2-135m-instruct",
        "threads": 1,
        "prompt_usd_per_mtok": 100.0,
        "completion_usd_per_mtok": 100.0,
    }
    return settings_from(
        {
            "endpoint": [*upstreams, laptop],
            "policy": {"name": "offsets", "offsets": dict.fromkeys(ports, 0.0)},
            "gateway": {"port": 0},
            "ledger": {"path": str(ledger)},
        }
    )


@asynccontextmanager
async def serving(disco: Disco) -> AsyncIterator[str]:
    """The gateway on a free port, as `disco serve` runs it, but in this process."""
    runner = web.AppRunner(build_app(disco), handler_cancellation=True, access_log=None, shutdown_timeout=3.0)
    with listen(disco.settings.gateway) as listener:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def the_load(seed: int, seen: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The load as a process; killed if it does not end by itself."""
    script = str(Path(__file__).with_suffix("") / "load.py")
    pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    options = "--seed", str(seed), "--file", str(seen)
    process = await asyncio.create_subprocess_exec(sys.executable, script, *options, **pipes)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def tell(process: asyncio.subprocess.Process, line: str) -> None:
    """Have the load do something."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    await process.stdin.drain()


async def hear(process: asyncio.subprocess.Process) -> str:
    """What it says next."""
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode().strip()
    if not line:
        raise SystemExit("the load died; what it said is above")
    return line


def engine_of(disco: Disco) -> LlamaCppEndpoint:
    """The endpoint with the embedded engine."""
    endpoint = disco.endpoints[load.LAPTOP]
    assert isinstance(endpoint, LlamaCppEndpoint)
    return endpoint


@asynccontextmanager
async def killing(endpoint: LlamaCppEndpoint, luck: random.Random) -> AsyncIterator[list[int]]:
    """Kill the engine now and then; whom so far."""
    killed: list[int] = []

    async def kill() -> None:
        while endpoint.engine is not None:
            await anyio.sleep(luck.uniform(*KILLS_S))
            if (pid := endpoint.engine.pid) is not None and pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        yield killed
        tasks.cancel_scope.cancel()


async def quiet(disco: Disco, wanted: Count | None = None) -> Count:
    """The counts, once they are as wanted or do not come down any more."""
    until = anyio.current_time() + QUIET_S
    if wanted is None:
        await anyio.sleep(KEPT_S)
    count = await count_all(disco)
    while not is_quiet(count, wanted) and anyio.current_time() < until:
        await anyio.sleep(0.5)
        count = await count_all(disco)
    return count


def is_quiet(count: Count, wanted: Count | None) -> bool:
    """Whether nothing runs, and nothing is left that was not there before."""
    idle = count.busy_slots == count.running == 0
    return idle and (wanted is None or all(check.holds for check in left_behind(wanted, count)))


async def count_all(disco: Disco) -> Count:
    """What there is at this moment."""
    gc.collect()
    us = psutil.Process()
    return Count(
        tasks=len(asyncio.all_tasks()),
        descriptors=us.num_fds(),
        threads=sum(not thread.name.startswith(IDLE_WORKER) for thread in threading.enumerate()),
        children=len(us.children(recursive=True)),
        busy_slots=await busy_slots(engine_of(disco)),
        running=sum(disco._running.values()),
        rss_mb=us.memory_info().rss / 2**20,
    )


async def busy_slots(endpoint: LlamaCppEndpoint) -> int:
    """How many requests the engine serves."""
    assert endpoint.engine is not None
    address = await endpoint.engine.address()
    headers = {"Authorization": f"Bearer {address.api_key}"}
    try:
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{address.base_url}/slots") as response,
        ):
            return sum(slot["is_processing"] for slot in await response.json())
    except aiohttp.ClientError:
        return -1  # it has just died, and is not idle before it is back


def report_on(design: Design, before: Count, after: Count, kills: int, told: Told) -> Report:
    """All checks, and how much there was of everything."""
    attempts = [attempt for outcome in told.outcomes for attempt in outcome.attempts]
    return Report(
        design=design,
        before=before,
        after=after,
        kills=kills,
        requests=dict(Counter(each.ended for each in told.answered)),
        attempts=dict(Counter(attempt.outcome.value for attempt in attempts)),
        faults=dict(Counter(each.fault for each in told.asked if each.fault)),
        checks=[*left_behind(before, after), *compared(told)],
    )


def left_behind(before: Count, after: Count) -> Iterator[Check]:
    """Nothing is."""
    for name in ("tasks", "descriptors", "threads", "children"):
        there, found = getattr(before, name), getattr(after, name)
        yield Check(name, found, f"at most {there}, as before", found <= there)
    yield Check("busy slots of the engine", after.busy_slots, "0", after.busy_slots == 0)
    yield Check("running attempts", after.running, "0", after.running == 0)
    growth_mb = after.rss_mb - before.rss_mb
    yield Check("growth of memory, MB", growth_mb, f"below {MOST_GROWTH_MB:g}", growth_mb < MOST_GROWTH_MB)


def compared(told: Told) -> Iterator[Check]:
    """The ledger with what the upstreams and the clients saw."""
    pairs, unasked = paired(told)
    finished = [(attempt, asked) for attempt, asked, done in pairs if done]
    others = [(attempt, asked) for attempt, asked, done in pairs if not done]
    for name, theirs in (("prompt_tokens", "prompt_tokens"), ("completion_tokens", "told")):
        ours_sum = sum(getattr(attempt, name) for attempt, _ in finished)
        theirs_sum = sum(getattr(asked, theirs) or 0 for _, asked in finished)
        alike = all(getattr(attempt, name) == getattr(asked, theirs) for attempt, asked in finished)
        what = f"{name} of the {len(finished)} finished attempts"
        yield Check(what, ours_sum, f"{theirs_sum}, each alike", alike and ours_sum == theirs_sum)
    ours_sum = sum(attempt.completion_tokens for attempt, _ in others)
    on_wire = sum(asked.words for _, asked in others)
    within = all(attempt.completion_tokens <= asked.words for attempt, asked in others)
    what = f"completion_tokens of the {len(others)} others"
    yield Check(what, ours_sum, f"at most {on_wire}, each within its own", within)
    silent = all(attempt.completion_tokens == 0 and not done for attempt, done in unasked)
    yield Check("attempts that reached no upstream", len(unasked), "no token in any", silent)
    missing = len(told.asked) - len(pairs)
    yield Check("upstream requests that no attempt accounts for", missing, "0", missing == 0)
    yield from settled(told)


def settled(told: Told) -> Iterator[Check]:
    """Every request once, and whole answers as they came."""
    times = Counter(outcome.request_id for outcome in told.outcomes)
    stayed = [each for each in told.answered if each.ended != "left"]
    once = all(times[str(each.request)] == 1 for each in stayed) and max(times.values(), default=0) <= 1
    yield Check("requests that are settled", len(times), f"of {len(told.answered)}, those that stayed", once)
    outcomes = {outcome.request_id: outcome for outcome in told.outcomes}
    by_mocks = [
        each
        for each in told.answered
        if each.ended == "whole" and (outcome := outcomes.get(str(each.request))) and not by_engine(outcome)
    ]
    words = sum(each.words for each in by_mocks)
    tokens = sum(outcomes[str(each.request)].completion_tokens for each in by_mocks)
    yield Check("words of whole answers, all in order", words, f"{tokens}", all(e.sound for e in by_mocks))
    alike = all(each.words == outcomes[str(each.request)].completion_tokens for each in by_mocks)
    yield Check("tokens of whole answers", tokens, f"{words}, each alike", alike)


def by_engine(outcome: Outcome) -> bool:
    """Whether the engine wrote any of it: it does not count, and knows nothing of the others' words."""
    return load.LAPTOP in {outcome.winner, *(move.target for move in outcome.migrations)}


def paired(told: Told) -> tuple[list[tuple[Attempt, Any, bool]], list[tuple[Attempt, bool]]]:
    """Every attempt with what its upstream saw of it, and whether it finished; and those without.

    Where one endpoint was tried more than once for a request, it saw them in the same order; those that it
    did not see are the ones without a token.
    """
    seen: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for asked in told.asked:
        seen[str(asked.request), asked.upstream].append(asked)
    pairs, unasked = [], []
    for outcome in told.outcomes:
        by_endpoint: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in outcome.attempts:
            if attempt.endpoint != load.LAPTOP and attempt.outcome is not AttemptOutcome.NOT_STARTED:
                by_endpoint[attempt.endpoint].append(attempt)
        for endpoint, attempts in by_endpoint.items():
            theirs = seen[outcome.request_id, endpoint]
            unseen = len(attempts) - len(theirs)
            for attempt in attempts:
                done = outcome.finish_reason is not None and attempt.outcome in FINISHED
                if unseen > 0 and (not attempt.completion_tokens or not theirs):
                    unseen -= 1
                    unasked.append((attempt, done))
                else:
                    pairs.append((attempt, theirs.pop(0), done))
    return pairs, unasked


def as_text(report: Report) -> str:
    """The report for people."""
    design = report.design
    lines = [
        f"{design.streams} streams for {design.minutes:g} minutes, seed {design.seed}; {report.kills} kills",
        f"requests: {_listed(report.requests)}",
        f"attempts: {_listed(report.attempts)}",
        f"faults:   {_listed(report.faults)}",
        f"memory:   {report.before.rss_mb:.1f} MB before, {report.after.rss_mb:.1f} MB after",
        "",
    ]
    width = max(len(check.what) for check in report.checks)
    for check in report.checks:
        verdict = "holds" if check.holds else "FAILS"
        lines.append(f"{verdict}  {check.what.ljust(width)}  {check.found:>10,.6g}  (wanted: {check.wanted})")
    return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
