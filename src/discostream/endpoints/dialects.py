"""How endpoints are asked to go on with a partial answer, as data, and what a refusal to do so means.

Chat endpoints get the partial answer as a last `assistant` message; what marks it as unfinished differs.
Vendors add and remove this ability, so the settings choose, and a refusal at run time is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

__all__ = ["CONTINUATIONS", "CONTINUING_MODELS", "Continuation", "ContinuationName", "Refusals"]

ContinuationName = Literal["none", "continue_final_message", "prefix", "trailing_assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """One way to ask for the rest of an answer.

    Attributes:
        possible: Whether there is one at all.
        body: Fields to add to the request.
        message: Fields to add to the message that holds the partial answer.
    """

    possible: bool = True
    body: Mapping[str, Any] = field(default_factory=dict)
    message: Mapping[str, Any] = field(default_factory=dict)


CONTINUATIONS: Final[Mapping[ContinuationName, Continuation]] = {
    # OpenAI, Azure, Claude 4.6 and later, Gemini 3.6 and later.
    "none": Continuation(possible=False),
    # llama.cpp, vLLM, SGLang, TGI. Both fields, because servers refuse a request where both are true.
    "continue_final_message": Continuation(
        body={"continue_final_message": True, "add_generation_prompt": False}
    ),
    # DeepSeek (under /beta) and Mistral; Mistral's reply repeats the prefix (`repeats_prefix = true`).
    "prefix": Continuation(message={"prefix": True}),
    # Claude up to 4.5, Gemini up to 3.1, older llama.cpp, LMDeploy, many models behind OpenRouter.
    "trailing_assistant": Continuation(),
}
"""The dialects by the name that `continuation` takes in the settings."""

CONTINUING_MODELS: Final[Mapping[str, re.Pattern[str]]] = {
    # 400 from 4.6 on: "This model does not support assistant message prefill" (Anthropic's migration guide).
    "anthropic": re.compile(
        r"claude-(instant|2|3)\b.*|claude-(opus|sonnet|haiku)-4(-[0-5])?([-@]\d{8}|-latest)?"
    ),
    # 400 from 3.5-flash-lite and 3.6 on: "Requests ending with a model turn are not supported"
    # (LibreChat-AI/agents PR #323, pipecat PR #5821).
    "gemini": re.compile(r"gemini-(1\.|2\.|3-|3\.1-).*|gemini-3\.5-flash(?!-lite).*|gemini-pro-latest"),
}
"""The models that go on with a last assistant message, by dialect; a model yet unknown does not."""

FOR_GOOD = (
    "prefill",
    "prefix",
    "assistant",
    "last message",
    "last role",
    "final message",
    "model turn",
    "continue_final_message",
    "add_generation_prompt",
)
"""Words in a refusal that say it is the continuation that the endpoint does not take."""

THIS_TIME = ("2 or more assistant", "tool call", "whitespace", "alternate")
"""Words that say it is this conversation; llama.cpp's, Anthropic's, and those of chat templates."""

ENOUGH = 2
"""So many refusals in a row are taken for a rule, whatever they say."""


class Refusals:
    """What the continuations that an endpoint refused say of the next one."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def settle(self, refusal: str) -> bool:
        """Count one; whether the endpoint will refuse every other as well."""
        said = refusal.lower()
        if any(sign in said for sign in THIS_TIME):
            return False
        self._in_a_row += 1
        return self._in_a_row >= ENOUGH or any(sign in said for sign in FOR_GOOD)

    def forget(self) -> None:
        """Begin anew: it has accepted a continuation."""
        self._in_a_row = 0
