"""Which conversations an endpoint has read lately, and so need not read again from the start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from discostream.endpoints.base import Endpoint
from discostream.types import Message

__all__ = ["Conversations", "Remembered"]

SIMILAR = 0.1
"""llama.cpp reads a prompt into a slot that holds more than this part of it (`--slot-prompt-similarity`)."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What lies in the slots of one endpoint.

    Attributes:
        conversations: Of each, a hash of every beginning (one message, two, ...); the last was read last.
    """

    conversations: tuple[frozenset[int], ...] = ()

    def uncached_chars(self, messages: Sequence[Message]) -> int:
        """How many characters of this conversation would have to be read."""
        beginnings = tuple(_beginnings(messages))
        known = max((_known_chars(beginnings, slot) for slot in self.conversations), default=0)
        return _chars(messages) - known

    def read(self, messages: Sequence[Message], slots: int) -> Remembered:
        """The same after the endpoint, which has so many slots, has read this conversation.

        It takes the slot of the conversation that it goes on with, else the one that was used longest ago.
        """
        beginnings = tuple(_beginnings(messages))
        nearest = max(self.conversations, key=lambda slot: _known_chars(beginnings, slot), default=None)
        if nearest and _known_chars(beginnings, nearest) > SIMILAR * _chars(messages):
            others = tuple(slot for slot in self.conversations if slot is not nearest)
        else:
            others = self.conversations[max(len(self.conversations) - slots + 1, 0) :]
        return Remembered((*others, frozenset(told for told, _ in beginnings)))


class Conversations:
    """What every endpoint has read lately; those whose number of slots is not known remember nothing.

    Only hashes are kept, in memory, as many conversations as an endpoint has slots.

    Args:
        endpoints: By name.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = endpoints
        self._remembered = dict.fromkeys(endpoints, Remembered())

    def uncached_chars(self, endpoint: str, messages: Sequence[Message]) -> int:
        """How many characters of this conversation the endpoint would have to read, as far as is known."""
        return self._remembered[endpoint].uncached_chars(messages)

    def remember(self, endpoint: str, messages: Sequence[Message]) -> None:
        """Note that the endpoint has read this conversation to its end."""
        slots = self._endpoints[endpoint].slots
        if slots is not None:
            self._remembered[endpoint] = self._remembered[endpoint].read(messages, slots)


def _beginnings(messages: Sequence[Message]) -> Iterator[tuple[int, int]]:
    """Of every beginning of a conversation a hash, and its length in characters."""
    told = chars = 0
    for message in messages:
        told = hash((told, message))
        chars += len(message.content)
        yield told, chars


def _chars(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


def _known_chars(beginnings: Sequence[tuple[int, int]], slot: frozenset[int]) -> int:
    return max((chars for told, chars in beginnings if told in slot), default=0)
