"""What the simulator says of the same requests, by nothing but what each endpoint has shown alone.

The live planner and purse make the plans, one request after the other, so that they follow what was spent as
they do in use; the simulator says what becomes of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from msgspec.structs import replace as with_changed
from numpy.typing import NDArray

from discostream.cli.experiment.design import BASELINES, Design
from discostream.cli.experiment.measure import Answered, Measurements
from discostream.core.budget import budgets_from
from discostream.core.distributions import Distribution
from discostream.core.plans import STANDBY, PlanTable
from discostream.core.profile import EndpointProfile, Known, Lengths
from discostream.session.planner import Planner
from discostream.session.purse import Purse
from discostream.sim.answers import Answers
from discostream.sim.reading import Reading
from discostream.sim.simulate import simulate
from discostream.sim.world import TRIES, Handoff, Luck, Requests, Service, World
from discostream.traces.streams import Streams
from discostream.types import Kind, Outcome, Plan

__all__ = ["predicted"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


def predicted(policy: str, measured: Measurements, design: Design) -> Iterator[Answers]:
    """What should have come of every prompt that was answered under a policy, in their order.

    For each, the server takes as long as it took alone, and the device what its line says, times by how much
    it was off the line for some other prompt. Answers are as long as they were, which is the model's luck and
    none of the policy's doing; so are the lots that plans draw.

    Args:
        policy: What plans them.
        measured: Whole rounds: every prompt was answered under all policies.
        design: What was asked.
    """
    device, server = (_Alone.of([each.outcome for each in measured.of(one)]) for one in BASELINES)
    world = _world(policy, measured, design, {Kind.DEVICE: device, Kind.SERVER: server})
    rng = np.random.default_rng(design.seed)
    luck = {
        one.name: (device if one.kind is Kind.DEVICE else server).luck(world.services[one.name], rng)
        for one in world.known.endpoints
    }
    plans = _Plans.of(policy, measured, world, design.seed)
    for row, answered in enumerate(measured.of(policy)):
        felt_tokens = float(device.felt_tokens[row])
        requests = Requests(
            prompt_tokens=device.prompt_tokens[[row]],
            output_tokens=np.array([max(answered.outcome.completion_tokens, 1)]),
            cached_tokens=device.cached_tokens[[row]],
            draws=np.zeros(1),
            felt_tokens=np.array([felt_tokens]),
        )
        table = _table(plans.next(felt_tokens, answered.at_s))
        answers = simulate(world, table, requests, {name: _of_row(each, row) for name, each in luck.items()})
        plans.settle(answers, answered)
        yield answers


def _world(policy: str, measured: Measurements, design: Design, alone: Mapping[Kind, _Alone]) -> World:
    assert measured.known is not None
    lengths = Lengths(Distribution.of_samples(alone[Kind.DEVICE].answer_tokens))
    known = replace(measured.known, answer_tokens=lengths)
    if policy in BASELINES:  # nothing races there, and no answer moves
        known = replace(known, endpoints=(known.endpoints[BASELINES.index(policy)],))
    settings = measured.settings.migration
    reader = settings.consumption_tokens_per_s
    services = {one.name: alone[one.kind].service(one, design.max_tokens, reader) for one in known.endpoints}
    return World(known, services, reader, Handoff.MAKE_BEFORE_BREAK if settings.enabled else Handoff.OFF)


@dataclass(frozen=True, eq=False)
class _Plans:
    """The live planner and purse of one policy, as they were when it was its turn.

    Attributes:
        world: Whose knowledge does not grow meanwhile.
        constrained: The kind that the share holds back.
    """

    world: World
    constrained: Kind
    purse: Purse
    planner: Planner

    @classmethod
    def of(cls, policy: str, measured: Measurements, world: World, seed: int) -> _Plans:
        """At the moment of the first answer."""
        settings = with_changed(measured.settings.policy, name=policy)
        constrained, purse = Kind(settings.constraint), Purse(budgets_from(measured.settings))
        source = _Source(world.known, purse, constrained)
        plans = cls(world, constrained, purse, Planner(settings, source, seed, lambda work: work()))
        plans.next(1.0, measured.answers[0].at_s)  # the rehearsal's, which has drawn a lot, too
        return plans

    def next(self, prompt_tokens: float, at_s: float) -> Plan:
        """The plan for a prompt that is asked at this moment."""
        plan = self.planner.choose(self.planner.outlook(at_s), prompt_tokens, {}, {})
        kinds = {one.name: one.kind for one in self.world.known.endpoints}
        return self.purse.smoothed(plan, kinds, prompt_tokens)

    def settle(self, answers: Answers, answered: Answered) -> None:
        """Pay for an answer as simulated."""
        for one, tokens in zip(self.world.known.endpoints, answers.read_tokens[0].tolist(), strict=True):
            self.purse.pay(one.kind, usd=0.0, joules=0.0, prompt_tokens=round(tokens))
        self.purse.count(answered.outcome)


@dataclass(frozen=True)
class _Source:
    """Where the planner looks: at what was known, and at what the purse has left."""

    snapshot: Known
    purse: Purse
    constrained: Kind

    def known(self) -> Known:
        return replace(self.snapshot, allowances=self.purse.allowances(self.constrained))

    def version(self) -> object:
        return None


def _table(plan: Plan) -> PlanTable:
    """A table with nothing but this plan."""
    offsets = [STANDBY if start.offset_s is None else start.offset_s for start in plan.starts]
    return PlanTable(
        plan.policy,
        tuple(start.endpoint for start in plan.starts),
        np.array([np.inf]),
        np.array([[offsets]]),
        np.ones((1, 1)),
    )


def _of_row(luck: Luck, row: int) -> Luck:
    return Luck(luck.ttft_s[:, [row]], luck.failed_after_s[:, [row]], luck.recording[:, [row]])


@dataclass(frozen=True, eq=False)
class _Alone:
    """What an endpoint did alone, shape (prompts,).

    Attributes:
        ttft_s: Infinite where nothing came.
        cached_tokens: How much of the prompt it had in its cache: what opens every conversation.
        prompt_chars: The prompt's length as plans estimate it by.
        streams_s: For each prompt, when tokens came after the first one.
    """

    ttft_s: Floats
    prompt_tokens: Floats
    cached_tokens: Floats
    prompt_chars: Floats
    answer_tokens: Integers
    streams_s: Sequence[Floats]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> _Alone:
        """One outcome for each prompt."""

        def column(told: Callable[[Outcome], float]) -> Floats:
            return np.array([told(outcome) for outcome in outcomes], np.float64)

        delivered_s = [np.array(outcome.delivered_s) for outcome in outcomes if outcome.delivered_s]
        return cls(
            ttft_s=column(lambda one: np.inf if one.ttft_s is None else one.ttft_s),
            prompt_tokens=column(lambda one: one.prompt_tokens),
            cached_tokens=column(lambda one: one.attempts[0].cached_tokens or 0),
            prompt_chars=column(lambda one: one.prompt_chars),
            answer_tokens=np.array([max(outcome.completion_tokens, 1) for outcome in outcomes]),
            streams_s=[at_s - at_s[0] for at_s in delivered_s],
        )

    @property
    def felt_tokens(self) -> Floats:
        """The lengths that plans go by."""
        return np.asarray(self.prompt_chars * (self.prompt_tokens.sum() / self.prompt_chars.sum()))

    def service(self, endpoint: EndpointProfile, tokens: int, reader: float) -> Service:
        """How it behaves: a device by a line through its prompts, a server without one."""
        took_time = any(at_s[-1] > 0 for at_s in self.streams_s)
        steady = Streams.steady(endpoint.decode_tokens_per_s)
        reading = Reading.of(Streams.recorded(self.streams_s) if took_time else steady, tokens, reader)
        return Service(reading, *self._line()) if endpoint.kind is Kind.DEVICE else Service(reading)

    def luck(self, service: Service, rng: np.random.Generator) -> Luck:
        """What chance has in store for each prompt, in a first attempt and in further ones."""
        shape = TRIES, self.ttft_s.size
        if service.s_per_token or service.startup_s:
            line_s = service.s_per_token * (self.prompt_tokens - self.cached_tokens) + service.startup_s
            off = (self.ttft_s / line_s)[np.isfinite(self.ttft_s)]
            ttft_s = line_s * (rng.choice(off, shape) - 1.0)
        else:
            ttft_s = np.stack([np.roll(self.ttft_s, attempt) for attempt in range(TRIES)])
        failed_after_s = np.where(np.isfinite(ttft_s), np.inf, 0.0)
        return Luck(ttft_s, failed_after_s, rng.integers(len(service.reading.at_s), size=shape))

    def _line(self) -> tuple[float, float]:
        """Seconds a token and seconds to begin with, by least squares over prompts that were answered."""
        came = np.isfinite(self.ttft_s)
        tokens, seconds = (self.prompt_tokens - self.cached_tokens)[came], self.ttft_s[came]
        slope, constant = np.linalg.lstsq(np.column_stack((tokens, np.ones(tokens.size))), seconds)[0]
        return (float(slope), float(constant)) if slope > 0 else (0.0, float(seconds.mean()))
