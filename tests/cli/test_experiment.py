"""`disco experiment`: the same prompts and delays for every policy, and what the simulator says of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import disco
from worlds import PRICES, READER, a_table, a_world, fixed_luck, some_requests

from discostream.builtin import builtin_prompt_lengths
from discostream.cli.experiment.bystanders import Usage
from discostream.cli.experiment.design import (
    BASELINES,
    Design,
    chosen_policies,
    experiment_settings,
    with_delays,
)
from discostream.cli.experiment.figures import FIGURES, JUDGED, Sample
from discostream.cli.experiment.measure import Answered, Measurements
from discostream.cli.experiment.predict import predicted
from discostream.cli.experiment.prompts import CHARS_PER_TOKEN, SHORTENED, made_prompts, read_prompts
from discostream.cli.experiment.rehearsed import RehearsedEndpoint
from discostream.cli.experiment.report import report_on
from discostream.config import embedded_pair, settings_from
from discostream.core.distributions import Distribution
from discostream.core.profile import Lengths
from discostream.endpoints.registry import build_endpoint
from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.errors import ConfigError
from discostream.sim.figures import Figures, Tally
from discostream.sim.simulate import simulate
from discostream.traces.servers import ServerTrace
from discostream.traces.streams import Streams
from discostream.types import (
    Attempt,
    AttemptOutcome,
    Carrier,
    FinishReason,
    Kind,
    Message,
    Migration,
    MigrationReason,
    Outcome,
    Piece,
    Prefix,
    Request,
)

POLICIES = ["device-only", "server-only", "stochastic", "disco", "optimal"]
ANSWER = " ".join(["word"] * 8)
SCRIPTED = f"""
[[endpoint]]
name = "laptop"
kind = "device"
dialect = "scripted"
answer = "{ANSWER}"
ttft_s = 0.04
tbt_s = 0.002
prefill_joules_per_token = 0.5
decode_joules_per_token = 1.0

[[endpoint]]
name = "cloud"
kind = "server"
dialect = "emulated"
around = "scripted"
inner = {{ answer = "{ANSWER}" }}
prompt_usd_per_mtok = 2.0
completion_usd_per_mtok = 8.0
"""
QUICK_S, SLOW_S = 0.01, 0.25


def furnish(folder):
    """Settings that need no model, and a server that is either quick or slow."""
    (folder / "disco.toml").write_text(SCRIPTED, encoding="utf-8")
    delays = ["ttft_s", *map(str, [QUICK_S] * 6 + [SLOW_S] * 4)]
    (folder / "trace.csv").write_text("\n".join(delays), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    """Where the command finds them."""
    return furnish(tmp_path)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What one whole experiment told, with five prompts for each of five policies."""
    folder = furnish(tmp_path_factory.mktemp("experiment"))
    done = experiment(folder, "--prompts", "5", "--seed", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert (
        "5 prompts under each of 5 policies, one answer after another: this takes about 1 minute."
        in done.stderr
    )
    return json.loads(done.stdout)


def experiment(folder, *options, **environ):
    return disco("experiment", "--server-trace", "trace.csv", *options, folder=folder, **environ)


def by_policy(told, policy):
    return [answer for answer in told["answers"] if answer["policy"] == policy]


def server_attempts(answer):
    return [each for each in answer["disco"]["attempts"] if each["kind"] == "server" and each["ttft_s"]]


class TestTheCommand:
    """On scripted endpoints, which take as long as they are told to."""

    def test_measured_and_predicted_have_the_simulators_figures(self, told):
        """Five policies, five prompts each; what is measured and what is predicted have the same keys."""
        assert [row["policy"] for row in told["measured"]] == POLICIES
        assert [row["policy"] for row in told["predicted"]] == POLICIES
        for row in (*told["measured"], *told["predicted"]):
            assert tuple(row) == Figures.__struct_fields__
            assert (row["n"], row["constraint"], row["share"]) == (5, "server", 0.5)
            assert (row["device"], row["server_trace"]) == ("laptop", "trace")
        assert [row["policy"] for row in told["spans"]] == POLICIES
        assert set(told["spans"][0]) == {"policy", *JUDGED}
        assert (told["interrupted"], told["seed"], told["prompts"]) == (False, 3, 5)

    def test_all_policies_meet_the_same_server(self, told):
        """A prompt's server is quick under all policies that hear it, or slow under all."""
        slow = {
            (each["prompt"], each["policy"]): server_attempts(each)[0]["ttft_s"] > 0.9 * SLOW_S
            for each in told["answers"]
            if server_attempts(each)
        }
        alone = {prompt: was for (prompt, policy), was in slow.items() if policy == "server-only"}
        assert set(alone.values()) == {True, False}
        raced = [(prompt, was) for (prompt, policy), was in slow.items() if policy not in BASELINES]
        assert len(raced) >= 3
        assert all(alone[prompt] is was for prompt, was in raced)

    def test_policies_take_turns(self, told):
        """Every policy gets every prompt, and comes first, second, third, fourth and last once."""
        for policy in POLICIES:
            answers = by_policy(told, policy)
            assert [answer["prompt"] for answer in answers] == list(range(5))
            assert sorted(answer["turn"] for answer in answers) == list(range(5))

    def test_the_baselines_are_always_measured(self, folder):
        """Whatever is compared, predictions rest on both endpoints alone."""
        told = json.loads(experiment(folder, "--prompts", "1", "--policy", "disco", "--json").stdout)
        assert [row["policy"] for row in told["measured"]] == ["device-only", "server-only", "disco"]

    @pytest.mark.parametrize(
        ("environ", "usd"), [({}, 2 * 8e-6 / 0.5), ({"DISCO_COST__USD_PER_JOULE": "0.1"}, 0.1)]
    )
    def test_a_device_that_is_held_back_is_the_dearer_one(self, folder, environ, usd):
        """Without a rate in the settings a joule is worth so much that a share of the device makes sense."""
        options = ("--prompts", "1", "--policy", "disco", "--constraint", "device", "--json")
        told = json.loads(experiment(folder, *options, **environ).stdout)
        assert told["usd_per_joule"] == pytest.approx(usd)
        assert {row["constraint"] for row in told["measured"]} == {"device"}

    def test_the_table_pairs_every_policy(self, folder):
        """People get three lines for each policy in each table, uncoloured where there is no terminal."""
        done = experiment(folder, "--prompts", "2", "--policy", "stochastic,disco")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        for word in ("measured", "predicted", "difference"):
            assert sum(line[13:].startswith(word) for line in lines) == 12
        assert "disco against stochastic: mean TTFT" in done.stdout
        assert "\x1b" not in done.stdout
        assert "Predictions rest on what device-only and server-only showed." in done.stdout

    def test_ones_own_prompts_are_asked(self, folder):
        """Lines of a file, and no more of them than wanted."""
        (folder / "mine.txt").write_text("One?\n\nTwo, if you please?\nThree?\n", encoding="utf-8")
        options = ("--prompts", "2", "--prompts-file", "mine.txt", "--policy", "disco", "--json")
        told = json.loads(experiment(folder, *options).stdout)
        lengths = [answer["prompt_tokens"] for answer in by_policy(told, "disco")]
        assert lengths[1] - lengths[0] == 3

    def test_ctrl_c_shows_what_there_is(self, folder):
        """Interrupted, it prints the answers so far as one object, and ends with status 130."""
        process = subprocess.Popen(
            [sys.executable, "-m", "discostream", "experiment", "--json", "--prompts", "500"],
            cwd=folder,
            env={**os.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert any("Answering" in line for line in process.stderr)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(3)
            process.send_signal(signal.SIGINT)
            printed, complaint = process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 130
        told = json.loads(printed)
        assert told["interrupted"]
        rounds = {row["n"] for row in (*told["measured"], *told["predicted"])}
        assert rounds == {len(told["answers"]) // 5}
        assert "Traceback" not in complaint


MISTAKES = [
    (["--policy", "dicso"], "--policy 'dicso': no such policy; did you mean 'disco'?"),
    (["--policy", "disco,"], "--policy '': no such policy; there are: "),
    (["--policy", "offsets"], "policy.offsets: must name at least one endpoint"),
    (["--share", "1.5"], "--share 1.5: must be from 0 to 1"),
    (["--share", "nan"], "--share nan: must be from 0 to 1"),
    (["--constraint", "phone"], "--constraint 'phone': must be one of auto, device, server"),
    (["--server-trace", "gone.csv"], "'gone.csv': there is no such file"),
    (["--server-trace", "builtin:gpt4o"], "did you mean"),
    (["--server-trace", "disco.toml"], "disco.toml"),
    (["--prompts-file", "gone.txt"], "--prompts-file gone.txt: cannot be read: No such file"),
    (
        ["--prompts-file", "empty.txt"],
        "--prompts-file empty.txt: there is no prompt in it; write one on each",
    ),
    (
        ["--prompts-file", "odd.jsonl"],
        '--prompts-file odd.jsonl: line 2: must be an object with a text as its "p',
    ),
]


@pytest.mark.parametrize(("options", "told"), MISTAKES, ids=[" ".join(options) for options, _ in MISTAKES])
def test_mistakes_are_refused(options, told, folder):
    """One line with field, value and fix, status 2, and nothing is started."""
    (folder / "empty.txt").write_text(" \n\n", encoding="utf-8")
    (folder / "odd.jsonl").write_text('{"prompt": "Why?"}\n{"question": "Why?"}\n', encoding="utf-8")
    done = experiment(folder, *options)
    (complaint,) = done.stderr.strip().splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert told in complaint


def test_numbers_out_of_range_are_refused(folder):
    """No prompts, no tokens: status 2."""
    for options in (["--prompts", "0"], ["--max-tokens", "0"], ["--seed", "-1"]):
        assert experiment(folder, *options).returncode == 2


class TestThePair:
    """What is taken of the settings."""

    def test_the_server_is_emulated_at_the_real_ones_prices(self):
        """A paid server is not asked: the embedded one answers in its place, priced as the paid one."""
        tree = {"name": "cloud", "kind": "server", "dialect": "openai", "base_url": "http://127.0.0.1:9/v1"}
        prices = {"prompt_usd_per_mtok": 3.0, "completion_usd_per_mtok": 15.0}
        settings = settings_from({"endpoint": [{**tree, **prices}]})
        device, server = experiment_settings(settings, POLICIES, "auto", None).endpoint
        assert (device.name, server.name, server.dialect) == ("device", "server", "emulated")
        assert (server.prompt_usd_per_mtok, server.completion_usd_per_mtok) == (3.0, 15.0)

    def test_soft_budgets_and_privacy_are_left_aside_and_hard_ones_refused(self):
        """Nothing leaves the machine, and only the share is compared; a hard budget could be broken."""
        budget = {"joules": 5.0, "per": "day"}
        ours = {"endpoint": embedded_pair(), "policy": {"private": True}, "budget": [budget]}
        settings = experiment_settings(settings_from(ours), POLICIES, "device", 0.25)
        assert (settings.budget, settings.policy.private) == ((), False)
        assert (settings.policy.constraint, settings.policy.share) == ("device", 0.25)
        hard = settings_from({**ours, "budget": [{**budget, "mode": "hard"}]})
        with pytest.raises(ConfigError, match="is hard: disco experiment keeps its account apart"):
            experiment_settings(hard, POLICIES, "auto", None)

    def test_the_server_has_the_delays_and_the_pace_of_the_trace(self, tmp_path):
        """Whatever file a trace came from; requests that failed in it are left out."""
        delays = np.array([0.25, np.inf, 0.5, 0.75])
        failed_after_s = np.where(np.isinf(delays), 3.0, np.inf)
        trace = ServerTrace("recorded", delays, failed_after_s, Streams.steady(40.0))
        settings = experiment_settings(settings_from({"endpoint": embedded_pair()}), POLICIES, "auto", None)
        settings = with_delays(settings, trace, tmp_path)
        _, server = settings.endpoint
        assert server.options["tokens_per_s"] == 40.0
        assert Path(server.options["ttft"]).read_text(encoding="utf-8").split() == [
            "ttft_s",
            "0.25",
            "0.5",
            "0.75",
        ]
        assert Path(settings.ledger.path).parent == tmp_path
        build_endpoint(server)
        failing = replace(trace, ttft_s=np.full(4, np.inf))
        with pytest.raises(ConfigError, match="all requests failed in it"):
            with_delays(settings, failing, tmp_path)


@pytest.mark.anyio
async def test_a_rehearsed_answer_is_given_again_at_no_cost():
    """The same question gets the same events and starts nothing; all else goes to who really generates."""

    async def events_of(question, prefix=Prefix()):  # noqa: B008 - frozen
        request = Request(messages=(Message("user", question),), arrived_at=0.0, request_id="")
        return [event async for event in rehearsed.generate(request, prefix)]

    inner = ScriptedEndpoint.of("server", Kind.SERVER, answer="one two three")
    rehearsed = RehearsedEndpoint(inner)
    await rehearsed.rehearse(
        Request(messages=(Message("system", "1"), Message("user", "Why?")), arrived_at=0.0, request_id="")
    )
    first, second = await events_of("Why?"), await events_of("Why?")
    assert [event.text for event in first if isinstance(event, Piece)] == ["one", " two", " three"]
    assert first == second
    assert inner.started == 1
    assert len(await events_of("How?")) == len(first)
    (*_, rest, _) = await events_of("Why?", Prefix("one two"))
    assert rest.text == " three"
    assert inner.started == 3
    assert rehearsed.continues == inner.continues
    assert rehearsed.vocabulary == inner.vocabulary


class TestPrompts:
    """Those that are made."""

    def test_they_are_as_spread_as_on_a_service(self):
        """Every tenth of them is as long as the built-in table says, divided by 16, within a line."""
        lengths = np.sort([len(prompt) for prompt in made_prompts(200, np.random.default_rng(3))])
        wanted = builtin_prompt_lengths().quantile((np.arange(200) + 0.5) / 200) * CHARS_PER_TOKEN / SHORTENED
        longer = wanted > 200
        assert np.all((lengths <= wanted)[longer])
        assert np.all((lengths > wanted - 100)[longer])
        assert lengths[0] < 40

    def test_a_seed_makes_them_again(self):
        """The same seed makes the same prompts, another one others; hardly any occurs twice."""
        first, again, other = (made_prompts(50, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first == again != other
        tasks = [prompt for prompt in first if "\n" in prompt]
        assert len(set(tasks)) >= 0.95 * len(tasks)

    def test_json_lines_may_hold_line_ends(self, tmp_path):
        """A `.jsonl` file has a prompt in each object, whatever else is in it."""
        path = tmp_path / "mine.jsonl"
        path.write_text('{"prompt": "a\\nb\u2028c", "id": 1}\n\n{"prompt": "d"}\n', encoding="utf-8")
        assert read_prompts(path, 10) == ("a\nb\u2028c", "d")


def outcome_of(answers, index):
    """A simulated answer as the live path would settle it."""
    endpoints = answers.world.known.endpoints
    attempts = [
        Attempt(
            endpoint=one.name,
            kind=one.kind,
            start_offset_s=0.0,
            ttft_s=None,
            prompt_tokens=int(answers.read_tokens[index, column]),
            completion_tokens=int(answers.wrote_tokens[index, column]),
            usd=one.prices.usd(answers.read_tokens[index, column], answers.wrote_tokens[index, column]),
            joules=one.energy.joules(
                answers.read_tokens[index, column] - answers.cached_tokens[index, column],
                answers.wrote_tokens[index, column],
            ),
            outcome=AttemptOutcome.WON,
        )
        for column, one in enumerate(endpoints)
    ]
    move = Migration(
        source="a",
        target="b",
        at_token=int(answers.seam[index]),
        at_char=0,
        reason=MigrationReason.COST,
        gap_s=0.0,
        by=Carrier.TOKENS,
    )
    delivered_s = answers.delivered_s(index)
    return Outcome(
        request_id=str(index),
        policy="test",
        winner=endpoints[answers.source[index]].name if delivered_s.size else None,
        ttft_s=float(delivered_s[0]) if delivered_s.size else None,
        finish_reason=FinishReason.LENGTH,
        prompt_chars=4 * int(answers.requests.prompt_tokens[index]),
        prompt_tokens=int(answers.requests.prompt_tokens[index]),
        completion_tokens=int(answers.delivered_tokens[index]),
        attempts=tuple(attempts),
        migrations=(move,) if answers.moved[index] else (),
        delivered_s=tuple(delivered_s.tolist()),
    )


def simulated_answers(usd_per_joule, *, count=300, failures=0.0):
    """Races and moves of many kinds: some unnoticed, some noticed, some given up, some never answered."""
    rng = np.random.default_rng(5)
    bursts = [np.cumsum([0.0, *rng.exponential(0.08, 80)]) for _ in range(20)]
    world = a_world(
        usd_per_joule=usd_per_joule,
        server=Streams.recorded(bursts),
        believed_server_s=0.3,
        device_tokens_per_s=12.0,
    )
    requests = some_requests(rng.integers(20, 200, count), rng.integers(1, 120, count))
    ttft_s = rng.exponential(0.8, (3, count))
    failed = rng.random((3, count)) < failures
    luck = {
        "server": fixed_luck(
            np.where(failed, np.inf, ttft_s), np.where(failed, 0.0, np.inf), recordings=20, count=count
        ),
        "device": fixed_luck(
            np.where(failed[:, ::-1] & failed, np.inf, 0.1 * ttft_s),
            np.where(failed[:, ::-1] & failed, 0.0, np.inf),
            count=count,
        ),
    }
    return simulate(world, a_table(0.4, 0.0), requests, luck)


@pytest.mark.parametrize(("usd_per_joule", "failures"), [(1e-7, 0.0), (1e-3, 0.0), (1e-3, 0.5)])
def test_measured_figures_mean_what_the_simulators_mean(usd_per_joule, failures):
    """Simulated answers, settled one by one as if they were real, come to the simulator's own figures."""
    answers = simulated_answers(usd_per_joule, failures=failures)
    assert answers.moved.any()
    assert bool((answers.delivered_tokens == 0).any()) == bool(failures)
    told = Tally(Kind.DEVICE).add(answers).figures(policy="", share=0.5, device="", server_trace="")
    outcomes = [outcome_of(answers, index) for index in range(len(answers.requests))]
    sample = Sample.of(outcomes, Kind.DEVICE, usd_per_joule, READER)
    for name, figure in FIGURES.items():
        assert figure(sample) == pytest.approx(getattr(told, name), rel=1e-9, abs=1e-12), name


def test_figures_are_those_of_the_simulator():
    """Every figure is measured, and nothing else."""
    described = {"policy", "constraint", "share", "device", "server_trace", "n"}
    assert set(FIGURES) == set(Figures.__struct_fields__) - described
    assert set(JUDGED) < set(FIGURES)


PROMPTS = np.array([20, 50, 80, 110, 140, 170, 200, 230])
SERVER_S = np.array([0.5, 0.9, 0.2, 4.0, 0.7, 1.1, 0.3, 2.5])


def alone(endpoint, kind, prompt_tokens, ttft_s, answer=200):
    delivered_s = ttft_s + 0.02 * np.arange(answer)
    attempt = Attempt(
        endpoint=endpoint,
        kind=kind,
        start_offset_s=0.0,
        ttft_s=float(ttft_s),
        prompt_tokens=int(prompt_tokens),
        completion_tokens=answer,
        usd=0.0,
        joules=0.0,
        outcome=AttemptOutcome.WON,
        cached_tokens=0,
    )
    return Outcome(
        request_id="",
        policy=f"{kind}-only",
        winner=endpoint,
        ttft_s=float(ttft_s),
        finish_reason=FinishReason.LENGTH,
        prompt_chars=4 * int(prompt_tokens),
        prompt_tokens=int(prompt_tokens),
        completion_tokens=answer,
        attempts=(attempt,),
        migrations=(),
        delivered_s=tuple(delivered_s.tolist()),
    )


def an_experiment(share, *, policies="disco", enabled=True, times=1):
    """Both endpoints were measured alone: a device of 10 ms a token and 0.1 s, and a server of known delays.

    The policies are to have answered as the server alone, of which predictions take the lengths of answers.
    """
    prompts, server_s = np.tile(PROMPTS, times), np.tile(SERVER_S, times)
    trace = ServerTrace("known", server_s, np.full(server_s.size, np.inf), Streams.steady(50.0))
    design = Design(trace, ("?",) * prompts.size, chosen_policies(policies), 256, 0)
    settings = settings_from(
        {
            "endpoint": embedded_pair(),
            "policy": {"share": share, "constraint": "server"},
            "cost": {"usd_per_joule": 1e-9},
            "migration": {"enabled": enabled},
        }
    )
    answers = []
    for number, (prompt, ttft_s) in enumerate(zip(prompts, server_s, strict=True)):
        for turn, policy in enumerate(design.policies):
            on_server = policy != "device-only"
            who = ("server", Kind.SERVER) if on_server else ("device", Kind.DEVICE)
            outcome = alone(*who, prompt, ttft_s if on_server else 0.1 + 0.01 * prompt)
            answers.append(Answered(policy, number, turn, 12.0 * number, outcome))
    known = a_world(usd_per_joule=1e-9, startup_s=0.1).known
    known = replace(known, prompt_tokens=Lengths(Distribution.of_samples(prompts)))
    return design, Measurements(settings, answers, known)


def foretold(policy, design, measured, what):
    """One figure of every predicted answer."""
    return np.concatenate(
        [np.atleast_1d(getattr(each, what)) for each in predicted(policy, measured, design)]
    )


class TestPredictions:
    """By closed forms."""

    def test_alone_an_endpoint_does_what_it_did(self):
        """The device is on its line and the server as slow as it was, and neither uses the other."""
        experiment = an_experiment(0.5)
        assert foretold("device-only", *experiment, "ttft_s") == pytest.approx(0.1 + 0.01 * PROMPTS)
        assert foretold("server-only", *experiment, "ttft_s").tolist() == SERVER_S.tolist()
        assert not any(foretold(policy, *experiment, "moved").any() for policy in BASELINES)
        usd = [PRICES.usd(prompt, 200) for prompt in PROMPTS]
        assert foretold("server-only", *experiment, "usd") == pytest.approx(usd)

    def test_everybody_races_under_a_share_of_one(self):
        """Each request is as quick as the quicker of the two was alone."""
        quicker = np.minimum(0.1 + 0.01 * PROMPTS, SERVER_S)
        assert foretold("disco", *an_experiment(1.0), "ttft_s") == pytest.approx(quicker)

    def test_a_share_of_nothing_is_the_device_alone(self):
        """Nothing is spent on the server."""
        experiment = an_experiment(0.0)
        assert foretold("disco", *experiment, "ttft_s") == pytest.approx(0.1 + 0.01 * PROMPTS)
        assert not foretold("disco", *experiment, "usd").any()

    def test_answers_move_only_where_the_settings_let_them(self):
        """Where a joule costs next to nothing the server's answers move to the device, unless told not to."""
        for enabled in (True, False):
            assert foretold("disco", *an_experiment(1.0, enabled=enabled), "moved").any() == enabled

    @pytest.mark.parametrize("policy", ["stochastic", "disco"])
    def test_plans_follow_what_was_spent(self, policy):
        """As on the live path the share is kept: what chance or a long prompt overspends is paid back."""
        design, measured = an_experiment(0.4, policies=policy, times=16)
        read_tokens = np.vstack([each.read_tokens for each in predicted(policy, measured, design)])
        share = read_tokens[:, 1].sum() / (16 * PROMPTS.sum())
        assert share == pytest.approx(0.4, abs=0.03)

    def test_only_whole_rounds_are_compared(self):
        """What some policies have not answered yet, after an interruption, counts for none of them."""
        design, measured = an_experiment(1.0)
        del measured.answers[-4:]
        report = report_on(design, measured)
        assert (report.rounds, report.interrupted) == (PROMPTS.size - 2, True)
        assert all(row.measured.n == row.predicted.n == PROMPTS.size - 2 for row in report.rows)
        del measured.answers[2:]
        assert report_on(design, measured).rows == ()


def test_a_surprise_is_what_chance_does_not_explain():
    """A prediction within the span of what was measured is none; one outside of it is, by name."""
    design, measured = an_experiment(1.0)
    (*_, row) = report_on(design, measured).rows
    assert row.measured.usd == 0.0 < row.predicted.usd
    assert "usd" in row.surprises
    assert row.measured.p50_ttft_s != row.predicted.p50_ttft_s
    assert "p50_ttft_s" not in row.surprises
    assert all(low <= getattr(row.measured, name) <= high for name, (low, high) in row.spans.items())


def test_other_programs_are_seen():
    """Of 20 seconds of all cores 8 were idle and 7 ours, so others took a quarter."""
    before = Usage(total_s=100.0, idle_s=50.0, ours_s=10.0)
    assert Usage(total_s=120.0, idle_s=58.0, ours_s=17.0).taken_by_others(before) == 0.25
    assert before.taken_by_others(before) == 0.0


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.usefixtures("smollm2_path")
def test_the_real_engine(tmp_path):
    """Real answers by five policies: none finds another's prompt in a cache, and all are compared."""
    done = disco("experiment", "--prompts", "2", "--max-tokens", "8", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [row["policy"] for row in told["measured"]] == POLICIES
    assert all(row["n"] == 2 and row["unanswered_share"] == 0 for row in told["measured"])
    device, server = told["measured"][:2]
    assert (device["usd"], server["joules"]) == (0.0, 0.0)
    assert device["joules"] > 0 < server["usd"]
    template = 8  # tokens that all conversations begin with, and digits that two may share
    for answer in told["answers"]:
        for attempt in answer["disco"]["attempts"]:
            if attempt["kind"] == "device" and attempt["ttft_s"] and attempt["outcome"] != "migrated_to":
                assert (answer["cached_tokens"][attempt["endpoint"]] or 0) <= template
    for prompt in range(2):
        (tokens,) = {each["prompt_tokens"] for each in told["answers"] if each["prompt"] == prompt}
        assert tokens > 30
