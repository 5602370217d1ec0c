"""`disco demo`: real prompts through the real pipeline, beside either endpoint alone."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from rich.table import Table

from discostream.cli.screen import errors, legend, output, print_answer, summary
from discostream.config import (
    CostSettings,
    EndpointSettings,
    PolicySettings,
    Settings,
    embedded_pair,
    settings_from,
)
from discostream.core.qoe import read_times
from discostream.endpoints.emulated import EmulatedEndpoint
from discostream.errors import ConfigError
from discostream.library import Disco, connect
from discostream.types import Message, Outcome, Request

__all__ = ["Scene", "demo_settings", "scenes_for", "show_demo"]

DEAR_JOULE = CostSettings(usd_per_joule=1e-3)
"""As on a battery that must last the day: a tenth of a cent per joule."""

LIGHTHOUSE = (
    "The old lighthouse stands on a rock two miles from the harbour. For a hundred and forty years its "
    "keepers lit the lamp at dusk, wound the clockwork that turned the lens, and wrote the weather into "
    "a book every four hours. When the light was made automatic, the last keeper gave the books to the "
    "town library, and last year a student found in them that the storms of long ago were stronger than "
    "anybody believed. Explain to a ten-year-old what the keepers did and why their books still matter."
)
BAKERY = (
    "Our bakery has one oven with four levels, and a level takes either twelve loaves or sixty rolls. A "
    "loaf bakes for fifty minutes and rolls for eighteen. At six the shop opens and wants bread; at "
    "half past five the hotel wants its rolls, but they are ready too late, while the bread for the "
    "shop lies there an hour before anybody comes to buy it. Suggest a better order of work for the "
    "morning, step by step, with the reason for each step."
)


@dataclass(frozen=True)
class Scene:
    """Prompts to be answered under the same rules."""

    title: str
    prompts: tuple[str, ...]
    policy: PolicySettings
    cost: CostSettings


def scenes_for(mine: Sequence[str]) -> tuple[Scene, ...]:
    """The demonstration: the user's own prompts in both scenes, or those that come with it.

    A prompt that is the only one is asked twice in each, so that there is something to compare.
    """
    mine = list(mine) * 2 if len(mine) == 1 else mine
    return (
        Scene(
            "Dollars are dear: both race, and the rest of a server's answer moves to the device",
            tuple(mine) or (LIGHTHOUSE, BAKERY),
            PolicySettings(share=1.0),
            CostSettings(),
        ),
        Scene(
            "Energy is dear: long prompts wait, and the rest of a device's answer moves to the server",
            tuple(mine) or ("Why is the sky blue?", "Tell me how bread is made, from the grain to the loaf."),
            PolicySettings(share=0.5),
            DEAR_JOULE,
        ),
    )


def demo_settings(settings: Settings) -> Settings:
    """The user's settings, with the embedded counterpart of whatever kind of endpoint they lack.

    Raises:
        ConfigError: They forbid what the demonstration does: ask servers, and spend beside the ledger.
    """
    if settings.policy.private:
        raise ConfigError("policy.private = true: disco demo asks a server, too; turn it off for the demo")
    hard = [budget.label for budget in settings.budget if budget.mode == "hard"]
    if hard:
        raise ConfigError(
            f"budget {hard[0]!r} is hard: disco demo keeps its account apart from the ledger, so it could "
            f"exceed it; run the demo without it"
        )
    pair = settings_from({"endpoint": embedded_pair()}).endpoint
    kinds = {endpoint.kind for endpoint in settings.endpoint}
    missing = tuple(
        replace(endpoint, name=f"embedded-{endpoint.name}") for endpoint in pair if endpoint.kind not in kinds
    )
    return replace(
        settings,
        endpoint=settings.endpoint + missing,
        budget=(),
        migration=replace(settings.migration, enabled=True),
    )


@dataclass
class Tally:
    """What one way of answering came to."""

    ttfts_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    usd: float = 0.0
    joules: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)
    migrations: int = 0

    def add(self, outcome: Outcome, tokens_per_s: float) -> None:
        """Count one answer, read at this rate."""
        if outcome.ttft_s is not None:
            self.ttfts_s.append(outcome.ttft_s)
        self.gaps_s.extend(np.diff(read_times(outcome.delivered_s, tokens_per_s)))
        self.usd += outcome.usd
        self.joules += outcome.joules
        self.migrations += len(outcome.migrations)
        for attempt in outcome.attempts:
            self.tokens[attempt.endpoint] = self.tokens.get(attempt.endpoint, 0) + attempt.completion_tokens

    def as_json(self) -> dict[str, float | None]:
        """The figures that are compared; `None` where no answer was long enough to have one."""
        return {
            "mean_ttft_s": float(np.mean(self.ttfts_s)) if self.ttfts_s else None,
            "max_ttft_s": max(self.ttfts_s, default=None),
            "p99_tbt_s": float(np.quantile(self.gaps_s, 0.99)) if self.gaps_s else None,
            "usd": self.usd,
            "joules": self.joules,
        }


async def show_demo(
    settings: Settings, scenes: Sequence[Scene], max_tokens: int, seed: int, as_json: bool
) -> None:
    """Answer every prompt three ways and print what came of it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = replace(settings, ledger=replace(settings.ledger, path=str(Path(folder) / "demo.db")))
        async with connect(settings, seed=seed) as disco:
            with errors.status("Starting the engines"):
                await disco.ready()
            stage = Stage(disco, max_tokens, seed, quiet=as_json)
            if not as_json:
                output.print(legend())
            for scene in scenes:
                await stage.play(scene)
    if as_json:
        sys.stdout.write(json.dumps(stage.as_json()) + "\n")
    else:
        output.print(stage.as_table())
        output.print(f"Seed {seed}. Server delays: {_delays(settings)}.", style="dim")


class Stage:
    """Plays scenes and keeps what came of them."""

    def __init__(self, disco: Disco, max_tokens: int, seed: int, quiet: bool) -> None:
        self.disco = disco
        self.max_tokens = max_tokens
        self.seed = seed
        self.quiet = quiet
        self.answers: list[dict[str, Any]] = []
        self.tallies = {name: Tally() for name in ("device-only", "server-only", "discostream")}

    async def play(self, scene: Scene) -> None:
        """Answer a scene's prompts, each together and by either endpoint alone."""
        together = self.disco.under(policy=scene.policy, cost=scene.cost)
        together.expect_prompts([len(_SYSTEM) + len(prompt) for prompt in scene.prompts])
        if not self.quiet:
            output.rule(scene.title, style="dim")
        for prompt in scene.prompts:
            await self._answer(prompt, together)
            with errors.status("The same by device and server alone"):
                for name in ("device-only", "server-only"):
                    await self._measure(prompt, name)

    async def _answer(self, prompt: str, disco: Disco) -> None:
        if not self.quiet:
            output.print(f"\n{_shortened(prompt)}", style="bold")
        outcome, text = await self._stream(prompt, disco, show=not self.quiet)
        if not self.quiet:
            output.print(summary(outcome), style="dim")
        self._count("discostream", outcome)
        self.answers.append({"prompt": prompt, "text": text, "disco": outcome.as_disco()})

    async def _measure(self, prompt: str, policy: str) -> None:
        alone = self.disco.under(policy=PolicySettings(name=policy))
        outcome, _ = await self._stream(prompt, alone, show=False)
        self._count(policy, outcome)

    async def _stream(self, prompt: str, disco: Disco, *, show: bool) -> tuple[Outcome, str]:
        messages = _fresh(prompt)
        if disco.settings.policy.name != "device-only":
            await self._set_up_emulation(messages)
        async with disco.stream(messages, max_tokens=self.max_tokens, temperature=0.0) as answer:
            text = await print_answer(answer, disco) if show else "".join([p.text async for p in answer])
        assert answer.outcome is not None
        return answer.outcome, text

    async def _set_up_emulation(self, messages: tuple[Message, ...]) -> None:
        """Same prompt, same delays, whichever way it is answered; and no prefill of ours on top of them."""
        for endpoint in self.disco.endpoints.values():
            if isinstance(endpoint, EmulatedEndpoint):
                endpoint.reseed(self.seed, len(self.answers))
                await endpoint.warm(Request(messages=messages, arrived_at=0.0, request_id="warm"))

    def _count(self, name: str, outcome: Outcome) -> None:
        self.tallies[name].add(outcome, self.disco.settings.migration.consumption_tokens_per_s)

    def as_json(self) -> dict[str, Any]:
        """The whole demonstration as one object."""
        return {
            "answers": self.answers,
            "comparison": {name: tally.as_json() for name, tally in self.tallies.items()},
            "migrations": self.tallies["discostream"].migrations,
        }

    def as_table(self) -> Table:
        """The comparison for people."""
        table = Table(title=f"{len(self.answers)} prompts, each answered three ways", title_justify="left")
        table.add_column("")
        for name in self.tallies:
            table.add_column(name, justify="right")
        for label, cell in ROWS.items():
            table.add_row(label, *[cell(tally) for tally in self.tallies.values()])
        return table


_SYSTEM = "[{}] You are a helpful assistant."

ROWS: Mapping[str, Callable[[Tally], str]] = {
    "mean TTFT": lambda tally: _seconds(tally.as_json()["mean_ttft_s"]),
    "worst TTFT": lambda tally: _seconds(tally.as_json()["max_ttft_s"]),
    "P99 TBT as read": lambda tally: _seconds(tally.as_json()["p99_tbt_s"]),
    "dollars": lambda tally: f"{tally.usd:.5f}",
    "joules": lambda tally: f"{tally.joules:.1f}",
    "tokens by endpoint": lambda tally: "\n".join(f"{name} {n}" for name, n in tally.tokens.items()),
    "migrations": lambda tally: str(tally.migrations),
}


def _seconds(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.3f} s"  # noqa: RUF001 - a dash for no figure


def _fresh(prompt: str) -> tuple[Message, ...]:
    """The prompt as a chat that no engine has cached: every way of answering starts cold."""
    return (
        Message("system", _SYSTEM.format(secrets.token_hex(2))),
        Message("user", prompt),
    )


def _shortened(prompt: str, most: int = 160) -> str:
    return prompt if len(prompt) <= most else f"{prompt[: most // 2]} … {prompt[-most // 2 :]}"


def _delays(settings: Settings) -> str:
    emulated = [endpoint for endpoint in settings.endpoint if endpoint.dialect == "emulated"]
    return ", ".join(_source_of(endpoint) for endpoint in emulated) or "real"


def _source_of(endpoint: EndpointSettings) -> str:
    from discostream.builtin import builtin_profiles

    ttft = endpoint.options.get("ttft", "gpt-4o")
    profile = builtin_profiles().get(ttft)
    return f"emulated from {ttft}" + (f" ({profile.source})" if profile else "")
