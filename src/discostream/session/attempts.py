"""The attempts of one request: each runs in a task of its own and reports into one inbox."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeAlias

import anyio
from anyio.abc import TaskGroup

from discostream.endpoints.base import Endpoint
from discostream.errors import EndpointError, Phase
from discostream.types import AttemptOutcome, Event, Finish, Piece, Prefix, Prompt, Request

__all__ = ["Attempts", "LiveAttempt", "Report"]

log = logging.getLogger(__name__)

INBOX_SIZE = 64
"""Reports that may wait; beyond it an attempt waits too, and so does its upstream."""


@dataclass(eq=False)
class LiveAttempt:
    """One try on one endpoint, while it runs.

    Attributes:
        request: What the endpoint was asked; a continuation may write fewer tokens than the whole answer.
        started_at: When it began.
        outcome: What it would count as if everything ended now.
        won: Whether its content came first in the race.
        first_at: When its first content came.
        decode_s: How long its pieces after the first kept us waiting, which a slow reader does not add to.
        prompt_tokens: The prompt's length as the endpoint counted it, the prefix included.
        completion_tokens: Tokens it generated so far.
    """

    endpoint: Endpoint
    request: Request
    prefix: Prefix
    started_at: float
    outcome: AttemptOutcome = AttemptOutcome.LOST
    won: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    first_at: float | None = None
    decode_s: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    finish: Finish | None = None
    error: EndpointError | None = None

    def note(self, event: Event, asked_at: float, at: float) -> None:
        """Count an event that came at `at` after waiting since `asked_at`, whether or not anyone wants it."""
        match event:
            case Prompt(tokens):
                self.prompt_tokens = tokens
            case Piece(text, tokens):
                self.completion_tokens += tokens
                if self.first_at is not None:
                    self.decode_s += at - asked_at
                elif text:
                    self.first_at = at
            case Finish():
                self.finish = event
                self.prompt_tokens = event.prompt_tokens or self.prompt_tokens
                self.completion_tokens = event.completion_tokens or self.completion_tokens


Report: TypeAlias = tuple[LiveAttempt, Event | EndpointError]


class Attempts:
    """Starts attempts, hears from them, and cancels them. An async context manager.

    Args:
        endpoints: What may be started, by name.
        estimated_tokens: About how long the prompt is, until an endpoint has counted it.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint], estimated_tokens: int) -> None:
        self.endpoints = endpoints
        self.estimated_tokens = estimated_tokens
        self.started: list[LiveAttempt] = []
        self._reports, self._inbox = anyio.create_memory_object_stream[Report](INBOX_SIZE)
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup

    async def __aenter__(self) -> Attempts:
        self._stack.enter_context(self._inbox)
        self._stack.enter_context(self._reports)
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        for attempt in self.started:
            attempt.scope.cancel()
        return await self._stack.__aexit__(kind, error, trace)

    @property
    def prompt_tokens(self) -> int:
        """The prompt's length without any prefix: as some endpoint counted it, else estimated."""
        fresh = (attempt.prompt_tokens for attempt in self.started if not attempt.prefix.text)
        return next((tokens for tokens in fresh if tokens), self.estimated_tokens)

    def start(self, name: str, request: Request, prefix: Prefix) -> LiveAttempt:
        """Begin an attempt now."""
        attempt = LiveAttempt(self.endpoints[name], request, prefix, anyio.current_time())
        self.started.append(attempt)
        self._tasks.start_soon(self._pump, attempt)
        return attempt

    async def hear(self, until: float = math.inf) -> Report | None:
        """The next report of an attempt nobody cancelled; `None` when the moment `until` comes first."""
        with anyio.CancelScope(deadline=until):
            while True:
                attempt, report = await self._inbox.receive()
                if not attempt.scope.cancel_called:
                    return attempt, report
        return None

    async def _pump(self, attempt: LiveAttempt) -> None:
        with attempt.scope:
            try:
                async with aclosing(attempt.endpoint.generate(attempt.request, attempt.prefix)) as events:
                    asked_at = anyio.current_time()
                    async for event in events:
                        attempt.note(event, asked_at, anyio.current_time())
                        await self._reports.send((attempt, event))
                        asked_at = anyio.current_time()
                if attempt.finish is None:
                    raise _broke(attempt, "the stream ended without a finish")
            except EndpointError as error:
                await self._fail(attempt, error)
            except Exception as error:
                log.exception("%r: the adapter raised what it should have translated", attempt.endpoint)
                await self._fail(attempt, _broke(attempt, f"{type(error).__name__}: {error}"))

    async def _fail(self, attempt: LiveAttempt, error: EndpointError) -> None:
        attempt.error, attempt.outcome = error, AttemptOutcome.FAILED
        await self._reports.send((attempt, error))


def _broke(attempt: LiveAttempt, message: str) -> EndpointError:
    phase = Phase.PREFILL if attempt.first_at is None else Phase.DECODE
    return EndpointError(attempt.endpoint.name, phase, message)
