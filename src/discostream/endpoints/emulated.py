"""An emulated server: a real service's delays, pace and failures around an endpoint that really generates."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any, NoReturn

import anyio
import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from discostream.builtin import BuiltinProfile, builtin_profiles
from discostream.config import EndpointSettings, suggest
from discostream.core.cost import Energy
from discostream.core.distributions import Distribution
from discostream.core.forecast import SILENCE_S
from discostream.endpoints.base import Endpoint
from discostream.endpoints.registry import build_endpoint
from discostream.errors import ConfigError, EndpointError, Phase
from discostream.traces.servers import BUILTIN, path_and_model, read_trace
from discostream.traces.streams import Streams
from discostream.types import Event, Kind, Piece, Prefix, Prompt, Request

__all__ = ["EmulatedEndpoint", "EmulatedOptions"]

Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class EmulatedOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is emulated, and around what.

    Attributes:
        around: The dialect of the endpoint that generates; it has the same `model`.
        inner: The keys of that dialect.
        ttft: A built-in profile, or any server trace that `read_trace` takes.
        tokens_per_s: An even decode pace, in place of the profile's or of what was recorded.
        seed: Fixes delays and failures, in the order of requests; different every time when absent.
        refuse_rate: Share of requests that are refused with status 503.
        break_rate: Share of answers whose connection is reset, if they are long enough.
        break_after_tokens: How many tokens come before a reset.
    """

    around: str = "llamacpp"
    inner: dict[str, Any] = {}
    ttft: str = "gpt-4o"
    tokens_per_s: Annotated[float, Meta(gt=0.0)] | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    refuse_rate: Share = 0.0
    break_rate: Share = 0.0
    break_after_tokens: Annotated[int, Meta(ge=1)] = 8


class EmulatedEndpoint(Endpoint):
    """Delivers another endpoint's answers when a recorded service would have.

    Each answer draws a TTFT and a recording of how tokens came; a piece comes when its last token has. Delays
    only hold pieces back: where the inner endpoint is slower than what it emulates, they come late. Failures
    of the trace are drawn, too: as in the simulator they are refusals, or silences of `SILENCE_S` and more.

    As a server it costs no joules, whatever the inner endpoint burns, and serves any number of requests.

    Args:
        inner: The endpoint that generates, in place of the one the options describe.
    """

    Options = EmulatedOptions
    neutral_options = frozenset({"seed"})

    def __init__(
        self, settings: EndpointSettings, options: EmulatedOptions, inner: Endpoint | None = None
    ) -> None:
        super().__init__(settings, options)
        self._options = options
        self._service = _service(settings.name, options)
        self._rng = np.random.default_rng(options.seed)
        self._inner = inner or build_endpoint(
            msgspec.structs.replace(settings, dialect=options.around, options=options.inner)
        )
        self.models = self._inner.models
        self._follow()

    async def prepare(self) -> None:
        """See `Endpoint.prepare`."""
        await self._inner.prepare()
        self._follow()

    async def inspect(self) -> None:
        """See `Endpoint.inspect`."""
        await self._inner.inspect()
        self._follow()

    async def aclose(self) -> None:
        """See `Endpoint.aclose`."""
        await self._inner.aclose()

    async def warm(self, request: Request) -> None:
        """Let the inner endpoint read a prompt ahead, so that its own prefill adds nothing to the delays."""
        once = replace(request, max_tokens=1)
        async with aclosing(self._inner.generate(once, Prefix())) as events:
            async for _ in events:
                pass

    def reseed(self, *seed: int) -> None:
        """Fix the delays and failures of the requests that follow."""
        self._rng = np.random.default_rng(seed)

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        """Stream the inner endpoint's answer, held back. See `Endpoint.generate`.

        The inner endpoint starts at once, so its prefill hides behind the emulated TTFT.
        """
        ttft_s = float(self._service.ttft.sample(self._rng))
        refused, broken = self._rng.random(2) < (self._options.refuse_rate, self._options.break_rate)
        streams = self._service.streams
        recording = int(self._rng.integers(len(streams.recordings)))
        if math.isinf(ttft_s):
            await self._fail()
        if refused:
            raise EndpointError(self.name, Phase.REFUSED, "overloaded (emulated)", status=503)
        first_at, sent = anyio.current_time() + ttft_s, 0
        async with aclosing(self._inner.generate(request, prefix)) as events:
            async for event in events:
                self._follow()
                tokens = event.tokens if isinstance(event, Piece) else 0
                if not isinstance(event, Prompt):
                    last = sent + max(tokens, 1) - 1  # the end of an answer is a token, too
                    await anyio.sleep_until(first_at + float(streams.came_s(recording, last)))
                if broken and sent >= self._options.break_after_tokens:
                    raise EndpointError(self.name, Phase.DECODE, "connection reset (emulated)")
                yield event
                sent += tokens

    async def _fail(self) -> NoReturn:
        """Fail as one of the requests of the trace did."""
        failed_after_s = float(self._rng.choice(self._service.failed_after_s))
        await anyio.sleep(failed_after_s)
        if failed_after_s < SILENCE_S:
            raise EndpointError(self.name, Phase.REFUSED, "failed as recorded (emulated)", status=503)
        raise EndpointError(self.name, Phase.PREFILL, f"silent for {failed_after_s:g} s (emulated)")

    def _follow(self) -> None:
        """Take over what the inner endpoint knows of itself by now, which may grow while it starts."""
        self.continues = self._inner.continues
        self.features = self._inner.features
        self.vocabulary = self._inner.vocabulary
        self.slots = None if self.kind is Kind.SERVER else self._inner.slots
        self.energy = Energy() if self.kind is Kind.SERVER else self._inner.energy


@dataclass(frozen=True, eq=False)
class _Service:
    """What is emulated.

    Attributes:
        ttft: Seconds to the first token; infinite for the share of requests that failed.
        failed_after_s: When each of those failed.
        streams: How tokens followed the first one.
    """

    ttft: Distribution
    failed_after_s: NDArray[np.float64]
    streams: Streams


def _service(name: str, options: EmulatedOptions) -> _Service:
    profile = builtin_profiles().get(options.ttft.removeprefix(BUILTIN))
    service = _recorded(name, options.ttft) if profile is None else _built_in(profile)
    if options.tokens_per_s is None:
        return service
    try:
        return replace(service, streams=Streams.steady(options.tokens_per_s))
    except ValueError:
        raise ConfigError(
            f"endpoint {name!r}: tokens_per_s = {options.tokens_per_s:g}: must be a number above zero"
        ) from None


def _built_in(profile: BuiltinProfile) -> _Service:
    return _Service(profile.ttft, np.empty(0), Streams.steady(profile.tokens_per_s))


def _recorded(name: str, source: str) -> _Service:
    where = f"endpoint {name!r}: ttft = {source!r}: "
    path, _ = path_and_model(source)
    if not path.exists():
        raise ConfigError(f"{where}no built-in profile, nor a file; {suggest(source, builtin_profiles())}")
    try:
        trace = read_trace(source)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None
    failed = np.isinf(trace.ttft_s)
    return _Service(Distribution.of_samples(trace.ttft_s), trace.failed_after_s[failed], trace.streams)
