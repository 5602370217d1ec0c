"""What a reader notices of handoffs, and what they are worth, on the real engine.

A server is emulated from a recorded one around the embedded engine; it has its answers ready, so that it
takes nothing of the machine on which the device generates. Four tables, of which `--lines` chooses:

A  what is read: answers begin at the server and move to the device, from SmolLM2 to SmolLM2 by tokens, and
   from SmolLM2 to Gemma and back by text; each prompt is answered once more without migration
B  quality: the same answers, scored by the stronger of the two models
C  money: policy `disco` with half of the prompt tokens for the server, with and without migration; greedily,
   and with answers about as long as GPT-4o's are in the median
D  warm standby: the gap of a handoff to a device that lost the race for this prompt, and to one that was
   not in it

Run it alone on the machine; a hundred prompts take more than an hour:

    python benchmarks/handoff.py [--json] [--lines ABCD] [--prompts 100] [--server-trace FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import anyio
import msgspec
import numpy as np
from numpy.typing import ArrayLike

from discostream import Disco, connect
from discostream.builtin import builtin_output_lengths
from discostream.cli.experiment.figures import FIGURES, Sample
from discostream.cli.experiment.measure import OPENING
from discostream.cli.experiment.prompts import made_prompts
from discostream.cli.experiment.rehearsed import RehearsedEndpoint, rehearsing
from discostream.cli.screen import count_bar
from discostream.config import MigrationSettings, PolicySettings, Settings, embedded_pair, settings_from
from discostream.core.cost import exchange_rate
from discostream.core.qoe import qoe
from discostream.endpoints.base import Endpoint
from discostream.endpoints.emulated import EmulatedEndpoint
from discostream.endpoints.llamacpp import LlamaCppEndpoint
from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.engine.catalogue import resolve_model
from discostream.engine.supervisor import Engine, EngineSettings
from discostream.types import (
    AttemptOutcome,
    Event,
    Kind,
    Message,
    Outcome,
    Prefix,
    Prompt,
    Request,
    Sampling,
)

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from gemma import gemma_path
from scoring import Score, Scorer
from seams import DEFECTS, defects, words_of

READER = 4.785
"""Tokens a second: the consumption of the paper's evaluation."""

SMOLLM2 = "smollm2-135m-instruct"
TRACE = Path(__file__).resolve().parents[2] / "shared/data/whisper-leak/packets-GPT4o.jsonl.gz"
WINDOW = 8
"""Tokens on either side of a seam that are looked at by themselves."""

CONFIDENCE = 0.95
REDRAWS = 1000

HUMAN = (
    "There were four of us—George, and William Samuel Harris, and myself, and Montmorency. We were sitting "
    "in my room, smoking, and talking about how bad we were—bad from a medical point of view I mean, of "
    "course. We were all feeling seedy, and we were getting quite nervous about it. Harris said he felt such "
    "extraordinary fits of giddiness come over him at times, that he hardly knew what he was doing; and then "
    "George said that he had fits of giddiness too, and hardly knew what he was doing. With me, it was my "
    "liver that was out of order. I knew it was my liver that was out of order, because I had just been "
    "reading a patent liver-pill circular, in which were detailed the various symptoms by which a man could "
    "tell when his liver was out of order. I had them all."
)
"""What the two models are compared by: Jerome K. Jerome, Three Men in a Boat (1889), the beginning."""

AT_LENGTH = "\nWrite at least 300 words, and give reasons and examples."
"""Of ten long prompts SmolLM2 answers five in less than a hundred tokens, but only one when this is added."""

Columns = Mapping[str, Callable[[Mapping[str, Any]], str]]


@dataclass(frozen=True)
class Design:
    """What is asked, and how.

    Attributes:
        trace: Whose delays and pace the server has: a built-in profile or a file.
        seed: Fixes the server's delays, the policies' draws, and with a prompt's number what is sampled.
    """

    prompts: tuple[str, ...]
    trace: str
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Route:
    """From which model to which: names as settings have them."""

    name: str
    server: str
    device: str


@dataclass(frozen=True)
class Told:
    """One answer."""

    text: str
    outcome: Outcome

    @property
    def at_char(self) -> int | None:
        """Where it moved; `None` if it did not."""
        moves = self.outcome.migrations
        return moves[0].at_char if moves else None


@dataclass(frozen=True)
class Pair:
    """The answers to one prompt, with migration and without."""

    prompt: str
    moved: Told
    stayed: Told

    def seam_defects(self, vocabulary: frozenset[str]) -> list[str]:
        """What shows at the seam, and not at this place when the answer stays where it is."""
        at = self.moved.at_char
        if at is None:
            return []
        own = defects(self.stayed.text, at, vocabulary) if at < len(self.stayed.text) else []
        return [defect for defect in defects(self.moved.text, at, vocabulary) if defect not in own]


@dataclass(frozen=True)
class Read:
    """Line A for one route."""

    route: str
    by: str
    prompts: int
    moved: int
    p99_tbt_s: float
    p99_tbt_unmoved_s: float
    delayed_tokens: float
    qoe: float
    qoe_unmoved: float
    gap_s: float
    defects: Mapping[str, int]
    defective: Sequence[str]


@dataclass(frozen=True)
class Quality:
    """Line B for one route: log-probabilities per token, migrated and not, and the differences of pairs."""

    route: str
    answers: int
    migrated: float
    unmigrated: float
    difference: tuple[float, float, float]
    seam_migrated: float
    seam_unmigrated: float
    seam_difference: tuple[float, float, float]


@dataclass(frozen=True)
class Money:
    """Line C: dollars at the server, with migration and without, and what became of the answers."""

    prompts: int
    planned_alike: int
    served: int
    moved: int
    usd: float
    usd_unmoved: float
    saved: tuple[float, float, float]
    qoe: float
    qoe_unmoved: float
    qoe_change: tuple[float, float, float]


@dataclass(frozen=True)
class Standby:
    """Line D: seconds from the last piece before the seam to the first behind it; medians."""

    prompt_tokens: int
    runs: int
    cold_s: float
    warm_s: float


class Stage:
    """Answers prompts at a device and a server, of which the server has its answers ready."""

    def __init__(
        self, disco: Disco, server: EmulatedEndpoint, rehearsed: RehearsedEndpoint, design: Design
    ) -> None:
        self.disco = disco
        self.server = server
        self.rehearsed = rehearsed
        self.design = design

    def way(self, policy: PolicySettings, *, migrates: bool) -> Disco:
        """The connection under a policy, with migration or without."""
        rules = MigrationSettings(enabled=migrates, consumption_tokens_per_s=READER)
        return self.disco.under(policy=policy, migration=rules)

    async def answer(self, way: Disco, number: int, opening: str = "") -> Told:
        """The answer to one of the design's prompts; the server meets the same delays whatever the way.

        Args:
            way: Who starts, and whether the answer may move.
            number: The prompt's.
            opening: A system message, which the server is taken to answer all the same.
        """
        prompt = self.design.prompts[number]
        messages = (*([Message("system", opening)] if opening else []), Message("user", prompt))
        sampled = {"temperature": self.design.temperature, "seed": number}
        if self.rehearsed.question != prompt:
            await self.rehearsed.rehearse(
                Request(
                    messages=messages,
                    arrived_at=0.0,
                    request_id="rehearsal",
                    max_tokens=self.design.max_tokens,
                    sampling=Sampling(**sampled),
                )
            )
        self.server.reseed(self.design.seed, number)
        async with way.stream(messages, max_tokens=self.design.max_tokens, **sampled) as answer:
            text = "".join([piece.text async for piece in answer])
        assert answer.outcome is not None
        return Told(text, answer.outcome)


@asynccontextmanager
async def staged(design: Design, server: str, device: str) -> AsyncIterator[Stage]:
    """Both engines, running."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        disco = connect(settings_for(design.trace, server, device, Path(folder)), seed=design.seed)
        emulated, rehearsed = rehearsing(disco.endpoints["server"])
        disco.endpoints["server"] = emulated
        async with disco:
            await disco.ready()
            yield Stage(disco, emulated, rehearsed, design)


def settings_for(trace: str, server: str, device: str, folder: Path) -> Settings:
    """The embedded pair with these models and delays, on the mains, and with a ledger of its own."""
    own_device, own_server = embedded_pair()
    del own_server["tokens_per_s"]  # the trace has a pace
    tree = {
        "endpoint": [{**own_device, "model": device}, {**own_server, "model": server, "ttft": trace}],
        "ledger": {"path": str(folder / "handoff.db")},
    }
    settings = settings_from(tree)
    rate = msgspec.structs.replace(settings.cost, usd_per_joule=exchange_rate(settings.cost, None))
    return msgspec.structs.replace(settings, cost=rate)


def routes() -> tuple[Route, ...]:
    """By tokens, and by text both ways."""
    gemma = str(gemma_path())
    return (
        Route("SmolLM2 to SmolLM2", SMOLLM2, SMOLLM2),
        Route("SmolLM2 to Gemma", SMOLLM2, gemma),
        Route("Gemma to SmolLM2", gemma, SMOLLM2),
    )


async def answer_pairs(design: Design, route: Route, advance: Callable[[], None]) -> list[Pair]:
    """Every prompt twice: begun at the server and free to move, and begun there to stay."""
    from_server = PolicySettings(name="offsets", offsets={"server": 0.0})
    async with staged(design, route.server, route.device) as stage:
        free, bound = (stage.way(from_server, migrates=migrates) for migrates in (True, False))
        pairs = []
        for number, prompt in enumerate(design.prompts):
            moved = await stage.answer(free, number)
            pairs.append(Pair(prompt, moved, await stage.answer(bound, number)))
            advance()
        return pairs


def read(route: Route, pairs: Sequence[Pair]) -> Read:
    """Line A of answers."""
    moved, stayed = sample_of(pair.moved for pair in pairs), sample_of(pair.stayed for pair in pairs)
    vocabulary = words_of(text for pair in pairs for text in (pair.prompt, pair.stayed.text))
    found = [(pair, pair.seam_defects(vocabulary)) for pair in pairs]
    moves = [move for pair in pairs for move in pair.moved.outcome.migrations]
    return Read(
        route=route.name,
        by=", ".join(sorted({move.by.value for move in moves})),
        prompts=len(pairs),
        moved=len(moves),
        p99_tbt_s=FIGURES["p99_tbt_s"](moved),
        p99_tbt_unmoved_s=FIGURES["p99_tbt_s"](stayed),
        delayed_tokens=FIGURES["delayed_tokens_mean"](moved),
        qoe=FIGURES["qoe_mean"](moved),
        qoe_unmoved=FIGURES["qoe_mean"](stayed),
        gap_s=median(move.gap_s for move in moves) if moves else 0.0,
        defects={name: sum(name in names for _, names in found) for name in DEFECTS},
        defective=[f"{', '.join(names)}: {around_seam(pair.moved)}" for pair, names in found if names],
    )


def sample_of(answers: Iterable[Told]) -> Sample:
    """Their figures, as the experiment has them."""
    return Sample.of([told.outcome for told in answers], Kind.SERVER, 0.0, READER)


def around_seam(told: Told) -> str:
    """Some of the text on both sides of the seam, which is marked."""
    at = told.at_char or 0
    return repr(f"{told.text[max(at - 60, 0) : at]}‖{told.text[at : at + 60]}")


async def stronger(models: Iterable[str]) -> tuple[str, dict[str, float]]:
    """The model to which the human text is more probable, and by model its log-probability per character."""
    found = {}
    for model in models:
        async with scoring(model) as scorer:
            score = scorer.score("", HUMAN)
            found[model] = sum(score.logprobs) / len(HUMAN)
    return max(found, key=found.__getitem__), found


@asynccontextmanager
async def scoring(model: str) -> AsyncIterator[Scorer]:
    """A model that scores."""
    threads = max(1, (os.cpu_count() or 2) // 2)
    engine = Engine(EngineSettings(model=resolve_model(model), threads=threads, slots=1))
    engine.start()
    try:
        yield Scorer(await engine.address())
    finally:
        await anyio.to_thread.run_sync(engine.stop)


async def scored(
    scorer: Scorer, answered: Mapping[str, Sequence[Pair]], advance: Callable[[], None]
) -> dict[tuple[str, str], Score]:
    """The score of every answer to every prompt; those that begin alike one after another."""
    found = {}
    pairs = [pair for several in answered.values() for pair in several if pair.moved.at_char is not None]
    asked = {(pair.prompt, told.text) for pair in pairs for told in (pair.moved, pair.stayed)}
    for prompt, text in sorted(asked):
        found[prompt, text] = await anyio.to_thread.run_sync(scorer.score, prompt, text)
        advance()
    return found


def quality(route: str, pairs: Iterable[Pair], scores: Mapping[tuple[str, str], Score]) -> Quality | None:
    """Line B of the answers that moved; `None` if fewer than two did."""
    whole, near = [], []
    for pair in pairs:
        at = pair.moved.at_char
        if at is None:
            continue
        moved, stayed = (scores[pair.prompt, told.text] for told in (pair.moved, pair.stayed))
        whole.append((moved.mean(), stayed.mean()))
        window = moved.window(at, WINDOW)
        beside = stayed.mean(*window)
        if beside is not None:
            near.append((moved.mean(*window), beside))
    if len(whole) < 2 or len(near) < 2:
        return None
    (migrated, unmigrated), (seam_migrated, seam_unmigrated) = map(partial(np.mean, axis=0), (whole, near))
    return Quality(
        route=route,
        answers=len(whole),
        migrated=float(migrated),
        unmigrated=float(unmigrated),
        difference=interval([moved - stayed for moved, stayed in whole]),
        seam_migrated=float(seam_migrated),
        seam_unmigrated=float(seam_unmigrated),
        seam_difference=interval([moved - stayed for moved, stayed in near]),
    )


def interval(values: ArrayLike) -> tuple[float, float, float]:
    """The mean of at least two values, and from where to where the true one lies with our `CONFIDENCE`."""
    middle, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * spread / np.size(values) ** 0.5
    return middle, middle - half, middle + half


async def spend(design: Design, advance: Callable[[], None]) -> Money:
    """Line C: every prompt with migration and without, in turns, each time in a conversation of its own."""
    policy = PolicySettings(name="disco", constraint="server", share=0.5)
    openings = iter(random.Random(design.seed).sample(range(10**6), 2 * len(design.prompts)))
    answers: dict[bool, list[Outcome]] = {True: [], False: []}
    median_tokens = round(float(builtin_output_lengths().quantile(0.5)))
    prompts = tuple(prompt + AT_LENGTH for prompt in design.prompts)
    design = replace(design, prompts=prompts, temperature=0.0, max_tokens=median_tokens)
    async with staged(design, SMOLLM2, SMOLLM2) as stage:
        stage.disco.expect_prompts([len(OPENING) + len(prompt) for prompt in design.prompts])
        ways = {migrates: stage.way(policy, migrates=migrates) for migrates in (True, False)}
        for number in range(len(design.prompts)):
            for migrates in (True, False) if number % 2 else (False, True):
                told = await stage.answer(ways[migrates], number, OPENING.format(next(openings)))
                answers[migrates].append(told.outcome)
            advance()
    return money(answers[True], answers[False])


def money(moved: Sequence[Outcome], stayed: Sequence[Outcome]) -> Money:
    """What the server took for answers with migration and without."""
    spent = np.array([[server_usd(outcome) for outcome in outcomes] for outcomes in (moved, stayed)])
    draws = np.random.default_rng(0).integers(len(moved), size=(REDRAWS, len(moved)))
    felt = np.array([[felt_qoe(outcome) for outcome in outcomes] for outcomes in (moved, stayed)])
    ends = np.quantile(saved(spent[:, draws]), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Money(
        prompts=len(moved),
        planned_alike=sum(starts(one) == starts(other) for one, other in zip(moved, stayed, strict=True)),
        served=sum(server_usd(outcome) > 0 for outcome in stayed),
        moved=sum(bool(outcome.migrations) for outcome in moved),
        usd=float(spent[0].sum()),
        usd_unmoved=float(spent[1].sum()),
        saved=(float(saved(spent)), *ends.tolist()),
        qoe=float(felt[0].mean()),
        qoe_unmoved=float(felt[1].mean()),
        qoe_change=interval((felt[0] - felt[1]) / felt[1].mean()),
    )


def felt_qoe(outcome: Outcome) -> float:
    """Quality of experience; 0 where no content came."""
    return qoe(outcome.delivered_s, READER) if outcome.delivered_s else 0.0


def server_usd(outcome: Outcome) -> float:
    """Dollars of all attempts at servers."""
    return sum(attempt.usd for attempt in outcome.attempts if attempt.kind is Kind.SERVER)


def saved(spent: Any) -> Any:
    """The part that migration saves; shape (with and without, ..., answers)."""
    with_it, without = spent.sum(axis=-1)
    return 1.0 - with_it / np.maximum(without, 1e-12)


def starts(outcome: Outcome) -> frozenset[str]:
    """Who was asked before the first content came."""
    until_s = outcome.ttft_s or 0.0
    ran = (attempt for attempt in outcome.attempts if attempt.outcome is not AttemptOutcome.NOT_STARTED)
    return frozenset(attempt.endpoint for attempt in ran if attempt.start_offset_s <= until_s)


class ReadingDevice(LlamaCppEndpoint):
    """The embedded engine, which lets others know that it has come to the last batch of a prompt."""

    at_last_batch = anyio.Event()

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        """See `Endpoint.generate`."""
        async with aclosing(super().generate(request, prefix)) as events:
            async for event in events:
                read = event.read_tokens if isinstance(event, Prompt) else None
                if read is not None and event.tokens - read <= self.options.batch_tokens:
                    self.at_last_batch.set()
                yield event


class Rival(ScriptedEndpoint):
    """A server that begins to speak when it may."""

    may_speak = anyio.Event()

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        """See `Endpoint.generate`."""
        await self.may_speak.wait()
        async with aclosing(super().generate(request, prefix)) as events:
            async for event in events:
                yield event


async def stand_by(runs: int, seed: int, prompt_tokens: int = 600) -> Standby:
    """Line D: the gap of a handoff to the device, cold and warm, in turns; every prompt is a new one.

    A cold device was not started before. A warm one lost the race while it was reading the last batch of the
    prompt, which llama.cpp then reads to its end. The server breaks off, so that every answer is handed over.
    """
    chance, gaps_s = random.Random(seed), {"cold": list[float](), "warm": list[float]()}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        disco = connect(standing_by(Path(folder)), seed=seed)
        device, server = disco.endpoints["device"], disco.endpoints["server"]
        device.__class__, server.__class__ = ReadingDevice, Rival
        async with disco:
            await disco.ready()
            text = await words_of_length(device, prompt_tokens, chance)
            for _ in range(runs):
                server.may_speak = anyio.Event()
                server.may_speak.set()
                gaps_s["cold"].append(await gap_s(disco, fresh(text, chance), starts=("server",)))
                device.at_last_batch = server.may_speak = anyio.Event()
                gaps_s["warm"].append(await gap_s(disco, fresh(text, chance), starts=("server", "device")))
    return Standby(prompt_tokens, runs, median(gaps_s["cold"]), median(gaps_s["warm"]))


def standing_by(folder: Path) -> Settings:
    """The embedded device, and beside it a server that says a few words and breaks off."""
    script = {"answer": "Here is what you asked me for, word by word: ", "tbt_s": 0.1, "breaks_after": 9}
    server = {"name": "server", "kind": "server", "dialect": "scripted", **script}
    free = {"prompt_usd_per_mtok": 0.0, "completion_usd_per_mtok": 0.0}
    tree = {"endpoint": [embedded_pair()[0], server | free], "ledger": {"path": str(folder / "standby.db")}}
    return settings_from(tree)


async def gap_s(disco: Disco, request: Request, starts: Sequence[str]) -> float:
    """How long the handoff from the server to the device takes, as the session settles it."""
    way = disco.under(policy=PolicySettings(name="offsets", offsets=dict.fromkeys(starts, 0.0)))
    async with way.stream(request.messages, max_tokens=24) as answer:
        async for _ in answer:
            pass
    assert answer.outcome is not None
    (migration,) = answer.outcome.migrations
    return migration.gap_s


async def words_of_length(device: Endpoint, tokens: int, chance: random.Random) -> str:
    """Words, of which a prompt by `fresh` has about so many tokens."""
    words = [chance.choice(["river", "stone", "cloud", "engine", "letter"]) for _ in range(tokens)]
    while (longer_by := await prompt_tokens_of(device, fresh(" ".join(words), chance)) - tokens) > 0:
        del words[-longer_by:]
    return " ".join(words)


def fresh(text: str, chance: random.Random) -> Request:
    """A prompt that shares no cacheable beginning with any other."""
    messages = Message("system", OPENING.format(chance.randrange(10**6))), Message("user", text)
    return Request(messages=messages, arrived_at=0.0, request_id="standby", max_tokens=8)


async def prompt_tokens_of(device: Endpoint, request: Request) -> int:
    """How long the device says that a prompt is; it is not read."""
    async with aclosing(device.generate(request, Prefix())) as events:
        async for event in events:
            if isinstance(event, Prompt):
                return event.tokens
    raise RuntimeError("the device does not say how long a prompt is")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lines", default="ABCD", help="B answers as A does")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--server-trace", default=str(TRACE) if TRACE.is_file() else "gpt-4o")
    parser.add_argument(
        "--workload", type=Path, help="JSON lines of Self-Instruct, in place of made-up prompts"
    )
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument(
        "--temperature", type=float, default=0.7, help="greedily, Gemma says one thing for ever"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if chosen.prompts < 2:
        parser.error("--prompts: two at least, for intervals")
    rng = np.random.default_rng(chosen.seed)
    design = Design(
        prompts=instructions(chosen.workload, chosen.prompts, rng)
        if chosen.workload
        else made_prompts(chosen.prompts, rng),
        trace=chosen.server_trace,
        max_tokens=chosen.max_tokens,
        temperature=chosen.temperature,
        seed=chosen.seed,
    )
    told = anyio.run(measure, design, chosen.lines.upper())
    print(json.dumps(told, indent=2) if chosen.json else as_tables(told))


def instructions(path: Path, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Some of the instructions in a file of Self-Instruct, each with its input."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = ["\n".join(filter(None, (row["instruction"], row["instances"][0]["input"]))) for row in rows]
    return tuple(prompts[place] for place in rng.permutation(len(prompts))[:count])


async def measure(design: Design, lines: str) -> dict[str, Any]:
    """Everything that the lines ask for."""
    told: dict[str, Any] = {
        "machine": machine(),
        "design": {**asdict(design), "prompts": len(design.prompts)},
    }
    if set("AB") & set(lines):
        told |= await measure_answers(design, scores="B" in lines)
    if "C" in lines:
        with count_bar("C: prompts with and without migration", len(design.prompts)) as advance:
            told["money"] = asdict(await spend(design, advance))
    if "D" in lines:
        told["standby"] = asdict(await stand_by(max(3, len(design.prompts) // 10), design.seed))
    return told


async def measure_answers(design: Design, *, scores: bool) -> dict[str, Any]:
    """Lines A and B."""
    chosen = routes()
    with count_bar("A: prompts, by every route", len(chosen) * len(design.prompts)) as advance:
        answered = {route.name: await answer_pairs(design, route, advance) for route in chosen}
    told: dict[str, Any] = {"read": [asdict(read(route, answered[route.name])) for route in chosen]}
    if scores:
        model, per_char = await stronger({SMOLLM2, str(gemma_path())})
        count = 2 * sum(pair.moved.at_char is not None for pairs in answered.values() for pair in pairs)
        with count_bar("B: answers to score, at most", count) as advance:
            async with scoring(model) as scorer:
                found = await scored(scorer, answered, advance)
        rows = [quality(name, pairs, found) for name, pairs in answered.items()]
        told["per_char"] = {Path(name).name: figure for name, figure in per_char.items()}
        told["quality"] = [asdict(row) for row in rows if row]
    return told


def machine() -> dict[str, Any]:
    """Where this was measured, and with what."""
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "xllamacpp": version("xllamacpp"),
    }


def as_tables(told: Mapping[str, Any]) -> str:
    """The figures for people."""
    facts = {**told["machine"], **told["design"], "reader tokens/s": READER}
    blocks = [", ".join(f"{name} {value}" for name, value in facts.items())]
    if "read" in told:
        blocks.append(table(READ, told["read"]))
        blocks += [f"  {each}" for row in told["read"] for each in row["defective"]]
    if "quality" in told:
        per_char = ", ".join(f"{model} {figure:.3f}" for model, figure in told["per_char"].items())
        blocks.append(table(QUALITY, told["quality"]))
        blocks.append(f"Scored by the stronger model: {per_char} per character of a human text.")
    if "money" in told:
        blocks.append(table(MONEY, [told["money"]]))
    if "standby" in told:
        blocks.append(table(STANDBY, [told["standby"]]))
    return "\n\n".join(blocks)


def table(
    columns: Mapping[str, Callable[[Mapping[str, Any]], str]], rows: Sequence[Mapping[str, Any]]
) -> str:
    """Columns as wide as what is in them."""
    cells = [list(columns), *([told(row) for told in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
    )


def ranged(figures: Sequence[float], form: str = "+.3f") -> str:
    """A figure and its interval."""
    middle, low, high = (format(figure, form) for figure in figures)
    return f"{middle} [{low}, {high}]"


READ = {
    "A": lambda row: row["route"],
    "by": lambda row: row["by"],
    "moved": lambda row: f"{row['moved']} of {row['prompts']}",
    "P99 TBT s": lambda row: f"{row['p99_tbt_s']:.4f}",
    "unmoved": lambda row: f"{row['p99_tbt_unmoved_s']:.4f}",
    "delayed": lambda row: f"{row['delayed_tokens']:.2f}",
    "QoE": lambda row: f"{row['qoe']:.4f}",
    "unmoved ": lambda row: f"{row['qoe_unmoved']:.4f}",
    "gap s": lambda row: f"{row['gap_s']:.2f}",
    **{name: lambda row, name=name: str(row["defects"][name]) for name in DEFECTS},
}
QUALITY = {
    "B": lambda row: row["route"],
    "answers": lambda row: str(row["answers"]),
    "migrated": lambda row: f"{row['migrated']:.3f}",
    "unmigrated": lambda row: f"{row['unmigrated']:.3f}",
    "difference": lambda row: ranged(row["difference"]),
    "at the seam": lambda row: f"{row['seam_migrated']:.3f}",
    "unmigrated ": lambda row: f"{row['seam_unmigrated']:.3f}",
    "difference ": lambda row: ranged(row["seam_difference"]),
}
MONEY = {
    "C": lambda row: "disco, server constrained, share 0.5",
    "prompts": lambda row: str(row["prompts"]),
    "same start": lambda row: str(row["planned_alike"]),
    "server asked": lambda row: str(row["served"]),
    "moved": lambda row: str(row["moved"]),
    "server $": lambda row: f"{row['usd']:.5f}",
    "unmoved": lambda row: f"{row['usd_unmoved']:.5f}",
    "saved": lambda row: ranged(row["saved"], ".1%"),
    "QoE": lambda row: f"{row['qoe']:.4f}",
    "unmoved ": lambda row: f"{row['qoe_unmoved']:.4f}",
    "change": lambda row: ranged(row["qoe_change"], "+.2%"),
}
STANDBY = {
    "D": lambda row: f"{row['prompt_tokens']} prompt tokens",
    "runs": lambda row: str(row["runs"]),
    "cold s": lambda row: f"{row['cold_s']:.3f}",
    "warm s": lambda row: f"{row['warm_s']:.3f}",
    "warm / cold": lambda row: f"{row['warm_s'] / row['cold_s']:.3f}",
}


if __name__ == "__main__":
    main()
