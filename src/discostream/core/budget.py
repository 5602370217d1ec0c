"""What may be spent: budgets, and what they leave an average request.

The problem: a plan is made for averages, and what it then spends is something else, because the service has
changed, prompts are longer than yesterday's, or prices say little about tokens. The naive answer, to plan by
the budget itself, misses it by whatever the forecast is wrong by (DiSCo-D at b = 0.1, while a server is three
times slower for a third of the time: by a sixth).

Here the plan is given an *allowance* that answers to what was really spent: a share is raised or lowered so
that a debt is paid back within some requests, and dollars or joules are what is left of the window over the
requests that are still expected in it. A hard budget is planned by in the same way; that it is never
exceeded is the purse's work (`session/purse.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from discostream.config import BudgetSettings, PolicySettings, Settings
from discostream.errors import ConfigError
from discostream.types import Feature, Kind, Message, Prefix, Request

__all__ = [
    "POLICY_SHARE",
    "Allowance",
    "Budget",
    "Resource",
    "Window",
    "allowed_per_request",
    "allowed_share",
    "arrivals_per_s",
    "budgets_from",
    "may_start_at_once",
    "most_prompt_tokens",
    "warning_of",
]

POLICY_SHARE = "policy.share"
"""The name of the budget that stands in `[policy]`."""

DEFAULT_SHARE = 0.5

HORIZON_REQUESTS = 32
"""Average requests within which a share's debt is paid back, besides those under way: one table's.

In simulation (2,000 requests, tables made anew every 32, F shifting twice, up to 256 requests at a time)
three times of it leave an error half as large again, and without those under way plans swing by 8 %.
"""

MOST_TIMES = 4.0
"""How many times its budget a share may be planned by, to use up a credit."""

GRAIN = 0.02
"""The part of all that a share was worth so far which it may owe for the sake of one long prompt.

Without this rule, a tenth for the server, which is some fifty long prompts in 2,000, ends up to 4 % off.
"""

BELIEVED_REQUESTS = 200
"""Requests taken for a whole window before any was seen."""

BELIEF = 0.04
"""What a belief about arrivals weighs: as much as having watched for this part of a window."""

TEMPLATE_TOKENS = 1024
"""The most that a chat template adds to a conversation by itself.

The longest among llama.cpp's own collection (models/templates) is Command R7B's preamble: 2,600 bytes.
"""

MESSAGE_TOKENS = 32
"""The most that a chat template adds to a message.

Its markers are 3 to 6 tokens where the vocabulary has them. llama.cpp's fallback, ChatML, may meet one that
has not; spelled out, it adds 24 bytes.
"""

INDENTED = 4
"""How many times as long a template may write tools as the client does: with line ends and indents."""

MEDIA_TOKENS = 4096
"""Set aside for a message with pictures or sound, which may lie elsewhere; no bound on these is known."""

JOULES_PER_WH = 3600.0


class Resource(StrEnum):
    """What a budget counts."""

    SHARE = "share"
    """Prompt tokens that one kind processes, as a share of all prompt tokens (the paper's b)."""
    USD = "usd"
    """Dollars, on whichever endpoint."""
    JOULES = "joules"
    """Joules, on whichever endpoint."""


class Window(StrEnum):
    """After what a budget renews: the local calendar's hours, days and months."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"

    def start(self, at: datetime) -> datetime:
        """When the window began that `at` is in; in the zone of `at`, whose rules are followed."""
        if self is Window.HOUR:
            return _moved(at, -timedelta(minutes=at.minute, seconds=at.second, microseconds=at.microsecond))
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        return _moved(midnight.replace(day=1) if self is Window.MONTH else midnight)

    def renewal(self, at: datetime) -> datetime:
        """When the next window begins."""
        if self is Window.HOUR:
            return _moved(self.start(at), timedelta(hours=1))
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        if self is Window.DAY:
            return _moved(midnight + timedelta(days=1))
        return _moved((midnight.replace(day=1) + timedelta(days=32)).replace(day=1))


def _moved(at: datetime, by: timedelta = timedelta()) -> datetime:
    """`at`, later by so much real time; local times that a change of the clocks skips are put right."""
    return (at.astimezone(UTC) + by).astimezone(at.tzinfo)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much of something may be spent.

    Attributes:
        name: How messages call it.
        amount: b in [0, 1] for a share, otherwise dollars or joules per window.
        window: After what it renews; `None` for a share, which is of everything counted so far.
        kind: Whose prompt tokens count, for a share; `None` for dollars and joules, and for a share of the
            constrained kind, whichever prices say that is.
        hard: Whether it is never exceeded; a soft one holds in the long run.
    """

    name: str
    resource: Resource
    amount: float
    window: Window | None = None
    kind: Kind | None = None
    hard: bool = False

    @property
    def restrained(self) -> Kind | None:
        """The kind that it holds back: the server's dollars, the device's joules."""
        if self.resource is Resource.SHARE:
            return self.kind
        return Kind.SERVER if self.resource is Resource.USD else Kind.DEVICE

    def taken_by(self, kind: Kind, *, usd: float, joules: float, prompt_tokens: float) -> float:
        """What an attempt takes of this budget, in its own unit (prompt tokens for a share)."""
        match self.resource:
            case Resource.USD:
                return usd
            case Resource.JOULES:
                return joules
            case Resource.SHARE:
                return prompt_tokens if kind is self.kind else 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What requests may use of one budget, on average.

    Attributes:
        budget: Its name.
        kind: Whose prompt tokens count, for a share; `None` for dollars and joules.
        per_request: b in [0, 1] for a share, otherwise dollars or joules a request.
        untouched: What an untouched budget would allow each request of a whole window; `None` where nobody
            follows spending.
    """

    budget: str
    resource: Resource
    kind: Kind | None
    per_request: float
    untouched: float | None = None

    @property
    def multiplier(self) -> float | None:
        """By how much spending so far has changed it: 1 is on course, less is saving; `None` without any."""
        return self.per_request / self.untouched if self.untouched else None


def budgets_from(settings: Settings, battery_wh: float | None = None) -> tuple[Budget, ...]:
    """The budgets of `[[budget]]` and `[policy]`.

    Args:
        settings: Checked settings.
        battery_wh: What the full battery holds, as the system says; the settings' own figure goes first.

    Raises:
        ConfigError: A share of a battery whose size nobody knows.
    """
    return tuple(_budgets(settings, settings.cost.battery_wh or battery_wh))


def _budgets(settings: Settings, battery_wh: float | None) -> Iterator[Budget]:
    share = settings.policy.share if settings.policy.share is not None or settings.budget else DEFAULT_SHARE
    if share is not None and {endpoint.kind for endpoint in settings.endpoint} == set(Kind):
        yield Budget(
            name=POLICY_SHARE, resource=Resource.SHARE, amount=share, kind=_held_back(settings.policy)
        )
    for index, table in enumerate(settings.budget):
        resource, amount = _amount(table, index, battery_wh)
        yield Budget(
            name=table.label,
            resource=resource,
            amount=amount,
            window=Window(table.per) if table.per else None,
            kind=table.of,
            hard=table.mode == "hard",
        )


def _held_back(policy: PolicySettings) -> Kind | None:
    return None if policy.constraint == "auto" else Kind(policy.constraint)


def _amount(table: BudgetSettings, index: int, battery_wh: float | None) -> tuple[Resource, float]:
    if table.share is not None:
        return Resource.SHARE, table.share
    if table.usd is not None:
        return Resource.USD, table.usd
    if table.joules is not None:
        return Resource.JOULES, table.joules
    assert table.battery_percent is not None
    if battery_wh is None:
        raise ConfigError(
            f"budget[{index}].battery_percent = {table.battery_percent:g}: this system does not say what its "
            f"battery holds; set cost.battery_wh"
        )
    return Resource.JOULES, table.battery_percent / 100 * battery_wh * JOULES_PER_WH


def warning_of(settings: Settings) -> str:
    """What to warn of: soft budgets that the policy is not made to hold; empty if there are none."""
    policy = settings.policy
    soft = [table for table in settings.budget if table.mode == "soft"]
    kinds = {endpoint.kind for endpoint in settings.endpoint}
    unheld = kinds if len(kinds) == 1 else _unheld_kinds(policy, settings.budget)
    missed = [table.label for table in soft if _restrained(table) in unheld]
    if not missed:
        return ""
    other = "policy.name = 'optimal' holds all, and " if len(kinds) > 1 else ""
    return (
        f"policy.name = {policy.name!r} is not made to hold the budget{'s' * (len(missed) > 1)} "
        f"{', '.join(missed)}; {other}mode = 'hard' makes sure"
    )


def _unheld_kinds(policy: PolicySettings, budgets: Iterable[BudgetSettings]) -> Collection[Kind]:
    """The kinds that a built-in policy starts whatever they may spend; a stranger's is trusted."""
    match policy.name:
        case "server-only":
            return {Kind.SERVER}
        case "device-only":
            return {Kind.DEVICE}
        case "cheap" | "fast" | "offsets":
            return set(Kind)
        case "disco" | "stochastic":
            return set(Kind) - _kinds_held_back(policy, budgets)
    return set()


def _kinds_held_back(policy: PolicySettings, budgets: Iterable[BudgetSettings]) -> set[Kind]:
    """The kind that the paper's policies hold back, which they do with one at a time."""
    if policy.constraint != "auto":
        return {Kind(policy.constraint)}
    budgeted = {_restrained(table) for table in budgets}
    return budgeted if len(budgeted) == 1 else set()


def _restrained(table: BudgetSettings) -> Kind:
    return table.of or (Kind.DEVICE if table.usd is None else Kind.SERVER)


def allowed_share(
    share: float, *, spent_tokens: float, all_tokens: float, requests: int, under_way: int = 0
) -> float:
    """The share to plan by, so that a debt or a credit is evened out within a horizon of requests.

    Args:
        share: b, the budget.
        spent_tokens: Prompt tokens that the kind has processed.
        all_tokens: Prompt tokens of all requests so far.
        requests: How many those were.
        under_way: How many more have been planned, and are not among them yet.

    Returns:
        Between zero and `MOST_TIMES` b, and never above one.
    """
    if not all_tokens:
        return share
    credit_requests = (share * all_tokens - spent_tokens) * requests / all_tokens
    allowed = share + credit_requests / (HORIZON_REQUESTS + under_way)
    return min(max(allowed, 0.0), MOST_TIMES * share, 1.0)


def may_start_at_once(
    share: float, prompt_tokens: float, *, spent_tokens: float, all_tokens: float, requests: int
) -> bool:
    """Whether a share that gives a prompt now will owe no more than it should.

    That is what it pays back within `HORIZON_REQUESTS`, or `GRAIN` of its worth so far, whichever is more.
    Plans are right on average; few prompts that are long are a coarse average.

    Args:
        share: b, the budget.
        prompt_tokens: The prompt's length.
        spent_tokens: Prompt tokens that the kind has processed before.
        all_tokens: Prompt tokens of all requests before.
        requests: How many those were.
    """
    worth = share * (all_tokens + prompt_tokens)
    most_owed = worth * max(HORIZON_REQUESTS / (requests + 1), GRAIN)
    return spent_tokens + prompt_tokens - worth <= most_owed


def allowed_per_request(amount: float, *, spent: float, expected_requests: float) -> float:
    """What each request may take of what is left, when so many have yet to take theirs; never negative."""
    return max(amount - spent, 0.0) / max(expected_requests, 1.0)


def arrivals_per_s(
    seen: int, *, watched_s: float, window_s: float, believed_per_s: float | None = None
) -> float:
    """How often requests come; always above zero.

    Args:
        seen: How many came.
        watched_s: Within how long.
        window_s: The length of the budget's window, of which the belief weighs a fixed part.
        believed_per_s: What was believed before; `None` if nothing was.
    """
    belief_s = BELIEF * window_s
    believed = BELIEVED_REQUESTS / window_s if believed_per_s is None else believed_per_s
    return (seen + believed * belief_s) / (max(watched_s, 0.0) + belief_s)


def most_prompt_tokens(request: Request, prefix: Prefix) -> int:
    """An upper bound on the tokens of a prompt and the partial answer behind it, in any vocabulary.

    A token of a byte-level vocabulary stands for at least one byte. One of the SentencePiece kind stands for
    at least one character, or for one byte of a character it does not know, and a space put before the text
    is a character more. So text has no more tokens than bytes, but for what a template and such spaces add.
    What a client wrote in JSON is no longer in a template, unless it is indented there.
    """
    texts = sum(map(_bytes_of, request.messages))
    written = max(_utf8_bytes(prefix.text), len(prefix.token_ids or ()))
    added = TEMPLATE_TOKENS + MESSAGE_TOKENS * (len(request.messages) + bool(written))
    return texts + written + added + _beyond_text(request)


def _bytes_of(message: Message) -> int:
    return len(message.raw) if message.raw else _utf8_bytes(message.role) + _utf8_bytes(message.content)


def _beyond_text(request: Request) -> int:
    """What is set aside for tools and schemas, for pictures and sound."""
    with_media = sum(message.raw is not None for message in request.messages)
    media = with_media * MEDIA_TOKENS if request.needs & {Feature.IMAGES, Feature.AUDIO} else 0
    rules = TEMPLATE_TOKENS if Feature.TOOLS in request.needs else 0
    return INDENTED * sum(map(len, request.fields.values())) + rules + media


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
