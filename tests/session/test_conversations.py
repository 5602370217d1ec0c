"""What an endpoint has read lately: closed forms, and a real engine's own word on it."""

from __future__ import annotations

from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.session.conversations import Conversations, Remembered
from discostream.types import Kind, Message, Prefix, Prompt, Request

SYSTEM = Message("system", "s" * 100)
FIRST = (SYSTEM, Message("user", "u" * 30))
SECOND = (*FIRST, Message("assistant", "a" * 200), Message("user", "v" * 20))
OTHER = (Message("user", "x" * 50),)


def chars(messages):
    return sum(len(message.content) for message in messages)


def test_what_was_never_read_is_read_in_full():
    """An endpoint that remembers nothing has every character before it."""
    assert Remembered().uncached_chars(SECOND) == 350


def test_a_next_turn_costs_only_its_new_messages():
    """Of a chat that goes on, only what came after the last reading is left; of the same prompt, nothing."""
    remembered = Remembered().read(FIRST, slots=2)
    assert remembered.uncached_chars(SECOND) == 220
    assert remembered.uncached_chars(FIRST) == 0
    assert remembered.read(SECOND, slots=2).uncached_chars(FIRST) == 0


def test_an_answer_that_was_remembered_too_is_not_read_again():
    """Who wrote the answer has it in the same slot: the next turn costs the user's words alone."""
    remembered = Remembered().read(SECOND[:-1], slots=2)
    assert remembered.uncached_chars(SECOND) == 20


def test_a_changed_word_costs_everything_behind_it():
    """Only a common beginning counts, role and text alike."""
    remembered = Remembered().read(SECOND, slots=2)
    edited = (*FIRST, Message("assistant", "b" * 200), SECOND[-1])
    assert remembered.uncached_chars(edited) == 220
    assert remembered.uncached_chars((Message("user", SYSTEM.content), *FIRST[1:])) == 130
    assert remembered.uncached_chars((FIRST[1], SYSTEM)) == 130


def test_a_chat_that_goes_on_stays_in_its_slot():
    """Two chats in turns keep two slots, however long they get."""
    remembered = Remembered()
    chats = [list(FIRST), list(OTHER)]
    for turn in range(5):
        for chat in chats:
            chat.append(Message("user", f"{turn} and on it goes"))
            remembered = remembered.read(chat, slots=2)
    assert [remembered.uncached_chars(chat) for chat in chats] == [0, 0]


def test_the_slot_used_longest_ago_is_given_up():
    """With two slots, a third conversation displaces the first."""
    remembered = Remembered()
    for messages in (FIRST, OTHER, (Message("user", "y" * 40),)):
        remembered = remembered.read(messages, slots=2)
    assert (remembered.uncached_chars(FIRST), remembered.uncached_chars(OTHER)) == (130, 0)


def test_a_short_common_beginning_takes_another_slot():
    """As in llama.cpp, a prompt goes into a used slot only if that holds more than a tenth of it."""
    brief = (Message("system", "s" * 10), Message("user", "u" * 10))
    at_a_tenth = (brief[0], Message("user", "v" * 90))
    past_a_tenth = (brief[0], Message("user", "v" * 89))
    once = Remembered().read(brief, slots=2)
    assert once.read(at_a_tenth, slots=2).uncached_chars(brief) == 0
    assert once.read(past_a_tenth, slots=2).uncached_chars(brief) == 10


@given(
    st.lists(st.lists(st.sampled_from([*SECOND, *OTHER]), min_size=1, max_size=4), max_size=12),
    st.integers(1, 3),
)
def test_memory_is_bounded_and_never_promises_too_much(read, slots):
    """Never more conversations than slots, the latest of them known; no cost below 0 or above the whole."""
    remembered = Remembered()
    for messages in read:
        remembered = remembered.read(messages, slots)
        assert remembered.uncached_chars(messages) == 0
        assert len(remembered.conversations) <= slots
        assert 0 <= remembered.uncached_chars(SECOND) <= chars(SECOND)


def test_endpoints_remember_for_themselves_and_only_with_slots():
    """A device knows what it has read; a server with unknown slots is always taken to read everything."""
    laptop, cloud = ScriptedEndpoint.of("laptop", Kind.DEVICE), ScriptedEndpoint.of("cloud", Kind.SERVER)
    laptop.slots = 1
    conversations = Conversations({"laptop": laptop, "cloud": cloud})
    conversations.remember("laptop", FIRST)
    conversations.remember("cloud", FIRST)
    assert conversations.uncached_chars("laptop", SECOND) == 220
    assert conversations.uncached_chars("cloud", SECOND) == 350


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_estimate_is_what_a_real_engine_finds(engine_endpoint):
    """Two chats in turns on llama.cpp: what it says it had cached is what we took it to have."""
    conversations = Conversations({engine_endpoint.name: engine_endpoint})
    question = Message("user", "Tell me all about it. " * 16)
    chats = [[Message("system", about), question] for about in ("Owls", "Salt")]
    for turn in range(3):
        for chat in chats:
            expected = conversations.uncached_chars(engine_endpoint.name, chat) / chars(chat)
            assert (expected == 1.0) == (turn == 0)
            assert await uncached_share(engine_endpoint, chat) == pytest.approx(expected, abs=0.15)
            conversations.remember(engine_endpoint.name, chat)
            chat += [Message("assistant", "It is so. " * 5), Message("user", f"More, please: {turn}.")]


async def uncached_share(endpoint, chat) -> float:
    request = Request(messages=tuple(chat), arrived_at=0.0, request_id="r", max_tokens=1)
    async with aclosing(endpoint.generate(request, Prefix())) as events:
        prompts = [event async for event in events if isinstance(event, Prompt)]
    cached = prompts[-1].cached_tokens
    assert cached is not None
    return 1 - cached / prompts[-1].tokens
