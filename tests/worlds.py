"""Worlds to simulate in tests: a device and a server in numbers, requests, and what chance has in store."""

from __future__ import annotations

import numpy as np

from discostream.core.cost import Energy, Prices, Rates
from discostream.core.distributions import Distribution
from discostream.core.plans import NEVER, STANDBY, PlanTable
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.sim.reading import Reading
from discostream.sim.world import TRIES, Luck, Requests, Service, World
from discostream.traces.streams import Streams
from discostream.types import Kind

__all__ = ["NEVER", "STANDBY", "a_table", "a_world", "fixed_luck", "some_requests"]

PRICES, ENERGY = Prices(2.5, 10.0), Energy(0.04, 0.06)
READER = 5.0
LONGEST = 256


def a_world(
    *,
    usd_per_joule: float = 1e-3,
    s_per_token: float = 0.01,
    startup_s: float = 0.0,
    device_tokens_per_s: float = 20.0,
    server: Streams | None = None,
    believed_server_s: float = 0.5,
    answer_tokens: float = 200.0,
    slots: int | None = None,
    service_s: float | None = None,
    **fields: object,
) -> World:
    """A device and a server; energy is so dear that answers move to the server, unless it costs nothing."""
    streams = server or Streams.steady(50.0)
    known = Known(
        (
            EndpointProfile(
                "device",
                Kind.DEVICE,
                Rates.of(Prices(), ENERGY, usd_per_joule),
                DeviceTtft.believed(s_per_token, startup_s, 0.0),
                device_tokens_per_s,
                energy=ENERGY,
                slots=slots,
                service_s=service_s,
            ),
            EndpointProfile(
                "server",
                Kind.SERVER,
                Rates.of(PRICES, Energy(), usd_per_joule),
                ServerTtft(Distribution.of_samples([believed_server_s])),
                streams.tokens_per_s,
                prices=PRICES,
            ),
        ),
        Lengths(Distribution.of_samples([100.0])),
        Lengths(Distribution.of_samples([answer_tokens])),
    )
    services = {
        "device": Service(
            Reading.of(Streams.steady(device_tokens_per_s), LONGEST, READER), s_per_token, startup_s
        ),
        "server": Service(Reading.of(streams, LONGEST, READER)),
    }
    return World(known, services, READER, **fields)


def a_table(device: float | None, server: float | None, *more: tuple[str, float]) -> PlanTable:
    """One plan for all: start offsets, infinite for who stands by, and `None` for who takes no part."""
    columns = [("device", device), ("server", server), *more]
    offsets = [NEVER if at is None else at for _, at in columns]
    return PlanTable(
        "test",
        tuple(name for name, _ in columns),
        np.array([np.inf]),
        np.array([[offsets]]),
        np.array([[1.0]]),
    )


def some_requests(prompt_tokens, output_tokens=100, **fields: object) -> Requests:
    prompts = np.atleast_1d(np.asarray(prompt_tokens, np.float64))
    answers = np.broadcast_to(np.asarray(output_tokens, np.int64), prompts.shape)
    given = {"cached_tokens": np.zeros(prompts.size), "draws": np.zeros(prompts.size), "felt_tokens": prompts}
    return Requests(prompt_tokens=prompts, output_tokens=answers, **{**given, **fields})


def fixed_luck(ttft_s, failed_after_s=np.inf, *, recordings: int = 1, count: int = 1) -> Luck:
    """The same for every try, unless arrays say otherwise; recordings take turns."""
    shape = TRIES, count
    return Luck(
        np.array(np.broadcast_to(np.asarray(ttft_s, np.float64), shape)),
        np.array(np.broadcast_to(np.asarray(failed_after_s, np.float64), shape)),
        np.array(np.broadcast_to(np.arange(count) % recordings, shape)),
    )
