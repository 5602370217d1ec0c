"""What callers of the library may say: a text, messages, and further fields of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from discostream.errors import RequestRejected
from discostream.types import Message
from discostream.wire.openai_schema import MAPPED_FIELDS, chat_message, passed_on

__all__ = ["Messages", "as_fields", "as_messages", "refuse_broken_text"]

Messages: TypeAlias = str | Sequence[Message | Mapping[str, Any]]


def refuse_broken_text(messages: Sequence[Message]) -> None:
    """Refuse half a character, as broken input has it, which cannot be sent.

    Raises:
        RequestRejected: A message holds one.
    """
    try:
        for message in messages:
            message.content.encode()
    except UnicodeEncodeError:
        raise RequestRejected("messages: hold text that is not valid Unicode", param="messages") from None


def as_fields(extra_body: Mapping[str, Any]) -> dict[str, bytes]:
    """The JSON of further fields by their names.

    Raises:
        RequestRejected: One has an argument of its own, or a value that cannot be had.
    """
    for name in extra_body:
        if name in MAPPED_FIELDS:
            raise RequestRejected(
                f"extra_body: {name!r} does not belong there; `stream` has its own arguments", param=name
            )
    return passed_on(extra_body)


def as_messages(messages: Messages) -> tuple[Message, ...]:
    """The turns of a chat.

    Raises:
        RequestRejected: There is none, or one is no message.
    """
    if isinstance(messages, str):
        return (Message("user", messages),)
    if not messages:
        raise RequestRejected("messages: there must be at least one", param="messages")
    return tuple(
        message if isinstance(message, Message) else _as_message(message, f"messages[{index}]")
        for index, message in enumerate(messages)
    )


def _as_message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise RequestRejected(f'{where}: must be {{"role": text, "content": text}}', param=where)
    return chat_message(message, where)
