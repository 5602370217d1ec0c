"""The embedded llama.cpp server as a process of its own, so that a crash in native code stays there.

Run by the supervisor as `python -m discostream.engine.child`. Standard input brings one JSON line with
the keys that `serve` reads; standard output carries one JSON line back, `{"address": ...}` or
`{"error": ...}`; everything llama.cpp prints goes to standard error. Standard input closing, which also
happens when the parent is killed, ends the process at once.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
from typing import Any, BinaryIO

__all__ = ["main"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PROMPT_CACHE_MIB = 256
"""Memory for the prompts of earlier conversations; llama.cpp's own default is 8 GiB."""


def main() -> None:
    """Serve until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    _die_with_parent()
    report = _claim_stdout()
    settings = json.loads(sys.stdin.buffer.readline())
    try:
        server = serve(settings)
    except Exception as error:
        _send(report, {"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    _send(report, {"address": server.listening_address})
    sys.stdin.buffer.read()
    os._exit(0)


def serve(settings: dict[str, Any]) -> Any:
    """A running `xllamacpp.Server`; returns when the model is loaded and the port is open.

    Raises:
        RuntimeError: llama.cpp could not load the model; it says why on standard error.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.api_keys, params.cors_origins = [settings["api_key"]], ""
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["context_tokens"]
    params.n_batch = settings["batch_tokens"]
    params.n_ubatch = min(512, settings["batch_tokens"])
    params.cache_ram_mib = PROMPT_CACHE_MIB
    if settings["threads"]:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.ui, params.endpoint_slots, params.verbosity = False, True, 1
    return xllamacpp.Server(params)


def _die_with_parent() -> None:
    """Have Linux end this process with its parent.

    xllamacpp holds the GIL while it loads a model, so no Python code could watch standard input then.
    Elsewhere a child that is orphaned while loading ends when it has loaded.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if _is_orphan():
            sys.exit(1)


def _is_orphan() -> bool:
    """Whether the parent had gone before: nobody holds the other end of standard input."""
    end = select.poll()
    end.register(sys.stdin.fileno(), 0)  # a hang-up is told of unasked
    return bool(end.poll(0))


def _claim_stdout() -> BinaryIO:
    """The real standard output, for us alone; native prints to it go to standard error from here on."""
    report = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return report


def _send(report: BinaryIO, message: dict[str, str]) -> None:
    report.write(json.dumps(message).encode() + b"\n")
    report.close()


if __name__ == "__main__":
    main()
