"""An emulated server: a real service's delays, pace and failures around an endpoint that really generates."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import anyio
import msgspec
import numpy as np
from msgspec import Meta, Struct

from discostream.builtin import builtin_profiles
from discostream.config import EndpointSettings, suggest
from discostream.core.cost import Energy
from discostream.core.distributions import Distribution
from discostream.endpoints.base import Endpoint
from discostream.endpoints.registry import build_endpoint
from discostream.errors import ConfigError, EndpointError, Phase
from discostream.types import Event, Kind, Piece, Prefix, Prompt, Request

__all__ = ["EmulatedEndpoint", "EmulatedOptions"]

Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class EmulatedOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is emulated, and around what.

    Attributes:
        around: The dialect of the endpoint that generates; it has the same `model`.
        inner: The keys of that dialect.
        ttft: A built-in profile, or a CSV file (`.gz` too) with a column `ttft_s` or `ttft_ms`.
        tokens_per_s: The decode pace; the profile's when absent, and as fast as it comes for a CSV file.
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

    Delays only hold pieces back: where the inner endpoint is slower than what it emulates, they come late.
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
        self._ttft, self._tokens_per_s = _service(settings.name, options)
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
        first_at = anyio.current_time() + float(self._ttft.sample(self._rng))
        refused, broken = self._rng.random(2) < (self._options.refuse_rate, self._options.break_rate)
        if refused:
            raise EndpointError(self.name, Phase.REFUSED, "overloaded (emulated)", status=503)
        sent = 0
        async with aclosing(self._inner.generate(request, prefix)) as events:
            async for event in events:
                self._follow()
                if not isinstance(event, Prompt):
                    await anyio.sleep_until(first_at + sent / self._tokens_per_s)
                if broken and sent >= self._options.break_after_tokens:
                    raise EndpointError(self.name, Phase.DECODE, "connection reset (emulated)")
                yield event
                sent += event.tokens if isinstance(event, Piece) else 0

    def _follow(self) -> None:
        """Take over what the inner endpoint knows of itself by now, which may grow while it starts."""
        self.continues = self._inner.continues
        self.vocabulary = self._inner.vocabulary
        self.slots = None if self.kind is Kind.SERVER else self._inner.slots
        self.energy = Energy() if self.kind is Kind.SERVER else self._inner.energy


def _service(name: str, options: EmulatedOptions) -> tuple[Distribution, float]:
    """TTFT in seconds and decode pace of the emulated service."""
    profiles = builtin_profiles()
    if options.ttft in profiles:
        profile = profiles[options.ttft]
        return profile.ttft, options.tokens_per_s or profile.tokens_per_s
    if not Path(options.ttft).is_file():
        hint = suggest(options.ttft, profiles)
        raise ConfigError(
            f"endpoint {name!r}: ttft = {options.ttft!r}: no built-in profile, nor a file; {hint}"
        )
    return _trace(name, Path(options.ttft)), options.tokens_per_s or math.inf


def _trace(name: str, path: Path) -> Distribution:
    where = f"endpoint {name!r}: ttft = {str(path)!r}: "
    try:
        samples = _ttft_column(path)
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise ConfigError(f"{where}cannot be read as CSV: {error}") from None
    if not samples or not all(math.isfinite(sample) and sample >= 0 for sample in samples):
        raise ConfigError(f"{where}needs a column ttft_s or ttft_ms of numbers that are not negative")
    return Distribution.of_samples(samples)


def _ttft_column(path: Path) -> list[float]:
    """Seconds; rows without a TTFT are left out."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    rows = csv.DictReader(text.splitlines())
    column, per_s = ("ttft_s", 1.0) if "ttft_s" in (rows.fieldnames or ()) else ("ttft_ms", 1000.0)
    return [float(row[column]) / per_s for row in rows if row.get(column)]
