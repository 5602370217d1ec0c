"""The examples in the documentation run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import disco_serve, write_scripted_pair

from discostream.config import EndpointSettings, PolicySettings, settings_from
from discostream.core.distributions import Distribution
from discostream.core.profile import Known, Lengths
from discostream.endpoints.base import NoOptions
from discostream.endpoints.registry import build_endpoint
from discostream.types import Finish, Kind, Message, Prefix, Request

ROOT = Path(__file__).parent.parent
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
TOML = re.compile(r"```toml\n(.*?)```", re.DOTALL)


def blocks(page: str, language: re.Pattern[str] = PYTHON) -> list[str]:
    return language.findall((ROOT / page).read_text(encoding="utf-8"))


def run_python(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_library_page_runs(tmp_path):
    """Both programs of docs/library.md run against a scripted pair and print what they promise."""
    write_scripted_pair(tmp_path)
    whole, abandoned = blocks("docs/library.md")
    printed = run_python(whole, tmp_path)
    assert printed.startswith("The sky is blue because it scatters light.\nlaptop won after 0.0")
    assert run_python(abandoned, tmp_path) == "None\n"


def test_the_simulators_page_runs(tmp_path):
    """The program of docs/simulator.md prints a P99 and a share."""
    (program,) = blocks("docs/simulator.md")
    assert re.fullmatch(r"\d+\.\d s, \d+\.\d% waited for more than a second\n", run_python(program, tmp_path))


@pytest.mark.parametrize("page", ["README.md", "docs/gateway.md"])
def test_the_openai_client_example_runs(page, tmp_path):
    """The official client, pointed at the gateway as the page says, streams an answer."""
    (program,) = [block for block in blocks(page) if "OpenAI(" in block]
    with disco_serve(write_scripted_pair(tmp_path)) as serving:
        printed = run_python(program.replace("http://127.0.0.1:8377/v1", serving.base_url), tmp_path)
    assert printed == "The sky is blue because it scatters light."


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md"])
def test_the_example_settings_are_valid(page):
    """The settings shown are accepted as they are."""
    import tomllib

    settings = settings_from(tomllib.loads(blocks(page, TOML)[0]))
    assert [endpoint.name for endpoint in settings.endpoint] == ["laptop", "cloud"]


def test_the_examples_of_endpoints_are_valid(monkeypatch):
    """What docs/endpoints.md shows makes endpoints that can go on with an answer."""
    import tomllib

    for key in ("ANTHROPIC_API_KEY", "OPENROUTER_API_KEY"):
        monkeypatch.setenv(key, "sk-right")
    shown = [settings_from(tomllib.loads(block)) for block in blocks("docs/endpoints.md", TOML)]
    made = [build_endpoint(one) for settings in shown for one in settings.endpoint]
    assert [endpoint.name for endpoint in made if endpoint.continues] == ["gpu-box", "claude", "router"]


@pytest.mark.anyio
async def test_the_example_endpoint_is_one():
    """The parrot of CONTRIBUTING.md keeps the contract."""
    space: dict[str, object] = {}
    exec(blocks("CONTRIBUTING.md")[0], space)
    parrot = space["Parrot"](EndpointSettings(name="parrot", kind=Kind.DEVICE, dialect="parrot"), NoOptions())
    request = Request(messages=(Message("user", "hello you"),), arrived_at=0.0, request_id="r")
    *pieces, finish = [event async for event in parrot.generate(request, Prefix())]
    assert [piece.text for piece in pieces] == ["hello ", "you "]
    assert isinstance(finish, Finish)


def test_the_example_policy_is_one():
    """The policy of CONTRIBUTING.md makes a table that can be asked."""
    space: dict[str, object] = {}
    exec(blocks("CONTRIBUTING.md")[1], space)
    lengths = Lengths(Distribution.of_samples(np.array([10.0])))
    table = space["everyone"](Known((), lengths, lengths), PolicySettings())
    assert table.choose(100, 0.5).policy == "everyone"


def test_links_between_pages_lead_somewhere():
    """Every relative link in a page points at a file that exists, and at a heading that it has."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        links = re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
        for link, anchor in links:
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub spells them in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
