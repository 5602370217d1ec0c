"""What is to be compared, and the settings that it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from discostream.config import (
    EndpointSettings,
    Settings,
    check_settings,
    embedded_pair,
    settings_from,
    suggest,
)
from discostream.core.plugins import policy_names
from discostream.endpoints.prices import price_of
from discostream.endpoints.registry import with_defaults
from discostream.errors import ConfigError
from discostream.traces.servers import ServerTrace
from discostream.types import Kind

__all__ = ["BASELINES", "CONSTRAINTS", "Design", "chosen_policies", "experiment_settings", "with_delays"]

BASELINES = ("device-only", "server-only")
"""Always measured: predictions rest on what they tell of each endpoint."""

CONSTRAINTS = ("auto", "device", "server")


@dataclass(frozen=True, eq=False)
class Design:
    """What is asked, of whom, and under which policies.

    Attributes:
        trace: Whose delays the server has.
        policies: In the order in which they are shown, the baselines first.
        max_tokens: The longest answer.
        seed: Fixes the server's delays, the policies' draws and the numbers that keep prompts out of caches.
    """

    trace: ServerTrace
    prompts: tuple[str, ...]
    policies: tuple[str, ...]
    max_tokens: int
    seed: int


def chosen_policies(text: str) -> tuple[str, ...]:
    """The policies of `--policy`, after the baselines.

    Raises:
        ConfigError: One is not installed.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in policy_names():
            raise ConfigError(f"--policy {name!r}: no such policy; {suggest(name, policy_names())}")
    return tuple(dict.fromkeys([*BASELINES, *names]))


def experiment_settings(
    settings: Settings, policies: Iterable[str], constraint: str, share: float | None
) -> Settings:
    """The user's device and an emulated server, under one share and no other budget.

    All of it runs on this machine, so that requests that must not leave the device do not. The server is the
    settings' emulated one where there is one, else the embedded one; it is priced as the settings' first.

    Raises:
        ConfigError: The share or the constraint is none, a hard budget could be exceeded, or the settings do
            not fit one of the policies.
    """
    if constraint not in CONSTRAINTS:
        raise ConfigError(f"--constraint {constraint!r}: must be one of {', '.join(CONSTRAINTS)}")
    if share is not None and not 0.0 <= share <= 1.0:
        raise ConfigError(f"--share {share:g}: must be from 0 to 1")
    hard = [budget.label for budget in settings.budget if budget.mode == "hard"]
    if hard:
        raise ConfigError(
            f"budget {hard[0]!r} is hard: disco experiment keeps its account apart from the ledger, so it "
            f"could exceed it; run the experiment without it"
        )
    changed = {"constraint": constraint, "share": settings.policy.share if share is None else share}
    policy = replace(settings.policy, private=False, **changed)
    ours = replace(settings, endpoint=_pair(settings.endpoint), policy=policy, budget=())
    for name in policies:
        check_settings(replace(ours, policy=replace(policy, name=name)))
    return ours


def _pair(endpoints: Iterable[EndpointSettings]) -> tuple[EndpointSettings, EndpointSettings]:
    embedded = settings_from({"endpoint": embedded_pair()}).endpoint
    ours = [*endpoints, *embedded]
    device = next(one for one in ours if one.kind is Kind.DEVICE)
    servers = [one for one in ours if one.kind is Kind.SERVER]
    emulated = next(one for one in servers if one.dialect == "emulated")
    name = emulated.name if emulated.name != device.name else f"emulated-{emulated.name}"
    return device, replace(_priced_as(emulated, servers[0]), name=name)


def _priced_as(server: EndpointSettings, other: EndpointSettings) -> EndpointSettings:
    if server is other:
        return server
    return replace(
        server,
        priced_as=other.priced_as or (other.model if price_of(other.model) else ""),
        prompt_usd_per_mtok=other.prompt_usd_per_mtok,
        completion_usd_per_mtok=other.completion_usd_per_mtok,
        cancel_stops_billing=with_defaults(other).cancel_stops_billing,
    )


def with_delays(settings: Settings, trace: ServerTrace, folder: Path) -> Settings:
    """The same with the server delayed and paced as in the trace, and with a ledger of its own.

    Args:
        settings: As `experiment_settings` makes them.
        trace: Requests that failed in it are left out.
        folder: Takes the delays and the ledger.

    Raises:
        ConfigError: All requests failed in the trace.
    """
    delays = folder / "delays.csv"
    came = trace.ttft_s[np.isfinite(trace.ttft_s)]
    if not came.size:
        raise ConfigError(f"--server-trace {trace.name}: all requests failed in it; take one with answers")
    delays.write_text("\n".join(["ttft_s", *map(str, came)]), encoding="utf-8")
    device, server = settings.endpoint
    served = {**server.options, "ttft": str(delays), "tokens_per_s": trace.streams.tokens_per_s}
    return replace(
        settings,
        endpoint=(device, replace(server, options=served)),
        ledger=replace(settings.ledger, path=str(folder / "experiment.db")),
    )
