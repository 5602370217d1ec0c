"""The commands that judge policies: on recorded servers, and on the real engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discostream.cli.options import AsJson, Config, fetch_models, run_async
from discostream.cli.status import FAILURE, INTERRUPTED
from discostream.errors import ConfigError

if TYPE_CHECKING:
    from discostream.cli.experiment.design import Design
    from discostream.cli.experiment.measure import Measurements

__all__ = ["commands"]

commands = typer.Typer()


@commands.command(
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
        typer.Option(metavar="USD", help="The exchange rate (default: one that suits the constraint)."),
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


@commands.command(
    epilog="Examples: disco evaluate · disco evaluate --data traces --out evaluation --jobs 8 · "
    "disco evaluate --server-trace requests.csv --device 80,21 --share 0.1,0.3,0.5 --seeds 10 · "
    "disco evaluate --ray local"
)
def evaluate(
    server_trace: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACE",
            help="A server: builtin:NAME, or a recorded file; may be repeated (default: all built in).",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Take all recorded servers under this folder.")
    ] = None,
    workload: Annotated[
        str, typer.Option(metavar="WORKLOAD", help="The prompts: builtin:chat, or a file.")
    ] = "builtin:chat",
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|K,D",
            help="A known device, or its prefill and decode tokens/s; may be repeated (default: all known).",
        ),
    ] = None,
    constraint: Annotated[
        str, typer.Option(metavar="KIND", help="Which kind the shares hold back: device, server or both.")
    ] = "both",
    share: Annotated[
        str, typer.Option(metavar="B[,B...]", help="Shares of prompt tokens, from 0 to 1.")
    ] = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    policy: Annotated[
        str, typer.Option(metavar="P[,P...]", help="The policies to compare; stochastic always takes part.")
    ] = "server-only,device-only,stochastic,disco,optimal",
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often everything is split and drawn anew.")
    ] = 4,
    requests: Annotated[
        int, typer.Option(min=100, metavar="N", help="How many requests are judged in each cell.")
    ] = 4000,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the report goes; cells found there are not redone.")
    ] = Path("evaluation"),
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many workers (default: one for each core).")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Work on this Ray cluster; local starts one on this machine."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare policies on many recorded servers and devices, and write a report."""
    from discostream.cli.evaluate import as_json as figures
    from discostream.cli.evaluate import evaluate_all, show

    findings = evaluate_all(
        server_traces=server_trace or (),
        data=data,
        workload=workload,
        devices=device or (),
        constraint=constraint,
        shares=share,
        policies=policy,
        seeds=seeds,
        requests=requests,
        out=out,
        jobs=jobs,
        ray=ray,
    )
    if as_json:
        typer.echo(json.dumps(figures(findings, out)))
    else:
        show(findings, out)
    if findings.lost:
        sys.exit(FAILURE)


@commands.command(
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
    from discostream.traces.servers import read_trace

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

    fetch_models(measured.settings)
    try:
        run_async(measure, design, measured)
    except KeyboardInterrupt:
        return True
    return False
