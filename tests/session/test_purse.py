"""The purse: what is set aside, paid and given back, so that a hard budget is never exceeded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timetable import device, server

from discostream.core.budget import POLICY_SHARE, Budget, Resource, Window, most_prompt_tokens
from discostream.core.cost import Energy
from discostream.errors import BudgetSpent
from discostream.ledger.queries import Spent
from discostream.session.localtime import local_now
from discostream.session.purse import ANSWER_TOKENS, LEAST_ANSWER_TOKENS, Purse
from discostream.types import Kind, Message, Outcome, Plan, Prefix, Request, Start

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=ZoneInfo("Europe/Berlin"))
PROMPT = most_prompt_tokens(
    Request(messages=(Message("user", "hello"),), arrived_at=0.0, request_id="r"), Prefix()
)


@dataclass
class Clock:
    """A clock on the wall that a test can set."""

    at: datetime = NOON

    def __call__(self) -> datetime:
        return self.at


def asked(text: str = "hello", max_tokens: int | None = 10) -> Request:
    return Request(messages=(Message("user", text),), arrived_at=0.0, request_id="r", max_tokens=max_tokens)


def usd(amount: float, *, hard: bool = True, window: Window = Window.DAY, name: str = "money") -> Budget:
    return Budget(name=name, resource=Resource.USD, amount=amount, window=window, hard=hard)


def joules(amount: float, *, hard: bool = True) -> Budget:
    return Budget(name="energy", resource=Resource.JOULES, amount=amount, window=Window.HOUR, hard=hard)


def share(amount: float, *, kind: Kind | None = Kind.SERVER, hard: bool = True) -> Budget:
    name = "share" if hard else POLICY_SHARE
    return Budget(name=name, resource=Resource.SHARE, amount=amount, kind=kind, hard=hard)


def ended(prompt_tokens: int, winner: str | None = "laptop") -> Outcome:
    return Outcome(
        request_id="r",
        policy="disco",
        winner=winner,
        ttft_s=None,
        finish_reason=None,
        prompt_chars=0,
        prompt_tokens=prompt_tokens,
        completion_tokens=0,
        attempts=(),
        migrations=(),
        delivered_s=(),
    )


MOST_USD = (PROMPT + 10) * 10 / 1e6
"""What `server()`, at 10 $ per million tokens, can charge for `asked()`."""


def test_the_most_is_set_aside_until_it_is_known_what_was_spent():
    """A budget for two attempts lets two start; what the first did not use lets a third one."""
    purse, cloud = Purse([usd(2.5 * MOST_USD)], Clock()), server()
    first, second = (purse.reserve(cloud, asked(), Prefix()) for _ in range(2))
    with pytest.raises(BudgetSpent):
        purse.reserve(cloud, asked(), Prefix())
    first.settle(usd=0.4 * MOST_USD, joules=0.0, prompt_tokens=20)
    purse.reserve(cloud, asked(), Prefix())
    second.settle(usd=MOST_USD, joules=0.0, prompt_tokens=20)
    with pytest.raises(BudgetSpent):
        purse.reserve(cloud, asked(), Prefix())


def test_a_counted_prompt_gives_back_the_rest_of_its_bound():
    """Once the endpoint has counted the prompt, only that and the answer are set aside, and never more."""
    purse, cloud = Purse([usd(1.2 * MOST_USD)], Clock()), server()
    first = purse.reserve(cloud, asked(), Prefix())
    first.shrink(20)
    (account,) = purse._accounts
    assert account.held == pytest.approx(cloud.prices.usd(20, 10))
    first.shrink(10 * PROMPT)
    assert account.held == pytest.approx(cloud.prices.usd(20, 10))
    purse.reserve(cloud, asked(), Prefix())


def test_what_costs_nothing_of_it_is_never_refused():
    """A spent budget of dollars leaves a free device alone, and one of joules a server."""
    purse = Purse([usd(0.0), joules(0.0)], Clock())
    purse.reserve(device(), asked(), Prefix())
    with pytest.raises(BudgetSpent):
        purse.reserve(server(), asked(), Prefix())
    laptop = device()
    laptop.energy = Energy(0.1, 0.1)
    with pytest.raises(BudgetSpent):
        purse.reserve(laptop, asked(), Prefix())


def test_balances_are_in_the_unit_of_the_amount():
    """Dollars of this window, and the share of what was answered: nothing before the first answer."""
    clock, cloud = Clock(), server()
    purse = Purse([usd(1.0), share(0.5, hard=False)], clock)
    reservation = purse.reserve(cloud, asked(), Prefix())
    reservation.settle(usd=0.25, joules=0.0, prompt_tokens=30)
    assert [balance.spent for balance in purse.balances()] == [0.25, 0.0]
    purse.count(ended(40))
    purse.reserve(cloud, asked(), Prefix())
    money, part = purse.balances()
    assert (money.budget.name, money.held) == ("money", pytest.approx(MOST_USD))
    assert (part.spent, part.held) == (0.75, 0.0)
    clock.at += timedelta(days=1)
    assert [balance.spent for balance in purse.balances()] == [0.0, 0.75]


def test_nothing_is_held_once_all_is_given_back():
    """What sums of floats leave over is not told as an amount, least of all as one below zero."""
    purse, laptop = Purse([joules(10_000.0)], Clock()), device()
    laptop.energy = Energy(0.1, 0.1)
    for lengths in ((1, 3, 7), (7, 3, 1), (2, 9, 5)):
        under_way = [purse.reserve(laptop, asked(max_tokens=length), Prefix()) for length in lengths]
        for reservation in under_way:
            reservation.release()
        assert purse.balances()[0].held == 0.0


def test_a_soft_budget_refuses_nobody():
    """A soft budget steers plans; an attempt starts however much was spent of it."""
    purse = Purse([usd(0.0, hard=False), share(0.0, hard=False)], Clock())
    purse.reserve(server(), asked(), Prefix()).settle(usd=1.0, joules=0.0, prompt_tokens=9)
    purse.reserve(server(), asked(), Prefix())


def test_a_refusal_names_the_budget_and_when_it_renews(caplog):
    """The error says which budget, what is left, and when it renews in local time; the log says it once."""
    purse = Purse([usd(0.004)], Clock())
    for _ in range(3):
        with pytest.raises(BudgetSpent) as refused:
            purse.reserve(server(), asked(), Prefix())
    assert (refused.value.budget, refused.value.status, refused.value.endpoint) == ("money", 402, "cloud")
    assert str(refused.value) == (
        f"cloud: budget 'money' has 0.004 usd left, and this request may take {MOST_USD:.3g}; "
        f"it renews at 2026-11-23 00:00+01:00"
    )
    assert len(caplog.records) == 1


RACE = Plan("disco", (Start("laptop", 0.0), Start("cloud", 0.0)))
KINDS = {"laptop": Kind.DEVICE, "cloud": Kind.SERVER}


def after(purse: Purse, requests: int, of_server: int, tokens: int = 100) -> Purse:
    """The same after so many requests of so many tokens each, of which the server took `of_server` tokens."""
    for _ in range(requests):
        purse.count(ended(tokens))
    purse.pay(Kind.SERVER, usd=0.0, joules=0.0, prompt_tokens=of_server)
    return purse


def test_who_would_make_a_share_owe_too_much_stands_by():
    """A long prompt stays on the device until the server's tenth can pay for it, or soon could."""
    purse = after(Purse([share(0.1, hard=False)], Clock()), 200, of_server=2000)
    assert purse.smoothed(RACE, KINDS, 300) is RACE
    held_back = Plan("disco", (Start("laptop", 0.0), Start("cloud", None)))
    assert purse.smoothed(RACE, KINDS, 600) == held_back
    saved = after(Purse([share(0.1, hard=False)], Clock()), 200, of_server=1000)
    assert saved.smoothed(RACE, KINDS, 600) is RACE


@pytest.mark.parametrize(
    "plan",
    [
        Plan("disco", (Start("cloud", 0.0),)),
        Plan("disco", (Start("cloud", 0.0), Start("laptop", None))),
        Plan("disco", (Start("laptop", 0.0), Start("cloud", 0.5))),
        Plan("offsets", RACE.starts),
        Plan("server-only", RACE.starts),
    ],
)
def test_nobody_stands_by_who_has_to_start(plan):
    """The only kind that starts, whoever starts later, and what a fixed policy names are left as they are."""
    purse = after(Purse([share(0.1, hard=False)], Clock()), 200, of_server=20_000)
    assert purse.smoothed(plan, KINDS, 600) == plan


def test_other_budgets_smooth_nothing():
    """Dollars, hard shares, and a share of the other kind let a plan be."""
    for budget in (usd(0.0, hard=False), share(0.1), share(0.1, kind=Kind.DEVICE, hard=False)):
        purse = after(Purse([budget], Clock()), 200, of_server=20_000)
        assert purse.smoothed(RACE, KINDS, 600) == RACE


def test_a_share_of_its_own_is_kept_whatever_the_settings_owes():
    """A request's own share lets it start although `policy.share` owes; other shares hold it back."""
    ours = Budget(name="ours", resource=Resource.SHARE, amount=0.1, kind=Kind.SERVER)
    for budgets, kept in (([share(0.1, hard=False)], True), ([share(0.1, hard=False), ours], False)):
        purse = after(Purse(budgets, Clock()), 200, of_server=2000)
        assert purse.smoothed(RACE, KINDS, 600) != RACE
        assert (purse.smoothed(RACE, KINDS, 600, 0.9) == RACE) is kept


def test_a_budget_without_anything_left_is_spent():
    """A budget of which nothing is left says so."""
    laptop, purse = device(), Purse([joules(0.0)], Clock())
    laptop.energy = Energy(1.0, 1.0)
    with pytest.raises(BudgetSpent, match="budget 'energy' is spent; it renews at 2026-11-22 13:00"):
        purse.reserve(laptop, asked(), Prefix())


def test_an_answer_without_a_bound_gets_one_that_the_budget_can_pay():
    """Where a hard budget pays for an answer's length, the endpoint is asked for no more than it affords."""
    cloud, open_ended = server(), asked(max_tokens=None)
    rich, poor, empty = (
        Purse([usd((PROMPT + tokens) * 10 / 1e6 * 1.000001)], Clock())
        for tokens in (10 * ANSWER_TOKENS, 300, LEAST_ANSWER_TOKENS - 1)
    )
    assert rich.reserve(cloud, open_ended, Prefix()).request.max_tokens == ANSWER_TOKENS
    assert poor.reserve(cloud, open_ended, Prefix()).request.max_tokens == 300
    with pytest.raises(BudgetSpent):
        empty.reserve(cloud, open_ended, Prefix())


@pytest.mark.parametrize("budgets", [[], [usd(5.0, hard=False)], [share(0.5)]])
def test_an_answer_that_no_budget_pays_by_the_token_stays_as_it_was_asked(budgets):
    """Without a hard budget on what it costs, an answer is not bounded."""
    purse = Purse(budgets, Clock())
    purse.count(ended(10**6))
    assert purse.reserve(server(), asked(max_tokens=None), Prefix()).request.max_tokens is None


def test_a_continuation_is_bounded_with_what_was_written():
    """The partial answer is read again by its next endpoint, and set aside for."""
    purse = Purse([usd(MOST_USD)], Clock())
    with pytest.raises(BudgetSpent):
        purse.reserve(server(), asked(), Prefix("x" * 100))


def test_a_share_is_of_what_was_answered():
    """A hard share gives nothing before anything was answered, then its part of that, prompt by prompt."""
    purse, cloud = Purse([share(0.5)], Clock()), server()
    with pytest.raises(BudgetSpent, match=f"leaves 0 prompt tokens, .* may have {PROMPT}; it grows with"):
        purse.reserve(cloud, asked(), Prefix())
    purse.count(ended(2 * PROMPT + 100))
    held = purse.reserve(cloud, asked(), Prefix())
    with pytest.raises(BudgetSpent):
        purse.reserve(cloud, asked(), Prefix())
    held.settle(usd=0.0, joules=0.0, prompt_tokens=40)
    purse.reserve(cloud, asked(), Prefix())


def test_requests_that_nobody_answered_earn_no_share():
    """What was refused or failed processed no tokens, so it cannot be lived on."""
    purse = Purse([share(0.5)], Clock())
    purse.count(ended(10**6, winner=None))
    with pytest.raises(BudgetSpent):
        purse.reserve(server(), asked(), Prefix())


def test_a_share_of_everything_holds_nothing_back():
    """A hard share of one is no restraint, not even for the first request."""
    Purse([share(1.0)], Clock()).reserve(server(), asked(), Prefix())


def test_a_renewed_budget_still_holds_what_is_under_way():
    """After midnight the day's budget is whole again, less what running attempts may yet take of it."""
    clock = Clock()
    purse, cloud = Purse([usd(2.5 * MOST_USD)], clock), server()
    purse.reserve(cloud, asked(), Prefix()).settle(usd=MOST_USD, joules=0.0, prompt_tokens=9)
    running = purse.reserve(cloud, asked(), Prefix())
    clock.at = NOON + timedelta(hours=12)
    purse.reserve(cloud, asked(), Prefix())
    with pytest.raises(BudgetSpent, match=r"renews at 2026-11-24 00:00\+01:00"):
        purse.reserve(cloud, asked(), Prefix())
    running.settle(usd=0.0, joules=0.0, prompt_tokens=0)
    purse.reserve(cloud, asked(), Prefix())


@given(
    amounts=st.tuples(st.floats(0, 0.2), st.floats(0, 500), st.floats(0, 0.99)),
    steps=st.lists(
        st.tuples(
            st.integers(0, 40), st.booleans(), st.floats(0, 1), st.integers(0, 2000), st.integers(0, 90)
        ),
        max_size=60,
    ),
)
def test_whatever_happens_no_hard_budget_is_exceeded(amounts, steps):
    """In any order of starts, settlements, answers and hours, what was paid never passes any budget."""
    clock, cloud, laptop = Clock(), server(), device()
    laptop.energy = Energy(0.05, 0.1)
    budgets = usd(amounts[0]), joules(amounts[1]), share(amounts[2])
    purse = Purse(budgets, clock)
    running, paid, read, answered = [], {}, 0, 0
    for pick, begins, part, tokens, minutes in steps:
        clock.at += timedelta(minutes=minutes)
        if begins:
            endpoint = cloud if pick % 2 else laptop
            try:
                running.append((endpoint, purse.reserve(endpoint, asked("x" * tokens, pick + 1), Prefix())))
            except BudgetSpent:
                continue
        elif running:
            endpoint, held = running.pop(pick % len(running))
            prompt = part * most_prompt_tokens(held.request, Prefix())
            answer = part * held.request.max_tokens
            dollars, energy = endpoint.prices.usd(prompt, answer), endpoint.energy.joules(prompt, answer)
            held.settle(usd=dollars, joules=energy, prompt_tokens=int(prompt))
            purse.count(ended(tokens))
            read, answered = read + int(prompt) * (endpoint is cloud), answered + tokens
            for budget, cost in ((budgets[0], dollars), (budgets[1], energy)):
                window = budget.name, budget.window.start(clock.at)
                paid[window] = paid.get(window, 0.0) + cost
        assert all(
            spent <= budget.amount
            for budget in budgets
            for (name, _), spent in paid.items()
            if name == budget.name
        )
        assert read <= amounts[2] * answered


def test_a_device_that_has_yet_to_learn_what_it_burns_is_asked_again():
    """An attempt on such a device is provisional; once joules are known it is set aside for, or refused."""
    laptop = device()
    purse = Purse([joules(0.1 * (PROMPT + 1500.5))], Clock())
    unsure = purse.reserve(laptop, asked(max_tokens=None), Prefix())
    assert unsure.is_provisional
    assert unsure.request.max_tokens is None
    laptop.energy = Energy(0.1, 0.1)
    unsure.confirm()
    assert not unsure.is_provisional
    assert unsure.request.max_tokens == 1500
    laptop.energy = Energy(1.0, 1.0)
    with pytest.raises(BudgetSpent):
        unsure.confirm()
    laptop.energy = Energy(0.1, 0.1)
    purse.reserve(laptop, asked(max_tokens=1500), Prefix())


def test_nobody_is_unsure_where_no_joules_are_bounded():
    """Without a hard budget of joules no attempt waits for a device to be prepared."""
    assert (
        not Purse([joules(5.0, hard=False), usd(1.0)], Clock())
        .reserve(device(), asked(), Prefix())
        .is_provisional
    )


def spent_before(**fields: object) -> Spent:
    return Spent(
        **{"usd": 0.0, "joules": 0.0, "prompt_tokens": {}, "all_prompt_tokens": 0, "requests": 0, **fields}
    )


def test_the_ledger_says_what_was_spent_before():
    """A purse begins with what the present windows hold, and a hard share with the day's."""
    clock, looked_up = Clock(NOON + timedelta(minutes=30)), []
    purse = Purse([usd(1.0, window=Window.MONTH), joules(100.0), share(0.5)], clock)

    def spent_since(since: datetime) -> Spent:
        looked_up.append(since)
        return spent_before(
            usd=0.75,
            joules=40.0,
            prompt_tokens={Kind.SERVER: 3000, Kind.DEVICE: 9000},
            all_prompt_tokens=10_000,
            requests=5,
        )

    purse.load(spent_since)
    midnight = NOON.replace(hour=0)
    assert looked_up == [midnight.replace(day=1), NOON, midnight]
    left = [account.left for account in purse._accounts]
    assert left == pytest.approx([0.25, 60.0, 2000.0])


def test_a_soft_share_begins_anew():
    """What was shared under other rules this morning is no debt, nor a credit, of what is to come."""
    budgets = [share(0.5, kind=kind, hard=False) for kind in (None, Kind.SERVER)]
    Purse(budgets, Clock()).load(lambda since: pytest.fail("asked"))


def test_other_rules_share_the_money():
    """Another policy over the same connection spends from the same hard budgets, with a share of its own."""
    clock = Clock()
    purse = Purse([usd(2.5 * MOST_USD), share(0.5, hard=False)], clock)
    other = purse.under([usd(2.5 * MOST_USD), share(0.5, hard=False)])
    other.reserve(server(), asked(), Prefix()).settle(usd=2 * MOST_USD, joules=0.0, prompt_tokens=100)
    other.count(ended(100))
    with pytest.raises(BudgetSpent):
        purse.reserve(server(), asked(), Prefix())
    ours, theirs = purse.allowances(Kind.SERVER), other.allowances(Kind.SERVER)
    assert ours[0] == theirs[0]
    assert (ours[1].per_request, theirs[1].per_request) == (0.5, pytest.approx(0.5 - 0.5 / 32))


def test_allowances_follow_what_was_spent():
    """Half a day with 400 requests, and a belief in 200 a day, has 378 to come; they share what is left."""
    clock = Clock(NOON.replace(hour=0))
    purse, cloud = Purse([usd(1.0, hard=False)], clock), server()
    for _ in range(400):
        purse.reserve(cloud, asked(), Prefix()).settle(usd=0.002, joules=0.0, prompt_tokens=9)
        purse.count(ended(9))
    clock.at = NOON
    (allowance,) = purse.allowances(Kind.SERVER)
    assert (allowance.budget, allowance.resource, allowance.kind) == ("money", "usd", None)
    assert allowance.per_request == pytest.approx(0.2 / (12 * 408 / 12.96))
    assert allowance.untouched == pytest.approx(1.0 / (24 * 408 / 12.96))
    assert allowance.multiplier == pytest.approx(0.4)


def test_a_new_day_expects_as_many_requests_as_the_last():
    """At midnight, before anybody has come, yesterday's rate is what is expected."""
    clock = Clock(NOON.replace(hour=0))
    purse = Purse([usd(1.0, hard=False)], clock)
    for _ in range(5000):
        purse.count(ended(9))
    clock.at += timedelta(hours=24)
    (allowance,) = purse.allowances(Kind.SERVER)
    assert allowance.per_request == pytest.approx(1 / 5000, rel=0.05)


def test_a_share_starts_anew_when_prices_turn():
    """What the server took says nothing about the device's share once that is the constrained kind."""
    purse = Purse([share(0.5, kind=None, hard=False)], Clock())
    (first,) = purse.allowances(Kind.SERVER)
    purse.reserve(server(), asked(), Prefix()).settle(usd=0.0, joules=0.0, prompt_tokens=100)
    purse.count(ended(100))
    (server_share,) = purse.allowances(Kind.SERVER)
    (device_share,) = purse.allowances(Kind.DEVICE)
    assert (first.kind, server_share.kind, device_share.kind) == ("server", "server", "device")
    assert server_share.per_request == pytest.approx(0.5 - 0.5 / 32)
    assert server_share.multiplier == pytest.approx(1.0 - 1.0 / 32)
    assert (device_share.per_request, device_share.multiplier) == (0.5, 1.0)


@pytest.mark.parametrize("budget", [usd(0.0), share(0.0)])
def test_a_budget_of_nothing_is_on_no_course(budget):
    """Where nothing may be spent there is nothing to compare with."""
    (allowance,) = Purse([budget], Clock()).allowances(Kind.SERVER)
    assert (allowance.per_request, allowance.multiplier) == (0.0, None)


@pytest.mark.parametrize(("window", "renewal"), [(Window.HOUR, (22, 13)), (Window.DAY, (23, 0))])
def test_a_balance_says_when_its_budget_renews(window, renewal):
    """At noon an hour's budget renews at one, a day's at midnight, and a share never does."""
    money, part = Purse([usd(1.0, window=window), share(0.5)], Clock()).balances()
    assert (money.renews_at.day, money.renews_at.hour) == renewal
    assert part.renews_at is None


def test_allowances_count_what_is_under_way():
    """Requests that run will take from what is left, too."""
    purse = Purse([usd(1.0, hard=False)], Clock())
    (alone,) = purse.allowances(Kind.SERVER)
    running = [purse.reserve(server(), asked(), Prefix()) for _ in range(1000)]
    (among_many,) = purse.allowances(Kind.SERVER)
    for held in running:
        held.settle(usd=0.0, joules=0.0, prompt_tokens=0)
    assert among_many.per_request == pytest.approx(1 / (1 / alone.per_request + 1000))
    assert purse.allowances(Kind.SERVER) == (alone,)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system cannot change its zone in a process")
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Havana", "Asia/Kathmandu"])
def test_local_time_knows_when_clocks_change(zone, monkeypatch):
    """The machine's own zone has the rules of the zone it is set to, on the day clocks change and after."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        system = local_now().tzinfo
        for hours in range(0, 24 * 366, 5):
            at = datetime(2026, 1, 1, 0, 30, tzinfo=UTC) + timedelta(hours=hours)
            here, there = at.astimezone(system), at.astimezone(ZoneInfo(zone))
            assert (here.isoformat(), here.fold, here.tzname()) == (
                there.isoformat(),
                there.fold,
                there.tzname(),
            )
            for window in Window:
                assert window.start(here).timestamp() == window.start(there).timestamp()
                assert window.renewal(here).timestamp() == window.renewal(there).timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_half_known_energy_is_unknown():
    """A device of which one phase alone is known is asked again, and refused if it never learns the other."""
    laptop = device()
    laptop.energy = Energy(0.5, 0.0)
    reservation = Purse([joules(1e9)], Clock()).reserve(laptop, asked(), Prefix())
    assert reservation.is_provisional
    with pytest.raises(BudgetSpent, match="set its prefill_joules_per_token and decode_joules_per_token"):
        reservation.confirm()
    laptop.energy = Energy(0.5, 0.1)
    reservation.confirm()
    assert not reservation.is_provisional


def test_what_was_spent_counts_when_the_window_turns_before_it_is_loaded():
    """A purse made before the full hour and loaded after it keeps what the new hour has on record."""
    clock = Clock(NOON - timedelta(minutes=1))
    purse = Purse([usd(1.0, window=Window.HOUR)], clock)
    clock.at = NOON + timedelta(minutes=1)
    purse.load(lambda since: Spent(0.99999, 0.0, {}, 0, 0))
    with pytest.raises(BudgetSpent):
        purse.reserve(server(), asked(), Prefix())


def test_a_view_shares_budgets_by_name():
    """A battery that turns out to be of another size is no second battery."""
    purse = Purse([joules(1.0)], Clock())
    laptop = device()
    laptop.energy = Energy(1e-3, 1e-3)
    purse.pay(Kind.DEVICE, usd=0.0, joules=1.0, prompt_tokens=0)
    with pytest.raises(BudgetSpent):
        purse.under([joules(1.1)]).reserve(laptop, asked(), Prefix())


def test_a_clock_that_was_put_back_does_not_lock_a_budget():
    """After a look at a clock years ahead, windows follow the right one; what was spent stays spent."""
    clock = Clock(NOON.replace(year=2036))
    purse = Purse([usd(MOST_USD * 1.5)], clock)
    purse.pay(Kind.SERVER, usd=MOST_USD, joules=0.0, prompt_tokens=0)
    clock.at = NOON
    with pytest.raises(BudgetSpent):
        purse.reserve(server(), asked(), Prefix())
    clock.at = NOON + timedelta(days=1)
    purse.reserve(server(), asked(), Prefix())


def test_a_budget_knows_whether_it_pays_for_length():
    """Hard dollars at a priced server pay for the answer; a share of prompt tokens or soft dollars do not."""
    for budget, pays in (
        (usd(1.0), True),
        (usd(1.0, hard=False), False),
        (share(1.0, kind=Kind.DEVICE), False),
    ):
        assert Purse([budget], Clock()).reserve(server(), asked(), Prefix()).pays_for_answer is pays


def test_a_clock_that_went_ahead_and_back_buys_nothing():
    """What was spent before tomorrow came too early is still spent today; the real tomorrow begins anew."""
    clock, cloud = Clock(), server()
    purse = Purse([usd(1.0)], clock)
    for days, spent_usd, in_all in ((0, 0.5, 0.5), (1, 0.25, 0.25), (0, 0.125, 0.875), (1, 0.0, 0.0)):
        clock.at = NOON + timedelta(days=days)
        purse.pay(cloud.kind, usd=spent_usd, joules=0.0, prompt_tokens=0)
        (money,) = purse.balances()
        assert (money.spent, money.renews_at) == (in_all, NOON.replace(hour=0) + timedelta(days=days + 1))
