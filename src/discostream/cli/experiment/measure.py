"""The measuring: every prompt answered in real time under every policy, one answer after another.

So that policies differ by nothing but their plans, they get the same prompts in the same order and meet the
same delays of the emulated server, prompt for prompt. It has its answers ready, or else it would slow down
the device beside which it generates. The policies take turns in an order that rotates, so that the machine's
moods fall on all alike. And a number that is new each time, and always equally long, opens every
conversation, so that no engine finds one in its cache that it has read for another policy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import anyio
import numpy as np
from msgspec.structs import replace

from discostream.cli.experiment.bystanders import Usage
from discostream.cli.experiment.design import BASELINES, Design, with_delays
from discostream.cli.experiment.rehearsed import RehearsedEndpoint, rehearsing
from discostream.cli.screen import count_bar, errors
from discostream.config import Settings
from discostream.core.cost import Rates, constrained_kind, exchange_rate
from discostream.core.profile import Known
from discostream.endpoints.base import Endpoint
from discostream.endpoints.emulated import EmulatedEndpoint
from discostream.errors import AllEndpointsFailed, DiscoError
from discostream.library import Disco, connect
from discostream.session.knowledge import Knowledge
from discostream.session.power import PowerSupply
from discostream.sim.study import DEVICE_IS_DEARER
from discostream.types import Message, Outcome, Request, Sampling

__all__ = ["Answered", "Measurements", "measure"]

REHEARSALS = 8
"""Prompts that both endpoints answer alone beforehand; what is believed of a device counts for as many."""

NUMBERS = 10**6
OPENING = "[{:06d}] You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer.

    Attributes:
        prompt: The prompt's place in the design.
        turn: How many policies had answered it before.
        at_s: When it was asked (monotonic seconds).
    """

    policy: str
    prompt: int
    turn: int
    at_s: float
    outcome: Outcome


@dataclass
class Measurements:
    """What is measured so far.

    Attributes:
        settings: With the exchange rate of the beginning and the constraint that follows from it.
        known: What both endpoints have shown alone, once measuring is over.
        taken_by_others: The share of all cores that other programs used meanwhile.
    """

    settings: Settings
    answers: list[Answered] = field(default_factory=list)
    known: Known | None = None
    taken_by_others: float = 0.0

    def of(self, policy: str) -> list[Answered]:
        """The answers of one policy, in the order of their prompts."""
        return [answered for answered in self.answers if answered.policy == policy]

    @property
    def usd_per_joule(self) -> float:
        """The exchange rate."""
        return exchange_rate(self.settings.cost, None)


async def measure(design: Design, measured: Measurements) -> None:
    """Answer every prompt under every policy.

    Args:
        design: What is asked.
        measured: Brings the settings, as `experiment_settings` makes them, and takes what is measured, also
            if all this is cancelled on the way.

    Raises:
        EndpointError: An engine cannot be started.
        DiscoError: An endpoint cannot answer at all.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = with_delays(measured.settings, design.trace, Path(folder))
        disco = connect(settings, seed=design.seed)
        device, server = disco.endpoints.values()
        emulated, rehearsed = rehearsing(server)
        disco.endpoints[emulated.name] = emulated
        async with disco:
            with errors.status("Starting the engines"):
                await disco.ready()
            measured.settings = _settled(settings, device, emulated)
            await _Stage(disco, emulated, rehearsed, design, measured).play()


def _settled(settings: Settings, device: Endpoint, server: Endpoint) -> Settings:
    """The settings with one exchange rate from here on, and the constraint that follows from it."""
    usd_per_joule = _usd_per_joule(settings, device, server)
    constraint = settings.policy.constraint
    if constraint == "auto":
        rates = (Rates.of(each.prices, each.energy, usd_per_joule) for each in (device, server))
        constraint = constrained_kind(*rates).value
    return replace(
        settings,
        cost=replace(settings.cost, usd_per_joule=usd_per_joule),
        policy=replace(settings.policy, constraint=constraint),
    )


def _usd_per_joule(settings: Settings, device: Endpoint, server: Endpoint) -> float:
    """What a joule is worth: where the settings do not say, so much that the constrained kind is the dearer.

    Otherwise answers would move to the very endpoint that the share holds back.
    """
    cost, constraint = settings.cost, settings.policy.constraint
    if cost.usd_per_joule is not None or constraint == "auto":
        return exchange_rate(cost, PowerSupply().charge())
    socket = exchange_rate(cost, None)
    joules = min(device.energy.prefill_j_per_token, device.energy.decode_j_per_token)
    if constraint == "server" or not joules:
        return socket
    usd = max(server.prices.usd(1, 0), server.prices.usd(0, 1))
    return max(socket, DEVICE_IS_DEARER * usd / joules)


class _Stage:
    """Where the answers are given."""

    def __init__(
        self,
        disco: Disco,
        server: EmulatedEndpoint,
        rehearsed: RehearsedEndpoint,
        design: Design,
        measured: Measurements,
    ) -> None:
        self.disco = disco
        self.server = server
        self.rehearsed = rehearsed
        self.design = design
        self.measured = measured
        self.numbers = _numbers(design)
        self.usage = Usage.now()

    async def play(self) -> None:
        """Rehearse, then measure."""
        self.disco.expect_prompts([len(OPENING) + len(prompt) for prompt in self.design.prompts])
        ways = {policy: self._under(policy) for policy in self.design.policies}
        with errors.status("Rehearsing"):
            round_s = await self._rehearse(ways)
        _announce(self.design, round_s)
        try:
            with count_bar("Answering", len(self.design.prompts) * len(ways)) as advance:
                await self._take_turns(ways, advance)
        finally:
            self.measured.known = self._learnt()

    def _under(self, policy: str) -> Disco:
        settings = self.measured.settings
        return self.disco.under(policy=replace(settings.policy, name=policy), cost=settings.cost)

    async def _rehearse(self, ways: Mapping[str, Disco]) -> float:
        """Answer what does not count, so that there are plans to begin with; how long a round may take."""
        some = _of_all_lengths(self.design.prompts)
        device_s, server_s = [
            mean([await self._try(ways[policy], prompt) for prompt in some]) for policy in BASELINES
        ]
        for policy in self.design.policies[len(BASELINES) :]:
            await self._try(ways[policy], some[0])
        return device_s + server_s * (len(ways) - 1)

    async def _try(self, way: Disco, prompt: str) -> float:
        """How long it took to answer a prompt."""
        began_at = anyio.current_time()
        outcome = await self._answer(way, prompt, len(self.design.prompts))
        if outcome.error:
            raise DiscoError(f"{way.settings.policy.name}: {outcome.error}")
        return anyio.current_time() - began_at

    async def _take_turns(self, ways: Mapping[str, Disco], advance: Callable[[], None]) -> None:
        """Every prompt under every policy; who comes first for one prompt comes last for the next."""
        for number, prompt in enumerate(self.design.prompts):
            for turn in range(len(ways)):
                policy = list(ways)[(number + turn) % len(ways)]
                at_s = anyio.current_time()
                outcome = await self._answer(ways[policy], prompt, number)
                self.measured.answers.append(Answered(policy, number, turn, at_s, outcome))
                self.measured.taken_by_others = Usage.now().taken_by_others(self.usage)
                advance()

    async def _answer(self, way: Disco, prompt: str, delays: int) -> Outcome:
        """What comes of one answer, under these delays of the server."""
        messages = Message("system", OPENING.format(next(self.numbers))), Message("user", prompt)
        if way.settings.policy.name != "device-only":
            await self._set_up_server(messages, delays)
        async with way.stream(messages, max_tokens=self.design.max_tokens, temperature=0.0) as answer:
            with suppress(AllEndpointsFailed):  # the outcome has it
                async for _ in answer:
                    pass
        assert answer.outcome is not None
        return answer.outcome

    async def _set_up_server(self, messages: tuple[Message, ...], delays: int) -> None:
        """Have its answer ready, and where answers move to it, the prompt read, so that delays are all."""
        request = Request(
            messages=messages,
            arrived_at=0.0,
            request_id="rehearsal",
            max_tokens=self.design.max_tokens,
            sampling=Sampling(temperature=0.0),
        )
        if self.rehearsed.question != messages[-1].content:
            await self.rehearsed.rehearse(request)
        if self._takes_over():
            await self.rehearsed.read_ahead(request)
        self.server.reseed(self.design.seed, delays)

    def _takes_over(self) -> bool:
        """Whether answers move to the server."""
        device, server = (
            Rates.of(each.prices, each.energy, self.measured.usd_per_joule)
            for each in self.disco.endpoints.values()
        )
        return server.decode_usd < device.decode_usd

    def _learnt(self) -> Known:
        """What the answers by one endpoint alone have taught, as the live path learns it."""
        alone = [answered.outcome for policy in BASELINES for answered in self.measured.of(policy)]
        knowledge = Knowledge(self.disco.endpoints, self.disco.settings.profile)
        knowledge.expect_prompts([len(OPENING) + len(prompt) for prompt in self.design.prompts])
        for outcome in alone:
            knowledge.observe(outcome, 0.0)
        return knowledge.known(self.measured.usd_per_joule)


def _of_all_lengths(prompts: Sequence[str]) -> list[str]:
    """Some prompts, from the shortest to the longest."""
    places = np.linspace(0, len(prompts) - 1, min(REHEARSALS, len(prompts)))
    return [sorted(prompts, key=len)[round(place)] for place in places]


def _numbers(design: Design) -> Iterator[int]:
    """A new number for every conversation, rehearsals included."""
    asked = (len(design.prompts) + REHEARSALS) * len(design.policies)
    drawn: list[int] = np.random.default_rng(design.seed).choice(NUMBERS, asked, replace=False).tolist()
    return iter(drawn)


def _announce(design: Design, round_s: float) -> None:
    minutes = max(1, round(len(design.prompts) * round_s / 60))
    errors.print(
        f"{len(design.prompts)} prompts under each of {len(design.policies)} policies, one answer after "
        f"another: this takes about {minutes} minute{'s' * (minutes > 1)}. Ctrl-C shows what there is so far."
    )
