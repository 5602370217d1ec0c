"""Simulated answers in exact numbers: who is charged, what moves, and what its reader feels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import ENERGY, PRICES, READER, STANDBY, a_table, a_world, fixed_luck, some_requests

from discostream.core.distributions import Distribution
from discostream.core.forecast import SILENCE_S
from discostream.core.profile import ServerTtft
from discostream.core.qoe import qoe, read_times
from discostream.sim.race import NOBODY
from discostream.sim.reading import Reading
from discostream.sim.simulate import simulate
from discostream.sim.world import TAKEOVER, Handoff
from discostream.traces.streams import Streams

OFF = {"handoff": Handoff.OFF}


def answer(world, table, requests, server=0.5, device=0.0, **server_luck):
    count = len(requests)
    luck = {
        "device": fixed_luck(device, count=count),
        "server": fixed_luck(server, count=count, **server_luck),
    }
    return simulate(world, table, requests, luck)


def test_losers_pay_for_their_prompt_and_winners_for_their_answer():
    """The device reads 100 tokens in 1 s and loses to a server at 0.5 s, which writes the answer."""
    answers = answer(a_world(**OFF), a_table(0.0, 0.0), some_requests(100, 50))
    assert (answers.source[0], answers.ttft_s[0]) == (1, 0.5)
    assert answers.read_tokens.tolist() == [[100, 100]]
    assert answers.wrote_tokens.tolist() == [[0, 50]]
    assert answers.usd[0] == pytest.approx(PRICES.usd(100, 50))
    assert answers.joules[0] == pytest.approx(ENERGY.joules(100, 0))
    assert answers.cost[0] == pytest.approx(PRICES.usd(100, 50) + 1e-3 * ENERGY.joules(100, 0))


def test_who_never_starts_pays_nothing():
    """A device that waits for 0.6 s is not asked when the server answers after 0.5 s."""
    answers = answer(a_world(**OFF), a_table(0.6, 0.0), some_requests(100, 50))
    assert answers.read_tokens.tolist() == [[0, 100]]


@pytest.mark.parametrize(("failed_after_s", "charged"), [(0.2, 0), (120.0, 100)])
def test_a_refusal_costs_nothing_and_a_silence_does(failed_after_s, charged):
    """A server that refuses at once has read nothing; one that was silent for 120 s may have read it all."""
    answers = answer(
        a_world(**OFF),
        a_table(STANDBY, 0.0),
        some_requests(100, 50),
        server=np.inf,
        failed_after_s=failed_after_s,
    )
    assert answers.source[0] == 0
    assert answers.ttft_s[0] == pytest.approx(failed_after_s + 1.0)
    assert answers.read_tokens.tolist() == [[100, charged]]


def test_nobody_left_is_no_answer():
    """Where everybody fails there is no token, no TTFT, and no quality."""
    answers = answer(
        a_world(**OFF), a_table(None, 0.0), some_requests(100), server=np.inf, failed_after_s=0.3
    )
    assert (answers.source[0], answers.ttft_s[0]) == (NOBODY, np.inf)
    assert (answers.delivered_tokens[0], answers.qoe[0], answers.late_s[0]) == (0, 0.0, 0.0)
    assert answers.delivered_s(0).size == 0


def test_cached_tokens_are_not_read_again():
    """Of 100 tokens, 80 are cached: the device needs 0.2 s and joules for the rest; a share counts all."""
    requests = some_requests(100, 50, cached_tokens=np.array([80.0]))
    answers = answer(a_world(**OFF), a_table(0.0, None), requests)
    assert answers.ttft_s[0] == pytest.approx(0.2)
    assert answers.joules[0] == pytest.approx(ENERGY.joules(20, 50))
    assert answers.read_tokens.tolist() == [[100, 0]]


def test_a_hedge_is_a_second_draw():
    """The same server, asked again after 0.4 s, wins with its own time, and both are charged."""
    table = a_table(None, 0.0, ("server", 0.4))
    answers = answer(a_world(**OFF), table, some_requests(100, 50), server=[[2.0], [0.3], [0.1]])
    assert answers.ttft_s[0] == pytest.approx(0.7)
    assert answers.read_tokens.tolist() == [[0, 200]]


# Energy dear: the device writes 20 tokens/s, its reader takes 5. The server is believed to need 0.5 s, so a
# handoff of at most 2 x 0.5 s is hidden by 5 unread tokens: k tokens were written in k/20 s and k - k/4 are
# unread. The rest of 200 believed tokens is far dearer here than there. So the seam is before token 7.
SEAM = 7


def test_an_answer_moves_when_the_reader_has_enough():
    """Asked when token 7 comes, the server goes on after 0.5 s; meanwhile the device wrote ten more."""
    answers = answer(a_world(), a_table(0.0, STANDBY), some_requests(100, 100))
    asked_s = 1.0 + SEAM / 20
    assert (answers.seam[0], answers.moved[0]) == (SEAM, True)
    assert answers.resumed_s[0] == pytest.approx(asked_s + 0.5)
    assert answers.wrote_tokens.tolist() == [[SEAM + 1 + 10, 100 - SEAM]]
    assert answers.read_tokens.tolist() == [[100, 100 + SEAM]]
    assert answers.delayed_tokens[0] == 0
    delivered = answers.delivered_s(0)
    assert delivered[:SEAM] == pytest.approx(1.0 + np.arange(SEAM) / 20)
    assert delivered[SEAM:] == pytest.approx(asked_s + 0.5 + np.arange(100 - SEAM) / 50)


def test_a_move_pays_for_what_the_target_reads():
    """Nine tenths of 193 tokens at 5e-5 dollars outweigh ten in vain and so long a prompt, or do not."""
    answers = answer(a_world(), a_table(0.0, STANDBY), some_requests([3225, 3229], 100))
    assert answers.seam.tolist() == [SEAM, 0]


def test_a_seam_lies_before_a_token():
    """Of three alike, the one that is over after seven tokens has none to move before."""
    alike = some_requests([100, 100, 100], [SEAM, SEAM + 1, 100])
    assert answer(a_world(), a_table(0.0, STANDBY), alike).seam.tolist() == [0, SEAM, SEAM]


def test_a_target_that_is_late_is_dropped():
    """The reader is dry 7/5 s after the first token; the device's held tokens are delivered then."""
    answers = answer(a_world(), a_table(0.0, STANDBY), some_requests(100, 100), server=3.0)
    assert (answers.seam[0], answers.moved[0]) == (SEAM, False)
    assert answers.resumed_s[0] == pytest.approx(1.0 + SEAM / READER)
    assert answers.wrote_tokens.tolist() == [[100, 0]]
    assert answers.read_tokens.tolist() == [[100, 100 + SEAM]]
    assert np.diff(read_times(answers.delivered_s(0), READER)).max() == pytest.approx(1 / READER)


def test_a_target_that_fails_is_dropped():
    """It fails 0.3 s after it was asked, at once charged nothing, and the source's tokens go on."""
    world, table, requests = a_world(), a_table(0.0, STANDBY), some_requests(100, 100)
    answers = answer(world, table, requests, server=np.inf, failed_after_s=0.3)
    assert answers.resumed_s[0] == pytest.approx(1.0 + SEAM / 20 + 0.3)
    assert answers.read_tokens.tolist() == [[100, 0]]
    dropped_before = answer(world, table, requests, server=np.inf, failed_after_s=3.0)
    assert dropped_before.read_tokens.tolist() == [[100, 100 + SEAM]]


def test_an_answer_that_ends_first_does_not_move():
    """A device that has written the last token before the target speaks keeps its answer."""
    answers = answer(a_world(), a_table(0.0, STANDBY), some_requests(100, 12))
    assert (answers.seam[0], answers.moved[0]) == (SEAM, False)
    assert answers.resumed_s[0] == pytest.approx(1.0 + 11 / 20)


def test_who_failed_in_the_race_is_no_target():
    """An answer does not move to a server that has just failed."""
    world, table, requests = a_world(), a_table(STANDBY, 0.0), some_requests(100, 100)
    answers = answer(
        world, table, requests, server=[[np.inf], [0.5], [0.5]], failed_after_s=[[0.1], [np.inf], [np.inf]]
    )
    assert (answers.source[0], answers.seam[0]) == (0, 0)


@pytest.mark.parametrize("handoff", [Handoff.MAKE_BEFORE_BREAK, Handoff.STOP_THEN_START])
def test_whom_a_plan_does_not_name_goes_on_with_nothing(handoff):
    """Neither policy of one endpoint uses the other, however much that would save; of two, one may."""
    dear, free = a_world(handoff=handoff), a_world(handoff=handoff, usd_per_joule=0.0)
    requests = some_requests(100, 200)
    for world, table in ((dear, a_table(0.0, None)), (free, a_table(None, 0.0))):
        answers = answer(world, table, requests)
        assert (answers.seam[0], answers.moved[0]) == (0, False)
        assert np.count_nonzero(answers.read_tokens) == np.count_nonzero(answers.wrote_tokens) == 1
    assert answer(free, a_table(STANDBY, 0.0), requests).moved[0]


def test_a_target_that_is_silent_has_read_all():
    """A reader with 700 tokens unread outlasts a silence of 120 s, whose prompt is charged as in a race."""
    world = a_world(device_tokens_per_s=50.0, answer_tokens=5000.0, t_m_factor=140.0)
    long = {
        name: replace(service, reading=Reading.of(Streams.steady(50.0), 8000, READER))
        for name, service in world.services.items()
    }
    prompts = np.arange(1.0, 301.0)
    answers = answer(
        replace(world, services=long),
        a_table(0.0, STANDBY),
        some_requests(prompts, 8000),
        server=np.inf,
        failed_after_s=SILENCE_S,
    )
    assert answers.seam.min() > 700
    assert answers.resumed_s == pytest.approx(answers.ttft_s + answers.seam / 50 + SILENCE_S)
    assert (answers.read_tokens[:, 1] == prompts + answers.seam).all()


def test_stop_then_start_lets_the_reader_wait():
    """The paper's way: nothing is written in vain, and a server that needs 3 s is waited for.

    The reader is dry at 7/5 s, and the server's first token comes at 7/20 + 3 s. What it writes is 50
    tokens/s, read at 5: the k-th of them is late for those who would have wanted it at 7/5 + k/5.
    """
    world = a_world(handoff=Handoff.STOP_THEN_START)
    answers = answer(world, a_table(0.0, STANDBY), some_requests(100, 100), server=3.0)
    late_s = SEAM / 20 + 3.0 - SEAM / READER
    assert answers.moved[0]
    assert answers.wrote_tokens.tolist() == [[SEAM + 1, 100 - SEAM]]
    assert answers.delayed_tokens[0] == np.ceil(late_s / (1 / READER - 1 / 50))
    assert answers.waits_s.tolist() == pytest.approx([late_s])


def test_stopped_answers_ask_a_server_that_fails_once_more():
    """It fails after 3 s, and its second try takes as long as it is believed to at the median: 0.5 s."""
    world = a_world(handoff=Handoff.STOP_THEN_START)
    spread = ServerTtft(Distribution.of_samples([0.1, 0.5, 0.9]))
    device, server = world.known.endpoints
    known = replace(world.known, endpoints=(device, replace(server, ttft=spread)))
    answers = answer(
        replace(world, known=known),
        a_table(0.0, STANDBY),
        some_requests(100, 100),
        server=np.inf,
        failed_after_s=3.0,
    )
    assert answers.moved[0]
    assert answers.resumed_s[0] == pytest.approx(1.0 + answers.seam[0] / 20 + 3.0 + 0.5)


@pytest.mark.parametrize(("warm", "prefill_s"), [(True, 0.57), (False, 1.07)])
def test_a_device_that_lost_keeps_what_it_read(warm, prefill_s):
    """The server wins after 0.5 s, when the device has read 50 of 100 tokens: it need not read them again."""
    world = a_world(usd_per_joule=0.0, warm_standby=warm, believed_server_s=0.5, s_per_token=0.01)
    answers = answer(world, a_table(0.0, 0.0), some_requests(100, 200))
    seam = answers.seam[0]
    assert answers.moved[0]
    asked_s = 0.5 + seam / 50
    assert answers.resumed_s[0] == pytest.approx(asked_s + prefill_s + 0.01 * (seam - 7))


def test_misjudging_the_handoff_moves_the_seam():
    """Who takes a handoff for twice as long waits for twice as much unread: ten tokens, of 14 written."""
    requests, table = some_requests(100, 100), a_table(0.0, STANDBY)
    assert answer(a_world(t_m_factor=2.0), table, requests).seam[0] == 14
    assert answer(a_world(remaining_factor=1e-4), table, requests).seam[0] == 0


STREAMS = Streams.recorded(
    [
        np.concatenate(([0.0], np.cumsum(np.random.default_rng(seed).exponential(0.15, 99))))
        for seed in range(6)
    ]
)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(list(Handoff)), st.sampled_from([0.0, 1e-3]))
def test_figures_are_those_of_the_tokens(seed, handoff, usd_per_joule):
    """QoE, lateness and waits, which are sums over curves, equal those of every answer's token times."""
    rng = np.random.default_rng(seed)
    world = a_world(handoff=handoff, usd_per_joule=usd_per_joule, server=STREAMS)
    requests = some_requests(rng.integers(1, 120, 40), rng.integers(1, 120, 40))
    answers = answer(world, a_table(0.2, 0.0), requests, server=rng.exponential(0.8, (3, 40)), recordings=6)
    waits = []
    for index in range(40):
        delivered = answers.delivered_s(index)
        assert answers.qoe[index] == pytest.approx(qoe(delivered, READER))
        late_s = read_times(delivered, READER) - np.arange(delivered.size) / READER
        assert answers.late_s[index] == pytest.approx(late_s.sum())
        gaps = np.diff(read_times(delivered, READER)) - 1 / READER
        waits += gaps[gaps > 1e-9].tolist()
    told = np.repeat(answers.waits_s, answers.waits)
    assert sorted(told) == pytest.approx(sorted(waits), abs=1e-8)


@pytest.mark.parametrize("wait_s", [0.0, 0.2, 1.0])
def test_exponential_races_come_to_their_closed_form(wait_s):
    """E[min(S, w + d)] of an exponential S is (1 - exp(-(w + d)))/1, and the device starts with exp(-w)."""
    count, rng = 200_000, np.random.default_rng(3)
    world, requests = a_world(**OFF), some_requests(np.full(count, 50), 1)
    answers = answer(world, a_table(wait_s, 0.0), requests, server=rng.exponential(1.0, (3, count)))
    expected = 1 - np.exp(-(wait_s + 0.5))
    error = answers.ttft_s.std() / np.sqrt(count)
    assert answers.ttft_s.mean() == pytest.approx(expected, abs=4 * error)
    started = (answers.read_tokens[:, 0] > 0).mean()
    assert started == pytest.approx(np.exp(-wait_s), abs=4 * np.sqrt(0.25 / count))


def test_the_least_of_two_exponentials_is_exponential():
    """A server asked twice at once has half the mean TTFT, and each try wins half of the races."""
    count, rng = 200_000, np.random.default_rng(4)
    world, requests = a_world(**OFF), some_requests(np.full(count, 50), 1)
    answers = answer(
        world, a_table(None, 0.0, ("server", 0.0)), requests, server=rng.exponential(1.0, (3, count))
    )
    assert answers.ttft_s.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(count))
    assert np.quantile(answers.ttft_s, 0.99) == pytest.approx(-np.log(0.01) / 2, rel=0.02)


def test_takeovers_follow_recordings_of_their_own():
    """The tokens after a seam come as the recording says that the takeover drew."""
    world = a_world(server=STREAMS)
    luck = {"device": fixed_luck(0.0), "server": fixed_luck(0.5)}
    recording = luck["server"].recording.copy()
    recording[TAKEOVER] = 4
    luck["server"] = replace(luck["server"], recording=recording)
    answers = simulate(world, a_table(0.0, STANDBY), some_requests(100, 60), luck)
    assert answers.moved[0]
    seam = answers.seam[0]
    assert np.diff(answers.delivered_s(0)[seam:]) == pytest.approx(
        np.diff(STREAMS.reaching(60).at_s[4])[: 59 - seam]
    )
