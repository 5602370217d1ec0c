"""The commands of `disco`. Each parses its arguments, calls what does the work, and prints."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from discostream.errors import ConfigError, DiscoError, RequestRejected

if TYPE_CHECKING:
    from discostream.cli.experiment.design import Design
    from discostream.cli.experiment.measure import Measurements
    from discostream.cli.probe import Tally
    from discostream.config import EndpointSettings, Settings

__all__ = ["main"]

USAGE, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143
MOST_REQUESTS_PER_DAY = 1e9

app = typer.Typer(
    name="disco",
    help="A small model on this device and a big one on a server answer together.",
    epilog="Start with `disco demo`. Without a disco.toml, every command uses the embedded pair.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="The settings (default: ./disco.toml, if it is there)."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]


def main() -> None:
    """Run the command line: a user's mistake ends in one line and status 2, a failure in status 1."""
    logging.basicConfig(format="disco: %(message)s", level=logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that what is open gets closed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except (ConfigError, RequestRejected) as error:
        _die(error, USAGE)
    except DiscoError as error:
        _die(error, FAILURE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _die(error: DiscoError, status: int) -> None:
    typer.echo(f"disco: {error}", err=True)
    sys.exit(status)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"disco {version('discostream')}")
        raise typer.Exit


@app.callback()
def _disco(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(
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
    _fetch_models(settings)
    _run(show_demo, settings, scenes_for(mine), max_tokens, seed, as_json)


@app.command(
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
    from discostream.library import connect

    settings = load_settings(config)
    changed = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    settings = replace(settings, gateway=replace(settings.gateway, **changed))
    if check:
        build_app(connect(settings))
        names = ", ".join(endpoint.name for endpoint in settings.endpoint)
        typer.echo(f"The settings are good: {names} under policy {settings.policy.name}.")
        return
    _fetch_models(settings)
    with suppress(KeyboardInterrupt):
        _run(_serve_until_stopped, settings)


async def _serve_until_stopped(settings: Settings) -> None:
    """Serve until SIGTERM, by which service managers stop, or Ctrl-C; running answers are settled first."""
    import asyncio

    import anyio

    from discostream.gateway.app import serve

    with anyio.CancelScope() as stopped:
        with suppress(NotImplementedError):  # Windows has no such signal to handle
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.cancel)
        await serve(settings, task_status=_Announcement())


class _Announcement:
    """Tells the user where the gateway listens."""

    def started(self, base_url: str | None = None) -> None:
        typer.echo(f"Serving {base_url} (Ctrl-C stops it)", err=True)


@app.command(epilog="Examples: disco chat 'Why is the sky blue?' · echo 'Name three rivers.' | disco chat -")
def chat(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    config: Config = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message before it.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, max=2.0, help="How freely words are drawn; 0 takes the likeliest."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Stream one answer."""
    from discostream.config import load_settings
    from discostream.types import Message

    text = _read_stdin() if prompt == "-" else prompt
    if not text.strip():
        raise ConfigError("the prompt is empty; write what you want to ask")
    settings = load_settings(config)
    _fetch_models(settings)
    messages = [Message("system", system)] if system else []
    _run(_chat, settings, [*messages, Message("user", text)], max_tokens, temperature, as_json)


async def _chat(
    settings: Settings, messages: list[Any], max_tokens: int | None, temperature: float | None, as_json: bool
) -> None:
    from discostream.cli.screen import errors, print_answer, summary
    from discostream.library import connect

    async with connect(settings) as disco:
        answer = disco.stream(messages, max_tokens=max_tokens, temperature=temperature)
        if as_json:
            text = "".join([piece.text async for piece in answer])
            assert answer.outcome
            typer.echo(json.dumps({"text": text, "disco": answer.outcome.as_disco()}))
            return
        await print_answer(answer, disco)
        assert answer.outcome
        errors.print(summary(answer.outcome), style="dim")


@app.command(epilog="Examples: disco models · disco models smollm2-135m-instruct · disco models --json")
def models(
    fetch: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Fetch this model.")] = None,
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


@app.command(epilog="Examples: disco doctor · disco doctor --config disco.toml · disco doctor --json")
def doctor(config: Config = None, as_json: AsJson = False) -> None:
    """Check engine, models, endpoints, keys, ledger and port, and say what to fix."""
    from discostream.cli.doctor import examine
    from discostream.config import load_settings

    findings = _run(examine, load_settings(config))
    good = all(finding.good for finding in findings)
    if as_json:
        checks = [{"check": f.check, "good": f.good, "found": f.found, "fix": f.fix} for f in findings]
        typer.echo(json.dumps({"good": good, "checks": checks}))
    else:
        for finding in findings:
            typer.secho(
                f"{'ok  ' if finding.good else 'FAIL'} ", fg="green" if finding.good else "red", nl=False
            )
            typer.echo(
                f"{finding.check}: {finding.found}" + (f"\n     fix: {finding.fix}" if finding.fix else "")
            )
    if not good:
        sys.exit(FAILURE)


@app.command(
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
        report = _run(survey, settings, requests_per_day)
        page_bytes = write_page(plan_page(report), html, "--html") if html else 0
    if as_json:
        typer.echo(json.dumps(figures(report), allow_nan=False))
    else:
        show(report)
    if html:
        typer.echo(f"Wrote {html} ({page_bytes / 1e6:.1f} MB)", err=True)


@app.command(
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
    _fetch_models(settings)
    tallies: list[Tally] = []
    try:
        _run(probe_all, settings, count, tallies)
    except KeyboardInterrupt:
        return tallies, True
    return tallies, False


def _ask_to_spend(usd: float) -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError(f"--probe: may cost up to ${usd:.6f}; add --yes to spend that without being asked")
    typer.confirm(f"This may cost up to ${usd:.6f}. Go on?", err=True, abort=True)


@app.command(
    epilog="Examples: disco simulate · disco simulate --share 0.1,0.3,0.5 --policy stochastic,disco,optimal "
    "--html report.html · disco simulate --server-trace requests.csv --workload prompts.jsonl --device 80,21 "
    "--constraint device --format json"
)
def simulate(
    server_trace: Annotated[
        str, typer.Option(metavar="TRACE", help="The server: builtin:NAME, or a recorded file.")
    ] = "builtin:gpt-4o",
    workload: Annotated[
        str, typer.Option(metavar="WORKLOAD", help="The prompts: builtin:chat, or a file.")
    ] = "builtin:chat",
    device: Annotated[
        str, typer.Option(metavar="NAME|K,D", help="A known device, or its prefill and decode tokens/s.")
    ] = "xiaomi-14-qwen1.5-0.5b",
    constraint: Annotated[
        str, typer.Option(metavar="KIND", help="Which kind the share holds back: device, server or auto.")
    ] = "auto",
    policy: Annotated[
        str, typer.Option(metavar="P[,P...]", help="The policies to judge.")
    ] = "server-only,device-only,stochastic,disco,optimal",
    share: Annotated[
        str, typer.Option(metavar="B[,B...]", help="Shares of prompt tokens, from 0 to 1.")
    ] = "0.3",
    requests: Annotated[int, typer.Option(min=1, metavar="N", help="How many requests each.")] = 10_000,
    train_fraction: Annotated[
        float, typer.Option(metavar="PART", help="The part of trace and workload that plans know.")
    ] = 0.5,
    migration: Annotated[
        str, typer.Option(metavar="HOW", help="Whether answers move: on, off, or stop-then-start.")
    ] = "on",
    consumption: Annotated[
        float, typer.Option(metavar="TOKENS/S", help="How fast answers are read.")
    ] = 4.785,
    prices: Annotated[
        str, typer.Option(metavar="IN,OUT", help="The server's, in dollars per million tokens.")
    ] = "2.5,10",
    usd_per_joule: Annotated[
        float | None,
        typer.Option(
            metavar="USD", help="The exchange rate (default: one that suits the constraint)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Other splits and draws.")] = 0,
    arrivals: Annotated[
        str, typer.Option(metavar="WHEN", help="When requests come: trace, poisson:RATE or none.")
    ] = "none",
    device_slots: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="How many the device serves at a time.")
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="table, json or csv.")] = "table",
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with curves.")] = None,
) -> None:
    """Judge policies on a recorded server, without asking anybody anything."""
    from discostream.cli.simulate import as_csv, as_json, as_page, cases_of, judge_all, show
    from discostream.sim.page import require_plotly, write_page

    if form not in ("table", "json", "csv"):
        raise ConfigError(f"--format {form!r}: must be table, json or csv")
    if html:
        require_plotly("--html")
    cases = cases_of(
        policies=policy,
        shares=share,
        constraint=constraint,
        migration=migration,
        prices=prices,
        server_trace=server_trace,
        workload=workload,
        device=device,
        requests=requests,
        train_fraction=train_fraction,
        consumption_tokens_per_s=consumption,
        usd_per_joule=usd_per_joule,
        seed=seed,
        arrivals=arrivals,
        device_slots=device_slots,
    )
    judged = judge_all(cases)
    if form == "table":
        show(cases, judged)
    else:
        typer.echo((as_json if form == "json" else as_csv)(judged))
    if html:
        page_bytes = write_page(as_page(cases, judged), html, "--html")
        typer.echo(f"Wrote {html} ({page_bytes / 1e6:.1f} MB)", err=True)


@app.command(
    epilog="Examples: disco experiment · disco experiment --prompts 20 --policy disco --share 0.3 · "
    "disco experiment --server-trace requests.csv --constraint device --json"
)
def experiment(
    config: Config = None,
    server_trace: Annotated[
        str, typer.Option(metavar="TRACE", help="The server's delays: builtin:NAME, or a recorded file.")
    ] = "builtin:gpt-4o",
    policy: Annotated[
        str,
        typer.Option(metavar="P[,P...]", help="The policies to compare, besides device and server alone."),
    ] = "stochastic,disco,optimal",
    constraint: Annotated[
        str, typer.Option(metavar="KIND", help="Which kind the share holds back: device, server or auto.")
    ] = "auto",
    share: Annotated[
        float | None,
        typer.Option(metavar="B", help="The share of prompt tokens it may take, from 0 to 1."),
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="How many prompts each policy gets.")
    ] = 100,
    prompts_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own: one on each line, or JSONL.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Other prompts, delays and draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare policies on the real engine in real time, beside what the simulator says of them."""
    import numpy as np

    from discostream.cli.experiment.design import Design, chosen_policies, experiment_settings
    from discostream.cli.experiment.measure import Measurements
    from discostream.cli.experiment.prompts import made_prompts, read_prompts
    from discostream.cli.experiment.report import as_json as figures
    from discostream.cli.experiment.report import report_on
    from discostream.cli.experiment.screen import show
    from discostream.config import load_settings
    from discostream.sim.traces import read_trace

    own = prompts_file and read_prompts(prompts_file, prompts)
    asked = own or made_prompts(prompts, np.random.default_rng(seed))
    design = Design(read_trace(server_trace), asked, chosen_policies(policy), max_tokens, seed)
    settings = experiment_settings(load_settings(config), design.policies, constraint, share)
    measured = Measurements(settings)
    interrupted = _measure(design, measured)
    if measured.answers:
        report = report_on(design, measured)
        if as_json:
            typer.echo(json.dumps(figures(report)))
        else:
            show(report)
    if interrupted:
        sys.exit(INTERRUPTED)


def _measure(design: Design, measured: Measurements) -> bool:
    """Whether Ctrl-C cut an experiment short; what was measured is kept."""
    from discostream.cli.experiment.measure import measure

    _fetch_models(measured.settings)
    try:
        _run(measure, design, measured)
    except KeyboardInterrupt:
        return True
    return False


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
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {path}: cannot be read: {error}") from None
    if not any(lines):
        raise ConfigError(f"--prompts {path}: there is no prompt in it; write one on each line")
    return [line for line in lines if line]


def _fetch_models(settings: Settings) -> None:
    """Fetch the models that good settings need, with a progress bar."""
    from discostream.cli.screen import progress_bar
    from discostream.engine.catalogue import find_model, resolve_model
    from discostream.library import connect

    for name in {name for endpoint in connect(settings).endpoints.values() for name in endpoint.models}:
        if find_model(name) is None:
            with progress_bar(f"Fetching {name}") as progress:
                resolve_model(name, progress=progress)


def _run(work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    from importlib.util import find_spec

    import anyio

    return anyio.run(work, *arguments, backend_options={"use_uvloop": find_spec("uvloop") is not None})
