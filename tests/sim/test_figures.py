"""Figures: means and quantiles of simulated answers, in parts or at once."""

from __future__ import annotations

import numpy as np
import pytest
from worlds import PRICES, READER, STANDBY, a_table, a_world, fixed_luck, some_requests

from discostream.core.forecast import SILENCE_S
from discostream.sim.figures import Tally
from discostream.sim.simulate import simulate
from discostream.sim.world import Handoff
from discostream.traces.streams import Streams
from discostream.types import Kind

NAMES = {"policy": "p", "share": 0.3, "device": "d", "server_trace": "t"}


def answers_of(count=4, world=None, table=None, server_s=0.5, failed_after_s=np.inf, tokens=100):
    requests = some_requests(np.full(count, 100), tokens)
    luck = {
        "device": fixed_luck(0.0, count=count),
        "server": fixed_luck(server_s, failed_after_s, count=count),
    }
    return simulate(world or a_world(handoff=Handoff.OFF), table or a_table(None, 0.0), requests, luck)


def test_figures_are_means_and_quantiles():
    """Four answers of a server: their TTFTs, what they cost a request, and the reader's own pace."""
    answers = answers_of(server_s=[[0.1, 0.2, 0.3, 1.0]] * 3)
    figures = Tally(Kind.SERVER).add(answers).figures(**NAMES)
    assert (figures.n, figures.mean_ttft_s, figures.max_ttft_s) == (4, pytest.approx(0.4), 1.0)
    assert figures.p50_ttft_s == pytest.approx(0.25)
    assert figures.spent_share == 1.0
    assert figures.usd == pytest.approx(PRICES.usd(100, 100)) == pytest.approx(figures.cost)
    assert (figures.joules, figures.migrated_share, figures.wasted_tokens) == (0.0, 0.0, 0.0)
    assert figures.p99_tbt_s == 1 / READER
    assert figures.qoe_mean == pytest.approx(answers.qoe.mean())


def test_the_share_is_of_the_constrained_kind():
    """Both read every prompt: either kind has spent all of them; a device that never starts, nothing."""
    both = answers_of(table=a_table(0.0, 0.0))
    assert Tally(Kind.DEVICE).add(both).figures(**NAMES).spent_share == 1.0
    assert Tally(Kind.DEVICE).add(answers_of()).figures(**NAMES).spent_share == 0.0


def test_unanswered_requests_count_as_silence():
    """Who got no answer has waited for as long as an endpoint may be silent, and has no quality."""
    answers = answers_of(server_s=[[0.1, np.inf]] * 3, failed_after_s=[[np.inf, 3.0]] * 3, count=2)
    figures = Tally(Kind.SERVER).add(answers).figures(**NAMES)
    assert figures.mean_ttft_s == pytest.approx((0.1 + SILENCE_S) / 2)
    assert figures.unanswered_share == 0.5
    assert figures.qoe_mean == pytest.approx(answers.qoe[0] / 2)


def test_parts_come_to_the_same_as_all():
    """Simulated in parts or at once, figures are equal."""
    parts = [answers_of(server_s=seed) for seed in (0.1, 0.7)]
    whole = answers_of(8, server_s=[[0.1] * 4 + [0.7] * 4] * 3)
    assert Tally(Kind.SERVER).add(parts[0]).add(parts[1]).figures(**NAMES) == Tally(Kind.SERVER).add(
        whole
    ).figures(**NAMES)


@pytest.mark.parametrize(
    ("tokens", "p99_s"),
    [(150, 1 / READER), (101, 1 / READER), (100, 2.2 - 2 / READER), (60, 2.2 - 2 / READER)],
)
def test_the_99th_gap_is_a_wait_where_more_than_one_in_a_hundred_is(tokens, p99_s):
    """A pause of 2 s is one gap of 149, which is beyond the 99th in a hundred, or one of 59, which is not."""
    gaps = np.full(149, 0.1)
    gaps[2] = 2.0
    world = a_world(handoff=Handoff.OFF, server=Streams.recorded([np.concatenate(([0.0], np.cumsum(gaps)))]))
    figures = Tally(Kind.SERVER).add(answers_of(1, world, tokens=tokens)).figures(**NAMES)
    assert figures.p99_tbt_s == pytest.approx(p99_s)


def test_waste_is_what_was_written_and_never_read():
    """A device that writes on for half a second while the server takes over has written in vain."""
    answers = answers_of(world=a_world(), table=a_table(0.0, STANDBY))
    figures = Tally(Kind.DEVICE).add(answers).figures(**NAMES)
    assert figures.migrated_share == 1.0
    assert figures.wasted_tokens == 11
    assert (figures.delayed_tokens_mean, figures.delayed_tokens_p99) == (0.0, 0.0)
