"""From entering a connection to leaving it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from discostream.endpoints.base import Endpoint
from discostream.errors import DiscoError, EndpointError, NotConnected
from discostream.ledger.store import Ledger

__all__ = ["FAILED", "READY", "STARTING", "Connection"]

log = logging.getLogger(__name__)

STARTING, READY, FAILED = "starting", "ready", "failed"
"""How an endpoint stands; why one has failed is in the log, and in the next request's error."""

ASK_AGAIN_S, SELDOM_S = 1.0, 30.0
"""How soon a server that was not ready is asked again, and how seldom after many times."""

CLOSING_S = 10.0
"""How long an endpoint may take to close."""


class Connection:
    """What is open: the ledger, the endpoints, and the tasks of all answers."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None
        self._ledger: Ledger | None = None
        self._entered = False
        self.standing: dict[str, str] = {}

    async def open(self, ledger_path: str | Path, endpoints: Iterable[Endpoint]) -> None:
        """Open the ledger, and let the endpoints get ready in the background.

        Raises:
            ConfigError: The ledger cannot be opened.
            DiscoError: It is open already.
        """
        if self._entered:
            raise DiscoError("connected already: `async with` it once at a time, or `connect` another")
        self._entered = True
        try:  # in a thread, for another program may have locked the file
            self._ledger = await anyio.to_thread.run_sync(Ledger, ledger_path)
        except BaseException:
            self._entered = False
            raise
        self._stack.callback(self._ledger.close)
        for endpoint in endpoints:
            self._stack.push_async_callback(_close_quietly, endpoint)
        self._tasks = await anyio.create_task_group().__aenter__()
        for endpoint in endpoints:
            self._tasks.start_soon(self._prepare, endpoint)

    async def close(self) -> None:
        """Cancel what still runs, and close everything."""
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        # The caller's own error passes by the task group, which would wrap it in an exception group.
        tasks.cancel_scope.cancel()
        try:
            await tasks.__aexit__(None, None, None)
        finally:
            await self._stack.aclose()
            self._entered = False

    async def _prepare(self, endpoint: Endpoint) -> None:
        """Get it ready; a server is asked again until it is, for it may have been started after us."""
        self.standing[endpoint.name] = STARTING
        wait_s = ASK_AGAIN_S
        while not await self._becomes_ready(endpoint) and endpoint.base_url:
            await anyio.sleep(wait_s)
            wait_s = min(2 * wait_s, SELDOM_S)

    async def _becomes_ready(self, endpoint: Endpoint) -> bool:
        """Whether it does; the log has it once that it does not."""
        try:
            await endpoint.prepare()
        except Exception as error:
            told = self.standing[endpoint.name] == FAILED
            self.standing[endpoint.name] = FAILED
            if told:
                return False
            if isinstance(error, EndpointError):
                log.warning("%s", error)
            else:
                log.exception("%r: prepare raised what it should have translated", endpoint)
            return False
        self.standing[endpoint.name] = READY
        return True

    def require_open(self) -> tuple[TaskGroup, Ledger]:
        """The tasks and the ledger.

        Raises:
            NotConnected: Outside of `async with`.
        """
        if self._tasks is None or self._ledger is None:
            raise NotConnected("not connected: use it inside `async with discostream.connect(...)`")
        return self._tasks, self._ledger


async def _close_quietly(endpoint: Endpoint) -> None:
    with anyio.move_on_after(CLOSING_S, shield=True):
        try:
            await endpoint.aclose()
        except Exception:
            log.exception("%r could not be closed", endpoint)
