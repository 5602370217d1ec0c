"""The commands for every day. Each parses its arguments, calls what does the work, and prints."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from discostream.cli.options import AsJson, Config, fetch_models, run_async
from discostream.cli.status import FAILURE, INTERRUPTED
from discostream.errors import ConfigError, DiscoError

if TYPE_CHECKING:
    from discostream.cli.abilities import Probed
    from discostream.cli.probe import Tally
    from discostream.config import EndpointSettings, Settings
    from discostream.telemetry.export import Observe

__all__ = ["commands"]

MOST_REQUESTS_PER_DAY = 1e9

commands = typer.Typer()


@commands.command(
    epilog="Examples: disco demo · disco demo --prompt 'Why do cats purr?' · disco demo --json --seed 7"
)
def demo(
    config: Config = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Your own prompt; may be repeated.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own prompts, one on each line.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Other delays of the emulated server.")] = 11,
    as_json: AsJson = False,
) -> None:
    """Stream real prompts through device and server together, and compare with either alone."""
    from discostream.cli.demo import demo_settings, scenes_for, show_demo
    from discostream.config import load_settings

    mine = [*(prompt or []), *(_lines(prompts) if prompts else [])]
    if not all(text.strip() for text in mine):
        raise ConfigError("--prompt: is empty; write what you want to ask")
    settings = demo_settings(load_settings(config))
    fetch_models(settings)
    run_async(show_demo, settings, scenes_for(mine), max_tokens, seed, as_json)


@commands.command(
    epilog="Examples: disco serve · disco serve --config disco.toml --check · disco serve --port 9000"
)
def serve(
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Listen here instead of where the settings say.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the settings and exit.")] = False,
) -> None:
    """Serve the OpenAI-compatible gateway."""
    from msgspec.structs import replace

    from discostream.config import load_settings
    from discostream.gateway.app import build_app
    from discostream.gateway.limits import allow_many_connections
    from discostream.library import connect
    from discostream.telemetry.export import exporting

    settings = load_settings(config)
    changed = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    settings = replace(settings, gateway=replace(settings.gateway, **changed))
    if check:
        build_app(connect(settings))
        names = ", ".join(endpoint.name for endpoint in settings.endpoint)
        typer.echo(f"The settings are good: {names} under policy {settings.policy.name}.")
        return
    fetch_models(settings)
    allow_many_connections()
    with suppress(KeyboardInterrupt), exporting() as observe:
        run_async(_serve_until_stopped, settings, observe)


async def _serve_until_stopped(settings: Settings, observe: Observe) -> None:
    """Serve until SIGTERM, by which service managers stop, or Ctrl-C; running answers are settled first."""
    import asyncio

    import anyio

    from discostream.gateway.app import serve

    with anyio.CancelScope() as stopped:
        with suppress(NotImplementedError):  # Windows has no signals to handle
            for ending in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(ending) is not signal.SIG_IGN:  # as a shell has Ctrl-C in the background
                    asyncio.get_running_loop().add_signal_handler(ending, stopped.cancel)
        await serve(settings, observe=observe, task_status=_Announcement())


class _Announcement:
    """Tells the user where the gateway listens."""

    def started(self, base_url: str | None = None) -> None:
        gc.freeze()  # what is there now stays; the collector would look at it every few dozen requests
        typer.echo(f"Serving {base_url} (Ctrl-C stops it)", err=True)


@commands.command(
    epilog="Examples: disco chat 'Why is the sky blue?' · echo 'Name three rivers.' | disco chat -"
)
def chat(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from standard input.")
    ],
    config: Config = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message before it.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, max=2.0, help="How freely words are drawn; 0 takes the likeliest."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Ask disco, disco-private, disco-fast, disco-cheap, or one endpoint by name."
        ),
    ] = "disco",
    as_json: AsJson = False,
) -> None:
    """Stream one answer."""
    from discostream.config import load_settings
    from discostream.types import Message

    text = _read_stdin() if prompt == "-" else prompt
    if not text.strip():
        raise ConfigError("the prompt is empty; write what you want to ask")
    settings = load_settings(config)
    fetch_models(settings)
    messages = [Message("system", system)] if system else []
    wishes = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    run_async(_chat, settings, [*messages, Message("user", text)], wishes, as_json)


async def _chat(settings: Settings, messages: list[Any], wishes: dict[str, Any], as_json: bool) -> None:
    from discostream.cli.screen import errors, print_answer, summary
    from discostream.library import connect

    async with connect(settings) as disco:
        answer = disco.stream(messages, **wishes)
        if as_json:
            text = "".join([piece.text async for piece in answer])
            assert answer.outcome
            typer.echo(json.dumps({"text": text, "disco": answer.outcome.as_disco()}))
            return
        await print_answer(answer, disco)
        assert answer.outcome
        errors.print(summary(answer.outcome), style="dim")


@commands.command(epilog="Examples: disco models · disco models smollm2-135m-instruct · disco models --json")
def models(
    fetch: Annotated[str | None, typer.Argument(metavar="NAME", help="Fetch this model.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the models that the embedded engine knows by name, or fetch one."""
    from discostream.cli.screen import progress_bar
    from discostream.engine.catalogue import CATALOGUE, resolve_model

    if fetch is not None:
        with progress_bar(f"Fetching {fetch}") as progress:
            path = resolve_model(fetch, progress=progress)
        typer.echo(json.dumps({"name": fetch, "path": str(path)}) if as_json else str(path))
        return
    if as_json:
        rows = [{"name": name, "path": _path_text(name), "bytes": CATALOGUE[name].size} for name in CATALOGUE]
        typer.echo(json.dumps({"models": rows}))
        return
    for model in CATALOGUE.values():
        typer.echo(f"{model.name}  {model.size / 1e6:.0f} MB  {model.licence}  {model.description}")
        typer.echo(f"  {_path_text(model.name) or f'not here yet; fetch it with: disco models {model.name}'}")


@commands.command(
    epilog="Examples: disco doctor · disco doctor --config disco.toml · disco doctor --probe --json"
)
def doctor(
    config: Config = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also ask endpoints what they can do, at their own price.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check engine, models, endpoints, keys, ledger and port, and say what to fix."""
    from discostream.cli.doctor import examine
    from discostream.config import load_settings

    settings = load_settings(config)
    findings = run_async(examine, settings)
    probed = _probed(settings) if probe else []
    good = all(each.good for each in [*findings, *probed])
    if as_json:
        checks = [{"check": f.check, "good": f.good, "found": f.found, "fix": f.fix} for f in findings]
        probes = {"probes": [asdict(each) for each in probed]} if probe else {}
        typer.echo(json.dumps({"good": good, "checks": checks, **probes}))
    else:
        from discostream.cli.screen import output

        for finding in findings:
            word, colour = ("ok  ", "green") if finding.good else ("FAIL", "red")
            output.print(word, style=colour, end=" ")
            output.print(
                f"{finding.check}: {finding.found}" + (f"\n     fix: {finding.fix}" if finding.fix else "")
            )
        if probed:
            from discostream.cli.abilities import show_probed

            show_probed(probed)
    if not good:
        sys.exit(FAILURE)


def _probed(settings: Settings) -> list[Probed]:
    """Ask every endpoint, one after the other, what it can do; what that may cost goes before it."""
    from discostream.cli.abilities import probe, what_probes_take

    probed = []
    for endpoint in settings.endpoint:
        with suppress(DiscoError):
            typer.echo(f"Probing {run_async(what_probes_take, endpoint)}", err=True)
        probed.append(run_async(probe, endpoint))
    return probed


@commands.command(
    epilog="Examples: disco plan · disco plan --share 0.3 · disco plan --policy optimal --json · "
    "disco plan --html plan.html"
)
def plan(
    config: Config = None,
    share: Annotated[
        float | None, typer.Option(metavar="B", help="Plan with this policy.share, from 0 to 1.")
    ] = None,
    policy: Annotated[str | None, typer.Option(metavar="NAME", help="Plan with this policy.name.")] = None,
    requests_per_day: Annotated[
        float | None,
        typer.Option(metavar="N", help="Plan for so many requests (default: as many as there were lately)."),
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with all figures.")
    ] = None,
) -> None:
    """Show what the policy would do, and what others would do in its place. Starts and sends nothing."""
    from discostream.cli.plan.account import as_json as figures
    from discostream.cli.plan.page import plan_page
    from discostream.cli.plan.screen import patience, show
    from discostream.cli.plan.survey import survey
    from discostream.config import load_settings
    from discostream.sim.page import require_plotly, write_page

    if requests_per_day is not None and not 0 < requests_per_day <= MOST_REQUESTS_PER_DAY:
        raise ConfigError(f"--requests-per-day {requests_per_day:g}: must be above 0, and at most 1e9")
    overrides = {"DISCO_POLICY__SHARE": share, "DISCO_POLICY__NAME": policy}
    given = {name: str(value) for name, value in overrides.items() if value is not None}
    settings = load_settings(config, {**os.environ, **given})
    if html:
        require_plotly("--html")
    with patience("Comparing policies …"):
        report = run_async(survey, settings, requests_per_day)
        page_bytes = write_page(plan_page(report), html, "--html") if html else 0
    if as_json:
        typer.echo(json.dumps(figures(report), allow_nan=False))
    else:
        show(report)
    if html:
        typer.echo(f"Wrote {html} ({page_bytes / 1e6:.1f} MB)", err=True)


@commands.command(
    epilog="Examples: disco profile · disco profile cloud · disco profile --probe 20 · "
    "disco profile cloud --probe 50 --yes --json"
)
def profile(
    endpoint: Annotated[str | None, typer.Argument(metavar="ENDPOINT", help="Only this one.")] = None,
    config: Config = None,
    probe: Annotated[
        int | None,
        typer.Option(min=1, max=1000, metavar="N", help="First send N small requests to each endpoint."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Spend what that may cost without being asked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how fast each endpoint is known to be, or measure it."""
    from discostream.cli.profile import as_json as figures
    from discostream.cli.profile import chosen_from, portray, show
    from discostream.config import load_settings

    settings = load_settings(config)
    chosen = chosen_from(settings, endpoint)
    tallies, interrupted = _probe(settings, chosen, probe, yes) if probe else ([], False)
    portraits = portray(settings, chosen)
    if as_json:
        told = {"endpoints": [*map(figures, portraits)], "probes": [tally.as_json() for tally in tallies]}
        typer.echo(json.dumps(told))
    else:
        show(portraits, settings)
    for tally in tallies:
        typer.echo(str(tally), err=True)
    if interrupted:
        sys.exit(INTERRUPTED)
    if any(not tally.answered for tally in tallies):
        sys.exit(FAILURE)


def _probe(
    settings: Settings, chosen: Sequence[EndpointSettings], count: int, yes: bool
) -> tuple[list[Tally], bool]:
    """What came of probing these endpoints, and whether Ctrl-C cut it short; what was measured is kept."""
    from discostream.cli.probe import alone, bound_of, probe_all
    from discostream.endpoints.registry import build_endpoint

    usd = sum(bound_of(build_endpoint(endpoint), count).usd for endpoint in chosen)
    if usd and not yes:
        _ask_to_spend(usd)
    settings = alone(settings, chosen)
    fetch_models(settings)
    tallies: list[Tally] = []
    try:
        run_async(probe_all, settings, count, tallies)
    except KeyboardInterrupt:
        return tallies, True
    return tallies, False


def _ask_to_spend(usd: float) -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError(f"--probe: may cost up to ${usd:.6f}; add --yes to spend that without being asked")
    typer.confirm(f"This may cost up to ${usd:.6f}. Go on?", err=True, abort=True)


def _read_stdin() -> str:
    if sys.stdin is None:
        raise ConfigError("standard input: is closed")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise ConfigError("standard input: is not UTF-8 text") from None


def _path_text(name: str) -> str | None:
    from discostream.engine.catalogue import find_model

    path = find_model(name)
    return str(path) if path else None


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise ConfigError(f"--prompts {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--prompts {path}: is not UTF-8 text; save it as UTF-8") from None
    if not any(lines):
        raise ConfigError(f"--prompts {path}: there is no prompt in it; write one on each line")
    return [line for line in lines if line]
