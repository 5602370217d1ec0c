"""The attempts of one request: each runs in a task of its own, and reports to whoever listens."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TypeAlias

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from discostream.endpoints.base import Endpoint
from discostream.errors import AllEndpointsFailed, BudgetSpent, EndpointError, Phase
from discostream.session.clock import running_clock
from discostream.session.purse import Purse, Reservation
from discostream.types import AttemptOutcome, Event, Finish, Piece, Prefix, Prompt, Request

__all__ = ["Attempts", "Listener", "LiveAttempt", "Report"]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class LiveAttempt:
    """One try on one endpoint, while it runs.

    Attributes:
        reservation: What is set aside for it.
        started_at: When it began.
        outcome: What it would count as if everything ended now.
        won: Whether its content came first in the race.
        first_at: When its first content came.
        decode_s: How long its pieces after the first kept us waiting, which a slow reader does not add to.
        prompt_tokens: The prompt's length as the endpoint counted it, the prefix included.
        completion_tokens: Tokens it generated so far.
        cached_tokens: How much of the prompt came out of the endpoint's cache.
        read_tokens: How much of it the endpoint says it has read; `None` where it does not say.
        reads_until: About when it will have read the batch of the prompt that it is in, which it does even if
            it is let go; `None` where it does not say.
        opens_thought: Whether what it says begins inside a thought.
        served_at: From when on it could read, as far as is known: it may have had to queue.
        dropped: Why it was let go when it was to take the answer over.
        ahead: Other attempts that ran at the endpoint when this one started.
        asked: Whether anything was asked of the endpoint yet.
        let_go: Whether it was cancelled, so that nobody wants to hear from it.
        ended_at: When it ended or was cancelled.
    """

    endpoint: Endpoint
    reservation: Reservation
    prefix: Prefix
    started_at: float
    outcome: AttemptOutcome = AttemptOutcome.LOST
    won: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    first_at: float | None = None
    decode_s: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    cached_tokens: int | None = None
    read_tokens: int | None = None
    reads_until: float | None = None
    opens_thought: bool = False
    served_at: float = 0.0
    dropped: str | None = None
    ahead: int = 0
    asked: bool = False
    let_go: bool = False
    ended_at: float | None = None
    finish: Finish | None = None
    error: EndpointError | None = None
    _batch_at: float | None = None

    @property
    def request(self) -> Request:
        """What the endpoint is asked; a continuation, or a budget, may allow less than the whole answer."""
        return self.reservation.request

    def note(self, event: Event, asked_at: float, at: float) -> None:
        """Count an event that came at `at` after waiting since `asked_at`, whether or not anyone wants it."""
        match event:
            case Piece():
                self.completion_tokens += event.tokens
                if self.first_at is not None:
                    self.decode_s += at - asked_at
                elif event.is_content:
                    self.first_at = at
            case Prompt(tokens, cached_tokens, read_tokens, opens_thought):
                if self.cached_tokens is None and cached_tokens is not None:
                    self.served_at = at
                self.prompt_tokens, self.cached_tokens = tokens, cached_tokens
                self.reservation.shrink(tokens)
                self._note_batch(read_tokens, at)
                self.opens_thought = self.opens_thought or opens_thought
            case Finish():
                self.finish = event
                self.prompt_tokens = event.prompt_tokens or self.prompt_tokens
                self.completion_tokens = event.completion_tokens or self.completion_tokens
                if event.cached_tokens is not None:
                    self.cached_tokens = event.cached_tokens

    def _note_batch(self, read_tokens: int | None, at: float) -> None:
        """Reports of reading come when a batch is done; the next one takes about as long."""
        if read_tokens is not None:
            began_at, self._batch_at = self._batch_at, at
            self.reads_until = at if began_at is None else at + (at - began_at)
        self.read_tokens = read_tokens

    def cancel(self) -> None:
        """Let it go; what it would have said later is not known."""
        self.end()
        self.let_go = True
        self.scope.cancel()

    def end(self) -> None:
        """Note the moment, unless it was over before."""
        if self.ended_at is None:
            self.ended_at = anyio.current_time()


Report: TypeAlias = tuple[LiveAttempt, Event | EndpointError]


class Listener(Protocol):
    """Whoever hears reports as soon as they are made, in the task of the attempt that makes them."""

    def hear(self, attempt: LiveAttempt, report: Event | EndpointError, at: float) -> None:
        """Take a report that was made at this moment."""

    def must_wait(self, attempt: LiveAttempt) -> bool:
        """Whether an attempt should wait before it asks its endpoint for more."""

    async def room(self) -> None:
        """Wait until it need not."""


class Attempts:
    """Starts attempts, hears from them, and cancels them. An async context manager.

    Args:
        endpoints: What may be started, by name.
        estimated_tokens: About how long the prompt is, until an endpoint has counted it.
        running: How many attempts run at each endpoint, those of all requests together; kept up to date here.
        purse: What may be spent; every attempt's most is set aside before it starts.

    Attributes:
        on_started: Is told of each attempt that begins, if somebody wants to know.
        started: All that were, in order.
        refused: Why the latest attempt could not start, by endpoint, where it was for a budget.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        estimated_tokens: int,
        running: Counter[str],
        purse: Purse,
    ) -> None:
        self.endpoints = endpoints
        self.estimated_tokens = estimated_tokens
        self.running = running
        self.purse = purse
        self.on_started: Callable[[LiveAttempt], None] | None = None
        self.refused: dict[str, BudgetSpent] = {}
        self.started: list[LiveAttempt] = []
        self._inbox: deque[Report] = deque()
        self._came = anyio.Event()
        self._listener: Listener | None = None
        self._fault: Exception | None = None
        self._now = running_clock()
        self._tasks: TaskGroup

    async def __aenter__(self) -> Attempts:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        for attempt in self.started:
            if attempt.ended_at is None:
                attempt.cancel()
        try:
            return await self._tasks.__aexit__(kind, error, trace)
        finally:
            self._listener = None  # who knows these attempts in turn: a circle, left to the collector

    @property
    def prompt_tokens(self) -> int:
        """The prompt's length without any prefix: as some endpoint counted it, else estimated."""
        fresh = (attempt.prompt_tokens for attempt in self.started if not attempt.prefix.text)
        return next((tokens for tokens in fresh if tokens), self.estimated_tokens)

    def start(self, name: str, request: Request, prefix: Prefix) -> LiveAttempt:
        """Begin an attempt now.

        Raises:
            BudgetSpent: A hard budget leaves too little for it.
        """
        reservation, now = self._reserve(name, request, prefix), self._now()
        attempt = LiveAttempt(
            self.endpoints[name], reservation, prefix, now, served_at=now, ahead=self.running[name]
        )
        self.started.append(attempt)
        self.running[name] += 1
        if self.on_started is not None:
            self.on_started(attempt)
        self._tasks.start_soon(self._pump, attempt)
        return attempt

    def can_start(self, name: str, request: Request, prefix: Prefix) -> bool:
        """Whether hard budgets leave enough for an attempt at this moment."""
        try:
            self._reserve(name, request, prefix).release()
        except BudgetSpent:
            return False
        return True

    def _reserve(self, name: str, request: Request, prefix: Prefix) -> Reservation:
        try:
            return self.purse.reserve(self.endpoints[name], request, prefix)
        except BudgetSpent as error:
            self.refused[name] = error
            raise

    def exhausted(self, failures: Sequence[EndpointError]) -> AllEndpointsFailed:
        """The error for when nobody is left: what failed, then whom a budget kept from starting."""
        failed = {failure.endpoint for failure in failures}
        refused = [refusal for name, refusal in self.refused.items() if name not in failed]
        return AllEndpointsFailed([*failures, *refused])

    async def hear(self, until: float = math.inf) -> Report | None:
        """The next report of an attempt nobody cancelled; `None` when the moment `until` comes first.

        Only until somebody else listens. A report that waits already is heard even after that moment.
        """
        while True:
            while self._inbox:
                attempt, report = self._inbox.popleft()
                if not attempt.let_go:
                    return attempt, report
            if not await self.news(until):
                return None

    async def news(self, until: float) -> bool:
        """Wait until there is a report for `hear`, or `wake` is called; `False` if the moment comes first.

        Raises:
            Exception: Whatever a listener raised.
        """
        if until == math.inf:
            await self._came.wait()
        else:
            with anyio.CancelScope(deadline=until):
                await self._came.wait()
        came = self._came.is_set()
        self._came = anyio.Event()
        if self._fault is not None:
            raise self._fault
        return came

    def wake(self) -> None:
        """Let `news` return."""
        self._came.set()

    def listen(self, listener: Listener) -> None:
        """From now on, reports go there at once; those that wait for `hear`, too.

        Raises:
            Exception: Whatever the listener raises at those.
        """
        self._listener = listener
        while self._inbox:
            attempt, report = self._inbox.popleft()
            if not attempt.let_go:
                listener.hear(attempt, report, self._now())

    def _pass(self, attempt: LiveAttempt, report: Event | EndpointError, at: float) -> None:
        """Let a report be heard, unless nobody wants it any more."""
        if attempt.let_go:
            return
        if self._listener is None:
            self._inbox.append((attempt, report))
            self.wake()
            return
        try:
            self._listener.hear(attempt, report, at)
        except Exception as error:
            self._tell(error)

    def _must_wait(self, attempt: LiveAttempt) -> bool:
        """Whether to wait before more is asked for: for the race to go on, or for a slow client.

        An attempt that was let go ends there, even where its endpoint never waits.
        """
        return self._listener is None or attempt.let_go or self._listener.must_wait(attempt)

    async def _until_wanted(self, attempt: LiveAttempt) -> None:
        if self._listener is None or attempt.let_go:
            await anyio.lowlevel.checkpoint()
            return
        try:
            await self._listener.room()
        except Exception as error:
            self._tell(error)
            await anyio.sleep_forever()  # until whoever was told ends the attempts

    def _tell(self, fault: Exception) -> None:
        """Tell whoever waits for news what a listener raised; the attempt has no part in it."""
        self._fault = fault
        self.wake()

    async def _pump(self, attempt: LiveAttempt) -> None:
        try:
            await self._stream(attempt)
        finally:
            self.running[attempt.endpoint.name] -= 1
            attempt.end()

    async def _stream(self, attempt: LiveAttempt) -> None:
        with attempt.scope:
            try:
                if attempt.reservation.is_provisional:
                    await attempt.endpoint.prepare()
                    attempt.reservation.confirm()
                attempt.asked = True
                async with aclosing(attempt.endpoint.generate(attempt.request, attempt.prefix)) as events:
                    asked_at = self._now()
                    async for event in events:
                        at = self._now()
                        attempt.note(event, asked_at, at)
                        self._pass(attempt, event, at)
                        asked_at = at
                        if self._must_wait(attempt):
                            await self._until_wanted(attempt)
                            asked_at = self._now()
                if attempt.finish is None:
                    raise _broke(attempt, "the stream ended without a finish")
            except EndpointError as error:
                self._fail(attempt, error)
            except Exception as error:
                self._fail(attempt, _untranslated(attempt, error))
            except anyio.get_cancelled_exc_class() as error:
                if not _is_stray():
                    raise
                self._fail(attempt, _untranslated(attempt, error))

    def _fail(self, attempt: LiveAttempt, error: EndpointError) -> None:
        never = isinstance(error, BudgetSpent)
        attempt.error = error.with_traceback(None)  # which would hold the attempt, and so itself
        attempt.outcome = AttemptOutcome.NOT_STARTED if never else AttemptOutcome.FAILED
        self._pass(attempt, error, self._now())


def _broke(attempt: LiveAttempt, message: str) -> EndpointError:
    phase = Phase.PREFILL if attempt.first_at is None else Phase.DECODE
    return EndpointError(attempt.endpoint.name, phase, message)


def _untranslated(attempt: LiveAttempt, error: BaseException) -> EndpointError:
    log.exception("%r: the adapter raised what it should have translated", attempt.endpoint)
    return _broke(attempt, f"{type(error).__name__}: {error}")


def _is_stray() -> bool:
    """Whether a cancellation is of the adapter's own making, such as a task of its own that was cancelled."""
    if anyio.current_effective_deadline() == -math.inf:
        return False
    task = asyncio.current_task()
    return task is None or not task.cancelling()
