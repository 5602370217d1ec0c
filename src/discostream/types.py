"""Frozen values that every layer shares. Those that are made often are made in C.

Times are seconds of one process's monotonic clock (`_at`) or spans of it (`_s`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from msgspec import Struct

__all__ = [
    "MOST_TOKENS",
    "PROBE",
    "Attempt",
    "AttemptOutcome",
    "Carrier",
    "Delivered",
    "Event",
    "Extra",
    "Feature",
    "Finish",
    "FinishReason",
    "Kind",
    "Message",
    "Migration",
    "MigrationReason",
    "Outcome",
    "Piece",
    "Plan",
    "Prefix",
    "Prompt",
    "Request",
    "Sampling",
    "Start",
]

MOST_TOKENS = 2**31 - 1
"""What a request may ask for at the most; servers keep the number in 32 bits."""

PROBE = "probe"
"""The policy under which requests are recorded that only measured an endpoint."""

_TOOLS = ("tools", "functions")


class Kind(StrEnum):
    """Where an endpoint runs, which decides what it costs: joules or dollars."""

    DEVICE = "device"
    SERVER = "server"


class FinishReason(StrEnum):
    """Why an answer ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    TOOL_CALLS = "tool_calls"
    FUNCTION_CALL = "function_call"


class Feature(StrEnum):
    """What a request may need of an endpoint beyond text in and text out."""

    TOOLS = "tools"
    JSON = "json"
    """An answer that keeps to a schema or a grammar."""
    LOGPROBS = "logprobs"
    IMAGES = "images"
    AUDIO = "audio"
    COMPLETIONS = "completions"
    """A prompt that is continued as it stands, without a chat template."""


class Carrier(StrEnum):
    """What travels in a handoff: token IDs where vocabularies are equal, text otherwise."""

    TOKENS = "tokens"
    TEXT = "text"


class MigrationReason(StrEnum):
    """Why decoding moved."""

    COST = "cost"
    RESCUE = "rescue"


class AttemptOutcome(StrEnum):
    """What became of one try on one endpoint."""

    WON = "won"
    LOST = "lost"
    FAILED = "failed"
    MIGRATED_FROM = "migrated_from"
    MIGRATED_TO = "migrated_to"
    NOT_STARTED = "not_started"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    Attributes:
        role: Who speaks.
        content: The text of it, by which lengths are estimated.
        raw: Its JSON as the client wrote it, where role and text do not say all of it.
    """

    role: str
    content: str
    raw: bytes | None = None


class Sampling(Struct, frozen=True, kw_only=True):
    """How tokens are drawn; `None` leaves the endpoint's own default."""

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion, as every endpoint understands it.

    Attributes:
        messages: The conversation, at least one message; or a raw prompt, alone.
        arrived_at: When it arrived (monotonic seconds).
        request_id: Our name for it, in logs, ledger and headers.
        max_tokens: The most tokens the answer may have; `None` leaves it to the endpoint.
        stop: Strings that end the answer.
        sampling: How tokens are drawn.
        needs: What an endpoint must be able to do to be asked at all.
        fields: What else the client asked for, as JSON by the name that OpenAI's API has for it.
        pinned: Why this answer must stay on the endpoint that starts it; `None` when it may move.
        migrate: Whether it may move for cost.
        rescue: Whether another endpoint may go on with it when its stream breaks or falls silent.
        endpoint: The one endpoint that may answer; `None` leaves the choice to the policy.
        policy: The policy to plan this request by; `None` is the one in the settings.
        share: The `policy.share` to plan it by, in [0, 1]; `None` is the one in the settings.
        private: Whether it must never leave the device: no server is started, not even for a rescue.
        annotated: Whether the client is also told of each attempt that begins, by a piece without text.
        model: What the client calls whoever may answer.
        trace: The headers (`traceparent`, `tracestate`) by which the client's trace goes on; `None` where it
            did not come over HTTP.
    """

    messages: tuple[Message, ...]
    arrived_at: float
    request_id: str
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    needs: frozenset[Feature] = frozenset()
    fields: Mapping[str, bytes] = field(default_factory=dict, hash=False)
    pinned: str | None = None
    migrate: bool = True
    rescue: bool = True
    endpoint: str | None = None
    policy: str | None = None
    share: float | None = None
    private: bool = False
    annotated: bool = False
    model: str = "disco"
    trace: Mapping[str, str] | None = field(default=None, hash=False)

    @property
    def raw_prompt(self) -> str | None:
        """The prompt that is to be continued as it stands; `None` for a chat."""
        return self.messages[0].content if Feature.COMPLETIONS in self.needs else None

    @property
    def turns(self) -> tuple[Message, ...]:
        """All that an endpoint reads: the tools that templates put first, then the messages."""
        tools = (Message(name, self.fields[name].decode()) for name in _TOOLS if name in self.fields)
        return (*tools, *self.messages) if self.fields else self.messages

    @property
    def prompt_chars(self) -> int:
        """Characters of all that an endpoint reads."""
        return sum(len(turn.content) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The part of an answer that exists already and must be continued, not repeated.

    Attributes:
        text: The answer so far; empty for a fresh start.
        token_ids: Its token IDs, when they mean the same to the endpoint that continues;
            `None` hands over text alone.
        tokens: How many tokens it has, as those who wrote it counted them; an endpoint that counts otherwise
            allows for the difference in `max_tokens`. `None` if nobody counted.
    """

    text: str = ""
    token_ids: tuple[int, ...] | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """How long the prompt is in the endpoint's own tokens. Sent before content, again when it knows more.

    Attributes:
        cached_tokens: How many of them came out of its cache; `None` until it knows.
        read_tokens: How many of them it has read by now, those in its cache included; `None` where it does
            not say.
        opens_thought: Whether it ends in a thought that the answer has to close (`</think>`) before it says
            anything to the reader, as the templates of some reasoning models do.
    """

    tokens: int
    cached_tokens: int | None = None
    read_tokens: int | None = None
    opens_thought: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What came along with a piece's text, or in place of it.

    Attributes:
        reasoning: What a model thinks before it answers, where the endpoint tells it apart from the answer.
        delta: Further members of a chunk's `delta`, as OpenAI's API spells them: `tool_calls`, `audio`, ...
        logprobs: The `logprobs` of the choice, likewise.
    """

    reasoning: str = ""
    delta: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Mapping[str, Any] | None = None

    @property
    def is_beyond_text(self) -> bool:
        """Whether it is a part of the answer that text cannot say."""
        return not _BEYOND_TEXT.isdisjoint(self.delta)


_BEYOND_TEXT = frozenset({"tool_calls", "function_call", "audio", "refusal"})


class Piece(Struct, frozen=True):
    """What arrived together: text, as a rule.

    Attributes:
        text: Whole characters, never a part of one. Empty while an endpoint holds characters back.
        tokens: How many tokens it stands for (an estimate where the endpoint does not say).
        token_ids: Their IDs, where the endpoint gives them.
        extra: What came beside text, if anything did.
    """

    text: str
    tokens: int = 1
    token_ids: tuple[int, ...] | None = None
    extra: Extra | None = None

    @property
    def is_content(self) -> bool:
        """Whether it brings any of the answer, and not only a remark on it."""
        extra = self.extra
        return bool(self.text or (extra is not None and (extra.reasoning or extra.is_beyond_text)))


@dataclass(frozen=True, slots=True)
class Finish:
    """The endpoint ended the answer by itself; always the last event of a stream.

    Attributes:
        reason: Why.
        prompt_tokens: Prompt length in the endpoint's tokens (with the prefix, when it continued one).
        completion_tokens: Tokens generated in this attempt.
        cached_tokens: How much of the prompt came out of the endpoint's cache.
    """

    reason: FinishReason
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


Event = Prompt | Piece | Finish
"""What an endpoint's stream is made of: perhaps `Prompt`s, then `Piece`s, then one `Finish`."""


class Delivered(Struct, frozen=True):
    """A piece as it left us: its text, who made it, and when.

    Attributes:
        text: Empty only where there is an `extra`, or where an attempt begins (`Request.annotated`).
        tokens: How many tokens it stands for.
        endpoint: The endpoint that generated it.
        at_s: Seconds after the request's arrival.
        extra: What came beside text, if anything did: reasoning, tool calls, log-probabilities.
    """

    text: str
    tokens: int
    endpoint: str
    at_s: float
    extra: Extra | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """One line of a plan: this endpoint starts this long after the request arrived.

    `offset_s` is `None` for an endpoint that only steps in when the others have failed.
    """

    endpoint: str
    offset_s: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Who starts when, for one request. An endpoint that is not named must not be used."""

    policy: str
    starts: tuple[Start, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try on one endpoint, settled.

    Attributes:
        start_offset_s: When it started after the request's arrival, or was planned to, if it never did.
        ttft_s: From the request's arrival to this attempt's first content; `None` when none came.
        mean_tbt_s: The mean gap between its tokens as they came; `None` with fewer than two.
        ran_s: From its start to its end or to its cancellation; `None` when it says nothing about the
            endpoint, because it never started or because the request itself was at fault.
        cached_tokens: How much of its prompt the endpoint found in its cache; `None` where it does not say.
        ahead: Other attempts that ran at the endpoint when this one started.
        identity: What the endpoint was at that time (`Endpoint.identity`); empty if it never started.
        dropped: Why it was let go when it was to take the answer over; `None` if it was not.
        ended_s: When it ended or was cancelled after the request's arrival; `None` if it never started.
        error_type: How it failed, in a word: the HTTP status that its endpoint sent, or else how far it had
            come (`Phase`); `None` if it did not fail.
    """

    endpoint: str
    kind: Kind
    start_offset_s: float
    ttft_s: float | None
    prompt_tokens: int
    completion_tokens: int
    usd: float
    joules: float
    outcome: AttemptOutcome
    error: str | None = None
    mean_tbt_s: float | None = None
    ran_s: float | None = None
    cached_tokens: int | None = None
    ahead: int = 0
    identity: str = ""
    dropped: str | None = None
    ended_s: float | None = None
    error_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One handoff that happened.

    Attributes:
        at_token: How many tokens had been delivered at the seam.
        at_char: How many characters had been delivered at the seam.
        gap_s: From the last piece before the seam to the first after it, as they came.
        why: What decided it: the figures of a move for cost, the failure or the silence behind a rescue.
        at_s: From the request's arrival until the first token after the seam was delivered; `None` if none
            was, or where an older version recorded it.
    """

    source: str
    target: str
    at_token: int
    at_char: int
    reason: MigrationReason
    gap_s: float
    by: Carrier
    why: str = ""
    at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything settled about one request.

    Attributes:
        winner: The endpoint whose content came first; `None` when nothing was delivered.
        ttft_s: From arrival to the first content delivered; `None` when none was.
        finish_reason: Why the answer ended; `None` when it broke off or the client left.
        prompt_chars: Length of the prompt in characters.
        prompt_tokens: Its length as the winner counted it (estimated where it did not).
        completion_tokens: Tokens delivered.
        delivered_s: When each delivered token left us, seconds after arrival.
        error: What broke the answer, if something did; a client that left is no error.
        stayed: Why it did not move for cost; `None` if it did.
        settled_s: From the request's arrival until it was settled; `None` where a ledger was read, which does
            not keep it.
    """

    request_id: str
    policy: str
    winner: str | None
    ttft_s: float | None
    finish_reason: FinishReason | None
    prompt_chars: int
    prompt_tokens: int
    completion_tokens: int
    attempts: tuple[Attempt, ...]
    migrations: tuple[Migration, ...]
    delivered_s: tuple[float, ...]
    error: str | None = None
    stayed: str | None = None
    settled_s: float | None = None

    @property
    def verdict(self) -> str:
        """How it ended in a word: `ok`, `failed` or `cancelled` (the client left)."""
        if self.finish_reason is not None:
            return "ok"
        return "cancelled" if self.error is None else "failed"

    @property
    def raced(self) -> bool:
        """Whether several attempts were started before any of them brought content."""
        started = [each for each in self.attempts if each.outcome is not AttemptOutcome.NOT_STARTED]
        first_s = min((each.ttft_s for each in started if each.ttft_s is not None), default=math.inf)
        return sum(each.start_offset_s < first_s for each in started) > 1

    @property
    def usd(self) -> float:
        """Dollars spent on all attempts."""
        return sum(attempt.usd for attempt in self.attempts)

    @property
    def joules(self) -> float:
        """Joules spent on all attempts."""
        return sum(attempt.joules for attempt in self.attempts)

    def as_disco(self) -> Mapping[str, Any]:
        """The public account of the request, sent to clients as the `disco` object."""
        return {
            "request_id": self.request_id,
            "policy": self.policy,
            "winner": self.winner,
            "ttft_s": self.ttft_s,
            "attempts": [_attempt_as_disco(attempt) for attempt in self.attempts],
            "migrations": [_migration_as_disco(migration) for migration in self.migrations],
            "stayed": self.stayed,
            "usd": self.usd,
            "joules": self.joules,
        }


def _attempt_as_disco(attempt: Attempt) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "endpoint": attempt.endpoint,
        "kind": attempt.kind.value,
        "start_offset_s": attempt.start_offset_s,
        "ttft_s": attempt.ttft_s,
        "prompt_tokens": attempt.prompt_tokens,
        "completion_tokens": attempt.completion_tokens,
        "usd": attempt.usd,
        "joules": attempt.joules,
        "outcome": attempt.outcome.value,
    }
    if attempt.error is not None:
        shown["error"] = attempt.error
    if attempt.dropped is not None:
        shown["dropped"] = attempt.dropped
    return shown


def _migration_as_disco(migration: Migration) -> dict[str, Any]:
    return {
        "from": migration.source,
        "to": migration.target,
        "at_token": migration.at_token,
        "at_char": migration.at_char,
        "reason": migration.reason.value,
        "gap_s": migration.gap_s,
        "by": migration.by.value,
        "why": migration.why,
    }
