"""A device that serves few requests at a time: who has to queue, and for how long.

Races and handoffs that wait for a slot decide when it is free for the next, so these requests cannot be
simulated side by side. One loop follows the device's slots through all that happens to them, in the order
in which it happens, and comes to one thing: how long each attempt on the device waits. With these waits the
requests are simulated like any others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush, heapreplace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.core.plans import PlanTable
from discostream.core.profile import READ_PARTS, DeviceTtft, EndpointProfile
from discostream.sim.race import NOBODY, run_race
from discostream.sim.simulate import seams
from discostream.sim.world import TAKEOVER, Handoff, Luck, Requests, World
from discostream.types import Kind, Plan

__all__ = ["queued"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

AT_LAST_S = 1e12
"""When a device answers that does not answer before anybody else."""


def queued(
    world: World, table: PlanTable, requests: Requests, luck: Mapping[str, Luck], slots: int
) -> tuple[Requests, dict[str, Luck]]:
    """The same requests as they are planned and served beside each other on a device of so many slots.

    A slot serves one attempt at a time, in the order in which they began; it is free again when the attempt
    has ended or was cancelled. As on the live path, a queue makes a plan be looked up by a longer prompt.

    Args:
        world: Its device has `slots` and `service_s` in its profile, by which queues are foreseen.
        table: The plans.
        requests: With their arrivals, which rise.
        luck: By endpoint.
        slots: At least one.

    Returns:
        The requests with the lengths that plans are looked up by, and luck with the device's queue in it.
    """
    device = next(each for each in world.known.endpoints if each.kind is Kind.DEVICE)
    queue = _Queue(world, table, requests, luck, device, slots)
    queue.serve_all()
    own = luck[device.name]
    queued_s = np.zeros_like(own.ttft_s)
    queued_s[0], queued_s[TAKEOVER] = queue.race_wait_s, queue.takeover_wait_s
    felt = replace(requests, felt_tokens=np.array(queue.felt_tokens))
    return felt, {**luck, device.name: replace(own, ttft_s=own.ttft_s + queued_s, queued_s=queued_s)}


@dataclass(frozen=True)
class _Onward:
    """Where answers would move that begin at one endpoint, request by request; spans from the first token.

    Attributes:
        seam: Before which token, 0 for never.
        asked_s: When the target is asked.
        dry_s: When the reader has nothing left.
        finish_s: When the source has written everything.
    """

    seam: Sequence[int]
    asked_s: Sequence[float]
    dry_s: Sequence[float]
    finish_s: Sequence[float]

    @classmethod
    def of(
        cls, world: World, source: EndpointProfile, requests: Requests, recording: Integers, uncached: Floats
    ) -> _Onward:
        """Of answers that follow these recordings of the source, whose target has so much to read."""
        reading, target = world.services[source.name].reading, world.other_than(source.name)
        tokens, seam = requests.output_tokens, np.zeros(len(requests), np.int64)
        if target is not None:
            seam = seams(world, source, target, uncached, tokens, recording)
        return cls(
            seam.tolist(),
            reading.at_s[recording, seam].tolist(),
            reading.done_s(recording, np.maximum(seam, 1)).tolist(),
            reading.at_s[recording, tokens - 1].tolist(),
        )


@dataclass(frozen=True)
class _Theirs:
    """What the server has in store, request by request.

    Attributes:
        luck: For races, where one of its attempts fails.
        ttft_s: Of each try.
        fails: Whether a start of a race may fail.
        takeover_s: How long it takes to go on with an answer, infinite where it fails.
        onward: Of answers that follow its first start, and its second; each by how many parts of the prompt
            the device has read in the race.
    """

    luck: Luck
    ttft_s: Sequence[Sequence[float]]
    fails: Sequence[bool]
    takeover_s: Sequence[float]
    onward: Sequence[Sequence[_Onward]]

    @classmethod
    def of(cls, world: World, server: EndpointProfile, requests: Requests, luck: Luck) -> _Theirs:
        uncached = requests.prompt_tokens - requests.cached_tokens
        unread = [uncached * (1.0 - part / READ_PARTS) for part in range(READ_PARTS + 1)]
        fails = np.any(np.isfinite(luck.failed_after_s[:TAKEOVER]), axis=0)
        return cls(
            luck,
            luck.ttft_s[:TAKEOVER].tolist(),
            list(fails),
            luck.ttft_s[TAKEOVER].tolist(),
            [
                [_Onward.of(world, server, requests, recording, each) for each in unread]
                for recording in luck.recording[:TAKEOVER]
            ],
        )


@dataclass(slots=True)
class _Racing:
    """One request's race, as far as the server decides it; moments in seconds.

    Attributes:
        device_at_s: When the device begins, infinite for never.
        content_at_s: When the server's first token comes, infinite if it does not.
        attempt: By which of its starts.
        failed_at_s: When the first of them has failed, infinite if none does.
        served_at_s: When the device has a slot for it, infinite until then.
        read_from_s: From when on it reads the prompt, likewise.
        may_move: Whether the plan names another endpoint that could go on with the answer.
        onward: Where the server's answer goes, once it is known that there is one.
    """

    device_at_s: float = math.inf
    content_at_s: float = math.inf
    attempt: int = 0
    failed_at_s: float = math.inf
    served_at_s: float = math.inf
    read_from_s: float = math.inf
    may_move: bool = False
    onward: _Onward | None = None


class _Queue:
    """The device's slots, and what is on its way to them; moments in seconds on the clock of arrivals."""

    def __init__(
        self,
        world: World,
        table: PlanTable,
        requests: Requests,
        luck: Mapping[str, Luck],
        device: EndpointProfile,
        slots: int,
    ) -> None:
        assert requests.arrived_at_s is not None
        own, server = luck[device.name], world.other_than(device.name)
        self.table, self.device = table, device
        self.keeps, self.stops = world.warm_standby, world.handoff is Handoff.STOP_THEN_START
        self.service = world.services[device.name]
        self.own_s = own.ttft_s.tolist()
        self.own_recording = own.recording[TAKEOVER].tolist()
        self.onward = _Onward.of(world, device, requests, own.recording[0], requests.prompt_tokens)
        self.theirs = None if server is None else _Theirs.of(world, server, requests, luck[server.name])
        self.arrived_at_s = requests.arrived_at_s.tolist()
        self.tokens, self.draws = requests.output_tokens.tolist(), requests.draws.tolist()
        self.prompt_tokens = requests.prompt_tokens.tolist()
        self.cached_tokens = requests.cached_tokens.tolist()
        self.felt_tokens = requests.felt_tokens.tolist()
        self.race_wait_s, self.takeover_wait_s = [0.0] * len(requests), [0.0] * len(requests)
        self.races: list[_Racing] = []
        self.free_at_s = [-math.inf] * min(slots, len(requests))
        self.ends_at_s: list[float] = []
        self.jobs: list[tuple[float, int, bool]] = []

    def serve_all(self) -> None:
        """Follow the slots through all requests."""
        for request, at_s in enumerate(self.arrived_at_s):
            self._serve_until(at_s)
            self._arrive(request, at_s)
        self._serve_until(math.inf)

    def _serve_until(self, at_s: float) -> None:
        while self.jobs and self.jobs[0][0] <= at_s:
            begins_at_s, request, takes_over = heappop(self.jobs)
            ends_at_s = (self._take_over if takes_over else self._race)(request, begins_at_s)
            heappush(self.ends_at_s, ends_at_s)

    def _arrive(self, request: int, at_s: float) -> None:
        """Plan a request by the queue it meets."""
        while self.ends_at_s and self.ends_at_s[0] <= at_s:
            heappop(self.ends_at_s)
        wait_s = self.device.wait_s(len(self.ends_at_s))
        if wait_s and isinstance(self.device.ttft, DeviceTtft):
            self.felt_tokens[request] += wait_s / self.device.ttft.line()[0]
        plan = self.table.choose(self.felt_tokens[request], self.draws[request])
        race = self._planned(plan, request, at_s)
        race.may_move = len({start.endpoint for start in plan.starts}) > 1
        self.races.append(race)
        if race.device_at_s < race.content_at_s:
            heappush(self.jobs, (race.device_at_s, request, False))
        else:
            self._stream_from_server(request)

    def _planned(self, plan: Plan, request: int, at_s: float) -> _Racing:
        """How the race would go if the device never answered."""
        offsets_s = [math.inf if start.offset_s is None else start.offset_s for start in plan.starts]
        if self.theirs and self.theirs.fails[request]:
            return self._planned_with_failures(plan, offsets_s, request, at_s)
        offsets_s[offsets_s.index(min(offsets_s))] = 0.0
        race, attempt = _Racing(), 0
        for start, offset_s in zip(plan.starts, offsets_s, strict=True):
            if start.endpoint == self.device.name:
                race.device_at_s = at_s + offset_s
            elif self.theirs:
                content_at_s = at_s + offset_s + self.theirs.ttft_s[attempt][request]
                if content_at_s < race.content_at_s:
                    race.content_at_s, race.attempt = content_at_s, attempt
                attempt += 1
        return race

    def _planned_with_failures(
        self, plan: Plan, offsets_s: list[float], request: int, at_s: float
    ) -> _Racing:
        assert self.theirs
        ours = np.array([start.endpoint == self.device.name for start in plan.starts])
        theirs = np.flatnonzero(~ours)
        ttft_s, failed_after_s = np.full((2, 1, ours.size), np.inf)
        ttft_s[0, theirs] = self.theirs.luck.ttft_s[: theirs.size, request]
        ttft_s[0, ours] = AT_LAST_S
        failed_after_s[0, theirs] = self.theirs.luck.failed_after_s[: theirs.size, request]
        held = run_race(np.array([offsets_s]), ttft_s, failed_after_s)
        failed_s = np.where(held.failed, held.start_s + failed_after_s, np.inf)
        race = _Racing(failed_at_s=at_s + float(failed_s.min()))
        race.device_at_s = at_s + float(np.min(held.start_s[0, ours], initial=np.inf))
        won = int(held.winner[0])
        if won != NOBODY and not ours[won]:
            race.content_at_s, race.attempt = at_s + float(held.ttft_s[0]), int(np.searchsorted(theirs, won))
        return race

    def _race(self, request: int, at_s: float) -> float:
        """Let the device take part; says when its attempt ends."""
        race, served_at_s = self.races[request], max(at_s, self.free_at_s[0])
        if race.content_at_s <= served_at_s:
            self.race_wait_s[request] = math.inf
            self._stream_from_server(request)
            return race.content_at_s
        self.race_wait_s[request] = served_at_s - at_s
        race.served_at_s = served_at_s
        race.read_from_s = served_at_s + self.service.startup_s + self.own_s[0][request]
        uncached = self.prompt_tokens[request] - self.cached_tokens[request]
        first_at_s = race.read_from_s + self.service.s_per_token * uncached
        if race.content_at_s < first_at_s:
            ends_at_s = race.content_at_s
            self._stream_from_server(request)
        else:
            ends_at_s = self._streamed_until(request, first_at_s)
        heapreplace(self.free_at_s, ends_at_s)
        return ends_at_s

    def _streamed_until(self, request: int, first_at_s: float) -> float:
        """When the device is done with an answer that it began: at its end, or at its handoff."""
        finish_at_s = first_at_s + self.onward.finish_s[request]
        race = self.races[request]
        able = race.may_move and race.failed_at_s > first_at_s
        if not self.onward.seam[request] or self.theirs is None or not able:
            return finish_at_s
        asked_at_s = first_at_s + self.onward.asked_s[request]
        if self.stops:
            return asked_at_s
        ready_at_s = asked_at_s + self.theirs.takeover_s[request]
        in_time = ready_at_s <= min(first_at_s + self.onward.dry_s[request], finish_at_s)
        return ready_at_s if in_time else finish_at_s

    def _stream_from_server(self, request: int) -> None:
        """Let the server's answer go its way, which may lead to the device."""
        race = self.races[request]
        if self.theirs is None or race.content_at_s == math.inf or not race.may_move:
            return
        race.onward = onward = self.theirs.onward[race.attempt][self._parts_read(request, race)]
        if onward.seam[request]:
            heappush(self.jobs, (race.content_at_s + onward.asked_s[request], request, True))

    def _parts_read(self, request: int, race: _Racing) -> int:
        """How many parts of the prompt the device is taken to have read when the server won."""
        if not self.keeps or race.served_at_s == math.inf:
            return 0
        uncached = self.prompt_tokens[request] - self.cached_tokens[request]
        return int(self.device.read_part(race.content_at_s - race.served_at_s, uncached) * READ_PARTS)

    def _take_over(self, request: int, at_s: float) -> float:
        """Let the device go on with an answer; says when its attempt ends."""
        race, served_at_s = self.races[request], max(at_s, self.free_at_s[0])
        onward = race.onward
        assert onward
        given_up_at_s = race.content_at_s + min(onward.dry_s[request], onward.finish_s[request])
        self.takeover_wait_s[request] = served_at_s - at_s
        if served_at_s >= given_up_at_s and not self.stops:
            return given_up_at_s
        first_at_s = served_at_s + self._takeover_s(request, race, onward.seam[request])
        ends_at_s = given_up_at_s
        if first_at_s <= given_up_at_s or self.stops:
            last = self.tokens[request] - onward.seam[request] - 1
            ends_at_s = first_at_s + float(self.service.reading.at_s[self.own_recording[request], last])
        heapreplace(self.free_at_s, ends_at_s)
        return ends_at_s

    def _takeover_s(self, request: int, race: _Racing, seam: int) -> float:
        """How long it takes once it has a slot, with what it had read in the race, if it keeps that."""
        prompt_tokens, cached = self.prompt_tokens[request], self.cached_tokens[request]
        if self.keeps and self.service.s_per_token:
            read = max(race.content_at_s - race.read_from_s, 0.0) / self.service.s_per_token
            cached = min(cached + read, prompt_tokens)
        prefill_s = self.service.s_per_token * (prompt_tokens + seam - cached)
        return float(prefill_s + self.service.startup_s + self.own_s[TAKEOVER][request])
