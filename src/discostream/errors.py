"""Whose fault it was, as a tree.

DiscoError
├── ConfigError          the settings: names the field, the value and the fix
├── RequestRejected      the client: the request itself cannot be served
├── EndpointError        theirs: one endpoint failed; carries the endpoint and the phase
│   └── BudgetSpent      the user's own wish: a hard budget leaves too little to start there
├── AllEndpointsFailed   theirs: nothing could answer; the first cause is the reported one
├── AnswerInterrupted    ours: the connection was closed before the answer was whole
├── NotConnected         ours: the connection is not open, or not open any more
├── EngineError          the embedded engine or its model could not be had
│   └── DownloadError    a model could not be fetched or is not the file it should be
└── InvalidTransition    ours: an event arrived that the handoff table does not allow
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

__all__ = [
    "AllEndpointsFailed",
    "AnswerInterrupted",
    "BudgetSpent",
    "ConfigError",
    "DiscoError",
    "DownloadError",
    "EndpointError",
    "EngineError",
    "InvalidTransition",
    "NotConnected",
    "Phase",
    "RequestRejected",
]


class Phase(StrEnum):
    """How far an attempt had come when it failed."""

    CONNECT = "connect"
    """No answer from the endpoint: nothing was accepted, nothing is owed."""
    REFUSED = "refused"
    """The endpoint answered with an error instead of a stream."""
    PREFILL = "prefill"
    """The request was accepted, but no content came."""
    DECODE = "decode"
    """Content came, and then the stream broke."""


class DiscoError(Exception):
    """Anything that discostream raises on purpose."""


class ConfigError(DiscoError):
    """A setting is wrong; the message names the field, the value and the fix."""


class RequestRejected(DiscoError):  # noqa: N818 - says what happened, like httpx.TimeoutException's kin
    """The client's request cannot be served as it is.

    Args:
        message: What is wrong and what would be right, in one sentence.
        param: The request field at fault, where there is one.
        status: The HTTP status that fits.
        code: A short machine-readable word, as OpenAI's error objects carry.
    """

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code


class EndpointError(DiscoError):
    """One endpoint failed.

    Args:
        endpoint: Its name in the settings.
        phase: How far the attempt had come.
        message: The cause, without the endpoint's name.
        status: The HTTP status the endpoint sent, where it sent one.
        code: The endpoint's own short word for the error, where it has one.
        retry_after_s: How long it wants to be left alone, where it says so.
    """

    def __init__(
        self,
        endpoint: str,
        phase: Phase,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(f"{endpoint}: {message}")
        self.endpoint = endpoint
        self.phase = phase
        self.message = message
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class BudgetSpent(EndpointError):  # noqa: N818
    """A hard budget leaves too little to start an attempt; nothing was asked of the endpoint.

    It stands among the failures of a request, because that is what it is to whoever waits for an answer.

    Args:
        endpoint: The endpoint that was not started.
        budget: The budget's name.
        message: What is left of it, and when it renews.
    """

    def __init__(self, endpoint: str, budget: str, message: str) -> None:
        super().__init__(endpoint, Phase.REFUSED, message, status=402, code="budget_spent")
        self.budget = budget


class AllEndpointsFailed(DiscoError):  # noqa: N818
    """No endpoint could answer, or go on answering.

    Args:
        causes: One error per failed attempt, the first failure first.
        remark: Why there were no more of them, where that needs saying.
    """

    def __init__(self, causes: Sequence[EndpointError], remark: str = "") -> None:
        first, *rest = causes
        also = f" (also failed: {'; '.join(str(cause) for cause in rest)})" if rest else ""
        super().__init__(f"{first}{also}{remark and '; '}{remark}")
        self.causes = tuple(causes)

    @property
    def first(self) -> EndpointError:
        """The failure that came first, which is the one to report."""
        return self.causes[0]


class AnswerInterrupted(DiscoError):  # noqa: N818
    """The connection was closed while the answer was being written."""


class NotConnected(DiscoError):  # noqa: N818
    """There is no open connection: `async with connect(...)` was not entered yet, or was left."""


class EngineError(DiscoError):
    """The embedded engine could not be started or kept running."""


class DownloadError(EngineError):
    """A model file could not be fetched, or is not the file it should be."""


class InvalidTransition(DiscoError):  # noqa: N818
    """The handoff table has no row for this event in this state."""
