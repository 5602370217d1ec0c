"""The command line: what it prints, and how it says no."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import disco, disco_anew, disco_serve, on_a_terminal, write_scripted_pair

from discostream.cli import main
from discostream.ledger.queries import totals

in_a_shell = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


def disco_in_a_shell(command, folder):
    """Run a command whose streams the shell redirects."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m discostream {command}', sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def complaint(done) -> str:
    """The one line on stderr of a command that refused."""
    (line,) = done.stderr.strip().splitlines()
    assert done.stdout == ""
    return line


@pytest.mark.parametrize(
    "command", [[], ["demo"], ["serve"], ["chat"], ["models"], ["doctor"], ["requests"], ["top"]]
)
def test_help_shows_examples(command):
    """Every command explains itself."""
    done = disco(*command, "--help")
    assert done.returncode == 0
    assert "disco" in done.stdout


def test_chat_streams_an_answer(tmp_path):
    """The answer is on stdout; how it came about is on stderr."""
    write_scripted_pair(tmp_path, "Blue.")
    done = disco("chat", "Which colour?", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "Blue.\n")
    assert "laptop won" in done.stderr


def test_chat_prints_json_and_nothing_else(tmp_path):
    """With --json stdout is one object, prompt from standard input included."""
    write_scripted_pair(tmp_path, "Blue.")
    done = disco("chat", "-", "--json", folder=tmp_path, typed="Which colour?")
    told = json.loads(done.stdout)
    assert told["text"] == "Blue."
    assert told["disco"]["winner"] == "laptop"


def test_answers_are_in_the_ledger(tmp_path):
    """What was answered is settled in the file that the settings name."""
    write_scripted_pair(tmp_path)
    disco("chat", "one", folder=tmp_path)
    disco("chat", "two", folder=tmp_path)
    assert totals(tmp_path / "ledger.db").requests == 2


def test_check_validates_and_exits(tmp_path):
    """`serve --check` says that good settings are good, and starts nothing."""
    done = disco("serve", "--check", "--config", str(write_scripted_pair(tmp_path)))
    assert done.returncode == 0
    assert "good" in done.stdout


WRONG_SETTINGS = [
    ("[polcy]\n", "unknown key `polcy`; did you mean 'policy'?"),
    ("[policy]\nshare = 1.5\n", "policy.share = 1.5"),
    ('[policy]\nname = "dicso"\n', "did you mean 'disco'?"),
    ('[[endpoint]]\nname = "a"\nkind = "device"\ndialect = "lamacpp"\n', "did you mean 'llamacpp'?"),
    (
        '[[endpoint]]\nname = "a"\nkind = "device"\ndialect = "llamacpp"\nmodel = "smolm2"\n',
        "unknown model 'smolm2'",
    ),
    (
        '[[endpoint]]\nname = "a"\nkind = "server"\ndialect = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n'
        'api_key_env = "NOT_SET_ANYWHERE"\n',
        "NOT_SET_ANYWHERE",
    ),
    (
        '[[endpoint]]\nname = "a"\nkind = "server"\ndialect = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n'
        'continuation = "nonne"\n',
        "continuation = 'nonne': must be one of none, continue_final_message, prefix, trailing_assistant",
    ),
    (
        '[[endpoint]]\nname = "a"\ndialect = "scripted"\n',
        "endpoint[0].kind: is missing; must be one of device, server",
    ),
    ("[cost]\nusd_per_joule = inf\n", "cost.usd_per_joule = inf"),
    ("not toml at all", "not valid TOML"),
    (f"deep = {'[' * 5_000}", "not valid TOML: maximum recursion depth exceeded"),
]


@pytest.mark.parametrize(("text", "told"), WRONG_SETTINGS, ids=[told for _, told in WRONG_SETTINGS])
def test_wrong_settings_are_refused(text, told, tmp_path):
    """A mistake in the settings ends in one line that names it, and status 2."""
    (tmp_path / "disco.toml").write_text(text, encoding="utf-8")
    done = disco("serve", "--check", folder=tmp_path)
    assert done.returncode == 2
    assert told in complaint(done)


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"DISCO_POLICY__SHARE": "7"}, "policy.share = 7"),
        ({"DISCO_POLICY__SHRE": "0.7"}, "did you mean 'share'?"),
        ({"DISCO_ENDPOINT__NOBODY__MODEL": "x"}, "no endpoint called 'nobody'"),
    ],
)
def test_the_environment_is_checked_too(environ, told, tmp_path):
    """Overrides are held to the same rules as the file."""
    done = disco("serve", "--check", "--config", str(write_scripted_pair(tmp_path)), **environ)
    assert done.returncode == 2
    assert told in complaint(done)


def test_a_missing_file_is_named(tmp_path):
    """Settings that are not there are not silently replaced by the embedded pair."""
    done = disco("chat", "hi", "--config", str(tmp_path / "gone.toml"))
    assert done.returncode == 2
    assert "gone.toml: no such file" in complaint(done)


def test_a_port_in_use_is_named(tmp_path):
    """The gateway does not start where something listens already, and says so."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = disco("serve", "--config", str(write_scripted_pair(tmp_path)), "--port", port)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} is in use" in complaint(done)


def test_an_open_address_needs_a_key(tmp_path):
    """Off loopback the gateway refuses to start without a client key."""
    done = disco("serve", "--config", str(write_scripted_pair(tmp_path)), "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "gateway.api_key_env" in complaint(done)


def test_an_unreachable_server_is_one_line(tmp_path):
    """When nothing can answer, the first cause is told, and the status is 1."""
    (tmp_path / "disco.toml").write_text(
        '[[endpoint]]\nname = "cloud"\nkind = "server"\ndialect = "openai"\n'
        'base_url = "http://127.0.0.1:9/v1"\nprompt_usd_per_mtok = 0\ncompletion_usd_per_mtok = 0\n'
        f'[ledger]\npath = "{(tmp_path / "ledger.db").as_posix()}"\n',
        encoding="utf-8",
    )
    done = disco("chat", "hi", folder=tmp_path)
    assert done.returncode == 1
    assert "cloud: cannot connect to 127.0.0.1:9" in complaint(done)


def test_empty_prompts_are_refused(tmp_path):
    """A prompt without a word, and a file without a prompt, are mistakes."""
    write_scripted_pair(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n\n", encoding="utf-8")
    assert disco("chat", " ", folder=tmp_path).returncode == 2
    done = disco("demo", "--prompts", "prompts.txt", folder=tmp_path)
    assert done.returncode == 2
    assert "there is no prompt in it" in complaint(done)


def test_unknown_models_are_refused():
    """A model that the catalogue does not have is a mistake, and the nearest name is told."""
    done = disco("models", "smollm2-135m")
    assert done.returncode == 2
    assert "did you mean 'smollm2-135m-instruct'?" in complaint(done)


def test_the_doctor_finds_what_is_wrong(tmp_path):
    """A healthy pair passes; a dead server fails with a fix, and status 1."""
    good = disco("doctor", "--json", "--config", str(write_scripted_pair(tmp_path)), DISCO_GATEWAY__PORT="0")
    assert json.loads(good.stdout)["good"], good.stdout
    ill = disco(
        "doctor",
        "--config",
        str(write_scripted_pair(tmp_path)),
        DISCO_GATEWAY__PORT="0",
        DISCO_ENDPOINT__CLOUD__REFUSES="overloaded",
    )
    assert ill.returncode == 1
    assert "overloaded" in ill.stdout
    assert "fix:" in ill.stdout


def test_sigterm_stops_the_gateway_cleanly(tmp_path):
    """A service manager's stop ends with status 0."""
    with disco_serve(write_scripted_pair(tmp_path)) as serving:
        serving.process.terminate()
        assert serving.process.wait(timeout=10) == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that does what Ctrl-C does")
def test_ctrl_c_twice_stops_the_gateway_as_cleanly(tmp_path):
    """Whoever is impatient while a client takes its time sees no traceback, and what ran is settled."""
    config = write_scripted_pair(tmp_path, "word " * 50_000)
    config.write_text(config.read_text().replace("tbt_s = 0.01", "tbt_s = 0.0"))
    body = json.dumps({"messages": [{"role": "user", "content": "Tell me"}], "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with disco_serve(config) as serving:
        port = int(serving.base_url.removesuffix("/v1").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall((head + body).encode())
            time.sleep(0.5)  # by then it waits for its client, who reads nothing
            for _ in range(2):
                serving.process.send_signal(signal.SIGINT)
                time.sleep(0.1)
            assert serving.process.wait(timeout=10) == 0
            assert serving.process.stderr.read() == ""
    assert totals(tmp_path / "ledger.db").requests == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that does what Ctrl-C does")
def test_ctrl_c_that_is_ignored_stays_so(tmp_path):
    """A script's `disco serve &` outlives a Ctrl-C that is meant for what runs in front of it."""
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with disco_serve(write_scripted_pair(tmp_path)) as serving:
            serving.process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                serving.process.wait(timeout=0.3)
            serving.process.terminate()
            assert serving.process.wait(timeout=10) == 0
    finally:
        signal.signal(signal.SIGINT, usual)


def test_a_piped_answer_is_untouched_and_a_narrow_encoding_survived(tmp_path):
    """A pipe gets the answer byte for byte; a character it cannot take is replaced."""
    write_scripted_pair(tmp_path, "a\\tb 漢")
    assert disco_anew("chat", "hi", folder=tmp_path, PYTHONIOENCODING="utf-8").stdout == "a\tb 漢\n"
    assert disco_anew("chat", "hi", folder=tmp_path, PYTHONIOENCODING="cp1252").stdout == "a\tb ?\n"


def test_the_doctor_reports_settings_that_cannot_work(tmp_path):
    """A missing key is a finding among the others, not the end of the examination."""
    (tmp_path / "disco.toml").write_text(
        '[[endpoint]]\nname = "cloud"\nkind = "server"\ndialect = "openai"\n'
        'base_url = "http://127.0.0.1:9/v1"\napi_key_env = "NOT_SET_ANYWHERE"\n'
        f'[ledger]\npath = "{(tmp_path / "ledger.db").as_posix()}"\n',
        encoding="utf-8",
    )
    done = disco("doctor", "--json", folder=tmp_path, DISCO_GATEWAY__PORT="0")
    assert done.returncode == 1
    checks = {check["check"]: check["good"] for check in json.loads(done.stdout)["checks"]}
    assert checks["endpoint cloud"] is False
    assert checks["ledger"] is True


def test_the_doctor_knows_its_own_gateway(tmp_path):
    """A port that discostream itself serves on is no fault."""
    config = write_scripted_pair(tmp_path)
    with disco_serve(config) as serving:
        port = serving.base_url.removesuffix("/v1").rpartition(":")[2]
        done = disco("doctor", "--config", str(config), DISCO_GATEWAY__PORT=port)
    assert f"discostream is serving on 127.0.0.1:{port}" in done.stdout


@pytest.mark.parametrize("model", ["~nobody-of-this-name/x.gguf", "a" * 300, "gone.gguf"])
def test_what_is_no_model_is_refused(model):
    """Neither an odd path nor an endless name ends in a traceback."""
    done = disco("models", model)
    assert done.returncode == 2
    assert complaint(done)


def test_broken_text_is_refused(tmp_path):
    """Half a character, as a broken terminal sends it, is a mistake of the input, not of an endpoint."""
    write_scripted_pair(tmp_path)
    done = disco("chat", "caf\udce9", folder=tmp_path)
    assert done.returncode == 2
    assert "not valid Unicode" in complaint(done)


def test_version():
    """`disco --version` tells it."""
    assert disco_anew("--version").stdout.startswith("disco 0.")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_demo_gives_three_answers_whatever_it_is_asked(number, tmp_path):
    """However few prompts of one's own, the demonstration has at least three answers, and all compared."""
    config = write_scripted_pair(tmp_path)
    prompts = [word for n in range(number) for word in ("--prompt", f"Question {n}?")]
    done = disco("demo", "--json", "--config", str(config), *prompts)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["answers"]) >= 3
    assert {answer["prompt"] for answer in told["answers"]} == {f"Question {n}?" for n in range(number)}
    assert all(figures["mean_ttft_s"] > 0 for figures in told["comparison"].values())


def test_the_demo_does_not_break_what_the_settings_promise(tmp_path):
    """Private requests and hard budgets are no matter for a demonstration that asks servers."""
    config = write_scripted_pair(tmp_path)
    done = disco("demo", folder=tmp_path, DISCO_POLICY__PRIVATE="true")
    assert (done.returncode, done.stdout) == (2, "")
    assert "policy.private = true: disco demo asks a server" in done.stderr
    with config.open("a", encoding="utf-8") as file:
        file.write('\n[[budget]]\nusd = 1.0\nper = "day"\nmode = "hard"\n')
    done = disco("demo", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is hard: disco demo keeps its account apart" in done.stderr


def test_prompts_may_come_from_a_file_of_windows(tmp_path):
    """The mark that opens a file of Windows is no part of its first prompt."""
    config = write_scripted_pair(tmp_path)
    (tmp_path / "prompts.txt").write_bytes("First?\r\n\r\nSecond?\r\n".encode("utf-8-sig"))
    quick = {f"DISCO_ENDPOINT__{name}__TTFT_S": "0.001" for name in ("LAPTOP", "CLOUD")}
    wanted = ("--json", "--config", str(config), "--prompts", "prompts.txt", "--max-tokens", "1")
    done = disco("demo", *wanted, folder=tmp_path, **quick)
    assert {answer["prompt"] for answer in json.loads(done.stdout)["answers"]} == {"First?", "Second?"}


def test_the_doctor_is_without_colours_where_they_are_not_wanted(tmp_path):
    """On a terminal, too, where NO_COLOR is set."""
    write_scripted_pair(tmp_path)
    _, shown = on_a_terminal("doctor", folder=tmp_path, NO_COLOR="1")
    assert "ok   policy" in shown
    assert "\x1b" not in shown


@in_a_shell
def test_it_works_without_standard_streams(tmp_path):
    """Where standard input and output are closed, as by some services, a command does its work."""
    write_scripted_pair(tmp_path)
    done = disco_in_a_shell("chat hi <&- >&-", tmp_path)
    assert done.returncode == 0, done.stderr
    assert totals(tmp_path / "ledger.db").requests == 1


@in_a_shell
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_told_in_one_line(tmp_path):
    """Output that the disk has no room for is a failure of one line."""
    done = disco_in_a_shell("models >/dev/full", tmp_path)
    assert (done.returncode, complaint(done)) == (1, "disco: cannot write: No space left on device")


class Interrupting:
    """Ctrl-C at the moment at which a module is looked for."""

    def find_spec(self, name, *_):
        if name == "discostream.cli.app":
            raise KeyboardInterrupt


def test_ctrl_c_while_it_is_loaded_ends_it_in_silence(monkeypatch):
    """Whoever changes their mind at once gets the status of an interrupted command, and no traceback."""
    monkeypatch.delitem(sys.modules, "discostream.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit, match="130"):
        main()
