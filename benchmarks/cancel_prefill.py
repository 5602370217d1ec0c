"""How long a cancelled prefill holds its slot in the embedded llama.cpp, and what smaller batches cost.

llama.cpp looks at cancellations between batches, so the default of `batch_tokens` trades the speed of
prefill against the time that a lost race keeps the device busy. Run it alone on the machine:

    python benchmarks/cancel_prefill.py [--json] [--runs 5] [--model NAME_OR_PATH] [--batches 64,256]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from contextlib import aclosing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import anyio
import psutil

from discostream.config import EndpointSettings, convert_options
from discostream.endpoints.llamacpp import LlamaCppEndpoint
from discostream.engine.catalogue import resolve_model
from discostream.engine.supervisor import Engine, EngineAddress, EngineSettings
from discostream.types import Kind, Message, Piece, Prefix, Prompt, Request

PROMPT_WORDS = 1200
QUIET_S = 0.15
KEY_VARIABLE = "CANCEL_PREFILL_KEY"


@dataclass(frozen=True)
class Row:
    """One batch size: medians, and the least and the most of the runs."""

    batch_tokens: int
    prompt_tokens: int
    prefill_tokens_per_s: float
    prefill_least: float
    prefill_most: float
    held_s: float
    held_least_s: float
    held_most_s: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--batches", default="64,128,256,512,1024,2048")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = resolve_model(arguments.model)
    batches = [int(batch) for batch in arguments.batches.split(",")]
    rows = [anyio.run(measure, model, batch, arguments.runs) for batch in batches]
    print(as_json(rows, model) if arguments.json else as_table(rows, model))


async def measure(model: Path, batch_tokens: int, runs: int) -> Row:
    """One row of the table, from an engine of its own."""
    engine = Engine(EngineSettings(model=model, batch_tokens=batch_tokens, slots=1))
    engine.start()
    try:
        address = await engine.address()
        endpoint = endpoint_at(address)
        try:
            chance, child = random.Random(batch_tokens), psutil.Process(engine.pid)
            full = [await prefill(endpoint, words(chance)) for _ in range(runs)]
            quickest_s = min(seconds for seconds, _ in full)
            held = [
                await cancel(endpoint, words(chance), quickest_s * chance.uniform(0.1, 0.7), child)
                for _ in range(2 * runs)
            ]
        finally:
            await endpoint.aclose()
    finally:
        await anyio.to_thread.run_sync(engine.stop)
    speeds = [tokens / seconds for seconds, tokens in full]
    return Row(
        batch_tokens,
        full[0][1],
        *(statistics.median(speeds), min(speeds), max(speeds)),
        *(statistics.median(held), min(held), max(held)),
    )


def endpoint_at(address: EngineAddress) -> LlamaCppEndpoint:
    """An endpoint that talks to the engine at `address`."""
    os.environ[KEY_VARIABLE] = address.api_key
    options = {"base_url": address.base_url, "api_key_env": KEY_VARIABLE}
    settings = EndpointSettings(name="engine", kind=Kind.SERVER, dialect="llamacpp", options=options)
    return LlamaCppEndpoint(settings, convert_options(settings, LlamaCppEndpoint.Options))


def words(chance: random.Random) -> Request:
    """A prompt that shares no cacheable beginning with any other."""
    text = " ".join(
        chance.choice(["river", "stone", "cloud", "engine", "letter"]) for _ in range(PROMPT_WORDS)
    )
    messages = (Message("system", str(chance.random())), Message("user", text))
    return Request(messages=messages, arrived_at=0.0, request_id="bench", max_tokens=1)


async def prefill(endpoint: LlamaCppEndpoint, request: Request) -> tuple[float, int]:
    """Seconds until the first piece, and the prompt's tokens."""
    tokens, began_at = 0, time.monotonic()
    async with aclosing(endpoint.generate(request, Prefix())) as events:
        async for event in events:
            if isinstance(event, Prompt):
                tokens = event.tokens
            elif isinstance(event, Piece):
                break
    return time.monotonic() - began_at, tokens


async def cancel(
    endpoint: LlamaCppEndpoint, request: Request, after_s: float, engine: psutil.Process
) -> float:
    """Seconds from closing a prefill that has run `after_s` until the engine computes no more."""
    with anyio.move_on_after(after_s):
        await prefill(endpoint, request)
    return await busy_for(engine)


async def busy_for(engine: psutil.Process) -> float:
    """Seconds until the engine's CPU time stands still; asking it over HTTP would change what it does."""
    began_at = busy_at = time.monotonic()
    used_s = cpu_s(engine)
    while (now := time.monotonic()) - busy_at < QUIET_S:
        if cpu_s(engine) > used_s:
            used_s, busy_at = cpu_s(engine), now
        await anyio.sleep(0.005)
    return busy_at - began_at


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that a process has used."""
    times = process.cpu_times()
    return times.user + times.system


def as_table(rows: list[Row], model: Path) -> str:
    """The figures for people."""
    lines = [
        f"{model.name}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"xllamacpp {version('xllamacpp')}; {rows[0].prompt_tokens} prompt tokens; median (least - most)",
        f"{'batch':>6}  {'prefill tokens/s':>24}  {'slot held after cancel, s':>26}",
    ]
    for row in rows:
        speed = f"{row.prefill_tokens_per_s:.0f} ({row.prefill_least:.0f} - {row.prefill_most:.0f})"
        held = f"{row.held_s:.2f} ({row.held_least_s:.2f} - {row.held_most_s:.2f})"
        lines.append(f"{row.batch_tokens:>6}  {speed:>24}  {held:>26}")
    return "\n".join(lines)


def as_json(rows: list[Row], model: Path) -> str:
    """The figures for programs."""
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    versions = {"xllamacpp": version("xllamacpp"), "model": model.name}
    return json.dumps({**machine, **versions, "rows": [asdict(row) for row in rows]}, indent=2)


if __name__ == "__main__":
    main()
