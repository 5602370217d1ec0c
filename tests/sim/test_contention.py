"""Queues at a device: closed forms where theory has one, and exact numbers where it has not."""

from __future__ import annotations

import numpy as np
import pytest
from worlds import STANDBY, a_table, a_world, fixed_luck, some_requests

from discostream.sim.contention import queued
from discostream.sim.simulate import simulate
from discostream.sim.world import Handoff


def waits_of(world, table, requests, slots, server_s=0.5, device_s=0.0):
    count = len(requests)
    luck = {"device": fixed_luck(device_s, count=count), "server": fixed_luck(server_s, count=count)}
    queueing, waiting = queued(world, table, requests, luck, slots)
    return waiting["device"].ttft_s - luck["device"].ttft_s, simulate(world, table, queueing, waiting)


def alone(**fields):
    """A world in which nothing moves."""
    return a_world(handoff=Handoff.OFF, **fields)


def test_equal_requests_wait_as_pollaczek_and_khinchine_say():
    """One slot, Poisson arrivals, 2 s each: at load r they wait r/(2(1-r)) times 2 s on average (M/D/1)."""
    count, rng, load = 60_000, np.random.default_rng(5), 0.6
    arrived_s = np.cumsum(rng.exponential(2.0 / load, count))
    requests = some_requests(np.full(count, 105), 20, arrived_at_s=arrived_s)  # 1.05 s, and 19 gaps of 0.05
    waits_s, _ = waits_of(alone(), a_table(0.0, None), requests, slots=1)
    assert waits_s[0].mean() == pytest.approx(load / (2 * (1 - load)) * 2.0, rel=0.05)


def test_exponential_requests_wait_as_erlang_says():
    """Three slots and exponential service: the share that waits is Erlang's C, its mean wait 1/(3u - l)."""
    count, rng, per_s = 200_000, np.random.default_rng(6), 1.8
    arrived_s = np.cumsum(rng.exponential(1 / per_s, count))
    requests = some_requests(np.full(count, 1), 1, arrived_at_s=arrived_s)
    service_s = rng.exponential(1.0, (3, count)) - 0.01
    waits_s, _ = waits_of(alone(), a_table(0.0, None), requests, slots=3, device_s=service_s)
    all_busy = per_s**3 / 6 / (1 - per_s / 3)
    erlang_c = all_busy / (1 + per_s + per_s**2 / 2 + all_busy)
    waited = waits_s[0] > 1e-9
    assert waited.mean() == pytest.approx(erlang_c, abs=0.02)
    assert waits_s[0][waited].mean() == pytest.approx(1 / (3 - per_s), rel=0.05)


def test_slots_enough_for_all_change_nothing():
    """With as many slots as requests, everything is as if each came alone."""
    rng = np.random.default_rng(7)
    requests = some_requests(rng.integers(1, 300, 200), 60, arrived_at_s=np.sort(rng.random(200)) * 60)
    waits_s, answers = waits_of(a_world(), a_table(0.0, 0.2), requests, slots=200)
    assert not waits_s.any()
    luck = {"device": fixed_luck(0.0, count=200), "server": fixed_luck(0.5, count=200)}
    assert (simulate(a_world(), a_table(0.0, 0.2), requests, luck).late_s == answers.late_s).all()


def test_a_slot_is_free_when_its_race_is_lost():
    """The first request's device loses after 0.5 s, so the second, which came at 0.1 s, waits 0.4 s."""
    requests = some_requests([100, 20], 10, arrived_at_s=np.array([0.0, 0.1]))
    waits_s, answers = waits_of(alone(), a_table(0.0, 0.0), requests, slots=1)
    assert waits_s[0] == pytest.approx([0.0, 0.4])
    assert answers.source.tolist() == [1, 1]


def test_who_loses_in_the_queue_takes_no_slot():
    """The second one's server answers before a slot is free: it is never served, and holds nobody up."""
    requests = some_requests([100, 100, 100], 10, arrived_at_s=np.array([0.0, 0.1, 0.2]))
    waits_s, answers = waits_of(alone(), a_table(0.0, 0.0), requests, slots=1, server_s=[[9.0, 0.3, 9.0]] * 3)
    first_ends_s = 1.0 + 9 / 20
    assert waits_s[0] == pytest.approx([0.0, np.inf, first_ends_s - 0.2])
    assert answers.source.tolist() == [0, 1, 0]


def test_a_queue_makes_prompts_be_felt_as_longer():
    """Behind one other, with 6 s of service and 0.01 s a token, a plan is looked up by 600 tokens more."""
    world = alone(slots=1, service_s=6.0)
    requests = some_requests([100, 100], 10, arrived_at_s=np.array([0.0, 0.1]))
    luck = {"device": fixed_luck(0.0, count=2), "server": fixed_luck(9.0, count=2)}
    queueing, _ = queued(world, a_table(0.0, STANDBY), requests, luck, 1)
    assert queueing.felt_tokens.tolist() == [100.0, 700.0]


@pytest.mark.parametrize(
    ("offsets", "usd_per_joule"), [((0.0, None), 1e-3), ((None, 0.0), 0.0)], ids=["device", "server"]
)
def test_whom_a_plan_does_not_name_frees_and_takes_no_slot(offsets, usd_per_joule):
    """One endpoint alone keeps its answers, and the device its slot until they end, whatever would pay."""
    world = {"usd_per_joule": usd_per_joule, "s_per_token": 0.001}
    requests = some_requests([100, 100, 100], 200, arrived_at_s=np.array([0.0, 0.1, 0.2]))
    waits_s, answers = waits_of(a_world(**world), a_table(*offsets), requests, slots=1)
    expected_s, _ = waits_of(alone(**world), a_table(*offsets), requests, slots=1)
    assert waits_s.tolist() == expected_s.tolist()
    assert not answers.seam.any()


def test_a_stopped_device_is_free_at_once():
    """The paper's way, the device stops when the server is asked: after a second and seven tokens at 20/s."""
    world = a_world(handoff=Handoff.STOP_THEN_START)
    requests = some_requests([100, 100], 100, arrived_at_s=np.array([0.0, 0.1]))
    waits_s, _ = waits_of(world, a_table(0.0, STANDBY), requests, slots=1)
    assert waits_s[0] == pytest.approx([0.0, 1.0 + 7 / 20 - 0.1])


def test_a_stopped_answer_waits_for_the_device_however_long():
    """Nobody else goes on with it, so it queues past the moment when its reader has nothing left."""
    world = a_world(usd_per_joule=0.0, warm_standby=False, s_per_token=0.001, handoff=Handoff.STOP_THEN_START)
    together = some_requests([100, 100, 100], 200, arrived_at_s=np.array([0.0, 0.01, 0.02]))
    waits_s, answers = waits_of(world, a_table(STANDBY, 0.0), together, slots=1)
    assert answers.moved.all()
    served_s = 0.001 * (100 + answers.seam) + (199 - answers.seam) / 20
    assert np.diff(waits_s[2]) == pytest.approx(served_s[:2] - 0.01)


def test_takeovers_queue_as_well():
    """A server's answer that is to move to a busy device comes too late there, and stays."""
    world = a_world(usd_per_joule=0.0, warm_standby=False, s_per_token=0.001, believed_server_s=0.5)
    table = a_table(STANDBY, 0.0)
    together = some_requests([100, 100], 200, arrived_at_s=np.array([0.0, 0.01]))
    waits_s, answers = waits_of(world, table, together, slots=1)
    assert answers.seam.min() > 0
    assert answers.moved.tolist() == [True, False]
    assert waits_s[2, 1] > 1.0
    apart = some_requests([100, 100], 200, arrived_at_s=np.array([0.0, 60.0]))
    assert waits_of(world, table, apart, slots=1)[1].moved.all()
