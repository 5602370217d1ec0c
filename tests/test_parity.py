"""Parity: one trace through the real session in virtual time and through the simulator comes to the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field, replace

import anyio
import numpy as np
import pytest
from msgspec.structs import replace as replace_struct
from timetable import Book, play
from trio.testing import MockClock

from discostream.builtin import builtin_output_lengths, builtin_profiles, builtin_prompt_lengths
from discostream.config import EndpointSettings, MigrationSettings, PolicySettings
from discostream.core.cost import Energy, Prices, Rates
from discostream.core.forecast import SILENCE_S
from discostream.core.plans import NEVER, STANDBY, PlanTable
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.endpoints.base import Endpoint, NoOptions
from discostream.errors import EndpointError, Phase
from discostream.session.conversations import Conversations
from discostream.session.house import House
from discostream.session.knowledge import Knowledge
from discostream.session.planner import Outlook, Planner
from discostream.sim.answers import Answers
from discostream.sim.contention import queued
from discostream.sim.reading import Reading
from discostream.sim.simulate import simulate
from discostream.sim.world import TAKEOVER, TRIES, Handoff, Luck, Requests, Service, World
from discostream.traces.streams import Streams
from discostream.types import (
    Carrier,
    Event,
    Finish,
    FinishReason,
    Kind,
    Message,
    Outcome,
    Piece,
    Prefix,
    Prompt,
    Request,
)

READER = 4.785
PRICES, ENERGY = Prices(2.5, 10.0), Energy(0.04, 0.06)
CHARS_PER_TOKEN = 4
MANY = 1000


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


@dataclass
class Replayed(Endpoint):
    """Does in virtual time what the simulator's arrays say, and keeps what it read of a prompt."""

    kind: Kind
    service: Service
    requests: Requests
    luck: Luck
    keeps: bool = True
    served: anyio.Semaphore | None = None
    tries: Counter[str] = field(default_factory=Counter)
    read: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = EndpointSettings(
            name=self.kind.value,
            kind=self.kind,
            dialect="replayed",
            prompt_usd_per_mtok=PRICES.prompt_usd_per_mtok if self.kind is Kind.SERVER else 0.0,
            completion_usd_per_mtok=PRICES.completion_usd_per_mtok if self.kind is Kind.SERVER else 0.0,
            prefill_joules_per_token=ENERGY.prefill_j_per_token if self.kind is Kind.DEVICE else 0.0,
            decode_joules_per_token=ENERGY.decode_j_per_token if self.kind is Kind.DEVICE else 0.0,
        )
        super().__init__(settings, NoOptions())
        self.continues = frozenset({Carrier.TOKENS})
        self.vocabulary = "numbers"
        self.slots = MANY if self.kind is Kind.DEVICE else None

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        index = int(request.request_id)
        written = len(prefix.token_ids or ())
        attempt = TAKEOVER if written else self.tries[request.request_id]
        self.tries[request.request_id] += 1
        tokens = int(self.requests.prompt_tokens[index]) + written
        yield Prompt(tokens)
        if np.isfinite(failed_after_s := self.luck.failed_after_s[attempt, index]):
            await anyio.sleep(failed_after_s)
            phase = Phase.PREFILL if failed_after_s >= SILENCE_S else Phase.REFUSED
            raise EndpointError(self.name, phase, "failed in the trace")
        serving = self._serve(request, index, attempt, written)
        async with self.served or nullcontext(), aclosing(serving) as events:
            async for event in events:
                yield event

    async def _serve(
        self, request: Request, index: int, attempt: int, written: int
    ) -> AsyncGenerator[Event, None]:
        began_at, prompt_tokens = anyio.current_time(), int(self.requests.prompt_tokens[index])
        before = self.requests.cached_tokens[index] if self.kind is Kind.DEVICE else 0.0
        cached, tokens = self.read.get(request.request_id, before), prompt_tokens + written
        yield Prompt(tokens, cached)
        ttft_s = self.service.ttft_s(tokens - cached, self.luck.ttft_s[attempt, index])
        try:
            await anyio.sleep(float(ttft_s))
        finally:
            if self.keeps and self.service.s_per_token and not written:
                ready_s = self.service.startup_s + self.luck.ttft_s[0, index]
                took_s = anyio.current_time() - began_at - ready_s
                read = cached + max(took_s, 0.0) / self.service.s_per_token
                self.read[request.request_id] = min(read, prompt_tokens)
        first_at = began_at + float(ttft_s)
        coming_s = self.service.reading.at_s[self.luck.recording[attempt, index]]
        rest = int(self.requests.output_tokens[index]) - written
        for number, at_s in enumerate(coming_s[:rest]):
            await anyio.sleep_until(first_at + at_s)
            yield Piece("x", 1, (written + number,))
        yield Finish(FinishReason.STOP, tokens, rest)


class Fixed:
    """Knowledge that nothing changes."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def known(self) -> Known:
        return self._known

    def version(self) -> object:
        return 0


class Remembering(Conversations):
    """Knows how much of each prompt the device has read before."""

    def __init__(self, endpoints: dict[str, Endpoint], requests: Requests) -> None:
        super().__init__(endpoints)
        self._requests = requests

    def uncached_chars(self, name: str, messages: tuple[Message, ...]) -> int:
        index = int(messages[0].content[:8])
        cached = self._requests.cached_tokens[index] if name == Kind.DEVICE else 0.0
        return CHARS_PER_TOKEN * int(self._requests.prompt_tokens[index] - cached)


class Drawn:
    """Says the next of the numbers that were drawn beforehand."""

    def __init__(self, draws: np.ndarray) -> None:
        self._draws = iter(draws.tolist())

    def random(self) -> float:
        return next(self._draws)


def bursts(rng: np.random.Generator, recordings: int = 40) -> Streams:
    """Answers that come in bursts, with a pause of seconds here and there."""
    gaps = [
        np.where(rng.random(150) < 0.3, rng.exponential(0.06, 150), 0.0) + 2.5 * (rng.random(150) < 0.01)
        for _ in range(recordings)
    ]
    return Streams.recorded([np.concatenate(([0.0], np.cumsum(each))) for each in gaps])


def a_world(constraint: str, rng: np.random.Generator, longest: int) -> World:
    trace = builtin_profiles()["gpt-4o"]
    usd_per_joule = 1e-3 if constraint == "device" else 1e-8
    prefill_tokens_per_s = 80.0 if constraint == "device" else 1500.0
    line = DeviceTtft.believed(1 / prefill_tokens_per_s, 0.05, 0.02)
    known = Known(
        (
            EndpointProfile(
                "device", Kind.DEVICE, Rates.of(Prices(), ENERGY, usd_per_joule), line, 21.0, energy=ENERGY
            ),
            EndpointProfile(
                "server",
                Kind.SERVER,
                Rates.of(PRICES, Energy(), usd_per_joule),
                ServerTtft(trace.ttft),
                trace.tokens_per_s,
                prices=PRICES,
            ),
        ),
        Lengths(builtin_prompt_lengths()),
        Lengths(builtin_output_lengths()),
    )
    services = {
        "device": Service(
            Reading.of(Streams.steady(21.47), longest, READER), 1.02 / prefill_tokens_per_s, 0.03
        ),
        "server": Service(Reading.of(bursts(rng), longest, READER)),
    }
    return World(known, services, READER)


def some_requests(
    rng: np.random.Generator, count: int, fails: float = 0.04
) -> tuple[Requests, dict[str, Luck]]:
    prompts = np.maximum(np.rint(builtin_prompt_lengths().sample(rng, count)), 3.0)
    answers = 1 + rng.integers(0, 120, count)
    ttft_s = builtin_profiles()["gpt-4o"].ttft.sample(rng, (TRIES, count))
    failing = rng.random((TRIES, count)) < fails
    failed_after_s = np.where(rng.random((TRIES, count)) < 0.5, 0.3, SILENCE_S)
    server = Luck(
        np.where(failing, np.inf, ttft_s),
        np.where(failing, failed_after_s, np.inf),
        rng.integers(0, 40, (TRIES, count)),
    )
    device = Luck(
        rng.exponential(0.02, (TRIES, count)), np.full((TRIES, count), np.inf), np.zeros((TRIES, count), int)
    )
    cached = np.where(rng.random(count) < 0.3, np.floor(prompts * rng.random(count)), 0.0)
    requests = Requests(prompts, answers, cached, rng.random(count), prompts - cached)
    return requests, {"device": device, "server": server}


def a_prompt(index: int, tokens: float) -> str:
    """Text of so many tokens, as four characters are taken for one, that no other request has."""
    return f"{index:08d}" + "abc " * (int(tokens) - 2)


def a_house(world: World, requests: Requests, luck: dict[str, Luck], policy: PolicySettings) -> House:
    planner = Planner(policy, Fixed(world.known), elsewhere=lambda work: work())
    planner._rng = Drawn(requests.draws)
    endpoints = {
        kind.value: Replayed(kind, world.services[kind.value], requests, luck[kind.value]) for kind in Kind
    }
    migration = MigrationSettings(consumption_tokens_per_s=READER, rescue=False)
    knowledge, conversations = Knowledge(endpoints), Remembering(endpoints, requests)
    return House(endpoints, knowledge, planner, Book(), migration, Counter(), conversations)


async def ask(house: House, requests: Requests, index: int) -> Outcome:
    content = a_prompt(index, requests.prompt_tokens[index])
    assert len(content) == CHARS_PER_TOKEN * requests.prompt_tokens[index]
    asked = Request(
        messages=(Message("user", content),), arrived_at=anyio.current_time(), request_id=str(index)
    )
    return (await play(house, asked)).outcome


def compare(answers: Answers, index: int, outcome: Outcome) -> None:
    """Everything that one request came to, live and simulated."""
    source = answers.source[index]
    assert outcome.winner == (None if source < 0 else answers.world.known.endpoints[source].name), index
    assert outcome.usd == pytest.approx(answers.usd[index], rel=1e-12, abs=1e-15), index
    if 0.0 not in [attempt.ran_s for attempt in outcome.attempts]:  # which chance lets be served, or not
        assert outcome.joules == pytest.approx(answers.joules[index], rel=1e-12, abs=1e-12), index
    assert len(outcome.migrations) == answers.moved[index], index
    np.testing.assert_allclose(outcome.delivered_s, answers.delivered_s(index), atol=1e-3)
    if outcome.winner is not None:
        assert outcome.ttft_s == pytest.approx(answers.ttft_s[index], abs=1e-6), index
    if outcome.migrations:
        assert outcome.migrations[0].at_token == answers.seam[index]


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "constraint", "share", "count"),
    [
        ("disco", "device", 0.3, 1000),
        ("disco", "server", 0.6, 1000),
        ("stochastic", "device", 0.7, 500),
        ("optimal", "device", 0.5, 500),
        ("optimal", "server", 0.8, 500),
        ("server-only", "server", 0.0, 300),
        ("device-only", "device", 0.0, 300),
    ],
)
async def test_what_is_simulated_is_what_happens(policy, constraint, share, count):
    """Winners, TTFTs, costs and handoffs are equal, and every token is delivered within 1 ms of its time."""
    rng = np.random.default_rng(7)
    world, (requests, luck) = a_world(constraint, rng, 128), some_requests(rng, count)
    house = a_house(world, requests, luck, PolicySettings(name=policy, constraint=constraint, share=share))
    table = house.planner.outlook(0.0).table
    answers = simulate(world, table, requests, luck)
    for index in range(count):
        compare(answers, index, await ask(house, requests, index))
    assert policy not in ("disco", "optimal") or answers.moved.sum() > count / 100


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("constraint", ["device", "server"])
async def test_the_papers_handoff_is_simulated_as_it_happens(constraint):
    """An answer whose source stops when the target is asked has the same gap, tokens and cost in both."""
    count, rng = 300, np.random.default_rng(5)
    world, (requests, luck) = a_world(constraint, rng, 128), some_requests(rng, count, fails=0.0)
    steady = Service(Reading.of(Streams.steady(50.0), 128, READER))
    services = {**world.services, "server": steady}
    world = replace(world, services=services, handoff=Handoff.STOP_THEN_START)
    luck = {name: replace(each, recording=np.zeros_like(each.recording)) for name, each in luck.items()}
    house = a_house(world, requests, luck, PolicySettings(name="disco", constraint=constraint, share=0.5))
    house = replace(house, migration=replace_struct(house.migration, mode="stop-then-start"))
    table = house.planner.outlook(0.0).table
    answers = simulate(world, table, requests, luck)
    for index in range(count):
        compare(answers, index, await ask(house, requests, index))
    assert answers.moved.sum() > count / 50


def any_table(rng: np.random.Generator) -> PlanTable:
    """Plans that no policy makes: whoever takes part starts at any time, stands by, or is asked twice."""
    names = [("device", "server"), ("server", "device", "server"), ("server", "server"), ("device",)]
    endpoints = names[rng.integers(len(names))]
    shape = 3, 2, len(endpoints)
    usual = rng.choice([0.0, 0.0, STANDBY, STANDBY, NEVER], shape)
    offsets = np.where(rng.random(shape) < 0.5, usual, rng.exponential(0.6, shape))
    offsets[np.isnan(offsets).all(axis=-1)] = 0.0
    servers = np.array(endpoints) == "server"
    offsets[..., servers] = np.sort(offsets[..., servers], axis=-1)
    return PlanTable("any", endpoints, np.array([40.0, 200.0, np.inf]), offsets, rng.dirichlet([1, 1], 3))


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
async def test_any_plan_is_simulated_as_it_happens(seed):
    """Hedges, those who stand by, and those whom a plan leaves out, where three attempts in ten fail."""
    count, rng = 60, np.random.default_rng(seed)
    world = a_world(("device", "server")[seed % 2], rng, 128)
    requests, luck = some_requests(rng, count, fails=0.3)
    house = a_house(world, requests, luck, PolicySettings(name="server-only"))
    outlook = Outlook(world.known, any_table(rng))
    house.planner.outlook = lambda at: outlook
    answers = simulate(world, outlook.table, requests, luck)
    for index in range(count):
        compare(answers, index, await ask(house, requests, index))


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize(
    ("constraint", "slots", "per_s"), [("device", 1, 0.4), ("server", 1, 0.6), ("server", 2, 1.2)]
)
async def test_a_queue_is_simulated_as_it_happens(constraint, slots, per_s):
    """Requests that meet at a device of one or two slots wait, win and move as they do live."""
    count, rng = 400, np.random.default_rng(11)
    world = a_world(constraint, rng, 128)
    device = replace(world.known.endpoints[0], slots=slots, service_s=6.0)
    world = replace(world, known=replace(world.known, endpoints=(device, world.known.endpoints[1])))
    requests, luck = some_requests(rng, count)
    requests = replace(requests, arrived_at_s=np.cumsum(rng.exponential(1 / per_s, count)))
    house = a_house(world, requests, luck, PolicySettings(name="disco", constraint=constraint, share=0.5))
    house.endpoints["device"].served = anyio.Semaphore(slots)
    house.endpoints["device"].slots = slots
    outlook = house.planner.outlook(0.0)
    outcomes: dict[int, Outcome] = {}

    async def arrive(index: int) -> None:
        await anyio.sleep_until(began_at + requests.arrived_at_s[index])
        outcomes[index] = await ask(house, requests, index)

    began_at = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for index in range(count):
            tasks.start_soon(arrive, index)
    queueing, waiting = queued(world, outlook.table, requests, luck, slots)
    answers = simulate(world, outlook.table, queueing, waiting)
    for index in range(count):
        compare(answers, index, outcomes[index])
    waits_s = waiting["device"].ttft_s - luck["device"].ttft_s
    assert (waits_s > 0.1).any(axis=0).sum() > count / 10
    assert (queueing.felt_tokens > requests.felt_tokens).any()
    assert answers.moved.sum() > count / 100
