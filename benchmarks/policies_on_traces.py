"""Plan on one half of a recorded trace, judge on the other: what the policies are worth on real servers.

    python benchmarks/policies_on_traces.py --data ../shared/data [--splits 10] [--workload self-instruct]

Every policy gets the same knowledge: one random half of a service's recorded TTFTs, and one random half of
the prompt lengths. Its plans, for budgets from 0 to 1, are judged on the other halves: every recorded TTFT
against every prompt, by computation. Since a plan may spend more or less than it was allowed on data it has
not seen, policies are compared at equal *realised* spend, each by interpolation along its own frontier, and
averaged over the splits. Writes all cells to `docs/policies-on-traces.md`.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from discostream.config import PolicySettings
from discostream.core.cost import Rates
from discostream.core.distributions import Distribution
from discostream.core.forecast import SILENCE_S
from discostream.core.optimal import solve
from discostream.core.plans import PlanTable
from discostream.core.policies import disco, stochastic
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.sim.devices import device_named
from discostream.traces.servers import CHARS_PER_TOKEN, read_trace
from discostream.traces.workloads import read_workload
from discostream.types import Kind

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "policies-on-traces.md"

Floats = NDArray[np.float64]

DEVICES = {
    "Pixel 7 Pro, Bloom-1.1B": device_named("pixel-7-pro-bloom-1.1b").prefill_tokens_per_s,
    "Pixel 7 Pro, Bloom-560M": device_named("pixel-7-pro-bloom-560m").prefill_tokens_per_s,
    "Xiaomi 14, Qwen1.5-0.5B": device_named("xiaomi-14-qwen1.5-0.5b").prefill_tokens_per_s,
}
"""The paper's, by prefill tokens a second."""

WHISPER_LEAK = {
    "GPT-4o": "whisper-leak/requests-GPT4o.csv.gz",
    "Claude 3.5 Haiku": "whisper-leak/requests-ClaudeHaikuOpenRouter.csv.gz",
    "Gemini 2.0 Flash": "whisper-leak/requests-GeminiFlash.csv.gz",
}
LLMPERF = {
    "Llama-2-70B, Replicate": "llmperf/replicate_70b.json",
    "Llama-2-13B, Together": "llmperf/together_13b.json",
}
SERVICES = WHISPER_LEAK | LLMPERF

WORKLOADS = {
    "self-instruct": (
        "workload-self-instruct/seed_tasks.jsonl",
        "workload-self-instruct/user_oriented_instructions.jsonl",
    ),
    "arena-hard": ("workload-arena-hard/prompts_and_output_lengths.jsonl.gz",),
}
"""Prompts that people write on a phone, and longer ones."""

REALISED = np.round(np.linspace(0.1, 0.9, 9), 1)
"""The spends at which policies are compared, as shares of all prompt tokens."""

ANSWER_TOKENS = 128.0
"""Plays no part: these budgets count prompt tokens only."""


def optimal(known: Known, settings: PolicySettings) -> PlanTable:
    """The programme without second attempts on the same server, which the other policies do not have."""
    return solve(known, settings, hedge=False).table


POLICIES: dict[str, Callable[[Known, PolicySettings], PlanTable]] = {
    "stochastic": stochastic,
    "disco": disco,
    "optimal": optimal,
}


@dataclass(frozen=True)
class Half:
    """What one half of the data says.

    Attributes:
        ttft_s: A service's recorded TTFTs, sorted; infinite for requests that failed.
        prompt_tokens: Prompt lengths, sorted.
    """

    ttft_s: Floats
    prompt_tokens: Floats

    def known(self, prefill_tokens_per_s: float) -> Known:
        """The same as policies see it, with a device of this speed."""
        device = DeviceTtft.believed(1 / prefill_tokens_per_s, 0.0, 0.0)
        server = ServerTtft(Distribution.of_samples(self.ttft_s))
        rates = Rates(0.0, 0.0)
        return Known(
            (
                EndpointProfile("device", Kind.DEVICE, rates, device, 15.0),
                EndpointProfile("server", Kind.SERVER, rates, server, 50.0),
            ),
            Lengths(Distribution.of_samples(self.prompt_tokens)),
            Lengths(Distribution.of_samples([ANSWER_TOKENS])),
        )


@dataclass(frozen=True)
class Verdict:
    """What a plan comes to on data it has not seen.

    Attributes:
        share: Prompt tokens that each kind processed, as a share of all.
    """

    share: dict[Kind, float]
    mean_s: float
    p99_s: float


def judge(table: PlanTable, half: Half, prefill_tokens_per_s: float) -> Verdict:
    """Race every recorded TTFT against every prompt, by nothing of the planner's own arithmetic."""
    row = np.searchsorted(table.longest, half.prompt_tokens)
    prompt, action = np.nonzero(table.weights[row] > 0)
    weights = table.weights[row[prompt], action] / half.prompt_tokens.size
    tokens = half.prompt_tokens[prompt]
    device_at, server_at = (
        table.offsets[row[prompt], action, table.endpoints.index(kind)] for kind in ("device", "server")
    )
    device_s = device_at + tokens / prefill_tokens_per_s
    spans_s = np.minimum(half.ttft_s, SILENCE_S)
    sums = np.append(0.0, np.cumsum(spans_s))

    def served(until_s: ArrayLike, side: Literal["left", "right"]) -> NDArray[np.intp]:
        return np.asarray(np.searchsorted(spans_s, until_s - server_at, side=side))

    sooner = served(device_s, "left")
    rest_s = np.where(sooner < spans_s.size, device_s, 0.0) * (spans_s.size - sooner)
    ttft_s = np.where(np.isinf(server_at), 0.0, server_at) * sooner + sums[sooner] + rest_s
    token_weights = weights * tokens / (weights @ tokens)
    waited = np.where(np.isinf(device_at), 0.0, 1.0 - served(device_at, "left") / spans_s.size)

    def still_waiting(at_s: float) -> float:
        return float(weights @ ((device_s > at_s) * (1.0 - served(at_s, "right") / spans_s.size)))

    return Verdict(
        {
            Kind.DEVICE: float(token_weights @ waited),
            Kind.SERVER: float(token_weights @ (device_s >= server_at)),
        },
        float(weights @ ttft_s) / spans_s.size,
        _bisect(still_waiting, 0.01),
    )


def _bisect(falling: Callable[[float], float], level: float) -> float:
    """Where a falling function reaches a level, in seconds."""
    low, high = 0.0, 1e4
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > level else (low, middle)
    return high


def frontier(
    policy: Callable[[Known, PolicySettings], PlanTable],
    constraint: Kind,
    planned: Half,
    judged: Half,
    prefill_tokens_per_s: float,
    shares: Floats,
) -> Floats:
    """Mean and P99 TTFT at each of the `REALISED` spends, shape (2, spends).

    A policy that leaves budget unspent does as well with more of it.
    """
    known = planned.known(prefill_tokens_per_s)
    verdicts = [
        judge(
            policy(known, PolicySettings(constraint=constraint.value, share=share)),
            judged,
            prefill_tokens_per_s,
        )
        for share in shares.tolist()
    ]
    verdicts.sort(key=lambda verdict: verdict.share[constraint])
    spent = [verdict.share[constraint] for verdict in verdicts]
    return np.array(
        [
            np.interp(REALISED, spent, [verdict.mean_s for verdict in verdicts]),
            np.interp(REALISED, spent, [verdict.p99_s for verdict in verdicts]),
        ]
    )


def compare(
    service: str,
    device: str,
    constraint: Kind,
    data: Traces,
    *,
    splits: int,
    shares: Floats,
    policies: tuple[str, ...] = tuple(POLICIES),
) -> dict[str, Floats]:
    """The frontiers of some policies, averaged over random halves that are the same for all of them."""
    frontiers: dict[str, Floats] = {name: np.zeros((2, REALISED.size)) for name in policies}
    for split in range(splits):
        planned, judged = data.halves(service, np.random.default_rng(split))
        for name in policies:
            frontiers[name] += frontier(POLICIES[name], constraint, planned, judged, DEVICES[device], shares)
    return {name: total / splits for name, total in frontiers.items()}


@dataclass(frozen=True)
class Traces:
    """Recorded TTFTs (seconds) by service, and the prompt lengths of a workload (tokens)."""

    ttft_s: dict[str, Floats]
    prompt_tokens: Floats

    @classmethod
    def read(cls, data: Path, workload: str) -> Traces:
        """All of them, from a folder of traces."""
        recorded = {name: read_trace(str(data / path)).ttft_s for name, path in SERVICES.items()}
        prompts = [read_workload(str(data / path)).prompt_tokens for path in WORKLOADS[workload]]
        return cls(recorded, np.concatenate(prompts))

    def halves(self, service: str, rng: np.random.Generator) -> tuple[Half, Half]:
        """What to plan by and what to judge on, drawn at random."""
        ttft_s, prompt_tokens = rng.permutation(self.ttft_s[service]), rng.permutation(self.prompt_tokens)
        first, second = (
            Half(np.sort(times), np.sort(lengths))
            for times, lengths in zip(
                np.array_split(ttft_s, 2), np.array_split(prompt_tokens, 2), strict=True
            )
        )
        return first, second


def compare_all(data: Traces, splits: int, shares: Floats) -> Iterator[Case]:
    """Every service with every device under either constraint."""
    for constraint in (Kind.DEVICE, Kind.SERVER):
        for service in SERVICES:
            for device in DEVICES:
                frontiers = compare(service, device, constraint, data, splits=splits, shares=shares)
                yield Case(constraint, service, device, frontiers)


@dataclass(frozen=True)
class Case:
    """One service and device under one constraint, and the frontiers of all policies."""

    constraint: Kind
    service: str
    device: str
    frontiers: dict[str, Floats]

    def change(self, policy: str, against: str) -> Floats:
        """How much more one policy has than another, in parts of it, shape (2, spends)."""
        return np.asarray(self.frontiers[policy] / self.frontiers[against] - 1.0)


PROMPTS = {
    "self-instruct": (
        "The 427 instructions in Self-Instruct that people wrote, inputs included "
        "(github.com/yizhongw/self-instruct, commit 0b26cca, Apache-2.0): the kind of thing that is typed "
        "on a phone, and the seeds of the Alpaca prompts that the paper uses"
    ),
    "arena-hard": (
        "The 1,250 prompts of Arena-Hard v0.1 and v2.0 (github.com/lmarena/arena-hard-auto, commit 196f6b8, "
        "Apache-2.0): hard questions from Chatbot Arena, many with code in them"
    ),
}

PARAGRAPHS = (
    "How much TTFT does the same budget buy? `benchmarks/policies_on_traces.py` wrote this page, and it "
    "shows every cell that was computed, wins and losses.",
    "**Method.** A policy plans by one random half of a service's recorded TTFTs and one of the prompt "
    "lengths, and is judged on the other halves: every TTFT against every prompt, by computation. What "
    "a plan spends there is not quite what it was allowed, so policies are compared at equal *realised* "
    "spend: each plans for {budgets} budgets from 0 to 1, and its mean and P99 TTFT are interpolated "
    "along its own frontier. All figures are averages over {splits} splits, the same for all policies. "
    "`optimal` may not ask a server twice here, since the others cannot; otherwise its settings are the "
    "defaults. A request that failed counts as {silence_s:.0f} s.",
    "**Servers.** {whisper_leak} are from whisper_leak "
    "(github.com/MatthewELucio/whisper_leak_data_privacy, commit de31073, MIT, copyright 2025 Jonathan "
    "Bar Or): March 2025, TTFT without TCP and TLS set-up, failures not kept. {llmperf} are from the "
    "LLMPerf leaderboard (github.com/ray-project/llmperf-leaderboard, commit 27aa9b6, Apache-2.0, "
    "Anyscale): December 2023, cold starts and failures included. Half of so few is about 75 requests, "
    "whose P99 is next to the worst of them.",
    "**Devices.** {devices}; prefill without start-up time or noise (Li et al., EdgeFM 2024, as in the "
    "paper).",
    "**Prompts.** {prompts}. At {chars:g} characters a token: median {median:.0f}, mean {mean:.0f}, "
    "longest {longest:,.0f} tokens.",
)

SUMMARY: dict[str, Callable[[Floats], str]] = {
    "better by more than 1 %": lambda change: f"{np.sum(change < -0.01)} cells",
    "within 1 %": lambda change: f"{np.sum(np.abs(change) <= 0.01)} cells",
    "worse by more than 1 %": lambda change: f"{np.sum(change > 0.01)} cells",
    "best cell": lambda change: f"{change.min():+.1%}",
    "worst cell": lambda change: f"{change.max():+.1%}",
}

COLUMNS = (
    "| device | share | mean, s: `stochastic` | `disco` | `optimal` | change "
    "| P99, s: `stochastic` | `disco` | `optimal` | change |\n|---|" + "---:|" * 9
)


def page(cases: Sequence[Case], data: Traces, workload: str, splits: int, shares: Floats) -> str:
    """All of it as Markdown."""
    counted = {name: f"{name} ({times.size:,} requests)" for name, times in data.ttft_s.items()}
    facts = {
        "budgets": shares.size,
        "splits": splits,
        "silence_s": SILENCE_S,
        "whisper_leak": _listed([counted[name] for name in WHISPER_LEAK]),
        "llmperf": _listed([counted[name] for name in LLMPERF]),
        "devices": "; ".join(f"{name}: {speed} tokens/s" for name, speed in DEVICES.items()),
        "prompts": PROMPTS[workload],
        "chars": CHARS_PER_TOKEN,
        "median": np.median(data.prompt_tokens),
        "mean": data.prompt_tokens.mean(),
        "longest": data.prompt_tokens.max(),
    }
    head = ("# The policies on recorded servers", *(_wrapped(each.format(**facts)) for each in PARAGRAPHS))
    return "\n\n".join((*head, _summary(cases), *_sections(cases))) + "\n"


def _summary(cases: Sequence[Case]) -> str:
    mean, p99 = np.array([case.change("optimal", "disco") for case in cases]).swapaxes(0, 1)
    rows = [f"| {name} | {tell(mean)} | {tell(p99)} |" for name, tell in SUMMARY.items()]
    intro = f"## In short\n\n`optimal` against `disco` at the same spend, {mean.size} cells:\n"
    return "\n".join((intro, "| | mean TTFT | P99 TTFT |\n|---|---:|---:|", *rows))


def _sections(cases: Sequence[Case]) -> Iterator[str]:
    for constraint in dict.fromkeys(case.constraint for case in cases):
        for service in SERVICES:
            ours = [case for case in cases if (case.constraint, case.service) == (constraint, service)]
            rows = [row for case in ours for row in _rows(case)]
            yield "\n".join((f"## {service}, {constraint} budget\n", COLUMNS, *rows))


def _rows(case: Case) -> Iterator[str]:
    changes = case.change("optimal", "disco")
    for column, share in enumerate(REALISED):
        cells = [case.device, f"{share:.1f}"]
        for row in range(len(changes)):
            cells += [f"{case.frontiers[name][row, column]:.3f}" for name in POLICIES]
            cells.append(f"{changes[row, column]:+.1%}")
        yield f"| {' | '.join(cells)} |"


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def main() -> None:
    """Compute, write the page, and print what it comes to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="self-instruct")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--budgets", type=int, default=21)
    parser.add_argument("--out", type=Path, default=PAGE)
    chosen = parser.parse_args()
    data, shares = Traces.read(chosen.data, chosen.workload), np.linspace(0.0, 1.0, chosen.budgets)
    cases = []
    for case in compare_all(data, chosen.splits, shares):
        cases.append(case)
        mean, p99 = case.change("optimal", "disco")
        print(
            f"{case.constraint:7}{case.service:23}{case.device:25}"
            f"mean {mean.min():+.1%} to {mean.max():+.1%}, P99 {p99.min():+.1%} to {p99.max():+.1%}",
            flush=True,
        )
    chosen.out.write_text(page(cases, data, chosen.workload, chosen.splits, shares), encoding="utf-8")


if __name__ == "__main__":
    main()
