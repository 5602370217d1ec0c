"""`benchmarks/gateway.py` works, leaves nothing behind, and sees whatever is wrong with a stream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from scripts import BENCHMARKS, load_script

gateway = load_script("gateway")
client = load_script("gateway/client")

SCRIPT = [sys.executable, str(BENCHMARKS / "gateway.py"), "--quick", "--json"]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx-request-id: 0\r\n\r\n"
FAULTS = ("errors", "missing", "doubled", "reordered")
WHOLE = tuple(range(client.CHUNKS))


def event(payload):
    """One event, framed as a chunk of the body."""
    return f"{len(payload) + 8:x}\r\ndata: {payload}\n\n\r\n".encode()


def chunk(text):
    return event(json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}))


def events(numbers):
    """A chunk for each number, sent a millisecond after the one before."""
    return [chunk(f" {number}@{1000 * place}") for place, number in enumerate(numbers)]


def answer(numbers):
    return HEAD + b"".join(events(numbers)) + event("[DONE]") + b"0\r\n\r\n"


def figures_of(*reads):
    """What the client says of one exchange whose reads came 3 ms apart, the first 5 ms after the request."""
    arrivals = [(5_000_000 + 3_000_000 * place, data) for place, data in enumerate(reads)]
    return client.figures([client.Exchange(0, arrivals)], 0, 10**9, gap_ms=1)


def faults_of(*reads):
    told = figures_of(*reads)
    return sum(told["errors"].values()), *(told[fault] for fault in FAULTS[1:])


@pytest.mark.parametrize(
    ("numbers", "faults"),
    [
        (WHOLE, (0, 0, 0, 0)),
        (WHOLE[:7] + WHOLE[9:], (0, 2, 0, 0)),
        (WHOLE[:-1], (0, 1, 0, 0)),
        ((0, *WHOLE), (0, 0, 1, 0)),
        ((1, 0, *WHOLE[2:]), (0, 0, 0, 1)),
        ((), (0, 64, 0, 0)),
    ],
    ids=["whole", "two missing", "the last missing", "doubled", "reordered", "empty"],
)
def test_the_client_counts_what_is_wrong_with_the_chunks_of_an_answer(numbers, faults):
    """Missing, doubled and reordered chunks are told apart."""
    assert faults_of(answer(numbers)) == faults


@pytest.mark.parametrize(
    "told",
    [
        answer(WHOLE).replace(event("[DONE]"), b""),
        answer(WHOLE).replace(event("[DONE]"), event('{"error":{"message":"no more"}}') + event("[DONE]")),
        answer(WHOLE).replace(event("[DONE]"), event("{") + event("[DONE]")),
        b"HTTP/1.1 200 OK\r\n\r\nWhat is this?\r\n",
    ],
    ids=["no [DONE]", "an error", "no JSON", "no chunks"],
)
def test_an_answer_that_is_not_whole_is_an_error(told):
    """Whatever cannot be read as an answer to its end counts as an error, and as nothing else."""
    assert faults_of(told) == (1, 0, 0, 0)


def test_latencies_are_of_content_alone_and_gaps_less_those_of_the_upstream():
    """TTFT ends with the first chunk that holds text; a gap is what came on top of the upstream's own."""
    first, second, *rest = events(WHOLE)
    opening, end = HEAD + chunk(""), event("[DONE]") + b"0\r\n\r\n"
    told = figures_of(opening, first, second[:20], second[20:] + b"".join(rest) + end)
    assert told["ttft_ms"] == [8.0]
    assert told["gap_ms"] == [5.0] + [-1.0] * (client.CHUNKS - 2)


@pytest.mark.alone
@pytest.mark.slow
def test_a_quick_run_measures_everybody_and_finds_nothing_wrong():
    """An answer takes one upstream request, a race takes more, and every chunk comes once and in order."""
    ran = subprocess.run(SCRIPT, capture_output=True, text=True, timeout=180, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)["rows"]
    assert not any(row[fault] for row in rows for fault in FAULTS)
    for name in (gateway.DIRECT, gateway.BARE, gateway.ONE):
        assert [row["asked"] for row in rows if row["subject"] == name] == [1.0, 1.0]
    assert all(row["asked"] > 1.0 for row in rows if row["subject"] == gateway.RACE)


@pytest.mark.alone
@pytest.mark.slow
def test_a_dropped_chunk_fails_the_run(monkeypatch, capsys):
    """An upstream that leaves a chunk out of every answer is found out, whoever stands before it."""
    monkeypatch.setattr(gateway, "UPSTREAM", (*gateway.UPSTREAM, "--drop", "7"))
    monkeypatch.setattr(gateway, "QUICK", gateway.Design((gateway.Load(2, 1),), rounds=1, seconds=0.1))
    assert gateway.main(["--quick", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["missing"] for row in rows] == [row["requests"] for row in rows]
    assert len(rows) == 4


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that does what Ctrl-C does")
def test_ctrl_c_leaves_no_process_behind():
    """Interrupted in mid-run, the script ends all that it has started, and says so by its exit status."""
    script = psutil.Popen(SCRIPT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(children := script.children(recursive=True)) < 4 and script.poll() is None:
        time.sleep(0.02)
    script.send_signal(signal.SIGINT)
    script.communicate(timeout=30)
    assert script.returncode == 130
    assert psutil.wait_procs(children, timeout=5)[1] == []
