"""The purse: what may still be spent of every budget, shared by all requests of a connection.

A hard budget is never exceeded because an attempt starts only once the most that it can cost has been set
aside, and gives back what it did not use when it is settled. Nothing here waits, so that between looking and
setting aside no other request can come.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Lock

from discostream.core.budget import (
    POLICY_SHARE,
    Allowance,
    Budget,
    Resource,
    Window,
    allowed_per_request,
    allowed_share,
    arrivals_per_s,
    may_start_at_once,
    most_prompt_tokens,
)
from discostream.core.policies import FIXED_POLICIES
from discostream.endpoints.base import Endpoint
from discostream.errors import BudgetSpent
from discostream.ledger.queries import Spent
from discostream.session.localtime import local_now
from discostream.types import Kind, Outcome, Plan, Prefix, Request, Start

__all__ = ["Balance", "Purse", "Reservation"]

log = logging.getLogger(__name__)

ANSWER_TOKENS = 2048
"""The longest answer to a request that names no limit, where a hard budget pays for it.

An answer without a bound has no price that could be set aside. Of GPT-4o's answers in the two traces behind
`builtin/ttft.json`, 99 in 100 are shorter than 800 tokens.
"""

LEAST_ANSWER_TOKENS = 64
"""The last of a budget is not spent on answers that would be cut off after less: a few sentences."""

ROUNDING = 1e-9
"""The part of a hard budget that is never spent: a sum of a million floats is off by 1e-10 at most."""

_RENEWING = Lock()
"""Metrics are exported from a thread of their own, which may be the first to find a window over."""


@dataclass(frozen=True, slots=True)
class Balance:
    """How a budget stands, in the unit of its amount: dollars, joules, or the share of all prompt tokens.

    Attributes:
        spent: In its present window; nothing of a share before the first answer.
        held: What attempts that are not settled yet have set aside.
        renews_at: When the next window begins; `None` for a share.
        allowance: What the latest plan lets an average request use; `None` before the first.
        shadow_price_s_per_unit: Seconds of mean TTFT that one more unit a request would save; `None` as long
            as nobody has asked for it (`Disco.appraise`), or where no plan keeps all budgets.
    """

    budget: Budget
    spent: float
    held: float
    renews_at: datetime | None = None
    allowance: Allowance | None = None
    shadow_price_s_per_unit: float | None = None


@dataclass(eq=False)
class _Account:
    """What was spent of one budget in its present window, and what is set aside.

    Attributes:
        since: When its window began, or when this purse began to count in it.
        renews_at: When the next window begins; `None` for a share.
        prompt_tokens: Of all requests that were answered.
        requests: How many requests ended.
        believed_per_s: How often requests were expected to come when the window began.
        told: Whether the log has it already that too little is left.
    """

    budget: Budget
    since: datetime
    renews_at: datetime | None = None
    spent: float = 0.0
    held: float = 0.0
    prompt_tokens: int = 0
    requests: int = 0
    believed_per_s: float | None = None
    told: bool = False
    _before: tuple[datetime, float] | None = None  # when the last window began, and what was spent in it

    def __post_init__(self) -> None:
        self.follows_prices = self.budget.resource is Resource.SHARE and self.budget.kind is None
        if self.budget.window is not None:
            self.renews_at = self.budget.window.renewal(self.since)

    @property
    def restrains(self) -> bool:
        """Whether it can keep an attempt from starting; a share of one does not."""
        return self.budget.hard and not (self.budget.resource is Resource.SHARE and self.budget.amount >= 1)

    @property
    def left(self) -> float:
        """What was not spent, nor is set aside."""
        of = self.prompt_tokens if self.budget.resource is Resource.SHARE else 1
        return self.budget.amount * of * (1 - ROUNDING) - self.spent - self.held

    @property
    def balance(self) -> Balance:
        """How it stands; what rounding leaves of sums that were given back is nothing."""
        of = (self.prompt_tokens or math.inf) if self.budget.resource is Resource.SHARE else 1
        held = self.held if self.held > ROUNDING * self.budget.amount else 0.0
        return Balance(self.budget, self.spent / of, held / of, self.renews_at)

    def renew(self, now: datetime) -> None:
        """Begin a new window once the old one is over; what is set aside stays so, and will count in it."""
        window = self.budget.window
        if window is None or self.renews_at is None:
            return
        if now.timestamp() < self.since.timestamp():
            self._go_back(now, window)
        if now.timestamp() < self.renews_at.timestamp():
            return
        self.believed_per_s = self._arrivals_per_s(now, window)
        self._before = window.start(self.since), self.spent
        self.since, self.renews_at = window.start(now), window.renewal(now)
        self.spent, self.requests, self.told = 0.0, 0, False

    def _go_back(self, now: datetime, window: Window) -> None:
        """Follow a clock that was put back; what was spent stays spent, before it had gone ahead, too."""
        self.since, self.renews_at = window.start(now), window.renewal(now)
        if self._before is not None and self._before[0] == self.since:
            self.spent += self._before[1]
            self._before = None

    def load(self, spent: Spent) -> None:
        """Begin with what the ledger has on record."""
        kind = self.budget.kind or Kind.DEVICE
        tokens = spent.prompt_tokens.get(kind, 0)
        self.spent = self.budget.taken_by(kind, usd=spent.usd, joules=spent.joules, prompt_tokens=tokens)
        if self.budget.resource is Resource.SHARE:
            self.prompt_tokens, self.requests = spent.all_prompt_tokens, spent.requests

    def most(self, endpoint: Endpoint, prompt_tokens: int, answer_tokens: int) -> float:
        """What an attempt of this size takes of it."""
        return self.budget.taken_by(
            endpoint.kind,
            usd=endpoint.prices.usd(prompt_tokens, answer_tokens),
            joules=endpoint.energy.joules(prompt_tokens, answer_tokens),
            prompt_tokens=prompt_tokens,
        )

    def affordable_tokens(self, endpoint: Endpoint, prompt_tokens: int) -> int | None:
        """How long an answer it can pay for; `None` where an answer's length does not matter to it."""
        per_token = self.most(endpoint, 0, 1)
        if not per_token:
            return None
        return math.floor((self.left - self.most(endpoint, prompt_tokens, 0)) / per_token)

    def refusal(self, endpoint: Endpoint, most: float) -> BudgetSpent:
        """Why an attempt that may take so much cannot start."""
        left = max(self.left, 0.0)
        if self.renews_at is None:
            what = (
                f"leaves {left:.0f} prompt tokens, and this request may have {most:.0f}; "
                f"it grows with what other endpoints answer"
            )
        else:
            short = f"has {left:.3g} {self.budget.resource} left, and this request may take {most:.3g}"
            renews = self.renews_at.isoformat(sep=" ", timespec="minutes")
            what = f"{short if left else 'is spent'}; it renews at {renews}"
        return BudgetSpent(endpoint.name, self.budget.name, f"budget {self.budget.name!r} {what}")

    def can_owe(self, prompt_tokens: float) -> bool:
        """Whether a soft share may give a prompt at once; what is no share may."""
        if self.budget.hard or self.budget.resource is not Resource.SHARE:
            return True
        return may_start_at_once(
            self.budget.amount,
            prompt_tokens,
            spent_tokens=self.spent,
            all_tokens=self.prompt_tokens,
            requests=self.requests,
        )

    def allowance(self, now: datetime, constrained: Kind, under_way: int) -> Allowance:
        """What the requests to come may use of it, on average, while so many attempts run."""
        budget = self.budget
        if budget.window is None:
            self._follow(constrained)
            return self._allowed(self._allowed_share(under_way), budget.amount)
        arrivals_per_s = self._arrivals_per_s(now, budget.window)
        to_come = arrivals_per_s * self._left_s(now) + under_way
        in_all = arrivals_per_s * _length_s(budget.window, now)
        return self._allowed(
            allowed_per_request(budget.amount, spent=self.spent, expected_requests=to_come),
            allowed_per_request(budget.amount, spent=0.0, expected_requests=in_all),
        )

    def _allowed(self, per_request: float, untouched: float) -> Allowance:
        return Allowance(self.budget.name, self.budget.resource, self.budget.kind, per_request, untouched)

    def _allowed_share(self, under_way: int) -> float:
        return allowed_share(
            self.budget.amount,
            spent_tokens=self.spent,
            all_tokens=self.prompt_tokens,
            requests=self.requests,
            under_way=under_way,
        )

    def _follow(self, constrained: Kind) -> None:
        """A share of the constrained kind starts anew when prices say that it is the other one."""
        if self.follows_prices and self.budget.kind is not constrained:
            self.budget = replace(self.budget, kind=constrained)
            self.spent, self.prompt_tokens, self.requests = 0.0, 0, 0

    def _arrivals_per_s(self, now: datetime, window: Window) -> float:
        return arrivals_per_s(
            self.requests,
            watched_s=now.timestamp() - self.since.timestamp(),
            window_s=_length_s(window, now),
            believed_per_s=self.believed_per_s,
        )

    def _left_s(self, now: datetime) -> float:
        assert self.renews_at is not None
        return self.renews_at.timestamp() - now.timestamp()


def _length_s(window: Window, at: datetime) -> float:
    """How long the window is that this moment lies in."""
    return window.renewal(at).timestamp() - window.start(at).timestamp()


class Reservation:
    """What is set aside for one attempt, until it is settled.

    Attributes:
        request: What the endpoint may be asked: an answer whose length the budgets bound, where one pays.
    """

    def __init__(self, purse: Purse, endpoint: Endpoint, request: Request, prefix: Prefix) -> None:
        self.request = request
        self._purse = purse
        self._endpoint = endpoint
        self._asked = request, prefix
        self._held: list[tuple[_Account, float]] = []

    @property
    def is_provisional(self) -> bool:
        """Whether joules are bounded and the device has yet to learn how many it burns."""
        return self._purse.bounds_joules and not self._endpoint.energy_is_known

    @property
    def pays_for_answer(self) -> bool:
        """Whether a hard budget has set aside something for the answer's length."""
        return any(account.most(self._endpoint, 0, 1) > 0 for account, _ in self._held)

    def confirm(self) -> None:
        """Set aside anew, by what the endpoint is known to cost once it is prepared.

        Raises:
            BudgetSpent: A hard budget leaves too little, or counts joules that nobody knows; nothing is set
                aside any more.
        """
        self.release()
        if self.is_provisional:
            raise self._purse.unknown_joules(self._endpoint)
        self.take()

    def take(self) -> None:
        """Set aside what an attempt can cost by what is known now.

        Raises:
            BudgetSpent: A hard budget leaves too little.
        """
        self.request, self._held = self._purse.hold(self._endpoint, *self._asked)
        self._purse.under_way.add(self)

    def shrink(self, prompt_tokens: int) -> None:
        """Give back what a prompt of so many tokens, as the endpoint has counted it, cannot cost any more."""
        answer_tokens = self.request.max_tokens or 0
        for index, (account, most) in enumerate(self._held):
            least = min(most, account.most(self._endpoint, prompt_tokens, answer_tokens))
            account.held -= most - least
            self._held[index] = account, least

    def release(self) -> None:
        """Set nothing aside any more. Safe to call twice."""
        held, self._held = self._held, []
        for account, most in held:
            account.held -= most
        self._purse.under_way.discard(self)

    def settle(self, *, usd: float, joules: float, prompt_tokens: int) -> None:
        """Pay what the attempt has cost; to be called once."""
        self.release()
        self._purse.pay(self._endpoint.kind, usd=usd, joules=joules, prompt_tokens=prompt_tokens)


class Purse:
    """What may still be spent, by budget.

    Args:
        budgets: All that hold.
        now: Tells the local time, by which windows begin and end.

    Attributes:
        under_way: What attempts that are not settled yet have set aside.
    """

    def __init__(self, budgets: Iterable[Budget] = (), now: Callable[[], datetime] = local_now) -> None:
        self._now = now
        self.under_way: set[Reservation] = set()
        self._accounts = [_Account(budget, now()) for budget in budgets]

    def under(self, budgets: Iterable[Budget]) -> Purse:
        """A purse for other rules over the same money: budgets of one name are one and the same.

        But for `policy.share`, by which every policy plans anew.
        """
        ours = {account.budget.name: account for account in self._accounts}
        ours.pop(POLICY_SHARE, None)
        other = Purse(now=self._now)
        other._accounts = [ours.get(budget.name) or _Account(budget, self._now()) for budget in budgets]
        return other

    def load(self, spent_since: Callable[[datetime], Spent]) -> None:
        """Begin with what was spent in the present windows already.

        A soft share steers what is to come, and begins anew; a hard one is of the day so far, too.
        """
        now = self._renewed()
        for account in self._accounts:
            if account.budget.window or account.budget.hard:
                account.load(spent_since((account.budget.window or Window.DAY).start(now)))

    def reserve(self, endpoint: Endpoint, request: Request, prefix: Prefix) -> Reservation:
        """Set aside the most that an attempt can cost.

        Raises:
            BudgetSpent: A hard budget leaves too little for it.
        """
        reservation = Reservation(self, endpoint, request, prefix)
        reservation.take()
        return reservation

    def allowances(self, constrained: Kind) -> tuple[Allowance, ...]:
        """What the requests to come may use of every budget, on average.

        Args:
            constrained: The kind that prices say should be held back. A share that names no kind is of that
                one, unless all budgets are on the other.
        """
        now = self._renewed()
        budgeted = {account.budget.restrained for account in self._accounts if not account.follows_prices}
        kind = constrained if len(budgeted) != 1 else budgeted.pop() or constrained
        return tuple(account.allowance(now, kind, len(self.under_way)) for account in self._accounts)

    def balances(self) -> tuple[Balance, ...]:
        """How every budget stands at this moment."""
        self._renewed()
        return tuple(account.balance for account in self._accounts)

    def smoothed(
        self, plan: Plan, kinds: Mapping[str, Kind], prompt_tokens: float, share: float | None = None
    ) -> Plan:
        """The same plan, but who would make a soft share owe too much by starting at once stands by.

        Somebody of another kind must be planned to start; nobody stands by for a later start, which is rare
        enough to be paid back.

        Args:
            plan: By a policy.
            kinds: Of every endpoint.
            prompt_tokens: The prompt's length.
            share: The request's own, which it keeps whatever `policy.share` owes.
        """
        if plan.policy in FIXED_POLICIES:
            return plan
        asked = (each for each in self._accounts if share is None or each.budget.name != POLICY_SHARE)
        owing = {account.budget.kind for account in asked if not account.can_owe(prompt_tokens)}
        planned = {kinds[start.endpoint] for start in plan.starts if start.offset_s is not None}
        if not owing & planned or not planned - owing:
            return plan
        starts = tuple(
            Start(start.endpoint, None) if start.offset_s == 0 and kinds[start.endpoint] in owing else start
            for start in plan.starts
        )
        return replace(plan, starts=starts)

    def count(self, outcome: Outcome) -> None:
        """Count a request that has ended, whose attempts were settled each by itself."""
        self._renew()
        for account in self._accounts:
            account.requests += 1
            if outcome.winner is not None:
                account.prompt_tokens += outcome.prompt_tokens

    @property
    def bounds_joules(self) -> bool:
        """Whether a hard budget is about energy."""
        return any(account.budget.resource is Resource.JOULES for account in self._restraints)

    def unknown_joules(self, endpoint: Endpoint) -> BudgetSpent:
        """Why a device of which nobody knows what it burns cannot start."""
        bounds = (a.budget.name for a in self._restraints if a.budget.resource is Resource.JOULES)
        name = next(bounds)
        return BudgetSpent(
            endpoint.name,
            name,
            f"budget {name!r} counts joules, and nobody knows what this device burns; set its "
            f"prefill_joules_per_token and decode_joules_per_token",
        )

    def hold(
        self, endpoint: Endpoint, request: Request, prefix: Prefix
    ) -> tuple[Request, list[tuple[_Account, float]]]:
        """The request as it may be asked, and what is now set aside for it; see `reserve`."""
        if not self._restraints:
            return request, []
        self._renewed()
        prompt_tokens = most_prompt_tokens(request, prefix)
        request = self._with_bound(endpoint, request, prompt_tokens)
        held = []
        for account in self._restraints:
            most = account.most(endpoint, prompt_tokens, request.max_tokens or 0)
            if most > 0 and most > account.left:
                raise self._told(account, account.refusal(endpoint, most))
            held.append((account, most))
        for account, most in held:
            account.held += most
        return request, held

    def refuse_uncounted(self, endpoint: Endpoint, what: str) -> None:
        """Refuse what would be counted nowhere, where a hard budget would have to know of it.

        Raises:
            BudgetSpent: Naming the budget, and the way out.
        """
        for account in self._restraints:
            unknown = account.budget.resource is Resource.JOULES and not endpoint.energy_is_known
            if unknown or account.most(endpoint, 1, 0) > 0:
                name = account.budget.name
                reason = f"budget {name!r} is hard, and {what} are not counted; they need it to be soft"
                raise BudgetSpent(endpoint.name, name, reason)

    def pay(self, kind: Kind, *, usd: float, joules: float, prompt_tokens: int) -> None:
        """Take what an attempt has cost out of every budget that it counts for."""
        self._renew()
        for account in self._accounts:
            account.spent += account.budget.taken_by(
                kind, usd=usd, joules=joules, prompt_tokens=prompt_tokens
            )

    @property
    def _restraints(self) -> list[_Account]:
        return [account for account in self._accounts if account.restrains]

    def _renew(self) -> None:
        """Put every budget into the window it belongs to; where none has one, the time does not matter."""
        if any(account.renews_at is not None for account in self._accounts):
            self._renewed()

    def _renewed(self) -> datetime:
        """This moment, with every budget in the window it belongs to."""
        now = self._now()
        with _RENEWING:
            for account in self._accounts:
                account.renew(now)
        return now

    def _with_bound(self, endpoint: Endpoint, request: Request, prompt_tokens: int) -> Request:
        """The request with a longest answer, where a hard budget pays for its length and it names none."""
        if request.max_tokens is not None:
            return request
        limits = [account.affordable_tokens(endpoint, prompt_tokens) for account in self._restraints]
        known = [limit for limit in limits if limit is not None]
        if not known:
            return request
        return replace(request, max_tokens=max(min(ANSWER_TOKENS, *known), LEAST_ANSWER_TOKENS))

    def _told(self, account: _Account, refusal: BudgetSpent) -> BudgetSpent:
        """The same; the log has it once a window."""
        if account.renews_at is not None and not account.told:
            log.warning("%s", refusal)
            account.told = True
        return refusal
