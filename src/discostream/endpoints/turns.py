"""Conversations for APIs that keep the system prompt apart, and know models that can be continued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from discostream.endpoints.dialects import CONTINUING_MODELS
from discostream.types import Message

__all__ = ["ModelsContinuation", "may_continue", "without_system"]

ModelsContinuation = Literal["auto", "none", "trailing_assistant"]
"""How a model is asked to go on; `auto` goes by its name."""

SYSTEM = ("system", "developer")


def may_continue(dialect: str, model: str, continuation: ModelsContinuation) -> bool:
    """Whether this model may be asked to go on with a partial answer."""
    if continuation == "auto":
        return CONTINUING_MODELS[dialect].fullmatch(model) is not None
    return continuation != "none"


def without_system(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """The system prompt, and the turns of the others."""
    system = [message.content for message in messages if message.role in SYSTEM]
    return "\n\n".join(system), [message for message in messages if message.role not in SYSTEM]
