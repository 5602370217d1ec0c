"""The pages' files, the playground's facts, and annotated streams, on real sockets."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import openai
import pytest
from yarl import URL

from discostream.config import Settings, settings_from
from discostream.gateway.app import serve
from discostream.gateway.pages import PAGES

pytestmark = pytest.mark.anyio

FOLDER = Path(str(files("discostream.gateway"))) / "pages"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".LICENSE": "text/plain"}
VENDORED = {"https://github.com"}
"""Where uPlot says it is from."""

ANSWER = "One two three four five six seven eight nine ten."
LAPTOP = {
    "name": "laptop",
    "kind": "device",
    "dialect": "scripted",
    "answer": ANSWER,
    "ttft_s": 5.0,
    "decode_joules_per_token": 0.5,
}
CLOUD = {
    "name": "cloud",
    "kind": "server",
    "dialect": "scripted",
    "model": "big",
    "answer": ANSWER,
    "completion_usd_per_mtok": 9.0,
}
BREAKS = {"breaks_after": 4}
BOTH = {"name": "offsets", "offsets": {"laptop": 0.0, "cloud": 0.05}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Count."}], "stream": True}
ANNOTATED = {"x-disco-annotate": "true"}


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


def settings(folder: Path, *endpoints: dict[str, Any], **tables: Any) -> Settings:
    ledger = {"path": str(folder / "ledger.db")}
    gateway = {"port": 0, **tables.pop("gateway", {})}
    return settings_from({"endpoint": list(endpoints), "gateway": gateway, "ledger": ledger, **tables})


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[aiohttp.ClientSession]:
    async with anyio.create_task_group() as tasks:
        base_url = await tasks.start(serve, settings)
        async with aiohttp.ClientSession(base_url.removesuffix("v1")) as session:
            yield session
        tasks.cancel_scope.cancel()


async def stream(session: aiohttp.ClientSession, **headers: str) -> list[dict[str, Any]]:
    async with session.post("/v1/chat/completions", json=CHAT, headers=headers) as response:
        assert response.status == 200
        return [json.loads(data) for data in re.findall(r"data: (\{.*)", await response.text())]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


async def test_pages_come_under_a_strict_policy(tmp_path: Path) -> None:
    """Each file has its type, may load from here only, may stand in no frame, and names itself to nobody."""
    async with serving(settings(tmp_path, LAPTOP)) as session:
        for path, file in PAGES.items():
            async with session.get(path) as response:
                kind = f"{TYPES[Path(file).suffix]}; charset=utf-8"
                assert (response.status, response.headers["Content-Type"]) == (200, kind)
                refuses_what_is_foreign(response.headers)


def refuses_what_is_foreign(headers: Mapping[str, str]) -> None:
    rules = set(headers["Content-Security-Policy"].split("; "))
    assert {f"{what}-src 'self'" for what in ("script", "style", "connect")} <= rules
    assert {
        f"{what} 'none'" for what in ("default-src", "base-uri", "form-action", "frame-ancestors")
    } <= rules
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")


async def test_an_unchanged_page_is_not_sent_again(tmp_path: Path) -> None:
    """A browser that has it is told so, under the same policy; one that has another gets it."""
    async with serving(settings(tmp_path, LAPTOP)) as session:
        async with session.get("/") as response:
            tag = response.headers["ETag"]
        async with session.get("/", headers={"If-None-Match": tag}) as response:
            assert (response.status, await response.read()) == (304, b"")
            assert response.headers["ETag"] == tag
            assert "Content-Security-Policy" in response.headers
        async with session.get("/", headers={"If-None-Match": '"older"'}) as response:
            assert response.status == 200


async def test_only_the_pages_own_files_are_shown(tmp_path: Path) -> None:
    """No other file of the package, or of the machine, can be had by its path."""
    async with serving(settings(tmp_path, LAPTOP)) as session:
        for path in ("/pages/app.py", "/pages/..%2Fapp.py", "/pages/%2Fetc%2Fpasswd"):
            async with session.get(URL(path, encoded=True)) as response:
                assert response.status == 404, path


def test_the_pages_ask_for_nothing_from_elsewhere() -> None:
    """All they load is served here, all that is served is loaded, and no address of another host is told."""
    texts = {path: FOLDER.joinpath(file).read_text(encoding="utf-8") for path, file in PAGES.items()}
    asked = {"/pages/vendor/uPlot.LICENSE"}
    for path, text in texts.items():
        asked |= set(re.findall(r'(?:src|href)="(/[^"]*)"', text))
        asked |= {f"/pages/{name}" for name in re.findall(r'from "\./([^"]*)"', text)}
        known = VENDORED if "/vendor/" in path else {"http://www.w3.org"}
        assert set(re.findall(r"https?://[^/'\"]+", text)) <= known, path
        assert " style=" not in text, path
    assert asked | {"/dashboard/request"} == set(PAGES)


def test_the_package_has_every_file_of_the_folder() -> None:
    """Nothing lies about that no page shows."""
    lying = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert lying == set(PAGES.values())


async def test_the_page_needs_no_key_and_its_facts_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has no key sees an empty page; endpoints, prices and policies are for holders."""
    monkeypatch.setenv("GATEWAY_KEY", "right")
    world = settings(tmp_path, LAPTOP, gateway={"api_key_env": "GATEWAY_KEY"})
    holder = {"Authorization": "Bearer right"}
    async with serving(world) as session:
        for path in PAGES:
            async with session.get(path) as response:
                assert (response.status, "laptop" in await response.text()) == (200, False)
        for headers, status in (({}, 401), (holder, 200)):
            async with session.get("/playground.json", headers=headers) as response:
                assert response.status == status


async def test_another_machines_name_gets_no_page(tmp_path: Path) -> None:
    """A page of the internet that resolves its name to this machine is refused here, too."""
    evil = {"Host": "evil.example"}
    async with serving(settings(tmp_path, LAPTOP)) as session, session.get("/", headers=evil) as response:
        assert response.status == 403


async def test_the_facts_are_the_settings(tmp_path: Path) -> None:
    """Endpoints in order with what their tokens cost, the reader's pace, and policies that can be had."""
    world = settings(tmp_path, LAPTOP, CLOUD, migration={"consumption_tokens_per_s": 7.0})
    async with serving(world) as session, session.get("/playground.json") as response:
        facts = await response.json()
        assert response.headers["Cache-Control"] == "no-store"
    assert (facts["consumption_tokens_per_s"], facts["policy"]) == (7.0, "disco")
    assert [endpoint["name"] for endpoint in facts["endpoints"]] == ["laptop", "cloud"]
    assert facts["endpoints"][1] == {
        "name": "cloud",
        "kind": "server",
        "model": "big",
        "prompt_usd_per_mtok": 0.0,
        "completion_usd_per_mtok": 9.0,
        "decode_joules_per_token": 0.0,
    }
    assert "server-only" in facts["policies"]
    assert "offsets" not in facts["policies"]
    assert facts["sharing_policies"] == ["disco", "optimal", "stochastic"]
    assert facts["virtual_models"]["disco-fast"] == {"policy": "fast", "private": False}
    assert facts["virtual_models"]["disco-private"] == {"policy": None, "private": True}


async def test_policies_that_need_what_is_not_here_are_not_offered(tmp_path: Path) -> None:
    """Without a server there is no `server-only`; with offsets in the settings there is `offsets`."""
    world = settings(tmp_path, LAPTOP, policy={"name": "offsets", "offsets": {"laptop": 0.0}})
    async with serving(world) as session, session.get("/playground.json") as response:
        policies = (await response.json())["policies"]
    assert "server-only" not in policies
    assert {"device-only", "offsets"} <= set(policies)


async def test_an_annotated_stream_says_who_began_and_who_wrote_what(tmp_path: Path) -> None:
    """Starts come as they happen, then every piece with its endpoint, over a rescue and in order of time."""
    world = settings(tmp_path, {**LAPTOP, "ttft_s": 0.3}, {**CLOUD, **BREAKS}, policy=BOTH)
    async with serving(world) as session:
        *told, finish = await stream(session, **ANNOTATED)
    notes = [chunk["disco"] for chunk in told if "disco" in chunk]
    assert [note["endpoint"] for note in notes if not note["tokens"]] == ["laptop", "cloud", "laptop"]
    wrote = [note["endpoint"] for note in notes if note["tokens"]]
    assert [name for name, _ in groupby(wrote)] == ["cloud", "laptop"]
    assert sum(note["tokens"] for note in notes) == len(ANSWER.split())
    assert [note["at_s"] for note in notes] == sorted(note["at_s"] for note in notes)
    starts = [attempt["start_offset_s"] for attempt in finish["disco"]["attempts"]]
    assert [note["at_s"] for note in notes if not note["tokens"]] == pytest.approx(starts)
    assert text_of(told) == ANSWER


async def test_the_race_is_told_while_it_runs(tmp_path: Path) -> None:
    """Who has started is known long before anybody speaks."""
    async with serving(settings(tmp_path, LAPTOP)) as session:
        with anyio.fail_after(2):
            async with session.post("/v1/chat/completions", json=CHAT, headers=ANNOTATED) as response:
                told = b""
                while b'"disco":{"endpoint":"laptop","tokens":0' not in told:
                    told += await response.content.readany()


async def test_streams_that_nobody_annotates_are_as_they_were(tmp_path: Path) -> None:
    """Without the header, or with `false`, only the last chunk has a `disco` object."""
    async with serving(settings(tmp_path, {**LAPTOP, "ttft_s": 0.0})) as session:
        for headers in ({}, {"x-disco-annotate": "false"}):
            *told, finish = await stream(session, **headers)
            assert (text_of(told), finish["disco"]["winner"]) == (ANSWER, "laptop")
            assert not [chunk for chunk in told if "disco" in chunk]
            assert all(chunk["choices"][0]["delta"]["content"] for chunk in told[1:])


async def test_an_annotation_that_is_neither_true_nor_false_is_refused(tmp_path: Path) -> None:
    """The client is told which header it was."""
    async with serving(settings(tmp_path, LAPTOP)) as session:
        headers = {"x-disco-annotate": "yes"}
        async with session.post("/v1/chat/completions", json=CHAT, headers=headers) as response:
            assert (response.status, (await response.json())["error"]["param"]) == (400, "x-disco-annotate")


async def test_the_official_client_reads_an_annotated_stream(tmp_path: Path) -> None:
    """Its helper, which adds up what it finds in deltas, comes to the same answer."""
    async with serving(settings(tmp_path, {**LAPTOP, "ttft_s": 0.0})) as session:
        url = str(session._base_url) + "v1"
        async with (
            openai.AsyncOpenAI(
                base_url=url, api_key="any", max_retries=0, default_headers=ANNOTATED
            ) as client,
            client.chat.completions.stream(model="disco", messages=CHAT["messages"]) as stream,
        ):
            whole = await stream.get_final_completion()
    assert whole.choices[0].message.content == ANSWER
