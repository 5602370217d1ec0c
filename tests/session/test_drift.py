"""A service that changes: whole sessions in virtual time, and how soon their plans follow."""

from __future__ import annotations

import anyio
import numpy as np
import pytest
from timetable import a_house, a_request, device, play

from discostream.builtin import builtin_profiles
from discostream.config import EndpointSettings, PolicySettings
from discostream.endpoints.base import Endpoint, NoOptions
from discostream.session.house import House
from discostream.types import Finish, FinishReason, Kind, Piece, Prompt

pytestmark = pytest.mark.anyio

BEFORE, AFTER = 200, 80
ALPHA = 0.05


class Service(Endpoint):
    """A server whose TTFT is drawn from a real service's, times a factor that a test can change."""

    def __init__(self, seed: int) -> None:
        super().__init__(EndpointSettings(name="cloud", kind=Kind.SERVER, dialect="test"), NoOptions())
        self.ttft = builtin_profiles()["azure-gpt-4o"].ttft
        self.factor = 1.0
        self._rng = np.random.default_rng(seed)

    async def generate(self, request, prefix):
        yield Prompt(100)
        await anyio.sleep(self.factor * self.ttft.sample(self._rng))
        yield Piece("Yes.", 1)
        yield Finish(FinishReason.STOP, 100, 1)

    @property
    def tail_s(self) -> float:
        """How long DiSCo-D should let a device wait for it."""
        return self.factor * float(self.ttft.quantile(1 - ALPHA))


async def followed_after(house: House, service: Service) -> int:
    """How many requests go by until the planned wait is within a third of what it should be."""
    for count in range(AFTER):
        await play(house, a_request("x" * 400))
        plan = house.planner.choose(house.planner.outlook(0.0), 100, {}, {})
        (wait_s,) = [start.offset_s for start in plan.starts if start.endpoint == "laptop"]
        if service.tail_s / 1.5 <= wait_s <= service.tail_s * 1.5:
            return count + 1
    return AFTER


@pytest.mark.parametrize("device_ttft_s", [9.0, 0.05])
async def test_plans_follow_a_service_that_changes(device_ttft_s):
    """After TTFT has trebled, plans have followed within 30 requests on average, and as soon when it is back.

    Whether the device hardly ever wins the race, or always once it was started.
    """
    there, back = [], []
    for seed in range(8):
        service = Service(seed)
        policy = PolicySettings(constraint="device", share=ALPHA, alpha=ALPHA)
        house = a_house([device(ttft_s=device_ttft_s), service], policy=policy)
        for _ in range(BEFORE):
            await play(house, a_request("x" * 400))
        service.factor = 3.0
        there.append(await followed_after(house, service))
        for _ in range(BEFORE):
            await play(house, a_request("x" * 400))
        service.factor = 1.0
        back.append(await followed_after(house, service))
    assert np.mean(there) <= 30
    assert np.mean(back) <= 30
