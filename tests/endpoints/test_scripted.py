"""The scripted endpoint: slots that queue and remember, to the millisecond."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import pytest
import trio.testing

from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.types import Finish, Kind, Message, Piece, Prefix, Prompt, Request

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "anyio_backend", [("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})], ids=["virtual"]
    ),
]

SCRIPT: Mapping[str, Any] = {"answer": "one two", "ttft_s": 1.0, "prefill_s_per_token": 0.1, "tbt_s": 0.5}


def scripted(**script: Any) -> ScriptedEndpoint:
    return ScriptedEndpoint.of("laptop", Kind.DEVICE, **SCRIPT | script)


def request(text: str) -> Request:
    return Request(messages=(Message("user", text),), arrived_at=0.0, request_id="r")


async def run(endpoint: ScriptedEndpoint, text: str, times: dict[str, float] | None = None) -> list[Any]:
    events = [event async for event in endpoint.generate(request(text), Prefix())]
    if times is not None:
        times[text] = anyio.current_time()
    return events


async def test_without_slots_nothing_waits_and_nothing_is_kept():
    """Any number at once, each prompt read in full."""
    endpoint, times, start = scripted(), {}, anyio.current_time()
    assert endpoint.slots is None
    async with anyio.create_task_group() as tasks:
        for text in ("a b", "c d"):
            tasks.start_soon(run, endpoint, text, times)
    assert [at - start for at in times.values()] == pytest.approx([1.7, 1.7])
    assert (await run(endpoint, "a b"))[-1].cached_tokens is None


async def test_the_third_of_two_slots_waits():
    """A request beyond the slots starts when one is free."""
    endpoint, times, start = scripted(slots=2), {}, anyio.current_time()
    assert endpoint.slots == 2
    async with anyio.create_task_group() as tasks:
        for text in ("a", "b c", "d"):
            tasks.start_soon(run, endpoint, text, times)
            await anyio.sleep(0.1)
    assert {text: at - start for text, at in times.items()} == pytest.approx({"a": 1.6, "b c": 1.8, "d": 3.2})


async def test_a_common_beginning_is_not_read_again():
    """A slot that has read the beginning of a prompt prefills only the rest, and says so before content."""
    endpoint = scripted(slots=2)
    await run(endpoint, "a b c d")
    await run(endpoint, "x y")
    start = anyio.current_time()
    counted, read, *pieces, finish = await run(endpoint, "a b c d e")
    assert anyio.current_time() - start == pytest.approx(1.6)
    assert (counted, read) == (Prompt(5), Prompt(5, 4))
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert isinstance(finish, Finish)
    assert (finish.prompt_tokens, finish.cached_tokens) == (5, 4)


async def test_a_prompt_that_was_not_read_to_its_end_is_kept_in_part():
    """Cancelled in its prefill, a request leaves the slot free, with what it had read until then."""
    endpoint = scripted(slots=1)
    with anyio.move_on_after(endpoint.script.ttft_s + 2.5 * endpoint.script.prefill_s_per_token) as scope:
        await run(endpoint, "a b c d")
    assert scope.cancelled_caught
    assert (await run(endpoint, "a b c d"))[1] == Prompt(4, 2)
