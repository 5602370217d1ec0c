"""One cell of an evaluation: a policy plans by one part of the data and is judged on the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from discostream.builtin import builtin_output_lengths
from discostream.config import PolicySettings
from discostream.core.cost import JOULES_PER_KWH, Energy, Prices, Rates, constrained_kind
from discostream.core.distributions import Distribution
from discostream.core.plans import PlanTable
from discostream.core.plugins import load_policy
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.errors import ConfigError
from discostream.sim.arrivals import ArrivalKind, Arrivals, sample
from discostream.sim.contention import queued
from discostream.sim.devices import Device, device_named
from discostream.sim.figures import Figures, Tally
from discostream.sim.reading import Reading
from discostream.sim.simulate import simulate
from discostream.sim.world import TRIES, Handoff, Luck, Requests, Service, World
from discostream.traces.servers import ServerTrace, read_trace
from discostream.traces.streams import Streams
from discostream.traces.workloads import Workload, read_workload
from discostream.types import Kind

__all__ = ["DEVICE", "SERVER", "Case", "Stage", "judge"]

Floats: TypeAlias = NDArray[np.float64]

DEVICE, SERVER = "device", "server"
"""The names of the two endpoints."""

PART = 1 << 18
"""How many requests are simulated at a time, in less than a GB."""

LONGEST = 1 << 17
"""Tokens of the longest answer: no model writes more, and 500 recordings of as many take 0.5 GB an array."""

DEVICE_IS_DEARER = 2.0
"""Where the device is to be held back, its cheaper phase costs so many times the server's dearer one."""

USD_PER_KWH = 0.15
"""What energy costs where the server is."""


class Case(Struct, frozen=True, kw_only=True):
    """All that decides what a cell comes to.

    Attributes:
        server_trace: See `read_trace`.
        device: See `device_named`.
        workload: See `read_workload`.
        constraint: The kind that the share holds back; `auto` by converted prices, as in the paper.
        share: b, of all prompt tokens.
        requests: How many are judged.
        train_fraction: The part of trace and workload that is planned by.
        handoff: How answers move.
        consumption_tokens_per_s: The reader's pace.
        prompt_usd_per_mtok: The server's price.
        completion_usd_per_mtok: Likewise.
        usd_per_joule: The exchange rate; `None` takes one at which the constrained kind is the dearer.
        seed: Of everything that chance decides; equal for policies and shares that are compared.
        alpha: The most of the share that `disco` spends on its tail stage.
        warm_standby: Whether a device that lost a race keeps what it had read.
        t_m_factor: By what the time of a handoff is misjudged.
        remaining_factor: By what the length of the rest is misjudged.
        arrivals: See `Arrivals.parse`.
        device_slots: How many requests the device serves at a time; `None` for any number.
    """

    server_trace: str
    device: str
    policy: str
    share: float
    constraint: Literal["device", "server", "auto"] = "auto"
    workload: str = "builtin:chat"
    requests: int = 10_000
    train_fraction: float = 0.5
    handoff: Handoff = Handoff.MAKE_BEFORE_BREAK
    consumption_tokens_per_s: float = 4.785
    prompt_usd_per_mtok: float = 2.5
    completion_usd_per_mtok: float = 10.0
    usd_per_joule: float | None = None
    seed: int = 0
    alpha: float = 0.05
    warm_standby: bool = True
    t_m_factor: float = 1.0
    remaining_factor: float = 1.0
    arrivals: str = "none"
    device_slots: int | None = None


def judge(case: Case, told: Callable[[int], None] = lambda judged: None) -> tuple[Figures, Tally]:
    """What a cell comes to.

    Args:
        case: The cell.
        told: Hears how many more requests were judged, every now and then.

    Raises:
        ConfigError: Something that the case names cannot be read, or does not exist.
    """
    stage = Stage.of(case)
    tally = Tally(stage.constrained)
    for part, first in enumerate(range(0, case.requests, PART)):
        count = min(PART, case.requests - first)
        requests, luck = stage.draw(count, np.random.default_rng([case.seed, part]))
        if case.device_slots is not None:
            requests, luck = queued(stage.world, stage.table, requests, luck, case.device_slots)
        tally = tally.add(simulate(stage.world, stage.table, requests, luck))
        told(count)
    figures = tally.figures(
        policy=case.policy, share=case.share, device=case.device, server_trace=stage.judged.name
    )
    return figures, tally


class Stage(Struct, frozen=True, kw_only=True):
    """A cell before its requests arrive.

    Attributes:
        world: With what was learnt from the first part of the data.
        table: The plans made by it.
        constrained: The kind that the share holds back.
        judged: The second part of the server's trace.
        workload: The second part of the workload.
        arrivals: When its requests come.
    """

    world: World
    table: PlanTable
    constrained: Kind
    judged: ServerTrace
    workload: Workload
    arrivals: Arrivals

    @classmethod
    def of(cls, case: Case) -> Stage:
        """Plan by the first part of the data."""
        device, rng = device_named(case.device), np.random.default_rng(case.seed).spawn(1)[0]
        learnt, judged = _trace(case.server_trace).split(case.train_fraction, rng)
        arrivals = _arrivals(case)
        seen, to_come = _split(_workload(case.workload), case.train_fraction, arrivals, rng)
        known = _known(case, device, learnt, seen)
        kind = _constrained(case, known)
        settings = PolicySettings(name=case.policy, constraint=kind.value, share=case.share, alpha=case.alpha)
        world = World(
            known=known,
            services=_services(case, device, _longest(_answers(to_come, judged))),
            consumption_tokens_per_s=case.consumption_tokens_per_s,
            handoff=case.handoff,
            warm_standby=case.warm_standby,
            t_m_factor=case.t_m_factor,
            remaining_factor=case.remaining_factor,
        )
        table = load_policy(case.policy)(known, settings)
        return cls(
            world=world,
            table=table,
            constrained=kind,
            judged=judged,
            workload=to_come,
            arrivals=arrivals,
        )

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Requests, dict[str, Luck]]:
        """So many requests of the second part, and what chance has in store for each."""
        drawn = sample(self.workload, count, self.arrivals, rng)
        cached_tokens = np.zeros(count) if drawn.cached_tokens is None else drawn.cached_tokens
        if drawn.output_tokens is None:
            output_tokens = rng.choice(_answers(self.workload, self.judged), size=count)
        else:
            output_tokens = drawn.output_tokens
        requests = Requests(
            prompt_tokens=drawn.prompt_tokens,
            output_tokens=np.maximum(np.rint(output_tokens), 1).astype(np.int64),
            cached_tokens=cached_tokens,
            draws=rng.random(count),
            felt_tokens=drawn.prompt_tokens - cached_tokens,
            arrived_at_s=drawn.arrived_at_s,
        )
        return requests, {DEVICE: self._device_luck(count), SERVER: self._server_luck(count, rng)}

    def _device_luck(self, count: int) -> Luck:
        shape = TRIES, count
        return Luck(np.zeros(shape), np.full(shape, np.inf), np.zeros(shape, np.int64))

    def _server_luck(self, count: int, rng: np.random.Generator) -> Luck:
        rows = rng.integers(len(self.judged), size=(TRIES, count))
        recordings = len(self.world.services[SERVER].reading.at_s)
        return Luck(
            self.judged.ttft_s[rows],
            self.judged.failed_after_s[rows],
            rng.integers(recordings, size=(TRIES, count)),
        )


_trace = lru_cache(maxsize=64)(read_trace)
_workload = lru_cache(maxsize=8)(read_workload)
_reading = lru_cache(maxsize=64)(Reading.of)
_steady = lru_cache(maxsize=64)(Streams.steady)


def _arrivals(case: Case) -> Arrivals:
    arrivals = Arrivals.parse(case.arrivals)
    if case.device_slots is not None and arrivals.kind is ArrivalKind.NONE:
        raise ConfigError(
            f"--device-slots {case.device_slots}: nobody queues while every request comes alone; say when "
            f"they come with --arrivals trace or --arrivals poisson:RATE"
        )
    return arrivals


def _split(
    workload: Workload, fraction: float, arrivals: Arrivals, rng: np.random.Generator
) -> tuple[Workload, Workload]:
    """Two workloads: of random rows in their old order, or of the time before and after, if it matters."""
    if len(workload) < 2:
        raise ConfigError(f"workload {workload.name!r}: has one request only; to split it takes two")
    in_time = arrivals.kind is ArrivalKind.TRACE
    rows = np.arange(len(workload)) if in_time else rng.permutation(len(workload))
    first = min(max(round(fraction * rows.size), 1), rows.size - 1)
    return workload.rows(np.sort(rows[:first])), workload.rows(np.sort(rows[first:]))


def _answers(workload: Workload, trace: ServerTrace) -> Floats:
    """How long answers are: as recorded with the prompts, or by the server, or in the built-in table."""
    if workload.output_tokens is not None:
        return workload.output_tokens
    if trace.output_tokens is not None and np.isfinite(trace.output_tokens).any():
        return trace.output_tokens[np.isfinite(trace.output_tokens)]
    return np.asarray(builtin_output_lengths().quantile((np.arange(1024) + 0.5) / 1024))


def _longest(answers: Floats) -> int:
    longest = int(answers.max())
    if longest > LONGEST:
        raise ConfigError(
            f"an answer of {longest:,} tokens is none that could be simulated, which takes at most "
            f"{LONGEST:,}; correct the output tokens of the workload, or of the trace if that has none"
        )
    return longest


def _known(case: Case, device: Device, learnt: ServerTrace, seen: Workload) -> Known:
    """What the first part of the data says."""
    prices = Prices(case.prompt_usd_per_mtok, case.completion_usd_per_mtok)
    usd_per_joule = _usd_per_joule(case, prices, device.energy)
    s_per_token = 1 / device.prefill_tokens_per_s
    answers = _answers(seen, learnt)
    prefill_s = s_per_token * seen.prompt_tokens.mean() + device.constant_s
    endpoints = (
        EndpointProfile(
            DEVICE,
            Kind.DEVICE,
            Rates.of(Prices(), device.energy, usd_per_joule),
            DeviceTtft.believed(s_per_token, device.constant_s, 0.0),
            device.decode_tokens_per_s,
            energy=device.energy,
            slots=case.device_slots,
            service_s=float(prefill_s + answers.mean() / device.decode_tokens_per_s),
        ),
        EndpointProfile(
            SERVER,
            Kind.SERVER,
            Rates.of(prices, Energy(), usd_per_joule),
            ServerTtft(Distribution.of_samples(learnt.ttft_s)),
            learnt.streams.tokens_per_s,
            prices=prices,
        ),
    )
    lengths = Lengths(Distribution.of_samples(seen.prompt_tokens))
    return Known(endpoints, lengths, Lengths(Distribution.of_samples(answers)))


def _services(case: Case, device: Device, longest: int) -> dict[str, Service]:
    """How the two really behave, for answers of so many tokens at most."""
    tokens = 1 << max(longest - 1, 1).bit_length()
    pace = case.consumption_tokens_per_s
    steady = _reading(_steady(device.decode_tokens_per_s), tokens, pace)
    return {
        DEVICE: Service(steady, 1 / device.prefill_tokens_per_s, device.constant_s),
        SERVER: Service(_reading(_trace(case.server_trace).streams, tokens, pace)),
    }


def _usd_per_joule(case: Case, prices: Prices, energy: Energy) -> float:
    """As stated, or the price of electricity, or what makes the device the dearer where it is to be that."""
    if case.usd_per_joule is not None:
        return case.usd_per_joule
    if case.constraint != "device":
        return USD_PER_KWH / JOULES_PER_KWH
    least_j = min(energy.prefill_j_per_token, energy.decode_j_per_token)
    most_usd = max(prices.prompt_usd_per_mtok, prices.completion_usd_per_mtok) / 1e6
    return DEVICE_IS_DEARER * most_usd / least_j if least_j else 0.0


def _constrained(case: Case, known: Known) -> Kind:
    if case.constraint != "auto":
        return Kind(case.constraint)
    return constrained_kind(known.of(DEVICE).rates, known.of(SERVER).rates)
