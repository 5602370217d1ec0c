"""The gateway against Schemathesis: cases made from its own OpenAPI document, right ones and wrong ones.

A gateway is served with two scripted endpoints and a stand-in for a service that embeds. Every reply must be
what the document says, and no status may be 500 or above. Exits with 1 where one is not:

    python benchmarks/fuzz_api.py [--cases 5000] [--seed 1] [--phases coverage,fuzzing]
"""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from aiohttp import web

from discostream.config import settings_from
from discostream.gateway.app import serve
from discostream.types import Feature

CASES_AN_EXAMPLE = 5
"""How many cases Schemathesis makes at least for each of `--max-examples`, over all routes."""
LEFT_OUT = "positive_data_acceptance"
"""A request that fits the document may still name a model or a policy that is not there."""
SCRIPT = {
    "dialect": "scripted",
    "answer": "Once upon a time there was a race.",
    "reasoning": "How do tales begin?",
    "tool_calls": [{"name": "weather", "arguments": {"city": "Paris"}}],
    "features": list(Feature),
}


def main() -> None:
    """Serve, fuzz and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    arguments = parser.parse_args()
    sys.exit(anyio.run(fuzz, arguments.cases, arguments.seed, arguments.phases))


async def fuzz(cases: int, seed: int, phases: str) -> int:
    """The exit code, once what was found is printed."""
    with tempfile.TemporaryDirectory() as folder:
        async with an_embedder() as base_url, anyio.create_task_group() as tasks:
            url = await tasks.start(serve, settings_from(a_gateway(folder, base_url)))
            document = url.replace("/v1", "/openapi.json")
            wishes = [f"--seed={seed}", f"--phases={phases}", *wishes_for(cases)]
            told = await anyio.to_thread.run_sync(run_schemathesis, document, wishes, folder)
            tasks.cancel_scope.cancel()
    print(told.stdout)
    made = re.search(r"(\d+) generated", told.stdout)
    enough = made is not None and int(made[1]) >= cases
    return told.returncode if enough else 1


def wishes_for(cases: int) -> list[str]:
    """Options for at least so many cases, all of which are seen."""
    return [
        f"--max-examples={1 + cases // CASES_AN_EXAMPLE}",
        "--checks=all",
        f"--exclude-checks={LEFT_OUT}",
        "--continue-on-failure",
        "--generation-database=none",
        "--no-color",
    ]


def run_schemathesis(document: str, wishes: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    """One run of its command line, in a folder that it may write to."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", document, *wishes]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def a_gateway(folder: str, base_url: str) -> dict[str, Any]:
    """Settings of a gateway on a free port."""
    embedder = {"name": "embedder", "kind": "server", "dialect": "openai", "base_url": base_url}
    prices = {"prompt_usd_per_mtok": 1.0, "completion_usd_per_mtok": 4.0}
    return {
        "endpoint": [
            {"name": "laptop", "kind": "device", **SCRIPT},
            {"name": "cloud", "kind": "server", **SCRIPT, **prices},
            {**embedder, **prices, "embedding_model": "vectors"},
        ],
        "policy": {"name": "offsets", "offsets": {"laptop": 0.0, "cloud": 0.0}},
        "gateway": {"port": 0},
        "ledger": {"path": str(Path(folder, "ledger.db"))},
    }


@asynccontextmanager
async def an_embedder():
    """The base URL of a service that says the same to everybody."""

    async def embed(http: web.Request) -> web.Response:
        await http.read()
        return web.json_response({"object": "list", "data": [], "model": "vectors"})

    app = web.Application()
    app.add_routes([web.post("/v1/embeddings", embed)])
    runner = web.AppRunner(app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        await runner.cleanup()


if __name__ == "__main__":
    main()
