"""What the gateway adds to a streamed answer, in time and in CPU, and what others would in its place.

A mock upstream (`gateway/upstream.py`) serves streams of 64 chunks to a load client (`gateway/client.py`),
each a process of its own, in turns

- direct;
- through a bare relay (`gateway/relay.py`) that parses and re-encodes every chunk: the floor for Python;
- through `disco serve` with two endpoints, migration armed and the ledger on: with one of them started and
  the other standing by, and with both racing. The other decodes for less, so that a move is weighed, but has
  the prompt read for so much more that no answer is long enough for one to pay;
- through LiteLLM's proxy, one worker and no database, from a virtual environment of its own (`--litellm`).

What is added is a quantile of all rounds together, less that of the direct answers: of TTFT, and of how much
farther apart two chunks came than they were sent. CPU (user and system, of the process and its children) and
chunks/s are those of the median round. Any chunk that is missing, doubled or out of order, and any answer
that is not whole, makes the exit status 1. Run it alone on the machine; it takes about eight minutes:

    python benchmarks/gateway.py [--json] [--quick] [--litellm FOLDER [--install-litellm]]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from discostream.cli.screen import count_bar
from discostream.cli.status import FAILURE, INTERRUPTED

PARTS = Path(__file__).with_suffix("")
UPSTREAM: tuple[str, ...] = (sys.executable, str(PARTS / "upstream.py"))
CLIENT = (sys.executable, str(PARTS / "client.py"))
RELAY = (sys.executable, str(PARTS / "relay.py"))
DISCO = (sys.executable, "-m", "discostream", "serve")
LITELLM_VERSION = "1.106.2"

HEALTHY_S = 60.0
"""How long a process may take to start."""

RUN_S = 180.0
"""How long one load may take."""

LOOK_S = 1.0
"""How long to see before whether the machine is free."""

ENDING_S = 5.0
"""How long a process may take to end by itself."""

DIRECT, BARE, ONE, RACE, LITELLM = "direct", "bare relay", "discostream", "discostream racing", "LiteLLM"

DISCO_TOML = """
[[endpoint]]
name = "server"
kind = "server"
dialect = "openai"
base_url = "{upstream}"
model = "mock"
continuation = "continue_final_message"
prompt_usd_per_mtok = 0.15
completion_usd_per_mtok = 0.60

[[endpoint]]
name = "device"
kind = "device"
dialect = "openai"
base_url = "{upstream}"
model = "mock"
continuation = "continue_final_message"
prompt_usd_per_mtok = 15.0
completion_usd_per_mtok = 0.50

[policy]
name = "offsets"
offsets = {{ {offsets} }}

[ledger]
path = "{ledger}"
"""

LITELLM_YAML = """
model_list:
  - model_name: mock
    litellm_params:
      model: openai/mock
      api_base: {upstream}
      api_key: unused
general_settings:
  dangerously_permit_weak_or_unset_master_key: true
"""


@dataclass(frozen=True)
class Load:
    """So many streams at a time, each a chunk every so many milliseconds; 0 sends all of them at once."""

    streams: int
    gap_ms: int

    def __str__(self) -> str:
        return f"{self.streams} at {self.gap_ms} ms" if self.gap_ms else f"{self.streams} unthrottled"


@dataclass(frozen=True)
class Design:
    """What is measured: the loads, how often in turns, and for how long each time."""

    loads: tuple[Load, ...] = (Load(1, 5), Load(10, 5), Load(50, 5), Load(100, 5), Load(10, 20), Load(50, 0))
    rounds: int = 3
    seconds: float = 4.0


QUICK = Design((Load(10, 5), Load(10, 0)), rounds=1, seconds=0.4)
WARM_UP = Load(4, 1), 0.2


@dataclass(frozen=True)
class Subject:
    """What clients may talk to.

    Attributes:
        command: What starts it; `--port` and a number are put behind.
        version: Of what it mostly is.
        model: What its clients ask for.
        health: What it answers as soon as it serves.
    """

    name: str
    command: tuple[str, ...]
    version: str
    model: str = "mock"
    health: str = "/health"
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A subject that serves.

    Attributes:
        start_s: How long it took until it did.
        rss_mb: The most memory that it was seen to hold.
    """

    subject: Subject
    process: psutil.Popen
    port: int
    start_s: float
    rss_mb: float = 0.0

    def cpu_s(self) -> float:
        """CPU seconds that it and its children have used; notes their memory by the way."""
        family = [self.process, *self.process.children(recursive=True)]
        self.rss_mb = max(self.rss_mb, sum(each.memory_info().rss for each in family) / 2**20)
        return float(sum(sum(each.cpu_times()[:2]) for each in family))


@dataclass(frozen=True)
class Round:
    """One load through one subject once: what the client told, CPU and upstream requests for each request."""

    told: Mapping[str, Any]
    cpu_ms: float
    asked: float


@dataclass(frozen=True)
class Row:
    """One load through one subject, all rounds together.

    Attributes:
        ttft_ms: At the median and at the 99th percentile; `None` where it is nothing but queueing.
        gap_ms: By how much chunks came farther apart than they were sent, likewise.
        cpu_ms: For each request, the median round's.
        chunks_per_s: While all streams ran, the median round's.
        asked: Upstream requests for each request.
        errors: Answers that are not whole, by what is wrong with them.
    """

    load: Load
    subject: str
    requests: int
    ttft_ms: tuple[float, float] | None
    gap_ms: tuple[float, float] | None
    cpu_ms: float
    chunks_per_s: float
    asked: float
    errors: Mapping[str, int]
    missing: int
    doubled: int
    reordered: int

    @property
    def faultless(self) -> bool:
        """Whether every answer came whole and in order."""
        return not (self.errors or self.missing or self.doubled or self.reordered)


@dataclass(frozen=True)
class Target:
    """A figure that should be at most, or at least, so much."""

    what: str
    figure: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit


@dataclass(frozen=True)
class Footprint:
    """What a subject takes besides: the median start, and the most memory that it was seen to hold."""

    name: str
    version: str
    start_s: float
    rss_mb: float


@dataclass(frozen=True)
class Told:
    """Everything that was measured, why the rest was not, and how busy others kept the machine before."""

    busy_percent: float
    rows: tuple[Row, ...]
    footprints: tuple[Footprint, ...]
    skipped: Mapping[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if any answer was not whole and in order, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="see in some seconds that everything works")
    parser.add_argument("--rounds", type=int, default=Design.rounds)
    parser.add_argument("--seconds", type=float, default=Design.seconds, help="of each load in each round")
    parser.add_argument("--litellm", type=Path, metavar="FOLDER", help="LiteLLM's virtual environment")
    parser.add_argument("--install-litellm", action="store_true", help="install it there, if it is not")
    chosen = parser.parse_args(arguments)
    if chosen.install_litellm and chosen.litellm is None:
        parser.error("--install-litellm: needs --litellm FOLDER to install it in")
    if chosen.rounds < 1 or chosen.seconds <= 0:
        parser.error("--rounds, --seconds: must be above 0")
    design = QUICK if chosen.quick else Design(rounds=chosen.rounds, seconds=chosen.seconds)
    try:
        if chosen.install_litellm and why_no_litellm(chosen.litellm):
            install_litellm(chosen.litellm)
        with tempfile.TemporaryDirectory() as folder:
            told = measure(design, Path(folder), chosen.litellm)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    print(as_json(told, design) if chosen.json else as_tables(told, design))
    return 0 if all(row.faultless for row in told.rows) else FAILURE


def measure(design: Design, folder: Path, litellm: Path | None) -> Told:
    """All rounds of all loads through all subjects."""
    reason, busy_percent = why_no_litellm(litellm), psutil.cpu_percent(interval=LOOK_S)
    rounds: dict[tuple[Load, str], list[Round]] = defaultdict(list)
    with ExitStack() as stack:
        upstream = stack.enter_context(running(Subject(DIRECT, UPSTREAM, "", health="/"), folder))
        between = subjects(folder, f"http://127.0.0.1:{upstream.port}/v1", None if reason else litellm)
        starts_s = [start_span(subject, folder, design.rounds) for subject in between]
        gateways = [stack.enter_context(running(subject, folder)) for subject in between]
        for each in gateways:
            run_once(each, upstream, *WARM_UP)
        order = list(turns(design, [upstream, *gateways]))
        with count_bar("Loads", len(order)) as advance:
            for load, each in order:
                rounds[load, each.subject.name].append(run_once(each, upstream, load, design.seconds))
                advance()
    return Told(
        busy_percent,
        tuple(summed_up(load, name, rounds[load, name]) for load, name in rounds),
        tuple(map(footprint, gateways, starts_s)),
        {LITELLM: reason} if reason else {},
    )


def turns(design: Design, serving: Sequence[Running]) -> Iterator[tuple[Load, Running]]:
    """Who is loaded with what, in order; whoever comes first in a round comes last in the next."""
    for number in range(design.rounds):
        first = number % len(serving)
        for load in design.loads:
            for each in (*serving[first:], *serving[:first]):
                yield load, each


def footprint(gateway: Running, start_s: float) -> Footprint:
    """What a gateway took."""
    return Footprint(gateway.subject.name, gateway.subject.version, start_s, gateway.rss_mb)


def subjects(folder: Path, upstream: str, litellm: Path | None) -> list[Subject]:
    """All that can stand between the client and the upstream here."""
    found = [
        Subject(BARE, (*RELAY, "--upstream", upstream), f"aiohttp {version('aiohttp')}"),
        disco_serve(folder, upstream, ONE, "server = 0.0"),
        disco_serve(folder, upstream, RACE, "server = 0.0, device = 0.0"),
    ]
    return found if litellm is None else [*found, litellm_proxy(folder, upstream, litellm)]


def disco_serve(folder: Path, upstream: str, name: str, offsets: str) -> Subject:
    """The gateway, with these start offsets."""
    config, ledger = folder / f"{name}.toml", (folder / f"{name}.db").as_posix()
    text = DISCO_TOML.format(upstream=upstream, offsets=offsets, ledger=ledger)
    config.write_text(text, encoding="utf-8")
    return Subject(name, (*DISCO, "--config", str(config)), version("discostream"), model="disco")


def litellm_proxy(folder: Path, upstream: str, venv: Path) -> Subject:
    """LiteLLM's proxy, which must not look for newer prices on the internet."""
    config = folder / "litellm.yaml"
    config.write_text(LITELLM_YAML.format(upstream=upstream), encoding="utf-8")
    options = "--config", str(config), "--host", "127.0.0.1", "--num_workers", "1"
    return Subject(
        LITELLM,
        (str(program(venv, "litellm")), *options),
        LITELLM_VERSION,
        health="/health/liveliness",
        environ={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
    )


def program(venv: Path, name: str) -> Path:
    """A program in a virtual environment."""
    path = venv / "Scripts" / f"{name}.exe" if os.name == "nt" else venv / "bin" / name
    return path.absolute()


def why_no_litellm(venv: Path | None) -> str | None:
    """Why LiteLLM cannot be measured; `None` if it can."""
    if venv is None:
        return "no --litellm FOLDER"
    if not program(venv, "litellm").exists():
        return f"it is not in {venv}; --install-litellm installs it there"
    ask = "from importlib.metadata import version; print(version('litellm'))"
    told = subprocess.run([program(venv, "python"), "-c", ask], capture_output=True, text=True, check=True)
    found = told.stdout.strip()
    return None if found == LITELLM_VERSION else f"{venv} has {found}, not {LITELLM_VERSION}"


def install_litellm(venv: Path) -> None:
    """Make a virtual environment with LiteLLM in it."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = program(venv, "python"), "-m", "pip", "install", "--quiet", f"litellm[proxy]=={LITELLM_VERSION}"
    subprocess.run(pip, check=True, stdout=sys.stderr)


@contextmanager
def running(subject: Subject, folder: Path) -> Iterator[Running]:
    """A subject that serves; in a session of its own, so that Ctrl-C leaves its end to us."""
    port, log = free_port(), folder / f"{subject.name}.log"
    began_at = time.monotonic()
    with log.open("wb") as out:
        process = psutil.Popen(
            [*subject.command, "--port", str(port)],
            cwd=folder,
            env={**os.environ, **subject.environ},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not serves(port, subject.health):
            if process.poll() is not None or time.monotonic() - began_at > HEALTHY_S:
                raise SystemExit(f"{subject.name} does not serve:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.005)
        yield Running(subject, process, port, time.monotonic() - began_at)
    finally:
        end(process)


def start_span(subject: Subject, folder: Path, times: int) -> float:
    """How long it takes to start (seconds), the median of so many times."""
    spans = []
    for _ in range(times):
        with running(subject, folder) as started:
            spans.append(started.start_s)
    return median(spans)


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def serves(port: int, path: str) -> bool:
    """Whether somebody answers there, with anything but an error."""
    try:
        get(port, path)
    except OSError:
        return False
    return True


def get(port: int, path: str) -> bytes:
    """What is to be had there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
        return bytes(response.read())


def end(process: psutil.Popen) -> None:
    """End a process and its children, by force if they take too long."""
    with suppress(psutil.NoSuchProcess):
        family = [*process.children(recursive=True), process]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.terminate()
        for each in psutil.wait_procs(family, timeout=ENDING_S)[1]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


def run_once(through: Running, upstream: Running, load: Load, seconds: float) -> Round:
    """One load through one subject."""
    options = {
        "--port": through.port,
        "--model": through.subject.model,
        "--streams": load.streams,
        "--gap-ms": load.gap_ms,
        "--seconds": seconds,
    }
    command = [*CLIENT, *(str(each) for option in options.items() for each in option)]
    asked, cpu_s = requests_at(upstream), through.cpu_s()
    client = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, timeout=RUN_S, start_new_session=True
    )
    cpu_s, asked = through.cpu_s() - cpu_s, requests_at(upstream) - asked
    told = json.loads(client.stdout)
    return Round(told, 1000 * cpu_s / told["requests"], asked / told["requests"])


def requests_at(upstream: Running) -> int:
    """How many requests the mock upstream has seen."""
    return int(json.loads(get(upstream.port, "/"))["requests"])


def summed_up(load: Load, subject: str, rounds: Sequence[Round]) -> Row:
    """One row of all rounds."""
    told = [each.told for each in rounds]
    return Row(
        load,
        subject,
        requests=sum(each["requests"] for each in told),
        ttft_ms=quantiles([span for each in told for span in each["ttft_ms"]]),
        gap_ms=quantiles([gap for each in told for gap in each["gap_ms"]]),
        cpu_ms=median(each.cpu_ms for each in rounds),
        chunks_per_s=median(each["chunks_per_s"] for each in told),
        asked=median(each.asked for each in rounds),
        errors=sum((Counter(each["errors"]) for each in told), Counter()),
        missing=sum(each["missing"] for each in told),
        doubled=sum(each["doubled"] for each in told),
        reordered=sum(each["reordered"] for each in told),
    )


def quantiles(values: Sequence[float]) -> tuple[float, float] | None:
    """The median and the 99th percentile, if there are values."""
    if not values:
        return None
    middle, late = np.quantile(values, [0.5, 0.99]).tolist()
    return middle, late


def added(
    figures: tuple[float, float] | None, direct: tuple[float, float] | None
) -> tuple[float, float] | None:
    """What two quantiles are beyond those of the direct answers."""
    return None if figures is None or direct is None else (figures[0] - direct[0], figures[1] - direct[1])


def targets(told: Told) -> list[Target]:
    """What the gateway should achieve, as far as it was measured."""
    loads: dict[Load, dict[str, Row]] = defaultdict(dict)
    for row in told.rows:
        loads[row.load][row.subject] = row
    found = [target for load, rows in loads.items() for target in targets_of(load, rows)]
    for each in told.footprints:
        if each.name in (ONE, RACE):
            found.append(Target(f"{each.name}: memory, MB", each.rss_mb, 100.0))
            found.append(Target(f"{each.name}: /health after, s", each.start_s, 1.0))
    return found


def targets_of(load: Load, rows: Mapping[str, Row]) -> Iterator[Target]:
    """Those for one load."""
    direct, bare, one, race = (rows[name] for name in (DIRECT, BARE, ONE, RACE))
    if load.gap_ms == 5 and load.streams <= 50:
        relay, ours, racing = (added(row.ttft_ms, direct.ttft_ms) for row in (bare, one, race))
        if relay and ours and racing:
            yield Target(f"{load}: added TTFT p50, ms; 1.5 x the relay's", ours[0], 1.5 * relay[0])
            yield Target(f"{load}: added TTFT p99, ms", ours[1], 5.0)
            yield Target(f"{load}: racing, added TTFT p50, ms; 0.5 more", racing[0], ours[0] + 0.5)
    if load in (Load(10, 5), Load(50, 5)):
        yield Target(f"{load}: CPU, ms/request; 1.6 x the relay's", one.cpu_ms, 1.6 * bare.cpu_ms)
    if load == Load(50, 5):
        unqueued = 0.95 * direct.chunks_per_s
        yield Target(f"{load}: chunks/s; 0.95 x direct's", one.chunks_per_s, unqueued, at_least=True)
    if load == Load(100, 5):
        yield Target(f"{load}: chunks/s", one.chunks_per_s, 17_000.0, at_least=True)
    if load == Load(50, 0):
        yield Target(f"{load}: chunks/s", one.chunks_per_s, 30_000.0, at_least=True)
        if LITELLM in rows:
            limit = 20 * rows[LITELLM].chunks_per_s
            yield Target(f"{load}: chunks/s; 20 x LiteLLM's", one.chunks_per_s, limit, at_least=True)


def machine() -> dict[str, Any]:
    """Where this was measured, and with what."""
    told = {"machine": f"{cpu_name()}, {platform.machine()}", "cpus": os.cpu_count()}
    for name in ("discostream", "aiohttp", "uvloop"):
        with suppress(PackageNotFoundError):
            told[name] = version(name)
    return {**told, "python": platform.python_version()}


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def as_tables(told: Told, design: Design) -> str:
    """The figures for people."""
    facts = {**machine(), "rounds": design.rounds, "seconds of each": design.seconds}
    facts["% busy before"] = told.busy_percent
    blocks = [", ".join(f"{name} {value}" for name, value in facts.items())]
    direct = {row.load: row for row in told.rows if row.subject == DIRECT}
    blocks.append(table(LOADED, [(row, direct[row.load]) for row in told.rows], words=2))
    blocks.append(table(FOOTPRINTS, told.footprints, words=2))
    blocks += [f"{name} was not measured: {reason}" for name, reason in told.skipped.items()]
    errors = sum((Counter(row.errors) for row in told.rows), Counter())
    blocks += [f"{count} x {error}" for error, count in errors.most_common(8)]
    blocks.append(table(TARGETS, targets(told)))
    return "\n\n".join(blocks)


def table(columns: Mapping[str, Callable[[Any], str]], rows: Sequence[Any], *, words: int = 1) -> str:
    """Columns as wide as what is in them; the first few hold words, the others numbers."""
    cells = [list(columns), *([told(row) for told in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def as_json(told: Told, design: Design) -> str:
    """The figures for programs."""
    direct = {row.load: row for row in told.rows if row.subject == DIRECT}
    rows = [
        {
            **asdict(row),
            "added_ttft_ms": added(row.ttft_ms, direct[row.load].ttft_ms),
            "added_gap_ms": added(row.gap_ms, direct[row.load].gap_ms),
        }
        for row in told.rows
    ]
    met = [{**asdict(target), "met": target.met} for target in targets(told)]
    footprints = [asdict(each) for each in told.footprints]
    found = {
        "busy_percent": told.busy_percent,
        "rows": rows,
        "footprints": footprints,
        "skipped": told.skipped,
        "targets": met,
    }
    return json.dumps({"machine": machine(), "design": asdict(design), **found}, indent=2)


def shown(figures: tuple[float, float] | None, place: int) -> str:
    """One of two quantiles, if they are known."""
    return "-" if figures is None else f"{figures[place]:.2f}"


LOADED = {
    "streams": lambda pair: str(pair[0].load),
    "through": lambda pair: pair[0].subject,
    "TTFT p50 ms": lambda pair: shown(pair[0].ttft_ms, 0),
    "p99": lambda pair: shown(pair[0].ttft_ms, 1),
    "added p50": lambda pair: shown(added(pair[0].ttft_ms, pair[1].ttft_ms), 0),
    "added p99": lambda pair: shown(added(pair[0].ttft_ms, pair[1].ttft_ms), 1),
    "gap added p50": lambda pair: shown(added(pair[0].gap_ms, pair[1].gap_ms), 0),
    "gap added p99": lambda pair: shown(added(pair[0].gap_ms, pair[1].gap_ms), 1),
    "CPU ms": lambda pair: "-" if pair[0].subject == DIRECT else f"{pair[0].cpu_ms:.1f}",
    "chunks/s": lambda pair: f"{pair[0].chunks_per_s:,.0f}",
    "requests": lambda pair: str(pair[0].requests),
    "asked": lambda pair: f"{pair[0].asked:.2f}",
    "errors": lambda pair: str(sum(pair[0].errors.values())),
    "missing": lambda pair: str(pair[0].missing),
    "doubled": lambda pair: str(pair[0].doubled),
    "reordered": lambda pair: str(pair[0].reordered),
}
FOOTPRINTS = {
    "through": lambda each: each.name,
    "version": lambda each: each.version,
    "starts in s": lambda each: f"{each.start_s:.2f}",
    "memory MB": lambda each: f"{each.rss_mb:.0f}",
}
TARGETS = {
    "target": lambda target: target.what,
    "figure": lambda target: f"{target.figure:,.2f}",
    "": lambda target: ">=" if target.at_least else "<=",
    "limit": lambda target: f"{target.limit:,.2f}",
    " ": lambda target: "met" if target.met else "MISSED",
}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
