"""The library face: connections, answers, and what becomes of those that nobody finishes."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest

from discostream.config import PolicySettings, Settings, settings_from
from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.errors import (
    AllEndpointsFailed,
    AnswerInterrupted,
    ConfigError,
    DiscoError,
    NotConnected,
    RequestRejected,
)
from discostream.ledger.queries import recent
from discostream.ledger.store import Ledger
from discostream.library import Disco, connect
from discostream.session.planner import Planner
from discostream.types import Finish, FinishReason

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


def pair(folder: Path, **laptop: object) -> Settings:
    script = {"answer": "one two three", "ttft_s": 0.01, **laptop}
    return settings_from(
        {
            "endpoint": [
                {"name": "laptop", "kind": "device", "dialect": "scripted", **script},
                {
                    "name": "cloud",
                    "kind": "server",
                    "dialect": "scripted",
                    "answer": "FOUR FIVE SIX",
                    "ttft_s": 0.5,
                },
            ],
            "policy": {"name": "offsets", "offsets": {"laptop": 0.0}},
            "ledger": {"path": str(folder / "ledger.db")},
        }
    )


def scripted(disco: Disco, name: str) -> ScriptedEndpoint:
    endpoint = disco.endpoints[name]
    assert isinstance(endpoint, ScriptedEndpoint)
    return endpoint


async def test_running_requests_can_be_looked_at(tmp_path):
    """A request is there while it is answered, with what was delivered, and neither before nor after."""
    async with connect(pair(tmp_path, tbt_s=0.01)) as disco:
        assert disco.live() == ()
        answer = disco.stream("count")
        first = await anext(answer)
        (running,) = disco.live()
        assert (running.request_id, running.delivered_tokens) == (answer.request.request_id, 1)
        assert [attempt.endpoint for attempt in running.attempts] == [first.endpoint]
        assert len([piece async for piece in answer]) == 2
        assert disco.live() == ()
        async with disco.stream("count") as left:
            await anext(left)
        assert disco.live() == ()


async def test_an_answer_streams_and_settles(tmp_path):
    """Pieces say who made them; the outcome is there when the iteration ends, and in the ledger."""
    async with connect(pair(tmp_path)) as disco:
        answer = disco.stream("Count.")
        assert answer.outcome is None
        pieces = [piece async for piece in answer]
        assert "".join(piece.text for piece in pieces) == "one two three"
        assert {piece.endpoint for piece in pieces} == {"laptop"}
        assert answer.outcome
        (row,) = recent(tmp_path / "ledger.db", 5)
        assert row.request_id == answer.outcome.request_id
        assert [piece async for piece in answer] == []


async def test_pieces_come_in_order_however_they_are_asked_for(tmp_path):
    """One by one or all that have come: none is passed over, and none comes late."""
    async with connect(pair(tmp_path, answer="one two three four")) as disco:
        answer = disco.stream("Count.")
        while answer.outcome is None:  # noqa: ASYNC110 - so that all of it waits
            await anyio.sleep(0.01)
        texts = [(await anext(answer)).text]
        while pieces := await answer.pieces():
            texts += [piece.text for piece in pieces]
        assert texts == ["one", " two", " three", " four"]


async def test_two_may_read_one_answer(tmp_path):
    """Each piece goes to one of them, and both hear of the end."""
    told = []

    async def listen(answer):
        told.extend([piece.text async for piece in answer])

    async with connect(pair(tmp_path, tbt_s=0.01)) as disco:
        answer = disco.stream("Count.")
        with anyio.fail_after(5.0):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen, answer)
                tasks.start_soon(listen, answer)
    assert sorted(told) == [" three", " two", "one"]


async def test_whoever_is_told_of_news_takes_none_from_a_reader(tmp_path):
    """While a callback hears of every piece and of the end, the iteration goes on and ends as without it."""
    async with connect(pair(tmp_path, tbt_s=0.01)) as disco:
        answer = disco.stream("Count.")
        heard = []
        answer.on_news = lambda: heard.append(answer.ended)
        with anyio.fail_after(5.0):
            assert len([piece async for piece in answer]) == 3
    assert heard == [False, False, False, True]


async def test_what_comes_beside_text_waits_for_its_reader_too(tmp_path):
    """Calls of tools are held in no greater amount than text would be, however large each of them is."""
    calls = [{"name": "write", "arguments": {"text": "x" * 10_000}}] * 50
    async with connect(pair(tmp_path, tool_calls=calls)) as disco:
        tools = [{"type": "function", "function": {"name": "write"}}]
        answer = disco.stream("Write.", extra_body={"tools": tools})
        await anyio.sleep(0.1)
        waited = await answer.pieces()
        assert 0 < sum(len(str(piece.extra)) for piece in waited) < 40_000
        assert len(waited) + len([piece async for piece in answer]) == 100


async def test_answers_run_side_by_side(tmp_path):
    """Answers of one connection do not wait for each other, nor for a reader who is slow."""
    async with connect(pair(tmp_path, tbt_s=0.05)) as disco:
        began = anyio.current_time()
        answers = [disco.stream("Count.") for _ in range(20)]
        for answer in answers:
            assert len([piece async for piece in answer]) == 3
        assert anyio.current_time() - began < 2.0


async def test_an_abandoned_answer_is_cancelled_and_settled(tmp_path):
    """Leaving an answer early closes its streams, and what it cost is on file."""
    async with connect(pair(tmp_path, hangs_after=1)) as disco:
        async with disco.stream("Count.") as answer:
            await anext(answer)
        assert scripted(disco, "laptop").open == 0
        assert answer.outcome
        assert answer.outcome.finish_reason is None
        await answer.aclose()
    assert [row.outcome for row in recent(tmp_path / "ledger.db", 5)] == ["cancelled"]


@pytest.mark.parametrize(
    ("offsets", "script"),
    [
        ({"laptop": 0.0}, {}),
        ({"laptop": 0.0, "cloud": 0.0}, {}),
        ({"laptop": 0.0}, {"breaks_after": 1}),
    ],
    ids=["alone", "raced", "rescued"],
)
async def test_nothing_of_an_answer_waits_for_the_collector(tmp_path, offsets, script):
    """A hundred readers' answers would be megabytes of circles; one is gone as soon as nobody holds it."""
    policy = PolicySettings(name="offsets", offsets=offsets)
    async with connect(msgspec.structs.replace(pair(tmp_path, **script), policy=policy)) as disco:
        assert [piece.text async for piece in disco.stream("Count.")]
        gc.collect()
        gc.disable()
        try:
            assert [piece.text async for piece in disco.stream("Count.")]
            await anyio.sleep(0.02)  # in which the tasks behind it end
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            assert [each for each in gc.garbage if type(each).__module__.startswith("discostream")] == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()


async def test_a_dropped_answer_ends_by_itself(tmp_path):
    """An answer that nobody holds any more stops at its next piece, whichever thread collects it."""
    async with connect(pair(tmp_path, tbt_s=0.05, answer="word " * 200)) as disco:
        answer = disco.stream("Count.")
        await anext(answer)
        answer.itself = answer
        del answer
        await anyio.to_thread.run_sync(gc.collect)
        with anyio.fail_after(5):
            while scripted(disco, "laptop").open:  # noqa: ASYNC110 - nobody is left to be told
                await anyio.sleep(0.01)


async def test_a_dropped_answer_that_waits_for_its_reader_ends_too(tmp_path):
    """An answer whose buffer is full notices that its reader has gone."""
    async with connect(pair(tmp_path, answer="word " * 1000)) as disco:
        disco.stream("Count.")
        with anyio.fail_after(10):
            while not scripted(disco, "laptop").started or scripted(disco, "laptop").open:  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_leaving_the_connection_interrupts_answers(tmp_path):
    """An answer that was cut off by leaving does not look like a whole one; it is settled."""
    async with connect(pair(tmp_path, hangs_after=1)) as disco:
        answer = disco.stream("Count.")
        await anext(answer)
    with pytest.raises(AnswerInterrupted):
        await anext(answer)
    assert answer.outcome
    assert len(recent(tmp_path / "ledger.db", 5)) == 1


async def test_leaving_the_connection_settles_those_who_wait_for_a_plan(tmp_path, monkeypatch):
    """All that wait for the first table of a policy are settled and recorded, whoever of them makes it."""
    build = Planner._build

    def slowly(planner, known):
        time.sleep(0.2)
        return build(planner, known)

    async with connect(pair(tmp_path)) as disco:
        monkeypatch.setattr(Planner, "_build", slowly)
        answers = [disco.stream("Count.", policy="server-only") for _ in range(2)]
        await anyio.sleep(0.05)
    assert [answer.outcome.verdict for answer in answers] == ["cancelled"] * 2
    assert len(recent(tmp_path / "ledger.db", 5)) == 2


async def test_outside_of_the_connection_nothing_streams(tmp_path):
    """Before entering and after leaving, a request is refused by one clear error."""
    disco = connect(pair(tmp_path))
    with pytest.raises(NotConnected):
        disco.stream("Count.")
    async with disco:
        pass
    with pytest.raises(NotConnected):
        disco.stream("Count.")
    with pytest.raises(NotConnected):
        await anyio.to_thread.run_sync(disco.stream, "Count.")  # where no event loop runs


async def test_a_connection_is_entered_once_at_a_time(tmp_path):
    """Whoever enters it a second time is refused, does the first no harm, and may enter it afterwards."""
    disco = connect(pair(tmp_path))
    async with disco:
        with pytest.raises(DiscoError, match="connected already"):
            await disco.__aenter__()
        assert len([piece async for piece in disco.stream("Count.")]) == 3
    async with disco:
        assert len([piece async for piece in disco.stream("Count.")]) == 3


async def test_a_ledger_that_could_not_be_opened_may_be_tried_again(tmp_path):
    """A connection whose ledger was in the way of something is entered once that has gone."""
    (tmp_path / "ledger.db").mkdir()
    disco = connect(pair(tmp_path))
    with pytest.raises(ConfigError, match="unable to open"):
        await disco.__aenter__()
    (tmp_path / "ledger.db").rmdir()
    async with disco:
        assert len([piece async for piece in disco.stream("Count.")]) == 3


async def test_opening_a_locked_ledger_holds_up_nobody_else(tmp_path):
    """While another program has locked the file, all other tasks of the event loop go on."""
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    longest_s = 0.0

    async def tick():
        nonlocal longest_s
        while True:
            before = time.monotonic()
            await anyio.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - before)

    async def release():
        await anyio.sleep(0.6)
        other.execute("ROLLBACK")

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            tasks.start_soon(release)
            async with connect(pair(tmp_path)) as disco:
                assert len([piece async for piece in disco.stream("Count.")]) == 3
            tasks.cancel_scope.cancel()
    assert longest_s < 0.4


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_connection_that_was_given_up_while_it_opened_leaves_nothing(tmp_path):
    """A timeout of asyncio's own, which passes by every shield, leaves no thread and no open file behind."""
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connect(pair(tmp_path)).__aenter__(), 0.05)
        other.execute("ROLLBACK")
        with anyio.fail_after(5.0):
            while any(thread.name == "disco-ledger" for thread in threading.enumerate()):  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_the_callers_own_error_comes_through(tmp_path):
    """What is raised inside `async with` arrives as it was, in no exception group."""
    with pytest.raises(ZeroDivisionError):
        async with connect(pair(tmp_path)):
            raise ZeroDivisionError


async def test_failures_are_raised_by_the_iteration(tmp_path):
    """An answer that nobody can give raises; the others go on."""
    settings = pair(tmp_path, refuses="no")
    async with connect(settings) as disco:
        alone = disco.under(policy=PolicySettings(name="device-only"))
        with pytest.raises(AllEndpointsFailed, match="laptop: no"):
            await anext(alone.stream("Count."))
        assert "".join([piece.text async for piece in disco.stream("Count.")]) == "FOUR FIVE SIX"


async def test_defects_of_endpoints_stay_theirs(tmp_path, monkeypatch, caplog):
    """An adapter that raises while preparing or closing is logged; all others are served and closed."""
    closed = []

    async def prepare(self):
        if self.name == "laptop":
            raise RuntimeError("prepare")

    async def aclose(self):
        closed.append(self.name)
        raise RuntimeError("aclose")

    monkeypatch.setattr(ScriptedEndpoint, "prepare", prepare)
    monkeypatch.setattr(ScriptedEndpoint, "aclose", aclose)
    async with connect(pair(tmp_path)) as disco:
        assert len([piece async for piece in disco.stream("Count.")]) == 3
    assert sorted(closed) == ["cloud", "laptop"]
    assert "prepare raised" in caplog.text
    assert "could not be closed" in caplog.text


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_adapters_own_cancellation_is_its_failure(tmp_path, monkeypatch, caplog):
    """A task of its own that somebody cancelled breaks an endpoint; another one answers."""

    async def cancelled(self, request, prefix):
        work = asyncio.ensure_future(asyncio.sleep(9.0))
        asyncio.get_running_loop().call_soon(work.cancel)
        await work
        yield Finish(FinishReason.STOP)

    async with connect(pair(tmp_path)) as disco:
        monkeypatch.setattr(scripted(disco, "laptop"), "generate", partial(cancelled, None))
        answer = disco.stream("Count.")
        assert "".join([piece.text async for piece in answer]) == "FOUR FIVE SIX"
    assert [attempt.outcome.value for attempt in answer.outcome.attempts] == ["failed", "won"]
    assert "raised what it should have translated" in caplog.text


async def test_other_rules_share_the_connection(tmp_path):
    """`under` changes the policy for its own answers only, and one ledger has them all."""
    async with connect(pair(tmp_path)) as disco:
        other = disco.under(policy=PolicySettings(name="server-only"))
        assert {piece.endpoint async for piece in other.stream("Count.")} == {"cloud"}
        assert {piece.endpoint async for piece in disco.stream("Count.")} == {"laptop"}
        with pytest.raises(ConfigError, match="no endpoint is called 'nobody'"):
            disco.under(policy=PolicySettings(name="offsets", offsets={"nobody": 0.0}))
    assert len(recent(tmp_path / "ledger.db", 5)) == 2


async def test_a_request_may_have_a_share_of_its_own(tmp_path):
    """`share` plans one request as if the settings said so; what is planned can be seen without asking."""
    async with connect(pair(tmp_path)) as disco:
        drawn = disco.under(policy=PolicySettings(name="stochastic", constraint="server", share=0.0))
        for share, started in ((None, 1), (1.0, 2), (0.0, 1)):
            answer = drawn.stream("Count.", share=share)
            assert [piece async for piece in answer]
            assert len(answer.outcome.attempts) == started
        plan = await drawn.plan_in_force(share=0.25)
        (row,) = plan.rows
        assert [action.share for action in row.actions] == [0.75, 0.25]
        assert (plan.share.per_request, plan.share.kind, plan.requests) == (0.25, "server", 0)
        assert plan.experience["laptop"].attempts == 3
        assert (await drawn.plan_in_force()).requests == 1
        assert (await drawn.plan_in_force("fast")).share is None


async def test_a_plan_is_priced_once(tmp_path):
    """The share's worth is known once it was asked for, and asked for anew with the next plan only."""
    async with connect(pair(tmp_path)) as disco:
        view = disco.under(policy=PolicySettings(name="optimal", constraint="server"))
        assert [balance.shadow_price_s_per_unit for balance in await view.appraise()] == [None]
        assert [piece async for piece in view.stream("Count.")]
        assert [balance.shadow_price_s_per_unit for balance in view.balances] == [None]
        (balance,) = await view.appraise()
        assert balance.shadow_price_s_per_unit > 0
        assert (balance.allowance.per_request, balance.allowance.multiplier) == (0.5, 1.0)
        assert view.balances == (balance,)
        known = view._worth.latest
        await view.appraise()
        assert view._worth.latest is known


async def test_whoever_wants_to_know_is_told_of_what_was_settled(tmp_path, caplog):
    """Each callable is told once, by the time that the answer ends; one that raises harms nobody."""
    told = []

    def broken(request, outcome):
        raise ZeroDivisionError

    async with connect(pair(tmp_path)) as disco:
        disco.on_settled += [broken, lambda request, outcome: told.append((request, outcome))]
        answer = disco.stream("Count.")
        assert len([piece async for piece in answer]) == 3
        assert told == [(answer.request, answer.outcome)]
        async with disco.under(policy=PolicySettings(name="server-only")).stream("Count.") as abandoned:
            pass
        assert told[1:] == [(abandoned.request, abandoned.outcome)]
    assert caplog.text.count("could not be told of its outcome") == 2


async def test_one_that_takes_itself_off_hides_nothing_from_the_next(tmp_path):
    """A callable that wants to be told once only may leave the list while it is told."""
    told = []

    def once(request, outcome):
        told.append("once")
        disco.on_settled.remove(once)

    async with connect(pair(tmp_path)) as disco:
        disco.on_settled += [once, lambda request, outcome: told.append("always")]
        for _ in range(2):
            assert len([piece async for piece in disco.stream("Count.")]) == 3
    assert told == ["once", "always", "always"]


@pytest.mark.parametrize("messages", [[], ["hi"], [{"role": "user"}], [{"role": "user", "content": 3}]])
async def test_what_is_no_chat_is_rejected(messages, tmp_path):
    """A conversation is a list of roles and texts, with at least one turn."""
    async with connect(pair(tmp_path)) as disco:
        with pytest.raises(RequestRejected, match="messages"):
            disco.stream(messages)
        for most in (0, 2**31):
            with pytest.raises(RequestRejected, match=f"max_tokens = {most}: must be at least 1, "):
                disco.stream("hi", max_tokens=most)


async def test_extra_fields_and_messages_are_openais(tmp_path):
    """What the API has beyond the arguments comes as a mapping; what has an argument is refused there."""
    tools = [{"type": "function", "function": {"name": "weather"}}]
    asked = {"role": "user", "content": "hi"}
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
    told = {"role": "tool", "tool_call_id": "1", "content": "rain"}
    async with connect(pair(tmp_path, tool_calls=({"name": "weather"},))) as disco:
        answer = disco.stream([asked], extra_body={"tools": tools})
        assert [piece.extra.delta for piece in [piece async for piece in answer] if piece.extra]
        assert (answer.outcome.finish_reason, answer.outcome.stayed) == ("tool_calls", "it uses tools")
        answer = disco.stream([asked, called, told], extra_body={"tools": tools})
        assert "".join([piece.text async for piece in answer])
        with pytest.raises(RequestRejected, match="extra_body: 'temperature' does not belong there"):
            disco.stream("hi", extra_body={"temperature": 1})


async def test_stop_may_be_one_string(tmp_path):
    """A stop string is one string, not its letters."""
    async with connect(pair(tmp_path)) as disco, disco.stream("hi", stop="END") as answer:
        assert answer.request.stop == ("END",)


async def test_budgets_hold_whatever_a_token_is(tmp_path):
    """The share of prompt tokens that races is the budget's, for text of few and of many letters a token."""
    settings = settings_from(
        {
            "endpoint": [
                {"name": "laptop", "kind": "device", "dialect": "scripted", "answer": "yes"},
                {"name": "cloud", "kind": "server", "dialect": "scripted", "answer": "yes", "ttft_s": 0.001},
            ],
            "policy": {"constraint": "server", "share": 0.5},
            "ledger": {"path": str(tmp_path / "ledger.db")},
        }
    )
    for word in ("a ", "internationalisation "):
        async with connect(settings, seed=1) as disco:
            racing = total = 0
            for n in range(360):
                async with disco.stream(word * (1 + (7 * n) % 40)) as answer:
                    assert "".join([piece.text async for piece in answer]) == "yes"
                assert answer.outcome
                if n >= 260:
                    total += answer.outcome.prompt_tokens
                    racing += sum(a.prompt_tokens for a in answer.outcome.attempts if a.endpoint == "cloud")
        assert racing / total == pytest.approx(0.5, abs=0.1)
