"""A server's answers, given ahead, so that its emulation takes nothing of the machine that is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec.structs import replace

from discostream.config import convert_options
from discostream.endpoints.base import Endpoint, NoOptions
from discostream.endpoints.emulated import EmulatedEndpoint, EmulatedOptions
from discostream.endpoints.registry import build_endpoint
from discostream.types import Event, Prefix, Request

__all__ = ["RehearsedEndpoint", "rehearsing"]


class RehearsedEndpoint(Endpoint):
    """Says at once what another endpoint has said ahead to the same question; all else is asked of that one.

    Args:
        inner: Who really generates.

    Attributes:
        question: The last message of what was rehearsed; empty before that.
    """

    def __init__(self, inner: Endpoint) -> None:
        super().__init__(inner.settings, NoOptions())
        self._inner = inner
        self._said: tuple[Event, ...] = ()
        self.question = ""
        self._follow()

    async def prepare(self) -> None:
        """See `Endpoint.prepare`."""
        await self._inner.prepare()
        self._follow()

    async def aclose(self) -> None:
        """See `Endpoint.aclose`."""
        await self._inner.aclose()

    async def rehearse(self, request: Request) -> None:
        """Generate the answer to a question; what stands before it may be something else when it is asked."""
        self.question = ""
        async with aclosing(self._inner.generate(request, Prefix())) as events:
            self._said = tuple([event async for event in events])
        self.question = request.messages[-1].content

    async def read_ahead(self, request: Request) -> None:
        """Have a prompt read, so that going on from another's answer to it starts without delay."""
        async with aclosing(
            self._inner.generate(dataclasses.replace(request, max_tokens=1), Prefix())
        ) as events:
            async for _ in events:
                pass

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        """Stream what was rehearsed. See `Endpoint.generate`."""
        if not prefix.text and request.messages[-1].content == self.question:
            for event in self._said:
                yield event
            return
        async with aclosing(self._inner.generate(request, prefix)) as events:
            async for event in events:
                yield event

    def _follow(self) -> None:
        self.continues, self.vocabulary = self._inner.continues, self._inner.vocabulary
        self.features = self._inner.features
        self.models, self.slots, self.energy = self._inner.models, self._inner.slots, self._inner.energy


def rehearsing(server: Endpoint) -> tuple[EmulatedEndpoint, RehearsedEndpoint]:
    """A server emulated as this one is, and the endpoint within it that has its answers ready."""
    options = convert_options(server.settings, EmulatedOptions)
    generating = replace(server.settings, dialect=options.around, options=options.inner)
    rehearsed = RehearsedEndpoint(build_endpoint(generating))
    return EmulatedEndpoint(server.settings, options, rehearsed), rehearsed
