"""Budgets in whole sessions: who does not start, what the client is told, and that they hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from timetable import AClient, a_house, a_request, device, play, server

from discostream.builtin import builtin_output_lengths, builtin_profiles
from discostream.config import CostSettings, EndpointSettings, PolicySettings
from discostream.core.budget import Budget, Resource, Window, most_prompt_tokens
from discostream.core.cost import Energy, Prices
from discostream.endpoints.base import Endpoint, NoOptions
from discostream.errors import AllEndpointsFailed, BudgetSpent, EndpointError, Phase
from discostream.session.house import House, Surroundings
from discostream.session.planner import Planner
from discostream.session.purse import ANSWER_TOKENS, Purse
from discostream.session.run import run
from discostream.types import Finish, FinishReason, Kind, Outcome, Piece, Prefix, Prompt

pytestmark = pytest.mark.anyio

STARTED_AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
NOTHING_USD = Budget(name="no money", resource=Resource.USD, amount=0.0, window=Window.DAY, hard=True)
NOTHING_J = Budget(name="no energy", resource=Resource.JOULES, amount=0.0, window=Window.HOUR, hard=True)


LONGER = "anticonstitutionally disestablishing incomprehensibilities counterrevolutionaries."


def with_budgets(house: House, *budgets: Budget) -> House:
    """The house with a purse whose clock goes with the test's."""
    began_at = anyio.current_time()
    return replace(
        house, purse=Purse(budgets, lambda: STARTED_AT + timedelta(seconds=anyio.current_time() - began_at))
    )


def burning(endpoint: Endpoint, joules_per_token: float = 0.1) -> Endpoint:
    endpoint.energy = Energy(joules_per_token, joules_per_token)
    return endpoint


def held(house: House) -> list[float]:
    return [account.held for account in house.purse._accounts]


async def test_a_spent_budget_brings_the_next_start_forward():
    """An endpoint that may not be paid for counts as not there: the next one starts at once."""
    cloud = server()
    house = with_budgets(a_house([device(ttft_s=0.2), cloud], {"cloud": 0.0, "laptop": 9.0}), NOTHING_USD)
    played = await play(house)
    assert (played.outcome.winner, played.outcome.ttft_s) == ("laptop", pytest.approx(0.2))
    assert cloud.started == 0
    (refused,) = [attempt for attempt in played.outcome.attempts if attempt.endpoint == "cloud"]
    assert (refused.outcome, refused.usd, refused.ran_s) == ("not_started", 0.0, None)
    assert refused.error == "cloud: budget 'no money' is spent; it renews at 2026-11-23 00:00+00:00"


async def test_a_spent_budget_hurries_a_start_while_others_run():
    """Where another attempt runs already, a refused one still brings the next planned start forward."""
    endpoints = [device(ttft_s=1.0), server(), device("tablet", ttft_s=0.1)]
    house = a_house(endpoints, {"laptop": 0.0, "cloud": 0.0, "tablet": 0.5})
    played = await play(with_budgets(house, NOTHING_USD))
    assert (played.outcome.winner, played.outcome.ttft_s) == ("tablet", pytest.approx(0.1))


async def test_who_stands_by_stays_so_when_a_budget_is_spent():
    """A refused start wakes nobody who merely stands by while another attempt runs."""
    spare = device("spare")
    house = a_house([device(ttft_s=1.0), server(), spare], {"laptop": 0.0, "cloud": 0.0})
    assert (await play(with_budgets(house, NOTHING_USD))).outcome.winner == "laptop"
    assert spare.started == 0


async def test_nothing_left_to_start_is_a_budgets_error():
    """When every endpoint's budget is spent the error has nothing but budgets for causes, and names them."""
    house = with_budgets(a_house([burning(device()), server()]), NOTHING_USD, NOTHING_J)
    played = await play(house)
    assert isinstance(played.failure, AllEndpointsFailed)
    assert [type(cause) for cause in played.failure.causes] == [BudgetSpent] * 2
    assert "'no money' is spent; it renews at 2026-11-23 00:00+00:00" in str(played.failure)
    assert "'no energy' is spent; it renews at 2026-11-22 13:00+00:00" in str(played.failure)
    assert played.outcomes == {"laptop": "not_started", "cloud": "not_started"}
    assert house.ledger.outcomes == [played.outcome]


async def test_a_failure_and_a_spent_budget_are_told_together():
    """Where one endpoint failed and another may not be paid for, the error names both."""
    house = with_budgets(a_house([device(refuses="out of memory"), server()]), NOTHING_USD)
    played = await play(house)
    assert isinstance(played.failure, AllEndpointsFailed)
    assert {cause.endpoint: type(cause).__name__ for cause in played.failure.causes} == {
        "laptop": "EndpointError",
        "cloud": "BudgetSpent",
    }
    assert "out of memory" in str(played.failure)
    assert "'no money' is spent" in str(played.failure)


MOVING = {"ttft_s": 0.1, "tbt_s": 0.01}


@pytest.mark.parametrize(("share", "migrations"), [(1.0, 1), (0.5, 0)])
async def test_an_answer_does_not_move_where_a_budget_is_spent(share, migrations):
    """An answer stays where it is when the cheaper endpoint may not start."""
    laptop, cloud = device(**MOVING), server(**MOVING)
    budget = Budget(name="local", resource=Resource.SHARE, amount=share, kind=Kind.DEVICE, hard=True)
    house = with_budgets(a_house([laptop, cloud], {"cloud": 0.0}, migrate=True), budget)
    for _ in range(40):  # till the handoff time is known to be short
        house.knowledge.observe((await play(a_house([device(**MOVING)], {"laptop": 0.0}))).outcome, 0.0)
    laptop.started = 0
    played = await play(house)
    assert len(played.outcome.migrations) == migrations
    assert laptop.started == migrations
    assert migrations or played.outcome.stayed.endswith("hide it: a hard budget leaves too little")


async def test_a_rescue_skips_an_endpoint_whose_budget_is_spent():
    """A broken answer goes on at the endpoint that may be paid for, although another was quicker."""
    cloud = server(ttft_s=0.0)
    endpoints = [device(breaks_after=3), cloud, device("tablet", ttft_s=1.0)]
    played = await play(with_budgets(a_house(endpoints, {"laptop": 0.0}), NOTHING_USD))
    assert [move.target for move in played.outcome.migrations] == ["tablet"]
    assert cloud.started == 0


async def test_a_rescue_is_paid_with_the_words_to_be_said_again():
    """A budget that would pay for the rest, but not for the words that come before it, starts nobody."""
    cloud = server(answer=LONGER, continues=("text",))
    cloud.prices = Prices(1e-6, 100e-6)
    request = a_request(max_tokens=20)
    written = "anticonstitutionally disestablishing"
    exact = cloud.prices.usd(most_prompt_tokens(request, Prefix(written)), 20 - 2)
    house = a_house([device(answer=LONGER, breaks_after=2), cloud], {"laptop": 0.0})
    tight = Budget(name="tight", resource=Resource.USD, amount=exact * 1.01, window=Window.DAY, hard=True)
    played = await play(with_budgets(house, tight), request)
    assert isinstance(played.failure, AllEndpointsFailed)
    assert str(played.failure).startswith("laptop: connection reset")
    assert cloud.started == 0


async def test_a_rescue_that_no_budget_pays_is_told():
    """When nobody who could go on may be paid for, the error names what broke and the budget."""
    played = await play(
        with_budgets(a_house([device(breaks_after=3), server()], {"laptop": 0.0}), NOTHING_USD)
    )
    assert isinstance(played.failure, AllEndpointsFailed)
    assert [cause.endpoint for cause in played.failure.causes] == ["laptop", "cloud"]
    assert isinstance(played.failure.causes[1], BudgetSpent)


async def test_an_answer_without_a_bound_ends_where_the_budget_does():
    """The endpoint itself is asked for no more than can be paid, and the client is told: length."""
    cloud, request = server(answer="word " * 500), a_request()
    usd = cloud.prices.usd(most_prompt_tokens(request, Prefix()), 100.5)
    budget = Budget(name="money", resource=Resource.USD, amount=usd, window=Window.DAY, hard=True)
    played = await play(with_budgets(a_house([cloud]), budget), request)
    assert (played.outcome.completion_tokens, played.outcome.finish_reason) == (100, "length")
    assert played.outcome.usd <= usd


async def test_everything_is_given_back_when_the_client_leaves():
    """However a request ends, what it did not cost is to be had again, and what it did is paid once."""
    cloud, laptop = server(ttft_s=1.0), burning(device(ttft_s=5.0))
    budgets = (
        Budget(name="money", resource=Resource.USD, amount=1.0, window=Window.DAY, hard=True),
        Budget(name="energy", resource=Resource.JOULES, amount=900.0, window=Window.HOUR, hard=True),
    )
    house, client = with_budgets(a_house([laptop, cloud]), *budgets), AClient()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, a_request(), house, client)
        await anyio.sleep(0.5)
        assert min(held(house)) > 0
        client.left.cancel()
    (outcome,) = house.ledger.outcomes
    assert held(house) == [0, 0]
    assert [account.spent for account in house.purse._accounts] == [outcome.usd, outcome.joules]
    assert min(outcome.usd, outcome.joules) > 0


class Wordy(type(server())):
    """A server that counts nothing itself, so that what it wrote is estimated, and by far too much."""

    async def generate(self, request, prefix):
        for _ in range(request.max_tokens):
            await anyio.sleep(0.01)
            yield Piece("antidisestablishmentarianism", 7)
        await anyio.sleep_forever()


@pytest.mark.parametrize("stops", [True, False])
async def test_an_estimate_is_never_more_than_was_set_aside(stops):
    """What is charged for a cancelled attempt that nobody counted stays within what it could have cost."""
    cloud = Wordy(server().settings, server().script)
    cloud.cancel_stops_billing = stops
    request = a_request("", max_tokens=40)
    usd = cloud.prices.usd(most_prompt_tokens(request, Prefix()), 40) * 1.0001
    budget = Budget(name="money", resource=Resource.USD, amount=usd, window=Window.DAY, hard=True)
    house = with_budgets(a_house([cloud]), budget)
    played = await play(house, request, leaves_after=30)
    assert played.outcome.attempts[0].completion_tokens == 40
    assert 0 < played.outcome.usd <= usd


DOLLARS = Budget(name="money", resource=Resource.USD, amount=1.0, window=Window.DAY)
JOULES = Budget(name="energy", resource=Resource.JOULES, amount=1e4, window=Window.DAY, hard=True)
AVERAGE = round(builtin_output_lengths().mean)


@pytest.mark.parametrize(
    ("budgets", "max_tokens", "charged"),
    [
        ([], None, AVERAGE),
        ([], 5000, AVERAGE),
        ([DOLLARS], 5000, AVERAGE),
        ([JOULES], 5000, AVERAGE),
        ([replace(DOLLARS, hard=True)], 5000, 5000),
        ([replace(DOLLARS, hard=True), JOULES], 10, 10),
        ([replace(DOLLARS, hard=True)], None, ANSWER_TOKENS),
    ],
)
async def test_a_bill_that_goes_on_is_for_the_longest_answer_where_a_hard_budget_pays(
    budgets, max_tokens, charged
):
    """A loser whose server generates on costs an average answer; hard dollars reckon with the longest."""
    cloud = server(ttft_s=5.0)
    cloud.cancel_stops_billing = False
    house = with_budgets(a_house([burning(device(ttft_s=0.1)), cloud]), *budgets)
    played = await play(house, a_request(max_tokens=max_tokens))
    assert played.outcomes == {"laptop": "won", "cloud": "lost"}
    assert played.outcome.usd == pytest.approx(cloud.prices.usd(3, charged))
    paid = [each.spent for each in house.purse._accounts if each.budget.resource is Resource.USD]
    assert paid == [played.outcome.usd] * len(paid)


class Waking(type(device())):
    """A device that learns only when it is prepared how much it burns."""

    prepared = 0

    async def prepare(self):
        await anyio.sleep(1.0)
        self.prepared += 1
        self.energy = Energy(0.1, 0.1)


async def test_a_device_is_asked_what_it_burns_before_it_is_trusted_with_joules():
    """With a hard budget of joules the first attempt waits until the device knows its energy; others race."""
    laptop = Waking(device().settings, device(ttft_s=0.1).script)
    budget = Budget(name="energy", resource=Resource.JOULES, amount=400.0, window=Window.DAY, hard=True)
    house = with_budgets(a_house([laptop, server(ttft_s=3.0)]), budget)
    first, second = await play(house), await play(house)
    assert (first.outcome.winner, first.outcome.ttft_s) == ("laptop", pytest.approx(1.1))
    assert second.outcome.ttft_s == pytest.approx(0.1)
    assert laptop.prepared == 1
    spent = with_budgets(a_house([Waking(laptop.settings, laptop.script), server(ttft_s=3.0)]), NOTHING_J)
    refused = await play(spent)
    assert refused.outcome.winner == "cloud"
    assert refused.outcomes == {"laptop": "not_started", "cloud": "won"}
    assert refused.outcome.attempts[0].ran_s is None


class NeverReady(Waking):
    """A device that breaks while it is prepared."""

    async def prepare(self):
        await anyio.sleep(0.1)
        raise EndpointError(self.name, Phase.PREFILL, "out of memory")


@pytest.mark.parametrize(
    ("waking", "leaves_after", "outcome"),
    [(Waking, None, "lost"), (Waking, 1, "lost"), (NeverReady, None, "failed")],
)
async def test_an_attempt_that_never_asked_costs_nothing(waking, leaves_after, outcome):
    """Whoever was only prepared when another won, the client left or it broke has read nothing, nor run."""
    laptop = waking(device().settings, device().script)
    laptop.energy = Energy(0.1, 0.0)  # known by half, so that it is prepared before it is asked
    house = with_budgets(a_house([laptop, server(ttft_s=0.5)]), JOULES)
    played = await play(house, leaves_after=leaves_after)
    (attempt,) = [each for each in played.outcome.attempts if each.endpoint == "laptop"]
    assert (attempt.outcome, laptop.started) == (outcome, 0)
    assert (attempt.prompt_tokens, attempt.joules, attempt.ran_s) == (0, 0.0, None)
    assert [(account.spent, account.held) for account in house.purse._accounts] == [(0.0, 0.0)]


async def test_an_answer_is_bounded_once_joules_are_known():
    """A device that has learnt what it burns is asked for no longer an answer than the budget pays."""
    laptop = Waking(device().settings, device(answer="word " * 3000).script)
    budget = Budget(name="energy", resource=Resource.JOULES, amount=1e6, window=Window.DAY, hard=True)
    played = await play(with_budgets(a_house([laptop]), budget))
    assert played.outcome.completion_tokens == ANSWER_TOKENS


@dataclass
class Auditor:
    """A ledger in memory that adds up as it goes, and keeps the highest each budget has been."""

    budgets: tuple[Budget, ...]
    spent: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    most: dict[str, float] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    async def record(self, outcome: Outcome, at_s: float) -> None:
        self.outcomes.append(outcome)
        self.prompt_tokens += outcome.prompt_tokens if outcome.winner else 0
        for budget in self.budgets:
            spent = self.spent[budget.name] = self.spent.get(budget.name, 0.0) + sum(
                budget.taken_by(each.kind, usd=each.usd, joules=each.joules, prompt_tokens=each.prompt_tokens)
                for each in outcome.attempts
            )
            of = self.prompt_tokens if budget.resource is Resource.SHARE else 1
            part = spent / (budget.amount * of) if of else float(spent > 0) * np.inf
            self.most[budget.name] = max(self.most.get(budget.name, 0.0), part)
        await anyio.lowlevel.checkpoint()


async def crowd(
    endpoints: Iterable[Endpoint], *budgets: Budget, limits: tuple[int | None, ...]
) -> tuple[Auditor, int]:
    """10,000 requests within 200 s, some abandoned, and how many were under way at the most."""
    auditor = Auditor(budgets)
    house = replace(with_budgets(a_house(list(endpoints)), *budgets), ledger=auditor)
    rng = np.random.default_rng(1)
    under_way = most = 0

    async def ask(at: float, words: int, limit: int | None, leaves_after: int) -> None:
        nonlocal under_way, most
        await anyio.sleep(at)
        under_way += 1
        most = max(most, under_way)
        request = a_request("a " * words, max_tokens=limit)
        await play(house, request, leaves_after=leaves_after or None)
        under_way -= 1

    drawn = zip(
        np.sort(rng.random(10_000)) * 200.0,
        rng.integers(1, 300, 10_000),
        rng.integers(len(limits), size=10_000),
        rng.integers(0, 4, 10_000),
        strict=True,
    )
    async with anyio.create_task_group() as tasks:
        for at, words, limit, leaves_after in drawn:
            tasks.start_soon(ask, float(at), int(words), limits[limit], int(leaves_after))
    assert len(auditor.outcomes) == 10_000
    assert held(house) == pytest.approx([0.0] * len(budgets), abs=1e-9)
    return auditor, most


@pytest.mark.slow
async def test_ten_thousand_at_a_time_exceed_neither_dollars_nor_joules():
    """10,000 requests are all under way at once; no hard budget is exceeded, and what may be spent is."""
    free = server("nas", ttft_s=300.0, answer="Here you are.")
    free.prices = Prices()
    cloud = server(ttft_s=260.0, tbt_s=0.1, answer="Here you are.")
    cloud.cancel_stops_billing = False
    auditor, most = await crowd(
        [burning(device(ttft_s=250.0, tbt_s=0.1, answer="Here you are.")), cloud, free],
        Budget(name="money", resource=Resource.USD, amount=4.0, window=Window.DAY, hard=True),
        Budget(name="energy", resource=Resource.JOULES, amount=30_000.0, window=Window.HOUR, hard=True),
        limits=(1, 2, 3),
    )
    assert most == 10_000
    assert all(0.9 <= part <= 1.0 for part in auditor.most.values()), auditor.most


@pytest.mark.slow
async def test_ten_thousand_at_a_time_exceed_no_share():
    """At no moment has the server read more than its share of all prompt tokens, and it reads nearly that."""
    auditor, most = await crowd(
        [device(ttft_s=8.0, answer="Here you are."), server(ttft_s=4.0, answer="Here you are.")],
        Budget(name="share", resource=Resource.SHARE, amount=0.3, kind=Kind.SERVER, hard=True),
        limits=(None, 1, 2, 3),
    )
    assert most > 300
    assert auditor.most["share"] <= 1.0
    assert auditor.spent["share"] >= 0.9 * 0.3 * auditor.prompt_tokens


class Shifting(Endpoint):
    """A server with GPT-4o's TTFT, times a factor that a test can change."""

    def __init__(self) -> None:
        super().__init__(EndpointSettings(name="cloud", kind=Kind.SERVER, dialect="test"), NoOptions())
        self.factor = 1.0
        self._rng = np.random.default_rng(5)

    async def generate(self, request, prefix):
        tokens = len(request.messages[0].content.split())
        yield Prompt(tokens)
        await anyio.sleep(self.factor * builtin_profiles()["azure-gpt-4o"].ttft.sample(self._rng))
        yield Piece("Yes.", 1)
        yield Finish(FinishReason.STOP, tokens, 1)


@pytest.mark.parametrize(("kind", "share"), [(Kind.DEVICE, 0.1), (Kind.DEVICE, 0.4), (Kind.SERVER, 0.1)])
async def test_a_soft_share_holds_in_whole_sessions(kind, share):
    """Over 2,000 sessions a kind reads its share within 3 %, while the server slows down and recovers."""
    laptop, cloud = device(ttft_s=0.05, prefill_s_per_token=0.002, answer="Yes."), Shifting()
    house = a_house([laptop, cloud])
    budgets = [Budget(name="policy.share", resource=Resource.SHARE, amount=share, kind=kind)]
    purse = with_budgets(house, *budgets).purse
    planner = Planner(
        PolicySettings(constraint=kind.value),
        Surroundings(house.knowledge, CostSettings(), purse=purse),
        seed=1,
        elsewhere=lambda work: work(),
    )
    house, rng = replace(house, purse=purse, planner=planner), np.random.default_rng(2)
    read = asked = 0
    for number in range(2000):
        cloud.factor = 3.0 if 700 <= number < 1400 else 1.0
        words = int(rng.lognormal(4.5, 0.8)) + 1
        outcome = (await play(house, a_request("word " * words))).outcome
        read += sum(each.prompt_tokens for each in outcome.attempts if each.kind is kind)
        asked += outcome.prompt_tokens
    assert read / asked == pytest.approx(share, rel=0.03)
